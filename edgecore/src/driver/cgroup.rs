//! Control groups, versions 1 and 2: limits of a workload, and a way to find all of its processes.
//!
//! A [`Layout`] says which hierarchy of this box serves which controller; version 1 wins where both do,
//! since a hybrid box gives version 2 no controllers. A [`Group`] is the folders of one workload,
//! `crossdock/<name>` in each hierarchy that it needs, beside the agent's own group rather than below it:
//! version 2 gives no limits below a group that holds processes itself, and the agent's holds the agent
//! and its shims. A workload leaves it for its own; where none can be made it stays in the agent's. Shim
//! and driver use it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    process::id,
    time::Duration,
};

use proto::release::Limits;

const PARENT: &str = "crossdock";
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel takes no greater number.
const MOST_PIDS: u32 = 4 << 20;
const MIN_CPU_QUOTA_US: u64 = 1_000;

/// A limit cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The box has no such controller.
    #[error(
        "limits.{limit} cannot be applied: this box has no {controller} control group; enable it in the kernel \
         (boot option cgroup_enable={controller}) or leave the limit out"
    )]
    NoController {
        /// Field of the release.
        limit: &'static str,
        /// Name of the controller.
        controller: &'static str,
    },
    /// A file of the hierarchy refused.
    #[error(
        "limits cannot be applied: {path} refuses {value:?} ({source}); run the agent as root with control groups \
         writable, or leave the limits out"
    )]
    Refused {
        /// File or folder.
        path: String,
        /// What was written; empty for a folder that cannot be made.
        value: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Which hierarchy serves what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    v1: BTreeMap<String, PathBuf>,
    v2: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Layout {
    /// The layout of this box.
    #[must_use]
    pub fn detect() -> Layout {
        Layout::parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    /// Reads the text of `/proc/self/mountinfo`.
    #[must_use]
    pub fn parse(mountinfo: &str) -> Layout {
        let mut layout = Layout::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4) else { continue };
            let point = PathBuf::from(point.replace("\\040", " "));
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) => {
                    layout.v2.get_or_insert(point);
                }
                (Some("cgroup"), Some(options)) => {
                    for option in options.split(',').filter(|o| ["memory", "cpu", "pids"].contains(o)) {
                        layout.v1.entry(option.to_owned()).or_insert_with(|| point.clone());
                    }
                }
                _ => {}
            }
        }
        layout
    }

    fn controller(&self, limit: &'static str, controller: &'static str) -> Result<(Version, &Path), GroupError> {
        if let Some(root) = self.v1.get(controller) {
            return Ok((Version::One, root));
        }
        if let Some(root) = &self.v2 {
            let offered = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            if offered.split_whitespace().any(|c| c == controller) {
                return Ok((Version::Two, root));
            }
        }
        Err(GroupError::NoController { limit, controller })
    }

    /// Makes the group `name` with these limits. Without limits it is made where that is possible, to
    /// find processes by.
    ///
    /// # Errors
    /// When a limit that is asked for cannot be applied.
    pub fn create(&self, name: &str, limits: &Limits) -> Result<Group, GroupError> {
        let mut group = Group { folders: vec![] };
        self.create_tracking(name, &mut group);
        match self.limit(name, limits, &mut group) {
            Ok(()) => Ok(group),
            Err(e) => {
                group.remove();
                Err(e)
            }
        }
    }

    fn limit(&self, name: &str, limits: &Limits, group: &mut Group) -> Result<(), GroupError> {
        if let Some(memory) = limits.memory {
            let (version, root) = self.controller("memory", "memory")?;
            set_memory(version, &group.enter(version, root, name, "memory")?, memory.get())?;
        }
        if let Some(millis) = limits.cpu_millis {
            let (version, root) = self.controller("cpuMillis", "cpu")?;
            set_cpu(version, &group.enter(version, root, name, "cpu")?, u64::from(millis))?;
        }
        if let Some(pids) = limits.pids {
            let (version, root) = self.controller("pids", "pids")?;
            let pids = pids.min(MOST_PIDS).to_string();
            write(&group.enter(version, root, name, "pids")?.join("pids.max"), &pids)?;
        }
        Ok(())
    }

    /// One hierarchy is enough to find processes by; version 2 can also kill them in one go.
    fn create_tracking(&self, name: &str, group: &mut Group) {
        let candidates = self.v2.iter().chain(self.v1.get("pids")).chain(self.v1.values());
        for root in candidates {
            let folder = root.join(PARENT).join(name);
            if fs::create_dir_all(&folder).is_ok() {
                group.folders.push(folder);
                return;
            }
        }
    }
}

