//! `crossdock keys revoke` and `crossdock keys drill`: a key is lost or stolen.

use std::{path::Path, str::FromStr};

use clap::Args;
use proto::env::{SystemClock, WallClock as _};

use super::resolve;
use crate::{
    cli::{
        passphrase::PassphraseArgs,
        release::{failed, show_next, show_staged},
        root::show_rotated,
    },
    release::{
        Repository,
        drill::{
            self, Case, Ground, Step,
            hub::{self, HubCase},
        },
        rotate::Duty,
        signer::KeyRef,
    },
};

/// Arguments of `crossdock keys revoke`.
#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// The key: its ID or 8 digits of it, its name in the root, a file, or agent:WHICH.
    key: String,
    /// Key that takes its place in every role: a public or secret file, or agent:WHICH.
    #[arg(long, value_name = "KEY")]
    replace_with: Option<KeyRef>,
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

/// Arguments of `crossdock keys drill`.
#[derive(Debug, Args)]
pub(super) struct DrillArgs {
    /// What happened: lost-root-key, stolen-root-key, lost-targets-key, stolen-targets-key, lost-pipeline-key,
    /// stolen-pipeline-key, stolen-online-key, stolen-hub or stolen-node.
    name: Drill,
    /// Which key it is: its ID, its name in the root, a file, or agent:WHICH.
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

/// A drill by its name.
#[derive(Debug, Clone, Copy)]
enum Drill {
    Key(Case),
    Hub(HubCase),
}

impl FromStr for Drill {
    type Err = String;
    fn from_str(text: &str) -> Result<Drill, String> {
        let hubs = HubCase::ALL.map(|case| case.to_string()).join(", ");
        text.parse().map(Drill::Hub).or_else(|()| text.parse().map(Drill::Key).map_err(|e| format!("{e}, {hubs}")))
    }
}

pub(super) fn revoke(repo: &Path, args: &RevokeArgs) -> anyhow::Result<()> {
    let repository = Repository::open(repo).map_err(failed)?;
    let id = resolve(&repository.next_root().map_err(failed)?, &args.key, &args.passphrase).map_err(failed)?;
    let new = args.replace_with.as_ref().map(|key| key.public(&mut args.passphrase.source()?)).transpose();
    let rotated = repository.revoke(&id, new.map_err(failed)?.as_ref(), SystemClock.now()).map_err(failed)?;
    show_rotated(&rotated);
    show_staged(&repository).map_err(failed)?;
    if rotated.targets_again {
        println!("the targets are staged anew, so that nothing is needed that the revoked key signed");
    }
    if rotated.duties.contains(&Duty::Pipeline) && repository.has_releases().map_err(failed)? {
        println!("the publication needs the pipeline's new key: crossdock release publish --key KEY");
    }
    show_next(&repository).map_err(failed)
}

fn show(steps: &[Step]) {
    for (n, step) in (1..).zip(steps) {
        println!("\n{n}. {}", step.text);
        step.commands.iter().for_each(|command| println!("     {command}"));
    }
}

pub(super) fn drill(repo: &Path, args: &DrillArgs) -> anyhow::Result<()> {
    let case = match args.name {
        Drill::Key(case) => case,
        Drill::Hub(case) => {
            println!("{case}");
            show(&hub::steps(case, &repo.display().to_string()));
            return Ok(());
        }
    };
    let repository = Repository::open(repo).map_err(failed)?;
    let root = match repository.newest_root().map_err(failed)? {
        Some(root) => root,
        None => repository.next_root().map_err(failed)?,
    };
    let only = |duty: Duty| {
        let keys = duty.roles().first().and_then(|role| root.roles.get(role.as_str()))?;
        if let [one] = keys.keyids.as_slice() { Some(one.clone()) } else { None }
    };
    let key = match &args.key {
        Some(text) => Some(resolve(&root, text, &args.passphrase).map_err(failed)?),
        None => only(case.duty),
    };
    let own: Vec<(Duty, String)> = Duty::ALL
        .into_iter()
        .map(|duty| (duty, repository.keys_dir().join(format!("{duty}.pem"))))
        .filter(|(_, path)| path.exists())
        .map(|(duty, path)| (duty, path.display().to_string()))
        .collect();
    let ground = Ground {
        root: &root,
        folder: repo.display().to_string(),
        releases: repository.has_releases().map_err(failed)?,
        own: &own,
        key: key.as_deref(),
    };
    println!("{case}, repository {}, root version {}", repo.display(), root.version);
    show(&drill::steps(case, &ground));
    Ok(())
}
