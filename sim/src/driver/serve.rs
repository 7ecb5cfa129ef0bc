//! The driver as the agent sees it.

use std::time::Duration;

use bytes::Bytes;
use edgecore::driver::{Driver, DriverError, HookOutcome, Instance, InstanceSpec, InstanceUsage, ProbeOutcome};
use proto::{
    env::BoxFuture,
    name::Name,
    object::LastExit,
    release::{Hook, Probe},
};
use tokio::{sync::mpsc, time::sleep};

use super::{AVAILABLE_BYTES, SimDriver, USED_BYTES};

impl Driver for SimDriver {
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move { self.start_now(spec) })
    }

    fn inspect<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<Option<Instance>, DriverError>> {
        Box::pin(async move { Ok(self.lock().apps.get(app).map(|process| process.instance.clone())) })
    }

    fn wait<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<LastExit, DriverError>> {
        Box::pin(self.wait_for_end(app))
    }

    fn stop<'a>(&'a self, app: &'a Name, grace: Duration) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            self.stop_now(app, grace).await;
            Ok(())
        })
    }

    fn remove<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let gone = self.lock().apps.remove(app);
            drop(gone);
            self.share_disk();
            Ok(())
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Name>, DriverError>> {
        Box::pin(async move { Ok(self.lock().apps.keys().cloned().collect()) })
    }

    fn probe<'a>(&'a self, spec: &'a InstanceSpec, probe: &'a Probe) -> BoxFuture<'a, ProbeOutcome> {
        Box::pin(async move {
            let hangs = {
                let state = self.lock();
                match state.apps.get(&spec.key()) {
                    Some(process) if process.instance.exit.is_none() => process.hangs,
                    _ => return ProbeOutcome::Failure("nothing runs".into()),
                }
            };
            if hangs {
                self.check_live(&spec.key());
                sleep(probe.timeout.get()).await;
                return ProbeOutcome::Failure("no answer".into());
            }
            ProbeOutcome::Success
        })
    }

    fn hook<'a>(&'a self, spec: &'a InstanceSpec, _: &'a Hook) -> BoxFuture<'a, HookOutcome> {
        Box::pin(async move {
            self.trace.line(&self.host, format_args!("{}@{} hook", spec.app, spec.release.version));
            HookOutcome::Success
        })
    }

    fn usage<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Option<InstanceUsage>> {
        Box::pin(async move {
            let runs = self.lock().apps.get(app).is_some_and(|process| process.instance.exit.is_none());
            runs.then_some(InstanceUsage { cpu: None, memory_bytes: Some(USED_BYTES) })
        })
    }

    fn memory_available(&self) -> BoxFuture<'_, Option<u64>> {
        Box::pin(async { Some(AVAILABLE_BYTES) })
    }

    fn reboot<'a>(&'a self, _: &'a [String]) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            self.trace.line(&self.host, format_args!("restarts on order"));
            self.goes_down.notify_one();
            Ok(())
        })
    }

    fn logs<'a>(
        &'a self,
        app: &'a Name,
        tail: Option<u32>,
        _follow: bool,
    ) -> BoxFuture<'a, Option<mpsc::Receiver<Bytes>>> {
        Box::pin(async move {
            let lines = self.lock().apps.get(app)?.log.clone();
            let skip = tail.map_or(0, |n| lines.len().saturating_sub(usize::try_from(n).unwrap_or(usize::MAX)));
            let (sender, receiver) = mpsc::channel(lines.len().max(1));
            for line in lines.into_iter().skip(skip) {
                let _ = sender.try_send(Bytes::from(line)); // as many places as lines
            }
            Some(receiver)
        })
    }
}
