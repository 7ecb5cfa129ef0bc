//! The apps of a node: one task each, and who starts them.
//!
//! | module | what it holds |
//! |---|---|
//! | [`slot`] | what is durably known of an app |
//! | [`plan`] | the pure planner: what to do next |
//! | [`stage`] | acceptance and fetch of a release |
//! | [`current`] | the way to an app's files for other apps |
//! | [`replicas`] | how many instances run, pure |
//! | [`live`] | which of an app's two instances is live, for them and their clients |
//! | [`guard`] | nothing damaged is started, restarts included |
//! | [`uses`] | what apps use of each other's files, and who has proved them |
//! | [`task`] | carries the planned steps out |
//! | [`room`] | what the apps ask of memory and processors |
//! | [`report`] | what is said about it |
//!
//! [`Apps::run`] keeps a task for every app that is assigned, or left on the box. Without an assignment
//! whatever is active goes on.

pub mod current;
pub mod guard;
pub mod live;
pub mod plan;
pub mod replicas;
pub mod report;
pub mod room;
pub mod slot;
pub mod stage;
pub mod task;
pub mod uses;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use proto::{
    durable::Record,
    link::message::{Assignment, OrderedApp},
    name::Name,
    object::{UpdatePhase, WorkloadStatus},
    watch,
};
use tokio::{sync::oneshot, task::JoinSet, time::timeout};

use crate::driver::side;

use self::{
    plan::{Ask, Wanted},
    slot::{Slot, SlotError},
    task::{App, Context},
};

/// How often an app that could not be opened is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long all apps may take at the start to say how they are.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// All apps of a node.
#[derive(Debug)]
pub struct Apps {
    shared: Arc<Context>,
    folder: PathBuf,
    assignment: watch::Receiver<Option<Assignment>>,
    wanted: BTreeMap<Name, watch::Sender<Wanted>>,
    tasks: JoinSet<Name>,
    /// Whether what was found at the start is on the board.
    told: watch::Sender<bool>,
    /// Apps that have not said how they are yet.
    silent: Vec<oneshot::Receiver<()>>,
}

impl Apps {
    /// The apps below `folder`, as `assignment` wants them.
    #[must_use]
    pub fn new(shared: Arc<Context>, folder: PathBuf, assignment: watch::Receiver<Option<Assignment>>) -> Apps {
        Apps {
            shared,
            folder,
            assignment,
            wanted: BTreeMap::new(),
            tasks: JoinSet::new(),
            told: watch::channel(false).0,
            silent: vec![],
        }
    }

    /// Turns true once all that was found on the box is on the board: until then a hub could think that nothing is
    /// there.
    #[must_use]
    pub fn told(&self) -> watch::Receiver<bool> {
        self.told.subscribe()
    }

