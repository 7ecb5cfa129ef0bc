//! `crossdock auth`: who I am at the hub, and what I may do there, as kubectl tells it.

use proto::name::Name;
use reqwest::Method;
use serde_json::Value;

use super::{
    Context,
    exit::{CliError, Exit},
    kinds::text,
    output::{self, Format},
};
use crate::access::{Binding, Resource, Verb};

/// `crossdock auth`.
#[derive(Debug, clap::Subcommand)]
pub enum AuthCommand {
    /// Show who I am and which roles I have
    Whoami {
        /// json or yaml instead of text.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
    /// Whether I may do something: yes, or no and exit code 8
    CanI(CanIArgs),
}

/// `crossdock auth can-i`.
#[derive(Debug, clap::Args)]
pub struct CanIArgs {
    /// get, list, watch, create, update or delete.
    verb: Verb,
    /// Such as nodes or rollouts.
    kind: Resource,
    /// At this site; otherwise anywhere.
    #[arg(long)]
    site: Option<Name>,
    /// With this app; otherwise with any.
    #[arg(long)]
    app: Option<Name>,
}

/// Runs the command.
///
/// # Errors
/// When the hub cannot be reached, or the answer is no.
pub async fn run(command: AuthCommand, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        AuthCommand::Whoami { output } => {
            let me = client.whoami().await?;
            if let Some(format @ (Format::Json | Format::Yaml)) = output {
                return output::structured(format, &me);
            }
            println!("{}", output::plain(&text(&me, "/name")));
            println!("{}", bindings(&me));
            let expires = text(&me, "/expires");
            if !expires.is_empty() {
                println!("until {expires}");
            }
            Ok(())
        }
        AuthCommand::CanI(args) => {
            let mut query = vec![("verb", args.verb.to_string()), ("kind", args.kind.to_string())];
            query.extend(args.site.map(|site| ("site", site.to_string())));
            query.extend(args.app.map(|app| ("app", app.to_string())));
            let request = client.request(Method::GET, "self/can").query(&query);
            let answer: Value = client.send("ask what I may do", request).await?.json().await?;
            if answer.get("allowed").and_then(Value::as_bool) == Some(true) {
                println!("yes");
                return Ok(());
            }
            println!("no");
            Err(CliError::new(Exit::Unauthorized, output::plain(&text(&answer, "/reason"))).into())
        }
    }
}

/// The roles of a user, in a line.
pub(super) fn bindings(user: &Value) -> String {
    let bindings = user.get("bindings").cloned().unwrap_or_default();
    let bindings: Vec<Binding> = serde_json::from_value(bindings).unwrap_or_default();
    let texts: Vec<String> = bindings.iter().map(ToString::to_string).collect();
    if texts.is_empty() { "no role".into() } else { texts.join("; ") }
}
