//! The driver as the agent sees it.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use proto::{digest::Digest, env::BoxFuture, exec::Start, name::Name, object::LastExit, release::Probe};
use tokio::sync::mpsc;

use super::{
    super::{
        Attached, Driver, DriverError, Instance, InstanceSpec, InstanceUsage, NotReady, ProbeOutcome, probe, procs,
    },
    ContainerDriver, attach, files_of, look, output, sweep,
};
use crate::secrets::Secrets;

impl Driver for ContainerDriver {
    fn lend(&self, secrets: &Arc<Secrets>) {
        let _ = self.secrets.set(secrets.clone()); // once; another time it would be the same
    }

    fn prepare<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), NotReady>> {
        Box::pin(async move {
            let Some(container) = &spec.workload.container else { return Ok(()) };
            let no_engine = |message| NotReady { reason: "NoContainerEngine", message };
            let (socket, api) = self.engine_for(spec).await.map_err(no_engine)?;
            self.mark(&spec.key(), socket).await.map_err(|message| NotReady { reason: "StateNotWritable", message })?;
            let loaded = self.load(&api, spec, container).await;
            loaded.map_err(|e| NotReady { reason: e.reason(), message: e.to_string() })?;
            for uses in &container.uses {
                files_of(spec, &uses.app).map_err(|message| NotReady { reason: "FilesMissing", message })?;
            }
            Ok(())
        })
    }

    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move { self.try_start(spec).await.map_err(failed("start", &spec.app)) })
    }

    fn inspect<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<Option<Instance>, DriverError>> {
        Box::pin(async move {
            let newest = self.newest(app).await.map_err(failed("inspect", app))?;
            Ok(newest.and_then(|(_, found)| found.instance))
        })
    }

    fn wait<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<LastExit, DriverError>> {
        Box::pin(async move { self.try_wait(app).await.map_err(failed("wait for", app)) })
    }

    fn stop<'a>(&'a self, app: &'a Name, grace: Duration) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move { self.try_stop(app, grace).await.map_err(failed("stop", app)) })
    }

    fn remove<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move { self.try_remove(app).await.map_err(failed("remove", app)) })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Name>, DriverError>> {
        Box::pin(async move {
            let (marks, boot_id) = (self.marks.all(), procs::boot_id());
            let may_run = marks.iter().filter(|(_, mark)| mark.may_run_at(&boot_id).is_some());
            let mut names: BTreeSet<Name> = may_run.map(|(app, _)| app.clone()).collect();
            let noted = marks.iter().filter_map(|(_, mark)| mark.socket.as_deref());
            let sockets: BTreeSet<&Path> = noted.chain(self.engine.socket(None)).filter(|at| at.exists()).collect();
            for socket in sockets {
                // Without the engine nobody can tell: nothing is removed then.
                let Ok(api) = self.engine.at(socket).await else { continue };
                for (app, _) in look::ours(&api, &self.agent, None).await.unwrap_or_default() {
                    self.mark(&app, socket).await.map_err(failed("note", &app))?;
                    names.insert(app);
                }
            }
            Ok(names.into_iter().collect())
        })
    }

    fn probe<'a>(&'a self, spec: &'a InstanceSpec, probe: &'a Probe) -> BoxFuture<'a, ProbeOutcome> {
        Box::pin(async move {
            let (api, found) = match self.newest(&spec.key()).await {
                Ok(Some(newest)) => newest,
                Ok(None) => return ProbeOutcome::Failure("the workload was never started".into()),
                Err(problem) => return ProbeOutcome::Failure(problem),
            };
            let at = found.address.unwrap_or(std::net::Ipv4Addr::LOCALHOST.into());
            probe::attempt(at, probe, |exec| output::run(&api, &found.id, &exec.command)).await
        })
    }

    fn exec<'a>(&'a self, spec: &'a InstanceSpec, start: &'a Start) -> BoxFuture<'a, Result<Attached, String>> {
        Box::pin(async move {
            let newest = self.newest(&spec.key()).await?.filter(|(_, found)| found.running);
            let (api, found) = newest.ok_or("the workload does not run")?;
            attach::run(api, &found.id, start).await
        })
    }

    fn usage<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Option<InstanceUsage>> {
        Box::pin(async move {
            let (api, found) = self.newest(app).await.ok()?.filter(|(_, found)| found.running)?;
            let stats = api.stats(&found.id).await.ok()?;
            let (cpu, memory) = (stats.cpu_stats.cpu_usage.total_usage, stats.memory_stats);
            // Less what the kernel gives back when somebody needs it, as `docker stats` shows it.
            let details = memory.stats.unwrap_or_default();
            let cache = details.inactive_file.or(details.total_inactive_file).unwrap_or(0);
            let memory_bytes = memory.usage.map(|usage| usage.saturating_sub(cache));
            Some(InstanceUsage { cpu: cpu.map(Duration::from_nanos), memory_bytes })
        })
    }

    fn collect<'a>(&'a self, app: &'a Name, keep: &'a BTreeSet<Digest>) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let Some((_, api)) = self.engine_of(app).await.map_err(failed("clean up after", app))? else {
                return Ok(());
            };
            sweep::collect(&api, &self.agent, app, keep).await.map_err(|e| failed("clean up after", app)(e.to_string()))
        })
    }

    fn logs<'a>(
        &'a self,
        app: &'a Name,
        tail: Option<u32>,
        follow: bool,
    ) -> BoxFuture<'a, Option<mpsc::Receiver<Bytes>>> {
        Box::pin(async move {
            let (api, found) = self.look(app).await.ok()??;
            let ids: Vec<String> = found.into_iter().rev().map(|found| found.id).collect();
            (!ids.is_empty()).then(|| output::stream(api, ids, tail, follow))
        })
    }
}

fn failed<'a>(attempt: &'static str, app: &'a Name) -> impl FnOnce(String) -> DriverError + 'a {
    move |problem| DriverError { attempt, app: app.clone(), problem }
}
