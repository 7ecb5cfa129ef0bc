//! The replicas of an app but the first: looked at every few seconds, started, stopped and found again.
//!
//! They run the tree, the limits and the probes of the first one, under names and with logs of their own, each under a
//! supervisor that starts it again when it ends. How many there are to be [`Scaler`] says; of these run as many as
//! the box has room for, by what apps ask of it ([`Rooms`](crate::apps::room::Rooms)) and by the memory that is there now.
//! Where memory runs out all the same, the last of them is stopped, and never the first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::{join_all, select_all};
use proto::{
    name::Name,
    object::{ReplicaStatus, Resources},
    release::{
        Replicas as Wanted,
        replicas::{self, MAX_REPLICAS, VARIABLE},
    },
    watch,
};
use tokio::time::Instant;

use super::{
    App, Context, StepError,
    beside::{RESERVE_BYTES, memory},
    hooks::lowered,
    running::{LEFTOVER_GRACE, Run},
};
use crate::{
    apps::{
        live,
        plan::Room,
        replicas::{LOOK_EVERY, Scaler, TELL_EVERY},
        room::RoomNews,
        slot::RestartState,
    },
    driver::{Driver, InstanceSpec},
    supervisor::{Health, Supervisor},
};

/// No replica starts for so long after one was stopped for want of memory.
const REST: Duration = Duration::from_secs(300);

/// What runs besides the first, and how many are to.
#[derive(Debug)]
pub(super) struct Replicas {
    scaler: Option<Scaler>,
    runs: BTreeMap<u8, Replica>,
    /// Nobody supervises them: an agent before may have left them, or they could not be stopped.
    leftover: BTreeSet<u8>,
    look_at: Instant,
    /// Why fewer run than are to, and since when that is said.
    short: Option<(String, Instant)>,
    /// See [`REST`].
    rests_until: Option<Instant>,
    news: RoomNews,
}

#[derive(Debug)]
struct Replica {
    supervisor: Supervisor,
    health: watch::Receiver<Health>,
    /// Raised when a start found the tree damaged.
    damaged: Arc<AtomicBool>,
}

impl Replicas {
    /// Those that run of an app, or may, as an agent before left them.
    pub(super) async fn found(shared: &Context, app: &Name) -> Replicas {
        let keys = (1..MAX_REPLICAS).filter_map(|replica| Some((replica, replicas::key(app, replica)?)));
        let looks = keys.map(async |(replica, key)| (replica, super::runs(&*shared.driver, &key).await));
        let found = join_all(looks).await.into_iter().filter_map(|(replica, runs)| runs.then_some(replica));
        Replicas {
            scaler: None,
            runs: BTreeMap::new(),
            leftover: found.collect(),
            look_at: Instant::now(),
            short: None,
            rests_until: None,
            news: shared.rooms.news(),
        }
    }

    /// Whether any but the first runs, or may.
    pub(super) fn exist(&self) -> bool {
        !self.runs.is_empty() || !self.leftover.is_empty()
    }

    /// Something is new about what runs, or about the room for it. Cancel safe.
    pub(super) async fn changed(&mut self) {
        if self.runs.is_empty() {
            return std::future::pending().await;
        }
        let watched = self.runs.values_mut().map(|replica| {
            Box::pin(async {
                if replica.health.changed().await.is_err() {
                    std::future::pending::<()>().await; // its supervisor is gone, and the agent with it
                }
            })
        });
        // Both arms are cancel safe: watches.
        tokio::select! {
            biased;
            ((), ..) = select_all(watched) => {}
            () = self.news.changed() => self.look_at = Instant::now(),
        }
    }

    /// Says why fewer run, anew only when nothing was said or a while has passed: each time is a report.
    fn say(&mut self, short: Option<String>, now: Instant) {
        match (&self.short, short) {
            (Some((_, at)), Some(_)) if now.duration_since(*at) < TELL_EVERY => {}
            (_, short) => self.short = short.map(|text| (text, now)),
        }
    }

