//! `streams` in `hub.yaml`: where records go and how long they stay.

use std::{fmt, fs, io, path::PathBuf, str::FromStr, time::Duration};

use proto::units::Span;
use serde::{Deserialize, Serialize};

/// Where the password of an engine is looked for when no file is named.
pub const PASSWORD_VARIABLE: &str = "CROSSDOCK_SINK_PASSWORD";
/// Shortest retention.
const MIN_RETENTION: Duration = Duration::from_secs(3600);
/// Largest password file, in bytes.
const MAX_PASSWORD_BYTES: usize = 4096;

/// Where stream records go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamsConfig {
    /// `sqlite`, or an address `postgres://user@host:5432/database?sslmode=require` without password.
    #[serde(default)]
    pub sink: SinkChoice,
    /// File with the engine's password; without it the variable [`PASSWORD_VARIABLE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Certificates (PEM) that the engine's certificate must lead to; without it those of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// How long records are kept. Counts and gaps stay.
    #[serde(default = "default_retention")]
    pub retention: Span,
}

fn default_retention() -> Span {
    Span::from_secs(30 * 86_400)
}

impl Default for StreamsConfig {
    fn default() -> StreamsConfig {
        StreamsConfig { sink: SinkChoice::Sqlite, password_file: None, ca: None, retention: default_retention() }
    }
}

impl StreamsConfig {
    /// The first thing that is wrong, with its mend.
    pub(crate) fn contradiction(&self) -> Result<(), String> {
        if self.retention.get() < MIN_RETENTION {
            return Err(format!("streams.retention is {}; it must be at least 1h", self.retention));
        }
        Ok(())
    }

    /// The engine's password, read anew for every connection so that it can be changed.
    ///
    /// # Errors
    /// When the file cannot be read, or is no password.
    pub(crate) fn password(&self) -> io::Result<Option<String>> {
        let Some(path) = &self.password_file else { return Ok(std::env::var(PASSWORD_VARIABLE).ok()) };
        let text = fs::read_to_string(path)?;
        if text.len() > MAX_PASSWORD_BYTES {
            return Err(io::Error::other(format!("it has {} bytes, which no password has", text.len())));
        }
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

/// Which engine keeps the records.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SinkChoice {
    /// The one within: a file in the data folder.
    #[default]
    Sqlite,
    /// Postgres or what speaks its protocol.
    Postgres(Box<PostgresAddress>),
}

/// An address of Postgres, without password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresAddress {
    text: String,
    config: tokio_postgres::Config,
}

impl PostgresAddress {
    /// As the driver has it.
    #[must_use]
    pub fn config(&self) -> &tokio_postgres::Config {
        &self.config
    }
}

impl fmt::Debug for SinkChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SinkChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SinkChoice::Sqlite => f.write_str("sqlite"),
            SinkChoice::Postgres(address) => f.write_str(&address.text),
        }
    }
}

impl FromStr for SinkChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<SinkChoice, String> {
        if text == "sqlite" {
            return Ok(SinkChoice::Sqlite);
        }
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err("streams.sink must be sqlite or postgres://user@host:5432/database".into());
        }
        let config: tokio_postgres::Config = text.parse().map_err(|e: tokio_postgres::Error| {
            // What the driver says names keys, never values.
            let why = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
            format!("streams.sink is no address of Postgres ({why}); write postgres://user@host:5432/database")
        })?;
        if config.get_password().is_some() {
            return Err(format!(
                "streams.sink holds a password, and this file is not secret; put it into a file that streams.passwordFile names, or into {PASSWORD_VARIABLE}"
            ));
        }
        if config.get_hosts().is_empty() || config.get_user().is_none() {
            return Err("streams.sink names no host or no user; write postgres://user@host:5432/database".into());
        }
        Ok(SinkChoice::Postgres(Box::new(PostgresAddress { text: text.to_owned(), config })))
    }
}

impl TryFrom<String> for SinkChoice {
    type Error = String;
    fn try_from(text: String) -> Result<SinkChoice, String> {
        text.parse()
    }
}

impl From<SinkChoice> for String {
    fn from(choice: SinkChoice) -> String {
        choice.to_string()
    }
}
