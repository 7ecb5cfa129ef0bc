//! Memory and processor time of a process, from `/proc` (proc(5)).

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;

/// Memory of a process in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// `VmRSS`: all that is resident, shared pages included.
    pub rss_bytes: u64,
    /// `Private_Clean` and `Private_Dirty` of `smaps_rollup`: what would be free if it ended.
    pub private_bytes: u64,
}

/// Reads the memory of a process.
///
/// # Errors
/// When it is gone or the kernel does not say.
pub fn memory(pid: u32) -> anyhow::Result<Memory> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("read {file}"));
    let (status, rollup) = (read("status")?, read("smaps_rollup")?);
    let rss_bytes = kilobytes(&status, "VmRSS:").context("status has no VmRSS")?;
    let private: Option<u64> = ["Private_Clean:", "Private_Dirty:"].iter().map(|key| kilobytes(&rollup, key)).sum();
    Ok(Memory { rss_bytes, private_bytes: private.context("smaps_rollup has no Private lines")? })
}

/// `VmHWM`: the most that was ever resident, since the process began.
///
/// # Errors
/// When it is gone or the kernel does not say.
pub fn peak_rss(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("read status of {pid}"))?;
    kilobytes(&status, "VmHWM:").context("status has no VmHWM")
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Processor time that a process has used, in user mode and in the kernel.
///
/// # Errors
/// When it is gone.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("read stat of {pid}"))?;
    // The second field is the name in parentheses and may hold blanks; count from behind it.
    let (_, rest) = stat.rsplit_once(')').context("stat has no name")?;
    let ticks: Option<u64> = rest.split_whitespace().skip(11).take(2).map(|word| word.parse::<u64>().ok()).sum();
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_millis(ticks.context("stat is short")? * 1000 / per_second.max(1)))
}

/// Bytes that the loopback interface has carried, headers included.
///
/// # Errors
/// When the kernel does not say.
pub fn loopback_bytes() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/net/dev").context("read /proc/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("no loopback interface")?;
    line.split_whitespace().nth(8).and_then(|word| word.parse().ok()).context("/proc/net/dev is short")
}

/// Processes whose second argument is `word` and of whose arguments one begins with `folder`.
#[must_use]
pub fn find(word: &str, folder: &Path) -> Vec<u32> {
    let folder = folder.to_string_lossy().into_owned();
    let Ok(entries) = fs::read_dir("/proc") else { return vec![] };
    let matches = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        words.nth(1).is_some_and(|w| w == word) && words.any(|w| w.starts_with(&folder))
    };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(matches).collect()
}

/// Shared libraries that a program is linked to, as the dynamic loader lists them.
#[must_use]
pub fn shared_libraries(program: &Path) -> Vec<String> {
    let Ok(output) = std::process::Command::new("ldd").arg(program).output() else { return vec!["unknown".into()] };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(|l| l.rsplit('/').next().unwrap_or(l).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_time() {
        let pid = std::process::id();
        let memory = memory(pid).unwrap();
        // Two files, read one after the other: which figure is greater says nothing while tests run beside.
        assert!(memory.private_bytes > 0 && memory.rss_bytes > 0, "{memory:?}");
        assert!(peak_rss(pid).unwrap() > 0);
        cpu(pid).unwrap();
        loopback_bytes().unwrap();
    }
}
