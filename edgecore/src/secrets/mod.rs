//! Secrets of workloads on this node: its own key, and plaintext in memory alone.
//!
//! ```text
//! <data>/identity/sealing       the node's age key (0600, two copies): made here, never leaves, outlives certificates
//! <data>/apps/../tree/*.age     ciphertext, part of the signed release
//! /run/crossdock/secrets-<id>/<app>/<release>/<name>     plaintext, from before the start until after the stop
//! ```
//!
//! Ciphertext and key are on disk, so a box comes up without a hub. Plaintext is written to tmpfs or ramfs only
//! ([`room`]); where neither can be had, a release with secrets is refused. A box that swaps should encrypt its swap:
//! a tmpfs of the system may be swapped out, one that we mount asks the kernel not to.
//!
//! [`Secrets`] is the one owner of all of it. The fetch asks [`Secrets::check`], so that a secret that cannot be
//! opened is found while the release before still runs; [`crate::apps::guard`] calls [`Secrets::place`] before each
//! start and each hook, the app's task [`Secrets::remove`] after each stop. What runs already is left alone: a
//! workload that outlives its agent keeps its files. Credentials for an image's registry are put nowhere: the driver
//! asks [`Secrets::open_pull_secret`] when it pulls.

mod files;
pub mod key;
mod room;

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use proto::{
    digest::Digest,
    durable::DurableError,
    env::Env,
    name::Name,
    release::Secret,
    secret::{self, MAX_SEALED_BYTES, Sealed, SealedTo, SealingKey, SecretError},
};
use zeroize::Zeroizing;

pub(crate) use self::files::{Owner, owner_in_container};
use self::room::Room;
use crate::{config::Paths, driver::InstanceSpec};

/// What a workload with secrets finds their folder in.
pub const VARIABLE: &str = "CROSSDOCK_SECRETS";

/// Why a release with secrets cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The node's key is damaged.
    #[error(
        "this node's sealing key {} is damaged, both copies, so it opens no secret: bring it back from a backup, or move \
         both copies away and restart the agent, which makes a new key; then seal the secrets to that one \
         (crossdock secret seal --accept-new-key)", .0.display()
    )]
    KeyLost(PathBuf),
    /// There is no place for plaintext.
    #[error("secrets are kept in memory and never on disk, and there is no room for them: {0}")]
    NoRoom(String),
    /// It is sealed to others.
    #[error("secret {name:?} is not sealed to this node: {problem}")]
    NotForThisNode {
        /// Its name.
        name: String,
        /// To whom it is, and the mend.
        problem: String,
    },
    /// It cannot be opened, whoever tries.
    #[error("secret {name:?} ({file}) cannot be opened: {problem}")]
    Sealed {
        /// Its name.
        name: String,
        /// Its file in the tree.
        file: String,
        /// What is wrong with it, and the mend.
        problem: SecretError,
    },
    /// The file system refused.
    #[error("could not {attempt} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The workload's user is none of this box.
    #[error("secrets cannot be given to their user: {0}")]
    User(String),
}

impl SecretsError {
    /// One word for programs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            SecretsError::KeyLost(_) => "SealingKeyLost",
            SecretsError::NoRoom(_) => "NoRoomForSecrets",
            SecretsError::NotForThisNode { .. } => "SecretNotForThisNode",
            SecretsError::Sealed { problem: SecretError::OfAnother { .. }, .. } => "SecretOfAnotherApp",
            SecretsError::Sealed { .. } => "SecretDamaged",
            SecretsError::Io { .. } | SecretsError::User(_) => "SecretsNotWritable",
        }
    }
}

