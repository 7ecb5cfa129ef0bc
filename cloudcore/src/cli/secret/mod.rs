//! `crossdock secret`: from a password to a file that the nodes that need it open, and nobody else.
//!
//! What is decided stands in [`crate::release::secrets`] and [`proto::secret`]; here are arguments, words and the hub's
//! answer. `recipients` is about to whom, `list` about what is sealed already.

mod list;
mod recipients;

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use proto::{
    durable,
    name::Name,
    secret::{self, MAX_SEALED_BYTES, MAX_SECRET_BYTES, SealedTo, SealingKey},
};
use zeroize::{Zeroize as _, Zeroizing};

use self::recipients::RecipientArgs;
use super::{
    Context,
    exit::{CliError, Exit},
    release::failed,
};
use crate::release::{
    Repository,
    secrets::{Decision, PINS_FILE, names},
};

/// Largest file with an age identity, in bytes.
const MAX_KEY_FILE_BYTES: u64 = 64 << 10;

/// Arguments of `crossdock secret`.
#[derive(Debug, Args)]
pub struct SecretArgs {
    /// Folder of the release repository; its recipients.json holds the keys of nodes.
    #[arg(long, global = true, value_name = "DIR", default_value = "crossdock-release", env = "CROSSDOCK_REPO")]
    repo: PathBuf,
    #[command(subcommand)]
    command: SecretCommand,
}

#[derive(Debug, Subcommand)]
enum SecretCommand {
    /// Encrypt a secret to the nodes that need it: an age file for a release
    ///
    /// Name the file in release.yaml, below workload: secrets: [{ name: NAME, file: PATH/IN/TREE }]. The workload finds
    /// it as the file $CROSSDOCK_SECRETS/NAME.
    Seal(SealArgs),
    /// Encrypt a sealed secret again, to other nodes, without its source at hand
    Reseal(ResealArgs),
    /// Show what is sealed to whom, in releases or files
    List(list::ListArgs),
}

#[derive(Debug, Args)]
struct SealArgs {
    /// Name of the secret: its file in $CROSSDOCK_SECRETS.
    name: String,
    /// App that it is for; nodes give it to no other.
    #[arg(long)]
    app: Name,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    recipients: RecipientArgs,
    /// File to write. Default: NAME.age in this folder.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SourceArgs {
    /// File with the secret, to the byte.
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    /// Read the secret from standard input, to the byte. Never from the command line, which others can read.
    #[arg(long)]
    from_stdin: bool,
}

