//! `edgecore install`: the systemd unit.
//!
//! `KillMode=process`: stopping or upgrading the agent ends the agent alone. The shims, which sit in the
//! unit's own control group, stay there with their workloads, and the next agent finds them again.
//!
//! `Delegate=yes`: systemd enables all controllers from the root of the hierarchy on and leaves them so.
//! The workloads' groups, which lie beside the unit's and not below it ([`crate::driver::cgroup`]), need them.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
};

use proto::durable::{self, DurableError};

/// Name of the unit.
pub const UNIT: &str = "crossdock-edge.service";
const FOLDER: &str = "/etc/systemd/system";

/// The unit could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A path would be read differently by systemd.
    #[error("{} cannot be used in a systemd unit: move it to an absolute path of plain characters", .0.display())]
    Path(PathBuf),
    /// The file could not be written.
    #[error("{0}: run it as root, or see the unit with --print and install it by hand")]
    Write(#[from] DurableError),
    /// systemctl failed.
    #[error("systemctl {what} failed: {problem}")]
    Systemctl {
        /// What it was asked.
        what: String,
        /// What it said.
        problem: String,
    },
    /// Where this program lies is unknown.
    #[error("could not tell where this program lies: {0}")]
    Program(io::Error),
}

/// The text of the unit for the program `program` and the data folder `data_dir`.
///
/// # Errors
/// When a path holds characters that systemd would read differently.
pub fn text(program: &Path, data_dir: &Path) -> Result<String, InstallError> {
    let (program, data_dir) = (plain(program)?, plain(data_dir)?);
    Ok(format!(
        "[Unit]
Description=Crossdock edge agent
Wants=network-online.target
After=network-online.target local-fs.target
StartLimitIntervalSec=0

[Service]
ExecStart={program} run --data {data_dir}
Restart=always
RestartSec=2
# Workloads outlive the agent: their shims stay in this unit's control group.
KillMode=process
# Controllers stay enabled for the workloads' control groups, which lie below /crossdock.
Delegate=yes
LimitNOFILE=65536
# One heap for all threads: what those that have ended leave in theirs is half a megabyte. What is free at its end goes
# back to the box, a quarter of one.
Environment=MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=65536 MALLOC_TOP_PAD_=16384

[Install]
WantedBy=multi-user.target
"
    ))
}

fn plain(path: &Path) -> Result<&str, InstallError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    let text = path.to_str().filter(|text| text.starts_with('/') && text.chars().all(fits));
    text.ok_or_else(|| InstallError::Path(path.to_owned()))
}

/// Writes the unit, and starts it where systemd runs. Yields lines for people.
///
/// # Errors
/// What could not be done, and how to go on.
pub fn install(data_dir: &Path) -> Result<Vec<String>, InstallError> {
    let program = std::env::current_exe().map_err(InstallError::Program)?;
    let path = Path::new(FOLDER).join(UNIT);
    durable::write(&path, text(&program, data_dir)?.as_bytes(), 0o644)?;
    let mut said = vec![format!("wrote {}", path.display())];
    if Path::new("/run/systemd/system").is_dir() {
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--now", UNIT])?;
        said.push(format!("{UNIT} is enabled and started"));
    } else {
        said.push(format!("systemd does not run here; where it does: systemctl enable --now {UNIT}"));
    }
    Ok(said)
}

fn systemctl(args: &[&str]) -> Result<(), InstallError> {
    let failed = |problem: String| InstallError::Systemctl { what: args.join(" "), problem };
    let output = Command::new("systemctl").args(args).output().map_err(|e| failed(e.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_leaves_workloads_running() {
        let text = text(Path::new("/usr/bin/edgecore"), Path::new("/var/lib/crossdock")).unwrap();
        for line in ["KillMode=process", "Delegate=yes", "Restart=always"] {
            assert!(text.lines().any(|l| l == line), "{line}");
        }
        assert!(text.contains("ExecStart=/usr/bin/edgecore run --data /var/lib/crossdock\n"));
    }

    #[test]
    fn a_path_that_systemd_would_split_or_expand_is_refused() {
        for bad in ["/var/lib/cross dock", "/a%n", "/a\nExecStart=/x", "relative", "/a$b"] {
            assert!(text(Path::new("/usr/bin/edgecore"), Path::new(bad)).is_err(), "{bad:?}");
        }
    }
}
