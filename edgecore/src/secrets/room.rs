//! Where plaintext may be: folders in memory, found or mounted.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::statfs,
};
use proto::digest::Digest;
use rustix::process::geteuid;

/// Numbers of file systems that are memory (`statfs(2)`).
const MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6]; // tmpfs, ramfs
/// Most that secrets of all workloads take, where we mount their file system.
const ROOM: &str = "256m";

/// A folder for plaintext, which may not be there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Room {
    path: PathBuf,
    /// Where it is on disk, a file system of our own may be mounted on it.
    mountable: bool,
}

impl Room {
    pub(super) fn new(path: impl Into<PathBuf>, mountable: bool) -> Room {
        Room { path: path.into(), mountable }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder; succeeds when it is ours alone and in memory.
    fn prepare(&self) -> Result<(), String> {
        let failed = |what: &str, e: io::Error| format!("{}: could not {what}: {e}", self.path.display());
        if let Some(parent) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(|e| failed("make its parent", e))?;
        }
        match DirBuilder::new().mode(0o711).create(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed("make it", e)),
            _ => self.check_ours()?,
        }
        if self.is_memory()? {
            return Ok(());
        }
        if !self.mountable {
            return Err(format!("{} is on disk", self.path.display()));
        }
        self.mount()
            .map_err(|e| format!("{} is on disk, and no tmpfs can be mounted on it: {e}", self.path.display()))?;
        self.check_ours()?;
        match self.is_memory()? {
            true => Ok(()),
            false => Err(format!("{} is on disk, whatever is mounted on it", self.path.display())),
        }
    }

    /// A folder that somebody else made in a place that all may write to is not written to.
    fn check_ours(&self) -> Result<(), String> {
        let found = fs::symlink_metadata(&self.path).map_err(|e| format!("{}: {e}", self.path.display()))?;
        if !found.is_dir() || found.uid() != geteuid().as_raw() {
            return Err(format!("{} is there and is not a folder of the agent's user", self.path.display()));
        }
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o711))
            .map_err(|e| format!("{}: {e}", self.path.display()))
    }

    fn is_memory(&self) -> Result<bool, String> {
        let found = statfs(&self.path).map_err(|e| format!("{}: {e}", self.path.display()))?;
        #[allow(clippy::unnecessary_cast)] // another width on other architectures
        let number = (found.filesystem_type().0 as i64) & 0xffff_ffff;
        Ok(MEMORY.contains(&number))
    }

    fn mount(&self) -> nix::Result<()> {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let with = |options: String| mount(Some("crossdock"), &self.path, Some("tmpfs"), flags, Some(options.as_str()));
        // Kernels before 6.4 do not know the first.
        with(format!("size={ROOM},mode=0711,noswap")).or_else(|_| with(format!("size={ROOM},mode=0711")))
    }
}

/// Where the agent of a data folder looks for room, in this order: two agents on a machine share none.
pub(super) fn places(data_dir: &Path) -> Vec<Room> {
    let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    let id: String = Digest::of(data_dir.as_os_str().as_encoded_bytes()).hex().chars().take(12).collect();
    let user = geteuid();
    let shared = Room::new(format!("/dev/shm/crossdock-secrets-{}-{id}", user.as_raw()), false);
    if user.is_root() {
        return vec![Room::new(format!("/run/crossdock/secrets-{id}"), true), shared];
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute());
    let own = own.map(|dir| Room::new(Path::new(&dir).join(format!("crossdock/secrets-{id}")), false));
    own.into_iter().chain([shared]).collect()
}

/// The first place that serves.
///
/// # Errors
/// Why none does, and the mend.
pub(super) fn first(places: &[Room]) -> Result<Room, String> {
    let mut problems = vec![];
    for room in places {
        match room.prepare() {
            Ok(()) => return Ok(room.clone()),
            Err(problem) => problems.push(problem),
        }
    }
    let mend = "mount a tmpfs on /run, or run the agent as root so that it can";
    Err(format!("{}; {mend}", problems.join("; ")))
}
