//! One driver of all kinds: a release says whether it is a process or a container, and an app may be the one today
//! and the other tomorrow. The agent's driver; everything is passed on.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use proto::{
    digest::Digest,
    env::BoxFuture,
    exec::Start,
    name::Name,
    object::LastExit,
    release::{Hook, Probe},
};
use tokio::sync::mpsc;

use super::{
    Attached, Driver, DriverError, HookOutcome, Instance, InstanceSpec, InstanceUsage, NotReady, ProbeOutcome,
    container::ContainerDriver, process::ProcessDriver,
};
use crate::secrets::Secrets;

/// Grace for what an app ran as before it became of another kind.
const OTHER_GRACE: Duration = Duration::from_secs(10);

/// Processes and containers.
#[derive(Debug)]
pub struct Kinds {
    processes: ProcessDriver,
    containers: ContainerDriver,
}

impl Kinds {
    /// Both.
    #[must_use]
    pub fn new(processes: ProcessDriver, containers: ContainerDriver) -> Kinds {
        Kinds { processes, containers }
    }

    fn of(&self, spec: &InstanceSpec) -> &dyn Driver {
        if spec.workload.container.is_some() { &self.containers } else { &self.processes }
    }

    fn other(&self, spec: &InstanceSpec) -> &dyn Driver {
        if spec.workload.container.is_some() { &self.processes } else { &self.containers }
    }

    /// Which of them runs the app, or ran it last.
    async fn latest(&self, app: &Name) -> Result<(&dyn Driver, Option<Instance>), DriverError> {
        let process = self.processes.inspect(app).await?;
        if process.as_ref().is_some_and(|instance| instance.exit.is_none()) {
            return Ok((&self.processes, process));
        }
        let container = self.containers.inspect(app).await?;
        // What runs, whatever the clock said when it began.
        let begun = |it: &Option<Instance>| it.as_ref().map(|instance| (instance.exit.is_none(), instance.started_at));
        match begun(&container) > begun(&process) {
            true => Ok((&self.containers, container)),
            false => Ok((&self.processes, process)),
        }
    }
}

impl Driver for Kinds {
    fn lend(&self, secrets: &Arc<Secrets>) {
        self.containers.lend(secrets);
    }

    fn prepare<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), NotReady>> {
        self.of(spec).prepare(spec)
    }

    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            self.other(spec).stop(&spec.key(), OTHER_GRACE).await?;
            self.of(spec).start(spec).await
        })
    }

    fn inspect<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<Option<Instance>, DriverError>> {
        Box::pin(async move { Ok(self.latest(app).await?.1) })
    }

    fn wait<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<LastExit, DriverError>> {
        Box::pin(async move { self.latest(app).await?.0.wait(app).await })
    }

    fn stop<'a>(&'a self, app: &'a Name, grace: Duration) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            self.processes.stop(app, grace).await?;
            self.containers.stop(app, grace).await
        })
    }

    fn remove<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            self.processes.remove(app).await?;
            self.containers.remove(app).await
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Name>, DriverError>> {
        Box::pin(async move {
            let mut names: BTreeSet<Name> = self.processes.list().await?.into_iter().collect();
            names.extend(self.containers.list().await?);
            Ok(names.into_iter().collect())
        })
    }

    fn probe<'a>(&'a self, spec: &'a InstanceSpec, probe: &'a Probe) -> BoxFuture<'a, ProbeOutcome> {
        self.of(spec).probe(spec, probe)
    }

    fn exec<'a>(&'a self, spec: &'a InstanceSpec, start: &'a Start) -> BoxFuture<'a, Result<Attached, String>> {
        self.of(spec).exec(spec, start)
    }

    /// A command of the release's tree, or of the box, whatever the workload is.
    fn hook<'a>(&'a self, spec: &'a InstanceSpec, hook: &'a Hook) -> BoxFuture<'a, HookOutcome> {
        self.processes.hook(spec, hook)
    }

    fn usage<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Option<InstanceUsage>> {
        Box::pin(async move { self.latest(app).await.ok()?.0.usage(app).await })
    }

    fn collect<'a>(&'a self, app: &'a Name, keep: &'a BTreeSet<Digest>) -> BoxFuture<'a, Result<(), DriverError>> {
        self.containers.collect(app, keep)
    }

    fn memory_available(&self) -> BoxFuture<'_, Option<u64>> {
        self.processes.memory_available()
    }

    fn reboot<'a>(&'a self, command: &'a [String]) -> BoxFuture<'a, Result<(), String>> {
        self.processes.reboot(command)
    }

    fn logs<'a>(
        &'a self,
        app: &'a Name,
        tail: Option<u32>,
        follow: bool,
    ) -> BoxFuture<'a, Option<mpsc::Receiver<Bytes>>> {
        Box::pin(async move { self.latest(app).await.ok()?.0.logs(app, tail, follow).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::container::tests::{Pretend, app, spec};

    #[tokio::test]
    async fn a_process_does_not_depend_on_an_engine_that_is_dead() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, env) = (folder.path().join("docker.sock"), crate::fetch::tests::env());
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap()); // what a killed engine leaves behind
        let containers = ContainerDriver::new(&folder.path().join("containers"), vec![socket], env.clone());
        let kinds = Kinds::new(ProcessDriver::new(folder.path().join("driver"), env), containers);
        let app: Name = "scan-counter".parse().unwrap();
        assert_eq!(kinds.inspect(&app).await.unwrap(), None);
        kinds.stop(&app, Duration::ZERO).await.unwrap();
        kinds.collect(&app, &BTreeSet::new()).await.unwrap();
        kinds.remove(&app).await.unwrap();
        assert!(kinds.list().await.unwrap().is_empty() && kinds.logs(&app, None, false).await.is_none());
    }

    #[tokio::test]
    async fn a_process_is_not_started_beside_a_container_whose_engine_is_away() {
        let (folder, engine, env) = (tempfile::tempdir().unwrap(), Pretend::new(), crate::fetch::tests::env());
        let containers = ContainerDriver::new(&folder.path().join("containers"), vec![engine.socket()], env.clone());
        let kinds = Kinds::new(ProcessDriver::new(folder.path().join("driver"), env), containers);
        let (container, process) = (spec(folder.path(), true), spec(folder.path(), false));
        kinds.start(&container).await.unwrap();
        engine.go_away();
        for refused in [
            kinds.start(&process).await.unwrap_err(),
            kinds.inspect(&app()).await.unwrap_err(),
            kinds.stop(&app(), Duration::ZERO).await.unwrap_err(),
            kinds.remove(&app()).await.unwrap_err(),
        ] {
            assert!(refused.to_string().contains("start the engine, or reboot the box"), "{refused}");
        }
        assert_eq!((kinds.processes.inspect(&app()).await.unwrap(), engine.running()), (None, 1));
    }
}