/// The folders of one workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    folders: Vec<PathBuf>,
}

impl Group {
    /// A group whose folders are known.
    #[must_use]
    pub fn of(folders: Vec<PathBuf>) -> Group {
        Group { folders }
    }

    /// What exists of the group `name` on this box.
    #[must_use]
    pub fn existing(name: &str) -> Group {
        let Layout { v1, v2 } = Layout::detect();
        let folders: BTreeSet<PathBuf> = v1.values().chain(&v2).map(|root| root.join(PARENT).join(name)).collect();
        Group { folders: folders.into_iter().filter(|folder| folder.is_dir()).collect() }
    }

    /// Its folders.
    #[must_use]
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    fn enter(&mut self, version: Version, root: &Path, name: &str, controller: &str) -> Result<PathBuf, GroupError> {
        let parent = root.join(PARENT);
        let folder = parent.join(name);
        fs::create_dir_all(&folder).map_err(refused(&folder, ""))?;
        if version == Version::Two {
            for level in [root, &parent] {
                write(&level.join("cgroup.subtree_control"), &format!("+{controller}"))?;
            }
        }
        if !self.folders.contains(&folder) {
            self.folders.push(folder.clone());
        }
        Ok(folder)
    }

    /// Puts the calling process into every folder.
    ///
    /// # Errors
    /// When a folder refuses.
    pub fn join(&self) -> Result<(), GroupError> {
        self.folders.iter().try_for_each(|folder| write(&folder.join("cgroup.procs"), &id().to_string()))
    }

    /// Its processes.
    #[must_use]
    pub fn pids(&self) -> BTreeSet<i32> {
        let texts = self.folders.iter().filter_map(|f| fs::read_to_string(f.join("cgroup.procs")).ok());
        texts.flat_map(|text| text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>()).collect()
    }

    /// Kills what the kernel can kill in one go (version 2), and forbids new processes (version 1).
    /// The caller kills [`Group::pids`] one by one until there are none.
    pub fn kill(&self) {
        for folder in &self.folders {
            // Written only where the kernel has the file: either may be absent, and that is fine.
            for (file, value) in [("cgroup.kill", "1"), ("pids.max", "0")] {
                let path = folder.join(file);
                if path.exists() {
                    let _ = fs::write(path, value);
                }
            }
        }
    }

    /// How often the kernel killed in it for want of memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let files = ["memory.events", "memory.oom_control"];
        let paths = self.folders.iter().flat_map(|folder| files.map(|file| folder.join(file)));
        let texts = paths.filter_map(|path| fs::read_to_string(path).ok());
        texts.filter_map(|t| t.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())).sum()
    }

    /// Processor time of all that ever ran in it; `None` where no folder counts it.
    #[must_use]
    pub fn cpu_time(&self) -> Option<Duration> {
        let microseconds = |text: String| text.lines().find_map(|l| l.strip_prefix("usage_usec ")?.trim().parse().ok());
        let v2 = || self.read("cpu.stat").and_then(microseconds).map(Duration::from_micros);
        let v1 = || self.read("cpuacct.usage").and_then(|text| text.trim().parse().ok()).map(Duration::from_nanos);
        v2().or_else(v1)
    }

    /// Bytes of memory that it uses; `None` where no folder counts them.
    #[must_use]
    pub fn memory_bytes(&self) -> Option<u64> {
        let text = self.read("memory.current").or_else(|| self.read("memory.usage_in_bytes"))?;
        text.trim().parse().ok()
    }

    /// A file of the first folder that has it.
    fn read(&self, file: &str) -> Option<String> {
        self.folders.iter().find_map(|folder| fs::read_to_string(folder.join(file)).ok())
    }

    /// Removes the folders. One that still has processes stays.
    pub fn remove(&self) {
        for folder in &self.folders {
            let _ = fs::remove_dir(folder); // busy or gone already: the next start tries again
        }
    }
}

fn set_memory(version: Version, folder: &Path, bytes: u64) -> Result<(), GroupError> {
    let value = bytes.to_string();
    let (limit, optional) = match version {
        Version::One => ("memory.limit_in_bytes", [("memory.memsw.limit_in_bytes", value.as_str())].to_vec()),
        // The whole group goes, so that no half of a workload lives on; and swap is no way around.
        Version::Two => ("memory.max", [("memory.swap.max", "0"), ("memory.oom.group", "1")].to_vec()),
    };
    write(&folder.join(limit), &value)?;
    for (file, value) in optional {
        let _ = fs::write(folder.join(file), value); // absent without swap accounting or on old kernels
    }
    Ok(())
}

