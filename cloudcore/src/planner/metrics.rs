//! What nodes' workloads tell of themselves, against the rules of a gate. Arithmetic alone.
//!
//! A node that is healthy is held against each rule. One that breaks a rule has failed; one that has told too little
//! proves nothing yet, and the wave waits for it. A comparison with the release before says nothing where none ran, or
//! told too little; a wave in which nobody can be compared says nothing.
//!
//! Means are compared, not medians: a release that stands still every third second has a fine median, and its cameras
//! miss every third parcel. One outlier among the samples moves a mean by little, and the samples asked for say by how
//! little.

use proto::{
    digest::Digest,
    name::Name,
    object::{MetricSummary, Node, WorkloadMetrics, feature, rollout::MetricRule},
};

use super::node;

/// What a healthy node says of the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// It keeps them, as far as they say anything about it.
    Kept,
    /// It has told too little, and of what.
    TooLittle(String),
    /// It breaks one, in words.
    Broken(String),
}

/// What a node told, if it is of that release.
fn told<'a>(node: &'a Node, app: &Name, digest: Digest) -> Option<&'a WorkloadMetrics> {
    let metrics = node.status.workloads.get(app)?.metrics.as_ref()?;
    (metrics.digest == digest).then_some(metrics)
}

/// Holds a healthy node against all rules. A broken one comes before one of which too little is known.
pub(super) fn judge(rules: &[MetricRule], node: &Node, app: &Name, digest: Digest) -> Finding {
    if rules.is_empty() {
        return Finding::Kept;
    }
    if !node::knows(node, feature::METRICS) {
        return Finding::TooLittle("its agent is too old to tell what workloads tell of themselves; upgrade it".into());
    }
    let told = told(node, app, digest);
    let mut found = Finding::Kept;
    for rule in rules {
        let now = told.and_then(|told| told.now.get(&rule.name));
        let Some(now) = now.filter(|now| now.samples >= rule.min_samples) else {
            if found == Finding::Kept {
                let samples = now.map_or(0, |now| now.samples);
                found = Finding::TooLittle(format!("{samples} of {} samples of {}", rule.min_samples, rule.name));
            }
            continue;
        };
        if let Some(text) = broken(rule, now, before(rule, told)) {
            return Finding::Broken(text);
        }
    }
    found
}

/// What the release before told of it, where that is enough to compare with.
fn before<'a>(rule: &MetricRule, told: Option<&'a WorkloadMetrics>) -> Option<&'a MetricSummary> {
    let before = told?.before.as_ref()?.metrics.get(&rule.name)?;
    // Of nothing there are no hundredths.
    (before.samples >= rule.min_samples && before.mean > 0.0).then_some(before)
}

/// The bound that is broken, with the arithmetic.
fn broken(rule: &MetricRule, now: &MetricSummary, before: Option<&MetricSummary>) -> Option<String> {
    let (name, mean) = (&rule.name, now.mean);
    let is = || format!("{name} {} (mean of {})", figure(mean), now.samples);
    if let Some(min) = rule.min.filter(|min| mean < *min) {
        return Some(format!("{}, below {}", is(), figure(min)));
    }
    if let Some(max) = rule.max.filter(|max| mean > *max) {
        return Some(format!("{}, above {}", is(), figure(max)));
    }
    let before = before?;
    let percent = mean / before.mean * 100.0;
    let of = || {
        let (was, samples) = (figure(before.mean), before.samples);
        format!("{}, {} % of {was} before (mean of {samples})", is(), figure(percent))
    };
    if let Some(min) = rule.min_percent_of_before.filter(|min| percent < f64::from(*min)) {
        return Some(format!("{}, below {min} %", of()));
    }
    if let Some(max) = rule.max_percent_of_before.filter(|max| percent > f64::from(*max)) {
        return Some(format!("{}, above {max} %", of()));
    }
    None
}

/// What the healthy nodes of a wave say of a rule.
#[derive(Debug, Clone, Default, PartialEq)]
struct Range {
    nodes: usize,
    /// The least and the greatest mean.
    means: Option<(f64, f64)>,
    compared: usize,
    /// The same, in hundredths of before.
    percents: Option<(f64, f64)>,
}

