//! Reads `/proc`, `/sys` and `/etc`. What is missing reads as empty or zero.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::socket::SockaddrStorage};
use proto::object::{DiskUsage, NodeAddress, NodeInfo, Usage, feature};

use crate::{disk_space, driver::procs};

/// Identities that firmware makers forgot to set.
const NO_IDENTITY: [&str; 3] = [
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "03000200-0400-0500-0006-000700080009",
];

fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim_matches(['\0', '\n', ' ']).to_owned()
}

pub(super) fn info() -> NodeInfo {
    let architecture = std::env::consts::ARCH.to_owned();
    let hardware = vec![architecture.clone()];
    NodeInfo {
        features: feature::ALL.map(str::to_owned).into(),
        sealing_key: None,
        agent_version: proto::VERSION.into(),
        boot_id: procs::boot_id(),
        architecture,
        os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
        kernel: line("/proc/sys/kernel/osrelease"),
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes: memory_total_bytes(),
        hostname: line("/proc/sys/kernel/hostname"),
        addresses: addresses(),
        hardware,
        nvidia: None,
    }
}

pub(super) fn has_nvidia_driver() -> bool {
    Path::new("/proc/driver/nvidia/version").exists()
}

fn os_image(os_release: &str) -> String {
    let name = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    name.trim_matches(['"', '\'']).to_owned()
}

/// Every address of an interface that is up, loopback left out, in a steady order.
fn addresses() -> Vec<NodeAddress> {
    let all = getifaddrs().into_iter().flatten();
    let up =
        all.filter(|i| i.flags.contains(InterfaceFlags::IFF_UP) && !i.flags.contains(InterfaceFlags::IFF_LOOPBACK));
    let found: BTreeSet<(String, IpAddr)> = up.filter_map(|i| Some((i.interface_name, ip(&i.address?)?))).collect();
    found.into_iter().map(|(interface, address)| NodeAddress { interface, address: address.to_string() }).collect()
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

pub(super) fn machine_id() -> String {
    let good = |id: &String| !id.is_empty() && !NO_IDENTITY.contains(&id.as_str());
    ["/sys/class/dmi/id/product_uuid", "/proc/device-tree/serial-number", "/etc/machine-id"]
        .into_iter()
        .map(|path| line(path).to_lowercase())
        .find(good)
        .unwrap_or_else(|| format!("host-{}", line("/proc/sys/kernel/hostname")))
}

pub(super) fn usage(state_dir: &Path, cpu_permille: u32) -> Usage {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (total, available) = (meminfo_bytes(&meminfo, "MemTotal:"), meminfo_bytes(&meminfo, "MemAvailable:"));
    Usage {
        metrics: Default::default(), // workloads tell them, not the box
        uptime_s: first_number(&line("/proc/uptime")) as u64,
        cpu_permille,
        memory_used_bytes: total.saturating_sub(available),
        load1_centi: (first_number(&line("/proc/loadavg")) * 100.0) as u32,
        disks: disk(state_dir).into_iter().collect(),
        temperature_milli_c: temperature(),
        gpus: vec![],
    }
}

pub(super) fn memory_total_bytes() -> u64 {
    meminfo_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:")
}

pub(super) fn memory_available_bytes() -> Option<u64> {
    let available = meminfo_bytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:");
    (available > 0).then_some(available)
}

fn meminfo_bytes(meminfo: &str, key: &str) -> u64 {
    let value = meminfo.lines().find_map(|l| l.strip_prefix(key)?.split_whitespace().next()?.parse::<u64>().ok());
    value.unwrap_or(0).saturating_mul(1024)
}

fn first_number(text: &str) -> f64 {
    text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

fn disk(path: &Path) -> Option<DiskUsage> {
    let space = disk_space::at(path).ok()?;
    Some(DiskUsage { path: path.display().to_string(), total_bytes: space.total_bytes, free_bytes: space.free_bytes })
}

/// The hottest thermal zone.
fn temperature() -> Option<i32> {
    let zones = fs::read_dir("/sys/class/thermal").ok()?.flatten().map(|e| e.path());
    let zones = zones.filter(|p| p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"thermal_zone")));
    let read = |zone: PathBuf| fs::read_to_string(zone.join("temp")).ok()?.trim().parse::<i32>().ok();
    zones.filter_map(read).filter(|t| (-100_000..200_000).contains(t)).max()
}

/// Time of all processors since boot, in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CpuTimes {
    busy: u64,
    total: u64,
}

impl CpuTimes {
    pub(super) fn read() -> CpuTimes {
        CpuTimes::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(stat: &str) -> CpuTimes {
        let Some(line) = stat.lines().next().and_then(|l| l.strip_prefix("cpu ")) else { return CpuTimes::default() };
        // user nice system idle iowait irq softirq steal; what follows is part of user and nice
        let ticks: Vec<u64> = line.split_whitespace().take(8).filter_map(|t| t.parse().ok()).collect();
        let total = ticks.iter().sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        CpuTimes { busy: total - idle, total }
    }

    pub(super) fn busy_permille_since(self, before: CpuTimes) -> u32 {
        let total = self.total.saturating_sub(before.total);
        let busy = self.busy.saturating_sub(before.busy).min(total);
        (busy * 1000).checked_div(total).and_then(|p| u32::try_from(p).ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_the_kernel_writes_them() {
        let meminfo = "MemTotal:       24684340 kB\nMemFree:         1 kB\nMemAvailable:   24216000 kB\n";
        assert_eq!(meminfo_bytes(meminfo, "MemAvailable:"), 24_216_000 * 1024);
        assert_eq!(meminfo_bytes("garbage", "MemTotal:"), 0);
        let before = CpuTimes::parse("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 2 3\n");
        assert_eq!(before, CpuTimes { busy: 200, total: 1000 });
        let after = CpuTimes::parse("cpu  150 0 125 850 125 25 25 0 50 0\n");
        assert_eq!(after.busy_permille_since(before), 416);
        assert_eq!(before.busy_permille_since(after), 0);
        assert_eq!(CpuTimes::parse("").busy_permille_since(CpuTimes::default()), 0);
        assert_eq!(
            os_image("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_image(""), "Linux");
    }
}
