//! What the world and its oracles ask a box: what runs, what was tried, what went wrong.

use std::{collections::BTreeMap, sync::PoisonError};

use edgecore::driver::{Side, side};
use proto::{
    digest::Digest,
    name::{Name, Version},
    object::ReleaseRef,
    release::replicas,
};

use super::{SimDriver, process::Process};

impl SimDriver {
    /// The version of an app that runs now.
    #[must_use]
    pub fn running(&self, app: &Name) -> Option<Version> {
        self.all_running().into_iter().find(|(name, ..)| name == app).map(|(_, release, _)| release.version)
    }

    /// Which version of each app was started last, or refused to.
    #[must_use]
    pub fn tried(&self) -> Vec<(Name, Version)> {
        self.lock().tried.iter().map(|(app, version)| (app.clone(), version.clone())).collect()
    }

    /// Another whenever [`SimDriver::tried`] or [`SimDriver::all_running`] is: between two attempts to start something,
    /// what runs can only become less.
    #[must_use]
    pub fn moment(&self) -> (u64, usize) {
        let state = self.lock();
        (state.attempts, state.apps.values().filter(|process| process.instance.exit.is_none()).count())
    }

    /// Everything that runs now and is live, with the number of its instance: no two of a box share one.
    #[must_use]
    pub fn all_running(&self) -> Vec<(Name, ReleaseRef, u64)> {
        let state = self.lock();
        let runs = |(key, process): &(&Name, &Process)| {
            process.instance.exit.is_none() && process.is_live() && replicas::of(key).1 == 0
        };
        state
            .apps
            .iter()
            .filter(runs)
            .map(|(key, process)| (side::app_of(key), process.instance.release.clone(), process.number))
            .collect()
    }

    /// Replicas that run of each app besides the first: their numbers, their release, and the number of the instance.
    #[must_use]
    pub fn other_replicas(&self) -> Vec<(Name, u8, Version, u64)> {
        let state = self.lock();
        let other = |(key, process): (&Name, &Process)| {
            let (app, replica) = replicas::of(key);
            let runs = process.instance.exit.is_none() && replica > 0;
            runs.then(|| (app, replica, process.instance.release.version.clone(), process.number))
        };
        state.apps.iter().filter_map(other).collect()
    }

    /// What was started although it was not what its release says. Empty, or the agent is broken.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// The release of files alone that has this digest.
    #[must_use]
    pub fn files_alone(&self, digest: Digest) -> Option<Version> {
        let released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        released.get(&digest).filter(|manifest| manifest.workload.is_none()).map(|manifest| manifest.version.clone())
    }

    /// Whether any release is files alone.
    #[must_use]
    pub fn knows_files(&self) -> bool {
        let released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        released.values().any(|manifest| manifest.workload.is_none())
    }

    /// What the live instance of each app uses of others.
    #[must_use]
    pub fn used(&self) -> Vec<(Name, BTreeMap<Name, Version>)> {
        let state = self.lock();
        let live = state.apps.iter().filter(|(key, p)| {
            p.instance.exit.is_none() && p.is_live() && !p.uses.is_empty() && replicas::of(key).1 == 0
        });
        let versions = |p: &Process| p.uses.iter().map(|(of, used)| (of.clone(), used.version.clone())).collect();
        live.map(|(key, process)| (Side::of(key).0, versions(process))).collect()
    }
}
