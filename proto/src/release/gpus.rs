//! The GPUs that a workload needs.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::ManifestError;
use crate::units::Bytes;

/// Most GPUs that one workload may ask for.
pub const MAX_GPUS: u32 = 64;

/// The GPUs that a workload needs. Its agent chooses them, keeps others off them, and names them to the workload in
/// `CUDA_VISIBLE_DEVICES` and `NVIDIA_VISIBLE_DEVICES`. A box that lacks them does not start it, and does not stop
/// what ran before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpus {
    /// How many.
    #[serde(default = "one")]
    pub count: u32,
    /// Memory that it needs on each of them. Needed when they are shared: it is the share that is kept for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Whether it has each of them for itself (the default, as in Kubernetes), or with others.
    #[serde(default = "yes")]
    pub exclusive: bool,
    /// Versions of the NVIDIA driver that it runs with, such as `>=535` or `>=535.104, <560`. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<DriverVersions>,
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

impl Gpus {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first field that cannot work.
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        let wrong = |text: String| Err(ManifestError::Workload(text));
        if self.count == 0 || self.count > MAX_GPUS {
            return wrong(format!("gpus.count {} is not 1 to {MAX_GPUS}; leave gpus out for none", self.count));
        }
        if self.memory.is_some_and(|memory| memory.get() < 1 << 20) {
            return wrong("gpus.memory below 1Mi would run nothing".into());
        }
        if !self.exclusive && self.memory.is_none() {
            return wrong("gpus that are shared (exclusive: false) need gpus.memory, the share that is kept".into());
        }
        Ok(())
    }

    /// Bytes that it needs on each GPU; 0 when it does not say.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory.map_or(0, Bytes::get)
    }
}

/// Versions of a driver: comparisons joined by commas, all of which must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DriverVersions {
    text: String,
    all: Vec<(Comparison, Vec<u32>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    AtLeast,
    AtMost,
    Above,
    Below,
    Equal,
}

/// In the order in which they are looked for.
const COMPARISONS: [(&str, Comparison); 5] = [
    (">=", Comparison::AtLeast),
    ("<=", Comparison::AtMost),
    (">", Comparison::Above),
    ("<", Comparison::Below),
    ("=", Comparison::Equal),
];

impl DriverVersions {
    /// Whether a version, such as `535.183.01`, is one of them. A text that is no version is not. A version stands for
    /// all that begin with it: `=535` holds for `535.183.01`, and `>535` does not.
    #[must_use]
    pub fn hold(&self, version: &str) -> bool {
        let Some(version) = numbers(version) else { return false };
        self.all.iter().all(|(comparison, wanted)| {
            let begins = version.iter().copied().chain(std::iter::repeat(0)).take(wanted.len());
            let order = begins.cmp(wanted.iter().copied());
            match comparison {
                Comparison::AtLeast => order != Ordering::Less,
                Comparison::AtMost => order != Ordering::Greater,
                Comparison::Above => order == Ordering::Greater,
                Comparison::Below => order == Ordering::Less,
                Comparison::Equal => order == Ordering::Equal,
            }
        })
    }
}

fn numbers(version: &str) -> Option<Vec<u32>> {
    let parts = version.trim().split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>()?;
    (parts.len() <= 8).then_some(parts)
}

impl FromStr for DriverVersions {
    type Err = String;
    fn from_str(text: &str) -> Result<DriverVersions, String> {
        let wrong = || {
            let text: String = text.chars().take(80).collect();
            format!("driver {text:?}: write comparisons such as \">=535\" or \">=535.104, <560\"")
        };
        let one = |part: &str| {
            let part = part.trim();
            let found = COMPARISONS.iter().find_map(|(sign, c)| Some((*c, numbers(part.strip_prefix(sign)?)?)));
            found.ok_or_else(wrong)
        };
        let all = text.split(',').take(9).map(one).collect::<Result<Vec<_>, String>>()?;
        if all.len() > 8 {
            return Err(wrong());
        }
        Ok(DriverVersions { text: text.to_owned(), all })
    }
}

impl TryFrom<String> for DriverVersions {
    type Error = String;
    fn try_from(text: String) -> Result<DriverVersions, String> {
        text.parse()
    }
}

impl From<DriverVersions> for String {
    fn from(versions: DriverVersions) -> String {
        versions.text
    }
}

impl fmt::Display for DriverVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_versions_are_compared_as_numbers() {
        let holds = |wanted: &str, version: &str| wanted.parse::<DriverVersions>().unwrap().hold(version);
        for (wanted, version) in [
            (">=535", "535.183.01"),
            (">=535", "1000.1"),
            (">=535.104, <560", "550.54.15"),
            ("=535", "535.183.01"),
            ("<= 535", "535.183.01"),
            (">535", "536.1"),
            ("<535.200", "535.183.01"),
        ] {
            assert!(holds(wanted, version), "{wanted} {version}");
        }
        for (wanted, version) in [
            (">=535", "470.82"),
            (">=535.200", "535.183.01"),
            (">=535", "99.1"),
            (">535", "535.183.01"),
            (">=535.104, <560", "560.1"),
            (">=1", ""),
            (">=1", "unknown"),
        ] {
            assert!(!holds(wanted, version), "{wanted} {version}");
        }
        for bad in ["", "535", ">=", ">=abc", ">=5,", "~535", &">=1,".repeat(9)] {
            let error = bad.parse::<DriverVersions>().unwrap_err();
            assert!(error.contains(">=535"), "{error}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let parse = |text: &str| serde_json::from_str::<Gpus>(text).unwrap();
        let whole = parse(r#"{"count": 2, "memory": "4Gi", "exclusive": false, "driver": ">=535"}"#);
        whole.check().unwrap();
        assert_eq!(serde_json::from_str::<Gpus>(&serde_json::to_string(&whole).unwrap()).unwrap(), whole);
        let least = parse("{}");
        least.check().unwrap();
        assert_eq!((least.count, least.exclusive, least.memory_bytes()), (1, true, 0));
        for bad in [r#"{"count": 0}"#, r#"{"count": 65}"#, r#"{"exclusive": false}"#, r#"{"memory": "1Ki"}"#] {
            parse(bad).check().unwrap_err();
        }
    }
}
