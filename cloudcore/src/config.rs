//! The hub's configuration, `hub.yaml` in its data folder, and where things lie in that folder.
//!
//! `cloudcore init` ([`crate::init`]) writes it, `cloudcore serve` reads it. Unknown fields are
//! skipped with a warning, so a newer file still starts an older hub.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::{
    broker::Broker,
    carrier::address::MAX_BROKERS,
    durable::{self, DurableError},
    name::Name,
    units::Span,
};
use serde::{Deserialize, Serialize};

pub use crate::{
    access::oidc::OidcConfig, api::limits::LimitsConfig, planner::strategy::RolloutsConfig,
    streams::config::StreamsConfig, webhooks::config::WebhookConfig,
};
use crate::{bounded, unknown, webhooks};

/// Largest `hub.yaml` that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// What a heartbeat may be: agents take nothing else, so another one would only make them look silent.
const HEARTBEAT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// Where the API listens unless told otherwise.
pub const DEFAULT_API_PORT: u16 = 8443;

/// What a hub is told when it starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HubConfig {
    /// The data folder; where the file lies, so not in it.
    #[serde(skip)]
    pub data_dir: PathBuf,
    /// Name of the fleet.
    pub fleet: Name,
    /// Where agents connect (UDP). Port 0 takes any free one.
    #[serde(default = "default_link")]
    pub link_listen: SocketAddr,
    /// Where the API listens (TCP, TLS). Port 0 takes any free one.
    #[serde(default = "default_api")]
    pub api_listen: SocketAddr,
    /// Names and addresses in the API's certificate.
    #[serde(default)]
    pub api_names: Vec<String>,
    /// Addresses of the link that agents are told when they join, `host:port`.
    #[serde(default)]
    pub advertise: Vec<String>,
    /// MQTT brokers through which nodes are reached that UDP does not reach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub brokers: Vec<Broker>,
    /// MQTT broker to which facts of the fleet are published, for other systems of the house: see [`crate::bus`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<Broker>,
    /// How often an agent should be heard from.
    #[serde(default = "default_heartbeat")]
    pub heartbeat: Span,
    /// How long a node may be silent before it is `Unknown`.
    #[serde(default = "default_unknown_after")]
    pub unknown_after: Span,
    /// Bytes a second for artifacts to one node; absent is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bulk_bytes_per_s_node: Option<u64>,
    /// Bytes a second for artifacts to all nodes together; absent is unlimited. A site has its own bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bulk_bytes_per_s: Option<u64>,
    /// Where stream records go.
    #[serde(default)]
    pub streams: StreamsConfig,
    /// How rollouts go about it unless they say otherwise.
    #[serde(default)]
    pub rollouts: RolloutsConfig,
    /// A provider that vouches for users, beside the hub's own tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<OidcConfig>,
    /// How often users may ask, and strangers may fail.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Who is told of events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<WebhookConfig>,
}

/// Names of settings as this file writes them: `passwordFile` for `password-file`.
fn camel(text: &str) -> String {
    let keys =
        [("proxy-password-file", "proxyPasswordFile"), ("password-file", "passwordFile"), ("proxy-user", "proxyUser")];
    keys.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn default_link() -> SocketAddr {
    ([0, 0, 0, 0], proto::link::DEFAULT_PORT).into()
}
fn default_api() -> SocketAddr {
    ([0, 0, 0, 0], DEFAULT_API_PORT).into()
}
fn default_heartbeat() -> Span {
    Span::from_secs(10)
}
fn default_unknown_after() -> Span {
    Span::from_secs(40)
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No file.
    #[error("{} is not there; `cloudcore init --data {}` makes a new hub", path.display(), folder.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The data folder.
        folder: PathBuf,
    },
    /// Not readable.
    #[error("could not read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not what it should be.
    #[error("{} is wrong: {problem}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, with place and mend.
        problem: String,
    },
    /// Not writable.
    #[error("could not save the configuration")]
    Write(#[from] DurableError),
}

