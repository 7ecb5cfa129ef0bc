//! Exit codes, for pipelines to branch on.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed for a reason that has no code of its own |
//! | 2 | the command line is wrong |
//! | 3 | not found |
//! | 4 | refused: it conflicts, or the hub does not accept it |
//! | 5 | the rollout failed |
//! | 6 | timed out |
//! | 7 | the hub cannot be reached |
//! | 8 | not logged in, or not allowed |
//! | 9 | the rollout is paused: somebody must decide |
//! | 10 | the rollout was rolled back |
//! | any | of `crossdock exec`: as the command ended, 128 and the signal's number where one ended it |
//! | 141 | whoever read the output has seen enough, as `head` does |

use std::fmt;

/// Why the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// 1
    Failed = 1,
    /// 2
    Usage = 2,
    /// 3
    NotFound = 3,
    /// 4
    Refused = 4,
    /// 5
    RolloutFailed = 5,
    /// 6
    TimedOut = 6,
    /// 7
    Unreachable = 7,
    /// 8
    Unauthorized = 8,
    /// 9
    Paused = 9,
    /// 10
    RolledBack = 10,
}

/// 128 and the number of SIGPIPE: what a shell reports of a program that the signal ended.
pub const PIPE_CLOSED: u8 = 141;

/// An error that knows its exit code. Wrap it in context freely; [`code`] finds it again.
#[derive(Debug)]
pub struct CliError {
    /// The code.
    pub exit: Exit,
    /// What was attempted, what is wrong, how to mend it.
    pub message: String,
    /// Somebody else was faster: read again, and change that, may help.
    pub is_stale: bool,
}

impl CliError {
    /// An error with a code.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> CliError {
        CliError { exit, message: message.into(), is_stale: false }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}

/// A command in a workload ended so. It said itself what there is to say.
#[derive(Debug)]
pub struct CommandExit(pub u8);

impl fmt::Display for CommandExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the command ended with code {}", self.0)
    }
}

impl std::error::Error for CommandExit {}

/// Whether asking again cannot help. A hub that restarts or drains is worth asking again.
#[must_use]
pub fn is_final(error: &anyhow::Error) -> bool {
    let exit = error.downcast_ref::<CliError>().map(|e| e.exit);
    matches!(exit, Some(Exit::NotFound | Exit::Unauthorized | Exit::Usage | Exit::Refused))
}

/// The exit code of an error, whatever it was wrapped in.
#[must_use]
pub fn code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<CommandExit>() {
        Some(CommandExit(code)) => *code,
        None => error.downcast_ref::<CliError>().map_or(Exit::Failed, |e| e.exit) as u8,
    }
}
