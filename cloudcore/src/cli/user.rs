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
    /// Change what a user may do; its token stays. What is left out stays as it is
    Update(UpdateArgs),
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

/// `crossdock user update`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct UpdateArgs {
    /// Its name.
    name: Name,
    /// Its role from now on.
    #[arg(long, value_enum, group = "change")]
    role: Option<Role>,
    /// At this site only. Repeatable; in place of those before.
    #[arg(long = "site", value_name = "SITE", group = "change", conflicts_with = "all_sites")]
    sites: Vec<Name>,
    /// At all sites.
    #[arg(long, group = "change")]
    all_sites: bool,
    /// For this app only. Repeatable; in place of those before.
    #[arg(long = "app", value_name = "APP", group = "change", conflicts_with = "all_apps")]
    apps: Vec<Name>,
    /// For all apps.
    #[arg(long, group = "change")]
    all_apps: bool,
}

impl UpdateArgs {
    /// What the user has from now on.
    fn changed(self, before: Binding) -> Binding {
        let bound = |names: Vec<Name>, all: bool, before| match (all, names.is_empty()) {
            (true, _) => None,
            (false, true) => before,
            (false, false) => Some(names.into_iter().collect()),
        };
        Binding {
            role: self.role.unwrap_or(before.role),
            sites: bound(self.sites, self.all_sites, before.sites),
            apps: bound(self.apps, self.all_apps, before.apps),
        }
    }
}

/// The one binding of a user, or why it cannot be changed here.
fn only_binding(listed: &Value, name: &Name) -> anyhow::Result<Binding> {
    let items = listed.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let Some(user) = items.iter().find(|user| text(user, "/name") == name.as_str()) else {
        let text = format!("there is no user {name}; `crossdock user list` shows them");
        return Err(CliError::new(Exit::NotFound, text).into());
    };
    let bindings: Vec<Binding> = serde_json::from_value(user.get("bindings").cloned().unwrap_or_default())?;
    match <[Binding; 1]>::try_from(bindings) {
        Ok([binding]) => Ok(binding),
        Err(several) => {
            let text = format!(
                "{name} has {} roles, made through the API; change them there: PUT /api/v1/users/{name}",
                several.len()
            );
            Err(CliError::new(Exit::Failed, text).into())
        }
    }
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
        UserCommand::Update(args) => {
            let listed: Value = client.send("list users", client.request(Method::GET, "users")).await?.json().await?;
            let name = args.name.clone();
            let binding = args.changed(only_binding(&listed, &name)?);
            let request = client.request(Method::PUT, &format!("users/{name}")).json(&json!({"bindings": [binding]}));
            let user: Value = client.send(&format!("change {name}"), request).await?.json().await?;
            println!("users/{name} is {} from now on", auth::bindings(&user));
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: UserCommand,
    }

    fn changed(line: &str) -> Result<String, String> {
        let line = Line::try_parse_from(["user"].into_iter().chain(line.split(' '))).map_err(|e| e.to_string())?;
        let UserCommand::Update(args) = line.command else { return Err("another command".into()) };
        let set = |name: &str| Some([name.parse().unwrap()].into());
        Ok(args.changed(Binding { role: Role::Viewer, sites: set("hz-01"), apps: set("scan") }).to_string())
    }

    #[test]
    fn what_is_left_out_of_an_update_stays() {
        for (line, after) in [
            ("update bob --role operator", "operator at hz-01 for scan"),
            ("update bob --site a --site b", "viewer at a,b for scan"),
            ("update bob --all-sites --app x", "viewer for x"),
            ("update bob --role admin --all-sites --all-apps", "admin"),
        ] {
            assert_eq!(changed(line).as_deref(), Ok(after), "{line}");
        }
        assert!(changed("update bob").is_err() && changed("update bob --site a --all-sites").is_err());
        let listed = json!({"items": [{"name": "two", "bindings": [{"role": "viewer"}, {"role": "admin"}]}]});
        let why = |name: &str| only_binding(&listed, &name.parse().unwrap()).unwrap_err().to_string();
        assert!(why("two").contains("2 roles") && why("none").contains("no user none"));
    }
}
