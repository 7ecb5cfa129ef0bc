//! A look at the GPUs by NVML, NVIDIA's management library. Runs in the helper's process, see [`super::helper`].
//!
//! What a GPU does not support reads as absent: consumer cards have no ECC, drivers before 510 tell no memory.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Read as _,
    os::unix::ffi::OsStrExt as _,
};

use nvml_wrapper::{
    Device as NvmlDevice, EventSet, Nvml,
    bitmasks::{device::ThrottleReasons, event::EventTypes},
    cuda_driver_version_major, cuda_driver_version_minor,
    enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold},
    enums::{device::UsedGpuMemory, event::XidError},
    error::NvmlError,
    struct_wrappers::device::ProcessInfo,
};
use proto::{
    name::Name,
    object::{GpuProcess, GpuUsage},
};

use super::look::{Device, Driver, Look, reason};

/// Most Xids of one GPU that are read in one look.
const MAX_XIDS: usize = 64;
/// Of a process's environment this much is read.
const MAX_ENVIRONMENT_BYTES: u64 = 256 << 10;
/// Environment variable that names the app of a process.
const APP: &[u8] = b"CROSSDOCK_APP=";
/// Not asked for by anybody: nothing runs, or somebody chose lower clocks.
const NO_THROTTLE: ThrottleReasons = ThrottleReasons::GPU_IDLE
    .union(ThrottleReasons::APPLICATIONS_CLOCKS_SETTING)
    .union(ThrottleReasons::DISPLAY_CLOCK_SETTING);

/// Loads NVML and opens the driver.
///
/// # Errors
/// Why there is nothing to look at.
pub(super) fn open(library: &OsStr) -> Result<Nvml, Driver> {
    Nvml::builder().lib_path(library).init().map_err(|error| driver(&error, library))
}

/// An opened NVML, and who listens for Xids.
#[derive(Debug)]
pub(super) struct Session<'nvml> {
    nvml: &'nvml Nvml,
    /// Of each GPU that has Xids to tell, by index: a set that failed for one would be lost for all.
    xids: Vec<(u32, EventSet<'nvml>)>,
}

impl<'nvml> Session<'nvml> {
    pub(super) fn new(nvml: &'nvml Nvml) -> Session<'nvml> {
        let mut xids = vec![];
        for index in 0..nvml.device_count().unwrap_or(0) {
            let listen = || {
                let device = nvml.device_by_index(index).ok()?;
                device.register_events(EventTypes::CRITICAL_XID_ERROR, nvml.create_event_set().ok()?).ok()
            };
            xids.extend(listen().map(|set| (index, set)));
        }
        Session { nvml, xids }
    }

    /// One look.
    pub(super) fn look(&self, library: &OsStr) -> Look {
        let found = || {
            let version = self.nvml.sys_driver_version()?;
            let cuda = self.nvml.sys_cuda_driver_version().ok();
            let cuda = cuda.map(|v| format!("{}.{}", cuda_driver_version_major(v), cuda_driver_version_minor(v)));
            let count = self.nvml.device_count()?;
            Ok((Driver::Working { version, cuda: cuda.unwrap_or_default() }, count))
        };
        match found() {
            Ok((driver, count)) => Look { driver, devices: (0..count).map(|index| self.device(index)).collect() },
            Err(error) => Look::without(driver(&error, library)),
        }
    }

    fn device(&self, index: u32) -> Device {
        let xids = self.xids.iter().find(|(of, _)| *of == index).map(|(_, set)| drain(set)).unwrap_or_default();
        let found = Device { index, xids, ..Device::default() };
        match self.nvml.device_by_index(index).and_then(|device| Ok((device.uuid()?, device))) {
            Ok((uuid, device)) => figures(&device, Device { uuid: Some(uuid), ..found }),
            Err(error) => Device { lost: Some(error.to_string()), ..found },
        }
    }
}

/// Xids that wait to be read.
fn drain(set: &EventSet<'_>) -> Vec<u64> {
    let next = || set.wait(0).ok(); // time-out: there is none
    let events = std::iter::from_fn(next).take(MAX_XIDS);
    let xid = |data| match data {
        XidError::Value(xid) => xid,
        XidError::Unknown => 999, // NVML's number for it
    };
    events.filter_map(|event| event.event_data.map(xid)).collect()
}

/// Reads all that it tells, and notices when it is lost meanwhile.
fn figures(gpu: &NvmlDevice<'_>, found: Device) -> Device {
    let mut lost = None;
    let mut processes = vec![];
    for listed in [told(gpu.running_compute_processes(), &mut lost), told(gpu.running_graphics_processes(), &mut lost)]
    {
        processes.extend(listed.into_iter().flatten().map(|process| owned(&process)));
    }
    processes.sort_by_key(|process: &GpuProcess| process.pid);
    processes.dedup_by_key(|process| process.pid);
    let memory = told(gpu.memory_info(), &mut lost);
    let ecc = |kind| gpu.total_ecc_errors(kind, EccCounter::Volatile);
    let throttle = told(gpu.current_throttle_reasons(), &mut lost).unwrap_or_else(ThrottleReasons::empty);
    let usage = GpuUsage {
        uuid: String::new(),
        utilization_percent: told(gpu.utilization_rates(), &mut lost).map(|rates| rates.gpu),
        memory_used_bytes: memory.as_ref().map(|m| m.total.saturating_sub(m.free)),
        memory_free_bytes: memory.as_ref().map(|m| m.free),
        temperature_c: told(gpu.temperature(TemperatureSensor::Gpu), &mut lost),
        slowdown_c: told(gpu.temperature_threshold(TemperatureThreshold::Slowdown), &mut lost),
        power_mw: told(gpu.power_usage(), &mut lost),
        power_limit_mw: told(gpu.enforced_power_limit(), &mut lost),
        ecc_corrected: told(ecc(MemoryError::Corrected), &mut lost),
        ecc_uncorrected: told(ecc(MemoryError::Uncorrected), &mut lost),
        throttle: throttle.difference(NO_THROTTLE).iter_names().map(|(name, _)| name.to_owned()).collect(),
        last_xid: None,
        processes,
    };
    let model = told(gpu.name(), &mut lost).unwrap_or_default();
    Device { model, memory_bytes: memory.map_or(0, |m| m.total), lost, usage, ..found }
}

/// What is told, if it is; `lost` says that the GPU is.
fn told<T>(result: Result<T, NvmlError>, lost: &mut Option<String>) -> Option<T> {
    if let Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) = &result {
        *lost = Some(error.to_string());
    }
    result.ok()
}

