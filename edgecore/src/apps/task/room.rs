//! The memory and the processors that an app's releases ask for: claimed for a staged one before anything stops for it.

use std::{collections::BTreeSet, fs, path::Path};

use proto::{
    digest::Digest,
    durable::Record,
    name::{Name, ReleaseName},
    release::Workload,
};

use super::App;
use crate::{
    apps::{room::Rooms, slot},
    fetch::tree,
    gpu::allot::Refusal,
};

impl App {
    /// Keeps room for what is staged, or learns why there is none; gives back what no release asks for any more.
    pub(super) fn claim_room(&mut self) {
        let rooms = &self.shared.rooms;
        let staged = self.staged.as_ref().map(|staged| (staged.installed.release.digest, &staged.workload));
        let kept: BTreeSet<Digest> = self.with_gpus().chain(staged.map(|(digest, _)| digest)).collect();
        rooms.keep_only(&self.name, &kept);
        let Some((digest, workload)) = staged else { return };
        let asks = workload.as_ref().map(Workload::asks).unwrap_or_default();
        let on_trial = self.slot.trial.as_ref().is_some_and(|trial| trial.installed.release.digest == digest);
        if on_trial || self.run.as_ref().is_some_and(|run| run.release.digest == digest) {
            return; // it runs, and has what it asked for
        }
        if let Err(short) = rooms.claim(&self.name, digest, asks) {
            let least = workload.as_ref().and_then(|workload| workload.replicas.as_ref()).map_or(1, |r| r.min);
            let message = match least {
                0 | 1 => short.message,
                _ => format!("{least} replicas of it are to run, and count together: {}", short.message),
            };
            let refusal = Refusal { reason: short.reason, message };
            self.gpus.refused.entry(digest).or_insert(refusal);
        }
    }

    /// A release starts: whatever is asked of the box, what was accepted before runs.
    pub(super) fn hold_room(&self, release: Digest, workload: Option<&Workload>) {
        self.shared.rooms.hold(&self.name, release, workload.map(Workload::asks).unwrap_or_default());
    }
}

/// What the releases of an app ask for that lie in `folder` and may run, told before anything is claimed.
pub(in crate::apps) fn hold_installed(rooms: &Rooms, app: &Name, folder: &Path) {
    if fs::symlink_metadata(folder).is_err() {
        return; // something of it runs, and nothing is installed
    }
    let Ok(slot) = slot::load(&Record::at(folder.join("slot"))) else { return }; // its task says that it is lost
    for installed in slot.active.iter().chain(slot.trial.as_ref().map(|trial| &trial.installed)) {
        let release = &installed.release;
        let name = ReleaseName { app: app.clone(), version: release.version.clone() };
        let at = tree::release_folder(&folder.join("releases"), release.digest);
        // What is damaged is fetched again, and says what it asks for when it starts.
        if let Ok(manifest) = tree::manifest(&at, release.digest, &name) {
            rooms.hold(app, release.digest, manifest.workload.as_ref().map(Workload::asks).unwrap_or_default());
        }
    }
}