fn io_error(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SecretsError {
    let path = path.to_owned();
    move |source| SecretsError::Io { attempt, path, source }
}

/// The node's key, and the plaintext of its workloads. Its methods block.
#[derive(Debug)]
pub struct Secrets {
    node: Name,
    key: Result<SealingKey, PathBuf>,
    places: Vec<Room>,
    /// The first place that serves, once it was looked for.
    room: OnceLock<Room>,
}

impl Secrets {
    /// Of the agent in `paths`. Makes the node's key where there is none.
    ///
    /// # Errors
    /// When the key's file cannot be read or written. A damaged one is none: what needs no secrets goes on.
    pub fn open(paths: &Paths, node: &Name, env: &Env) -> Result<Secrets, DurableError> {
        Ok(Secrets {
            node: node.clone(),
            key: key::load_or_make(paths, env)?,
            places: room::places(paths.data_dir()),
            room: OnceLock::new(),
        })
    }

    /// The same, with plaintext in a folder of the test's.
    #[cfg(test)]
    pub(crate) fn in_room(mut self, folder: &Path) -> Secrets {
        self.places = vec![Room::new(folder, false)];
        self
    }

    /// The public half of the node's key; none while that is damaged.
    #[must_use]
    pub fn public(&self) -> Option<String> {
        self.key.as_ref().ok().map(|key| key.public().to_string())
    }

    /// Where the secrets of a release are while it runs; none where there is no room for them.
    #[must_use]
    pub fn folder(&self, app: &Name, digest: Digest) -> Option<PathBuf> {
        self.room().ok().map(|room| release_folder(room, app, digest))
    }

    /// Whether each secret of a release, whose tree is whole, can be opened here. Leaves nothing behind.
    ///
    /// # Errors
    /// The first one that cannot, and the mend.
    pub fn check(&self, app: &Name, tree: &Path, secrets: &[Secret]) -> Result<(), SecretsError> {
        if secrets.is_empty() {
            return Ok(());
        }
        self.room()?;
        secrets.iter().try_for_each(|secret| self.open_one(app, tree, secret).map(drop))
    }

    /// Puts the secrets of a release in place, whole or not at all; nothing to do for one without.
    ///
    /// # Errors
    /// What is in the way, and the mend.
    pub fn place(&self, spec: &InstanceSpec) -> Result<(), SecretsError> {
        let secrets: Vec<&Secret> = spec.workload.given_secrets().collect();
        if secrets.is_empty() {
            return Ok(());
        }
        let folder = release_folder(self.room()?, &spec.app, spec.release.digest);
        let user = spec.workload.user.as_deref();
        let owner = match spec.workload.container {
            Some(_) => owner_in_container(user),
            None => files::owner(user),
        };
        let owner = owner.map_err(SecretsError::User)?;
        files::replace(&folder, owner, |write| {
            secrets.iter().try_for_each(|secret| {
                let plaintext = self.open_one(&spec.app, &spec.tree, secret)?;
                write(&secret.name, &plaintext)
            })
        })
    }

    /// Opens the secret with the credentials for the registry of a release's image, for the engine alone: it is put
    /// nowhere. `None`: the release names none.
    ///
    /// # Errors
    /// Why it cannot be opened, and the mend.
    pub fn open_pull_secret(&self, spec: &InstanceSpec) -> Result<Option<Zeroizing<Vec<u8>>>, SecretsError> {
        let secret = spec.workload.pull_secret();
        secret.map(|secret| self.open_one(&spec.app, &spec.tree, secret)).transpose()
    }

    /// Whether the secrets of a release are in place, and so whole.
    #[must_use]
    pub fn are_placed(&self, spec: &InstanceSpec) -> bool {
        self.folder(&spec.app, spec.release.digest).is_some_and(|folder| folder.exists())
    }

    /// Removes the secrets of all releases of an app but one.
    ///
    /// # Errors
    /// When something stays.
    pub fn remove_others(&self, app: &Name, keep: Digest) -> Result<(), SecretsError> {
        let keep = release_name(keep);
        self.app_folders(app).try_for_each(|folder| files::clear_in(&folder, |name| name != keep))
    }

    /// Removes the secrets of one release of an app, such as when its hook has ended.
    ///
    /// # Errors
    /// When something stays.
    pub fn remove_release(&self, app: &Name, digest: Digest) -> Result<(), SecretsError> {
        let gone = release_name(digest);
        self.app_folders(app).try_for_each(|folder| files::clear_in(&folder, |name| name == gone))
    }

    /// Removes all secrets of an app, of an agent before this one, too.
    ///
    /// # Errors
    /// When something stays.
    pub fn remove(&self, app: &Name) -> Result<(), SecretsError> {
        self.app_folders(app).try_for_each(|folder| files::clear(&folder))
    }

    /// Wherever secrets of an app may be: a box without any is not touched.
    fn app_folders(&self, app: &Name) -> impl Iterator<Item = PathBuf> {
        self.places.iter().map(|room| room.path().join(app.as_str())).filter(|folder| folder.exists())
    }

    fn open_one(&self, app: &Name, tree: &Path, secret: &Secret) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
        let key = self.key.as_ref().map_err(|path| SecretsError::KeyLost(path.clone()))?;
        let path = tree.join(&secret.file);
        let mut sealed = vec![];
        let opened = File::open(&path).map_err(io_error("open", &path))?;
        opened.take(MAX_SEALED_BYTES + 1).read_to_end(&mut sealed).map_err(io_error("read", &path))?;
        secret::open(&sealed, app.as_str(), &secret.name, key).map_err(|problem| match problem {
            SecretError::NotForThisKey { key, sealed } => SecretsError::NotForThisNode {
                name: secret.name.clone(),
                problem: not_for(self.node.as_str(), &key, &sealed, &secret.sealed_to),
            },
            problem => SecretsError::Sealed { name: secret.name.clone(), file: secret.file.clone(), problem },
        })
    }

    fn room(&self) -> Result<&Room, SecretsError> {
        if let Some(room) = self.room.get() {
            return Ok(room);
        }
        let room = room::first(&self.places).map_err(SecretsError::NoRoom)?;
        Ok(self.room.get_or_init(|| room))
    }
}

fn release_folder(room: &Room, app: &Name, digest: Digest) -> PathBuf {
    room.path().join(app.as_str()).join(release_name(digest))
}

/// Enough of a digest: at most a few releases of an app are there at once.
fn release_name(digest: Digest) -> String {
    digest.hex().chars().take(16).collect()
}

/// To whom a secret is sealed instead, and the mend.
fn not_for(node: &str, key: &str, sealed: &Sealed, said: &[SealedTo]) -> String {
    let to = if sealed.to.is_empty() { said } else { &sealed.to };
    if let Some(before) = to.iter().find(|to| to.node.as_deref() == Some(node)) {
        return format!(
            "it is sealed to {node} with the key {}, and this box has {key}, as after a new installation; compare that \
             with `edgecore status` on the box, seal it again (crossdock secret seal or reseal, --accept-new-key \
             {node}), and release it under a new version",
            before.key
        );
    }
    let nodes: Vec<&str> = to.iter().filter_map(|to| to.node.as_deref()).take(SHOWN_NODES).collect();
    let nodes = match (nodes.is_empty(), to.len() > nodes.len()) {
        (true, _) => format!("{} keys", sealed.recipients),
        (false, false) => nodes.join(", "),
        (false, true) => format!("{} and others", nodes.join(", ")),
    };
    format!(
        "it is sealed to {nodes}, and this box has the key {key}; seal it to {node} too (crossdock secret seal or \
         reseal, --to), and release it under a new version"
    )
}

/// Nodes that a message names.
const SHOWN_NODES: usize = 5;

#[cfg(test)]
mod tests;
