//! How a rollout goes about it, and what people do to it meanwhile, as a scenario file says it.

use std::{fmt, time::Duration};

use proto::{
    name::{Name, ReleaseName, Version},
    object::{
        RolloutPhase, RolloutSpec,
        rollout::{Budget, OnFailure, Share, Wave, Window},
    },
    selector::Selector,
    units::Span,
};

use super::{
    Plan,
    table::{Table, Value, one_of, parsed, span, text, truth, unlike, whole},
    wrong::Wrong,
};

/// Fields of a rollout, with an example of each.
pub(super) const FIELDS: &[(&str, &str)] = &[
    ("to", "\"all\""),
    ("strategy", "\"canary\""),
    ("waves", "[\"1\", \"10%\", \"all\"]"),
    ("soak", "\"10m\""),
    ("approval", "true"),
    ("max-failures", "1"),
    ("max-unavailable", "\"1\""),
    ("per", "\"site\""),
    ("on-failure", "\"roll-back\""),
    ("rollback-to", "\"1.0.0\""),
    ("apply-window", "\"01:00-04:00\""),
    ("download-window", "\"20:00-06:00\""),
    ("spread", "\"5m\""),
];
/// Fields of a look at a rollout, likewise.
pub(super) const SEEN: &[(&str, &str)] = &[
    ("phase", "\"Paused\""),
    ("reason", "\"GateFailed\""),
    ("node", "\"hz-01-1\""),
    ("waits", "\"Budget\""),
    ("healthy", "3"),
];
const STRATEGIES: &[(&str, &str)] = &[("canary", "canary"), ("by-site", "by-site"), ("all-at-once", "all-at-once")];
const ON_FAILURE: &[(&str, OnFailure)] =
    &[("pause", OnFailure::Pause), ("stop", OnFailure::Stop), ("roll-back", OnFailure::RollBack)];
/// Most waves of a rollout, and most windows.
const MAX_LIST: usize = 100;

/// How a rollout goes about it. Nothing said: all at once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct How {
    /// A named way.
    pub strategy: Option<String>,
    /// Waves; empty: the strategy's.
    pub waves: Vec<Wave>,
    /// Each wave but the last must stay healthy for so long.
    pub soak: Duration,
    /// Each wave but the first is approved by somebody.
    pub approval: bool,
    /// Failed nodes that a wave may have.
    pub max_failures: u32,
    /// Nodes that may be unavailable at once.
    pub budget: Option<Budget>,
    /// What follows when a wave fails.
    pub on_failure: OnFailure,
    /// Where nodes go then. It is published again for that, above the release itself.
    pub rollback_to: Option<Version>,
    /// When nodes may apply.
    pub apply: Vec<Window>,
    /// When nodes may download.
    pub download: Vec<Window>,
    /// Nodes of a wave begin spread over this time.
    pub spread: Duration,
}

impl How {
    /// What the operator asks the hub for.
    #[must_use]
    pub fn spec(&self, app: &Name, version: &Version, to: &Selector) -> RolloutSpec {
        let release = ReleaseName { app: app.clone(), version: version.clone() };
        let mut spec = RolloutSpec::new(release, to.clone());
        spec.strategy = Some(self.strategy.clone().unwrap_or_else(|| "all-at-once".into()));
        spec.waves.clone_from(&self.waves);
        let last = spec.waves.len().saturating_sub(1);
        for (index, wave) in spec.waves.iter_mut().enumerate() {
            wave.approval = self.approval && index > 0;
            if index < last {
                wave.soak = millis(self.soak);
            }
        }
        spec.gate.max_failures = self.max_failures;
        spec.budget.clone_from(&self.budget);
        spec.on_failure = self.on_failure;
        spec.rollback_to.clone_from(&self.rollback_to);
        spec.windows.apply.clone_from(&self.apply);
        spec.windows.download.clone_from(&self.download);
        spec.jitter = millis(self.spread);
        spec
    }

    /// Whether it is more than all at once.
    #[must_use]
    pub fn in_waves(&self) -> bool {
        self.waves.len() > 1 || self.strategy.as_deref().is_some_and(|strategy| strategy != "all-at-once")
    }

