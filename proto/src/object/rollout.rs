//! Kind `Rollout`: takes a release to nodes in waves, each of which must prove it before the next begins.
//!
//! | module | what it holds |
//! |---|---|
//! | here | what somebody wants: waves, gate, budget, windows, and the wishes of people meanwhile |
//! | `status` | what is: waves with their evidence, nodes each with its one exact state |

mod status;

use std::{collections::BTreeSet, fmt, str::FromStr};

use jiff::civil::{Time, Weekday};
use serde::{Deserialize, Serialize};

pub use self::status::{
    Leaving, RolloutCounts, RolloutNode, RolloutPhase, RolloutStatus, SitePlacement, WaveCounts, WavePhase, WaveStatus,
    reason,
};
use super::Object;
use crate::{
    name::{MetricName, Name, ReleaseName, Version},
    selector::Selector,
    units::Span,
};

kind!(Rollout, RolloutSpec, RolloutStatus, "rollouts");

data! {
    /// Takes a release of an app to the nodes that a selector names; or, without a version, starts the app
    /// there again, or restarts the nodes. All but `control` is fixed when it is created.
    pub struct RolloutSpec {
        /// The app.
        pub app: Name,
        /// The version; absent: what runs is started again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub version: Option<Version>,
        /// The nodes themselves are restarted; `app` is `node` then, and there is no version.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub reboot: bool,
        /// Which nodes.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        pub selector: Selector,
        /// Which of them get it. Absent: all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub placement: Option<Placement>,
        /// Named way to go about it, such as `canary`: fills in what is absent below. Absent: the fleet's default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub strategy: Option<String>,
        /// In this order, each after the one before passed its gate. Empty: all nodes at once.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub waves: Vec<Wave>,
        /// What counts as evidence.
        #[serde(default)]
        pub gate: Gate,
        /// How many nodes may be unavailable at once; absent is no bound.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub budget: Option<Budget>,
        /// When nodes may download and when they may apply.
        #[serde(default, skip_serializing_if = "Windows::is_default")]
        pub windows: Windows,
        /// Nodes of a wave begin spread over this time.
        #[serde(default, skip_serializing_if = "is_none")]
        pub jitter: Span,
        /// How long a workload may put an update off in all. Absent: it may not.
        #[serde(default, skip_serializing_if = "is_none")]
        pub max_deferral: Span,
        /// What follows when a wave fails.
        #[serde(default)]
        pub on_failure: OnFailure,
        /// Version that nodes go to when the rollout is rolled back. Its release counter must be above that of
        /// `version`, for nodes accept no lower one: publish it again first (`crossdock release reissue`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub rollback_to: Option<Version>,
        /// Rollout that this one takes back: its nodes are those that it touched.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub undoes: Option<String>,
        /// What people wish of it meanwhile. The one part that may change.
        #[serde(default)]
        pub control: Control,
    }

    /// The hub chooses among the selected nodes, and who has the app keeps it.
    #[derive(Eq, Copy)]
    pub struct Placement {
        /// So many nodes of each site get it; at least 1.
        pub per_site: u32,
    }

    /// Some of a rollout's nodes, which go together. At most one of `count`, `percent` and `sites`; without any,
    /// all that `selector` names. The last wave takes whatever is left.
    #[derive(Default)]
    pub struct Wave {
        /// For people; absent: its number, from 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub name: Option<String>,
        /// Only these of the rollout's nodes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        pub selector: Option<Selector>,
        /// So many nodes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub count: Option<u32>,
        /// Until so many of a hundred of all nodes of the rollout had their turn, rounded up; 1 to 100.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub percent: Option<u32>,
        /// All nodes of so many sites.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub sites: Option<u32>,
        /// How long the wave must stay healthy after its nodes had their turn, before it has passed.
        #[serde(default, skip_serializing_if = "is_none")]
        pub soak: Span,
        /// Whether somebody must approve it before it begins.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub approval: bool,
    }

    /// When a wave has passed, has failed, or says nothing. Nodes that are not heard from are no evidence.
    pub struct Gate {
        /// Failed nodes that a wave may have.
        #[serde(default, skip_serializing_if = "is_zero")]
        pub max_failures: u32,
        /// Failed nodes that a wave may have, of a hundred that were decided, once `minSample` are. Goes beyond
        /// `maxFailures`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_failure_percent: Option<u32>,
        /// Healthy nodes that a wave must have, of a hundred of its nodes, those left out that are not heard from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub min_success_percent: Option<u32>,
        /// Decided nodes without which a wave says nothing. A wave of fewer nodes needs all of them.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        pub min_sample: u32,
        /// How long a wave that says nothing is waited for, before the rollout pauses.
        #[serde(default = "hour")]
        pub inconclusive_after: Span,
        /// Rules on what the workload tells of itself: a node that breaks one has failed, and one that has told too
        /// little proves nothing yet.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub metrics: Vec<MetricRule>,
    }

    /// A rule on a metric that the workload of a release tells of itself. At least one bound; all of them must hold.
    /// Judged is the mean of the newest samples since the workload became healthy.
    pub struct MetricRule {
        /// The metric, such as `frames_per_second`.
        pub name: MetricName,
        /// Its mean is at least this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub min: Option<f64>,
        /// Its mean is at most this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max: Option<f64>,
        /// Its mean is at least so many of a hundred of what the release before told on the same node. Says nothing
        /// where none ran; a wave in which no node can be compared is inconclusive.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub min_percent_of_before: Option<u32>,
        /// The same, at most.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_percent_of_before: Option<u32>,
        /// Samples without which it says nothing, of either release; 1 to 600.
        #[serde(default = "ten", skip_serializing_if = "is_ten")]
        pub min_samples: u32,
    }

    /// How many nodes may be unavailable at once. Nodes that are down already count.
    pub struct Budget {
        /// In each group.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        pub max_unavailable: Share,
        /// What makes a group: `site`, `fleet`, or the key of a label.
        #[serde(default = "site")]
        pub per: String,
    }

    /// Times of the week; an empty list is always.
    #[derive(Default)]
    pub struct Windows {
        /// When nodes may begin to download.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub download: Vec<Window>,
        /// When nodes may begin to apply. What has begun may finish.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub apply: Vec<Window>,
        /// IANA time zone for sites that name none. Default: UTC.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub time_zone: Option<String>,
    }

    /// A time of day, over midnight when `to` is not after `from`.
    #[derive(Eq)]
    pub struct Window {
        /// Days on which it begins; empty: every day.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        pub days: BTreeSet<Day>,
        /// `HH:MM`, included.
        pub from: DayTime,
        /// `HH:MM`, not included.
        pub to: DayTime,
    }

    /// What people wish of a rollout while it goes on.
    #[derive(Default)]
    pub struct Control {
        /// Nothing more begins; what has begun finishes.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub paused: bool,
        /// It ends: nodes that have not begun to apply stay with what they have. Never taken back.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub aborted: bool,
        /// Names of the waves that were approved.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        pub approved: BTreeSet<String>,
        /// How often it was resumed: a resumed wave that failed or said nothing is judged anew.
        #[serde(default, skip_serializing_if = "is_zero")]
        pub resumed: u32,
        /// How often failed nodes were told to try once more.
        #[serde(default, skip_serializing_if = "is_zero")]
        pub retries: u32,
    }
}

