//! What a run does, as plain data: fleet, lines, releases, producers, what breaks when, and what must come out.
//!
//! A [`Plan`] is read from a scenario file ([`parse()`]) or drawn by the swarm, and then played on a world.

mod how;
mod lines;
mod parse;
mod rate;
mod table;
mod timeline;
mod write;
mod wrong;

use std::{collections::BTreeMap, fmt, time::Duration};

use edgecore::settings::{Settings, Streams};
use proto::{
    name::{Name, Version},
    release::{Gpus, Replicas, replicas::TOLERANCE},
    selector::Selector,
};

use crate::{
    fault::{Fault, Target},
    net::{Manners, Profile},
};

pub(crate) use self::wrong::nearest;
pub use self::{
    how::{How, Look, Steer},
    lines::named as line,
    parse::{MAX_NODES, parse},
    timeline::selects,
    write::write,
    wrong::PlanError,
};

/// Everything about a run but its seed.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Its name: that of the file.
    pub name: String,
    /// One line that says what happens.
    pub about: String,
    /// Faults end here at the latest; then everything is healed, and it must converge.
    pub duration: Duration,
    /// The boxes, by site.
    pub sites: Vec<Site>,
    /// The MQTT brokers, in the order in which they are tried.
    pub brokers: Vec<Broker>,
    /// What the release engineer has.
    pub releases: Vec<Release>,
    /// Who hands records in.
    pub producers: Vec<Producer>,
    /// What happens when.
    pub timeline: Vec<Entry>,
    /// What must come out.
    pub expect: Expect,
}

impl Plan {
    /// A fleet to which nothing happens, and which is to converge: what a plan is made from.
    pub(crate) fn quiet(duration: Duration, sites: Vec<Site>, converge_within: Duration) -> Plan {
        Plan {
            name: String::new(),
            about: String::new(),
            duration,
            sites,
            brokers: vec![],
            releases: vec![],
            producers: vec![],
            timeline: vec![],
            expect: Expect {
                converge_within,
                in_gaps: None,
                rollouts: BTreeMap::new(),
                touched: BTreeMap::new(),
                up_without_hub_within: None,
            },
        }
    }

    /// The boxes that a target means, site by site. The hub is none.
    pub fn nodes_of(&self, target: &Target) -> impl Iterator<Item = &Name> {
        self.sites.iter().flat_map(move |site| site.nodes.iter().filter(move |node| target.means(&site.name, node)))
    }
}

/// A site and its boxes.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// Its name.
    pub name: Name,
    /// Its boxes: `NAME-1`, `NAME-2` and on, or as they were named.
    pub nodes: Vec<Name>,
    /// Labels of each of them.
    pub labels: BTreeMap<String, String>,
    /// The lines of its boxes to the hub.
    pub line: Profile,
    /// Sections of `agent.toml` of its boxes, as text.
    pub settings: String,
    /// GPUs of each of them.
    pub gpus: u32,
}

impl Site {
    /// What its agents make of section `streams` of their settings. What they could not read, and would not start
    /// with, counts as the defaults here; in a plan that was read it is right.
    #[must_use]
    pub fn streams(&self) -> Streams {
        Settings::parse(&self.settings).map(|settings| settings.streams).unwrap_or_default()
    }
}

/// An MQTT broker that hub and boxes know, besides UDP.
#[derive(Debug, Clone, PartialEq)]
pub struct Broker {
    /// Its name, and that of its host.
    pub name: Name,
    /// The line between hub and broker. Boxes reach it over lines like those that they have to the hub.
    pub line: Profile,
    /// What it does to messages.
    pub manners: Manners,
}

/// A release that is built, signed and published before its first rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct Release {
    /// The app.
    pub app: Name,
    /// The version.
    pub version: Version,
    /// Number of files, of random content.
    pub files: u32,
    /// Bytes of all together.
    pub bytes: u64,
    /// Arguments of the workload, which tell [`crate::driver`] how it behaves.
    pub args: Vec<String>,
    /// GPUs that it needs.
    pub gpus: Option<Gpus>,
    /// The app whose files it uses.
    pub uses: Option<Name>,
    /// How many instances of it run on a box.
    pub scaling: Option<Scaling>,
    /// Whether it is meant to fail: then it may never be proved healthy, and what ran before must run in the end.
    pub bad: bool,
}

/// As many instances as what they tell asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scaling {
    /// By these rules.
    pub replicas: Replicas,
    /// What they tell of the metric, as long as no fault says otherwise.
    pub tells: u32,
}

