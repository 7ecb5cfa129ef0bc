//! To whom a secret is sealed: nodes of a selector as the hub has them, keys given by hand, people.

use anyhow::Context as _;
use clap::Args;
use proto::{name::Name, object::Node, secret::Recipient, selector::Selector};

use crate::{
    cli::{
        Context,
        exit::{CliError, Exit},
        release::failed,
    },
    release::{
        Repository,
        secrets::{Decision, PinError, Pins, Told, Wish},
    },
};

/// Options that say to whom.
#[derive(Debug, Args)]
#[command(next_help_heading = "To whom")]
pub(super) struct RecipientArgs {
    /// Nodes, by a selector such as site=hz-01 or name=box-1; the hub is asked for their keys.
    #[arg(long, value_name = "SELECTOR")]
    to: Option<Selector>,
    /// Key of a node, as its `edgecore status` shows it; no hub is asked about that node. Repeatable.
    #[arg(long = "recipient", value_name = "NODE=age1...", value_parser = recipient)]
    recipients: Vec<(Name, Recipient)>,
    /// Key of a person or a vault besides, such as to seal it again later. Repeatable.
    #[arg(long, value_name = "age1...")]
    also: Vec<Recipient>,
    /// Believe another key of this node than the pinned one, such as after a new installation. Repeatable.
    #[arg(long, value_name = "NODE")]
    accept_new_key: Vec<Name>,
    /// Leave out nodes whose agent has no key yet, instead of refusing.
    #[arg(long)]
    skip_without_key: bool,
}

fn recipient(text: &str) -> Result<(Name, Recipient), String> {
    let (node, key) = text.split_once('=').ok_or("write NODE=age1...")?;
    Ok((node.parse().map_err(|e| format!("{e}"))?, key.parse().map_err(|e| format!("{e}"))?))
}

impl RecipientArgs {
    /// To whom, as far as the pinned keys allow; `also` are keys besides.
    pub(super) async fn decide(
        &self,
        repository: &Repository,
        also: &[Recipient],
        context: &Context,
    ) -> anyhow::Result<Decision> {
        let pins = Pins::load(repository.dir()).map_err(failed)?;
        let mut told = match &self.to {
            Some(selector) => ask(selector, context).await?,
            None => Told::new(),
        };
        told.extend(self.recipients.iter().map(|(node, key)| (node.clone(), Some(key.clone()))));
        let wish = Wish { accept: self.accept_new_key.iter().cloned().collect(), skip_without: self.skip_without_key };
        let also: Vec<Recipient> = self.also.iter().chain(also).cloned().collect();
        let decision = pins.decide(&told, &also, &wish).map_err(|error| {
            let exit = match &error {
                PinError::NotNamed(_) | PinError::Nobody | PinError::TooMany(_) => Exit::Usage,
                PinError::Changed(_) | PinError::WithoutKey(_) => Exit::Refused,
            };
            CliError::new(exit, error.to_string())
        })?;
        for node in &decision.skipped {
            eprintln!("note: {node} has no sealing key and is left out");
        }
        Ok(decision)
    }
}

/// What the hub says of the nodes that a selector names. That they are named is looked at here.
async fn ask(selector: &Selector, context: &Context) -> anyhow::Result<Told> {
    let nodes: Vec<Node> = context.client()?.list_of(Some(selector)).await?;
    let named = nodes.iter().filter(|node| node.matches(selector));
    let told = named.map(|node| {
        let name: Name = node.name().parse().context("the hub lists a node without a name")?;
        let key = node.status.info.as_ref().and_then(|info| info.sealing_key.as_deref()).map(str::parse);
        Ok((name, key.transpose().with_context(|| format!("the hub's key of node {}", node.name()))?))
    });
    told.collect()
}
