//! Workloads of load agents: they count as running, and nothing does.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use edgecore::driver::{Driver, DriverError, Instance, InstanceSpec, ProbeOutcome, STOPPED_ON_REQUEST};
use proto::{
    env::{BoxFuture, WallClock},
    name::Name,
    object::LastExit,
    release::Probe,
    watch,
};
use tokio::sync::mpsc;

/// Instances by app, each with who tells of its end.
type Running = BTreeMap<Name, (Instance, watch::Sender<Option<LastExit>>)>;

/// Every instance starts at once, is healthy, and runs until it is stopped.
pub(super) struct Pretend {
    wall: Arc<dyn WallClock>,
    running: Mutex<Running>,
}

impl Pretend {
    pub(super) fn new(wall: Arc<dyn WallClock>) -> Pretend {
        Pretend { wall, running: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, app: &Name) {
        let at = self.wall.now();
        if let Some((instance, ended)) = self.lock().get_mut(app)
            && instance.exit.is_none()
        {
            let exit = LastExit { code: None, signal: Some(15), at, message: STOPPED_ON_REQUEST.into() };
            instance.exit = Some(exit.clone());
            ended.send_replace(Some(exit));
        }
    }
}

impl fmt::Debug for Pretend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pretend({} instances)", self.lock().len())
    }
}

impl Driver for Pretend {
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            self.end(&spec.key());
            let instance = Instance { release: spec.release.clone(), started_at: self.wall.now(), exit: None };
            self.lock().insert(spec.key(), (instance, watch::channel(None).0));
            Ok(())
        })
    }

    fn inspect<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<Option<Instance>, DriverError>> {
        Box::pin(async move { Ok(self.lock().get(app).map(|(instance, _)| instance.clone())) })
    }

    fn wait<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<LastExit, DriverError>> {
        Box::pin(async move {
            let nothing = || DriverError { attempt: "wait for", app: app.clone(), problem: "nothing runs".into() };
            let mut ended = self.lock().get(app).map(|(_, ended)| ended.subscribe()).ok_or_else(nothing)?;
            let exit = ended.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
            exit.ok_or_else(nothing)
        })
    }

    fn stop<'a>(&'a self, app: &'a Name, _grace: Duration) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            self.end(app);
            Ok(())
        })
    }

    fn remove<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let gone = self.lock().remove(app);
            drop(gone);
            Ok(())
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Name>, DriverError>> {
        Box::pin(async move { Ok(self.lock().keys().cloned().collect()) })
    }

    fn probe<'a>(&'a self, _spec: &'a InstanceSpec, _probe: &'a Probe) -> BoxFuture<'a, ProbeOutcome> {
        Box::pin(async { ProbeOutcome::Success })
    }

    fn logs<'a>(
        &'a self,
        _app: &'a Name,
        _tail: Option<u32>,
        _follow: bool,
    ) -> BoxFuture<'a, Option<mpsc::Receiver<Bytes>>> {
        Box::pin(async { None })
    }
}
