//! `crossdock user`: people and programs that use the hub, what they may do, and their tokens.

use std::io::IsTerminal as _;

use proto::{name::Name, units::Span};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Context, auth,
    exit::{CliError, Exit},
    kinds::text,
    output::{self, Format},
};
use crate::access::{Binding, Role};

/// `crossdock user`.
#[derive(Debug, clap::Subcommand)]
pub enum UserCommand {
    /// Make a user; its token is shown this once
    Create(CreateArgs),
    /// Show users, their roles and when they were last seen
    List {
        /// json or yaml instead of columns.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
    /// Give a user a new token, shown this once; the one before ends at once
    Rotate {
        /// Its name.
        name: Name,
        /// How long the new token lives, such as 90d. Default: without end.
        #[arg(long)]
        expires_in: Option<Span>,
        /// json or yaml instead of the token alone.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
    /// Delete a user: its token ends at once
    Delete {
        /// Its name.
        name: Name,
    },
}

/// `crossdock user create`.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Its name.
    name: Name,
    /// viewer reads; operator steers rollouts and nodes too; releaser publishes too; admin may do everything.
    #[arg(long, value_enum)]
    role: Role,
    /// At this site only. Repeatable.
    #[arg(long = "site", value_name = "SITE")]
    sites: Vec<Name>,
    /// For this app only. Repeatable.
    #[arg(long = "app", value_name = "APP")]
    apps: Vec<Name>,
    /// How long its token lives, such as 90d. Default: without end.
    #[arg(long)]
    expires_in: Option<Span>,
    /// json or yaml instead of the token alone.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// Runs the command.
///
/// # Errors
/// When the hub refuses, such as a second user of the same name, or cannot be reached.
pub async fn run(command: UserCommand, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        UserCommand::Create(args) => {
            let some = |names: Vec<Name>| Some(names).filter(|n| !n.is_empty()).map(|n| n.into_iter().collect());
            let binding = Binding { role: args.role, sites: some(args.sites), apps: some(args.apps) };
            let body = json!({"name": args.name, "bindings": [binding], "expiresIn": args.expires_in});
            let made: Value = client.post("users", &body).await?;
            show_token(&made, args.output)
        }
        UserCommand::List { output } => {
            let listed: Value = client.send("list users", client.request(Method::GET, "users")).await?.json().await?;
            if let Some(format @ (Format::Json | Format::Yaml)) = output {
                return output::structured(format, &listed);
            }
            let items = listed.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let mut rows = vec![["NAME", "ROLES", "CREATED", "EXPIRES", "LAST USED"].map(str::to_owned).to_vec()];
            rows.extend(items.iter().map(row));
            output::print(&output::align(&rows));
            Ok(())
        }
        UserCommand::Rotate { name, expires_in, output } => {
            let body = json!({"expiresIn": expires_in});
            let request = client.request(Method::POST, &format!("users/{name}/rotate")).json(&body);
            let made: Value = client.send(&format!("give {name} a new token"), request).await?.json().await?;
            show_token(&made, output)
        }
        UserCommand::Delete { name } => {
            client.delete("users", name.as_str()).await?;
            println!("users/{name} deleted");
            Ok(())
        }
    }
}

fn row(user: &Value) -> Vec<String> {
    let or_dash = |pointer: &str| Some(text(user, pointer)).filter(|t| !t.is_empty()).unwrap_or_else(|| "-".into());
    vec![text(user, "/name"), auth::bindings(user), or_dash("/created"), or_dash("/expires"), or_dash("/lastUsed")]
}

fn show_token(made: &Value, output: Option<Format>) -> anyhow::Result<()> {
    let token = text(made, "/token");
    if token.is_empty() {
        let text = "the hub made a token and did not show it; is it of another version?";
        return Err(CliError::new(Exit::Failed, text).into());
    }
    if let Some(format @ (Format::Json | Format::Yaml)) = output {
        return output::structured(format, made);
    }
    println!("{token}");
    if std::io::stdout().is_terminal() {
        let (name, roles) = (text(made, "/name"), auth::bindings(made));
        eprintln!(
            "The token of {name} ({roles}); it is shown this once: crossdock login URL --token-file FILE --ca ca.pem"
        );
    }
    Ok(())
}
