//! What is on disk of each app that is or was a container here: at which engine, and whether one may run.
//!
//! ```text
//! <folder>/<app>    {"socket": "/run/docker.sock", "started": {"number": 7, "bootId": "...", "ended": true}}
//! ```
//!
//! An engine that is away says nothing of its containers, and they may go on without it: Docker's when it keeps them
//! alive, Podman's always. So a start is noted before the engine is asked for it, and that it ended once that was seen.
//! What neither ended nor was cut off by a reboot may run. Of an app whose containers ended nothing is claimed, so an
//! engine that was uninstalled is in nobody's way. An empty file is an older agent's: the app was a container.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use proto::{
    durable::{self, DurableError},
    name::Name,
};
use serde::{Deserialize, Serialize};

use super::look::Found;

/// What is noted of an app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mark {
    /// Where the engine listens that has its containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The one that was started last there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Started>,
}

/// A start of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// Which one: [`Found::number`].
    pub number: u64,
    /// In which boot of the box.
    pub boot_id: String,
    /// Whether it was seen to have ended.
    #[serde(default)]
    pub ended: bool,
}

impl Mark {
    /// Before the engine at `socket` is asked to start one.
    #[must_use]
    pub fn starting(socket: &Path, number: u64, boot_id: &str) -> Mark {
        let started = Started { number, boot_id: boot_id.to_owned(), ended: false };
        Mark { socket: Some(socket.to_owned()), started: Some(started) }
    }

    /// Where the engine listens at which one may run in this boot.
    #[must_use]
    pub fn may_run_at(&self, boot_id: &str) -> Option<&Path> {
        let runs = self.started.as_ref().is_some_and(|started| !started.ended && started.boot_id == boot_id);
        self.socket.as_deref().filter(|_| runs)
    }

    /// All of it has ended.
    #[must_use]
    pub fn ended(mut self) -> Mark {
        self.started.iter_mut().for_each(|started| started.ended = true);
        self
    }

    /// With what the engine at `socket` showed, the newest first. What was noted of a start after that stands: it rises
    /// with each.
    #[must_use]
    pub fn seen(self, socket: &Path, boot_id: &str, found: &[Found]) -> Mark {
        if self.socket.as_deref().is_some_and(|noted| noted != socket) {
            return self; // it moved meanwhile
        }
        let noted = self.started.as_ref().filter(|started| started.boot_id == boot_id).map(|started| started.number);
        match found.first().filter(|newest| newest.running) {
            Some(newest) if noted.is_none_or(|noted| noted < newest.number) => {
                Mark::starting(socket, newest.number, boot_id) // an older agent's
            }
            // One that is made and not started yet is no instance.
            None if found.iter().any(|found| found.instance.is_some() && noted.is_some_and(|n| n <= found.number)) => {
                self.ended()
            }
            _ => self,
        }
    }
}

/// The marks of all apps. Its methods block, for no longer than a small file takes.
#[derive(Debug)]
pub struct Marks {
    folder: PathBuf,
    /// One changes at a time.
    changes: Mutex<()>,
}

impl Marks {
    /// Those in this folder, which need not be there.
    #[must_use]
    pub fn at(folder: &Path) -> Marks {
        Marks { folder: folder.to_owned(), changes: Mutex::new(()) }
    }