    fn numbers(&self) -> impl Iterator<Item = u8> + '_ {
        self.runs.keys().chain(&self.leftover).copied()
    }
}

impl App {
    /// Brings the replicas to as many as are wanted, while the release is settled. Returns when to look again.
    pub(super) async fn scale(&mut self) -> Result<Option<Instant>, StepError> {
        let Some(wanted) = self.scaled().cloned() else {
            if self.replicas.exist() && self.settled().is_some_and(|run| run.spec.workload.replicas.is_none()) {
                self.stop_replicas().await?; // of a release before
            }
            if !self.replicas.exist() {
                self.give_back_spare(); // also what was kept for such as never ran
            }
            return Ok(None);
        };
        let now = Instant::now();
        if now < self.replicas.look_at {
            return Ok(Some(self.replicas.look_at));
        }
        self.replicas.look_at = now + LOOK_EVERY;
        if !self.look_at_leftovers().await {
            return Ok(Some(self.replicas.look_at));
        }
        self.tell_replicas(&wanted);
        let runs = self.replicas.numbers().max().map_or(1, |last| last + 1);
        let scaler = self.replicas.scaler.get_or_insert_with(|| Scaler::new(&wanted, runs, now));
        let desired = scaler.decide(&wanted, self.shared.metrics.reading(&self.name), now);
        let count = self.count_with_room(&wanted, desired, now).await;
        let surplus: BTreeSet<u8> = self.replicas.numbers().filter(|replica| *replica >= count).collect();
        self.stop_these(surplus).await?;
        for replica in std::mem::take(&mut self.replicas.leftover) {
            self.supervise(replica);
        }
        self.start_missing(count, now).await;
        self.tell_replicas(&wanted);
        Ok(Some(self.replicas.look_at))
    }

    /// What runs, while it is the active release and none is on trial.
    fn settled(&self) -> Option<&Run> {
        let run = self.run.as_ref().filter(|_| self.slot.trial.is_none())?;
        self.slot.active.as_ref().filter(|active| active.release == run.release).map(|_| run)
    }

    /// Forgets those that do not run; whether the driver could tell. What it cannot tell of is neither started nor stopped.
    async fn look_at_leftovers(&mut self) -> bool {
        for number in self.replicas.leftover.clone() {
            let Some(key) = replicas::key(&self.name, number) else { continue };
            match self.shared.driver.inspect(&key).await {
                Ok(Some(instance)) if instance.exit.is_none() => {}
                Ok(_) => drop(self.replicas.leftover.remove(&number)),
                Err(error) => {
                    tracing::warn!(app = %key, %error, "nobody knows whether it runs, asking again");
                    return false;
                }
            }
        }
        true
    }

    /// How many are wanted, while the release is settled.
    fn scaled(&self) -> Option<&Wanted> {
        self.settled()?.spec.workload.replicas.as_ref()
    }

    /// Replicas that run are heard, and no others.
    fn tell_replicas(&self, wanted: &Wanted) {
        let runs = self.replicas.runs.keys().copied().chain([0]).collect();
        self.shared.metrics.scale(&self.name, &wanted.metric, runs);
    }

    /// How many instances there is room for, of as many as are desired; says why fewer.
    async fn count_with_room(&mut self, wanted: &Wanted, desired: u8, now: Instant) -> u8 {
        let Some(run) = &self.run else { return 1 };
        let least = wanted.min.min(desired);
        let (spare, short) = self.shared.rooms.spare(&self.name, run.spec.workload.each_asks(), desired - least);
        let count = least + spare;
        let why = short.map(|short| format!("replica {count} has no room: {short}"));
        let last = self.replicas.runs.keys().max().copied();
        let available = self.shared.driver.memory_available().await;
        if let (Some(last), Some(available)) = (last, available.filter(|available| *available < RESERVE_BYTES)) {
            self.replicas.rests_until = Some(now + REST);
            let why = format!(
                "replica {last} was stopped: {} MiB of memory were left, and {} MiB are kept; none starts for {} s",
                available >> 20,
                RESERVE_BYTES >> 20,
                REST.as_secs()
            );
            tracing::warn!(app = %self.name, "{why}");
            self.replicas.short = Some((why, now));
            return count.min(last);
        }
        let rests = self.replicas.rests_until.is_some_and(|until| now < until);
        if !rests {
            self.replicas.say(why, now);
        }
        count
    }

