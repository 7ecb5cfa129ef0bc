//! `crossdock release`: from a folder to a signed release at the hub.
//!
//! Everything but `publish` and `promote` works without a hub and without a network. What is decided stands in
//! [`crate::release`]; here are arguments and words.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use proto::{
    digest::Digest,
    durable,
    env::{Seed, SystemClock, WallClock as _},
    link::message::{MetadataReply, MetadataRequest},
    name::ReleaseName,
    tuf::{RoleName, SecretKey},
};

use super::{
    Context,
    client::Client,
    exit::{CliError, Exit},
    passphrase::{PassphraseArgs, person_is_here},
    promote::{self, PromoteArgs},
};
use crate::release::{
    ReleaseError, Repository, Setup, build, describe, keys,
    publish::{self, Destination},
    signer::KeyRef,
    staging::{Added, Staged},
    verify,
};

mod ceremony;
pub(super) use ceremony::show_next;

/// Arguments of `crossdock release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// Folder of the release repository.
    #[arg(long, global = true, value_name = "DIR", default_value = "crossdock-release", env = "CROSSDOCK_REPO")]
    repo: PathBuf,
    #[command(subcommand)]
    command: ReleaseCommand,
}

#[derive(Debug, Subcommand)]
enum ReleaseCommand {
    /// Make a release repository: whose signatures count
    Init(InitArgs),
    /// Build a release from release.yaml and stage it
    Build {
        /// The file; artifacts are relative to it.
        #[arg(value_name = "PATH/release.yaml")]
        path: PathBuf,
    },
    /// Show what is staged in words, and append signatures to it
    ///
    /// At a terminal it asks before it signs; where no person is, it signs what is there, as a pipeline means it.
    Sign(SignArgs),
    /// Write what is staged into one file, to be carried to another signer, or back
    Export {
        /// The file.
        file: PathBuf,
    },
    /// Take up what another copy staged, or its signatures; makes the folder if there is none
    ///
    /// Signatures are joined only where the signed content is the same. Nothing is signed or published.
    Import {
        /// A file of `crossdock release export`.
        file: PathBuf,
    },
    /// Sign snapshot and timestamp, and take content and metadata to the hub; also renews the timestamp
    Publish {
        /// The pipeline's secret key, as a file or agent:WHICH. Default: the one that the repository holds itself.
        #[arg(long = "key", value_name = "KEY")]
        key: Option<KeyRef>,
        #[command(flatten)]
        passphrase: PassphraseArgs,
        /// Finish the publication in the folder only, without a hub.
        #[arg(long)]
        offline: bool,
    },
    /// Copy a published release from one hub to another, such as from the sandbox to production
    Promote(PromoteArgs),
    /// Verify the repository without a hub, or that a build is what was published
    Verify {
        /// A release.yaml to compare with what was published under its name.
        #[arg(value_name = "PATH/release.yaml")]
        path: Option<PathBuf>,
    },
    /// Stage the withdrawal of a release
    Remove {
        /// APP@VERSION
        release: ReleaseName,
    },
    /// Stage a published release again under a higher counter, to step back to it on purpose
    Reissue {
        /// APP@VERSION
        release: ReleaseName,
    },
    /// Stage targets (or the root) as they are with a later expiry
    Renew {
        /// Renew the root instead of the targets.
        #[arg(long)]
        root: bool,
    },
}

