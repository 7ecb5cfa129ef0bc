//! `crossdock root`: which keys speak for what, changed by those who hold them.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use proto::{
    env::{SystemClock, WallClock as _},
    tuf::PublicKey,
};

use super::{
    exit::{CliError, Exit},
    keys::resolve,
    passphrase::PassphraseArgs,
    release::{failed, show_next, show_staged},
};
use crate::release::{
    Repository, Setup,
    chain::Rotated,
    describe,
    rotate::{Change, Duty},
    signer::KeyRef,
};

/// Arguments of `crossdock root`.
#[derive(Debug, Args)]
pub struct RootArgs {
    /// Folder of the repository, or one that holds roots alone.
    #[arg(long, global = true, value_name = "DIR", default_value = "crossdock-release", env = "CROSSDOCK_REPO")]
    repo: PathBuf,
    #[command(subcommand)]
    command: RootCommand,
}

#[derive(Debug, Subcommand)]
enum RootCommand {
    /// Make a folder for roots alone, of somebody who signs online: the root is offline, one key does the rest
    Init(InitArgs),
    /// Stage the next root: keys added, removed or replaced, other thresholds, a later end
    ///
    /// Without any change only the end is later. It is signed with `crossdock release sign`, by enough keys of the
    /// root before and enough of the new one, and goes out with `crossdock release publish`, or, where there are
    /// roots alone, with `crossdock root finish`.
    Rotate(RotateArgs),
    /// Show the newest root, and what is staged
    Show,
    /// Publish the staged root of a folder that holds roots alone: metadata/N.root.json
    Finish,
}

#[derive(Debug, Args)]
struct InitArgs {
    /// Key that may change the keys (public or secret file, or agent:WHICH); repeatable.
    #[arg(long = "root-key", value_name = "KEY", required = true)]
    root_keys: Vec<KeyRef>,
    /// How many root keys must sign.
    #[arg(long, value_name = "N", default_value_t = 1)]
    root_threshold: u32,
    /// Key that signs everything else, online.
    #[arg(long, value_name = "KEY")]
    online_key: KeyRef,
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

#[derive(Debug, Args)]
struct RotateArgs {
    /// Give a key a role: root, targets or pipeline (snapshot and timestamp); repeatable.
    #[arg(long = "add-key", num_args = 2, value_names = ["ROLE", "KEY"])]
    add: Vec<String>,
    /// Take a role from a key, named by its ID, its name, a file or agent:WHICH; repeatable.
    #[arg(long = "remove-key", num_args = 2, value_names = ["ROLE", "KEY"])]
    remove: Vec<String>,
    /// Put a key in another's place; repeatable.
    #[arg(long = "replace-key", num_args = 3, value_names = ["ROLE", "OLD", "NEW"])]
    replace: Vec<String>,
    /// How many keys of a role must sign; repeatable.
    #[arg(long = "threshold", num_args = 2, value_names = ["ROLE", "N"])]
    thresholds: Vec<String>,
    /// How long the new root is good for, in days.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(i64).range(1..=3650))]
    expires_in: i64,
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

/// Runs `crossdock root`.
///
/// # Errors
/// What could not be done, why, and how to mend it.
pub fn run(args: RootArgs) -> anyhow::Result<()> {
    let now = SystemClock.now();
    match args.command {
        RootCommand::Init(init_args) => init(&args.repo, &init_args, now),
        RootCommand::Rotate(rotate_args) => rotate(&args.repo, &rotate_args, now),
        RootCommand::Show => show(&args.repo),
        RootCommand::Finish => {
            let root =
                Repository::open(&args.repo).and_then(|repository| repository.finish_root(now)).map_err(failed)?;
            let file = args.repo.join(format!("metadata/{}.root.json", root.version));
            println!("root version {} is good: {}", root.version, file.display());
            Ok(())
        }
    }
}

fn init(repo: &Path, args: &InitArgs, now: Timestamp) -> anyhow::Result<()> {
    let mut ask = args.passphrase.source()?;
    let online = args.online_key.public(&mut ask)?;
    let root: Vec<PublicKey> = args.root_keys.iter().map(|key| key.public(&mut ask)).collect::<Result<_, _>>()?;
    let setup = Setup {
        root,
        root_threshold: args.root_threshold,
        targets: vec![online.clone()],
        targets_threshold: 1,
        pipeline: online,
    };
    let repository = Repository::create_chain(repo, &setup, now).map_err(failed)?;
    show_staged(&repository).map_err(failed)?;
    show_next(&repository).map_err(failed)
}

fn rotate(repo: &Path, args: &RotateArgs, now: Timestamp) -> anyhow::Result<()> {
    let repository = Repository::open(repo).map_err(failed)?;
    let before = repository.next_root().map_err(failed)?;
    let usage = |problem: String| anyhow::Error::from(CliError::new(Exit::Usage, problem));
    let duty = |text: &str| text.parse::<Duty>().map_err(usage);
    let old = |text: &str| resolve(&before, text, &args.passphrase).map_err(failed);
    let new = |text: &str| -> anyhow::Result<PublicKey> {
        let key: KeyRef = text.parse().map_err(usage)?;
        key.public(&mut args.passphrase.source()?).map_err(failed)
    };
    let mut changes = vec![];
    // clap gives the words of all uses in one list, each use whole.
    for words in args.replace.chunks_exact(3) {
        if let [role, was, is] = words {
            changes.extend([Change::Remove(duty(role)?, old(was)?), Change::Add(duty(role)?, new(is)?)]);
        }
    }
    for words in args.add.chunks_exact(2) {
        if let [role, key] = words {
            changes.push(Change::Add(duty(role)?, new(key)?));
        }
    }
    for words in args.remove.chunks_exact(2) {
        if let [role, key] = words {
            changes.push(Change::Remove(duty(role)?, old(key)?));
        }
    }
    for words in args.thresholds.chunks_exact(2) {
        if let [role, n] = words {
            let n = n.parse().map_err(|_| usage(format!("the threshold {n:?} of {role} is no number; write 2")))?;
            changes.push(Change::Threshold(duty(role)?, n));
        }
    }
    let expires = now.checked_add(SignedDuration::from_hours(24 * args.expires_in))?;
    let rotated = repository.rotate(&changes, Some(expires), now).map_err(failed)?;
    show_rotated(&rotated);
    show_staged(&repository).map_err(failed)?;
    show_next(&repository).map_err(failed)
}

fn show(repo: &Path) -> anyhow::Result<()> {
    let repository = Repository::open(repo).map_err(failed)?;
    match repository.newest_root().map_err(failed)? {
        Some(root) => {
            println!("published: root version {}", root.version);
            describe::root(None, &root).iter().for_each(|line| println!("  {line}"));
        }
        None => println!("no root is published here yet"),
    }
    let staged = show_staged(&repository).map_err(failed)?;
    if staged.root.is_some() { show_next(&repository).map_err(failed) } else { Ok(()) }
}

/// Says what was staged.
pub(super) fn show_rotated(rotated: &Rotated) {
    let duties: Vec<String> = rotated.duties.iter().map(ToString::to_string).collect();
    let what = if duties.is_empty() { "a later end".to_owned() } else { format!("changes of {}", duties.join(", ")) };
    println!("staged root version {}: {what}", rotated.version);
    if rotated.dropped_signatures > 0 {
        println!("{} signatures of what was staged before are dropped: sign again", rotated.dropped_signatures);
    }
}