    /// What is noted of an app; `None`: it was never a container here.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn read(&self, app: &Name) -> Result<Option<Mark>, String> {
        let path = self.folder.join(app.as_str());
        match fs::read(&path) {
            Ok(bytes) if bytes.is_empty() => Ok(Some(Mark::default())),
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "what is noted of its containers is damaged");
                Mark::default()
            }))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(format!("what is noted of its containers ({}) cannot be read: {e}", path.display())),
        }
    }

    /// Notes what `change` makes of it, unless that is nothing, or the same. Blocks until it is on disk.
    ///
    /// # Errors
    /// When it cannot be read or written; then it is as it was.
    pub fn change(&self, app: &Name, change: impl FnOnce(Option<Mark>) -> Option<Mark>) -> Result<(), MarkError> {
        let _one_at_a_time = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.read(app).map_err(MarkError::Unreadable)?;
        let Some(next) = change(before.clone()).filter(|next| before.as_ref() != Some(next)) else { return Ok(()) };
        let json = serde_json::to_vec(&next).map_err(|e| MarkError::Unreadable(e.to_string()))?;
        durable::create_dir_all(&self.folder)?;
        Ok(durable::write(&self.folder.join(app.as_str()), &json, 0o600)?)
    }

    /// Forgets an app.
    ///
    /// # Errors
    /// When its file stays.
    pub fn remove(&self, app: &Name) -> Result<(), MarkError> {
        let _one_at_a_time = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(durable::remove(&self.folder.join(app.as_str()))?)
    }

    /// All apps of which anything is noted.
    #[must_use]
    pub fn all(&self) -> Vec<(Name, Mark)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let apps = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<Name>().ok());
        apps.filter_map(|app| Some((app.clone(), self.read(&app).ok()??))).collect()
    }
}

/// Nothing could be noted.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// What was noted before cannot be told.
    #[error("{0}")]
    Unreadable(String),
    /// It cannot be written.
    #[error(transparent)]
    Durable(#[from] DurableError),
}

#[cfg(test)]
mod tests {
    use proto::{digest::Digest, object::ReleaseRef};

    use super::*;
    use crate::driver::Instance;

    fn found(number: u64, running: bool, began: bool) -> Found {
        let release = ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(b"1") };
        let instance = began.then_some(Instance { release, started_at: jiff::Timestamp::UNIX_EPOCH, exit: None });
        Found::pretend(number, running, instance)
    }

    #[test]
    fn what_is_seen_ends_no_later_start() {
        let at = Path::new("/run/docker.sock");
        let started = Mark::starting(at, 2, "boot");
        let runs = |mark: Mark| mark.may_run_at("boot").is_some();
        let seen = |found: &[Found]| started.clone().seen(at, "boot", found);
        assert!(runs(seen(&[])), "it is not made yet");
        assert!(runs(seen(&[found(1, false, true)])), "the one before ended");
        assert!(runs(seen(&[found(2, false, false), found(1, false, true)])), "it is made, and not started yet");
        assert!(runs(seen(&[found(2, true, true)])));
        assert!(!runs(seen(&[found(2, false, true)])));
        assert!(runs(started.clone().seen(Path::new("/run/podman.sock"), "boot", &[found(2, false, true)])));
        assert_eq!(started.may_run_at("next boot"), None);
        // Whoever looked before it was stopped and tells it now is late.
        assert!(!runs(started.clone().ended().seen(at, "boot", &[found(2, true, true)])));
        // An older agent noted nothing of what it started, and nothing of it was noted in another boot.
        for before in [Mark::default(), Mark::starting(at, 7, "another"), started.clone().ended()] {
            assert!(runs(before.seen(at, "boot", &[found(3, true, true)])));
        }
    }

    #[test]
    fn what_is_noted_is_read_by_others() {
        let folder = tempfile::tempdir().unwrap();
        let (marks, app) = (Marks::at(&folder.path().join("marks")), "vision".parse::<Name>().unwrap());
        assert_eq!(marks.read(&app).unwrap(), None);
        marks.change(&app, |none| none).unwrap();
        assert!(marks.all().is_empty());
        marks.change(&app, |_| Some(Mark::starting(Path::new("/run/docker.sock"), 7, "boot"))).unwrap();
        let file = folder.path().join("marks/vision");
        let expected = r#"{"socket":"/run/docker.sock","started":{"number":7,"bootId":"boot","ended":false}}"#;
        assert_eq!(fs::read_to_string(&file).unwrap(), expected);
        for (noted, is_known) in [("", false), ("{", false), (r#"{"socket": "/x", "newer": 1}"#, true)] {
            fs::write(&file, noted).unwrap();
            let mark = marks.read(&app).unwrap().unwrap();
            assert_eq!((mark.socket.is_some(), mark.started), (is_known, None), "{noted:?}");
        }
        assert_eq!(marks.all().len(), 1);
        marks.remove(&app).unwrap();
        assert_eq!(marks.read(&app).unwrap(), None);
    }
}