#[derive(Debug, Args)]
struct SignArgs {
    /// Secret key to sign with: a file, agent:WHICH (fingerprint, comment or key ID at the ssh-agent), or
    /// pkcs11:token=NAME;object=LABEL (its library: $CROSSDOCK_PKCS11_MODULE); repeatable.
    /// Default: the keys that the repository holds itself.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<KeyRef>,
    /// Do not ask before signing.
    #[arg(long, short = 'y')]
    yes: bool,
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

#[derive(Debug, Args)]
struct InitArgs {
    /// Folder of the repository. Default: that of --repo.
    dir: Option<PathBuf>,
    /// Key that may change the keys (public or secret file, or agent:WHICH); repeatable. With no key given at all,
    /// keys for a small team are made in the repository.
    #[arg(long = "root-key", value_name = "KEY")]
    root_keys: Vec<KeyRef>,
    /// How many root keys must sign.
    #[arg(long, value_name = "N", default_value_t = 1)]
    root_threshold: u32,
    /// Key that may add releases; repeatable.
    #[arg(long = "targets-key", value_name = "KEY")]
    targets_keys: Vec<KeyRef>,
    /// How many targets keys must sign.
    #[arg(long, value_name = "N", default_value_t = 1)]
    targets_threshold: u32,
    /// Key of the pipeline, for snapshot and timestamp.
    #[arg(long, value_name = "KEY")]
    pipeline_key: Option<KeyRef>,
    /// Do not encrypt the keys of a small team. Where no person is and no passphrase is given, they are not.
    #[arg(long)]
    no_passphrase: bool,
    #[command(flatten)]
    passphrase: PassphraseArgs,
    /// Only write a commented release.yaml into the current folder, to start from.
    #[arg(long)]
    sample: bool,
}

/// Runs `crossdock release`.
///
/// # Errors
/// What could not be done, why, and how to mend it.
pub async fn run(args: ReleaseArgs, context: &Context) -> anyhow::Result<()> {
    let now = SystemClock.now();
    let repo = args.repo;
    match args.command {
        ReleaseCommand::Publish { key, offline, passphrase } => {
            return publish(&repo, key, &passphrase, offline, now, context).await;
        }
        ReleaseCommand::Promote(args) => return promote::run(args, now).await,
        ReleaseCommand::Init(init_args) => init(&repo, &init_args, now)?,
        ReleaseCommand::Build { path } => build_and_stage(&repo, &path, now).map_err(failed)?,
        ReleaseCommand::Sign(args) => ceremony::sign(&repo, &args)?,
        ReleaseCommand::Export { file } => ceremony::export(&repo, &file).map_err(failed)?,
        ReleaseCommand::Import { file } => ceremony::import(&repo, &file).map_err(failed)?,
        ReleaseCommand::Verify { path } => verify_all(&repo, path.as_deref(), now).map_err(failed)?,
        ReleaseCommand::Remove { release } => {
            Repository::open(&repo).and_then(|repo| repo.remove(&release, now)).map_err(failed)?;
            println!("staged the withdrawal of {release}; next: crossdock release sign");
        }
        ReleaseCommand::Reissue { release } => {
            let counter = Repository::open(&repo).and_then(|repo| repo.reissue(&release, now)).map_err(failed)?;
            println!("staged {release} again with counter {counter}; next: crossdock release sign");
        }
        ReleaseCommand::Renew { root } => {
            let role = if root { RoleName::Root } else { RoleName::Targets };
            Repository::open(&repo).and_then(|repo| repo.renew(role, now)).map_err(failed)?;
            println!("staged {role} metadata with a later expiry; next: crossdock release sign");
        }
    }
    Ok(())
}

/// Refusals have an exit code of their own, so that a pipeline can tell them from a full disk.
pub(super) fn failed(error: ReleaseError) -> anyhow::Error {
    use ReleaseError::{Forked, Immutable, Rotate, Trust};
    let refused = matches!(error, Trust { .. } | Immutable { .. } | Forked { .. } | Rotate { .. });
    let error = anyhow::Error::new(error);
    if refused { CliError::new(Exit::Refused, format!("{error:#}")).into() } else { error }
}

fn init(repo: &Path, args: &InitArgs, now: Timestamp) -> anyhow::Result<()> {
    if args.sample {
        return sample(Path::new("release.yaml"));
    }
    let dir = args.dir.as_deref().unwrap_or(repo);
    let given = !args.root_keys.is_empty() || !args.targets_keys.is_empty() || args.pipeline_key.is_some();
    if !given {
        return init_small_team(dir, args, now);
    }
    let (false, false, Some(pipeline)) = (args.root_keys.is_empty(), args.targets_keys.is_empty(), &args.pipeline_key)
    else {
        let message = "give --root-key, --targets-key and --pipeline-key, or none of them for a small team's set";
        return Err(CliError::new(Exit::Usage, message).into());
    };
    let mut ask = args.passphrase.source()?;
    let mut read = |refs: &[KeyRef]| refs.iter().map(|key| key.public(&mut ask)).collect::<Result<Vec<_>, _>>();
    let setup = Setup {
        root: read(&args.root_keys)?,
        root_threshold: args.root_threshold,
        targets: read(&args.targets_keys)?,
        targets_threshold: args.targets_threshold,
        pipeline: pipeline.public(&mut args.passphrase.source()?)?,
    };
    let repository = Repository::create(dir, &setup, now).map_err(failed)?;
    println!("made the release repository {}", dir.display());
    show_staged(&repository)?;
    ceremony::show_next(&repository)?;
    Ok(())
}

fn init_small_team(dir: &Path, args: &InitArgs, now: Timestamp) -> anyhow::Result<()> {
    // What people keep is encrypted when a person is here. A trial or a test runs without one, and stays as it was.
    let asked = person_is_here() || args.passphrase.is_given();
    let passphrase = args.passphrase.for_new(args.no_passphrase || !asked, "root.pem and targets.pem")?;
    let seed = Seed::from_os()?;
    let [root, targets, pipeline] =
        ["root", "targets", "pipeline"].map(|name| SecretKey::from_seed(&seed.bytes(&format!("{name} key"))));
    let repository = Repository::create(dir, &Setup::small_team(&root, &targets, &pipeline), now).map_err(failed)?;
    let folder = repository.keys_dir();
    // The pipeline signs without a person: its key stays open, wherever it is taken.
    for (name, key, passphrase) in [
        ("root", &root, passphrase.as_ref()),
        ("targets", &targets, passphrase.as_ref()),
        ("pipeline", &pipeline, None),
    ] {
        keys::write(&folder, name, key, passphrase)?;
    }
    durable::write(&folder.join(".gitignore"), b"*.pem\n", 0o644)?;
    repository.sign(&[root, targets]).map_err(failed)?;
    println!(
        "made the release repository {} for a small team: one key each for root, targets, pipeline",
        dir.display()
    );
    println!("the secret keys are in {}: move root.pem to a safe place, it is needed rarely", folder.display());
    if passphrase.is_none() {
        println!(
            "they are not encrypted; for anything but a trial: crossdock keys passphrase {}/root.pem",
            folder.display()
        );
    }
    println!("next: crossdock release publish, then crossdock release build PATH/release.yaml");
    Ok(())
}

fn sample(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        let message = format!("{} is there already and is not overwritten", path.display());
        return Err(CliError::new(Exit::Refused, message).into());
    }
    durable::write(path, include_str!("sample_release.yaml").as_bytes(), 0o644)?;
    println!("wrote {}; next: crossdock release build {0}", path.display());
    Ok(())
}