words! {
    /// What follows when a wave fails.
    #[derive(Default)]
    pub enum OnFailure {
        /// It ends as failed; what nodes have stays.
        Stop,
        /// Nodes that it touched go to `rollbackTo`.
        RollBack,
        /// Nothing more begins until somebody resumes or aborts it; or the word is newer than this program.
        #[default]
        #[serde(other)]
        Pause,
    }

    /// A day of the week.
    pub enum Day {
        /// Monday.
        Mon,
        /// Tuesday.
        Tue,
        /// Wednesday.
        Wed,
        /// Thursday.
        Thu,
        /// Friday.
        Fri,
        /// Saturday.
        Sat,
        /// Sunday.
        Sun,
    }
}

fn is_none(span: &Span) -> bool {
    *span == Span::default()
}
fn is_zero(number: &u32) -> bool {
    *number == 0
}
fn is_one(number: &u32) -> bool {
    *number == 1
}
fn one() -> u32 {
    1
}
fn ten() -> u32 {
    10
}
fn is_ten(number: &u32) -> bool {
    *number == 10
}
fn hour() -> Span {
    Span::from_secs(3600)
}
fn site() -> String {
    Budget::SITE.into()
}

impl Default for Gate {
    fn default() -> Gate {
        Gate {
            max_failures: 0,
            max_failure_percent: None,
            min_success_percent: None,
            min_sample: one(),
            inconclusive_after: hour(),
            metrics: vec![],
        }
    }
}

