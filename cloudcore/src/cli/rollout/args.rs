//! What a rollout is made of, from the command line.

use std::str::FromStr;

use proto::{
    name::Version,
    object::{
        RolloutSpec,
        rollout::{Budget, MetricRule, OnFailure, Placement, Share, Wave, Window},
    },
    units::Span,
};

use crate::cli::exit::{CliError, Exit};

/// How to go about a rollout. What is left out is the strategy's, or else the fleet's default.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "How to go about it")]
pub struct How {
    /// canary (one node, 10 %, all), by-site (one site, 25 %, all), all-at-once, or one of hub.yaml.
    #[arg(long)]
    strategy: Option<String>,
    /// Nodes of each site that get it, chosen by the hub among the selected ones. Default: all of them
    #[arg(long, value_name = "N")]
    per_site: Option<u32>,
    /// Waves instead of the strategy's: numbers of nodes, percentages so far, or selectors, such as 1,10%,all
    #[arg(long, value_delimiter = ',', value_name = "WAVE,...")]
    waves: Vec<WaveArg>,
    /// How long each wave but the last must stay healthy before the next begins.
    #[arg(long)]
    soak: Option<Span>,
    /// Ask for approval before each wave but the first.
    #[arg(long)]
    approval: bool,
    /// Nodes that may be unavailable at once in a group: 1 or 10%
    #[arg(long, value_name = "N|N%")]
    max_unavailable: Option<Share>,
    /// What makes a group: site, fleet, or the key of a label.
    #[arg(long, default_value = Budget::SITE)]
    per: String,
    /// Failed nodes that a wave may have.
    #[arg(long, value_name = "N")]
    max_failures: Option<u32>,
    /// What the workload must tell of itself, such as frames_per_second,min=20,min-percent-of-before=90,min-samples=30;
    /// also max, max-percent-of-before. May be repeated.
    #[arg(long, value_name = "NAME,BOUND=N,...")]
    metric: Vec<MetricArg>,
    /// When nodes may download, such as 20:00-06:00, in the time zone of their site. May be repeated.
    #[arg(long, value_name = "HH:MM-HH:MM")]
    download_window: Vec<WindowArg>,
    /// When nodes may apply, such as 01:00-04:00, in the time zone of their site. May be repeated.
    #[arg(long, value_name = "HH:MM-HH:MM")]
    apply_window: Vec<WindowArg>,
    /// Nodes of a wave begin spread over this time.
    #[arg(long)]
    jitter: Option<Span>,
    /// How long a workload may put the update off in all.
    #[arg(long)]
    max_deferral: Option<Span>,
    /// What follows when a wave fails.
    #[arg(long, value_enum)]
    on_failure: Option<OnFailureArg>,
    /// Version that nodes go to with `--on-failure roll-back`; its release counter must be above the new one's.
    #[arg(long)]
    rollback_to: Option<Version>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnFailureArg {
    /// Nothing more begins until somebody decides.
    Pause,
    /// It ends as failed.
    Stop,
    /// Nodes that it touched go to --rollback-to.
    RollBack,
}

/// One wave: `3`, `10%`, `all`, or a selector.
#[derive(Debug, Clone, PartialEq)]
struct WaveArg(Wave);

impl FromStr for WaveArg {
    type Err = String;
    fn from_str(text: &str) -> Result<WaveArg, String> {
        let wave = Wave::default();
        let text = text.trim();
        if text == "all" {
            return Ok(WaveArg(Wave { percent: Some(100), ..wave }));
        }
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(WaveArg(match text.parse::<Share>()? {
                Share::Count(count) => Wave { count: Some(count), ..wave },
                Share::Percent(percent) => Wave { percent: Some(percent), ..wave },
            }));
        }
        if text.starts_with('-') {
            return Err(format!("{text:?} is no number of nodes: write 3, 10%, all, or a selector"));
        }
        let selector =
            text.parse().map_err(|e| format!("a wave is a number, a percentage, all, or a selector: {e}"))?;
        Ok(WaveArg(Wave { name: Some(text.to_owned()), selector: Some(selector), ..wave }))
    }
}

/// A rule on a metric: its name, and its bounds.
#[derive(Debug, Clone, PartialEq)]
struct MetricArg(MetricRule);

