//! Commands of people in workloads, see [`proto::exec`]: TLS with the person through the hub, who may, and the way
//! between them and what the driver runs. The link hands streams of the hub in; apps say what runs.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use proto::{
    env::Env,
    exec::{
        Ended, Input, Output, Reply, Start,
        tls::{self, TlsError},
    },
    identity::TlsClock,
    link::frame::{self, FrameError, MAX_REQUEST_BYTES},
    name::Name,
    object::EventType,
    stream::event::{EventRecord, SCHEMA},
    tuf::PublicKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, WriteHalf},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    config::{ConfigError, Identity, Paths},
    driver::{Attached, Driver, InstanceSpec},
};

/// Commands that run at once on a node.
const MAX_COMMANDS: usize = 4;
/// How long handshake and first frame may take: a person may have to say yes to their agent of keys.
const PATIENCE: Duration = Duration::from_secs(60);
/// While a command writes nothing, so often its line is written to.
const STILL_THERE: Duration = Duration::from_secs(5);
/// Events that wait to be taken.
const QUEUE: usize = 32;
/// Most of a command line that is told.
const SHOWN_CHARS: usize = 200;

/// What runs here, for who wants to run something in it.
#[derive(Debug)]
pub struct Desk {
    running: Mutex<BTreeMap<Name, InstanceSpec>>,
    seats: Semaphore,
    events: mpsc::Sender<EventRecord>,
}

/// Why nothing was run. The texts are for people.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Nobody may, or the app does not run.
    #[error("{0}")]
    Refused(String),
    /// The person did not prove that they hold a key that the release lists, or the line broke.
    #[error("no key that the release lists was shown ({0})")]
    Handshake(io::Error),
    /// TLS could not be set up.
    #[error("TLS could not be set up here: {0}")]
    Tls(#[from] TlsError),
    /// The node's identity cannot be read.
    #[error(transparent)]
    Identity(#[from] ConfigError),
    /// What was asked is not understood.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The person went.
    #[error("the line to the person broke: {0}")]
    Broken(#[from] io::Error),
}

impl Desk {
    /// A desk that knows of nothing yet, and the events that it has to tell.
    #[must_use]
    pub fn new() -> (Arc<Desk>, mpsc::Receiver<EventRecord>) {
        let (events, told) = mpsc::channel(QUEUE);
        let (running, seats) = (Mutex::default(), Semaphore::new(MAX_COMMANDS));
        (Arc::new(Desk { running, seats, events }), told)
    }

    /// This runs of an app now; `None`: nothing.
    pub(crate) fn runs(&self, app: &Name, spec: Option<InstanceSpec>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match spec {
            Some(spec) => drop(running.insert(app.clone(), spec)),
            None => drop(running.remove(app)),
        }
    }

    /// What runs of an app that lets somebody in, and whom.
    ///
    /// # Errors
    /// [`ExecError::Refused`], with what to do.
    pub(crate) fn open(&self, app: &Name) -> Result<(InstanceSpec, Vec<PublicKey>), ExecError> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = |text: String| Err(ExecError::Refused(text));
        let Some(spec) = running.get(app) else {
            return refused(format!("nothing of {app} runs on this node"));
        };
        let keys = spec.workload.exec.as_ref().map(proto::release::Exec::keys).unwrap_or_default();
        if keys.is_empty() {
            return refused(format!(
                "{app}@{} lets nobody run commands in it: name keys in workload.exec.authorizedKeys and release it anew",
                spec.release.version
            ));
        }
        Ok((spec.clone(), keys))
    }

    fn tell(&self, spec: &InstanceSpec, now: Timestamp, reason: &str, text: String) {
        let (app, version) = (Some(spec.app.clone()), Some(spec.release.version.clone()));
        let message = format!("{}@{}: {text}", spec.app, spec.release.version);
        tracing::info!(reason, "{message}");
        let (schema, reason) = (SCHEMA.into(), reason.into());
        let event = EventRecord { schema, time: now, r#type: EventType::Normal, reason, message, app, version };
        let _ = self.events.try_send(event); // the log has it in any case
    }
}

/// What serving a command takes.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub env: Env,
    pub node: Name,
    pub paths: Paths,
    pub driver: Arc<dyn Driver>,
    pub desk: Arc<Desk>,
}

impl Server {
    /// Runs what a person asks for over `stream`, which the hub handed through, in what runs as `spec`.
    ///
    /// # Errors
    /// Why nothing was run, or where it broke off. Whatever was started is ended.
    pub async fn serve<S>(&self, stream: S, spec: InstanceSpec, keys: &[PublicKey]) -> Result<(), ExecError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let paths = self.paths.clone();
        let identity = self.env.blocking.run(move || Identity::load(&paths)).await?;
        let config = tls::server(identity.chain, identity.key, keys, Arc::new(TlsClock(self.env.wall.clone())))?;
        let accepted = timeout(PATIENCE, TlsAcceptor::from(Arc::new(config)).accept(stream)).await;
        let mut stream = accepted.map_err(|_| late()).and_then(|ended| ended).map_err(ExecError::Handshake)?;
        let key = tls::shown(stream.get_ref().1.peer_certificates());
        let name = key.and_then(|key| keys.iter().find(|listed| listed.bytes() == key.bytes()));
        let who =
            name.map(|key| format!("{} ({})", key.name().unwrap_or("nameless"), proto::tuf::key::short(&key.id())));
        let start: Start =
            timeout(PATIENCE, frame::read(&mut stream, MAX_REQUEST_BYTES)).await.map_err(|_| late())??;
        match self.start(&spec, &start).await {
            Ok((attached, _seat)) => {
                let line: String = start.command.join(" ").chars().take(SHOWN_CHARS).collect();
                let text = format!("{} runs {line:?}", who.unwrap_or_default());
                self.desk.tell(&spec, self.env.wall.now(), "CommandRun", text);
                frame::write(&mut stream, &Reply::Started, MAX_REQUEST_BYTES).await?;
                Ok(connect(stream, attached).await?)
            }
            Err(message) => {
                frame::write(&mut stream, &Reply::Refused { message: message.clone() }, MAX_REQUEST_BYTES).await?;
                stream.shutdown().await?;
                Err(ExecError::Refused(message))
            }
        }
    }

    async fn start(
        &self,
        spec: &InstanceSpec,
        start: &Start,
    ) -> Result<(Attached, tokio::sync::SemaphorePermit<'_>), String> {
        if start.node != self.node || start.app != spec.app {
            // A hub led the person here who wanted to go elsewhere.
            return Err(format!("this is {} on {}, not {} on {}", spec.app, self.node, start.app, start.node));
        }
        if start.command.is_empty() {
            return Err("there is no command to run".into());
        }
        let busy = |_| format!("{MAX_COMMANDS} commands run on this node already; end one of them");
        let seat = self.desk.seats.try_acquire().map_err(busy)?;
        Ok((self.driver.exec(spec, start).await?, seat))
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "nothing came in time")
}

