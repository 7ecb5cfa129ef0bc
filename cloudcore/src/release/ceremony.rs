//! Who still must sign what is staged, by name. Called by the command line after every step, so that each person
//! knows whose turn it is.

use proto::tuf::{
    RoleName,
    schema::{Offered, Role, RootMeta},
};

use super::{ReleaseError, repository::Repository, rotate::label};

/// One threshold that a staged document must meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorum {
    /// Which document.
    pub role: RoleName,
    /// Its version.
    pub version: u64,
    /// Version of the root that asks for the signatures.
    pub asked_by: u64,
    /// How many it asks for.
    pub needed: usize,
    /// Keys that signed, for people.
    pub signed: Vec<String>,
    /// Keys that can, for people.
    pub open: Vec<String>,
}

impl Quorum {
    /// How many signatures are missing.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.needed.saturating_sub(self.signed.len())
    }

    /// In a sentence.
    #[must_use]
    pub fn text(&self) -> String {
        let Quorum { role, version, asked_by, needed, .. } = self;
        let signed = if self.signed.is_empty() { "nobody".into() } else { self.signed.join(", ") };
        let head = format!("{role} version {version}, by the keys of root version {asked_by}: signed by {signed}");
        match self.missing() {
            0 => format!("{head}: {needed} of {needed}, enough"),
            n => format!("{head}; {n} more needed of: {}", self.open.join(", ")),
        }
    }
}

/// Every threshold that what is staged must meet: a new root has two, that of the root before and its own.
///
/// # Errors
/// When something staged or published cannot be read.
pub fn quorums(repository: &Repository) -> Result<Vec<Quorum>, ReleaseError> {
    let staged = repository.staged()?;
    let mut all = vec![];
    if let Some(root) = &staged.root {
        all.extend(repository.newest_root()?.map(|old| of(root, &old)));
        all.push(of(root, &root.signed));
    }
    if let Some(targets) = &staged.targets {
        all.push(of(targets, &repository.next_root()?));
    }
    Ok(all)
}

fn of<T: Role>(document: &Offered<T>, root: &RootMeta) -> Quorum {
    let keys = root.roles.get(T::NAME.as_str());
    let has_signed = |id: &String| {
        let signature = document.signatures.iter().find(|signature| signature.keyid == *id);
        signature.zip(root.keys.get(id)).is_some_and(|(s, key)| key.verifies(&document.canonical, &s.sig))
    };
    let (signed, open): (Vec<&String>, Vec<&String>) =
        keys.iter().flat_map(|k| &k.keyids).partition(|id| has_signed(id));
    let labels = |ids: Vec<&String>| ids.into_iter().map(|id| label(root, id)).collect();
    Quorum {
        role: T::NAME,
        version: document.signed.version(),
        asked_by: root.version,
        needed: keys.map_or(0, |keys| usize::try_from(keys.threshold).unwrap_or(usize::MAX)),
        signed: labels(signed),
        open: labels(open),
    }
}
