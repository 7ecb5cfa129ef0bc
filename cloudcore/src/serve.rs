//! `cloudcore serve`: the hub as a process. Opens, binds, announces, waits, drains.
//!
//! Called by the program's `main`, and by tests with a shutdown of their own.

use std::{
    fs::File,
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    time::Duration,
};

use proto::{
    durable::{self, DurableError},
    env::Env,
    watch,
};
use rustix::fs::FlockOperation;

use crate::{
    api::{self, AuthError, ServeError, Tokens},
    audit::Entry,
    config::HubConfig,
    hub::{Hub, HubError},
};

/// How long link and API together may take to drain.
const DRAIN: Duration = Duration::from_secs(10);

/// The hub cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another process has the folder.
    #[error("another cloudcore works in {}; stop it first", .0.display())]
    Busy(PathBuf),
    /// The folder cannot be locked.
    #[error("could not lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The API's port is taken, or the address not ours.
    #[error("could not listen on TCP {address}; choose another apiListen in hub.yaml, or stop what uses it")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The API.
    #[error(transparent)]
    Api(#[from] ServeError),
    /// The tokens.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] DurableError),
}

impl RunError {
    /// Whether the data folder is the reason: busy, incomplete or damaged. Trying again does not help then.
    #[must_use]
    pub fn is_unusable_folder(&self) -> bool {
        match self {
            RunError::Busy(_) | RunError::Lock { .. } | RunError::Auth(_) | RunError::Write(_) => true,
            // The hub itself fails only while it opens its folder.
            RunError::Hub(error) => !matches!(error, HubError::Bind { .. }),
            RunError::Api(error) => !matches!(error, ServeError::Io(_)),
            RunError::Bind { .. } => false,
        }
    }
}

/// Where a running hub listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Addresses {
    /// For agents, UDP.
    pub link: SocketAddr,
    /// For people and programs, TCP.
    pub api: SocketAddr,
}

/// Runs the hub until `shutdown` completes. `ready` is told once both ports are bound.
///
/// # Errors
/// When something is missing, damaged or taken, or a part fails for good.
pub async fn run(
    config: HubConfig,
    env: Env,
    ready: impl FnOnce(&Addresses),
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let _lock = lock(&config)?;
    // What a hub that was killed left there would send people to the wrong ports.
    if let Err(e) = std::fs::remove_file(config.addresses())
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(error = %e, "could not remove the addresses of the run before");
    }
    let tokens = Tokens::load(&config)?;
    let bind = |source| RunError::Bind { address: config.api_listen, source };
    let listener = TcpListener::bind(config.api_listen).map_err(bind)?;
    let api_address = listener.local_addr().map_err(bind)?;
    let hub = Hub::open(config.clone(), env).await?;
    let addresses = Addresses { link: hub.link_addr(), api: api_address };
    let [by, verb, kind] = ["hub", "start", "hub"].map(str::to_owned);
    let detail = format!("version {}", proto::VERSION);
    hub.audit().note(Entry { user: by.clone(), via: by, verb, kind, detail, ..Entry::default() }).await;
    let (stop, stopped) = watch::channel(false);
    let router = api::router(hub.clone(), tokens, stopped.clone());

    let text = serde_json::json!(addresses).to_string();
    durable::write(&config.addresses(), text.as_bytes(), 0o644)?;
    ready(&addresses);

    let mut told = stopped.clone();
    let link = hub.run(async move {
        let _ = told.wait_for(|stop| *stop).await; // the sender lives in this function
    });
    let api = api::serve(&hub, router, listener, stopped);
    let served = async { tokio::try_join!(async { link.await.map_err(RunError::from) }, async { Ok(api.await?) }) };
    let mut served = std::pin::pin!(served);
    tokio::select! { biased;
        ended = &mut served => return ended.map(drop),
        () = shutdown => {}
    }
    tracing::info!("shutting down");
    stop.send_replace(true);
    match tokio::time::timeout(DRAIN, served).await {
        Ok(ended) => ended.map(drop),
        Err(_) => {
            tracing::warn!("some requests did not end in {DRAIN:?} and were cut off");
            Ok(())
        }
    }
}

/// Two hubs on one folder would undo each other's work. The lock ends with the process, however it ends.
fn lock(config: &HubConfig) -> Result<File, RunError> {
    let path = config.data_dir.join("hub.lock");
    let failed = |source: io::Error| RunError::Lock { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(RunError::Busy(config.data_dir.clone())),
        Err(errno) => Err(failed(errno.into())),
    }
}
