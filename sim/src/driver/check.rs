//! Whether what is to run is what was released, has its GPUs to itself, and is missed by nobody.

use std::{
    collections::BTreeSet,
    fs,
    io::BufReader,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use edgecore::{
    apps::live,
    driver::{InstanceSpec, Side, side::app_of},
};
use proto::{
    digest::Digest,
    name::Name,
    release::{Manifest, replicas, uses::variable},
};

use super::{BAD_FILES, SimDriver, process::Process};
use crate::gpu;

impl SimDriver {
    pub(super) fn gpus_answer(&self, uuids: &[String]) -> bool {
        uuids.iter().all(|uuid| self.gpus.as_ref().is_some_and(|gpus| gpus.answers(uuid)))
    }

    /// Whether an instance has the GPUs that it needs, and nobody has too much of one with it.
    pub(super) fn check_gpus(&self, spec: &InstanceSpec) -> Result<(), String> {
        let Some(needs) = &spec.workload.gpus else { return Ok(()) };
        let named = spec.workload.env.get("CUDA_VISIBLE_DEVICES");
        if named != Some(&spec.gpus.join(",")) {
            return Err(format!("it has {:?} and is told {named:?}", spec.gpus));
        }
        let distinct: BTreeSet<&String> = spec.gpus.iter().collect();
        let there = distinct.iter().filter(|uuid| self.gpus.as_ref().is_some_and(|gpus| gpus.has(uuid))).count();
        if there != usize::try_from(needs.count).unwrap_or(usize::MAX) {
            return Err(format!("it needs {} GPUs and has {:?}", needs.count, spec.gpus));
        }
        let state = self.lock();
        let others = || state.apps.iter().filter(|(app, other)| **app != spec.key() && other.instance.exit.is_none());
        for uuid in distinct {
            let mut bytes = needs.memory_bytes();
            for (app, other) in others().filter(|(_, other)| other.gpus.contains(uuid)) {
                if needs.exclusive || other.exclusive {
                    return Err(format!("it has {uuid} together with {app}, and one of them wants it for itself"));
                }
                bytes = bytes.saturating_add(other.gpu_bytes);
            }
            if bytes > gpu::MEMORY_BYTES {
                return Err(format!("apps have {bytes} bytes of {uuid}, which has {}", gpu::MEMORY_BYTES));
            }
        }
        Ok(())
    }

    /// Whether a replica is one of as many as its release says, beside the first one of that release, which has been up
    /// for long enough to be proved; and whether a first one of another release begins beside none.
    pub(super) fn check_replicas(&self, spec: &InstanceSpec) -> Result<(), String> {
        let state = self.lock();
        let of_app = state.apps.iter().filter(|(key, other)| other.instance.exit.is_none() && app_of(key) == spec.app);
        let of_app = of_app.map(|(key, other)| (replicas::of(key).1, other));
        if spec.replica == 0 {
            let is_other = |(replica, other): &(u8, &Process)| {
                *replica > 0 && other.instance.release.digest != spec.release.digest && spec.run.is_none()
            };
            return of_app.clone().find(is_other).map_or(Ok(()), |(replica, other)| {
                Err(format!("it begins beside replica {replica} of {}", other.instance.release.version))
            });
        }
        let max = spec.workload.replicas.as_ref().map_or(1, |replicas| replicas.max);
        if spec.replica >= max {
            return Err(format!("it is replica {}, of at most {max} with 0", spec.replica));
        }
        // The first one may have ended of itself a moment ago.
        let mut firsts = of_app.filter(|(replica, other)| *replica == 0 && other.is_live());
        let first = firsts.find(|(_, other)| other.instance.release.digest != spec.release.digest);
        if let Some((_, first)) = first {
            return Err(format!("its replica {} begins beside {}", spec.replica, first.instance.release.version));
        }
        let since = state.begun.get(&spec.release.digest);
        if since.is_none_or(|since| since.elapsed() < spec.workload.soak.get()) {
            return Err(format!("its replica {} begins before it can be proved", spec.replica));
        }
        Ok(())
    }

    /// Compares what is to be run with what was released under this digest.
    pub(super) fn check_tree(&self, spec: &InstanceSpec) -> Result<(), String> {
        let released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        let manifest = released.get(&spec.release.digest).ok_or("such a release was never published")?;
        let (app, version) = (&spec.app, &spec.release.version);
        if (app, version) != (&manifest.app, &manifest.version) {
            return Err(format!("its digest is that of {}@{}", manifest.app, manifest.version));
        }
        let mut workload = spec.workload.clone();
        for own in [
            "CROSSDOCK_APPS",
            "CUDA_VISIBLE_DEVICES",
            "NVIDIA_VISIBLE_DEVICES",
            live::OWN,
            live::LIVE,
            replicas::VARIABLE,
        ] {
            workload.env.remove(own); // the agent's to say
        }
        for of in spec.uses.keys() {
            workload.env.remove(&variable(of));
        }
        if manifest.workload.as_ref() != Some(&workload) {
            return Err("its command, arguments or limits are not what was released".into());
        }
        compare(&spec.tree, manifest)
    }

    /// Compares the files of others with what was released, and says whether they are bad.
    pub(super) fn check_used(&self, spec: &InstanceSpec) -> (Result<(), String>, bool) {
        let released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut checked, mut are_bad) = (Ok(()), false);
        for (of, used) in &spec.uses {
            let Some(manifest) = released.get(&used.digest) else {
                checked = Err(format!("it uses {of}@{}, which was never published", used.version));
                continue;
            };
            are_bad |= manifest.files.iter().any(|file| file.path.as_str() == BAD_FILES);
            let folder = spec.workload.env.get(&variable(of)).map(PathBuf::from).unwrap_or_default();
            let same = compare(&folder, manifest).map_err(|problem| format!("files of {of}: {problem}"));
            checked = checked.and(same);
        }
        (checked, are_bad)
    }

    /// Notes that an instance is live that does not do its work, beside one that does.
    pub(super) fn check_live(&self, key: &Name) {
        let (app, side) = Side::of(key);
        let found = {
            let state = self.lock();
            let of = |key: &Name| state.apps.get(key).filter(|process| process.instance.exit.is_none());
            let other = side.other().key(&app).is_some_and(|other| of(&other).is_some_and(|process| !process.hangs));
            let own = of(key).filter(|process| process.run.is_some() && process.hangs && process.is_live());
            own.filter(|_| other).map(|process| process.instance.release.version.clone())
        };
        if let Some(version) = found {
            self.violation(format!("{key}@{version} is live, and does nothing, beside one that would"));
        }
    }
}

/// Compares a tree with what was released.
fn compare(tree: &Path, manifest: &Manifest) -> Result<(), String> {
    let mut there = BTreeSet::new();
    files(tree, "", &mut there).map_err(|e| format!("its tree cannot be read: {e}"))?;
    let listed: BTreeSet<String> = manifest.files.iter().map(|file| file.path.as_str().to_owned()).collect();
    if let Some(extra) = there.difference(&listed).next() {
        return Err(format!("{extra} was never released"));
    }
    for file in &manifest.files {
        let path = tree.join(file.path.as_str());
        let open = std::fs::File::open(&path).map_err(|e| format!("{}: {e}", file.path.as_str()))?;
        let (digest, _) = Digest::of_reader(BufReader::new(open)).map_err(|e| e.to_string())?;
        if digest != file.digest {
            return Err(format!("{} is not what was released", file.path.as_str()));
        }
    }
    Ok(())
}

/// Paths of the files below a folder, as a manifest has them.
fn files(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            files(&entry.path(), &format!("{path}/"), found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}
