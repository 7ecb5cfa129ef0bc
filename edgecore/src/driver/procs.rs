//! What `/proc` tells about processes. Used by the shim to find its descendants, and by the driver to
//! find what a killed shim left behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// Environment variable that marks every process of an instance.
pub const MARKER: &str = "CROSSDOCK_INSTANCE";

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

/// Processes whose environment names an instance. Where there is no control group to ask, this is best
/// effort: a process that cleared its environment is missed, and so is one in the middle of execve, whose
/// environment reads empty for a moment.
#[must_use]
pub fn marked(instance: &str) -> BTreeSet<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    all().filter(|pid| *pid != own && is_marked(*pid, instance)).collect()
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
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything: what follows its last ')' is regular.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    fields.nth(1)?.parse().ok()
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
        assert_eq!(marked("test-7"), BTreeSet::from([pid]));
        assert!(marked("test-8").is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(boot_id().len(), 36);
    }
}
