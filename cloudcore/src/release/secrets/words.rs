//! Secrets of a release in words that a signer can judge.

use std::collections::BTreeMap;

use proto::{
    name::Name,
    release::{FileEntry, Manifest, Secret},
    secret::SealedTo,
};

use super::{Pins, of};

/// Recipients that a line names.
const SHOWN: usize = 10;

/// To whom, in a few words.
#[must_use]
pub fn names(to: &[SealedTo]) -> String {
    if to.is_empty() {
        return "nobody that it names".into();
    }
    let name = |to: &SealedTo| to.node.as_ref().map_or_else(|| short(&to.key), |node| plain(node));
    let mut names: Vec<String> = to.iter().take(SHOWN).map(name).collect();
    if to.len() > SHOWN {
        names.push(format!("{} others", to.len() - SHOWN));
    }
    names.join(", ")
}

/// What a release's secrets are against those of the release before, and against the pinned keys.
pub(in crate::release) fn describe(old: Option<&Manifest>, new: &Manifest, pins: Option<&Pins>) -> Vec<String> {
    let before: BTreeMap<&str, &Secret> = old.iter().flat_map(|old| of(old)).map(|s| (s.name.as_str(), s)).collect();
    let mut lines = vec![];
    for secret in of(new) {
        let name = plain(&secret.name);
        match before.get(secret.name.as_str()) {
            None => lines.push(format!("adds secret {name}, sealed to {}", names(&secret.sealed_to))),
            Some(was) => {
                let same = old.and_then(|old| content(old, was)) == content(new, secret);
                if !same {
                    lines.push(format!("secret {name} is sealed anew, to {}", names(&secret.sealed_to)));
                }
                lines.extend(differences(&name, was, secret));
            }
        }
        lines.extend(pins.into_iter().flat_map(|pins| unpinned(&name, secret, pins)));
    }
    let gone = before.keys().filter(|name| of(new).iter().all(|s| s.name != **name));
    lines.extend(gone.map(|name| format!("removes secret {}", plain(name))));
    lines
}

fn content<'a>(manifest: &'a Manifest, secret: &Secret) -> Option<&'a FileEntry> {
    manifest.files.iter().find(|file| file.path.as_str() == secret.file)
}

/// Who can read it that could not before, and who no longer.
fn differences(name: &str, was: &Secret, is: &Secret) -> Vec<String> {
    let more: Vec<SealedTo> = is.sealed_to.iter().filter(|to| !was.sealed_to.contains(to)).cloned().collect();
    let (changed, more): (Vec<_>, Vec<_>) =
        more.into_iter().partition(|to| to.node.is_some() && was.sealed_to.iter().any(|before| before.node == to.node));
    let node = |to: &SealedTo, all: &[SealedTo]| to.node.is_some() && all.iter().any(|other| other.node == to.node);
    let less: Vec<SealedTo> =
        was.sealed_to.iter().filter(|to| !is.sealed_to.contains(to) && !node(to, &is.sealed_to)).cloned().collect();
    let mut lines = vec![];
    if !more.is_empty() {
        lines.push(format!("secret {name} can be read by MORE than before: {}", names(&more)));
    }
    if !changed.is_empty() {
        lines.push(format!("secret {name} is for ANOTHER KEY of {}", names(&changed)));
    }
    if !less.is_empty() {
        lines.push(format!("secret {name} is no longer for {}; what they read before they have", names(&less)));
    }
    lines
}

/// Keys that are not the pinned ones.
fn unpinned(name: &str, secret: &Secret, pins: &Pins) -> Vec<String> {
    let line = |to: &SealedTo| {
        let node = to.node.as_ref()?;
        let pinned = node.parse::<Name>().ok().and_then(|node| pins.nodes.get(&node));
        let node = plain(node);
        match pinned {
            Some(pinned) if pinned.to_string() == to.key => None,
            Some(pinned) => Some(format!(
                "secret {name} is NOT sealed to the pinned key of {node} ({pinned}) but to {}",
                plain(&to.key)
            )),
            None => {
                Some(format!("secret {name} is sealed to a key of {node} that is not pinned here: {}", plain(&to.key)))
            }
        }
    };
    secret.sealed_to.iter().filter_map(line).take(SHOWN).collect()
}

fn short(key: &str) -> String {
    let head: String = key.chars().take(12).collect();
    format!("{}...", plain(&head))
}

/// Without what would move a terminal's cursor.
fn plain(text: &str) -> String {
    text.escape_debug().to_string()
}
