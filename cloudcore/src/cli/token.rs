//! `crossdock token`: admit boxes to the fleet.

use std::{collections::BTreeMap, io::IsTerminal as _};

use proto::{name::Name, units::Span};
use serde_json::{Value, json};

use super::{
    Context,
    exit::{CliError, Exit},
    kinds::text,
    output::{self, Format},
};

/// `crossdock token`.
#[derive(Debug, clap::Subcommand)]
pub enum TokenCommand {
    /// Make a join token; it is shown this once
    Create(CreateArgs),
}

/// `crossdock token create`.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Site that the boxes belong to.
    #[arg(long)]
    site: Name,
    /// Only for this node; also lets a new box take over its name.
    #[arg(long)]
    node: Option<Name>,
    /// How many boxes it admits.
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// How long it lives.
    #[arg(long, default_value = "24h")]
    ttl: Span,
    /// Label for the nodes that join with it, KEY=VALUE. Repeatable.
    #[arg(long = "label", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Let the nodes in only when somebody approved them: crossdock node approve.
    #[arg(long)]
    approve: bool,
    /// json or yaml instead of text.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Runs the command.
///
/// # Errors
/// When the hub refuses, such as before anything was published.
pub async fn run(command: TokenCommand, context: &Context) -> anyhow::Result<()> {
    let TokenCommand::Create(args) = command;
    let labels: BTreeMap<_, _> = args.labels.into_iter().collect();
    let mut body = json!({"site": args.site, "node": args.node, "uses": args.uses, "ttl": args.ttl, "labels": labels});
    if args.approve {
        // Left out otherwise: hubs of before it know no such field.
        body.as_object_mut().into_iter().for_each(|body| drop(body.insert("approve".into(), true.into())));
    }
    let reply: Value = context.client()?.post("jointokens", &body).await?;
    let token = text(&reply, "/token");
    if token.is_empty() {
        return Err(
            CliError::new(Exit::Failed, "the hub made a token and did not show it; is it of another version?").into()
        );
    }
    match args.output {
        Some(format @ (Format::Json | Format::Yaml)) => output::structured(format, &reply),
        _ => {
            println!("{token}");
            if std::io::stdout().is_terminal() {
                eprintln!(
                    "On the box: edgecore join HUB:7443 --token <the line above>   (valid {}, for {} box(es))",
                    args.ttl, args.uses
                );
            }
            Ok(())
        }
    }
}