/// What a wave says of all rules.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tally<'a> {
    rules: Vec<(&'a MetricRule, Range)>,
}

impl<'a> Tally<'a> {
    /// Takes the healthy nodes of a wave together.
    pub fn of<'n>(
        rules: &'a [MetricRule],
        nodes: impl Iterator<Item = &'n Node>,
        app: &Name,
        digest: Digest,
    ) -> Tally<'a> {
        let mut tally = Tally { rules: rules.iter().map(|rule| (rule, Range::default())).collect() };
        for node in nodes {
            let told = told(node, app, digest);
            for (rule, range) in &mut tally.rules {
                let now = told.and_then(|told| told.now.get(&rule.name));
                let Some(now) = now.filter(|now| now.samples >= rule.min_samples) else { continue };
                range.nodes += 1;
                widen(&mut range.means, now.mean);
                if let Some(before) = before(rule, told).filter(|_| rule.compares()) {
                    range.compared += 1;
                    widen(&mut range.percents, now.mean / before.mean * 100.0);
                }
            }
        }
        tally
    }

    /// A rule that compares, and of which nobody could be compared.
    pub fn incomparable(&self) -> Option<&'a MetricRule> {
        self.rules.iter().find(|(rule, range)| rule.compares() && range.compared == 0).map(|(rule, _)| *rule)
    }

    /// The arithmetic, for people.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        for (rule, range) in &self.rules {
            text.push_str(&format!("; {rule}: "));
            match &range.means {
                Some(means) => text.push_str(&format!("{} on {}", between(means), range.nodes)),
                None => text.push_str("nobody has told enough"),
            }
            match &range.percents {
                Some(percents) => {
                    text.push_str(&format!(", {} % of before on {}", between(percents), range.compared));
                }
                None if rule.compares() => text.push_str(", nobody can be compared with before"),
                None => {}
            }
        }
        text
    }
}

fn widen(range: &mut Option<(f64, f64)>, value: f64) {
    let (least, most) = range.unwrap_or((value, value));
    *range = Some((least.min(value), most.max(value)));
}

fn between((least, most): &(f64, f64)) -> String {
    let (least, most) = (figure(*least), figure(*most));
    if least == most { least } else { format!("{least} to {most}") }
}