#[derive(Debug, Args)]
struct ResealArgs {
    /// The sealed secret; it is replaced, unless --output is given.
    file: PathBuf,
    /// age identity that opens it, such as of a person that it was sealed to with --also.
    #[arg(long, value_name = "KEYFILE")]
    identity: PathBuf,
    /// App that it is for, where the file does not say: what other programs encrypted.
    #[arg(long)]
    app: Option<Name>,
    /// Name of the secret, where the file does not say.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    recipients: RecipientArgs,
    /// File to write instead.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// What could not be done, why, and how to mend it.
pub async fn run(args: SecretArgs, context: &Context) -> anyhow::Result<()> {
    match args.command {
        SecretCommand::Seal(seal_args) => seal(&args.repo, seal_args, context).await,
        SecretCommand::Reseal(reseal_args) => reseal(&args.repo, reseal_args, context).await,
        SecretCommand::List(list_args) => list::run(&args.repo, &list_args),
    }
}

async fn seal(repo: &Path, args: SealArgs, context: &Context) -> anyhow::Result<()> {
    let repository = Repository::open(repo).map_err(failed)?;
    let plaintext = args.source.read()?;
    let decision = args.recipients.decide(&repository, &[], context).await?;
    let sealed = secret::seal(&plaintext, &args.app, &args.name, &decision.to)?;
    let output = args.output.unwrap_or_else(|| PathBuf::from(format!("{}.age", args.name)));
    keep(&repository, &decision, &sealed, &output)?;
    println!("sealed secret {} of {} to {}: {}", args.name, args.app, names(&decision.to), output.display());
    println!(
        "in release.yaml: this file among artifacts, and below workload: secrets: [{{ name: {}, file: PATH/IN/TREE }}]",
        args.name
    );
    Ok(())
}

async fn reseal(repo: &Path, args: ResealArgs, context: &Context) -> anyhow::Result<()> {
    let repository = Repository::open(repo).map_err(failed)?;
    let path = args.file.display().to_string();
    let key = identity(&args.identity)?;
    let sealed = list::read_sealed(&args.file)?;
    let (plaintext, before) = secret::open_any(&sealed, &key).with_context(|| format!("could not open {path}"))?;
    let (app, name) = match (before.of, args.app, args.name) {
        (Some((app, name)), None, None) => (app.parse().with_context(|| format!("{path}: its app"))?, name),
        (None, Some(app), Some(name)) => (app, name),
        (Some((app, name)), ..) => {
            let text = format!("{path} is secret {name} of {app}; leave out --app and --name");
            return Err(CliError::new(Exit::Usage, text).into());
        }
        (None, ..) => {
            let text = format!("{path} does not say what it is; give --app and --name");
            return Err(CliError::new(Exit::Usage, text).into());
        }
    };
    // People keep what they could read; who reseals could, in any case.
    let people = before.to.iter().filter(|to| to.node.is_none()).map(|to| to.key.parse());
    let mut also = people.collect::<Result<Vec<_>, _>>().with_context(|| format!("{path}: a recipient of it"))?;
    also.push(key.public());
    let decision = args.recipients.decide(&repository, &also, context).await?;
    let resealed = secret::seal(&plaintext, &app, &name, &decision.to)?;
    keep(&repository, &decision, &resealed, args.output.as_ref().unwrap_or(&args.file))?;
    println!("sealed secret {name} of {app} again, to {}", names(&decision.to));
    let gone: Vec<SealedTo> = before
        .to
        .into_iter()
        .filter(|was| was.node.is_some() && decision.to.iter().all(|is| is.node != was.node))
        .collect();
    if !gone.is_empty() {
        println!("no longer to {}: what they could read they know; for a lost box seal a new secret", names(&gone));
    }
    Ok(())
}

/// Writes the sealed file, then the pins: nothing is pinned for a secret that is not there.
fn keep(repository: &Repository, decision: &Decision, sealed: &[u8], output: &Path) -> anyhow::Result<()> {
    if let Some(parent) = output.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        durable::create_dir_all(parent)?;
    }
    durable::write(output, sealed, 0o644)?;
    let first: Vec<&Name> = decision.first.iter().collect();
    for (words, nodes) in
        [("seen for the first time", first), ("replaced, as accepted", decision.replaced.keys().collect())]
    {
        if nodes.is_empty() {
            continue;
        }
        decision.pins.store(repository.dir()).map_err(failed)?;
        println!("{words}, and pinned in {PINS_FILE}; compare with `edgecore status` on the box:");
        for node in nodes {
            let key = decision.pins.nodes.get(node).map(ToString::to_string).unwrap_or_default();
            println!("  {node}   {key}");
        }
    }
    Ok(())
}

impl SourceArgs {
    fn read(&self) -> anyhow::Result<Zeroizing<Vec<u8>>> {
        match &self.from_file {
            Some(path) => {
                let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
                read_secret(file).with_context(|| format!("could not read {}", path.display()))
            }
            None => read_secret(std::io::stdin().lock()).context("could not read the secret from standard input"),
        }
    }
}

fn read_secret(from: impl Read) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut secret = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 1));
    from.take(MAX_SECRET_BYTES as u64 + 1).read_to_end(&mut secret)?;
    if secret.len() > MAX_SECRET_BYTES {
        return Err(secret::SecretError::TooLarge.into());
    }
    if secret.is_empty() {
        return Err(CliError::new(Exit::Usage, "it is empty: there is nothing to seal").into());
    }
    Ok(secret)
}

fn identity(path: &Path) -> anyhow::Result<SealingKey> {
    let what = || format!("could not read the age identity {}", path.display());
    let mut text = crate::bounded::read_file(path, MAX_KEY_FILE_BYTES).with_context(what)?;
    let key = text.parse::<SealingKey>();
    text.zeroize();
    key.with_context(what)
}

/// Reads at most as much as a sealed secret may have.
fn read_bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    let what = || format!("could not read {}", path.display());
    let mut bytes = vec![];
    File::open(path).and_then(|file| file.take(MAX_SEALED_BYTES + 1).read_to_end(&mut bytes)).with_context(what)?;
    Ok(bytes)
}
