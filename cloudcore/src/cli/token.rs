//! `crossdock token create`: admits boxes.

use std::collections::BTreeMap;

use proto::{name::Name, units::Span};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Context,
    client::collection_path,
    exit::{Exit, Failure},
    output,
};

/// `crossdock token`.
#[derive(Debug, clap::Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a token and show it, this once
    Create(CreateArgs),
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// Site that the boxes stand in; it is made if there is none
    #[arg(long)]
    site: Name,
    /// The one node it is for: the box gets this name, also when it replaces another box
    #[arg(long)]
    node: Option<Name>,
    /// How many boxes it admits
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// How long it can be used
    #[arg(long, default_value = "1h")]
    ttl: Span,
    /// Label for the nodes that join with it, KEY=VALUE; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When the hub refuses or cannot be reached.
pub async fn run(args: TokenArgs, context: &Context) -> anyhow::Result<()> {
    let Action::Create(args) = args.action;
    let mut labels = BTreeMap::new();
    for label in &args.label {
        let wrong = || Failure::new(Exit::Usage, format!("label {label:?}: write KEY=VALUE"));
        let (key, value) = label.split_once('=').ok_or_else(wrong)?;
        labels.insert(key, value);
    }
    let body = json!({"site": args.site, "node": args.node, "uses": args.uses, "ttl": args.ttl, "labels": labels});
    let client = context.client()?;
    let made: Value = client.call(Method::POST, &collection_path("jointokens"), &[], Some(&body)).await?;
    let token = made.get("token").and_then(Value::as_str);
    let token =
        token.ok_or_else(|| anyhow::anyhow!("the hub answered without a token; is it older than this program?"))?;
    output::print(&format!("{token}\n"))?;
    let whom = args.node.map_or_else(|| format!("up to {} boxes of {}", args.uses, args.site), |n| format!("node {n}"));
    eprintln!("Good for {whom}, for {}. On the box: edgecore join HUB:PORT --token TOKEN", args.ttl);
    Ok(())
}
