//! What a box can give and what apps ask of it: memory and processor time, with the arithmetic in words.
//!
//! The names are those of Kubernetes: what a box has is its *capacity*; what apps may ask of it together is
//! *allocatable*: capacity, times the over-commit ratio, less what is kept for the system; what an app asks for are
//! its *requests*. Hub and agent reckon with the same functions: [`Room::fit`] is the one rule.

use std::{fmt, fmt::Write as _, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{name::Name, object::NodeInfo, units::Bytes};

/// Apps that a sentence names.
const NAMED: usize = 8;

data! {
    /// Memory and processor time; what is absent is none.
    #[derive(Eq, Default, Copy)]
    pub struct Resources {
        /// Memory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub memory: Option<Bytes>,
        /// Thousandths of a processor core.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub cpu_millis: Option<u32>,
    }

    /// How much more than there is apps may ask for together.
    #[derive(Eq, Default, Copy)]
    pub struct Overcommit {
        /// Of processor time.
        #[serde(default, skip_serializing_if = "Ratio::is_one")]
        pub cpu: Ratio,
        /// Of memory.
        #[serde(default, skip_serializing_if = "Ratio::is_one")]
        pub memory: Ratio,
    }

    /// How much of a box apps may ask for.
    #[derive(Eq, Default, Copy)]
    pub struct Allocation {
        /// Times what there is.
        #[serde(default, skip_serializing_if = "is_default")]
        pub overcommit: Overcommit,
        /// What of it is kept for the system and is no app's.
        #[serde(default, skip_serializing_if = "is_default")]
        pub system_reserved: Resources,
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Resources {
    /// Whether it is nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.memory_bytes() == 0 && self.cpu() == 0
    }

    /// The most of both.
    #[must_use]
    pub fn max(self, other: Resources) -> Resources {
        Resources { memory: self.memory.max(other.memory), cpu_millis: self.cpu_millis.max(other.cpu_millis) }
    }

    /// So many times as much.
    #[must_use]
    pub fn times(self, times: u8) -> Resources {
        let memory = self.memory.map(|memory| Bytes::new(memory.get().saturating_mul(times.into())));
        Resources { memory, cpu_millis: self.cpu_millis.map(|cpu| cpu.saturating_mul(times.into())) }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Resources) -> Resources {
        let memory = Bytes::new(self.memory_bytes().saturating_add(other.memory_bytes()));
        let cpu = u32::try_from(self.cpu().saturating_add(other.cpu())).unwrap_or(u32::MAX);
        Resources { memory: Some(memory), cpu_millis: Some(cpu) }
    }

    fn memory_bytes(&self) -> u64 {
        self.memory.map_or(0, Bytes::get)
    }

    fn cpu(&self) -> u64 {
        self.cpu_millis.unwrap_or(0).into()
    }
}

/// A ratio from 0.1 to 100, in thousandths: `1.5`. Written as text, for signed documents hold no fractions; read from a
/// number, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "NumberOrText", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct Ratio(u32);

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(f64),
    Text(String),
}

impl Ratio {
    /// As it is.
    pub const ONE: Ratio = Ratio(1000);

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_one(&self) -> bool {
        *self == Ratio::ONE
    }

    fn of(self, amount: u64) -> u64 {
        u64::try_from(u128::from(amount) * u128::from(self.0) / 1000).unwrap_or(u64::MAX)
    }
}

impl Default for Ratio {
    fn default() -> Ratio {
        Ratio::ONE
    }
}

impl FromStr for Ratio {
    type Err = String;
    fn from_str(text: &str) -> Result<Ratio, String> {
        let wrong = || {
            let text: String = text.chars().take(40).collect();
            format!("{text:?} is no ratio: write a number from 0.1 to 100, such as 1.5")
        };
        let number: f64 = text.trim().parse().map_err(|_| wrong())?;
        if (0.1..=100.0).contains(&number) { Ok(Ratio((number * 1000.0).round() as u32)) } else { Err(wrong()) }
    }
}

impl TryFrom<NumberOrText> for Ratio {
    type Error = String;
    fn try_from(written: NumberOrText) -> Result<Ratio, String> {
        match written {
            NumberOrText::Number(number) => number.to_string().parse(),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl From<Ratio> for String {
    fn from(ratio: Ratio) -> String {
        ratio.to_string()
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, thousandths(self.0 % 1000))
    }
}

/// At least one digit: `0`, `5`, `125`.
fn thousandths(rest: u32) -> String {
    let digits = format!("{rest:03}");
    let short = digits.trim_end_matches('0');
    if short.is_empty() { "0".into() } else { short.into() }
}

/// A box as the arithmetic sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    memory: Sum,
    cpu: Sum,
}

/// One resource of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sum {
    unit: Unit,
    capacity: u64,
    ratio: Ratio,
    reserved: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Millis,
}

/// An app does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Short {
    /// One word for programs: [`INSUFFICIENT_MEMORY`] or [`INSUFFICIENT_CPU`].
    pub reason: &'static str,
    /// The arithmetic, and what to do.
    pub message: String,
}