fn set_cpu(version: Version, folder: &Path, millis: u64) -> Result<(), GroupError> {
    let quota = (millis * CPU_PERIOD_US / 1000).max(MIN_CPU_QUOTA_US);
    match version {
        Version::One => {
            write(&folder.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
            write(&folder.join("cpu.cfs_quota_us"), &quota.to_string())
        }
        Version::Two => write(&folder.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}")),
    }
}

fn write(path: &Path, value: &str) -> Result<(), GroupError> {
    fs::write(path, value).map_err(refused(path, value))
}

fn refused(path: &Path, value: &str) -> impl FnOnce(io::Error) -> GroupError {
    let (path, value) = (path.display().to_string(), value.to_owned());
    move |source| GroupError::Refused { path, value, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        serde_json::from_str(r#"{"memory": "64Mi", "cpuMillis": 1500, "pids": 20}"#).unwrap()
    }

    fn fake_v2(controllers: &str) -> (tempfile::TempDir, Layout) {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), controllers).unwrap();
        let layout = Layout { v1: BTreeMap::new(), v2: Some(root.path().to_owned()) };
        (root, layout)
    }

    #[test]
    fn mountinfo_of_pure_and_hybrid_boxes_is_understood() {
        let pure = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let layout = Layout::parse(pure);
        assert_eq!(layout.v2, Some("/sys/fs/cgroup".into()));
        assert!(layout.v1.is_empty());
        let hybrid = "33 32 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      34 32 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      35 32 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 master:2 - cgroup cgroup rw,cpu,cpuacct\n\
                      36 32 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      37 32 0:32 / /mnt/a\\040b rw - ext4 /dev/sda1 rw\n";
        let layout = Layout::parse(hybrid);
        assert_eq!(layout.v2, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(layout.v1.keys().map(String::as_str).collect::<Vec<_>>(), ["cpu", "memory"]);
        assert_eq!(layout.v1["cpu"], PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(Layout::parse("garbage\n - \n"), Layout::default());
    }

    #[test]
    fn version_2_gets_every_limit() {
        let (root, layout) = fake_v2("cpuset cpu io memory pids\n");
        let group = layout.create("app-1", &limits()).unwrap();
        let folder = root.path().join("crossdock/app-1");
        assert_eq!(group.folders(), std::slice::from_ref(&folder));
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
        assert_eq!(read("memory.max"), (64 << 20).to_string());
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("memory.oom.group"), "1");
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!(read("pids.max"), "20");
        assert_eq!(fs::read_to_string(root.path().join("cgroup.subtree_control")).unwrap(), "+pids");
        assert_eq!(fs::read_to_string(root.path().join("crossdock/cgroup.subtree_control")).unwrap(), "+pids");

        group.join().unwrap();
        assert_eq!(group.pids(), BTreeSet::from([i32::try_from(id()).unwrap()]));
        fs::write(folder.join("memory.events"), "low 0\noom 3\noom_kill 2\noom_group_kill 1\n").unwrap();
        assert_eq!(group.oom_kills(), 2);
        assert_eq!((group.cpu_time(), group.memory_bytes()), (None, None));
        fs::write(folder.join("cpu.stat"), "usage_usec 1500000\nuser_usec 1000000\n").unwrap();
        fs::write(folder.join("memory.current"), "4096\n").unwrap();
        assert_eq!((group.cpu_time(), group.memory_bytes()), (Some(Duration::from_millis(1500)), Some(4096)));
        fs::write(folder.join("cgroup.kill"), "").unwrap();
        group.kill();
        assert_eq!(read("cgroup.kill"), "1");
    }

    #[test]
    fn a_limit_without_its_controller_is_an_error_with_the_mend() {
        let (_root, layout) = fake_v2("cpu pids");
        let error = layout.create("app-1", &limits()).unwrap_err().to_string();
        assert!(error.contains("limits.memory") && error.contains("cgroup_enable=memory"), "{error}");
        let error = Layout::default().create("app-1", &limits()).unwrap_err().to_string();
        assert!(error.contains("no memory control group"), "{error}");
        assert_eq!(Layout::default().create("app-1", &Limits::default()).unwrap(), Group::default());
    }

    #[test]
    fn a_hierarchy_that_refuses_is_an_error_with_the_mend() {
        let (root, layout) = fake_v2("cpu memory pids");
        fs::create_dir_all(root.path().join("cgroup.subtree_control")).unwrap(); // cannot be written
        let error = layout.create("app-1", &limits()).unwrap_err().to_string();
        assert!(error.contains("run the agent as root"), "{error}");
    }
}
