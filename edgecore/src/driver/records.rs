//! What is on disk about the instance of an app: written by driver and shim, read by whoever comes after.
//!
//! | file | who writes it | what it says |
//! |---|---|---|
//! | `launch.json` | driver, before the start | what to run, and a name for this one instance |
//! | `lock` | shim | held (POSIX record lock) as long as the shim lives; the kernel tells its pid |
//! | `running.json` | shim, once the program runs | its pid and when it started |
//! | `exit.json` | shim, or the driver when the shim was killed | how it ended |
//! | `grace` | driver, before SIGTERM to the shim | milliseconds until SIGKILL |
//! | `hook/launch.json` | driver, while a hook runs | the same for the hook, see [`super::hook`] |
//! | `logs/` | shim | output, see [`super::output`] |
//!
//! `running.json` and `exit.json` count only when they name the instance of `launch.json`.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use nix::{errno::Errno, fcntl, libc};
use proto::{
    durable,
    name::Name,
    object::{LastExit, ReleaseRef},
    release::Workload,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What to run, as the driver hands it to the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Launch {
    /// Names this instance among all; also in the environment of its processes.
    pub instance: String,
    /// Boot that it belongs to.
    pub boot_id: String,
    /// Name of its control group.
    pub group: String,
    /// The app.
    pub app: Name,
    /// The release.
    pub release: ReleaseRef,
    /// Its tree.
    pub tree: PathBuf,
    /// Folder it may write to.
    pub data: PathBuf,
    /// Folder for its sockets, which is this instance's alone; see [`super::InstanceSpec::run`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<PathBuf>,
    /// Command, limits and so on.
    pub workload: Workload,
}

/// Says that the program runs, or ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// See [`Launch::instance`].
    pub instance: String,
    /// Process of the workload's command.
    pub pid: i32,
    /// When it started.
    pub started_at: Timestamp,
    /// Control-group folders it was put in.
    pub groups: Vec<PathBuf>,
}

/// Says how it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// See [`Launch::instance`].
    pub instance: String,
    /// How.
    pub exit: LastExit,
}

/// Folder of one app, or of its second instance.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at `path`.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Folder {
        Folder { path: path.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the log files are.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// The folder of its release's hook, as if that were an app of its own.
    #[must_use]
    pub fn hook(&self) -> Folder {
        Folder::at(self.path.join("hook"))
    }

    /// What to run; `None` when nothing was ever started.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn launch(&self) -> io::Result<Option<Launch>> {
        self.read("launch.json")
    }

    /// Replaces what to run and forgets what was.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn store_launch(&self, launch: &Launch) -> io::Result<()> {
        durable::create_dir_all(&self.path).map_err(io::Error::other)?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o700))?; // environment and logs may hold secrets
        self.write("launch.json", launch)?;
        for stale in ["running.json", "exit.json", "grace"] {
            durable::remove(&self.path.join(stale)).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// That this instance runs, or ran.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn running(&self, launch: &Launch) -> io::Result<Option<Running>> {
        Ok(self.read("running.json")?.filter(|r: &Running| r.instance == launch.instance))
    }

    /// Name of the instance that started last, whatever `launch.json` says.
    #[must_use]
    pub fn instance(&self) -> Option<String> {
        self.read("running.json").ok().flatten().map(|r: Running| r.instance)
    }

    /// When `running.json` was written; 1970 where nobody knows.
    #[must_use]
    pub fn running_written_at(&self) -> Timestamp {
        let written = fs::metadata(self.path.join("running.json")).and_then(|m| m.modified());
        written.ok().and_then(|at| Timestamp::try_from(at).ok()).unwrap_or_default()
    }

    /// What a living shim runs, for who only looks; `None` when there is none.
    ///
    /// # Errors
    /// When a file cannot be read or is damaged.
    pub fn alive(&self) -> io::Result<Option<Running>> {
        match (self.holder()?, self.launch()?) {
            (Some(_), Some(launch)) => self.running(&launch),
            _ => Ok(None),
        }
    }

    /// Notes that it runs.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn store_running(&self, running: &Running) -> io::Result<()> {
        self.write("running.json", running)
    }

    /// How this instance ended.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn ended(&self, launch: &Launch) -> io::Result<Option<LastExit>> {
        Ok(self.read("exit.json")?.filter(|e: &Ended| e.instance == launch.instance).map(|e| e.exit))
    }

    /// Notes how it ended.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn store_ended(&self, ended: &Ended) -> io::Result<()> {
        self.write("exit.json", ended)
    }

    /// Time between SIGTERM and SIGKILL that the driver asked for last.
    #[must_use]
    pub fn grace(&self) -> Option<Duration> {
        let text = fs::read_to_string(self.path.join("grace")).ok()?;
        text.trim().parse().ok().map(Duration::from_millis)
    }

    /// Asks for a time between SIGTERM and SIGKILL.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn store_grace(&self, grace: Duration) -> io::Result<()> {
        fs::write(self.path.join("grace"), grace.as_millis().to_string())
    }

    /// Takes the lock for as long as the file is open; `None` when a living shim has it.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(self.path.join("lock"))?;
        match fcntl::fcntl(&file, fcntl::FcntlArg::F_SETLK(&whole_file())) {
            Ok(_) => Ok(Some(file)),
            Err(Errno::EACCES | Errno::EAGAIN) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Pid of the living shim that holds the lock. Asking disturbs nobody.
    ///
    /// # Errors
    /// When the lock file cannot be read.
    pub fn holder(&self) -> io::Result<Option<i32>> {
        let file = match File::open(self.path.join("lock")) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut query = whole_file();
        fcntl::fcntl(&file, fcntl::FcntlArg::F_GETLK(&mut query))?;
        Ok((i32::from(query.l_type) != libc::F_UNLCK).then_some(query.l_pid))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged: {e}", path.display()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn write<T: Serialize>(&self, name: &str, content: &T) -> io::Result<()> {
        let bytes = serde_json::to_vec(content)?;
        durable::write(&self.path.join(name), &bytes, 0o600).map_err(io::Error::other)
    }
}

/// Whether a record was there and its content is none; any other error is one of reading.
#[must_use]
pub fn is_damaged(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

fn whole_file() -> libc::flock {
    libc::flock { l_type: libc::F_WRLCK as _, l_whence: libc::SEEK_SET as _, l_start: 0, l_len: 0, l_pid: 0 }
}