    /// Works until it is dropped; workloads are left running then.
    pub async fn run(mut self) {
        let found = self.found().await;
        let (shared, folder, installed) = (self.shared.clone(), self.folder.clone(), found.clone());
        let hold = move || {
            installed.iter().for_each(|app| task::hold_installed(&shared.rooms, app, &folder.join(app.as_str())));
        };
        self.shared.env.blocking.run(hold).await;
        self.shared.uses.expect(found.iter().cloned());
        for app in found {
            self.direct(&app);
        }
        self.reconcile();
        let silent = std::mem::take(&mut self.silent);
        if timeout(FIRST_WORD, join_all(silent)).await.is_err() {
            tracing::warn!("an app takes long to say how it is; the hub is told without it");
        }
        self.told.send_replace(true);
        loop {
            self.reconcile();
            // Both arms are cancel safe: a watch, and a set that hands out a task or nothing.
            tokio::select! {
                biased;
                changed = self.assignment.changed() => if changed.is_err() {
                    std::future::pending::<()>().await; // the agent is going away and drops this
                },
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    match ended {
                        Ok(app) => drop(self.wanted.remove(&app)),
                        // Nobody would look after that app any more: the agent ends with it, and starts anew.
                        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                        Err(_) => {} // aborted: this set is going away
                    }
                }
            }
        }
    }

    /// Apps of which anything is left on the box.
    async fn found(&self) -> BTreeSet<Name> {
        let folder = self.folder.clone();
        let on_disk = self.shared.env.blocking.run(move || {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok())).collect::<BTreeSet<Name>>()
        });
        let mut found = on_disk.await;
        // What an agent before took for an app of its own was another instance of one.
        found.retain(|name| side::app_of(name) == *name);
        match self.shared.driver.list().await {
            Ok(running) => found.extend(running.iter().map(side::app_of)),
            Err(error) => tracing::warn!(%error, "could not ask what runs"),
        }
        found
    }

    fn reconcile(&mut self) {
        self.shared.rooms.allot(self.assignment.borrow().as_ref().and_then(|assignment| assignment.allocation));
        let assigned = self.assignment.borrow_and_update().iter().flat_map(|a| a.apps.keys().cloned()).collect();
        let known: BTreeSet<Name> = self.wanted.keys().cloned().collect();
        for app in known.union(&assigned) {
            self.direct(app);
        }
    }

    /// Tells an app's task what is wanted; makes one when there is none.
    fn direct(&mut self, app: &Name) {
        let wanted = match &*self.assignment.borrow() {
            None => Wanted::Keep,
            Some(Assignment { apps, drained, .. }) => match apps.get(app).cloned() {
                Some(OrderedApp { release, order }) => Wanted::Run(Ask { release, order, drained: *drained }),
                None => Wanted::Remove,
            },
        };
        match self.wanted.get(app) {
            Some(sender) => {
                sender.send_if_modified(|before| std::mem::replace(before, wanted.clone()) != wanted);
            }
            None => {
                let (sender, receiver) = watch::channel(wanted);
                self.wanted.insert(app.clone(), sender);
                let (first, silent) = oneshot::channel();
                if !*self.told.borrow() {
                    self.silent.push(silent);
                }
                let folder = self.folder.join(app.as_str());
                self.tasks.spawn(work(self.shared.clone(), app.clone(), folder, receiver, first));
            }
        }
    }
}

/// One app from opening to removal.
async fn work(
    shared: Arc<Context>,
    name: Name,
    folder: PathBuf,
    mut wanted: watch::Receiver<Wanted>,
    first: oneshot::Sender<()>,
) -> Name {
    let mut first = Some(first);
    loop {
        match App::open(shared.clone(), name.clone(), folder.clone(), wanted.clone()).await {
            Ok(app) => {
                app.work(first).await;
                return name;
            }
            // Whatever runs goes on untouched; nothing is installed without knowing the floor.
            Err(error) => {
                tracing::error!(app = %name, %error, "the app is left as it is");
                shared.uses.forget(&name);
                let target = wanted.borrow_and_update().release().cloned();
                let status = WorkloadStatus {
                    reason: "StateLost".into(),
                    message: error.to_string(),
                    ..WorkloadStatus::new(target, UpdatePhase::Blocked, shared.env.wall.now())
                };
                shared.board.send_if_modified(|report| {
                    let before = report.workloads.get(&name);
                    if before.is_some_and(|b| b.message == status.message && b.target == status.target) {
                        return false;
                    }
                    report.workloads.insert(name.clone(), status);
                    true
                });
                first = None; // it was said
                if let Ok(Err(_)) = timeout(LOOK_AGAIN, wanted.changed()).await {
                    return std::future::pending().await; // the agent is going away
                }
            }
        }
    }
}

/// Clears away slots that are lost: whoever joins the box again vouches for it.
///
/// # Errors
/// When a file cannot be read or removed.
pub fn forget_lost(folder: &Path) -> Result<(), SlotError> {
    for record in records(folder) {
        match slot::load(&record) {
            Err(SlotError::Lost(_)) => record.remove()?,
            other => drop(other?),
        }
    }
    Ok(())
}

/// Forgets what a trust root that no longer counts said: floors and failures. What is active stays.
///
/// # Errors
/// When a slot cannot be read or written.
pub fn forget_trust(folder: &Path) -> Result<(), SlotError> {
    for record in records(folder) {
        let known = match slot::load(&record) {
            Err(SlotError::Lost(_)) => continue, // see above
            other => other?,
        };
        let begun_anew = Slot { floor: 0, failed: vec![], ..known };
        for _ in 0..2 {
            slot::store(&record, &begun_anew)?; // the second copy is not to say otherwise
        }
    }
    Ok(())
}

/// Slots of the apps below `folder`.
fn records(folder: &Path) -> impl Iterator<Item = Record> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|e| e.path().is_dir()).map(|e| Record::at(e.path().join("slot")))
}
