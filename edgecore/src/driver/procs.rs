//! What `/proc` tells about processes. Used by the shim to find its descendants, and by the driver to
//! find what a killed shim left behind, and what a workload uses where no control group counts it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

/// Environment variable that marks every process of an instance.
pub const MARKER: &str = "CROSSDOCK_INSTANCE";

/// Fields of `/proc/PID/stat`, counted from the process's state on.
const PARENT: usize = 1;
const SESSION: usize = 3;

/// Changes with every boot; empty where the kernel does not say.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// All living or undead processes that descend from `root`, without itself.
#[must_use]
pub fn descendants(root: i32) -> BTreeSet<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in all() {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut open) = (BTreeSet::new(), vec![root]);
    while let Some(pid) = open.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            if found.insert(*child) {
                open.push(*child);
            }
        }
    }
    found
}

/// Kills all processes of a session.
pub fn kill_session(leader: i32) {
    for pid in all().filter(|pid| field(*pid, SESSION) == Some(leader)) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL); // it may have ended
        }
    }
}

/// Whether a process is in the control group of a container, by the container's ID in its name.
#[must_use]
pub fn is_in_group_of(pid: i32, container: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(container))
}

/// Processes whose environment names an instance. Where there is no control group to ask, this is best
/// effort: a process that cleared its environment is missed, and so is one in the middle of execve, whose
/// environment reads empty for a moment.
#[must_use]
pub fn marked(instance: &str) -> BTreeSet<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    all().filter(|pid| *pid != own && is_marked(*pid, instance)).collect()
}

/// Processor time of processes and of their children that ended, and bytes of memory that they hold now. What
/// has ended meanwhile counts nothing.
#[must_use]
pub fn usage(pids: &BTreeSet<i32>) -> (Duration, u64) {
    let ticks_per_s = rustix::param::clock_ticks_per_second().max(1);
    let (mut ticks, mut pages) = (0_u64, 0_u64);
    for pid in pids {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // As in `field`. From state on: utime, stime, cutime, cstime are 11 to 14, rss is 21.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or(vec![], |(_, rest)| rest.split_ascii_whitespace().collect());
        let number = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        ticks = ticks.saturating_add((11..=14).map(number).sum());
        pages = pages.saturating_add(number(21));
    }
    let milliseconds = ticks.saturating_mul(1000) / ticks_per_s;
    (Duration::from_millis(milliseconds), pages.saturating_mul(rustix::param::page_size() as u64))
}

fn is_marked(pid: i32, instance: &str) -> bool {
    let entry = format!("{MARKER}={instance}");
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| environ.split(|b| *b == 0).any(|variable| variable == entry.as_bytes()))
}

fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent(pid: i32) -> Option<i32> {
    field(pid, PARENT)
}

/// Field of a process's `stat`, counted from its state on.
fn field(pid: i32, at: usize) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything: what follows its last ')' is regular.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    fields.nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_its_own_child_by_descent_and_by_marker() {
        let mut child = std::process::Command::new("sleep").arg("60").env(MARKER, "test-7").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(descendants(own).contains(&pid));
        assert!(!descendants(own).contains(&own));
        assert!(descendants(pid).is_empty());
        assert!(!is_in_group_of(pid, "cafe4711") && is_in_group_of(pid, ":"));
        assert_eq!(marked("test-7"), BTreeSet::from([pid]));
        assert!(marked("test-8").is_empty());
        let (cpu, memory) = usage(&BTreeSet::from([own]));
        assert!(memory > 1 << 20 && cpu < Duration::from_secs(3600), "{cpu:?} {memory}");
        assert_eq!(usage(&BTreeSet::from([0, -1])), (Duration::ZERO, 0));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(boot_id().len(), 36);
    }
}