/// Too little memory is left.
pub const INSUFFICIENT_MEMORY: &str = "InsufficientMemory";
/// Too little processor time is left.
pub const INSUFFICIENT_CPU: &str = "InsufficientCpu";

/// What is left of what is allocatable once an app is there, of a thousand: the scarcer of memory and processor time
/// first, then the other.
pub type LeftPermille = (u64, u64);

impl Room {
    /// The room of a box that has this.
    #[must_use]
    pub fn new(info: &NodeInfo, allocation: &Allocation) -> Room {
        let Allocation { overcommit, system_reserved } = allocation;
        let memory = Sum {
            unit: Unit::Bytes,
            capacity: info.memory_bytes,
            ratio: overcommit.memory,
            reserved: system_reserved.memory_bytes(),
        };
        let (capacity, reserved) = (u64::from(info.cpus) * 1000, system_reserved.cpu());
        Room { memory, cpu: Sum { unit: Unit::Millis, capacity, ratio: overcommit.cpu, reserved } }
    }

    /// Whether an app fits beside what others ask. What it asked for here already (`own`), it may go on asking for,
    /// however full the box is: that makes nothing worse. `node` is for people.
    ///
    /// # Errors
    /// What there is too little of, with the arithmetic.
    pub fn fit(
        &self,
        node: &str,
        asks: Resources,
        own: Resources,
        others: &[(&Name, Resources)],
    ) -> Result<LeftPermille, Short> {
        let memory: Holders<'_> = others.iter().map(|(app, held)| (*app, held.memory_bytes())).collect();
        let cpu: Holders<'_> = others.iter().map(|(app, held)| (*app, held.cpu())).collect();
        let memory = self.memory.fit(node, asks.memory_bytes(), own.memory_bytes(), &memory);
        let memory = memory.map_err(|message| Short { reason: INSUFFICIENT_MEMORY, message })?;
        let cpu = self.cpu.fit(node, asks.cpu(), own.cpu(), &cpu);
        let cpu = cpu.map_err(|message| Short { reason: INSUFFICIENT_CPU, message })?;
        Ok((memory.min(cpu), memory.max(cpu)))
    }

    /// The arithmetic of both resources for people, when apps ask for this.
    #[must_use]
    pub fn words(&self, apps: &[(&Name, Resources)]) -> [String; 2] {
        let memory: Holders<'_> = apps.iter().map(|(app, held)| (*app, held.memory_bytes())).collect();
        let cpu: Holders<'_> = apps.iter().map(|(app, held)| (*app, held.cpu())).collect();
        [self.memory.words(&memory), self.cpu.words(&cpu)]
    }
}

/// Who asks for how much.
type Holders<'a> = Vec<(&'a Name, u64)>;

fn sum(holders: &Holders<'_>) -> u64 {
    holders.iter().fold(0, |sum, (_, amount)| sum.saturating_add(*amount))
}

impl Sum {
    fn allocatable(&self) -> u64 {
        self.ratio.of(self.capacity).saturating_sub(self.reserved)
    }

    /// What would be left, of a thousand.
    fn fit(&self, node: &str, asks: u64, own: u64, others: &Holders<'_>) -> Result<u64, String> {
        let all = self.allocatable();
        let left = all.saturating_sub(sum(others));
        if asks <= left || asks <= own {
            return Ok(left.saturating_sub(asks).saturating_mul(1000) / all.max(1));
        }
        Err(format!(
            "it needs {}; {node} has {}; move an app away, ask for less (workload.requests), or let the box take more \
             (crossdock allocate)",
            self.unit.amount(asks),
            self.words(others)
        ))
    }

    /// `16 GiB x 1.0 - 1 GiB reserved = 15 GiB, of which a 8 GiB and b 2 GiB are asked: 5 GiB left`.
    fn words(&self, holders: &Holders<'_>) -> String {
        let all = self.allocatable();
        let mut text = self.unit.amount(self.capacity);
        if !self.ratio.is_one() || self.reserved > 0 {
            let _ = write!(text, " x {}", self.ratio); // a string takes everything
            if self.reserved > 0 {
                let _ = write!(text, " - {} reserved", self.unit.amount(self.reserved));
            }
            let _ = write!(text, " = {}", self.unit.amount(all));
        }
        let mut asking: Holders<'_> = holders.iter().filter(|(_, amount)| *amount > 0).copied().collect();
        asking.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        if asking.is_empty() {
            return format!("{text}, of which nothing is asked");
        }
        let mut named: Vec<String> =
            asking.iter().take(NAMED).map(|(app, amount)| format!("{app} {}", self.unit.amount(*amount))).collect();
        if asking.len() > NAMED {
            named.push(format!("{} others", asking.len() - NAMED));
        }
        let last = named.pop().unwrap_or_default();
        let named = if named.is_empty() { last } else { format!("{} and {last}", named.join(", ")) };
        let are = if asking.len() == 1 { "is" } else { "are" };
        let asked = sum(&asking);
        let left = match all.checked_sub(asked) {
            Some(left) => format!("{} left", self.unit.amount(left)),
            None => format!("{} too much", self.unit.amount(asked - all)),
        };
        format!("{text}, of which {named} {are} asked: {left}")
    }
}

