//! MQTT topics: filters as brokers understand them, and the stream that a topic leads to.

use std::{fmt, str::FromStr};

use proto::name::Name;

use crate::settings::TopicSetting;

const MAX_FILTER_BYTES: usize = 1024;

/// A topic filter: levels between `/`, `+` for any one level, `#` at the end for all that follow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filter(String);

/// A text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no topic filter: '+' stands for a whole level, '#' for all levels from the last on, such as line/+/scan"
)]
pub struct FilterError(String);

impl Filter {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The levels that a topic is compared with: a shared subscription's without `$share` and its group.
    fn levels(&self) -> impl Iterator<Item = &str> {
        let shared = self.0.strip_prefix("$share/").and_then(|rest| rest.split_once('/'));
        shared.map_or(self.0.as_str(), |(_, filter)| filter).split('/')
    }

    /// Whether there is something to compare with, and a shared subscription's group has a name (MQTT-4.8.2-1, -2).
    fn has_parts(&self) -> bool {
        let Some(shared) = self.0.strip_prefix("$share/") else { return !self.0.is_empty() };
        let is_named = |group: &str| !group.is_empty() && !group.contains(['+', '#']);
        shared.split_once('/').is_some_and(|(group, filter)| is_named(group) && !filter.is_empty())
    }

    /// Whether `topic` is meant.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        // A wildcard at the start does not reach the broker's own topics (MQTT-4.7.2-1).
        if topic.starts_with('$') && self.levels().next().is_some_and(|l| l == "+" || l == "#") {
            return false;
        }
        let mut topic = topic.split('/');
        for level in self.levels() {
            match (level, topic.next()) {
                ("#", _) => return true,
                ("+", Some(_)) => {}
                (level, Some(part)) if level == part => {}
                _ => return false,
            }
        }
        topic.next().is_none()
    }
}

impl FromStr for Filter {
    type Err = FilterError;
    fn from_str(text: &str) -> Result<Filter, FilterError> {
        let filter = Filter(text.to_owned());
        let levels: Vec<&str> = filter.levels().collect();
        let whole = |level: &&str| !level.contains(['+', '#']) || level.len() == 1;
        let ends = levels.iter().rev().skip(1).all(|l| *l != "#");
        let bounded = text.len() <= MAX_FILTER_BYTES && !text.contains('\0');
        if bounded && filter.has_parts() && ends && levels.iter().all(whole) {
            Ok(filter)
        } else {
            Err(FilterError(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The stream that `topic` leads to: of the first filter that fits.
#[must_use]
pub fn stream_of<'a>(topics: &'a [TopicSetting], topic: &str) -> Option<&'a Name> {
    topics.iter().find(|t| t.filter.matches(topic)).map(|t| &t.stream)
}

/// Whether a publisher may name it: not empty, no wildcards, no NUL.
#[must_use]
pub fn is_publishable(topic: &str) -> bool {
    !topic.is_empty() && !topic.contains(['+', '#', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, matches) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/", false),
            ("a/b", "a", false),
            ("a/+", "a/b", true),
            ("a/+", "a/", true),
            ("a/+", "a", false),
            ("a/+", "a/b/c", false),
            ("+", "a", true),
            ("+", "/a", false),
            ("+/+", "/a", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "b", false),
            ("#", "a/b", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("line/+/scan", "line/7/scan", true),
            ("line/+/scan", "line/7/weight", false),
            ("$share/g/line/+", "line/7", true),
            ("$share/g/line/+", "g/line/7", false),
        ] {
            assert_eq!(filter.parse::<Filter>().unwrap().matches(topic), matches, "{filter} {topic}");
        }
    }

    #[test]
    fn what_is_no_filter_does_not_exist() {
        for bad in ["", "a/#/b", "a#", "a+", "+a/b", "a/b#", "##", "a\0", &"a".repeat(2000)] {
            assert!(bad.parse::<Filter>().is_err(), "{bad:?}");
        }
        // A broker would close the connection, and be asked the same again for ever.
        for bad in ["$share/", "$share/g", "$share/g/", "$share//a", "$share/+/a", "$share/a#/a"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad:?}");
        }
    }
}
