//! Whether a node's GPUs would do for an app that is to be placed. Arithmetic alone, over what the node told.
//!
//! The box itself has the last word, for it sees more: which bytes of a GPU programs use that are no app's, say. The hub
//! looks at what keeps it from choosing a node that would only refuse: the driver, GPUs that are lost or sick, their
//! memory, and who has them, also who was told to begin there and does not have them yet.

use std::{cmp::Reverse, collections::BTreeMap};

use proto::{
    name::{Name, ReleaseName, Version},
    object::{GpuInfo, Node, Release},
    release::Gpus,
    units::Bytes,
};

use super::room::Releases;

/// Whether the GPUs of a node would do for a release, beside the apps there and those `picked` that are about to begin.
///
/// # Errors
/// The arithmetic.
pub(super) fn fit<'a>(
    node: &'a Node,
    release: &Release,
    releases: &'a Releases,
    picked: impl Iterator<Item = (&'a Name, &'a Release)>,
) -> Result<(), String> {
    let Some(needs) = &release.spec.gpus else { return Ok(()) };
    let what = asked(needs);
    let inventory = node.status.info.as_ref().and_then(|info| info.nvidia.as_ref());
    let Some(inventory) = inventory.filter(|inventory| !inventory.devices.is_empty()) else {
        return Err(format!("it needs {what}, and {} has no NVIDIA GPU", node.name()));
    };
    if let Some(wanted) = needs.driver.as_ref().filter(|wanted| !wanted.hold(&inventory.driver_version)) {
        return Err(format!(
            "it needs an NVIDIA driver {wanted}, and {} has {}",
            node.name(),
            inventory.driver_version
        ));
    }
    let mut others = holders(node, releases);
    others.extend(picked.filter_map(|(app, release)| Some((app, release.spec.gpus.as_ref()?))));
    others.remove(&release.spec.app);
    let has = |app: &Name| inventory.devices.iter().any(|gpu| gpu.apps.contains(app));
    let coming = others.iter().filter(|(app, _)| !has(app));
    // For all the hub knows whoever is to be alone takes what would do, and who shares takes its share.
    let (alone, sharing): (Vec<_>, Vec<_>) = coming.partition(|(_, gpus)| gpus.exclusive || needs.exclusive);
    let promised = promised(&inventory.devices, &sharing, &others);
    let would_do = |(gpu, promised): &(&GpuInfo, &u64)| left(gpu, needs, &others, **promised).is_some();
    let free = inventory.devices.iter().zip(&promised).filter(would_do).count();
    let about_to: usize = alone.iter().map(|(_, gpus)| gpus.count as usize).sum();
    if free.saturating_sub(about_to) >= needs.count as usize {
        return Ok(());
    }
    let (name, all) = (node.name(), inventory.devices.len());
    let beside: Vec<&str> = sharing.iter().map(|(app, _)| app.as_str()).collect();
    let beside = match &*beside {
        [] => String::new(),
        [one] => format!(" beside {one}, which is about to begin"),
        several => format!(" beside {}, which are about to begin", several.join(", ")),
    };
    let about_to = if about_to > 0 { format!(", and {about_to} are other apps' in a moment") } else { String::new() };
    Err(format!("it needs {what}, and of the {all} of {name} {free} would do{beside}{about_to}"))
}

/// Bytes of each GPU that apps with shares will have in a moment. As the box does it: who needs most is first, and gets
/// those GPUs that it fits most tightly.
fn promised(devices: &[GpuInfo], sharing: &[(&&Name, &&Gpus)], others: &BTreeMap<&Name, &Gpus>) -> Vec<u64> {
    let mut promised = vec![0_u64; devices.len()];
    let mut sharing: Vec<&Gpus> = sharing.iter().map(|(_, gpus)| **gpus).collect();
    sharing.sort_by_key(|gpus| Reverse((u128::from(gpus.memory_bytes()) * u128::from(gpus.count), gpus.count)));
    for gpus in sharing {
        let there = devices.iter().zip(&mut promised);
        let fits = there.filter_map(|(gpu, promised)| Some((left(gpu, gpus, others, *promised)?, promised)));
        let mut fitting: Vec<(u64, &mut u64)> = fits.collect();
        fitting.sort_by_key(|(left, _)| *left);
        for (_, promised) in fitting.into_iter().take(gpus.count as usize) {
            *promised = promised.saturating_add(gpus.memory_bytes());
        }
    }
    promised
}

/// The apps that may run on a node and have GPUs, and what they ask of each.
fn holders<'a>(node: &'a Node, releases: &'a Releases) -> BTreeMap<&'a Name, &'a Gpus> {
    let told = node.spec.apps.iter().map(|(app, told)| (app, &told.version));
    let running =
        node.status.workloads.iter().filter_map(|(app, said)| Some((app, &said.running.as_ref()?.release.version)));
    let gpus = |(app, version): (&'a Name, &Version)| {
        let release = releases.get(&ReleaseName { app: app.clone(), version: version.clone() })?;
        Some((app, release.spec.gpus.as_ref()?))
    };
    running.chain(told).filter_map(gpus).collect()
}

/// Bytes that would be left of a GPU, of which so many are promised; nothing where it does not do.
fn left(gpu: &GpuInfo, needs: &Gpus, others: &BTreeMap<&Name, &Gpus>, promised: u64) -> Option<u64> {
    if !gpu.problem.is_empty() {
        return None;
    }
    let mut taken = promised;
    for app in &gpu.apps {
        match others.get(app) {
            Some(gpus) if needs.exclusive || gpus.exclusive => return None,
            Some(gpus) => taken = taken.saturating_add(gpus.memory_bytes()),
            None => {} // the app itself, or one that is going
        }
    }
    gpu.memory_bytes.saturating_sub(taken).checked_sub(needs.memory_bytes())
}

/// `2 GPUs with 8 GiB each`.
fn asked(needs: &Gpus) -> String {
    let count = if needs.count == 1 { "a GPU".to_owned() } else { format!("{} GPUs", needs.count) };
    match needs.memory_bytes() {
        0 => count,
        bytes if needs.count == 1 => format!("{count} with {}", Bytes::new(bytes)),
        bytes => format!("{count} with {} each", Bytes::new(bytes)),
    }
}