fn build_and_stage(repo: &Path, path: &Path, now: Timestamp) -> Result<(), ReleaseError> {
    let repository = Repository::open(repo)?;
    let built = build(path)?;
    built.warnings.iter().for_each(|warning| eprintln!("warning: {}: {warning}", path.display()));
    let (name, digest, files) = (built.name(), built.digest.short(), built.manifest.files.len());
    println!("built {name}: {files} files, {} bytes, manifest {digest}", built.manifest.total_bytes());
    match repository.add(&built, now)? {
        Added::AlreadyPublished { restored: 0 } => {
            println!("{name} is published already with this content: nothing to do");
        }
        Added::AlreadyPublished { restored } => println!(
            "{name} is published already with this content; {restored} files that were missing or damaged in {} are whole again",
            repo.display()
        ),
        Added::AlreadyStaged => println!("{name} is staged already with this content; next: crossdock release sign"),
        Added::Staged { release_counter, dropped_signatures } => {
            println!("staged {name} with counter {release_counter}; next: crossdock release sign");
            if dropped_signatures > 0 {
                println!("{dropped_signatures} signatures of what was staged before are dropped: sign again");
            }
        }
    }
    Ok(())
}

/// Shows what is staged, and yields what it showed.
pub(super) fn show_staged(repository: &Repository) -> Result<Staged, ReleaseError> {
    let (staged, published) = (repository.staged()?, repository.published()?);
    if let Some(root) = &staged.root {
        println!("staged: root version {}", root.signed.version);
        let lines = describe::root(repository.newest_root()?.as_ref(), &root.signed);
        lines.iter().for_each(|line| println!("  {line}"));
    }
    if let Some(targets) = &staged.targets {
        println!("staged: targets version {}", targets.signed.version);
        let old = published.as_ref().and_then(|set| set.targets_meta());
        let lines = describe::targets(repository, old, &targets.signed);
        lines.iter().for_each(|line| println!("  {line}"));
    }
    Ok(staged)
}

