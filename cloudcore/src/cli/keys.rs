//! `crossdock keys`: signing keys, made here and kept by whoever signs.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use proto::{env::Seed, tuf::SecretKey};

use super::{Context, output::print};
use crate::release::keys;

/// Arguments of `crossdock keys`.
#[derive(Debug, Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make an ed25519 key: NAME.pem (secret, only you can read it) and NAME.pub
    New {
        /// Name of the files.
        name: String,
        /// Folder that they go to.
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
    /// Print the ID of a key, from NAME.pub or NAME.pem
    Id {
        /// The file.
        file: PathBuf,
    },
}

/// Runs `crossdock keys`.
///
/// # Errors
/// When a key is there already, or a file cannot be read or written.
pub async fn run(args: KeysArgs, _context: &Context) -> anyhow::Result<()> {
    match args.command {
        KeysCommand::New { name, out } => {
            let key = SecretKey::from_seed(&Seed::from_os()?.bytes("signing key"));
            let files = keys::write(&out, &name, &key)?;
            print(&format!("{}\n", files.id));
            eprintln!("secret half: {} (not encrypted: keep it off shared disks)", files.secret.display());
            eprintln!("public half: {} (give it to who runs `crossdock release init`)", files.public.display());
        }
        KeysCommand::Id { file } => print(&format!("{}\n", keys::read_public(&file)?.id())),
    }
    Ok(())
}
