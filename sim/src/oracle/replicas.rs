//! Instances of one app on a box: never more than its release says, all of one release, as many as what they tell asks
//! for, and left alone by agents that end and start.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::name::{Name, Version};

use super::Invariant;
use crate::{
    fault::Fault,
    plan::{Release, Scaling},
    world::AppSeen,
};

/// Until as many run as are asked for, besides the window in which fewer must be enough.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(60);

/// What instances of each box tell, where a fault says it.
#[derive(Debug, Default)]
pub(super) struct Backlogs {
    active: Vec<(Fault, BTreeSet<Name>)>,
}

impl Backlogs {
    pub(super) fn began(&mut self, fault: &Fault, struck: &[Name]) {
        if matches!(fault, Fault::Backlog { .. }) {
            self.active.push((fault.clone(), struck.iter().cloned().collect()));
        }
    }

    pub(super) fn healed(&mut self, fault: &Fault) {
        if let Some(index) = self.active.iter().position(|(active, _)| active == fault) {
            self.active.remove(index);
        }
    }

    pub(super) fn of(&self, node: &Name) -> Option<u32> {
        self.active.iter().rev().find(|(_, struck)| struck.contains(node)).and_then(|(fault, _)| match fault {
            Fault::Backlog { count, .. } => Some(*count),
            _ => None,
        })
    }
}

/// What an app may be asked of its replicas at one look.
#[derive(Debug)]
pub(super) struct Look<'a> {
    /// Time since the run began.
    pub(super) at: Duration,
    /// What is seen of the app.
    pub(super) now: &'a AppSeen,
    /// The release that runs.
    pub(super) release: Option<&'a Release>,
    /// What a fault has instances tell.
    pub(super) backlog: Option<u32>,
    /// Whether its agent runs, with nothing else to do for the app.
    pub(super) is_settled: bool,
    /// Whether nothing is to end what runs: neither an update nor a box that is off.
    pub(super) is_calm: bool,
}

impl Look<'_> {
    fn scaling(&self) -> Option<&Scaling> {
        self.release?.scaling.as_ref()
    }

    fn told(&self) -> u32 {
        self.backlog.or_else(|| Some(self.scaling()?.tells)).unwrap_or(0)
    }

    /// How many instances there are, where that is not what is asked for.
    pub(super) fn wrong_number(&self) -> Option<String> {
        let scaling = self.scaling()?;
        let (instances, told) = (self.now.others.len() + 1, self.told());
        let rules = &scaling.replicas;
        (!scaling.is_met(told, instances))
            .then(|| format!("{instances} instances run: {told} / {} of {} to {}", rules.target, rules.min, rules.max))
    }
}

/// The replicas of one app of a box, over time.
#[derive(Debug, Default)]
pub(super) struct Replicas {
    others: BTreeMap<u8, (Version, u64)>,
    asked: Option<Asked>,
    /// Since when that is asked, and nothing hindered it.
    since: Duration,
    /// Whether as many ran.
    was_met: bool,
}

/// What makes their number.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    version: Version,
    instance: Option<u64>,
    told: u32,
}

impl Replicas {
    /// # Errors
    /// What is broken.
    pub(super) fn look(&mut self, look: &Look<'_>) -> Result<(), (Invariant, String)> {
        let others = &look.now.others;
        let broken = |text: String| Err((Invariant::Replicas, text));
        if let Some(running) = &look.now.running {
            if let Some((number, (version, _))) = others.iter().find(|(_, (version, _))| version != running) {
                return broken(format!("replica {number} of {version} runs beside {running}"));
            }
            let max = look.scaling().map_or(1, |scaling| scaling.replicas.max);
            if others.len() >= max.into() {
                return broken(format!("{} instances of {running} run, of at most {max}", others.len() + 1));
            }
        }
        let asked =
            look.now.running.clone().map(|version| Asked { version, instance: look.now.instance, told: look.told() });
        let (wrong, is_same) = (look.wrong_number(), asked == self.asked);
        if is_same && self.was_met && look.is_calm && self.others != *others {
            let text = format!("replicas were disturbed: {}, now {}", listed(&self.others), listed(others));
            return Err((Invariant::Undisturbed, text));
        }
        if !is_same || !look.is_settled {
            self.since = look.at;
        }
        let window = look.scaling().map_or(Duration::ZERO, |scaling| scaling.replicas.stabilization_window.get());
        let asked_for = look.at.saturating_sub(self.since);
        if let Some(wrong) = wrong.as_ref().filter(|_| asked_for > window + FOLLOWS_WITHIN) {
            return broken(format!("{wrong}, for {asked_for:.0?}"));
        }
        self.was_met = wrong.is_none() && asked.is_some();
        self.asked = asked;
        self.others.clone_from(others);
        Ok(())
    }
}

