//! The hub of a world: it starts, crashes, and comes back from backups that an operator makes.

use std::{
    fs,
    future::pending,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use cloudcore::{config::HubConfig, hub::Hub};
use proto::units::Span;
use tokio::time::Instant;

use super::{PORT, World, fleet};
use crate::disk::Taker;

/// Longer than any scenario lets pass: the books are compared with what the sink holds.
const KEEP_RECORDS: Span = Span::from_secs(365 * 24 * 3600);

/// A backup is kept for so long after it was needed last: whoever needs it may be late.
const TRIM_AFTER: Duration = Duration::from_secs(60);

/// Copies of the hub's folder.
#[derive(Default)]
pub(super) struct Backups(Mutex<Copies>);

#[derive(Default)]
struct Copies {
    /// Oldest first.
    kept: Vec<Backup>,
    number: u64,
}

#[derive(Clone)]
struct Backup {
    at: Instant,
    /// Until when it is needed.
    until: Instant,
    folder: PathBuf,
}

impl Backups {
    fn lock(&self) -> MutexGuard<'_, Copies> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest that is at least so old, or else the oldest there is.
    fn of_age(&self, age: Duration) -> Option<Backup> {
        let kept = &self.lock().kept;
        kept.iter().rev().find(|backup| backup.at.elapsed() >= age).or(kept.first()).cloned()
    }
}

impl Copies {
    /// Takes out those that nobody needs any more.
    fn trim(&mut self) -> Vec<Backup> {
        let now = Instant::now();
        self.kept.extract_if(.., |backup| backup.until < now).collect()
    }
}

impl World {
    /// The hub that runs.
    ///
    /// # Errors
    /// When none does.
    pub fn hub(&self) -> anyhow::Result<Hub> {
        self.running_hub().context("the hub does not run")
    }

    pub(super) fn running_hub(&self) -> Option<Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_hub(&self, hub: Option<Hub>) {
        let before = std::mem::replace(&mut *self.hub.lock().unwrap_or_else(PoisonError::into_inner), hub);
        drop(before);
    }

    /// Starts the hub, and publishes the trust root if it has none. While a fault holds the hub down it starts
    /// when that is over.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_hub(&mut self) -> anyhow::Result<()> {
        self.hub_wanted = true;
        if self.broken.holds_hub() || self.running_hub().is_some() {
            return Ok(());
        }
        let host = &self.hub_host;
        let starts = host.starts();
        let env = host.env(&self.net);
        let mut config = HubConfig::new(&host.disk, fleet()?);
        config.link_listen = (host.ip, PORT).into();
        config.advertise = vec![format!("hub:{PORT}")];
        config.streams.retention = KEEP_RECORDS;
        config.brokers = self.net.brokers();
        let hub = match Hub::open(config, env).await {
            Ok(hub) => hub,
            Err(error) => {
                host.stop(&self.net).await;
                return Err(error).context("start the hub");
            }
        };
        let (running, trace) = (hub.clone(), self.trace.clone());
        host.tasks.spawn(async move {
            let ended = running.run(pending()).await;
            trace.line("hub", format_args!("ended: {ended:?}"));
        });
        self.trace.line("hub", format_args!("started, {starts}."));
        let first = hub.trust().first_root().is_none();
        self.set_hub(Some(hub));
        if first {
            self.publish_staged().await?;
        }
        Ok(())
    }

    /// Ends the hub as a power switch would.
    pub async fn crash_hub(&mut self) {
        self.hub_wanted = false;
        self.stop_hub().await;
    }

    /// As [`World::crash_hub`]; whoever wants it to run still does.
    pub(super) async fn stop_hub(&self) {
        self.hub_host.device.freeze(true);
        self.net.silence(self.hub_host.ip);
        self.set_hub(None);
        self.forget_watch();
        self.hub_host.stop(&self.net).await;
        self.trace.line("hub", format_args!("crashed"));
    }

    /// Brings the hub to where it should be. What does not start is no error: it is tried again by
    /// [`World::tick`].
    pub(super) async fn settle_hub(&mut self) -> anyhow::Result<()> {
        let runs = self.running_hub().is_some();
        if runs && self.broken.holds_hub() {
            self.stop_hub().await;
        }
        let powered = !self.broken.holds_hub_power();
        if std::mem::replace(&mut self.hub_powered, powered) && !powered {
            let lost = self.hub_host.power_off(!self.broken.cuts_hub_power())?;
            self.trace.line("hub", format_args!("is off: {lost}"));
        }
        if !runs
            && self.hub_wanted
            && !self.broken.holds_hub()
            && let Err(error) = self.start_hub().await
        {
            self.trace.line("hub", format_args!("does not start: {error:#}"));
        }
        Ok(())
    }

    /// Backs the hub's folder up, as a snapshot of its disk would; it is kept for so long at least. What fails is told
    /// in the trace.
    pub fn back_up(&self, keep: Duration) {
        let mut backups = self.backups.lock();
        for old in backups.trim() {
            let _ = fs::remove_dir_all(old.folder); // one more that is kept disturbs nobody
        }
        backups.number += 1;
        let folder = self.folder.path().join("hub.backups").join(backups.number.to_string());
        // In one piece: no task of the hub runs meanwhile.
        match copy_folder(&self.hub_host.disk, &folder) {
            Ok(()) => {
                let at = Instant::now();
                backups.kept.push(Backup { at, until: at + keep + TRIM_AFTER, folder });
            }
            Err(error) => self.trace.line("operator", format_args!("no backup: {error:#}")),
        }
    }

    /// Puts a backup in place of the hub's folder. What came after it is lost to the hub: releases and rollouts
    /// are published and started again, boxes that joined since join again. Returns whether there was a backup.
    pub(super) async fn restore_hub(&mut self, age: Duration) -> anyhow::Result<bool> {
        let Some(backup) = self.backups.of_age(age) else { return Ok(false) };
        if self.running_hub().is_some() {
            self.stop_hub().await;
        }
        // Somebody makes room first, or takes another disk; it is as broken as it was to be again afterwards.
        self.hub_host.device.set_room(Taker::Fault, None);
        self.hub_host.device.refuse_writes(None);
        fs::remove_dir_all(&self.hub_host.disk).context("clear the hub's folder away")?;
        copy_folder(&backup.folder, &self.hub_host.disk).context("put the backup in place")?;
        self.hub_host.device.forget();
        self.trace.line("operator", format_args!("restored the hub of {:?} ago", backup.at.elapsed()));
        self.wanted.published_anew();
        self.rejoin_since(backup.at).await;
        Ok(true)
    }
}

/// Copies a folder; what never changes once it has its name is linked.
fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type()? {
            kind if kind.is_dir() && entry.file_name() == "blobs" => link_folder(&path, &target)?,
            kind if kind.is_dir() => copy_folder(&path, &target)?,
            // SQLite makes its shared memory anew.
            kind if kind.is_file() && !path.as_os_str().as_encoded_bytes().ends_with(b"-shm") => {
                fs::copy(path, target)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn link_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            link_folder(&path, &target)?;
        } else {
            fs::hard_link(path, target)?;
        }
    }
    Ok(())
}
