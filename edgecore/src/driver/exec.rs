//! The last step before a workload's program: `edgecore exec`.
use std::{ffi::OsString, process::ExitCode};

/// Entry of the hidden subcommand; `args` follow its name.
pub fn main(_args: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::FAILURE
}
