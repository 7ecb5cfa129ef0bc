//! Sockets of the doors, and the ports that come back after a restart.
//!
//! `<data>/streams.json` names where the doors are, for scripts, and is where a door with port 0 finds
//! the port that it had before.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::{broker::read_password, durable, env::Env};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener},
};

use super::access::Access;
use crate::settings::Streams;

/// Names where the doors are.
pub const FILE: &str = "streams.json";

/// A connection of a producer.
pub(super) type Conn = Box<dyn Io>;

/// Bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Http,
    Socket,
    Mqtt,
}

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Http => "http",
            Way::Socket => "socket",
            Way::Mqtt => "mqtt",
        }
    }
}

/// An open door.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp { listener: TcpListener, address: SocketAddr, access: Option<Arc<Access>> },
    Unix { listener: UnixListener, path: PathBuf },
}

impl Listener {
    /// Who may come in; over a Unix socket the file's permissions say.
    pub(super) fn access(&self) -> Option<Arc<Access>> {
        match self {
            Listener::Tcp { access, .. } => access.clone(),
            Listener::Unix { .. } => None,
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Conn> {
        match self {
            Listener::Unix { listener, .. } => Ok(Box::new(listener.accept().await?.0)),
            Listener::Tcp { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                prepare(&stream);
                Ok(Box::new(stream))
            }
        }
    }
}

/// Best effort: without these a connection is slower, or a vanished peer is noticed later.
fn prepare(stream: &TcpStream) {
    stream.set_nodelay(true).ok();
    rustix::net::sockopt::set_socket_keepalive(stream, true).ok();
}

/// Opens the doors as they are set.
#[derive(Debug)]
pub(super) struct Binder {
    http: Option<SocketAddr>,
    mqtt: Option<SocketAddr>,
    socket: Option<PathBuf>,
    mode: u32,
    group: Option<String>,
    login: Option<(String, PathBuf)>,
    memory: PathBuf,
    env: Env,
}

impl Binder {
    pub(super) fn new(settings: &Streams, data_dir: &Path, env: Env) -> Binder {
        let file = settings.password_file.as_ref().map(|f| data_dir.join(f));
        Binder {
            http: settings.http,
            mqtt: settings.mqtt,
            socket: settings.socket.as_ref().map(|s| data_dir.join(s)),
            mode: settings.socket_mode,
            group: settings.socket_group.clone(),
            login: settings.user.clone().zip(file),
            memory: data_dir.join(FILE),
            env,
        }
    }

    /// The doors that are not "off".
    pub(super) fn ways(&self) -> Vec<Way> {
        let wanted =
            [(Way::Http, self.http.is_some()), (Way::Socket, self.socket.is_some()), (Way::Mqtt, self.mqtt.is_some())];
        wanted.into_iter().filter(|(_, on)| *on).map(|(way, _)| way).collect()
    }

    /// Opens one; an error is what is wrong and how to mend it.
    pub(super) async fn bind(self: &Arc<Self>, way: Way) -> Result<Listener, String> {
        // `ways` names no door without a place.
        match (way, self.http, self.mqtt, self.socket.clone()) {
            (Way::Http, Some(address), ..) | (Way::Mqtt, _, Some(address), _) => self.bind_tcp(way, address).await,
            (Way::Socket, .., Some(path)) => self.bind_unix(path).await,
            _ => Err("this door is off".into()),
        }
    }

    async fn bind_tcp(self: &Arc<Self>, way: Way, wanted: SocketAddr) -> Result<Listener, String> {
        let binder = self.clone();
        // The password first: a door without it would be open to everybody.
        let login = move || match &binder.login {
            Some((user, file)) => read_password(file).map(|p| Some(Arc::new(Access::new(user, &p)))),
            None => Ok(None),
        };
        let access = self.env.blocking.run(login).await?;
        let (memory, door) = (self.memory.clone(), way.name());
        let mut before = self.env.blocking.run(move || remembered(&memory)).await;
        let kept = before.get(door).filter(|a| wanted.port() == 0 && a.ip() == wanted.ip()).copied();
        let listener = match kept {
            Some(kept) => match TcpListener::bind(kept).await {
                Ok(listener) => Ok(listener),
                Err(error) => {
                    tracing::warn!(door, %kept, %error, "the port of before is not free: taking another");
                    TcpListener::bind(wanted).await
                }
            },
            None => TcpListener::bind(wanted).await,
        };
        let opened = listener.and_then(|l| Ok((l.local_addr()?, l)));
        let (address, listener) = opened.map_err(|e| {
            format!("could not listen on {wanted}: {e}; stop what listens there, or set streams.{door} in agent.toml")
        })?;
        if before.insert(door.to_owned(), address) != Some(address) {
            let memory = self.memory.clone();
            let bytes = serde_json::to_vec_pretty(&before).unwrap_or_default();
            if let Err(error) = self.env.blocking.run(move || durable::write(&memory, &bytes, 0o644)).await {
                tracing::warn!(%error, "the port will be another one after a restart");
            }
        }
        Ok(Listener::Tcp { listener, address, access })
    }

    async fn bind_unix(self: &Arc<Self>, path: PathBuf) -> Result<Listener, String> {
        let (place, mode, group) = (path.clone(), self.mode, self.group.clone());
        let listener = self.env.blocking.run(move || listen_unix(&place, mode, group.as_deref())).await?;
        let failed = |e| format!("could not listen on {}: {e}", path.display());
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        Ok(Listener::Unix { listener, path })
    }
}

/// Where the doors were. A file that cannot be read is as good as none.
fn remembered(memory: &Path) -> BTreeMap<String, SocketAddr> {
    fs::read(memory).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn listen_unix(path: &Path, mode: u32, group: Option<&str>) -> Result<std::os::unix::net::UnixListener, String> {
    let failed = |e: io::Error| {
        format!("could not listen on {}: {e}; name another place with streams.socket in agent.toml", path.display())
    };
    // What a killed agent left behind goes; anything else stays where it is.
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path).map_err(failed)?,
        Ok(_) => return Err(format!("{} is there and no socket: move it away", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    let gid = group.map(|group| match nix::unistd::Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid.as_raw()),
        _ => Err(format!("there is no group {group:?}: add it (groupadd {group}), or mend streams.socket-group")),
    });
    let gid = gid.transpose()?;
    // A default of ours lies in a folder of its own.
    path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
    if gid.is_some() {
        std::os::unix::fs::chown(path, None, gid).map_err(failed)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok(listener)
}
