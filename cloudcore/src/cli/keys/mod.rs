//! `crossdock keys`: signing keys, made here and kept by whoever signs; and what to do when one is lost or stolen.

mod trouble;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use proto::{
    env::Seed,
    tuf::{PublicKey, SecretKey, schema::RootMeta},
};

use super::{
    Context,
    output::{align, plain, print},
    passphrase::{self, PassphraseArgs},
    release::failed,
};
use crate::release::{
    ReleaseError, Repository, keys,
    rotate::{self, Duty},
    signer::{KeyRef, agent::Agent},
};

/// Most files of one folder that `keys list` looks at.
const MAX_LISTED_FILES: usize = 1000;

/// Arguments of `crossdock keys`.
#[derive(Debug, Args)]
pub struct KeysArgs {
    /// Folder of the release repository whose root says what keys are for.
    #[arg(long, global = true, value_name = "DIR", default_value = "crossdock-release", env = "CROSSDOCK_REPO")]
    repo: PathBuf,
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make an ed25519 key: NAME.pem (secret, only you can read it) and NAME.pub
    ///
    /// The secret half is encrypted: PKCS#8 with scrypt, which `openssl pkey` opens too. At a terminal it asks for the
    /// passphrase; where no person is, give one with --passphrase-file or CROSSDOCK_PASSPHRASE, or say --no-passphrase.
    New {
        /// Name of the files, and of the key.
        name: String,
        /// Folder that they go to.
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
        /// Do not encrypt it: whoever reads the file can sign.
        #[arg(long)]
        no_passphrase: bool,
        #[command(flatten)]
        passphrase: PassphraseArgs,
    },
    /// Print the ID of a key, from NAME.pub, NAME.pem or agent:WHICH
    Id {
        /// The key.
        key: KeyRef,
        #[command(flatten)]
        passphrase: PassphraseArgs,
    },
    /// Give a key file another passphrase, or its first, or with --remove none; the key stays the same
    Passphrase {
        /// The secret key's file.
        file: PathBuf,
        /// Decrypt it: whoever reads the file can sign.
        #[arg(long, conflicts_with = "new_passphrase_file")]
        remove: bool,
        /// File with the new passphrase. Without it: $CROSSDOCK_NEW_PASSPHRASE, else a question on the terminal.
        #[arg(long, value_name = "FILE")]
        new_passphrase_file: Option<PathBuf>,
        #[command(flatten)]
        passphrase: PassphraseArgs,
    },
    /// Show a key: its ID, its name, and what it is for in the repository
    Show {
        /// A file, or agent:WHICH; agent alone shows all that the ssh-agent holds.
        key: KeyRef,
        #[command(flatten)]
        passphrase: PassphraseArgs,
    },
    /// List the repository's keys with what they are for, and where their files are
    List {
        /// Folder to look for key files in, besides the repository's keys/; repeatable.
        #[arg(long = "in", value_name = "DIR")]
        folders: Vec<PathBuf>,
    },
    /// Stage a root without a key that was lost or stolen, in every role where it stands
    ///
    /// What it signed and is still needed is staged anew too. A role that would be left with too few keys is refused,
    /// unless --replace-with gives it another. Then the others sign: it says who.
    Revoke(trouble::RevokeArgs),
    /// Print what to do when a key is lost or stolen, step by step, for this repository
    Drill(trouble::DrillArgs),
}

/// Runs `crossdock keys`.
///
/// # Errors
/// When a key is there already, or a file cannot be read or written.
pub async fn run(args: KeysArgs, _context: &Context) -> anyhow::Result<()> {
    let repo = args.repo;
    match args.command {
        KeysCommand::New { name, out, no_passphrase, passphrase } => {
            keys::files(&out, &name)?; // before a person types a passphrase for nothing
            let passphrase = passphrase.for_new(no_passphrase, &format!("{name}.pem"))?;
            let key = SecretKey::from_seed(&Seed::from_os()?.bytes("signing key"));
            let files = keys::write(&out, &name, &key, passphrase.as_ref())?;
            print(&format!("{}\n", files.id));
            let how = if passphrase.is_some() { "encrypted" } else { "not encrypted: keep it off shared disks" };
            eprintln!("secret half: {} ({how})", files.secret.display());
            eprintln!("public half: {} (give it to who runs `crossdock release init`)", files.public.display());
        }
        KeysCommand::Id { key, passphrase } => {
            print(&format!("{}\n", key.public(&mut passphrase.source()?)?.id()));
        }
        KeysCommand::Passphrase { file, remove, new_passphrase_file, passphrase } => {
            let key = keys::read_secret(&file, &mut passphrase.source()?)?;
            let of = file.display().to_string();
            let new = if remove {
                None
            } else {
                Some(passphrase::new_passphrase(new_passphrase_file.as_deref(), passphrase::NEW_VARIABLE, &of)?)
            };
            keys::change_passphrase(&file, &key, new.as_ref())?;
            println!("{of} is {} now", if remove { "not encrypted" } else { "encrypted with the new passphrase" });
        }
        KeysCommand::Show { key: KeyRef::Agent(which), .. } if which.is_empty() => show_agent(&repo)?,
        KeysCommand::Show { key, passphrase } => {
            let public = key.public(&mut passphrase.source()?)?;
            println!("key      {}", public.id());
            println!("name     {}", plain(public.name().unwrap_or("none")));
            println!("where    {}", place(&key));
            println!(
                "openssh  {}",
                public.to_openssh().map_or_else(|| "none".into(), |line| plain(&line).into_owned())
            );
            println!("for      {}", duties(root_of(&repo)?.as_ref(), &public.id()));
        }
        KeysCommand::List { folders } => list(&repo, &folders)?,
        KeysCommand::Revoke(args) => trouble::revoke(&repo, &args)?,
        KeysCommand::Drill(args) => trouble::drill(&repo, &args)?,
    }
    Ok(())
}