/// Hands packets both ways until the command has ended or the person is gone, which ends the command.
async fn connect<S>(stream: TlsStream<S>, attached: Attached) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Attached { input, output } = attached;
    let (mut reader, writer) = tokio::io::split(stream);
    let mut typed = std::pin::pin!(async {
        // A command that reads no more is no reason to hang up.
        while let Some(packet) = Input::read(&mut reader).await? {
            if input.send(packet).await.is_err() {
                tokio::io::copy(&mut reader, &mut tokio::io::sink()).await?;
            }
        }
        Ok::<_, io::Error>(())
    });
    let mut shown = std::pin::pin!(show(writer, output));
    // Neither is dropped half-way but when the line is gone.
    tokio::select! {
        biased;
        shown = &mut shown => shown,
        ended = &mut typed => ended,
    }
}

async fn show<S>(mut writer: WriteHalf<TlsStream<S>>, mut output: mpsc::Receiver<Output>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut told = false;
    loop {
        // Cancel safe. Nothing to show is written now and then: a person who is gone is found by that alone.
        let packet = match timeout(STILL_THERE, output.recv()).await {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(_) => Output::Out(Bytes::new()),
        };
        told = matches!(packet, Output::Ended(_));
        packet.write(&mut writer).await?;
    }
    if !told {
        let message = "nobody knows how it ended".to_owned();
        Output::Ended(Ended { message, ..Ended::default() }).write(&mut writer).await?;
    }
    writer.shutdown().await
}

#[cfg(test)]
mod tests;
