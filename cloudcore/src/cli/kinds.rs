//! What the kinds are called on the command line.

use super::exit::{Exit, Failure};

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindInfo {
    /// As in documents, such as `Node`.
    pub kind: &'static str,
    /// As in URLs, such as `nodes`.
    pub plural: &'static str,
    /// What people type as well.
    aliases: &'static [&'static str],
}

/// All kinds.
pub const KINDS: [KindInfo; 6] = [
    KindInfo { kind: "Node", plural: "nodes", aliases: &["node", "no"] },
    KindInfo { kind: "Site", plural: "sites", aliases: &["site"] },
    KindInfo { kind: "Release", plural: "releases", aliases: &["release", "rel"] },
    KindInfo { kind: "Rollout", plural: "rollouts", aliases: &["rollout", "ro"] },
    KindInfo { kind: "JoinToken", plural: "jointokens", aliases: &["jointoken", "token", "tokens"] },
    KindInfo { kind: "Event", plural: "events", aliases: &["event", "ev"] },
];

/// Finds a kind by any of its names, in upper or lower case.
///
/// # Errors
/// Lists the kinds.
pub fn find(text: &str) -> Result<KindInfo, String> {
    let lower = text.to_ascii_lowercase();
    let named = |k: &&KindInfo| k.plural == lower || k.aliases.contains(&lower.as_str());
    KINDS.iter().find(named).copied().ok_or_else(|| {
        let all: Vec<_> = KINDS.iter().map(|k| k.plural).collect();
        format!("there is no kind {text:?}; there are {}", all.join(", "))
    })
}

/// Splits `KIND/NAME`, or takes kind and names apart as they were typed.
///
/// # Errors
/// When the kind is unknown or a name is missing or doubled.
pub fn kind_and_names(first: &str, rest: &[String]) -> anyhow::Result<(KindInfo, Vec<String>)> {
    let usage = |text: String| Failure::new(Exit::Usage, text);
    match first.split_once('/') {
        Some((kind, name)) if rest.is_empty() && !name.is_empty() => {
            Ok((find(kind).map_err(usage)?, vec![name.to_owned()]))
        }
        Some(_) => Err(usage(format!("{first:?}: write KIND NAME or KIND/NAME"))),
        None => Ok((find(first).map_err(usage)?, rest.to_vec())),
    }
}