impl Unit {
    fn amount(self, amount: u64) -> String {
        match (self, amount >> 20) {
            (Unit::Millis, _) => {
                let rest = thousandths(u32::try_from(amount % 1000).unwrap_or(0));
                let rest = if rest == "0" { String::new() } else { format!(".{rest}") };
                format!("{}{rest} CPU", amount / 1000)
            }
            (Unit::Bytes, 0) => format!("{amount} bytes"),
            (Unit::Bytes, mib @ 1..1024) => format!("{mib} MiB"),
            (Unit::Bytes, mib) if mib.is_multiple_of(1024) => format!("{} GiB", mib / 1024),
            (Unit::Bytes, mib) => format!("{}.{} GiB", mib / 1024, mib % 1024 * 10 / 1024),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(memory: &str, cpus: u32, allocation: &str) -> Room {
        let info = serde_json::json!({"agentVersion": "", "bootId": "", "architecture": "", "osImage": "", "kernel": "",
            "cpus": cpus, "memoryBytes": memory.parse::<Bytes>().unwrap().get(), "hostname": ""});
        Room::new(&serde_json::from_value(info).unwrap(), &serde_json::from_str(allocation).unwrap())
    }

    fn asks(memory: &str, cpu_millis: u32) -> Resources {
        Resources { memory: Some(memory.parse().unwrap()), cpu_millis: Some(cpu_millis) }
    }

    #[test]
    fn who_does_not_fit_reads_the_arithmetic() {
        let room = room("16Gi", 4, r#"{"overcommit": {"cpu": 2}, "systemReserved": {"memory": "1Gi"}}"#);
        let (a, b): (Name, Name) = ("camera-a".parse().unwrap(), "scan".parse().unwrap());
        let others = [(&b, asks("2Gi", 500)), (&a, asks("8Gi", 6000))];
        let short = room.fit("box-3", asks("6Gi", 0), Resources::default(), &others).unwrap_err();
        assert_eq!(short.reason, INSUFFICIENT_MEMORY);
        let says = "it needs 6 GiB; box-3 has 16 GiB x 1.0 - 1 GiB reserved = 15 GiB, of which camera-a 8 GiB and scan \
                    2 GiB are asked: 5 GiB left; ";
        assert!(short.message.starts_with(says), "{short}");
        let short = room.fit("box-3", asks("1Gi", 1750), Resources::default(), &others).unwrap_err();
        assert_eq!(short.reason, INSUFFICIENT_CPU);
        let says = "it needs 1.75 CPU; box-3 has 4 CPU x 2.0 = 8 CPU, of which camera-a 6 CPU and scan 0.5 CPU are \
                    asked: 1.5 CPU left; ";
        assert!(short.message.starts_with(says), "{short}");
        assert_eq!(room.fit("box-3", asks("5Gi", 1500), Resources::default(), &others), Ok((0, 0)));
        assert_eq!(room.fit("", asks("3.75Gi", 0), Resources::default(), &[]), Ok((750, 1000)));
        assert_eq!(room.words(&[])[1], "4 CPU x 2.0 = 8 CPU, of which nothing is asked");
    }

    #[test]
    fn nobody_is_refused_who_asks_for_no_more_than_before() {
        let room = room("1Gi", 1, "{}");
        let other: Name = "other".parse().unwrap();
        let others = [(&other, asks("3Gi", 4000))];
        assert!(room.fit("", Resources::default(), Resources::default(), &others).is_ok());
        assert!(room.fit("", asks("2Gi", 500), asks("2Gi", 500), &others).is_ok());
        assert!(room.fit("", asks("2.5Gi", 500), asks("2Gi", 500), &others).is_err());
        assert!(room.words(&others)[0].ends_with("other 3 GiB is asked: 2 GiB too much"));
    }

    #[test]
    fn ratios_are_numbers_and_texts() {
        for (text, is) in [("1", "1.0"), ("\"1.5\"", "1.5"), ("2.125", "2.125"), ("0.1", "0.1"), ("100", "100.0")] {
            let ratio: Ratio = serde_json::from_str(text).unwrap();
            assert_eq!(ratio.to_string(), is);
            assert_eq!(serde_json::from_str::<Ratio>(&serde_json::to_string(&ratio).unwrap()).unwrap(), ratio);
        }
        for bad in ["0", "-1", "101", "\"x\"", "\"NaN\"", "\"inf\"", "0.0999"] {
            assert!(serde_json::from_str::<Ratio>(bad).is_err(), "{bad}");
        }
        assert_eq!(serde_json::to_string(&Allocation::default()).unwrap(), "{}");
    }
}