    pub(super) fn read(table: &Table<'_>, app: &Name, plan: &Plan) -> Result<How, Wrong> {
        let strategy = table.read("strategy", |_, value| {
            one_of("strategy", text("strategy", value)?, value, STRATEGIES).map(str::to_owned)
        })?;
        let waves = table.read("waves", |field, value| list(field, value, wave))?.unwrap_or_default();
        for field in ["soak", "approval"] {
            if waves.is_empty() && table.get(field).is_some() {
                return Err(Wrong::new(table.key_at(field), format!("{field:?} without \"waves\""))
                    .hint("write waves = [\"1\", \"10%\", \"all\"]"));
            }
        }
        let per = table.read("per", parsed::<String>)?;
        let most = table.read("max-unavailable", parsed::<Share>)?;
        if per.is_some() && most.is_none() {
            return Err(Wrong::new(table.key_at("per"), "\"per\" without \"max-unavailable\"")
                .hint("write max-unavailable = \"1\""));
        }
        let per = per.unwrap_or_else(|| Budget::SITE.into());
        let rollback_to = table.read("rollback-to", |_, value| version(value, app, plan))?;
        let on_failure =
            table.read("on-failure", |field, value| one_of(field, text(field, value)?, value, ON_FAILURE))?;
        if on_failure == Some(OnFailure::RollBack) && rollback_to.is_none() {
            let problem = "\"roll-back\" without \"rollback-to\"";
            return Err(Wrong::new(table.key_at("on-failure"), problem).hint("write rollback-to = \"1.0.0\""));
        }
        Ok(How {
            strategy,
            waves,
            soak: table.read("soak", span)?.unwrap_or_default(),
            approval: table.read("approval", truth)?.unwrap_or(false),
            max_failures: table.read("max-failures", |field, value| whole(field, value, (0, 20_000)))?.unwrap_or(0),
            budget: most.map(|max_unavailable| Budget { max_unavailable, per }),
            on_failure: on_failure.unwrap_or_default(),
            rollback_to,
            apply: table.read("apply-window", windows)?.unwrap_or_default(),
            download: table.read("download-window", windows)?.unwrap_or_default(),
            spread: table.read("spread", span)?.unwrap_or_default(),
        })
    }

    /// The fields that say so, each with its value as TOML.
    pub(super) fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![];
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let all = |texts: Vec<String>| toml::Value::Array(texts.into_iter().map(toml::Value::String).collect());
        let mut put = |field, is_so: bool, value: String| {
            if is_so {
                fields.push((field, value));
            }
        };
        put("strategy", self.strategy.is_some(), quoted(self.strategy.as_deref().unwrap_or_default()));
        put("waves", !self.waves.is_empty(), all(self.waves.iter().map(wave_text).collect()).to_string());
        put("soak", !self.soak.is_zero(), quoted(&millis(self.soak).to_string()));
        put("approval", self.approval, "true".into());
        put("max-failures", self.max_failures > 0, self.max_failures.to_string());
        if let Some(budget) = &self.budget {
            put("max-unavailable", true, quoted(&budget.max_unavailable.to_string()));
            put("per", true, quoted(&budget.per));
        }
        let word = ON_FAILURE.iter().find(|(_, on)| *on == self.on_failure).map_or("pause", |(word, _)| *word);
        put("on-failure", self.on_failure != OnFailure::default(), quoted(word));
        put("rollback-to", self.rollback_to.is_some(), quoted(self.rollback_to.as_ref().map_or("", |v| v.as_ref())));
        for (field, windows) in [("apply-window", &self.apply), ("download-window", &self.download)] {
            put(field, !windows.is_empty(), all(windows.iter().map(window_text).collect()).to_string());
        }
        put("spread", !self.spread.is_zero(), quoted(&millis(self.spread).to_string()));
        fields
    }
}

fn millis(time: Duration) -> Span {
    Span::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// A list of texts.
fn list<T>(
    field: &'static str,
    value: Value<'_>,
    read: impl Fn(&'static str, Value<'_>) -> Result<T, Wrong>,
) -> Result<Vec<T>, Wrong> {
    let items = value.get_ref().as_array().ok_or_else(|| unlike(value, field, "a list of texts"))?;
    if items.is_empty() || items.len() > MAX_LIST {
        let problem = format!("{field} has {} entries", items.len());
        return Err(Wrong::new(value.span(), problem).hint(format!("write 1 to {MAX_LIST}, or leave it out")));
    }
    items.iter().map(|item| read(field, item)).collect()
}

/// One wave: `3`, `10%`, `all`, or a selector, as `crossdock rollout start --waves` has it.
fn wave(field: &'static str, value: Value<'_>) -> Result<Wave, Wrong> {
    let written = text(field, value)?;
    if written == "all" {
        return Ok(Wave { percent: Some(100), ..Wave::default() });
    }
    if written.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(match parsed::<Share>(field, value)? {
            Share::Count(count) => Wave { count: Some(count), ..Wave::default() },
            Share::Percent(percent) => Wave { percent: Some(percent), ..Wave::default() },
        });
    }
    let selector = parsed::<Selector>(field, value)?;
    Ok(Wave { name: Some(written.to_owned()), selector: Some(selector), ..Wave::default() })
}

fn wave_text(wave: &Wave) -> String {
    match (wave.count, wave.percent, &wave.selector) {
        (Some(count), ..) => count.to_string(),
        (_, Some(100), _) => "all".into(),
        (_, Some(percent), _) => format!("{percent}%"),
        (.., selector) => selector.as_ref().map_or_else(|| "all".into(), ToString::to_string),
    }
}