fn listed(others: &BTreeMap<u8, (Version, u64)>) -> String {
    let each: Vec<String> =
        others.iter().map(|(number, (_, instance))| format!("{number} (start {instance})")).collect();
    if each.is_empty() { "none".into() } else { each.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;

    fn release(replicas: &str) -> Release {
        let text = format!(
            "about = \"x\"\nduration = \"1h\"\n[[site]]\nname = \"s\"\nnodes = 1\n[[release]]\napp = \"app\"\n\
             version = \"1.0.0\"\n{replicas}\n"
        );
        plan::parse("x", "x.toml", &text, None).unwrap().releases.remove(0)
    }

    /// Of a box on which 1.0.0 runs with that many replicas besides, started in order.
    fn seen(others: u8) -> AppSeen {
        let version: Version = "1.0.0".parse().unwrap();
        let others = (1..=others).map(|number| (number, (version.clone(), 10 + u64::from(number)))).collect();
        AppSeen { running: Some(version), instance: Some(1), others, ..AppSeen::nothing() }
    }

    struct Play {
        release: Release,
        replicas: Replicas,
        at: u64,
    }

    impl Play {
        fn new() -> Play {
            let scaled = "replicas = { max = 4, metric = \"backlog\", target = 100, window = \"1m\", tells = 30 }";
            Play { release: release(scaled), replicas: Replicas::default(), at: 0 }
        }

        fn look(&mut self, now: &AppSeen, change: impl FnOnce(&mut Look<'_>)) -> Result<(), (Invariant, String)> {
            self.at += 10;
            let at = Duration::from_secs(self.at);
            let release = Some(&self.release);
            let mut look = Look { at, now, release, backlog: None, is_settled: true, is_calm: true };
            change(&mut look);
            self.replicas.look(&look)
        }
    }

    #[test]
    fn too_many_are_seen_and_so_is_another_release() {
        let mut play = Play::new();
        play.look(&seen(3), |_| {}).unwrap();
        let (invariant, text) = play.look(&seen(4), |_| {}).unwrap_err();
        assert_eq!((invariant, &*text), (Invariant::Replicas, "5 instances of 1.0.0 run, of at most 4"));
        let mut updated = seen(1);
        updated.running = Some("2.0.0".parse().unwrap());
        assert_eq!(play.look(&updated, |_| {}).unwrap_err().1, "replica 1 of 1.0.0 runs beside 2.0.0");
        play.release = release("size = \"1Mi\"");
        assert_eq!(play.look(&seen(1), |_| {}).unwrap_err().1, "2 instances of 1.0.0 run, of at most 1");
    }

    #[test]
    fn who_does_not_follow_is_seen_after_a_while() {
        let mut play = Play::new();
        for _ in 0..13 {
            play.look(&seen(2), |_| {}).unwrap();
        }
        let (invariant, text) = play.look(&seen(2), |_| {}).unwrap_err();
        assert_eq!(invariant, Invariant::Replicas);
        assert_eq!(text, "3 instances run: 30 / 100 of 1 to 4, for 130s");
        // Three are enough for 310, and it begins anew when something else is told or the agent is away.
        let mut play = Play::new();
        for number in 0..60 {
            play.look(&seen(2), |look| look.backlog = Some(310)).unwrap();
            play.look(&seen(2), |look| (look.backlog, look.is_settled) = (Some(100), number % 2 == 0)).unwrap();
        }
    }

    #[test]
    fn what_runs_and_is_asked_for_is_not_disturbed() {
        let mut play = Play::new();
        let busy = |look: &mut Look<'_>| look.backlog = Some(290);
        play.look(&seen(1), busy).unwrap();
        play.look(&seen(2), busy).unwrap();
        play.look(&seen(2), |look| (look.backlog, look.is_settled) = (Some(290), false)).unwrap();
        let mut again = seen(2);
        again.others.get_mut(&2).unwrap().1 = 99;
        let calm = play.replicas.look(&Look {
            at: Duration::from_secs(50),
            now: &again,
            release: Some(&play.release),
            backlog: Some(290),
            is_settled: true,
            is_calm: false,
        });
        calm.unwrap(); // the box was off
        let (invariant, text) =
            play.look(&seen(1), |look| (look.backlog, look.is_settled) = (Some(290), false)).unwrap_err();
        assert_eq!(invariant, Invariant::Undisturbed);
        assert_eq!(text, "replicas were disturbed: 1 (start 11), 2 (start 99), now 1 (start 11)");
    }

    #[test]
    fn the_backlog_that_began_last_counts() {
        let (node, mut backlogs) = ("box".parse::<Name>().unwrap(), Backlogs::default());
        let fault = |count| Fault::Backlog { target: crate::fault::Target::All, count };
        backlogs.began(&fault(1), std::slice::from_ref(&node));
        backlogs.began(&fault(2), std::slice::from_ref(&node));
        assert_eq!((backlogs.of(&node), backlogs.of(&"other".parse().unwrap())), (Some(2), None));
        backlogs.healed(&fault(2));
        assert_eq!(backlogs.of(&node), Some(1));
        backlogs.healed(&fault(1));
        assert_eq!(backlogs.of(&node), None);
    }
}
