//! How the command line ends: a code that pipelines can branch on. Used by every command.

use std::fmt;

use super::client::ClientError;

/// Exit codes; `crossdock --help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something else went wrong.
    Error = 1,
    /// The command line or a file given is wrong.
    Usage = 2,
    /// There is no such object.
    NotFound = 3,
    /// The hub refused: somebody changed it meanwhile, or a rule forbids it.
    Refused = 4,
    /// A rollout ended without success.
    RolloutFailed = 5,
    /// It did not happen in the time given.
    TimedOut = 6,
    /// The hub could not be reached, or is not the one that is trusted.
    Unreachable = 7,
    /// The token is wrong or may not do this.
    Unauthorized = 8,
}

/// For the end of `crossdock --help`.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  something went wrong
  2  the command line or a file given is wrong
  3  not found
  4  refused by the hub: changed meanwhile, or against a rule
  5  a rollout ended without success
  6  timed out
  7  the hub could not be reached, or is not the trusted one
  8  the token is wrong or may not do this

Environment:
  CROSSDOCK_CONFIG   file with the hubs logged in to (~/.config/crossdock/contexts.yaml)
  CROSSDOCK_CONTEXT  which of them to use
  CROSSDOCK_SERVER, CROSSDOCK_TOKEN, CROSSDOCK_CA
                     URL, token and CA file of a hub, instead of any context";

/// An error with an exit code of its own.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    /// Ends the program with `exit`, saying `message`.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Failure { exit, message: message.into() })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The code for an error: that of the first cause that has one.
#[must_use]
pub fn code(error: &anyhow::Error) -> Exit {
    let of = |cause: &(dyn std::error::Error + 'static)| {
        let failure = cause.downcast_ref::<Failure>().map(|f| f.exit);
        failure.or_else(|| cause.downcast_ref::<ClientError>().map(ClientError::exit))
    };
    error.chain().find_map(of).unwrap_or(Exit::Error)
}

/// Whether whoever read the output has gone, as `head` does. That is no error.
#[must_use]
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let closed = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.downcast_ref::<std::io::Error>().is_some_and(closed)
}