/// One window of every day, or several.
fn windows(field: &'static str, value: Value<'_>) -> Result<Vec<Window>, Wrong> {
    if value.get_ref().as_array().is_some() { list(field, value, window) } else { Ok(vec![window(field, value)?]) }
}

fn window(field: &'static str, value: Value<'_>) -> Result<Window, Wrong> {
    let written = text(field, value)?;
    let wrong = |problem: String| Wrong::new(value.span(), format!("{field}: {problem}")).hint("write \"22:00-04:00\"");
    let (from, to) = written.split_once('-').ok_or_else(|| wrong(format!("{written:?} is no window")))?;
    let (from, to) = (from.trim().parse().map_err(wrong)?, to.trim().parse().map_err(wrong)?);
    Ok(Window { days: Default::default(), from, to })
}

fn window_text(window: &Window) -> String {
    format!("{}-{}", window.from, window.to)
}

fn version(value: Value<'_>, app: &Name, plan: &Plan) -> Result<Version, Wrong> {
    let written: Version = parsed("rollback-to", value)?;
    let known = || plan.releases.iter().filter(|release| release.app == *app).map(|release| &release.version);
    if known().any(|version| *version == written) {
        return Ok(written);
    }
    let problem = format!("there is no [[release]] {app}@{written}");
    Err(Wrong::new(value.span(), problem).meant(written.as_ref(), known().map(AsRef::as_ref)))
}

/// What somebody does to a rollout while it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steer {
    /// Nothing more begins.
    Pause,
    /// It goes on; what failed so far is forgiven.
    Resume,
    /// It ends.
    Abort,
    /// Failed nodes try once more.
    Retry,
    /// The wave that waits for it may begin.
    Approve,
}

impl Steer {
    pub(super) const ALL: [Steer; 5] = [Steer::Pause, Steer::Resume, Steer::Abort, Steer::Retry, Steer::Approve];

    /// The key of a scenario file, and the word of the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Steer::Pause => "pause",
            Steer::Resume => "resume",
            Steer::Abort => "abort",
            Steer::Retry => "retry",
            Steer::Approve => "approve",
        }
    }
}

impl fmt::Display for Steer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What must be seen of a rollout at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Where it stands.
    pub phase: Option<RolloutPhase>,
    /// The word for why.
    pub reason: Option<String>,
    /// A node, and the word for what it waits for; empty: it waits for nothing.
    pub node: Option<(Name, String)>,
    /// So many nodes are healthy.
    pub healthy: Option<u32>,
}

/// Phases of a rollout by their words.
pub(super) fn phases() -> Vec<(&'static str, RolloutPhase)> {
    use RolloutPhase::{Aborted, Failed, Paused, Pending, Progressing, RolledBack, RollingBack, Succeeded, Superseded};
    let all = [Pending, Progressing, Succeeded, Failed, RollingBack, RolledBack, Aborted, Superseded, Paused];
    all.map(|phase| (phase.as_str(), phase)).to_vec()
}

impl Look {
    pub(super) fn read(table: &Table<'_>, node: impl Fn(Value<'_>) -> Result<Name, Wrong>) -> Result<Look, Wrong> {
        let phase = |field, value| one_of(field, text(field, value)?, value, &phases());
        let node = match (table.get("node"), table.get("waits")) {
            (None, None) => None,
            (Some(name), Some(word)) => Some((node(name)?, text("waits", word)?.to_owned())),
            (Some(_), None) => {
                let wrong = Wrong::new(table.key_at("node"), "\"node\" without \"waits\"");
                return Err(wrong.hint("write waits = \"Budget\", or \"\" for nothing"));
            }
            (None, Some(_)) => {
                let wrong = Wrong::new(table.key_at("waits"), "\"waits\" without \"node\"");
                return Err(wrong.hint("write node = \"hz-01-1\""));
            }
        };
        Ok(Look {
            phase: table.read("phase", phase)?,
            reason: table.read("reason", parsed::<String>)?,
            node,
            healthy: table.read("healthy", |field, value| whole(field, value, (0, 20_000)))?,
        })
    }

    /// The fields that say so, each with its value as TOML.
    pub(super) fn fields(&self) -> Vec<(&'static str, String)> {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let mut fields = vec![];
        fields.extend(self.phase.map(|phase| ("phase", quoted(phase.as_str()))));
        fields.extend(self.reason.as_ref().map(|reason| ("reason", quoted(reason))));
        if let Some((node, word)) = &self.node {
            fields.extend([("node", quoted(node.as_ref())), ("waits", quoted(word))]);
        }
        fields.extend(self.healthy.map(|healthy| ("healthy", healthy.to_string())));
        fields
    }
}
