//! Workloads as processes of the box.
use std::path::PathBuf;

use proto::env::Env;

/// Runs workloads as processes, each under a shim of its own.
#[derive(Debug)]
pub struct ProcessDriver {
    root: PathBuf,
    env: Env,
    program: PathBuf,
}

impl ProcessDriver {
    /// Keeps its records below `root`.
    #[must_use]
    pub fn new(root: PathBuf, env: Env) -> ProcessDriver {
        ProcessDriver { root, env, program: "/proc/self/exe".into() }
    }

    /// Uses another program than the running one for `shim` and `exec`.
    #[must_use]
    pub fn with_program(mut self, program: PathBuf) -> ProcessDriver {
        self.program = program;
        self
    }
}
