//! The client workflow one step at a time, for the public conformance suite, which looks at what is trusted after
//! each. Behind the feature `conformance`: hub and agent believe all of an update or nothing of it.

use jiff::Timestamp;

use super::{
    Documents, Offered, Role, RootMeta, SnapshotMeta, TargetsMeta, TimestampMeta, TrustedSet, TufError, fresh, hold,
    releases, snapshot_of, targets_of,
};

impl TrustedSet {
    /// Takes up what is left of an update that was broken off: every document that the root's keys signed.
    ///
    /// # Errors
    /// When the root is none.
    pub fn restore(documents: &Documents) -> Result<TrustedSet, TufError> {
        fn signed<T: Role>(text: Option<&String>, root: &RootMeta) -> Option<Offered<T>> {
            text.and_then(|text| Offered::<T>::parse(text).ok()).filter(|offered| offered.verify(root).is_ok())
        }
        let mut set = TrustedSet::new(&documents.root)?;
        let root = set.root.signed.clone();
        set.timestamp = signed::<TimestampMeta>(documents.timestamp.as_ref(), &root).map(hold);
        set.snapshot = signed::<SnapshotMeta>(documents.snapshot.as_ref(), &root).map(hold);
        set.targets = signed::<TargetsMeta>(documents.targets.as_ref(), &root).map(hold);
        set.releases = releases(set.targets.as_ref().map(|held| &held.signed));
        Ok(set)
    }

    /// 5.3.4 to 5.3.8: one root more.
    ///
    /// # Errors
    /// The step that fails.
    pub fn step_root(&self, text: &str) -> Result<TrustedSet, TufError> {
        let mut next = self.clone();
        next.take_roots(&[text.to_owned()])?;
        Ok(next)
    }

    /// 5.3.10, 5.3.11: the last root is fresh, and what its keys do not vouch for is forgotten.
    ///
    /// # Errors
    /// When it has expired.
    pub fn step_roots_done(&self, now: Timestamp) -> Result<TrustedSet, TufError> {
        let mut next = self.clone();
        fresh(&*next.root, now)?;
        next.forget_rotated();
        Ok(next)
    }

    /// 5.4.
    ///
    /// # Errors
    /// The step that fails.
    pub fn step_timestamp(&self, text: &str, now: Timestamp) -> Result<TrustedSet, TufError> {
        let mut next = self.clone();
        let held = next.take_timestamp(Some(text))?;
        fresh(&*held, now)?;
        Ok(next)
    }

    /// 5.5; without a text what is here must be what the timestamp names.
    ///
    /// # Errors
    /// The step that fails.
    pub fn step_snapshot(&self, text: Option<&str>, now: Timestamp) -> Result<TrustedSet, TufError> {
        let mut next = self.clone();
        let held = next.take_snapshot(text)?;
        fresh(&*held, now)?;
        Ok(next)
    }

    /// 5.6; without a text what is here must be what the snapshot names.
    ///
    /// # Errors
    /// The step that fails.
    pub fn step_targets(&self, text: Option<&str>, now: Timestamp) -> Result<TrustedSet, TufError> {
        let mut next = self.clone();
        let held = next.take_targets(text)?;
        fresh(&*held, now)?;
        Ok(next)
    }

    /// Versions that timestamp and snapshot announce: of the snapshot, of the targets; 0 for none.
    #[must_use]
    pub fn announced(&self) -> (u64, u64) {
        let snapshot = self.timestamp.as_ref().and_then(|held| snapshot_of(&held.signed).ok());
        let targets = self.snapshot.as_ref().and_then(|held| targets_of(&held.signed).ok());
        (snapshot.map_or(0, |file| file.version), targets.map_or(0, |file| file.version))
    }
}
