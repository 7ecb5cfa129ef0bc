//! What is known of the GPUs from all looks since the agent started, and what is wrong with them. Pure.
//!
//! A GPU that was seen once stays known: when it no longer answers it is lost, not forgotten, until the driver is
//! loaded anew. Why no app gets a GPU ([`Problem::refuses`]):
//!
//! | reason | from | until |
//! |---|---|---|
//! | `GpuLost` | it does not answer, or is missing | it answers |
//! | `GpuXid` | an Xid that is not an application's | the driver is loaded anew, or the agent starts |
//! | `GpuEccUncorrected` | uncorrected errors since the driver was loaded | the driver is loaded anew |
//! | `GpuOverheating` | it slows down for heat, or is at its slowdown temperature | 5 degrees below; apps still get it |
//! | `NvmlHangs`, `DriverMismatch`, `DriverGone`, `NvmlFailed` | of all GPUs at once | the driver works |

use std::collections::BTreeMap;

use proto::object::{GpuInfo, GpuInventory, GpuUsage};

use super::{
    look::{Device, Driver, Look, reason},
    xid,
};

/// Degrees below its slowdown temperature at which a GPU is no longer too hot.
const COOL_AGAIN_C: u32 = 5;
/// Throttling for heat that the hardware forces; software's own is everyday life of a card without a fan.
const TOO_HOT: &str = "HW_THERMAL_SLOWDOWN";
/// Longest text about all GPUs together.
const MAX_MESSAGE_CHARS: usize = 900;

/// All that is known.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Known {
    /// Looks that told anything new; 0 before the first.
    pub looks: u64,
    /// How the driver is; `None` before the first look.
    pub driver: Option<Driver>,
    /// Each GPU by uuid.
    pub gpus: BTreeMap<String, Gpu>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Gpu {
    /// As the driver counts.
    pub index: u32,
    /// Its name.
    pub model: String,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Figures; empty while it does not answer.
    pub usage: GpuUsage,
    /// What is wrong with it.
    pub problem: Option<Problem>,
    /// The last Xid that spoke against it since the driver was loaded.
    serious_xid: Option<u64>,
}

/// What is wrong with a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// One word for programs, of [`reason`].
    pub reason: String,
    /// What is wrong and how to mend it. Holds no figure that changes with every look.
    pub message: String,
}

impl Problem {
    fn new(reason: &str, message: impl Into<String>) -> Problem {
        Problem { reason: reason.into(), message: message.into() }
    }

    /// Whether no app gets the GPU because of it. A hot one does its work, slowly.
    #[must_use]
    pub fn refuses(&self) -> bool {
        self.reason != reason::HOT
    }
}

impl Known {
    /// After one more look.
    #[must_use]
    pub fn after(&self, look: Look) -> Known {
        let mut next = match &look.driver {
            Driver::Working { .. } => self.working(&look),
            Driver::Trouble { reason, message } => self.troubled(&look.driver, &Problem::new(reason, message)),
            Driver::Absent { .. } if self.gpus.is_empty() => Known { driver: Some(look.driver), ..self.clone() },
            Driver::Absent { why } => {
                let text = format!("the driver went away while the agent ran ({why}); load it: modprobe nvidia");
                self.troubled(&look.driver, &Problem::new(reason::GONE, text))
            }
        };
        next.looks = self.looks + u64::from(next != *self || self.looks == 0);
        next
    }

    /// The driver says nothing: what the GPUs are stays known, how they do does not.
    fn troubled(&self, driver: &Driver, problem: &Problem) -> Known {
        let mut next = Known { driver: Some(driver.clone()), ..self.clone() };
        for gpu in next.gpus.values_mut() {
            gpu.problem = Some(problem.clone());
            gpu.usage = GpuUsage { uuid: gpu.usage.uuid.clone(), last_xid: gpu.usage.last_xid, ..GpuUsage::default() };
        }
        next
    }