    /// Starts those that are missing of so many, as far as the memory goes that is there.
    async fn start_missing(&mut self, count: u8, now: Instant) {
        let missing: Vec<u8> = (1..count).filter(|replica| !self.replicas.runs.contains_key(replica)).collect();
        let rests = self.replicas.rests_until.is_some_and(|until| now < until);
        if missing.is_empty() || rests || !self.may_start_replicas() {
            return;
        }
        let Some(workload) = self.run.as_ref().map(|run| &run.spec.workload) else { return };
        let limit = workload.limits.memory.map(|memory| memory.get());
        let (driver, name) = (self.shared.driver.clone(), self.name.clone());
        let needed = match limit {
            Some(limit) => Some(limit),
            None => used(&*driver, self.slot.side.key(&name)).await,
        };
        // What those that run may still take is not to be had.
        let mut promised = 0_u64;
        for replica in self.replicas.runs.keys() {
            let has = used(&*driver, replicas::key(&name, *replica)).await;
            promised = promised.saturating_add(needed.unwrap_or(0).saturating_sub(has.unwrap_or(0)));
        }
        for replica in missing {
            let available = driver.memory_available().await.map(|available| available.saturating_sub(promised));
            if let Room::Short(why) = memory(available, needed, limit.is_some()) {
                return self.replicas.say(Some(format!("replica {replica} does not run: {why}")), now);
            }
            promised = promised.saturating_add(needed.unwrap_or(0));
            tracing::info!(app = %self.name, replica, "one more replica");
            self.supervise(replica);
        }
    }

    /// The first one is well, and so are its files.
    fn may_start_replicas(&self) -> bool {
        let Some(run) = &self.run else { return false };
        let restarts = matches!(&self.slot.restart, Some(restart) if restart.state == RestartState::Started);
        run.health.borrow().healthy_since.is_some() && self.damaged != Some(run.release.digest) && !restarts
    }

    /// Starts a replica, or takes it over where it runs.
    fn supervise(&mut self, replica: u8) {
        let Some(run) = &self.run else { return };
        let damaged = lowered();
        let guard = self.guard(damaged.clone());
        let supervisor = Supervisor::start(self.shared.env.clone(), Arc::new(guard), spec(&run.spec, replica));
        let health = supervisor.health();
        self.replicas.runs.insert(replica, Replica { supervisor, health, damaged });
    }

    /// Has the release fetched again when a replica found it damaged; what runs of it goes on.
    pub(super) async fn look_at_replicas(&mut self) -> Result<(), StepError> {
        let found = self.replicas.runs.iter().filter(|(_, replica)| replica.damaged.load(Ordering::Relaxed));
        let found: BTreeSet<u8> = found.map(|(number, _)| *number).collect();
        if found.is_empty() {
            return Ok(());
        }
        self.damaged = self.slot.active.as_ref().map(|active| active.release.digest);
        self.stop_these(found).await
    }

    /// Stops all replicas but the first.
    pub(super) async fn stop_replicas(&mut self) -> Result<(), StepError> {
        self.stop_these(self.replicas.numbers().collect()).await?;
        self.give_back_spare();
        self.replicas.short = None;
        self.replicas.look_at = Instant::now();
        Ok(())
    }

    /// No room is kept for replicas.
    fn give_back_spare(&self) {
        self.shared.rooms.spare(&self.name, Resources::default(), 0);
    }

