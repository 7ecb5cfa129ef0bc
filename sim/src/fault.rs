//! What can be broken on purpose, and whom it strikes: the vocabulary of scenarios, swarm, oracle and report.
//!
//! The world breaks it and mends it, and counts how often it really struck: a fault that never fired proves
//! nothing.

use std::{fmt, str::FromStr, time::Duration};

use proto::name::Name;
use serde::{Deserialize, Serialize};

use crate::net::Profile;

/// Whom a fault strikes. Written `all`, `hub`, `site hz-01` or `node box-1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// Every box; not the hub.
    All,
    /// The hub.
    Hub,
    /// Every box of a site.
    Site(Name),
    /// One box.
    Node(Name),
}

impl Target {
    /// Whether it means a box of a site.
    #[must_use]
    pub fn means(&self, site: &Name, node: &Name) -> bool {
        match self {
            Target::All => true,
            Target::Hub => false,
            Target::Site(name) => name == site,
            Target::Node(name) => name == node,
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let name = |name: &str| name.trim().parse::<Name>().map_err(|e| e.to_string());
        match text.split_once(' ') {
            None if text == "all" => Ok(Target::All),
            None if text == "hub" => Ok(Target::Hub),
            Some(("site", site)) => Ok(Target::Site(name(site)?)),
            Some(("node", node)) => Ok(Target::Node(name(node)?)),
            _ => Err(format!("{text:?} is nobody: write \"all\", \"hub\", \"site NAME\" or \"node NAME\"")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::All => f.write_str("all"),
            Target::Hub => f.write_str("hub"),
            Target::Site(site) => write!(f, "site {site}"),
            Target::Node(node) => write!(f, "node {node}"),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Target, String> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> String {
        target.to_string()
    }
}

/// Which direction of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Both.
    Both,
    /// From the box to the hub.
    Up,
    /// From the hub to the box.
    Down,
}

/// Where a bit flips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spot {
    /// A batch that waits in the outbox.
    Outbox,
    /// One copy of a state file (assignment, trust, slot).
    State,
    /// A file of a release that is staged or runs.
    Artifact,
}

/// What is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing passes the line between a box and the hub.
    Cut {
        /// Whose line.
        target: Target,
        /// Which direction.
        way: Way,
    },
    /// The line behaves so.
    Line {
        /// Whose line.
        target: Target,
        /// How, and the name of it.
        profile: Profile,
        /// Its name.
        name: String,
    },
    /// A firewall lets no UDP out; other carriers would pass.
    BlockUdp {
        /// Whose line.
        target: Target,
    },
    /// The NAT in front of a box gives it another address and port.
    Rebind {
        /// Whose NAT.
        target: Target,
    },
    /// `kill -9` of the agent. Its workloads run on. Healed by a start.
    CrashAgent {
        /// Whose agent.
        target: Target,
    },
    /// `kill -9` of the hub. Healed by a start.
    CrashHub,
    /// The box is off, with everything on it; what was written stays. Healed by turning it on.
    Reboot {
        /// Which box.
        target: Target,
    },
    /// The power goes: what was not synced may be lost, whole or in parts. Healed by turning it on.
    PowerCut {
        /// Which box, or the hub.
        target: Target,
    },
    /// The disk is replaced by an empty one and the box joins again with a new token of its site. At once.
    Reinstall {
        /// Which box.
        target: Target,
    },
    /// The wall clock is wrong.
    Clock {
        /// Whose.
        target: Target,
        /// By so much; positive runs ahead.
        offset_ms: i64,
    },
    /// The disk takes no more.
    DiskFull {
        /// Whose.
        target: Target,
    },
    /// The first GPU falls off the bus: what uses it ends.
    GpuLost {
        /// Of which box.
        target: Target,
    },
    /// The first GPU has memory errors that could not be corrected; what uses it goes on.
    GpuSick {
        /// Of which box.
        target: Target,
    },
    /// Instances tell so much of what their replicas follow.
    Backlog {
        /// Of which box.
        target: Target,
        /// How much.
        count: u32,
    },
    /// A bit flips at rest. At once; not healed by the world.
    FlipBit {
        /// On whose disk.
        target: Target,
        /// Where.
        spot: Spot,
    },
    /// An MQTT broker is down: who was connected is not any more, what it held is lost. Healed by a start.
    BrokerDown {
        /// Its name.
        broker: Name,
    },
    /// The hub's sink refuses every commit.
    SinkDown,
    /// The hub comes back from a backup that was made so long before. At once.
    RestoreHub {
        /// Age of the backup.
        age: Duration,
    },
}

/// The pattern of the faults that say whom they strike: the one list of them.
macro_rules! aimed {
    ($target:ident) => {
        Fault::Cut { $target, .. }
            | Fault::Line { $target, .. }
            | Fault::BlockUdp { $target }
            | Fault::Rebind { $target }
            | Fault::CrashAgent { $target }
            | Fault::Reboot { $target }
            | Fault::PowerCut { $target }
            | Fault::Reinstall { $target }
            | Fault::Clock { $target, .. }
            | Fault::DiskFull { $target }
            | Fault::GpuLost { $target }
            | Fault::GpuSick { $target }
            | Fault::Backlog { $target, .. }
            | Fault::FlipBit { $target, .. }
    };
}

impl Fault {
    /// The word for it: the key in a scenario file, and under which it is counted.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::Cut { way: Way::Both, .. } => "cut",
            Fault::Cut { way: Way::Up, .. } => "cut-up",
            Fault::Cut { way: Way::Down, .. } => "cut-down",
            Fault::Line { .. } => "line",
            Fault::BlockUdp { .. } => "block-udp",
            Fault::Rebind { .. } => "rebind",
            Fault::CrashAgent { .. } => "crash-agent",
            Fault::CrashHub => "crash-hub",
            Fault::Reboot { .. } => "reboot",
            Fault::PowerCut { .. } => "power-cut",
            Fault::Reinstall { .. } => "reinstall",
            Fault::Clock { .. } => "clock",
            Fault::DiskFull { .. } => "disk-full",
            Fault::GpuLost { .. } => "gpu-lost",
            Fault::GpuSick { .. } => "gpu-sick",
            Fault::Backlog { .. } => "backlog",
            Fault::FlipBit { .. } => "flip-bit",
            Fault::BrokerDown { .. } => "broker-down",
            Fault::SinkDown => "sink-down",
            Fault::RestoreHub { .. } => "restore-hub",
        }
    }

    /// Whom it strikes.
    #[must_use]
    pub fn target(&self) -> &Target {
        match self {
            aimed!(target) => target,
            Fault::CrashHub | Fault::SinkDown | Fault::RestoreHub { .. } | Fault::BrokerDown { .. } => &Target::Hub,
        }
    }

    /// Whom it strikes, to aim it at somebody else; nothing where it can strike the hub alone.
    pub fn target_mut(&mut self) -> Option<&mut Target> {
        match self {
            aimed!(target) => Some(target),
            Fault::CrashHub | Fault::SinkDown | Fault::RestoreHub { .. } | Fault::BrokerDown { .. } => None,
        }
    }

    /// Whether it is over as soon as it has struck, with nothing to heal.
    #[must_use]
    pub fn at_once(&self) -> bool {
        matches!(
            self,
            Fault::Rebind { .. } | Fault::Reinstall { .. } | Fault::FlipBit { .. } | Fault::RestoreHub { .. }
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Fault::BrokerDown { broker } = self {
            return write!(f, "{} {broker}", self.kind());
        }
        write!(f, "{} {}", self.kind(), self.target())?;
        match self {
            Fault::Line { name, .. } => write!(f, " {name}"),
            Fault::Clock { offset_ms, .. } => write!(f, " {:+.3} s", *offset_ms as f64 / 1e3),
            Fault::Backlog { count, .. } => write!(f, " of {count}"),
            Fault::FlipBit { spot, .. } => write!(f, " in {spot:?}"),
            Fault::RestoreHub { age } => write!(f, " of {age:?} ago"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_they_are_written() {
        for text in ["all", "hub", "site hz-01", "node box-1"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in ["", "everybody", "site", "node ../x", "box-1"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
