//! Key files. `NAME.pem` holds a secret key (PKCS#8 version 1, mode 0600), `NAME.pub` its public half as
//! TUF metadata lists it. Called by `crossdock keys` and `crossdock release`.

use std::path::{Path, PathBuf};

use proto::{
    durable,
    tuf::{PublicKey, RoleName, SecretKey},
};

use super::{ReleaseError, read_text, repository::Repository};

const MAX_KEY_BYTES: u64 = 16 << 10;

/// Files of a new key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFiles {
    /// The secret half.
    pub secret: PathBuf,
    /// The public half.
    pub public: PathBuf,
    /// ID of the key.
    pub id: String,
}

/// Writes a key to `dir/name.pem` and `dir/name.pub`. Never overwrites one.
///
/// # Errors
/// When a file of that name is there, or the folder cannot be written.
pub fn write(dir: &Path, name: &str, key: &SecretKey) -> Result<KeyFiles, ReleaseError> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(good) {
        let problem = "a key's name holds letters, digits, '-', '_' and '.', and does not start with '.'".to_owned();
        return Err(ReleaseError::Key { path: dir.join(name), problem });
    }
    let (secret, public) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.pub")));
    for path in [&secret, &public] {
        if path.symlink_metadata().is_ok() {
            let problem = "it is there already and is not overwritten; choose another name or folder".to_owned();
            return Err(ReleaseError::Key { path: path.clone(), problem });
        }
    }
    durable::create_dir_all(dir)?;
    durable::write(&secret, key.to_pem()?.as_bytes(), 0o600)?;
    let text = serde_json::to_string_pretty(&key.public())
        .map_err(|e| ReleaseError::Key { path: public.clone(), problem: e.to_string() })?;
    durable::write(&public, format!("{text}\n").as_bytes(), 0o644)?;
    Ok(KeyFiles { secret, public, id: key.id() })
}

/// Reads a secret key.
///
/// # Errors
/// When the file cannot be read or is no such key.
pub fn read_secret(path: &Path) -> Result<SecretKey, ReleaseError> {
    let text = read_text(path, MAX_KEY_BYTES)?;
    SecretKey::from_pem(&text).map_err(|e| ReleaseError::Key { path: path.to_owned(), problem: e.to_string() })
}

/// Reads a public key: `NAME.pub`, a public key in PEM, or the public half of a secret key's file.
///
/// # Errors
/// When the file cannot be read or is neither.
pub fn read_public(path: &Path) -> Result<PublicKey, ReleaseError> {
    let refuse = |problem: String| Err(ReleaseError::Key { path: path.to_owned(), problem });
    let text = read_text(path, MAX_KEY_BYTES)?;
    let key = if text.trim_start().starts_with('{') {
        serde_json::from_str::<PublicKey>(&text).map_err(|e| e.to_string())
    } else if text.contains("PUBLIC KEY") {
        PublicKey::from_pem(&text).map_err(|e| e.to_string())
    } else {
        SecretKey::from_pem(&text).map(|key| key.public()).map_err(|e| e.to_string())
    };
    match key {
        Ok(key) if key.bytes().is_some() => Ok(key),
        Ok(_) => refuse("it is not an ed25519 key".into()),
        Err(problem) => refuse(problem),
    }
}

/// The keys of a small team that are listed for what is staged.
///
/// # Errors
/// When the repository holds none of them.
pub fn own(repository: &Repository) -> Result<Vec<SecretKey>, ReleaseError> {
    let (staged, root) = (repository.staged()?, repository.next_root()?);
    let mut keys = vec![];
    for (role, wanted) in [(RoleName::Root, staged.root.is_some()), (RoleName::Targets, staged.targets.is_some())] {
        let path = repository.keys_dir().join(format!("{role}.pem"));
        if !wanted || !path.exists() {
            continue;
        }
        let key = read_secret(&path)?;
        if root.roles.get(role.as_str()).is_some_and(|listed| listed.keyids.contains(&key.id())) {
            keys.push(key);
        }
    }
    if keys.is_empty() && (staged.root.is_some() || staged.targets.is_some()) {
        return repository.refuse("it holds no key that may sign what is staged; name yours with --key FILE");
    }
    Ok(keys)
}
