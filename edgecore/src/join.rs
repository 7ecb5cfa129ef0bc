//! `edgecore join`: keys made here, certificate from the hub, identity written durably.

use std::path::PathBuf;

use proto::{env::Env, name::Name, token::Token};

/// What joining needs.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// The data folder.
    pub data_dir: PathBuf,
    /// Addresses of the hub, `host` or `host:port`, tried in turn.
    pub hub: Vec<String>,
    /// The token that the operator handed out.
    pub token: Token,
    /// Name to ask for; the host name when absent.
    pub name: Option<String>,
    /// Identity of the hardware.
    pub machine_id: String,
}

/// Who this box is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its name.
    pub node: Name,
    /// Its site.
    pub site: Name,
    /// Its fleet.
    pub fleet: Name,
}

/// Joining failed; the data folder is as before.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No hub answered.
    #[error("no hub answered: {0}")]
    Unreachable(String),
}

/// Joins the fleet that the token is for.
///
/// # Errors
/// What was refused or failed, with the mend.
pub async fn join(_options: JoinOptions, _env: &Env) -> Result<Joined, JoinError> {
    Err(JoinError::Unreachable("not tried".into()))
}
