//! Which key is a node's, as this repository believes it, and whether another one is believed. Pure, but for the file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use proto::{
    durable,
    name::Name,
    secret::{MAX_RECIPIENTS, Recipient, SealedTo},
};
use serde::{Deserialize, Serialize};

use crate::release::{ReleaseError, read_text};

/// The file of pinned keys in a release repository.
pub const PINS_FILE: &str = "recipients.json";
/// What this version writes and reads.
const VERSION: u32 = 1;
/// Largest such file, in bytes: a hundred thousand nodes.
const MAX_PINS_BYTES: u64 = 16 << 20;

/// Sealing keys of nodes, as first seen or accepted since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    version: u32,
    /// By node.
    pub nodes: BTreeMap<Name, Recipient>,
}

/// What somebody told: a hub, or a person with `--recipient`. Nodes without a key have an agent that knows of none.
pub type Told = BTreeMap<Name, Option<Recipient>>;

/// What the person at the command line says about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Nodes whose key may be another from now on.
    pub accept: BTreeSet<Name>,
    /// Leave out nodes that have no key, instead of refusing.
    pub skip_without: bool,
}

/// To whom, and what is new about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Recipients.
    pub to: Vec<SealedTo>,
    /// The pins from now on.
    pub pins: Pins,
    /// Nodes whose key was seen for the first time.
    pub first: Vec<Name>,
    /// Nodes whose key is another, as was accepted, with the one before.
    pub replaced: BTreeMap<Name, Recipient>,
    /// Nodes that were left out.
    pub skipped: Vec<Name>,
}

/// Nothing is sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// A key is another than was pinned.
    #[error("{}", changed(.0))]
    Changed(BTreeMap<Name, (Recipient, Recipient)>),
    /// Some have none.
    #[error(
        "no sealing key is known of {}: the box never connected, or its agent (or the hub) is older than secrets and is to \
         be updated; seal to the others with --skip-without-key",
        list(.0)
    )]
    WithoutKey(Vec<Name>),
    /// An accepted node is none of those that it is sealed to.
    #[error("--accept-new-key {}: it is not among the nodes that this is sealed to; correct the name, or --to", list(.0))]
    NotNamed(Vec<Name>),
    /// There is nobody.
    #[error("no node is named: look at the selector (crossdock get nodes -l SELECTOR), or give --recipient or --also")]
    Nobody,
    /// There are too many.
    #[error(
        "{0} recipients are more than the {MAX_RECIPIENTS} of one secret: seal it several times, for a release each"
    )]
    TooMany(usize),
}

fn list(nodes: &[Name]) -> String {
    nodes.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

fn changed(nodes: &BTreeMap<Name, (Recipient, Recipient)>) -> String {
    let one = |(node, (was, is)): (&Name, &(Recipient, Recipient))| {
        format!("\n  {node}: pinned {was}\n  {node}: now    {is}")
    };
    let each: String = nodes.iter().map(one).collect();
    let accept: Vec<String> = nodes.keys().map(|node| format!("--accept-new-key {node}")).collect();
    format!(
        "nothing is sealed, for these nodes have another key than the one in {PINS_FILE}:{each}\nEither the box was \
         installed anew: compare the key with `edgecore status` on the box itself, then add {}. Or the hub lies, and \
         wants to read the secret",
        accept.join(" ")
    )
}

impl Default for Pins {
    fn default() -> Pins {
        Pins { version: VERSION, nodes: BTreeMap::new() }
    }
}

impl Pins {
    /// Those of the repository in a folder; none were pinned before the first secret.
    ///
    /// # Errors
    /// When the file is there and not readable. It is never taken as empty: then every key would be believed.
    pub fn load(repository: &Path) -> Result<Pins, ReleaseError> {
        let path = repository.join(PINS_FILE);
        if !path.exists() {
            return Ok(Pins::default());
        }
        let text = read_text(&path, MAX_PINS_BYTES)?;
        let refuse = |problem: String| ReleaseError::Yaml { path: path.clone(), problem };
        let pins: Pins = serde_json::from_str(&text)
            .map_err(|e| refuse(format!("{e}; bring it back from version control, or a copy of the repository")))?;
        if pins.version != VERSION {
            return Err(refuse(format!(
                "its version is {}, this program reads {VERSION}; use a newer one",
                pins.version
            )));
        }
        Ok(pins)
    }

    /// Writes them into the repository's folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn store(&self, repository: &Path) -> Result<(), ReleaseError> {
        let path = repository.join(PINS_FILE);
        let refuse = |e: serde_json::Error| ReleaseError::Yaml { path: path.clone(), problem: e.to_string() };
        let mut text = serde_json::to_string_pretty(self).map_err(refuse)?;
        text.push('\n');
        Ok(durable::write(&path, text.as_bytes(), 0o644)?)
    }

    /// Whether what was told is believed, and to whom to seal then; `also` are keys of nobody in particular. A node that
    /// is pinned and has no key now keeps its pin: the hub could leave it out otherwise.
    ///
    /// # Errors
    /// What is not believed, all of it, and the mend.
    pub fn decide(&self, told: &Told, also: &[Recipient], wish: &Wish) -> Result<Decision, PinError> {
        let not_named: Vec<Name> = wish.accept.iter().filter(|node| !told.contains_key(*node)).cloned().collect();
        if !not_named.is_empty() {
            return Err(PinError::NotNamed(not_named));
        }
        let (mut pins, mut to, mut first, mut replaced) = (self.clone(), vec![], vec![], BTreeMap::new());
        let (mut without, mut changed) = (vec![], BTreeMap::new());
        for (node, told) in told {
            let key = match (self.nodes.get(node), told) {
                (None, None) => {
                    without.push(node.clone());
                    continue;
                }
                (Some(pinned), None) => pinned,
                (None, Some(key)) => {
                    first.push(node.clone());
                    key
                }
                (Some(pinned), Some(key)) if pinned == key => key,
                (Some(pinned), Some(key)) if wish.accept.contains(node) => {
                    replaced.insert(node.clone(), pinned.clone());
                    key
                }
                (Some(pinned), Some(key)) => {
                    changed.insert(node.clone(), (pinned.clone(), key.clone()));
                    continue;
                }
            };
            pins.nodes.insert(node.clone(), key.clone());
            to.push(SealedTo { node: Some(node.to_string()), key: key.to_string() });
        }
        if !changed.is_empty() {
            return Err(PinError::Changed(changed));
        }
        if !without.is_empty() && !wish.skip_without {
            return Err(PinError::WithoutKey(without));
        }
        for key in also.iter().map(Recipient::to_string) {
            if !to.iter().any(|to| to.key == key) {
                to.push(SealedTo { node: None, key });
            }
        }
        match to.len() {
            0 => Err(PinError::Nobody),
            n if n > MAX_RECIPIENTS => Err(PinError::TooMany(n)),
            _ => Ok(Decision { to, pins, first, replaced, skipped: without }),
        }
    }
}
