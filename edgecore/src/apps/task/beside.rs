//! Whether the box has room for another instance beside the live one: memory and GPUs.

use proto::release::Workload;

use super::{App, StepError};
use crate::{
    apps::{
        plan::{Room, Wanted},
        uses::Standing,
    },
    gpu::ledger::request,
};

/// Memory of the box that is left to everything else, in bytes.
pub(super) const RESERVE_BYTES: u64 = 128 << 20;

impl Room {
    /// The arithmetic, when it is short.
    pub(super) fn why_short(&self) -> Option<String> {
        match self {
            Room::Short(why) => Some(why.clone()),
            Room::NotAsked | Room::Enough => None,
        }
    }
}

impl App {
    /// Looks whether what would be started next can run beside what is live.
    pub(super) async fn look_at_room(&mut self, wanted: &Wanted) -> Result<(), StepError> {
        self.room = match self.next_beside(wanted).await? {
            Some((digest, workload)) => self.room_for(digest, &workload).await,
            None => Room::NotAsked,
        };
        self.files.room = match self.again_beside() {
            Some((digest, workload)) => self.room_for(digest, &workload).await,
            None => Room::NotAsked,
        };
        Ok(())
    }

    /// The release that would be started beside the live one: a new one, or the active one when a trial is over.
    async fn next_beside(&self, wanted: &Wanted) -> Result<Option<(proto::digest::Digest, Workload)>, StepError> {
        let Some(run) = self.run.as_ref().filter(|run| run.spec.workload.update.is_warm()) else { return Ok(None) };
        if self.has_beside() {
            return Ok(None);
        }
        let next = match (&self.slot.trial, &self.slot.active, &self.staged) {
            (None, Some(active), Some(staged)) if active.release == run.release => {
                staged.workload.clone().map(|workload| (staged.installed.release.digest, workload))
            }
            (Some(trial), Some(active), _) => {
                let elsewhere = match trial.files_of {
                    Some(_) => self.files.standing == Some(Standing::Gone),
                    None => wanted.release().is_some_and(|r| r.digest != trial.installed.release.digest),
                };
                if self.verdict.is_none() && !elsewhere {
                    return Ok(None);
                }
                let manifest = self.manifest(&active.release).await?.ok();
                manifest.and_then(|manifest| manifest.workload).map(|workload| (active.release.digest, workload))
            }
            _ => None,
        };
        Ok(next.filter(|(_, workload)| workload.update.is_warm()))
    }

    /// What is live, which would be started beside itself with new files.
    fn again_beside(&self) -> Option<(proto::digest::Digest, Workload)> {
        let run = self.run.as_ref().filter(|run| run.spec.workload.update.is_warm() && !self.has_beside())?;
        self.files.offer.as_ref()?;
        Some((run.release.digest, run.spec.workload.clone()))
    }

    async fn room_for(&self, digest: proto::digest::Digest, workload: &Workload) -> Room {
        let side = self.slot.side.other();
        let gpus = request(&self.name, digest, workload.gpus.as_ref(), side, true);
        if let Some(refusal) = gpus.and_then(|asked| self.shared.gpus.check(&asked).err()) {
            return Room::Short(refusal.message);
        }
        let driver = &self.shared.driver;
        let needed = match workload.limits.memory {
            Some(limit) => Some(limit.get()),
            None => match self.slot.side.key(&self.name) {
                Some(key) => driver.usage(&key).await.and_then(|used| used.memory_bytes),
                None => None,
            },
        };
        memory(driver.memory_available().await, needed, workload.limits.memory.is_some())
    }
}

/// Whether so much memory is there. What is needed is the limit of the new instance, or what the old one uses.
pub(super) fn memory(available: Option<u64>, needed: Option<u64>, is_limit: bool) -> Room {
    let (Some(available), Some(needed)) = (available, needed) else {
        return Room::Short("nobody knows how much memory it needs, or is there; set limits.memory".into());
    };
    if needed.saturating_add(RESERVE_BYTES) <= available {
        return Room::Enough;
    }
    let what = if is_limit { "its limit" } else { "what the running one uses" };
    let [needed, reserve, available] = [needed, RESERVE_BYTES, available].map(|bytes| bytes >> 20);
    Room::Short(format!(
        "beside the running one it needs {needed} MiB of memory ({what}) and {reserve} MiB of reserve, and {available} MiB are available"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn it_fits_or_says_by_how_much_it_does_not() {
        assert_eq!(memory(Some(640 * MIB), Some(512 * MIB), true), Room::Enough);
        let Room::Short(why) = memory(Some(639 * MIB), Some(512 * MIB), true) else { panic!("it fits") };
        assert!(
            why.contains("512 MiB of memory (its limit) and 128 MiB of reserve, and 639 MiB are available"),
            "{why}"
        );
        let Room::Short(why) = memory(Some(0), Some(u64::MAX), false) else { panic!("it fits") };
        assert!(why.contains("what the running one uses"), "{why}");
        assert!(matches!(memory(None, Some(0), true), Room::Short(_)));
        assert!(matches!(memory(Some(0), None, false), Room::Short(_)));
    }
}
