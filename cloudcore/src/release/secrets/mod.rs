//! Secrets of releases, as the release engineer and the signers see them: pinned keys, what is sealed to whom.
//!
//! ```text
//! hub: nodes and their keys --Pins::decide--> recipients.json, proto::secret::seal --> NAME.age --release build--> manifest
//! ```
//!
//! The hub says which key is a node's, and nobody vouches for that. So the first key seen of a node is pinned in
//! `recipients.json` of the release repository, and another one is refused until somebody who compared it with
//! `edgecore status` on the box says so. The file belongs under version control: who signs a release looks at it, and
//! is told where the release's secrets are sealed to other keys.
//!
//! `pins` holds that file and the decision, `build` what `release build` does, `words` what signers read.

mod build;
mod pins;
mod words;

use std::collections::BTreeMap;

use proto::{
    name::ReleaseName,
    release::{Manifest, Secret},
    secret::SealedTo,
};

use super::{ReleaseError, Repository, staging::readable};

pub(super) use self::{build::complete, words::describe};
pub use self::{
    pins::{Decision, PINS_FILE, PinError, Pins, Told, Wish},
    words::names,
};

/// The secrets of every release that a repository lists or is about to.
///
/// # Errors
/// When it is not readable.
pub fn listed(repository: &Repository) -> Result<BTreeMap<ReleaseName, Vec<Secret>>, ReleaseError> {
    let mut listed = BTreeMap::new();
    let published = repository.published()?;
    let staged = repository.staged()?.targets;
    let metas = published.iter().filter_map(|set| set.targets_meta()).chain(staged.iter().map(|s| &s.signed));
    for target in metas.flat_map(|meta| readable(meta).into_values()) {
        // A copy of the repository need not hold everything.
        if let Ok(manifest) = repository.manifest(&target) {
            listed.insert(manifest.name(), of(&manifest).to_vec());
        }
    }
    Ok(listed)
}

/// The secrets of a release.
#[must_use]
pub fn of(manifest: &Manifest) -> &[Secret] {
    manifest.workload.as_ref().map_or(&[], |workload| &workload.secrets)
}

/// Whether one of these is that node.
#[must_use]
pub fn is_for(to: &[SealedTo], node: &str) -> bool {
    to.iter().any(|to| to.node.as_deref() == Some(node))
}

#[cfg(test)]
mod tests;
