//! Label selectors as in Kubernetes: `site=hz-01,gpu in (a100,h200),!cordoned`, or `all`.
//!
//! Besides its labels a node answers to the keys `name` and `site`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Longest selector accepted, in bytes.
pub const MAX_SELECTOR_BYTES: usize = 4096;
/// Longest key and longest value of a label, in bytes.
pub const MAX_LABEL_BYTES: usize = 128;

/// Whether a text can be the key or the value of a label: the one rule for objects, tokens and selectors,
/// so that whatever is labelled can be selected.
#[must_use]
pub fn is_label_word(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    (1..=MAX_LABEL_BYTES).contains(&text.len()) && text.chars().all(good)
}

/// The first label of a map whose key or value no selector could name.
#[must_use]
pub fn bad_label(labels: &BTreeMap<String, String>) -> Option<(&str, &str)> {
    let bad = labels.iter().find(|(key, value)| !is_label_word(key) || !is_label_word(value));
    bad.map(|(key, value)| (key.as_str(), value.as_str()))
}

/// A text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "selector {text:?}: {problem}; write requirements such as site=hz-01, gpu!=none, line in (a,b), gpu, !gpu, joined by commas, or all"
)]
pub struct SelectorError {
    text: String,
    problem: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

/// A conjunction of requirements on labels. The empty one, written `all`, matches everything.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector {
    text: String,
    requirements: Vec<Requirement>,
}

impl Selector {
    /// Matches everything.
    #[must_use]
    pub fn all() -> Selector {
        Selector { text: "all".into(), requirements: vec![] }
    }

    /// Whether labels satisfy every requirement.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// The only values that `key` can have where this matches; `None` when it is not bound to any. None of them: it
    /// never matches.
    #[must_use]
    pub fn values_of(&self, key: &str) -> Option<BTreeSet<&str>> {
        let mut bounds = self.requirements.iter().filter_map(|requirement| match requirement {
            Requirement::In(of, values) if of == key => Some(values.iter().map(String::as_str).collect()),
            _ => None,
        });
        let first: BTreeSet<&str> = bounds.next()?;
        Some(bounds.fold(first, |all, bound: BTreeSet<&str>| all.intersection(&bound).copied().collect()))
    }

    /// As [`Selector::matches`], for labels that stand elsewhere.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            // As in Kubernetes, a missing label satisfies `!=` and `notin`.
            Requirement::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
        })
    }
}

/// Splits at commas that stand outside parentheses.
fn split_requirements(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_i32, 0, vec![]);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text.get(start..i).unwrap_or_default());
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(text.get(start..).unwrap_or_default());
    parts
}

fn word(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    if text.is_empty() {
        Err("a key or value is missing")
    } else if is_label_word(text) {
        Ok(text.to_owned())
    } else {
        Err("keys and values hold only letters, digits, '-', '_', '.' and '/', at most 128")
    }
}

fn requirement(text: &str) -> Result<Requirement, &'static str> {
    let text = text.trim();
    if let Some((key, value)) = text.split_once("!=") {
        return Ok(Requirement::NotIn(word(key)?, vec![word(value)?]));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Requirement::In(word(key)?, vec![word(value)?]));
    }
    if let Some(list) = text.strip_suffix(')') {
        let (head, list) = list.split_once('(').ok_or("a parenthesis is not opened")?;
        let values = list.split(',').map(word).collect::<Result<Vec<_>, _>>()?;
        let mut head = head.split_whitespace();
        return match (head.next(), head.next(), head.next()) {
            (Some(key), Some("in"), None) => Ok(Requirement::In(word(key)?, values)),
            (Some(key), Some("notin"), None) => Ok(Requirement::NotIn(word(key)?, values)),
            _ => Err("before a parenthesis stands KEY in or KEY notin"),
        };
    }
    match text.strip_prefix('!') {
        Some(key) => Ok(Requirement::Absent(word(key)?)),
        None => Ok(Requirement::Exists(word(text)?)),
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Selector, SelectorError> {
        let error = |problem| SelectorError { text: text.chars().take(120).collect(), problem };
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(error("it is longer than 4,096 bytes"));
        }
        match text.trim() {
            "" => Err(error("it is empty")),
            "all" => Ok(Selector::all()),
            trimmed => {
                let requirements: Result<_, _> = split_requirements(trimmed).into_iter().map(requirement).collect();
                Ok(Selector { text: trimmed.to_owned(), requirements: requirements.map_err(error)? })
            }
        }
    }
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;
    fn try_from(text: String) -> Result<Selector, SelectorError> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> String {
        selector.text
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_those_of_kubernetes() {
        let labels: BTreeMap<_, _> = [("site", "hz-01"), ("gpu", "h200")].map(|(k, v)| (k.into(), v.into())).into();
        for yes in [
            "all",
            "site=hz-01",
            "site==hz-01,gpu",
            "gpu in (a100, h200)",
            "!cordoned",
            "cordoned!=true",
            "x notin (y)",
        ] {
            assert!(yes.parse::<Selector>().unwrap().matches(&labels), "{yes}");
        }
        for no in ["site=hz-02", "!gpu", "gpu notin (h200)", "site=hz-01,cordoned", "gpu!=h200"] {
            assert!(!no.parse::<Selector>().unwrap().matches(&labels), "{no}");
        }
        let longest = "x".repeat(MAX_LABEL_BYTES);
        assert!(format!("{longest}={longest}").parse::<Selector>().is_ok());
        assert!(format!("{longest}x").parse::<Selector>().is_err());
        assert!(bad_label(&labels).is_none());
        for (key, value) in [("", "x"), ("x", ""), ("a b", "x"), ("x", "ä")] {
            let labels = [(key.to_owned(), value.to_owned())].into();
            assert_eq!(bad_label(&labels), Some((key, value)));
            assert!(format!("{key}={value}").parse::<Selector>().is_err());
        }
        for bad in ["", ",", "a=", "=b", "a in b", "a in (b", "a b", "a like (b)", "ä=1", "a=b,"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }
}
