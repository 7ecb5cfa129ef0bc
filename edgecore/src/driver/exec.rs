//! The last step before a workload's program: `edgecore exec FOLDER [--own] [--terminal TERM] [--group DIR]...
//! [-- PROGRAM ARG...]`.
//!
//! A process of its own prepares itself (control group, user, no new privileges) and then becomes the
//! program, so nothing unsafe runs between fork and exec. The shim runs it for the workload; the driver
//! runs it, with a program after `--`, for a probe, a hook or a person; `--own` gives the data folder to its user too, and
//! `--terminal` says that its standard input is a terminal of its own.
//! The shim learns what went wrong from a pipe that this process gets as its standard input, and that a
//! successful exec closes.

use std::{
    collections::BTreeMap,
    env, error,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal},
        stat::{Mode, umask},
    },
    unistd::{Gid, Uid, User, chown, fchown, getppid, initgroups, setgid, setgroups, setsid, setuid},
};

use super::{
    cgroup::Group,
    procs,
    records::{Folder, Launch},
    shim::take_stdin,
};

/// Search path of a workload.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Exit code of this program when it could not become the other, as shells have it.
const CANNOT_EXEC: u8 = 126;

type Failure = Box<dyn error::Error>;

/// Entry of the hidden subcommand; `args` follow its name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut status: Box<dyn io::Write> = Box::new(io::stderr());
    let failure = match Request::parse(args) {
        Ok(request) => match prepare(&request, &mut status) {
            Ok(mut command) => describe_exec(&request, &command.exec()),
            Err(e) => e.to_string(),
        },
        Err(e) => e,
    };
    let _ = status.write_all(failure.as_bytes()); // nobody else is left to tell
    ExitCode::from(CANNOT_EXEC)
}

struct Request {
    folder: Folder,
    group: Group,
    /// Whether the data folder is to belong to the workload's user.
    owns: bool,
    /// Kind of the terminal that it leads.
    terminal: Option<OsString>,
    probe: Option<Vec<OsString>>,
}

impl Request {
    fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Request, String> {
        let usage = || "usage: exec FOLDER [--own] [--terminal TERM] [--group DIR]... [-- PROGRAM ARG...]".to_owned();
        let folder = Folder::at(args.next().ok_or_else(usage)?);
        let (mut groups, mut owns, mut terminal) = (vec![], false, None);
        let probe = loop {
            match args.next() {
                None => break None,
                Some(arg) if arg == "--own" => owns = true,
                Some(arg) if arg == "--terminal" => terminal = Some(args.next().ok_or_else(usage)?),
                Some(arg) if arg == "--group" => groups.push(PathBuf::from(args.next().ok_or_else(usage)?)),
                Some(arg) if arg == "--" => break Some(args.collect()),
                Some(_) => return Err(usage()),
            }
        };
        Ok(Request { folder, group: Group::of(groups), owns: owns || probe.is_none(), terminal, probe })
    }
}

/// Everything but the exec. On return, `status` is where a failure to exec is told.
fn prepare(request: &Request, status: &mut Box<dyn io::Write>) -> Result<Command, Failure> {
    let shim = getppid();
    if request.probe.is_none() {
        *status = Box::new(take_stdin()?);
    }
    let launch = request.folder.launch()?.ok_or("launch.json is missing; start the workload anew")?;
    let workload = &launch.workload;
    let user = workload.user.as_deref().map(Account::find).transpose()?;

    request.group.join()?;
    let _ = setsid(); // fails only for a leader, which is what it asks for
    umask(Mode::from_bits_truncate(0o022));
    if let Some(user) = user.as_ref().filter(|_| request.owns) {
        own(&launch.data, user)?;
        launch.run.iter().try_for_each(|run| own(run, user))?;
    }
    if request.terminal.is_some() {
        rustix::process::ioctl_tiocsctty(io::stdin())?;
        if let Some(user) = &user {
            fchown(io::stdin(), Some(user.uid), None)?; // its programs open the terminal by name
        }
    }
    if let Some(user) = &user {
        user.become_it()?;
    }
    prctl::set_no_new_privs()?;
    if request.probe.is_none() {
        // After the change of user, which would undo it. Should the shim be killed, its workload goes too.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != shim {
            return Err("the shim is gone".into());
        }
    }
    let tree = &launch.tree;
    let folder = workload.working_dir.as_ref().map_or_else(|| tree.clone(), |w| tree.join(w));
    env::set_current_dir(&folder).map_err(|e| format!("working folder {} cannot be entered: {e}", folder.display()))?;
    let (program, args) = program(request, &launch)?;
    SigSet::all().thread_unblock()?;
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(environment(&launch));
    command.envs(request.terminal.iter().map(|term| ("TERM", term)));
    Ok(command)
}

