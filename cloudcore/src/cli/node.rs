//! `crossdock node`: whether a node's key is let in.

use proto::{
    name::Name,
    object::{Node, NodePhase},
};
use serde_json::json;

use super::Context;

/// `crossdock node`.
#[derive(Debug, clap::Subcommand)]
pub enum NodeCommand {
    /// Let the key of a lost or stolen box in no longer; its session ends at once. What it has it keeps
    Revoke {
        /// Name of the node.
        node: Name,
    },
    /// Let a node in that waits for approval, or one that was revoked by mistake
    Approve {
        /// Name of the node.
        node: Name,
    },
}

/// Runs the command.
///
/// # Errors
/// When there is no such node, or the hub refuses.
pub async fn run(command: NodeCommand, context: &Context) -> anyhow::Result<()> {
    let (node, verb, done) = match command {
        NodeCommand::Revoke { node } => (node, "revoke", "revoked"),
        NodeCommand::Approve { node } => (node, "approve", "approved"),
    };
    let changed: Node = context.client()?.post(&format!("nodes/{node}/{verb}"), &json!({})).await?;
    println!("nodes/{node} {done}");
    if verb == "revoke" {
        let apps = changed.spec.apps.len();
        println!("its key is let in no longer; {apps} app(s) run on while the box has power");
        println!("secrets that were sealed to it are in other hands: make them anew, and seal them to the others");
        println!("which they are: crossdock secret list --node {node}; step by step: crossdock key drill stolen-node");
        println!("for a box in its place: crossdock token create --site {} --node {node}", changed.spec.site);
    } else if changed.status.phase != NodePhase::Ready {
        println!("its agent comes back by itself within half a minute");
    }
    Ok(())
}
