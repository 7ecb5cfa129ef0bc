//! `crossdock director`: the hub's online key, and the roots that say which one it is.

use std::path::{Path, PathBuf};

use proto::{
    durable,
    link::message::MetadataReply,
    tuf::{PublicKey, RoleName, TrustedSet, key::short, schema::RootMeta},
};
use serde_json::{Value, json};

use super::{
    Context,
    exit::{CliError, Exit},
    kinds::text,
};

/// `crossdock director`.
#[derive(Debug, clap::Subcommand)]
pub enum DirectorCommand {
    /// Show the director's root: whose keys may change it, which key signs for nodes, when it ends
    Show,
    /// Make a new online key at the hub, in place of one that was stolen or is old
    Rekey {
        /// Where to write its public half when people have to sign for it.
        #[arg(long, value_name = "FILE", default_value = "director-online.pub")]
        public: PathBuf,
    },
    /// Write the director's roots into a folder, to change the root there: crossdock root rotate --repo DIR
    Export {
        /// The folder; made if there is none.
        dir: PathBuf,
    },
    /// Give the hub newer roots from such a folder
    Publish {
        /// The folder.
        dir: PathBuf,
    },
}

/// Runs the command.
///
/// # Errors
/// When the hub refuses, or a file cannot be read or written.
pub async fn run(command: DirectorCommand, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let roots = || async {
        let reply = client.get_value("director", "metadata").await?;
        anyhow::Ok(serde_json::from_value::<MetadataReply>(reply)?.roots)
    };
    match command {
        DirectorCommand::Show => show(&roots().await?),
        DirectorCommand::Rekey { public } => {
            let reply: Value = client.post("director/rekey", &json!({})).await?;
            println!("{}", text(&reply, "/message"));
            if let Ok(key) = serde_json::from_value::<PublicKey>(reply.get("key").cloned().unwrap_or_default()) {
                durable::write(&public, format!("{}\n", serde_json::to_string_pretty(&key)?).as_bytes(), 0o644)?;
                next_steps(&roots().await?, &public)?;
            }
            Ok(())
        }
        DirectorCommand::Export { dir } => export(&dir, &roots().await?),
        DirectorCommand::Publish { dir } => {
            let reply = MetadataReply { roots: read(&dir)?, ..MetadataReply::default() };
            let reply: Value = client.post("director/metadata", &serde_json::to_value(&reply)?).await?;
            println!("{}", text(&reply, "/message"));
            Ok(())
        }
    }
}

/// What people have to type so that the new online key signs.
fn next_steps(roots: &[String], public: &Path) -> anyhow::Result<()> {
    let root = newest(roots)?;
    let old = root.roles.get(RoleName::Targets.as_str()).and_then(|keys| keys.keyids.first());
    let old = old.map(|id| short(id)).unwrap_or_default();
    println!("wrote {}. What is left, where holders of the director's root keys sign:", public.display());
    println!("     crossdock director export director");
    println!("     crossdock key revoke {old} --replace-with {} --repo director", public.display());
    println!("     crossdock release sign --repo director --key KEY");
    println!("     crossdock root finish --repo director");
    println!("     crossdock director publish director");
    Ok(())
}

fn newest(roots: &[String]) -> anyhow::Result<RootMeta> {
    let first = roots.first().ok_or_else(|| CliError::new(Exit::Failed, "the hub has no director"))?;
    Ok(TrustedSet::new(first)?.update_root(roots, jiff::Timestamp::MIN)?.root().clone())
}

fn show(roots: &[String]) -> anyhow::Result<()> {
    let root = newest(roots)?;
    println!("root version {}, ends {}", root.version, root.expires);
    for role in RoleName::ALL {
        let Some(keys) = root.roles.get(role.as_str()) else { continue };
        let ids: Vec<String> = keys.keyids.iter().map(|id| short(id)).collect();
        println!("  {role}: {} of {}", keys.threshold, ids.join(", "));
    }
    Ok(())
}

fn file(dir: &Path, version: usize) -> PathBuf {
    dir.join("metadata").join(format!("{version}.root.json"))
}

fn export(dir: &Path, roots: &[String]) -> anyhow::Result<()> {
    durable::create_dir_all(&dir.join("metadata"))?;
    durable::create_dir_all(&dir.join("staged"))?;
    for (i, root) in roots.iter().enumerate() {
        durable::write(&file(dir, i + 1), root.as_bytes(), 0o644)?;
    }
    println!("wrote {} root(s) to {}", roots.len(), dir.display());
    println!(
        "next: crossdock root rotate --repo {0}, release sign, root finish; then crossdock director publish {0}",
        dir.display()
    );
    Ok(())
}

/// Published roots of a folder, and the staged one behind them.
fn read(dir: &Path) -> anyhow::Result<Vec<String>> {
    let limit = RoleName::Root.limit_bytes() as u64;
    let mut roots = vec![];
    while file(dir, roots.len() + 1).exists() {
        roots.push(crate::bounded::read_file(&file(dir, roots.len() + 1), limit)?);
    }
    let staged = dir.join("staged/root.json");
    if staged.exists() {
        roots.push(crate::bounded::read_file(&staged, limit)?);
    }
    if roots.is_empty() {
        let text = format!("{} holds no roots; begin with `crossdock director export {0}`", dir.display());
        return Err(CliError::new(Exit::NotFound, text).into());
    }
    Ok(roots)
}