    fn working(&self, look: &Look) -> Known {
        // A driver that was loaded anew begins anew: its error counts do, and a card that is not there was taken out.
        let anew = match &self.driver {
            None | Some(Driver::Absent { .. }) => true,
            Some(Driver::Trouble { reason, .. }) => reason == reason::MISMATCH,
            Some(working) => *working != look.driver,
        };
        let before = |uuid: &str| self.gpus.get(uuid).filter(|_| !anew);
        let mut gpus = BTreeMap::new();
        let mut nameless = vec![];
        for device in &look.devices {
            match &device.uuid {
                Some(uuid) => drop(gpus.insert(uuid.clone(), Gpu::of(uuid, device, before(uuid)))),
                None => nameless.push(device),
            }
        }
        let missing = self.gpus.iter().filter(|(uuid, _)| !anew && !gpus.contains_key(*uuid));
        let missing: Vec<(String, Gpu)> = missing.map(|(uuid, gpu)| (uuid.clone(), gpu.clone())).collect();
        for (uuid, gpu) in missing {
            let at = nameless.iter().position(|device| device.index == gpu.index);
            let why = at.and_then(|at| nameless.remove(at).lost.clone());
            gpus.insert(uuid.clone(), gpu.lost(&uuid, why.as_deref().unwrap_or("it is missing")));
        }
        for device in nameless {
            let uuid = format!("GPU-at-index-{}", device.index); // never seen well: it has no other name
            gpus.insert(uuid.clone(), Gpu::of(&uuid, device, None));
        }
        Known { driver: Some(look.driver.clone()), gpus, looks: self.looks }
    }

    /// What is news for the log: a GPU's problem that began, changed or ended.
    pub(super) fn changes(&self, next: &Known) -> Vec<String> {
        let problem = |known: &Known, uuid: &str| known.gpus.get(uuid).and_then(|gpu| gpu.problem.clone());
        let changed = next.gpus.keys().filter(|uuid| problem(self, uuid) != problem(next, uuid));
        let tell = |uuid: &String| match problem(next, uuid) {
            Some(Problem { reason, message }) => format!("{uuid}: {reason}: {message}"),
            None => format!("{uuid}: it is well again"),
        };
        changed.map(tell).collect()
    }

    /// The inventory, with who has what. `None` where there is nothing of NVIDIA's.
    #[must_use]
    pub fn inventory(&self) -> Option<GpuInventory> {
        let (driver_version, cuda_version) = match &self.driver {
            Some(Driver::Working { version, cuda }) => (version.clone(), cuda.clone()),
            Some(Driver::Trouble { .. }) => Default::default(),
            None | Some(Driver::Absent { .. }) if self.gpus.is_empty() => return None,
            None | Some(Driver::Absent { .. }) => Default::default(),
        };
        let mut devices: Vec<GpuInfo> = self.gpus.iter().map(|(uuid, gpu)| gpu.info(uuid)).collect();
        devices.sort_by_key(|gpu| gpu.index); // stable: by uuid where indexes are alike
        Some(GpuInventory { driver_version, cuda_version, devices })
    }

    /// Figures of the GPUs that answer, by index.
    #[must_use]
    pub fn usage(&self) -> Vec<GpuUsage> {
        let answers = |gpu: &&Gpu| gpu.usage != GpuUsage { uuid: gpu.usage.uuid.clone(), ..GpuUsage::default() };
        let mut all: Vec<(u32, GpuUsage)> =
            self.gpus.values().filter(answers).map(|gpu| (gpu.index, gpu.usage.clone())).collect();
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, usage)| usage).collect()
    }

    /// Whether there is a GPU that apps can be given.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.gpus.values().any(|gpu| !gpu.problem.as_ref().is_some_and(Problem::refuses))
    }

    /// Version of the driver, while it works.
    #[must_use]
    pub fn driver_version(&self) -> Option<&str> {
        match &self.driver {
            Some(Driver::Working { version, .. }) => Some(version),
            _ => None,
        }
    }

    /// What is wrong: the reason of the first GPU by index that no app gets, and a sentence about each.
    /// `None` where there is nothing of NVIDIA's; `Some(None)` when all is well.
    #[must_use]
    pub fn trouble(&self) -> Option<Option<Problem>> {
        if let Some(Driver::Trouble { reason, message }) = &self.driver {
            return Some(Some(Problem::new(reason, message)));
        }
        if self.gpus.is_empty() {
            return None;
        }
        let mut bad: Vec<(bool, u32, &String, &Problem)> = vec![];
        for (uuid, gpu) in &self.gpus {
            bad.extend(gpu.problem.as_ref().map(|problem| (!problem.refuses(), gpu.index, uuid, problem)));
        }
        bad.sort_by_key(|(mild, index, ..)| (*mild, *index));
        let Some((_, _, _, worst)) = bad.first() else { return Some(None) };
        let all = match matches!(self.driver, Some(Driver::Absent { .. })) {
            true => worst.message.clone(), // one sentence is about all of them
            false => {
                bad.iter().map(|(_, _, uuid, p)| format!("{uuid}: {}", p.message)).collect::<Vec<_>>().join("; also ")
            }
        };
        Some(Some(Problem::new(&worst.reason, all.chars().take(MAX_MESSAGE_CHARS).collect::<String>())))
    }
}

