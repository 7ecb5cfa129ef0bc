//! What each entry of the timeline came to. One that never began, or met nothing to break, proves nothing: a run
//! with one fails, however often its like struck elsewhere.

use crate::plan::{Action, Entry, Moment, Plan};

/// Counts by entry, in the order of the timeline.
#[derive(Debug)]
pub(super) struct Tally {
    counts: Vec<Count>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    begun: u64,
    struck: u64,
}

impl Tally {
    pub(super) fn new(plan: &Plan) -> Tally {
        Tally { counts: vec![Count::default(); plan.timeline.len()] }
    }

    /// An entry began, once more.
    pub(super) fn began(&mut self, entry: usize) {
        if let Some(count) = self.counts.get_mut(entry) {
            count.begun += 1;
        }
    }

    /// What an entry breaks was struck so often.
    pub(super) fn struck(&mut self, entry: usize, times: u64) {
        if let Some(count) = self.counts.get_mut(entry) {
            count.struck += times;
        }
    }

    pub(super) fn has_begun(&self, entry: usize) -> bool {
        self.counts.get(entry).is_some_and(|count| count.begun > 0)
    }

    /// The first entry that came to nothing and may not, and why.
    pub(super) fn missed(&self, plan: &Plan) -> Option<String> {
        let mut entries = plan.timeline.iter().zip(&self.counts).enumerate();
        entries.find_map(|(index, (entry, count))| {
            let why = match &entry.action {
                _ if entry.may_miss => return None,
                Action::Break { .. } if count.begun > 0 && count.struck == 0 => {
                    format!("it began {} and met nothing that it could break", times(count.begun))
                }
                _ if count.begun > 0 => return None,
                _ if index > 0 && waits(entry) && !self.has_begun(index - 1) => {
                    "it waits for the entry before it, which never began".to_owned()
                }
                _ => format!("its moment never came: {}", moment(&entry.moment)),
            };
            Some(format!(
                "{} never fired: {why}; this run proves nothing about it (may-miss = true bears that)",
                name(index, entry)
            ))
        })
    }
}

fn waits(entry: &Entry) -> bool {
    !matches!(entry.moment, Moment::At(_))
}

fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

/// `entry 3 of the timeline (line 14), crash-agent all,`
pub(super) fn name(index: usize, entry: &Entry) -> String {
    let line = if entry.line == 0 { String::new() } else { format!(" (line {})", entry.line) };
    format!("entry {} of the timeline{line}, {},", index + 1, entry.action)
}

fn moment(moment: &Moment) -> String {
    match moment {
        Moment::At(at) => format!("{at:?}"),
        Moment::Downloaded { node, percent } => format!("{node} has {percent} % of a release"),
        Moment::Phase { node, app, phase } => format!("{app} on {node} is {phase}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = r#"about = "two crashes, a wait, a rollout"
duration = "10m"
[[site]]
name = "hz-01"
nodes = 2
[[release]]
app = "app"
version = "1.0.0"
[[timeline]]
at = "1m"
crash-agent = "node hz-01-1"
[[timeline]]
at = "2m"
crash-agent = "node hz-01-2"
[[timeline]]
when = { node = "hz-01-1", app = "app", phase = "Verifying" }
rollout = "app@1.0.0"
[[timeline]]
when = { node = "hz-01-1", downloaded = "40%" }
cut = "all"
"#;

    fn plan(text: &str) -> Plan {
        crate::plan::parse("test", "test.toml", text, None).unwrap()
    }

    #[test]
    fn every_entry_must_strike_whatever_others_of_its_kind_did() {
        let plan = plan(PLAN);
        let mut tally = Tally::new(&plan);
        for entry in [0, 1] {
            tally.began(entry);
        }
        tally.struck(0, 1);
        let missed = tally.missed(&plan).unwrap();
        assert!(missed.starts_with("entry 2 of the timeline (line 12), crash-agent node hz-01-2, never"), "{missed}");
        assert!(missed.contains("began once and met nothing"), "{missed}");
        tally.struck(1, 1);
        let missed = tally.missed(&plan).unwrap();
        assert!(missed.starts_with("entry 3 of the timeline (line 15), rollout app@1.0.0 to all, never"), "{missed}");
        assert!(missed.contains("app on hz-01-1 is Verifying"), "{missed}");
        tally.began(2);
        assert!(tally.missed(&plan).unwrap().contains("hz-01-1 has 40 %"));
        tally.began(3);
        assert!(tally.missed(&plan).unwrap().contains("line 18"));
        tally.struck(3, 7);
        assert_eq!(tally.missed(&plan), None);
    }

    #[test]
    fn what_waits_for_an_entry_that_never_began_says_so_and_what_may_miss_may() {
        let mut both = plan(PLAN);
        both.timeline.drain(..2);
        both.timeline.first_mut().unwrap().may_miss = true;
        let missed = Tally::new(&both).missed(&both).unwrap();
        assert!(missed.contains("line 18") && missed.contains("the entry before it"), "{missed}");
        both.timeline.last_mut().unwrap().may_miss = true;
        assert_eq!(Tally::new(&both).missed(&both), None);
    }
}
