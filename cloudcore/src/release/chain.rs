//! Roots in a folder: `metadata/N.root.json` from version 1 on, and `staged/root.json`, which collects signatures.
//!
//! That is all that is needed here. A release repository has more beside them, and its root goes out with the next
//! publication; a folder with nothing else holds the root of somebody who signs online, as the hub does, and its root
//! is finished by [`Repository::finish_root`].

use jiff::Timestamp;
use proto::{
    durable,
    tuf::{
        PublicKey, RoleName, TufError,
        schema::{Offered, RootMeta, TimestampMeta},
        sign::whole_seconds,
    },
};

use super::{
    ReleaseError,
    repository::{ROOT_DAYS, Repository, Setup, later, read_document},
    rotate::{self, Change, Duty, RotateError},
    trust_error,
};

/// What a change of the root staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// Version of the staged root.
    pub version: u64,
    /// Duties that changed hands.
    pub duties: Vec<Duty>,
    /// Whether targets are staged anew, to be signed without the revoked key.
    pub targets_again: bool,
    /// Signatures that stood for what was staged before.
    pub dropped_signatures: usize,
}

impl Repository {
    /// Makes a folder for roots alone; the first one is staged. `setup.targets` and `setup.pipeline` are the keys of
    /// who signs online.
    ///
    /// # Errors
    /// As [`Repository::create`].
    pub fn create_chain(dir: &std::path::Path, setup: &Setup, now: Timestamp) -> Result<Repository, ReleaseError> {
        let root = setup.root_meta(dir, now)?;
        let repository = Repository::make(dir, &["metadata", "staged"])?;
        repository.stage(&root)?;
        Ok(repository)
    }

    /// The newest root that is published here. `None` before the first.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn newest_root(&self) -> Result<Option<RootMeta>, ReleaseError> {
        let roots = self.roots()?;
        let read = |text: &String| Offered::<RootMeta>::parse(text).map(|root| root.signed);
        roots.last().map(read).transpose().map_err(trust_error("read the root"))
    }

    /// Whether releases are published or staged here, not roots alone.
    ///
    /// # Errors
    /// When what is there cannot be read.
    pub fn has_releases(&self) -> Result<bool, ReleaseError> {
        let published = read_document::<TimestampMeta>(&self.path("metadata").join("timestamp.json"))?;
        Ok(published.is_some() || self.staged_path(RoleName::Targets).exists())
    }

    /// Stages the next root: the staged one, or a successor of the newest, with these changes and this end.
    ///
    /// # Errors
    /// When the changes cannot be, or `expires` is past.
    pub fn rotate(
        &self,
        changes: &[Change],
        expires: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Rotated, ReleaseError> {
        let before = self.next_root()?;
        let expires = expires.unwrap_or_else(|| later(now, ROOT_DAYS));
        if expires <= now {
            return self.refuse(format!("a root that ends at {expires} would be refused at once, it is {now}"));
        }
        let next = match rotate::apply(&before, changes) {
            Err(RotateError::Nothing) if expires != before.expires && changes.is_empty() => before.clone(),
            other => other?,
        };
        let duties = Duty::ALL.into_iter().filter(|duty| {
            let keys =
                |root: &RootMeta| duty.roles().iter().map(|r| root.roles.get(r.as_str()).cloned()).collect::<Vec<_>>();
            keys(&before) != keys(&next)
        });
        let duties = duties.collect();
        let staged = self.staged()?.root;
        let dropped_signatures = staged.as_ref().map_or(0, |staged| staged.signatures.len());
        let version = if staged.is_some() { before.version } else { before.version + 1 };
        self.stage(&RootMeta { version, expires: whole_seconds(expires), ..next })?;
        Ok(Rotated { version, duties, targets_again: false, dropped_signatures })
    }

    /// Stages a root without a key, in whatever role it stands, and with `replacement` in its place. Targets that it
    /// may have signed are staged anew, to be signed by the others; snapshot and timestamp are signed anew by the
    /// next publication anyway.
    ///
    /// # Errors
    /// When no role lists it, or one would fall below its threshold.
    pub fn revoke(&self, id: &str, replacement: Option<&PublicKey>, now: Timestamp) -> Result<Rotated, ReleaseError> {
        let changes = rotate::revocation(&self.next_root()?, id, replacement)?;
        let mut rotated = self.rotate(&changes, None, now)?;
        if rotated.duties.contains(&Duty::Targets) && self.has_releases()? {
            let (targets, dropped) = self.next_targets(now)?;
            self.stage(&targets)?;
            rotated.targets_again = true;
            rotated.dropped_signatures += dropped;
        }
        Ok(rotated)
    }

    /// Publishes the staged root of a folder that holds roots alone: `metadata/N.root.json`.
    ///
    /// # Errors
    /// When releases are here (their publication takes the root along), nothing is staged, or clients would refuse it.
    pub fn finish_root(&self, now: Timestamp) -> Result<RootMeta, ReleaseError> {
        if self.has_releases()? {
            return self.refuse("releases are here, and the root goes out with them: run `crossdock release publish`");
        }
        let Some(staged) = self.staged()?.root else {
            return self.refuse("no root is staged; run `crossdock root rotate` first");
        };
        let mut roots = self.roots()?;
        roots.push(staged.text.clone());
        let root = verify_chain(&roots, now)?;
        let path = self.path("metadata").join(format!("{}.root.json", root.version));
        durable::write(&path, staged.text.as_bytes(), 0o644)?;
        self.unstage(RoleName::Root)?;
        Ok(root)
    }
}

/// Follows roots from the first on as clients do (TUF 5.3): each signed by the one before and by itself, no version
/// left out, the last one still good. Yields the last.
///
/// # Errors
/// The first step that fails.
pub fn verify_chain(roots: &[String], now: Timestamp) -> Result<RootMeta, ReleaseError> {
    let failed = || trust_error("verify the chain of roots: clients would refuse it");
    let mut trusted: Option<RootMeta> = None;
    for text in roots {
        let root = Offered::<RootMeta>::parse(text).map_err(failed())?;
        if let Some(before) = &trusted {
            root.verify(before).map_err(failed())?;
        }
        root.verify(&root.signed).map_err(failed())?;
        let (last, offered) = (trusted.map_or(0, |root| root.version), root.signed.version);
        if offered != last + 1 {
            return Err(failed()(TufError::RootGap { trusted: last, offered }));
        }
        trusted = Some(root.signed);
    }
    let role = RoleName::Root;
    let Some(root) = trusted else { return Err(failed()(TufError::Missing { role })) };
    if root.expires <= now {
        return Err(failed()(TufError::Expired { role, expired: root.expires, now }));
    }
    Ok(root)
}