impl Scaling {
    /// Whether so many instances are as many as this number asks for.
    #[must_use]
    pub fn is_met(&self, told: u32, instances: usize) -> bool {
        let Replicas { min, max, .. } = self.replicas;
        let asks = f64::from(told) / self.replicas.target.get();
        let exact = (asks.ceil() as usize).clamp(min.into(), max.into());
        let is_near = (asks / instances.max(1) as f64 - 1.0).abs() <= TOLERANCE;
        instances == exact || is_near && (usize::from(min)..=usize::from(max)).contains(&instances)
    }
}

/// A scanner, or some other source of records, on each box of the target.
#[derive(Debug, Clone, PartialEq)]
pub struct Producer {
    /// On which boxes.
    pub on: Target,
    /// Into which stream.
    pub stream: Name,
    /// Records a minute of one box, on average over a day, before peaks.
    pub per_minute: f64,
    /// How the rate goes with the time of day.
    pub curve: Curve,
    /// Times at which there is more.
    pub peaks: Vec<Peak>,
}

/// How a rate goes with the time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// Always the same.
    Flat,
    /// As a transfer center's: most around midnight, little at noon.
    Daily,
}

/// A while of more records.
#[derive(Debug, Clone, PartialEq)]
pub struct Peak {
    /// Time since the run began.
    pub at: Duration,
    /// How long.
    pub lasts: Duration,
    /// So many times the usual rate.
    pub times: f64,
}

/// One line of the timeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When.
    pub moment: Moment,
    /// At most this is added to the moment, drawn from the seed.
    pub jitter: Duration,
    /// Do it again after this time, so many times in all.
    pub repeat: Option<(Duration, u32)>,
    /// What.
    pub action: Action,
    /// Whether a run in which it never begins, or breaks nothing, may be good all the same.
    pub may_miss: bool,
    /// Where it stands in the file, 1-based; 0 when it was drawn.
    pub line: usize,
}

/// When something is done.
#[derive(Debug, Clone, PartialEq)]
pub enum Moment {
    /// Time since the run began.
    At(Duration),
    /// As soon as a box has received so many per cent of a release, in a while of its own.
    Downloaded {
        /// The box.
        node: Name,
        /// Of the bytes of the release that was rolled out last: 1 to 99.
        percent: u32,
    },
    /// As soon as an update of a box stands so.
    Phase {
        /// The box.
        node: Name,
        /// The app.
        app: Name,
        /// So.
        phase: proto::object::UpdatePhase,
    },
}

/// What is done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Something breaks; after a while it is healed. Without a while it lasts to the end, when all is healed.
    Break {
        /// What.
        fault: Fault,
        /// For how long.
        lasts: Option<Duration>,
    },
    /// A rollout begins; its release is published first.
    Rollout {
        /// The app.
        app: Name,
        /// The version.
        version: Version,
        /// To which nodes.
        to: Selector,
        /// How it goes about it.
        how: Box<How>,
    },
    /// Somebody does something to a rollout that began before.
    Steer {
        /// The app.
        app: Name,
        /// The version.
        version: Version,
        /// What.
        steer: Steer,
    },
    /// Something must be seen of a rollout, or the run has failed.
    See {
        /// The app.
        app: Name,
        /// The version.
        version: Version,
        /// What.
        look: Box<Look>,
    },
}

impl Action {
    /// The rollout that it is about.
    #[must_use]
    pub fn release(&self) -> Option<(&Name, &Version)> {
        match self {
            Action::Rollout { app, version, .. }
            | Action::Steer { app, version, .. }
            | Action::See { app, version, .. } => Some((app, version)),
            Action::Break { .. } => None,
        }
    }

    /// How long it lasts, where somebody said so.
    #[must_use]
    pub fn lasts(&self) -> Option<Duration> {
        if let Action::Break { lasts, .. } = self { *lasts } else { None }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Break { fault, .. } => fault.fmt(f),
            Action::Rollout { app, version, to, .. } => write!(f, "rollout {app}@{version} to {to}"),
            Action::Steer { app, version, steer } => write!(f, "{steer} {app}@{version}"),
            Action::See { app, version, .. } => write!(f, "see {app}@{version}"),
        }
    }
}

/// What must come out, besides the invariants.
#[derive(Debug, Clone, PartialEq)]
pub struct Expect {
    /// After healing, everything has converged within this.
    pub converge_within: Duration,
    /// Records that stand in gaps: exactly so many. Absent: any number, counted.
    pub in_gaps: Option<u64>,
    /// Phases of rollouts in the end, by `app@version`. Default: good ones Succeeded.
    pub rollouts: BTreeMap<String, proto::object::RolloutPhase>,
    /// A release ran on at most so many boxes, ever, by `app@version`.
    pub touched: BTreeMap<String, u32>,
    /// Workloads run this long after their agent's start without a hub. Absent: not asked.
    pub up_without_hub_within: Option<Duration>,
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
