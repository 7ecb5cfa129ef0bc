//! Key files. `NAME.pem` holds a secret key (PKCS#8, mode 0600, encrypted or not), `NAME.pub` its public half as
//! TUF metadata lists it, with its name. Called by `crossdock keys` and `crossdock release`.

use std::path::{Path, PathBuf};

use proto::{
    durable,
    tuf::{PublicKey, RoleName, SecretKey},
};
use zeroize::Zeroizing;

use super::{
    ReleaseError, read_text,
    repository::Repository,
    sealed::{self, SealError, Secret},
    signer::agent,
};

const MAX_KEY_BYTES: u64 = 16 << 10;

/// Where passphrases come from: a person, a file, nowhere.
pub trait AskPassphrase {
    /// The passphrase of an encrypted file. `wrong` says that the one before was not it; whoever cannot give
    /// another then refuses.
    ///
    /// # Errors
    /// When there is none to be had, with what to do.
    fn ask(&mut self, path: &Path, wrong: bool) -> Result<Secret, ReleaseError>;
}

/// Nobody to ask: encrypted files are refused.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nobody;

impl AskPassphrase for Nobody {
    fn ask(&mut self, path: &Path, _wrong: bool) -> Result<Secret, ReleaseError> {
        let problem = "it is encrypted, and nobody is here to ask for the passphrase; name a file that holds it with --passphrase-file, or set CROSSDOCK_PASSPHRASE";
        Err(ReleaseError::Passphrase { path: path.to_owned(), problem: problem.into() })
    }
}

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

/// Writes a key to `dir/name.pem`, encrypted if there is a passphrase, and `dir/name.pub`. Never overwrites one.
///
/// # Errors
/// When a file of that name is there, or the folder cannot be written.
pub fn write(dir: &Path, name: &str, key: &SecretKey, passphrase: Option<&Secret>) -> Result<KeyFiles, ReleaseError> {
    let (secret, public) = files(dir, name)?;
    durable::create_dir_all(dir)?;
    write_secret(&secret, key, passphrase)?;
    let named = key.public().named(name);
    let text = serde_json::to_string_pretty(&named)
        .map_err(|e| ReleaseError::Key { path: public.clone(), problem: e.to_string() })?;
    durable::write(&public, format!("{text}\n").as_bytes(), 0o644)?;
    Ok(KeyFiles { secret, public, id: key.id() })
}

/// Where a key of that name goes. Asked before a person is asked for a passphrase.
///
/// # Errors
/// When the name is none, or a file of it is there.
pub fn files(dir: &Path, name: &str) -> Result<(PathBuf, PathBuf), ReleaseError> {
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
    Ok((secret, public))
}

fn write_secret(path: &Path, key: &SecretKey, passphrase: Option<&Secret>) -> Result<(), ReleaseError> {
    let text = match passphrase {
        Some(passphrase) => sealed::seal(key, passphrase)?,
        None => Zeroizing::new(key.to_pem()?),
    };
    Ok(durable::write(path, text.as_bytes(), 0o600)?)
}

/// Writes the file of a secret key anew, under another passphrase or none. The key stays what it is.
///
/// # Errors
/// When the file cannot be opened or written.
pub fn change_passphrase(path: &Path, key: &SecretKey, passphrase: Option<&Secret>) -> Result<(), ReleaseError> {
    // A link keeps leading where it did: what it leads to is written.
    let real = path.canonicalize().map_err(super::io_error("find", path))?;
    write_secret(&real, key, passphrase)
}

/// Whether a key file is encrypted.
///
/// # Errors
/// When it cannot be read.
pub fn is_encrypted(path: &Path) -> Result<bool, ReleaseError> {
    Ok(sealed::is_sealed(&read_secret_text(path)?))
}

/// Reads a secret key; asks for its passphrase if it is encrypted.
///
/// # Errors
/// When the file cannot be read, is no such key, or its passphrase is not to be had.
pub fn read_secret(path: &Path, ask: &mut (impl AskPassphrase + ?Sized)) -> Result<SecretKey, ReleaseError> {
    let text = read_secret_text(path)?;
    let refuse = |problem: String| ReleaseError::Key { path: path.to_owned(), problem };
    if text.contains("OPENSSH PRIVATE KEY") {
        let problem =
            "it is a key in OpenSSH's own form; add it to an agent with `ssh-add` and name it as agent:COMMENT";
        return Err(refuse(problem.into()));
    }
    if !sealed::is_sealed(&text) {
        return SecretKey::from_pem(&text).map_err(|e| refuse(e.to_string()));
    }
    let mut wrong = false;
    loop {
        match sealed::open(&text, &ask.ask(path, wrong)?) {
            Ok(key) => return Ok(key),
            Err(SealError::Passphrase) => wrong = true,
            Err(other) => return Err(refuse(other.to_string())),
        }
    }
}

fn read_secret_text(path: &Path) -> Result<Secret, ReleaseError> {
    read_text(path, MAX_KEY_BYTES).map(Zeroizing::new)
}

/// Reads a public key: `NAME.pub` of ours or of OpenSSH, a public key in PEM, or the public half of a secret key's
/// file. Of an encrypted one the public half is taken from the `.pub` beside it, if there is one.
///
/// A key without a name of its own gets that of its file.
///
/// # Errors
/// When the file cannot be read or is none of these.
pub fn read_public(path: &Path, ask: &mut (impl AskPassphrase + ?Sized)) -> Result<PublicKey, ReleaseError> {
    let refuse = |problem: String| Err(ReleaseError::Key { path: path.to_owned(), problem });
    let text = read_secret_text(path)?;
    let key = if text.trim_start().starts_with('{') {
        serde_json::from_str::<PublicKey>(&text).map_err(|e| e.to_string())
    } else if text.contains("PUBLIC KEY") {
        PublicKey::from_pem(&text).map_err(|e| e.to_string())
    } else if text.starts_with("ssh-") || text.starts_with("sk-") || text.starts_with("ecdsa-") {
        agent::public_line(&text)
    } else if sealed::is_sealed(&text) && path.extension().is_some_and(|e| e == "pem") && beside(path).exists() {
        return read_public(&beside(path), ask);
    } else {
        Ok(read_secret(path, ask)?.public())
    };
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    match key {
        Ok(key) if key.bytes().is_none() => refuse("it is not an ed25519 key".into()),
        Ok(key) if key.name().is_none() => Ok(key.named(&stem)),
        Ok(key) => Ok(key),
        Err(problem) => refuse(problem),
    }
}

/// Where the public half of a secret key's file lies.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("pub")
}

/// The keys of a small team that are listed for what is staged.
///
/// # Errors
/// When the repository holds none of them, or one cannot be opened.
pub fn own(repository: &Repository, ask: &mut (impl AskPassphrase + ?Sized)) -> Result<Vec<SecretKey>, ReleaseError> {
    let (staged, root) = (repository.staged()?, repository.next_root()?);
    let mut keys = vec![];
    for (role, wanted) in [(RoleName::Root, staged.root.is_some()), (RoleName::Targets, staged.targets.is_some())] {
        let path = repository.keys_dir().join(format!("{role}.pem"));
        if !wanted || !path.exists() {
            continue;
        }
        let key = read_secret(&path, ask)?;
        if root.roles.get(role.as_str()).is_some_and(|listed| listed.keyids.contains(&key.id())) {
            keys.push(key);
        }
    }
    if keys.is_empty() && (staged.root.is_some() || staged.targets.is_some()) {
        return repository.refuse("it holds no key that may sign what is staged; name yours with --key FILE");
    }
    Ok(keys)
}