impl MetricRule {
    /// A rule without a bound yet.
    #[must_use]
    pub fn new(name: MetricName) -> MetricRule {
        MetricRule {
            name,
            min: None,
            max: None,
            min_percent_of_before: None,
            max_percent_of_before: None,
            min_samples: ten(),
        }
    }

    /// Whether it compares with the release before.
    #[must_use]
    pub fn compares(&self) -> bool {
        self.min_percent_of_before.is_some() || self.max_percent_of_before.is_some()
    }
}

/// The rule in words: `frames_per_second at least 20, at least 90 % of before`.
impl fmt::Display for MetricRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds = [
            self.min.map(|min| format!("at least {min}")),
            self.max.map(|max| format!("at most {max}")),
            self.min_percent_of_before.map(|min| format!("at least {min} % of before")),
            self.max_percent_of_before.map(|max| format!("at most {max} % of before")),
        ];
        write!(f, "{} {}", self.name, bounds.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

impl Budget {
    /// [`Budget::per`]: a group is a site.
    pub const SITE: &str = "site";
    /// [`Budget::per`]: the one group is the fleet.
    pub const FLEET: &str = "fleet";
}

impl Windows {
    fn is_default(&self) -> bool {
        *self == Windows::default()
    }
}

impl RolloutSpec {
    /// A rollout of a release to all that `selector` names at once, as plain as it can be.
    #[must_use]
    pub fn new(release: ReleaseName, selector: Selector) -> RolloutSpec {
        RolloutSpec { version: Some(release.version), ..RolloutSpec::restart(release.app, selector) }
    }

    /// Starts an app again wherever `selector` names a node that has it.
    #[must_use]
    pub fn restart(app: Name, selector: Selector) -> RolloutSpec {
        RolloutSpec {
            app,
            version: None,
            reboot: false,
            selector,
            placement: None,
            strategy: None,
            waves: vec![],
            gate: Gate::default(),
            budget: None,
            windows: Windows::default(),
            jitter: Span::default(),
            max_deferral: Span::default(),
            on_failure: OnFailure::default(),
            rollback_to: None,
            undoes: None,
            control: Control::default(),
        }
    }

    /// Restarts the nodes that `selector` names.
    #[must_use]
    pub fn reboot(selector: Selector) -> RolloutSpec {
        RolloutSpec { reboot: true, ..RolloutSpec::restart(Name::node(), selector) }
    }

    /// The release it rolls out; `None` when it starts again what runs.
    #[must_use]
    pub fn release(&self) -> Option<ReleaseName> {
        Some(ReleaseName { app: self.app.clone(), version: self.version.clone()? })
    }

    /// What it does, for people: `scan-counter@2.0.0`, `restart of scan-counter` or `restart of nodes`.
    #[must_use]
    pub fn what(&self) -> String {
        match self.release() {
            Some(release) => release.to_string(),
            None if self.reboot => "restart of nodes".into(),
            None => format!("restart of {}", self.app),
        }
    }

    /// The name of its wave `index`.
    #[must_use]
    pub fn wave_name(&self, index: usize) -> String {
        let named = self.waves.get(index).and_then(|wave| wave.name.clone());
        named.unwrap_or_else(|| (index + 1).to_string())
    }
}

impl Object<RolloutSpec> {
    /// The release it rolls out; `None` when it starts again what runs.
    #[must_use]
    pub fn release(&self) -> Option<ReleaseName> {
        self.spec.release()
    }
}

/// A number of nodes, or so many of a hundred, as Kubernetes writes `maxUnavailable`: `2` or `"10%"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NumberOrText", into = "NumberOrText")]
pub enum Share {
    /// So many.
    Count(u32),
    /// So many of a hundred, rounded down, at least one.
    Percent(u32),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u32),
    Text(String),
}

impl Share {
    /// How many of `all` that is.
    #[must_use]
    pub fn of(self, all: usize) -> usize {
        match self {
            Share::Count(count) => count as usize,
            Share::Percent(0) => 0,
            Share::Percent(percent) => (all * percent as usize / 100).max(1),
        }
    }
}