impl HubConfig {
    /// The defaults for a fleet.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>, fleet: Name) -> HubConfig {
        HubConfig {
            data_dir: data_dir.into(),
            fleet,
            link_listen: default_link(),
            api_listen: default_api(),
            api_names: vec![],
            advertise: vec![],
            brokers: vec![],
            bus: None,
            heartbeat: default_heartbeat(),
            unknown_after: default_unknown_after(),
            bulk_bytes_per_s_node: None,
            bulk_bytes_per_s: None,
            streams: StreamsConfig::default(),
            rollouts: RolloutsConfig::default(),
            oidc: None,
            limits: LimitsConfig::default(),
            webhooks: vec![],
        }
    }

    /// Reads and checks `hub.yaml` in a data folder.
    ///
    /// # Errors
    /// When it is missing, unreadable, or contradicts itself.
    pub fn load(data_dir: &Path) -> Result<HubConfig, ConfigError> {
        let path = data_dir.join("hub.yaml");
        let text = match bounded::read_file(&path, MAX_CONFIG_BYTES) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ConfigError::Missing { path, folder: data_dir.into() });
            }
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        let wrong = |problem: String| ConfigError::Wrong { path: path.clone(), problem };
        let (mut config, skipped) = unknown::read_yaml::<HubConfig>(&text).map_err(|e| wrong(e.to_string()))?;
        config.data_dir = data_dir.into();
        for field in skipped {
            let problem = unknown::warning(
                &field,
                &[
                    unknown::fields_of::<HubConfig>(),
                    unknown::fields_of::<WebhookConfig>(),
                    unknown::fields_of::<LimitsConfig>(),
                    unknown::fields_of::<OidcConfig>(),
                    unknown::fields_of::<Broker>(),
                    unknown::fields_of::<webhooks::config::Selection>(),
                ],
            );
            tracing::warn!(path = %path.display(), "{problem}");
        }
        config.check()?;
        Ok(config)
    }

    /// Writes `hub.yaml` into the data folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self) -> Result<(), ConfigError> {
        let path = self.data_dir.join("hub.yaml");
        let yaml = serde_saphyr::to_string(self)
            .map_err(|e| ConfigError::Wrong { path: path.clone(), problem: e.to_string() })?;
        Ok(durable::write(&path, yaml.as_bytes(), 0o644)?)
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first contradiction, with its mend.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |problem| ConfigError::Wrong { path: self.data_dir.join("hub.yaml"), problem };
        self.contradiction().map_err(wrong)
    }

    fn contradiction(&self) -> Result<(), String> {
        if !HEARTBEAT.contains(&self.heartbeat.get()) {
            return Err(format!("heartbeat is {}; it must be 1s to 60s, agents keep to that anyway", self.heartbeat));
        }
        if self.unknown_after.get() <= self.heartbeat.get() {
            return Err(format!(
                "unknownAfter ({}) must be longer than heartbeat ({}), about four times as long",
                self.unknown_after, self.heartbeat
            ));
        }
        let rates = [("bulkBytesPerSNode", self.bulk_bytes_per_s_node), ("bulkBytesPerS", self.bulk_bytes_per_s)];
        if let Some((name, _)) = rates.iter().find(|(_, rate)| *rate == Some(0)) {
            return Err(format!("{name} is 0, so nothing would ever arrive; leave it out for no bound"));
        }
        self.streams.contradiction()?;
        self.rollouts.find(&self.rollouts.strategy).map_err(|e| format!("rollouts.strategy: {e}"))?;
        self.limits.contradiction()?;
        if let Some(oidc) = &self.oidc {
            oidc.contradiction()?;
        }
        webhooks::config::contradiction(&self.webhooks)?;
        if self.brokers.len() > MAX_BROKERS {
            return Err(format!("brokers holds {}; at most {MAX_BROKERS} can be used", self.brokers.len()));
        }
        for (what, broker) in self.brokers.iter().map(|b| ("broker", b)).chain(self.bus.iter().map(|b| ("bus", b))) {
            broker.check().map_err(|wrong| format!("{what} {}: {}", broker.url, camel(wrong.problem)))?;
        }
        match self.advertise.iter().find(|a| a.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err())) {
            Some(bad) => Err(format!("advertise holds {bad:?}; write host:port")),
            None => Ok(()),
        }
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.data_dir.join("hub.db")
    }

    /// The stream records, unless an engine of the house keeps them.
    #[must_use]
    pub fn streams_database(&self) -> PathBuf {
        self.data_dir.join("streams.db")
    }

    /// The first administrator's token, for whoever may read the data folder.
    #[must_use]
    pub fn admin_token(&self) -> PathBuf {
        self.data_dir.join("admin.token")
    }

    /// SHA-256 of every API token and whom it stands for.
    #[must_use]
    pub fn api_tokens(&self) -> PathBuf {
        self.data_dir.join("api-tokens.json")
    }

    /// Folder of the audit log.
    #[must_use]
    pub fn audit(&self) -> PathBuf {
        self.data_dir.join("audit")
    }

    /// Certificate of the authority, which the CLI pins.
    #[must_use]
    pub fn ca_certificate(&self) -> PathBuf {
        self.data_dir.join("ca.pem")
    }

    /// Where a running hub says what it listens on.
    #[must_use]
    pub fn addresses(&self) -> PathBuf {
        self.data_dir.join("addresses.json")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_goes_both_ways_and_newer_fields_are_named_and_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = HubConfig::new(folder.path(), "hz".parse().unwrap());
        config.advertise.push("hub.example:7443".into());
        config.save().unwrap();
        assert_eq!(HubConfig::load(folder.path()).unwrap(), config);

        let path = folder.path().join("hub.yaml");
        let text = fs::read_to_string(&path).unwrap() + "carriers: [a, b]\nbulkBytesPerSNode: null\n";
        let text = text.replace("streams:", "streams:\n  colour: red\n  ca: /ca.pem");
        config.streams.ca = Some("/ca.pem".into());
        fs::write(&path, &text).unwrap();
        assert_eq!(HubConfig::load(folder.path()).unwrap(), config);
        assert_eq!(unknown::read_yaml::<HubConfig>(&text).unwrap().1, ["streams.colour", "carriers"]);
        assert!(unknown::fields_of::<HubConfig>().contains(&"bulkBytesPerSNode"));
        fs::write(&path, "fleet: hz\n").unwrap();
        assert_eq!(HubConfig::load(folder.path()).unwrap().link_listen.port(), 7443);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let error = HubConfig::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("cloudcore init"), "{error}");
        for (text, word) in [
            ("fleet: A\n", "lower-case"),
            ("fleet: a\nheartbeat: 10s\nunknownAfter: 5s\n", "longer"),
            ("fleet: a\nheartbeat: 900ms\n", "1s to 60s"),
            ("fleet: a\nheartbeat: 61s\nunknownAfter: 5m\n", "1s to 60s"),
            ("fleet: a\nadvertise: [hub]\n", "host:port"),
            ("fleet: a\nbulkBytesPerSNode: 0\n", "no bound"),
            ("fleet: a\nlinkListen: 7443\n", "hub.yaml"),
            ("fleet: a\nstreams: {sink: mysql}\n", "postgres://"),
            ("fleet: a\nstreams: {sink: 'postgres://u:secret@h/d'}\n", "passwordFile"),
            ("fleet: a\nstreams: {sink: 'postgres://h:x/d'}\n", "postgres://"),
            ("fleet: a\nstreams: {retention: 5s}\n", "at least 1h"),
            ("fleet: a\nwebhooks: [{name: x, url: 'ftp://h'}]\n", "write https://"),
            ("fleet: a\nwebhooks: [{name: x, url: 'https://me:pw@h'}]\n", "secretFile"),
            ("fleet: a\nwebhooks: [{name: x, url: 'h/x?token=s3cret'}]\n", "is no URL"),
            ("fleet: a\nwebhooks: [{name: X, url: 'https://h'}]\n", "lower-case"),
            ("fleet: a\nwebhooks: [{name: x, url: 'http://h', events: {types: [Waring]}}]\n", "Normal, Warning"),
            ("fleet: a\nwebhooks: [{name: x, url: 'http://h', events: {kinds: [Pod]}}]\n", "JoinToken"),
            ("fleet: a\nwebhooks: [{name: x, url: 'http://h', events: {reasons: ['a b']}}]\n", "single word"),
            ("fleet: a\nwebhooks: [{name: x, url: 'http://h', format: slack}]\n", "slack"),
            ("fleet: a\nwebhooks: [{name: x, url: 'http://h'}, {name: x, url: 'http://i'}]\n", "two webhooks"),
            ("fleet: a\nwebhooks: [{name: x, url: 'http://h', secretFile: s}]\n", "whole path"),
            ("fleet: a\nwebhooks: [{name: x, url: 'http://h', secretFile: /none/s}]\n", "cannot be read"),
            ("fleet: a\nwebhooks: [{name: x, url: 'http://h', retry: {attempts: 0}}]\n", "1 to 1000"),
            ("fleet: a\nwebhooks: [{name: x, url: 'http://h', retry: {longest: 2h}}]\n", "1h"),
            ("fleet: a\nbrokers: [{url: 'http://h'}]\n", "mqtts://HOST:8883"),
            ("fleet: a\nbrokers: [{url: 'mqtts://h'}]\n", "ca-certificates.crt"),
            ("fleet: a\nbrokers: [{url: 'mqtt://h', user: u}]\n", "set passwordFile too"),
            ("fleet: a\nbus: {url: 'mqtts://h'}\n", "bus mqtts://h:8883"),
            ("fleet: a\nlimits: {requestsPerS: 0}\n", "nobody"),
            ("fleet: a\noidc: {issuer: 'http://id.example', clientId: c}\n", "https://"),
            (
                "fleet: a\noidc: {issuer: 'https://i', clientId: c, bindings: [{group: g, role: viewer, sites: []}]}\n",
                "leave the list out",
            ),
            ("fleet: [\n", "hub.yaml"),
            ("link: x\n", "fleet"),
        ] {
            fs::write(folder.path().join("hub.yaml"), text).unwrap();
            let error = HubConfig::load(folder.path()).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("s3cret"), "{text}: {error}");
        }
    }
}