impl FromStr for MetricArg {
    type Err = String;
    fn from_str(text: &str) -> Result<MetricArg, String> {
        let (name, bounds) = text.split_once(',').unwrap_or((text, ""));
        let mut rule = MetricRule::new(name.trim().parse().map_err(|e| format!("{e}"))?);
        for bound in bounds.split(',').map(str::trim).filter(|bound| !bound.is_empty()) {
            let (key, value) = bound.split_once('=').ok_or_else(|| format!("{bound:?}: write BOUND=NUMBER"))?;
            let whole = || value.parse::<u32>().map_err(|_| format!("{key}={value}: write a whole number"));
            let number = || value.parse::<f64>().map_err(|_| format!("{key}={value}: write a number"));
            match key {
                "min" => rule.min = Some(number()?),
                "max" => rule.max = Some(number()?),
                "min-percent-of-before" => rule.min_percent_of_before = Some(whole()?),
                "max-percent-of-before" => rule.max_percent_of_before = Some(whole()?),
                "min-samples" => rule.min_samples = whole()?,
                _ => {
                    return Err(format!(
                        "{key:?} is no bound: write min, max, min-percent-of-before, max-percent-of-before, min-samples"
                    ));
                }
            }
        }
        Ok(MetricArg(rule))
    }
}

/// A window of every day.
#[derive(Debug, Clone, PartialEq, Eq)]
struct WindowArg(Window);

impl FromStr for WindowArg {
    type Err = String;
    fn from_str(text: &str) -> Result<WindowArg, String> {
        let (from, to) = text.split_once('-').ok_or("write FROM-TO, such as 22:00-04:00")?;
        Ok(WindowArg(Window { days: Default::default(), from: from.trim().parse()?, to: to.trim().parse()? }))
    }
}

impl How {
    /// The spec with what was said.
    pub(in crate::cli) fn apply(self, mut spec: RolloutSpec) -> anyhow::Result<RolloutSpec> {
        spec.strategy = self.strategy;
        spec.placement = self.per_site.map(|per_site| Placement { per_site });
        spec.waves = self.waves.into_iter().map(|WaveArg(wave)| wave).collect();
        let last = spec.waves.len().saturating_sub(1);
        if spec.waves.is_empty() && (self.soak.is_some() || self.approval) {
            let text = "--soak and --approval go with --waves, such as --waves 1,10%,all --soak 10m";
            return Err(CliError::new(Exit::Usage, text).into());
        }
        for (index, wave) in spec.waves.iter_mut().enumerate() {
            wave.approval = self.approval && index > 0;
            if index < last {
                wave.soak = self.soak.unwrap_or_default();
            }
        }
        spec.budget = self.max_unavailable.map(|max_unavailable| Budget { max_unavailable, per: self.per });
        if let Some(most) = self.max_failures {
            spec.gate.max_failures = most;
        }
        spec.gate.metrics = self.metric.into_iter().map(|MetricArg(rule)| rule).collect();
        spec.windows.download = self.download_window.into_iter().map(|WindowArg(window)| window).collect();
        spec.windows.apply = self.apply_window.into_iter().map(|WindowArg(window)| window).collect();
        spec.jitter = self.jitter.unwrap_or_default();
        spec.max_deferral = self.max_deferral.unwrap_or_default();
        spec.on_failure = match self.on_failure {
            None | Some(OnFailureArg::Pause) => OnFailure::Pause,
            Some(OnFailureArg::Stop) => OnFailure::Stop,
            Some(OnFailureArg::RollBack) => OnFailure::RollBack,
        };
        spec.rollback_to = self.rollback_to;
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_and_windows_are_short_to_write() {
        let wave = |text: &str| text.parse::<WaveArg>().map(|WaveArg(wave)| wave);
        assert_eq!(wave("3").unwrap().count, Some(3));
        assert_eq!(wave("10%").unwrap().percent, Some(10));
        assert_eq!(wave("all").unwrap().percent, Some(100));
        assert_eq!(wave("site=hz-01").unwrap().selector, Some("site=hz-01".parse().unwrap()));
        for bad in ["", "10x", "-1", "120%", "a b"] {
            assert!(wave(bad).is_err(), "{bad}");
        }
        let MetricArg(rule) = "fps,min=20,max-percent-of-before=120, min-samples=30".parse::<MetricArg>().unwrap();
        assert_eq!(rule.to_string(), "fps at least 20, at most 120 % of before");
        assert_eq!((rule.min, rule.max_percent_of_before, rule.min_samples), (Some(20.0), Some(120), 30));
        for bad in ["", "9", "fps,min", "fps,min=x", "fps,most=3", "fps,min-samples=1.5"] {
            assert!(bad.parse::<MetricArg>().is_err(), "{bad}");
        }
        assert!("22:00-04:00".parse::<WindowArg>().is_ok());
        for bad in ["22:00", "22-04", "25:00-04:00"] {
            assert!(bad.parse::<WindowArg>().is_err(), "{bad}");
        }
    }
}