impl FromStr for Share {
    type Err = String;
    fn from_str(text: &str) -> Result<Share, String> {
        let wrong = || format!("{:?} is no number of nodes: write 2 or 10%", text.chars().take(40).collect::<String>());
        match text.trim().strip_suffix('%') {
            Some(percent) => {
                let percent = percent.parse().map_err(|_| wrong())?;
                if percent > 100 { Err(format!("{percent}% is more than all")) } else { Ok(Share::Percent(percent)) }
            }
            None => text.trim().parse().map(Share::Count).map_err(|_| wrong()),
        }
    }
}

impl TryFrom<NumberOrText> for Share {
    type Error = String;
    fn try_from(written: NumberOrText) -> Result<Share, String> {
        match written {
            NumberOrText::Number(count) => Ok(Share::Count(count)),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl From<Share> for NumberOrText {
    fn from(share: Share) -> NumberOrText {
        match share {
            Share::Count(count) => NumberOrText::Number(count),
            Share::Percent(_) => NumberOrText::Text(share.to_string()),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Share::Count(count) => write!(f, "{count}"),
            Share::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Day {
    /// As the calendar has it.
    #[must_use]
    pub fn weekday(self) -> Weekday {
        match self {
            Day::Mon => Weekday::Monday,
            Day::Tue => Weekday::Tuesday,
            Day::Wed => Weekday::Wednesday,
            Day::Thu => Weekday::Thursday,
            Day::Fri => Weekday::Friday,
            Day::Sat => Weekday::Saturday,
            Day::Sun => Weekday::Sunday,
        }
    }
}

/// A time of day, to the minute: `22:00`. `24:00` is the end of the day, written `00:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct DayTime(Time);

impl DayTime {
    /// As the calendar has it.
    #[must_use]
    pub fn time(self) -> Time {
        self.0
    }
}

impl FromStr for DayTime {
    type Err = String;
    fn from_str(text: &str) -> Result<DayTime, String> {
        let parsed = text.split_once(':').and_then(|(hour, minute)| {
            let digits = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
            let number = |part: &str| digits(part).then(|| part.parse::<i8>().ok()).flatten();
            match (number(hour)?, number(minute)?) {
                (24, 0) => Time::new(0, 0, 0, 0).ok(),
                (hour, minute) => Time::new(hour, minute, 0, 0).ok(),
            }
        });
        let shown: String = text.chars().take(40).collect();
        parsed.map(DayTime).ok_or_else(|| format!("{shown:?} is no time of day: write HH:MM, such as 22:00"))
    }
}

impl TryFrom<String> for DayTime {
    type Error = String;
    fn try_from(text: String) -> Result<DayTime, String> {
        text.parse()
    }
}

impl From<DayTime> for String {
    fn from(time: DayTime) -> String {
        time.to_string()
    }
}

impl fmt::Display for DayTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0.hour(), self.0.minute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_of_the_first_version_is_read_as_it_was_meant() {
        let spec: RolloutSpec =
            serde_json::from_str(r#"{"app": "web", "version": "1", "selector": "all", "future": {}}"#).unwrap();
        let release = ReleaseName { app: "web".parse().unwrap(), version: "1".parse().unwrap() };
        assert_eq!(spec, RolloutSpec::new(release, Selector::all()));
    }

    #[test]
    fn shares_and_times_are_written_as_they_are_read() {
        for (text, all, is) in [("2", 10, 2), ("0", 10, 0), ("10%", 100, 10), ("10%", 3, 1), ("0%", 100, 0)] {
            let share: Share = text.parse().unwrap();
            assert_eq!((share.to_string(), share.of(all)), (text.to_owned(), is));
            assert_eq!(serde_json::from_value::<Share>(serde_json::to_value(share).unwrap()).unwrap(), share);
        }
        for bad in ["", "-1", "101%", "ten", "1.5"] {
            assert!(bad.parse::<Share>().is_err(), "{bad}");
        }
        for (text, is) in [("22:00", "22:00"), ("00:00", "00:00"), ("24:00", "00:00")] {
            assert_eq!(text.parse::<DayTime>().unwrap().to_string(), is);
        }
        for bad in ["", "7:00", "25:00", "12:60", "12", "24:01", "+1:00"] {
            assert!(bad.parse::<DayTime>().is_err(), "{bad}");
        }
    }
}