/// A number with three digits that count, as people read it: `7.9`, `0.041`, `1200`. Noise behind them makes no news.
fn figure(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return "0".into();
    }
    let digits = 2 - value.abs().log10().floor() as i32;
    let decimals = usize::try_from(digits).unwrap_or(0).min(12);
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proto::object::{
        MetricsBefore, NodeInfo, NodeSpec, Object, ReleaseRef, UpdatePhase, WorkloadStatus, metrics::MAX_SAMPLES,
    };

    use super::*;

    const FPS: &str = "frames_per_second";

    fn app() -> Name {
        "vision".parse().unwrap()
    }

    fn rule(change: impl FnOnce(&mut MetricRule)) -> Vec<MetricRule> {
        let mut rule = MetricRule::new(FPS.parse().unwrap());
        change(&mut rule);
        vec![rule]
    }

    /// A node that told so many samples of so much, now and before.
    fn node(now: (u32, f64), before: Option<(u32, f64)>) -> Node {
        let mut node: Node = Object::new("n1".parse::<Name>().unwrap(), NodeSpec::new("s1".parse().unwrap()));
        let info = NodeInfo { features: [feature::METRICS.to_owned()].into(), ..crate::planner::tests::info() };
        node.status.info = Some(info);
        let told = |(samples, mean)| [(FPS.parse().unwrap(), MetricSummary { samples, mean })].into();
        let release = ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(b"1") };
        let before = before.map(|before| MetricsBefore { release, metrics: told(before) });
        let metrics = WorkloadMetrics { digest: Digest::of(b"2"), now: told(now), before };
        let said = WorkloadStatus::new(None, UpdatePhase::Succeeded, jiff::Timestamp::UNIX_EPOCH);
        node.status.workloads.insert(app(), WorkloadStatus { metrics: Some(metrics), ..said });
        node
    }

    fn found(rules: &[MetricRule], node: &Node) -> Finding {
        judge(rules, node, &app(), Digest::of(b"2"))
    }

    #[test]
    fn a_floor_is_a_floor_once_there_are_samples() {
        let rules = rule(|rule| rule.min = Some(20.0));
        assert_eq!(found(&rules, &node((10, 20.0), None)), Finding::Kept);
        let broken = Finding::Broken("frames_per_second 7.9 (mean of 30), below 20".into());
        assert_eq!(found(&rules, &node((30, 7.9), None)), broken);
        let little = Finding::TooLittle("9 of 10 samples of frames_per_second".into());
        assert_eq!(found(&rules, &node((9, 7.9), None)), little, "nor is it broken by them");
        let of_another = judge(&rules, &node((30, 7.9), None), &app(), Digest::of(b"3"));
        assert_eq!(of_another, Finding::TooLittle("0 of 10 samples of frames_per_second".into()));
        let rules = rule(|rule| rule.max = Some(5.0));
        let broken = Finding::Broken("frames_per_second 7.9 (mean of 30), above 5".into());
        assert_eq!(found(&rules, &node((30, 7.9), None)), broken);
    }

    #[test]
    fn what_ran_before_is_compared_where_it_told_enough() {
        let rules = rule(|rule| rule.min_percent_of_before = Some(90));
        assert_eq!(found(&rules, &node((30, 23.0), Some((600, 24.8)))), Finding::Kept);
        let text = "frames_per_second 15.1 (mean of 30), 60.9 % of 24.8 before (mean of 600), below 90 %";
        assert_eq!(found(&rules, &node((30, 15.1), Some((600, 24.8)))), Finding::Broken(text.into()));
        // Whoever has nothing to compare with says nothing.
        for before in [None, Some((9, 24.8)), Some((600, 0.0)), Some((600, -1.0))] {
            let node = node((30, 1.0), before);
            assert_eq!(found(&rules, &node), Finding::Kept);
            let tally = Tally::of(&rules, [&node].into_iter(), &app(), Digest::of(b"2"));
            assert!(tally.incomparable().is_some(), "{before:?}");
            assert!(tally.explain().ends_with("1 on 1, nobody can be compared with before"), "{}", tally.explain());
        }
        let nodes = [node((30, 24.0), Some((600, 24.0))), node((30, 22.0), None), node((30, 23.5), Some((600, 25.0)))];
        let tally = Tally::of(&rules, nodes.iter(), &app(), Digest::of(b"2"));
        assert_eq!(tally.incomparable(), None);
        let text = "; frames_per_second at least 90 % of before: 22 to 24 on 3, 94 to 100 % of before on 2";
        assert_eq!(tally.explain(), text);
    }

    #[test]
    fn a_broken_rule_comes_before_one_of_which_little_is_known() {
        let mut rules = rule(|rule| (rule.max, rule.min_samples) = (Some(90.0), MAX_SAMPLES));
        rules.extend(rule(|rule| rule.min = Some(20.0)));
        assert!(matches!(found(&rules, &node((30, 7.9), None)), Finding::Broken(_)));
        assert!(matches!(found(&rules, &node((30, 25.0), None)), Finding::TooLittle(_)));
    }

    #[test]
    fn an_old_agent_says_nothing() {
        let rules = rule(|rule| rule.min = Some(20.0));
        let mut old = node((30, 25.0), None);
        old.status.info.as_mut().unwrap().features.clear();
        let Finding::TooLittle(text) = found(&rules, &old) else { panic!("it cannot know") };
        assert!(text.contains("too old"));
        assert_eq!(found(&[], &old), Finding::Kept, "nobody asks");
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        for (value, shown) in [
            (7.9, "7.9"),
            (0.04123, "0.0412"),
            (1234.5, "1234"),
            (60.887, "60.9"),
            (0.0, "0"),
            (-24.96, "-25"),
            (1e-30, "0"),
        ] {
            assert_eq!(figure(value), shown);
        }
    }
}