/// The newest root of the repository, staged or published, if there is a repository.
fn root_of(repo: &Path) -> anyhow::Result<Option<RootMeta>> {
    if !repo.join("metadata").is_dir() {
        return Ok(None);
    }
    Ok(Some(Repository::open(repo).and_then(|repository| repository.next_root()).map_err(failed)?))
}

fn duties(root: Option<&RootMeta>, id: &str) -> String {
    let Some(root) = root else { return "no repository here (name one with --repo)".into() };
    let duties: Vec<String> = Duty::of(root, id).iter().map(ToString::to_string).collect();
    if duties.is_empty() { format!("nothing in root version {}", root.version) } else { duties.join(", ") }
}

fn place(key: &KeyRef) -> String {
    match key {
        KeyRef::File(path) => match keys::is_encrypted(path) {
            Ok(true) => format!("{} (encrypted)", path.display()),
            _ => path.display().to_string(),
        },
        held => held.to_string(),
    }
}

fn show_agent(repo: &Path) -> anyhow::Result<()> {
    let root = root_of(repo)?;
    let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
    let mut rows = vec![row(["KEY ID", "FINGERPRINT", "COMMENT", "FOR"])];
    for identity in Agent::from_env()?.identities()? {
        let (id, duties) = match &identity.public {
            Some(key) => (key.id(), duties(root.as_ref(), &key.id())),
            None => ("none".into(), format!("it {}", identity.why_not())),
        };
        rows.push(row([&id, &identity.fingerprint, &identity.comment, &duties]));
    }
    print(&align(&rows));
    Ok(())
}

/// A key that is listed, or lies somewhere.
#[derive(Default)]
struct Known {
    key: Option<PublicKey>,
    places: Vec<String>,
}

fn list(repo: &Path, folders: &[PathBuf]) -> anyhow::Result<()> {
    let root = root_of(repo)?;
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    for (id, key) in root.iter().flat_map(|root| &root.keys) {
        known.entry(id.clone()).or_default().key = Some(key.clone());
    }
    for folder in folders.iter().cloned().chain([repo.join("keys")]) {
        for (path, key) in public_files(&folder)? {
            let entry = known.entry(key.id()).or_default();
            entry.places.push(path.display().to_string());
            entry.key.get_or_insert(key);
        }
    }
    // Without an agent its keys are not listed, and that is no failure.
    for identity in Agent::from_env().and_then(|agent| agent.identities()).unwrap_or_default() {
        let Some(key) = identity.public else { continue };
        let entry = known.entry(key.id()).or_default();
        entry.places.push(format!("agent:{}", identity.comment));
        entry.key.get_or_insert(key.named(&identity.comment));
    }
    let mut rows = vec![["KEY ID", "NAME", "FOR", "WHERE"].map(str::to_owned).to_vec()];
    for (id, known) in &known {
        let name = known.key.as_ref().and_then(PublicKey::name).unwrap_or_default();
        let places = if known.places.is_empty() { "not here".into() } else { known.places.join(", ") };
        rows.push(vec![id.clone(), name.to_owned(), duties(root.as_ref(), id), places]);
    }
    print(&align(&rows));
    if let Some(root) = &root {
        for duty in Duty::ALL {
            let keys = duty.roles().first().and_then(|role| root.roles.get(role.as_str()));
            let (needed, all) = keys.map_or((0, 0), |keys| (keys.threshold, keys.keyids.len()));
            println!("{duty}: {needed} of {all} must sign (root version {})", root.version);
        }
    }
    Ok(())
}

/// Keys of a folder whose public half can be read without a passphrase.
fn public_files(folder: &Path) -> Result<Vec<(PathBuf, PublicKey)>, ReleaseError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(source) => {
            return Err(ReleaseError::Io { attempt: "list", path: folder.to_owned(), source });
        }
    };
    let paths = entries.flatten().map(|entry| entry.path()).take(MAX_LISTED_FILES);
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "pem")).collect();
    paths.sort();
    let read = |path: PathBuf| Some((path.clone(), keys::read_public(&path, &mut keys::Nobody).ok()?));
    Ok(paths.into_iter().filter_map(read).collect())
}

/// The full ID of a key that is named by its ID, its name in the root, a file or the agent.
pub(super) fn resolve(root: &RootMeta, text: &str, passphrase: &PassphraseArgs) -> Result<String, ReleaseError> {
    let by_root = rotate::find(root, text);
    match (by_root, text.parse::<KeyRef>()) {
        (Ok(id), _) => Ok(id),
        (Err(_), Ok(held @ (KeyRef::Agent(_) | KeyRef::Token(_)))) => Ok(held.public(&mut passphrase.source()?)?.id()),
        (Err(_), Ok(KeyRef::File(path))) if path.is_file() => {
            Ok(keys::read_public(&path, &mut passphrase.source()?)?.id())
        }
        (Err(error), _) => Err(error.into()),
    }
}