fn program(request: &Request, launch: &Launch) -> Result<(PathBuf, Vec<OsString>), Failure> {
    let (name, args): (&OsStr, Vec<OsString>) = match &request.probe {
        Some(probe) => match probe.split_first() {
            Some((name, args)) => (name, args.to_vec()),
            None => return Err("the probe's command is empty".into()),
        },
        None => (launch.workload.command.as_ref(), launch.workload.args.iter().map(OsString::from).collect()),
    };
    let path = launch.tree.join(name); // an absolute name replaces the tree
    let shown = name.to_string_lossy();
    let place = if Path::new(name).is_absolute() { "on this box" } else { "in the release's tree" };
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(format!("command {shown:?} does not exist {place}; correct workload.command").into());
        }
        Err(e) => return Err(format!("command {shown:?} cannot be reached: {e}").into()),
    };
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(format!("command {shown:?} is not an executable file; set its executable bit").into());
    }
    // execvp would hand anything else to a shell, line by line.
    let mut magic = [0; 4];
    let readable = File::open(&path).and_then(|mut file| file.read(&mut magic)).is_ok(); // or may only be run
    if readable && !magic.starts_with(b"#!") && magic != *b"\x7fELF" {
        return Err(format!("command {shown:?} is no program: it starts with neither #! nor the mark of ELF").into());
    }
    Ok((path, args))
}

fn describe_exec(request: &Request, error: &io::Error) -> String {
    let what = match &request.probe {
        Some(probe) => probe.first().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default(),
        None => request.folder.launch().ok().flatten().map(|l| l.workload.command).unwrap_or_default(),
    };
    let mend = match error.kind() {
        io::ErrorKind::NotFound => "; its interpreter (the #! line, or the ELF loader) is missing on this box",
        io::ErrorKind::PermissionDenied => "; its user may not read it, or its file system is mounted noexec",
        _ => "",
    };
    format!("command {what:?} cannot be run: {error}{mend}")
}

fn environment(launch: &Launch) -> BTreeMap<String, OsString> {
    let mut variables: BTreeMap<String, OsString> = BTreeMap::from([("PATH".into(), PATH.into())]);
    variables.extend(launch.workload.env.iter().map(|(k, v)| (k.clone(), v.into())));
    variables.extend([
        ("CROSSDOCK_APP".into(), launch.app.as_str().into()),
        ("CROSSDOCK_VERSION".into(), launch.release.version.as_str().into()),
        ("CROSSDOCK_DIGEST".into(), launch.release.digest.to_string().into()),
        ("CROSSDOCK_TREE".into(), launch.tree.clone().into()),
        ("CROSSDOCK_DATA".into(), launch.data.clone().into()),
        (procs::MARKER.into(), launch.instance.clone().into()),
    ]);
    variables
}

/// A user of the box, as a release names one.
pub(crate) struct Account {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    name: Option<String>,
}

impl Account {
    /// By name or number.
    pub(crate) fn find(text: &str) -> Result<Account, Failure> {
        let by_number = text.parse::<u32>().ok();
        let found = match by_number {
            Some(uid) => User::from_uid(Uid::from_raw(uid))?,
            None => User::from_name(text)?,
        };
        match (found, by_number) {
            (Some(user), _) => Ok(Account { uid: user.uid, gid: user.gid, name: Some(user.name) }),
            (None, Some(uid)) => Ok(Account { uid: Uid::from_raw(uid), gid: Gid::from_raw(uid), name: None }),
            (None, None) => {
                let text: String = text.chars().take(80).collect();
                Err(format!("user {text:?} does not exist on this box; create it (useradd --system {text})").into())
            }
        }
    }

    fn become_it(&self) -> Result<(), Failure> {
        if !Uid::effective().is_root() {
            if Uid::effective() == self.uid {
                return Ok(());
            }
            let problem = "only an agent that runs as root can run a workload as another user; run it as root, \
                           or leave workload.user out";
            return Err(problem.into());
        }
        match &self.name {
            Some(name) => initgroups(&std::ffi::CString::new(name.as_str())?, self.gid)?,
            None => setgroups(&[self.gid])?,
        }
        setgid(self.gid)?;
        setuid(self.uid)?;
        Ok(())
    }
}

/// A folder that the workload may write to belongs to whom it runs as.
fn own(folder: &Path, user: &Account) -> Result<(), Failure> {
    let metadata = match fs::symlink_metadata(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()), // of a hook, whose workload never ran
        metadata => metadata?,
    };
    if metadata.is_dir() && metadata.uid() != user.uid.as_raw() && Uid::effective().is_root() {
        chown(folder, Some(user.uid), Some(user.gid))
            .map_err(|e| format!("folder {} cannot be given to the user: {e}", folder.display()))?;
    }
    Ok(())
}
