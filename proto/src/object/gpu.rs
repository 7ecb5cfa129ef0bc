//! GPUs of a node: what they are ([`GpuInventory`], a fact) and how they do ([`GpuUsage`], figures). Names are NVML's.

use crate::name::Name;

/// Most GPUs of one node that are told, and most processes of one GPU.
pub const MAX_GPUS: usize = 64;
/// Longest text of a GPU's that the hub keeps, in characters.
const MAX_TEXT_CHARS: usize = 256;

data! {
    /// The NVIDIA GPUs of a node.
    #[derive(Eq, Default)]
    pub struct GpuInventory {
        /// Version of the driver, such as `550.54.15`; empty when it does not answer.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub driver_version: String,
        /// Newest CUDA that the driver knows, such as `12.4`; empty when it does not answer.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub cuda_version: String,
        /// Each GPU, by index. One that was lost since the agent started stays, with its problem.
        #[serde(default)]
        pub devices: Vec<GpuInfo>,
    }

    /// One GPU.
    #[derive(Eq, Default)]
    pub struct GpuInfo {
        /// Such as `GPU-8932f937-d72c-4106-c12f-20bd9faed9f6`: stays with the card.
        pub uuid: String,
        /// As `nvidia-smi` counts; changes with boots and cards.
        pub index: u32,
        /// Such as `NVIDIA L4`.
        pub model: String,
        /// Bytes of its memory.
        pub memory_bytes: u64,
        /// Why no app gets it, one word for programs; empty while it is well.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub problem: String,
        /// Apps that hold it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub apps: Vec<Name>,
    }

    /// Figures of one GPU. What it does not tell is absent.
    #[derive(Eq, Default)]
    pub struct GpuUsage {
        /// Which.
        pub uuid: String,
        /// Share of the last sample period in which a kernel ran, 0 to 100.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub utilization_percent: Option<u32>,
        /// Memory in use, bytes, with what the driver keeps for itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub memory_used_bytes: Option<u64>,
        /// Memory that is free, bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub memory_free_bytes: Option<u64>,
        /// Degrees Celsius of the die.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub temperature_c: Option<u32>,
        /// Degrees Celsius from which on it slows itself down.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub slowdown_c: Option<u32>,
        /// Power it draws, milliwatts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub power_mw: Option<u32>,
        /// Power it may draw, milliwatts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub power_limit_mw: Option<u32>,
        /// ECC errors that were corrected since the driver was loaded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ecc_corrected: Option<u64>,
        /// ECC errors that were not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ecc_uncorrected: Option<u64>,
        /// Why its clocks are below what they could be, such as `HW_THERMAL_SLOWDOWN`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub throttle: Vec<String>,
        /// The last Xid (NVIDIA's number of an error) since the agent looks.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub last_xid: Option<u64>,
        /// Who uses it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub processes: Vec<GpuProcess>,
    }

    /// A process that uses a GPU.
    #[derive(Eq, Default)]
    pub struct GpuProcess {
        /// Its number on the box.
        pub pid: u32,
        /// GPU memory that it holds, bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub memory_bytes: Option<u64>,
        /// The app that it belongs to, if any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub app: Option<Name>,
    }
}

impl GpuInventory {
    /// Cuts what a node says to what is kept of it.
    pub fn bound(&mut self) {
        self.devices.truncate(MAX_GPUS);
        let texts = self.devices.iter_mut().flat_map(|gpu| [&mut gpu.uuid, &mut gpu.model, &mut gpu.problem]);
        texts.chain([&mut self.driver_version, &mut self.cuda_version]).for_each(cut);
        self.devices.iter_mut().for_each(|gpu| gpu.apps.truncate(MAX_GPUS));
    }
}

impl GpuUsage {
    /// Cuts what a node says of its GPUs to what is kept of it.
    pub fn bound(all: &mut Vec<GpuUsage>) {
        all.truncate(MAX_GPUS);
        for gpu in all {
            cut(&mut gpu.uuid);
            gpu.throttle.truncate(MAX_GPUS);
            gpu.throttle.iter_mut().for_each(cut);
            gpu.processes.truncate(MAX_GPUS);
        }
    }
}

fn cut(text: &mut String) {
    if let Some((at, _)) = text.char_indices().nth(MAX_TEXT_CHARS) {
        text.truncate(at);
    }
}