    /// Stops replicas, all at once. What does not end is asked again.
    async fn stop_these(&mut self, numbers: BTreeSet<u8>) -> Result<(), StepError> {
        let (driver, name) = (&self.shared.driver, &self.name);
        let mut stops = vec![];
        for number in numbers {
            let replica = self.replicas.runs.remove(&number);
            self.replicas.leftover.insert(number);
            stops.push(async move {
                let stopped = match (replica, replicas::key(name, number)) {
                    (Some(replica), _) => replica.supervisor.stop().await,
                    (None, Some(key)) => driver.stop(&key, LEFTOVER_GRACE).await,
                    (None, None) => Ok(()),
                };
                stopped.map(|()| number)
            });
        }
        if stops.is_empty() {
            return Ok(());
        }
        if let Some(wanted) = self.scaled() {
            self.tell_replicas(wanted); // who is on the way out is not heard any more
        }
        let mut result = Ok(());
        for stopped in join_all(stops).await {
            match stopped {
                Ok(number) => drop(self.replicas.leftover.remove(&number)),
                Err(error) => result = Err(error.into()),
            }
        }
        result
    }

    /// Forgets all records and logs of them, once they are stopped.
    pub(super) async fn remove_replicas(&self) -> Result<(), StepError> {
        for key in (1..MAX_REPLICAS).filter_map(|replica| replicas::key(&self.name, replica)) {
            self.shared.driver.remove(&key).await?;
        }
        Ok(())
    }

    /// What there is to say of them, for the hub and for people.
    pub(super) fn replica_status(&self) -> Option<ReplicaStatus> {
        let run = self.run.as_ref().filter(|run| run.supervisor.is_some())?;
        let wanted = run.spec.workload.replicas.as_ref()?;
        let others: Vec<(u8, Health)> =
            self.replicas.runs.iter().map(|(number, replica)| (*number, replica.health.borrow().clone())).collect();
        let count = |is: fn(&Health) -> bool| {
            let all = others.iter().map(|(_, health)| is(health)).chain([is(&run.health.borrow())]);
            u32::try_from(all.filter(|is| *is).count()).unwrap_or(u32::MAX)
        };
        let scaler = self.replicas.scaler.as_ref().filter(|_| self.scaled().is_some());
        let mut said = vec![match (scaler, &self.slot.trial) {
            (Some(scaler), _) => scaler.words().to_owned(),
            (None, Some(_)) if others.is_empty() => "one runs while a release is on trial".to_owned(),
            (None, _) => String::new(),
        }];
        said.extend(self.replicas.short.iter().map(|(text, _)| text.clone()));
        let sick = others.iter().find(|(_, health)| !health.live && !health.message.is_empty());
        said.extend(sick.map(|(number, health)| format!("replica {number} does not run: {}", health.message)));
        said.retain(|text| !text.is_empty());
        Some(ReplicaStatus {
            current_replicas: count(|health| health.live),
            ready_replicas: count(|health| health.ready),
            desired_replicas: scaler.map_or(1, |scaler| scaler.desired().into()),
            min_replicas: wanted.min.into(),
            max_replicas: wanted.max.into(),
            message: said.join("; "),
        })
    }
}

/// What to run as a replica, from what the first one runs.
fn spec(first: &InstanceSpec, replica: u8) -> InstanceSpec {
    let mut spec = InstanceSpec { replica, ..first.clone() };
    spec.workload.env.insert(VARIABLE.into(), replica.to_string());
    if let Some(run) = &mut spec.run {
        run.set_file_name(format!("r{replica}"));
        spec.workload.env.insert(live::OWN.into(), run.display().to_string());
    }
    spec
}

/// Bytes of memory that an instance uses.
async fn used(driver: &dyn Driver, key: Option<Name>) -> Option<u64> {
    driver.usage(&key?).await.and_then(|used| used.memory_bytes)
}
