//! The agent's data folder and the identity that joining leaves there.
//!
//! ```text
//! <data>/agent.json      who this node is and where its hub listens (this module's record)
//! <data>/identity/       node.pem (private key, own certificate, the CA's), root.json (first trust root of the
//!                        releases), director.json (that of the director), sealing (the key that opens secrets)
//! <data>/trust           the verified metadata ([`crate::trust`])
//! <data>/assignment      the newest assignment ([`crate::agent`])
//! <data>/told            what was told as events (`telemetry`)
//! <data>/apps/<app>/     slot, releases/<digest>/, data/ ([`crate::apps`])
//! <data>/driver/         what the process driver keeps ([`crate::driver`])
//! <data>/containers/     an empty file for each app that was ever a container here
//! <data>/agent.sock      the status socket ([`crate::status`])
//! <data>/agent.lock      held by the one agent that may run here
//! ```
//!
//! [`crate::join`] writes it, [`crate::agent`] reads it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use proto::{
    broker::Broker,
    durable::{self, DurableError, Loaded, Record},
    name::Name,
    tuf::SecretKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};

/// Where an agent keeps its state unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/crossdock";

/// Who this node is and where its hub listens. Unknown fields are skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    /// The data folder; follows from where the file lies.
    #[serde(skip)]
    pub data_dir: PathBuf,
    /// Name of the node.
    pub node: Name,
    /// Its site.
    pub site: Name,
    /// Its fleet.
    pub fleet: Name,
    /// Addresses of the hub, `host:port`, tried in turn.
    pub hubs: Vec<String>,
    /// Brokers that joining was told, where there were some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub brokers: Vec<Broker>,
}

/// The data folder does not hold what it must.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nobody joined here.
    #[error("{} holds no node: run `edgecore join HUB --token TOKEN` first, or name its folder with --data", .0.display())]
    NotJoined(PathBuf),
    /// `agent.json` was written and cannot be read any more.
    #[error("{} is damaged, both copies: run `edgecore join HUB --token TOKEN` again; the node keeps its name", .0.display())]
    Damaged(PathBuf),
    /// A file of the identity is missing or no key or certificate.
    #[error("{} is not usable ({problem}): run `edgecore join HUB --token TOKEN` again; the node keeps its name", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// A document could not be written as JSON.
    #[error("could not write agent.json: {0}")]
    Encode(#[from] serde_json::Error),
}

/// Paths inside a data folder.
#[derive(Debug, Clone)]
pub struct Paths(PathBuf);

impl Paths {
    /// Of the data folder `data_dir`.
    #[must_use]
    pub fn new(data_dir: &Path) -> Paths {
        Paths(data_dir.to_owned())
    }
    /// The data folder itself.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.0
    }
    /// The agent's configuration.
    #[must_use]
    pub fn config(&self) -> Record {
        Record::at(self.0.join("agent.json"))
    }
    /// The node's private key, its certificate and the CA's, in one file so that they always fit.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.0.join("identity/node.pem")
    }
    /// A key that asks to be admitted and has no answer yet.
    #[must_use]
    pub fn joining_key(&self) -> PathBuf {
        self.0.join("identity/joining.key")
    }
    /// A key that asks to be certified in place of the one in use, and has no answer yet.
    #[must_use]
    pub fn renewing_key(&self) -> PathBuf {
        self.0.join("identity/renewing.key")
    }
    /// The key that opens secrets sealed to this node.
    #[must_use]
    pub fn sealing_key(&self) -> Record {
        Record::at(self.0.join("identity/sealing"))
    }
    /// The identity before the last renewal, in the same form.
    #[must_use]
    pub fn previous_identity(&self) -> PathBuf {
        self.0.join("identity/previous.pem")
    }
    /// The first trust root, as the token pinned it.
    #[must_use]
    pub fn first_root(&self) -> PathBuf {
        self.0.join("identity/root.json")
    }
    /// The director's first root, as the token pinned it or the hub showed it first.
    #[must_use]
    pub fn director_root(&self) -> PathBuf {
        self.0.join("identity/director.json")
    }
    /// The verified metadata.
    #[must_use]
    pub fn trust(&self) -> Record {
        Record::at(self.0.join("trust"))
    }
    /// The newest assignment, with the director's verified metadata.
    #[must_use]
    pub fn assignment(&self) -> Record {
        Record::at(self.0.join("assignment"))
    }
    /// What was told as events.
    #[must_use]
    pub fn told(&self) -> Record {
        Record::at(self.0.join("told"))
    }
    /// The restart of the node that was ordered last.
    #[must_use]
    pub fn reboot(&self) -> Record {
        Record::at(self.0.join("reboot"))
    }
    /// Which app has which GPU.
    #[must_use]
    pub fn gpus(&self) -> Record {
        Record::at(self.0.join("gpus"))
    }
    /// Folder of all apps.
    #[must_use]
    pub fn apps(&self) -> PathBuf {
        self.0.join("apps")
    }
    /// Folder of the records that the hub has not acknowledged.
    #[must_use]
    pub fn outbox(&self) -> PathBuf {
        self.0.join("outbox")
    }
    /// What the process driver keeps.
    #[must_use]
    pub fn driver(&self) -> PathBuf {
        self.0.join("driver")
    }
    /// Which apps were ever containers.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }
    /// The status socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.join("agent.sock")
    }
    /// Held by the one agent that may run here.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("agent.lock")
    }
}