fn owned(process: &ProcessInfo) -> GpuProcess {
    let memory_bytes = match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    };
    GpuProcess { pid: process.pid, memory_bytes, app: app_of(process.pid) }
}

/// The app that a process belongs to, as its environment says.
fn app_of(pid: u32) -> Option<Name> {
    let mut environment = vec![];
    let file = File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(MAX_ENVIRONMENT_BYTES).read_to_end(&mut environment).ok()?;
    let app = environment.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(APP))?;
    std::str::from_utf8(app).ok()?.parse().ok()
}

/// What an error of NVML as a whole says about the driver.
fn driver(error: &NvmlError, library: &OsStr) -> Driver {
    let absent = |why: String| Driver::Absent { why };
    match error {
        NvmlError::LibloadingError(cause) => absent(format!("{} cannot be loaded: {cause}", library.display())),
        NvmlError::DriverNotLoaded | NvmlError::LibraryNotFound => absent(error.to_string()),
        NvmlError::LibRmVersionMismatch => Driver::trouble(
            reason::MISMATCH,
            format!(
                "NVIDIA's library and its kernel module{} are of different versions, as after an update of the driver: \
                 restart the box; what uses the GPUs already goes on until then",
                kernel_module().map(|version| format!(" ({version})")).unwrap_or_default()
            ),
        ),
        NvmlError::GpuLost => Driver::trouble(
            reason::LOST,
            "a GPU has fallen off the bus, and the driver answers for none; restart the box, and look at the card's \
             seat, power and heat",
        ),
        NvmlError::NoPermission => {
            Driver::trouble(reason::FAILED, "the agent may not ask NVIDIA's driver; run it as root")
        }
        error => {
            let text = format!("NVIDIA's driver answers: {error}; see dmesg, and nvidia-smi on the box");
            Driver::trouble(reason::FAILED, text)
        }
    }
}

/// Version of the kernel module.
fn kernel_module() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("NVRM version:"))?;
    line.split_whitespace()
        .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
        .map(Into::into)
}

/// Whether the library that this process loaded was replaced on disk since: the kernel module may have been, too.
pub(super) fn is_replaced() -> bool {
    let maps = fs::read("/proc/self/maps").unwrap_or_default();
    let mut lines = maps.split(|byte| *byte == b'\n');
    lines
        .any(|line| line.ends_with(b" (deleted)") && OsStr::from_bytes(line).to_string_lossy().contains("libnvidia-ml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_library_there_is_no_driver() {
        let Err(Driver::Absent { why }) = open(OsStr::new("/nonexistent/libnvidia-ml.so.1")) else { panic!() };
        assert!(why.contains("/nonexistent/libnvidia-ml.so.1 cannot be loaded"), "{why}");
    }
}