async fn publish(
    repo: &Path,
    key: Option<KeyRef>,
    passphrase: &PassphraseArgs,
    offline: bool,
    now: Timestamp,
    context: &Context,
) -> anyhow::Result<()> {
    // Before anything is signed: is there a hub to publish to?
    let client = if offline { None } else { Some(context.client()?) };
    let repository = Repository::open(repo).map_err(failed)?;
    if let Some(client) = &client {
        let served = Destination::metadata(client).await?;
        repository.follows(&served).map_err(failed)?;
        if repository.supersedes(&served).map_err(failed)? {
            eprintln!(
                "note: the new root takes the keys away that signed what the hub serves; releases that only the hub lists are withdrawn"
            );
        }
    }
    let key = key.unwrap_or_else(|| KeyRef::File(repository.keys_dir().join("pipeline.pem")));
    let key = key
        .signer(&mut passphrase.source()?)
        .context("the pipeline's key is needed to sign snapshot and timestamp; name it with --key FILE")?;
    let publication = repository.finish(&key, now).map_err(failed)?;
    let Some(client) = client else {
        println!("finished the publication in {}", repo.display());
        return Ok(());
    };
    let bar = progress_bar(publication.blobs.len() as u64);
    let uploaded = publish::upload(&client, &publication, |uploaded| {
        bar.set_position(uploaded.sent + uploaded.present);
    })
    .await;
    bar.finish_and_clear();
    let uploaded = uploaded
        .context("the publication is finished here but not at the hub; mend what follows and run publish again")?;
    println!(
        "published to {}: {} blobs ({} bytes) sent, {} were there",
        client.server(),
        uploaded.sent,
        uploaded.sent_bytes,
        uploaded.present
    );
    Ok(())
}

/// A bar where a person looks, nothing where a pipeline does.
fn progress_bar(blobs: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("uploading {wide_bar} {pos}/{len} {eta}");
    ProgressBar::new(blobs).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

impl Destination for Client {
    async fn metadata(&self) -> anyhow::Result<MetadataReply> {
        Client::metadata(self, &MetadataRequest::default()).await
    }
    async fn has_blob(&self, digest: &Digest) -> anyhow::Result<bool> {
        Client::has_blob(self, digest).await
    }
    async fn put_blob(&self, digest: &Digest, path: &Path) -> anyhow::Result<()> {
        Client::put_blob(self, digest, path).await
    }
    async fn publish(&self, reply: &MetadataReply) -> anyhow::Result<()> {
        Client::publish(self, reply).await.map(drop)
    }
}

fn verify_all(repo: &Path, path: Option<&Path>, now: Timestamp) -> Result<(), ReleaseError> {
    let repository = Repository::open(repo)?;
    if let Some(path) = path {
        let built = build(path)?;
        let target = verify::build(&repository, &built, now)?;
        println!("{} is what was published: manifest {}", built.name(), target.digest);
        return Ok(());
    }
    let verified = verify::repository(&repository, now)?;
    let versions = verified.versions;
    if verified.expiries.is_empty() {
        println!("nothing is published yet");
    } else {
        println!(
            "published: root {}, targets {}, snapshot {}, timestamp {}: all signatures are good",
            versions.root, versions.targets, versions.snapshot, versions.timestamp
        );
        verified.expiries.iter().for_each(|(role, expires)| println!("  {role} expires {expires}"));
    }
    for (name, target) in &verified.releases {
        println!("  {name} counter {} manifest {}", target.custom.release_counter, target.digest.short());
    }
    for (name, lines) in &verified.evidence {
        println!("origin of {name}");
        lines.iter().for_each(|line| println!("  {line}"));
    }
    println!("content: {} files, {} bytes, every digest agrees", verified.files, verified.bytes);
    show_staged(&repository)?;
    ceremony::show_quorums(&repository)?;
    Ok(())
}
