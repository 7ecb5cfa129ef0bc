//! Which GPUs an app gets: from what there is, how well it is and who has what. Pure.
//!
//! Each release of an app that is to run has a [`Grant`], on one of the app's two [`Side`]s. Those of one side never run
//! at the same time, such as a release on trial and the one it goes back to, so an app holds of a GPU the most that any
//! grant of a side has, both sides together. What an app gets:
//!
//! - only GPUs that are well, and of one driver that suits it;
//! - for itself: GPUs that nobody else holds; shared: GPUs that nobody else has for themselves, with its share of memory
//!   left beside the shares of others and beside what processes use that are no app's;
//! - those it has already, where they still fit (so it keeps them over updates and restarts), then those it fits most
//!   tightly, so that large ones stay free for who needs them; of equal ones the first by uuid.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use proto::{digest::Digest, name::Name, release::Gpus};
use serde::{Deserialize, Serialize};

use crate::driver::Side;

/// A GPU as the allocator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offer {
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Bytes used by whom it is no app's: other programs, and the driver.
    pub foreign_bytes: u64,
    /// Bytes that each app uses, where that is known.
    pub used_bytes: BTreeMap<Name, u64>,
    /// Why nobody gets it, as `is lost`; empty when it is well.
    pub problem: String,
}

/// What one release of an app was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// Digest of the release.
    pub release: Digest,
    /// The GPUs, in the order in which the workload sees them.
    pub uuids: Vec<String>,
    /// Bytes of each that are kept for it.
    pub memory_bytes: u64,
    /// Whether it has them for itself.
    pub exclusive: bool,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "Side::is_a")]
    pub side: Side,
}

/// Who has what.
pub type Grants = BTreeMap<Name, Vec<Grant>>;

/// A release does not get its GPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// One word for programs: `GpuUnavailable` or `GpuDriverVersion`.
    pub reason: &'static str,
    /// The arithmetic, and what to do.
    pub message: String,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Supply {
    /// Version of the driver, while it works.
    pub driver: Option<String>,
    /// What is wrong with the driver, or why there is none; empty when it works.
    pub trouble: String,
    /// The GPUs, by uuid.
    pub gpus: BTreeMap<String, Offer>,
}

/// What an app asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The app.
    pub app: Name,
    /// Digest of its release.
    pub release: Digest,
    /// What that needs.
    pub needs: Gpus,
    /// Where it is to run.
    pub side: Side,
    /// Whether the app's instance on the other side goes on, and keeps what it has.
    pub beside: bool,
}

/// The grant of one request, beside what is granted already. Those of the same app do not stand in its way, but for
/// the other side's when both are to run.
///
/// # Errors
/// When it does not fit.
pub fn allot(supply: &Supply, grants: &Grants, request: &Request) -> Result<Grant, Refusal> {
    let Request { app, release, needs, side, .. } = request;
    if let Some(wanted) = &needs.driver
        && let Some(driver) = &supply.driver
        && !wanted.hold(driver)
    {
        let message = format!("it needs an NVIDIA driver {wanted}, and this box has {driver}; update the driver");
        return Err(Refusal { reason: "GpuDriverVersion", message });
    }
    let own: BTreeSet<&String> = grants.get(app).into_iter().flatten().flat_map(|grant| &grant.uuids).collect();
    let mut fitting = vec![];
    let mut refused = vec![];
    for (uuid, offer) in &supply.gpus {
        match room(uuid, offer, grants, request) {
            Ok(left) => fitting.push((Reverse(own.contains(uuid)), left, uuid)),
            Err(why) => refused.push(format!("{uuid} {why}")),
        }
    }
    fitting.sort();
    let wanted = usize::try_from(needs.count).unwrap_or(usize::MAX);
    if fitting.len() < wanted {
        return Err(unavailable(supply, needs, fitting.len(), &refused));
    }
    let mut uuids: Vec<String> = fitting.into_iter().take(wanted).map(|(.., uuid)| uuid.clone()).collect();
    uuids.sort();
    let (memory_bytes, exclusive) = (needs.memory_bytes(), needs.exclusive);
    Ok(Grant { release: *release, uuids, memory_bytes, exclusive, side: *side })
}

/// Grants of several requests at once, whatever their order: who has GPUs already comes first, then who needs most.
#[must_use]
pub fn allot_all(supply: &Supply, grants: &Grants, requests: &[Request]) -> Vec<(Request, Result<Grant, Refusal>)> {
    let mut grants = grants.clone();
    let mut ordered: Vec<&Request> = requests.iter().collect();
    ordered.sort_by_cached_key(|request| {
        let has = grants.contains_key(&request.app);
        let Gpus { count, exclusive, .. } = request.needs;
        let memory = u128::from(request.needs.memory_bytes()) * u128::from(count);
        (Reverse((has, exclusive, memory, count)), request.app.clone(), request.release)
    });
    let mut answers = vec![];
    for request in ordered {
        let answer = allot(supply, &grants, request);
        if let Ok(grant) = &answer {
            insert(&mut grants, request, grant.clone());
        }
        answers.push((request.clone(), answer));
    }
    answers
}

