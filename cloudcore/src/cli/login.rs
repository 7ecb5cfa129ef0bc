//! `crossdock login` and `crossdock context`: which hubs there are, and which one is meant.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use reqwest::Method;
use serde_json::Value;

use super::{
    Context,
    client::{Client, collection_path},
    context::Entry,
    exit::{Exit, Failure},
    output,
};

/// `crossdock login`.
#[derive(Debug, clap::Args)]
pub struct LoginArgs {
    /// URL of the hub, such as https://hub.example.com:8443
    url: String,
    /// File with the token; the first one is admin.token in the hub's data folder
    #[arg(long, value_name = "FILE", conflicts_with = "token", required_unless_present = "token")]
    token_file: Option<PathBuf>,
    /// The token itself (other users of this machine may see it; a file is better)
    #[arg(long)]
    token: Option<String>,
    /// Certificate of the hub's authority: ca.pem in the hub's data folder
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// Name for this hub; its host by default
    #[arg(long)]
    name: Option<String>,
}

/// `crossdock context`.
#[derive(Debug, clap::Args)]
pub struct ContextArgs {
    #[command(subcommand)]
    action: ContextAction,
}

#[derive(Debug, clap::Subcommand)]
enum ContextAction {
    /// Show the hubs that you logged in to
    List,
    /// Choose the hub that commands go to from now on
    Use {
        /// Its name.
        name: String,
    },
}

/// Tries the token at the hub, then remembers both.
///
/// # Errors
/// When a file is unreadable, or the hub does not accept the token.
pub async fn login(args: LoginArgs, context: &Context) -> anyhow::Result<()> {
    let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()));
    let token = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) => read(file)?,
        (None, None) => return Err(Failure::new(Exit::Usage, "give --token-file FILE or --token TOKEN")),
    };
    let token = token.trim().to_owned();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::new(Exit::Usage, "the token is empty or has characters that no token has; copy it again"));
    }
    let ca = read(&args.ca)?;
    let client = Client::new(&args.url, &token, &ca)?;
    let _: Value = client.call(Method::GET, &collection_path("sites"), &[], None).await?;

    let host = || args.url.trim_start_matches("https://").split('/').next().unwrap_or_default().to_owned();
    let name = args.name.unwrap_or_else(host);
    let mut contexts = context.load()?;
    contexts.contexts.insert(name.clone(), Entry { server: client.server().to_owned(), token, ca });
    contexts.current = Some(name.clone());
    let path = context.save(&contexts)?;
    output::print(&format!("logged in to {}; this is context {name} now, kept in {}\n", args.url, path.display()))
}

/// Shows or chooses contexts.
///
/// # Errors
/// When the file is unreadable or the name unknown.
pub fn context(args: ContextArgs, context: &Context) -> anyhow::Result<()> {
    let mut contexts = context.load()?;
    match args.action {
        ContextAction::List => {
            let current = context.context.as_ref().or(contexts.current.as_ref());
            let mark = |name: &String| if Some(name) == current { "*".to_owned() } else { String::new() };
            let rows: Vec<_> =
                contexts.contexts.iter().map(|(name, e)| vec![mark(name), name.clone(), e.server.clone()]).collect();
            output::print(&output::columns(&["", "NAME", "SERVER"], &rows))
        }
        ContextAction::Use { name } => {
            if !contexts.contexts.contains_key(&name) {
                let text = format!("there is no context {name:?}; see: crossdock context list");
                return Err(Failure::new(Exit::NotFound, text));
            }
            contexts.current = Some(name.clone());
            context.save(&contexts)?;
            output::print(&format!("commands go to {name} from now on\n"))
        }
    }
}