impl AgentConfig {
    /// Reads the configuration of a data folder.
    ///
    /// # Errors
    /// When nobody joined there or the record is damaged.
    pub fn load(data_dir: &Path) -> Result<AgentConfig, ConfigError> {
        let record = Paths::new(data_dir).config();
        let content = match record.load()? {
            Loaded::Good(content) | Loaded::Fallback(content) => content,
            Loaded::Absent => return Err(ConfigError::NotJoined(data_dir.to_owned())),
            Loaded::Lost => return Err(ConfigError::Damaged(record.path().to_owned())),
        };
        let mut config: AgentConfig =
            serde_json::from_slice(&content).map_err(|_| ConfigError::Damaged(record.path().to_owned()))?;
        config.data_dir = data_dir.to_owned();
        Ok(config)
    }

    /// Writes it durably.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn store(&self) -> Result<(), ConfigError> {
        let record = Paths::new(&self.data_dir).config();
        Ok(record.store(&serde_json::to_vec_pretty(self)?)?)
    }
}

/// The node's key and certificates.
#[derive(Debug)]
pub struct Identity {
    /// Private key.
    pub key: PrivateKeyDer<'static>,
    /// Own certificate first, then the CA's.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key once more, to sign reports with.
    pub signer: SecretKey,
}

impl Identity {
    /// Reads the identity of a data folder.
    ///
    /// # Errors
    /// When a file is missing or not what it must be.
    pub fn load(paths: &Paths) -> Result<Identity, ConfigError> {
        Identity::read(paths.identity())
    }

    /// Reads one of its files.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn read(path: PathBuf) -> Result<Identity, ConfigError> {
        let wrong = |problem: String| ConfigError::Identity { path: path.clone(), problem };
        let pem = fs::read(&path).map_err(|e| wrong(e.to_string()))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|e| wrong(e.to_string()))?;
        let chain =
            CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|e| wrong(e.to_string()))?;
        if chain.len() < 2 {
            return Err(wrong(format!("it holds {} certificates, the node's and the CA's are needed", chain.len())));
        }
        let signer = SecretKey::from_der(key.secret_pkcs8_der()).map_err(|e| wrong(e.to_string()))?;
        Ok(Identity { key: key.into(), chain, signer })
    }
}

/// Creates the data folder and its parts. Workloads of other users read their trees below it; secrets
/// lie in `identity/`, which is closed to them.
///
/// # Errors
/// When a folder cannot be made.
pub fn create_folders(paths: &Paths) -> Result<(), DurableError> {
    for folder in [paths.data_dir().to_owned(), paths.data_dir().join("identity"), paths.apps()] {
        durable::create_dir_all(&folder)?;
    }
    // Best effort beyond the files' own permissions, such as on a file system without any.
    fs::set_permissions(paths.data_dir().join("identity"), fs::Permissions::from_mode(0o700)).ok();
    Ok(())
}
