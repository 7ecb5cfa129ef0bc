//! The machine with time as an argument, and the task with a driver that only pretends.

mod machine;
mod task;

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use proto::{
    digest::Digest,
    name::Name,
    object::ReleaseRef,
    release::{Probe, Workload},
};
use rand::SeedableRng as _;
use tokio::{
    sync::Notify,
    time::{advance, timeout},
};

use super::*;
use crate::driver::{Instance, Side};

fn workload(json: &str) -> Workload {
    serde_json::from_str(json).unwrap()
}

fn exit(code: i32) -> LastExit {
    LastExit { code: Some(code), signal: None, at: Timestamp::UNIX_EPOCH, message: format!("exited with code {code}") }
}

fn failure() -> ProbeOutcome {
    ProbeOutcome::Failure("no".into())
}