/// Adds the grant of a request, in the place of one that the release had there.
pub fn insert(grants: &mut Grants, request: &Request, grant: Grant) {
    let own = grants.entry(request.app.clone()).or_default();
    if !request.beside {
        own.iter_mut().for_each(|before| before.side = grant.side); // nothing runs on the other side
    }
    own.retain(|before| (before.release, before.side) != (grant.release, grant.side));
    own.push(grant);
}

/// Whether a grant of an app stands in the way of a request.
fn counts(app: &Name, grant: &Grant, request: &Request) -> bool {
    *app != request.app || (request.beside && grant.side != request.side)
}

/// Bytes that would be left of a GPU, or why it does not do.
fn room(uuid: &str, offer: &Offer, grants: &Grants, request: &Request) -> Result<u64, String> {
    if !offer.problem.is_empty() {
        return Err(offer.problem.clone());
    }
    let wanted = request.needs.memory_bytes();
    let mut taken = offer.foreign_bytes;
    let mut holders = String::new();
    if taken > 0 {
        let _ = write!(holders, ", {} used by no app of Crossdock", size(taken)); // a string takes everything
    }
    for (app, held) in grants {
        let has = |grant: &&Grant| grant.uuids.iter().any(|held| held == uuid) && counts(app, grant, request);
        let held: Vec<&Grant> = held.iter().filter(has).collect();
        if held.iter().any(|grant| grant.exclusive) {
            return Err(format!("is held by {app} for itself"));
        }
        if held.is_empty() {
            continue;
        }
        if request.needs.exclusive {
            return Err(format!("is held by {app}"));
        }
        let most = |side| held.iter().filter(|grant| grant.side == side).map(|grant| grant.memory_bytes).max();
        let share = Side::ALL.into_iter().filter_map(most).fold(0, u64::saturating_add);
        let share = share.max(offer.used_bytes.get(app).copied().unwrap_or(0));
        taken = taken.saturating_add(share);
        let _ = write!(holders, ", {} held by {app}", size(share));
    }
    let stray = offer.used_bytes.iter().filter(|(app, _)| **app != request.app && !holds(grants, app, uuid));
    for (app, bytes) in stray {
        taken = taken.saturating_add(*bytes);
        let _ = write!(holders, ", {} used by {app}, which holds none of it", size(*bytes));
    }
    match offer.memory_bytes.saturating_sub(taken).checked_sub(wanted) {
        Some(left) => Ok(left),
        None => Err(format!("has {}{holders}", size(offer.memory_bytes))),
    }
}

fn holds(grants: &Grants, app: &Name, uuid: &str) -> bool {
    grants.get(app).into_iter().flatten().any(|grant| grant.uuids.iter().any(|held| held == uuid))
}

fn unavailable(supply: &Supply, needs: &Gpus, fitting: usize, refused: &[String]) -> Refusal {
    let memory = needs.memory.map(|memory| format!(" with {} free", size(memory.get()))).unwrap_or_default();
    let how = if needs.exclusive { "for itself" } else { "shared" };
    let mut message = format!("it wants {} GPU{}{memory}, {how}", needs.count, if needs.count == 1 { "" } else { "s" });
    if supply.gpus.is_empty() || !supply.trouble.is_empty() {
        let _ = match &supply.trouble {
            none if none.is_empty() => write!(message, "; this box has no NVIDIA GPU"),
            why => write!(message, "; this box has no NVIDIA GPU that can be used: {why}"),
        };
    } else {
        let _ = write!(message, "; {fitting} of {} would do", supply.gpus.len());
        for why in refused {
            let _ = write!(message, "; {why}");
        }
        message.push_str("; mend the box, move an app away, or ask for less (workload.gpus)");
    }
    Refusal { reason: "GpuUnavailable", message }
}

/// Bytes for people: `8 GiB`, `1.5 GiB`, `512 MiB`.
fn size(bytes: u64) -> String {
    let mib = bytes >> 20;
    match mib {
        0..1024 => format!("{mib} MiB"),
        _ if mib.is_multiple_of(1024) => format!("{} GiB", mib / 1024),
        _ => format!("{}.{} GiB", mib / 1024, mib % 1024 * 10 / 1024),
    }
}

#[cfg(test)]
#[path = "allot_tests.rs"]
mod tests;