impl Gpu {
    fn of(uuid: &str, device: &Device, before: Option<&Gpu>) -> Gpu {
        let serious = device.xids.iter().copied().rfind(|xid| xid::is_serious(*xid));
        let serious_xid = serious.or(before.and_then(|gpu| gpu.serious_xid));
        let last_xid = device.xids.last().copied().or(before.and_then(|gpu| gpu.usage.last_xid));
        let gpu = Gpu {
            index: device.index,
            model: device.model.clone(),
            memory_bytes: device.memory_bytes,
            usage: GpuUsage { uuid: uuid.to_owned(), last_xid, ..device.usage.clone() },
            problem: None,
            serious_xid,
        };
        match &device.lost {
            Some(why) => Gpu { serious_xid, ..before.cloned().unwrap_or(gpu) }.lost(uuid, why),
            None => Gpu { problem: gpu.judge(before.and_then(|gpu| gpu.problem.as_ref())), ..gpu },
        }
    }

    fn lost(self, uuid: &str, why: &str) -> Gpu {
        let text = match self.serious_xid {
            Some(xid) => format!("{why} (Xid {xid})"),
            None => why.to_owned(),
        };
        let text = format!("it does not answer: {text}; restart the box, and look at the card's seat, power and heat");
        let usage = GpuUsage { uuid: uuid.to_owned(), last_xid: self.usage.last_xid, ..GpuUsage::default() };
        Gpu { problem: Some(Problem::new(reason::LOST, text)), usage, ..self }
    }

    fn judge(&self, before: Option<&Problem>) -> Option<Problem> {
        if let Some(xid) = self.serious_xid {
            let meaning = Some(xid::meaning(xid)).filter(|m| !m.is_empty()).map(|m| format!(", {m}"));
            let text = format!(
                "the driver reported Xid {xid}{}; reset it (nvidia-smi --gpu-reset) or restart the box, then load the \
                 driver anew or restart the agent; when it comes back, replace the card",
                meaning.unwrap_or_default()
            );
            return Some(Problem::new(reason::XID, text));
        }
        if self.usage.ecc_uncorrected.is_some_and(|errors| errors > 0) {
            let text = "its memory had ECC errors that could not be corrected; reset it or restart the box, and \
                        replace the card when they come back";
            return Some(Problem::new(reason::ECC, text));
        }
        let was_hot = before.is_some_and(|problem| problem.reason == reason::HOT);
        let margin = if was_hot { COOL_AGAIN_C } else { 0 };
        let limit = self.usage.slowdown_c.map(|limit| limit.saturating_sub(margin));
        let is_hot = self.usage.temperature_c.zip(limit).is_some_and(|(now, limit)| now >= limit);
        let slowed = self.usage.throttle.iter().any(|why| why == TOO_HOT);
        let text = "it slows itself down for heat; look at fans, dust, and the air around the box";
        (is_hot || slowed).then(|| Problem::new(reason::HOT, text))
    }

    fn info(&self, uuid: &str) -> GpuInfo {
        GpuInfo {
            uuid: uuid.to_owned(),
            index: self.index,
            model: self.model.clone(),
            memory_bytes: self.memory_bytes,
            problem: self.problem.as_ref().map(|problem| problem.reason.clone()).unwrap_or_default(),
            apps: vec![],
        }
    }
}

#[cfg(test)]
#[path = "known_tests.rs"]
mod tests;
