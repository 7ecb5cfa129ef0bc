//! The staged half of a [`Repository`]: changes that collect signatures until they are published.
//!
//! A change of the content drops the signatures made before it, for they stood for something else.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use proto::{
    digest::{Digest, Hasher},
    durable,
    name::{Name, ReleaseName},
    tuf::{
        RoleName, Signer, Target, TargetCustom,
        key::short,
        schema::{Offered, Role, RootMeta, Tally, TargetsMeta},
        sign::{Document, whole_seconds},
    },
};

use super::{
    ReleaseError,
    build::Built,
    io_error,
    repository::{ROOT_DAYS, Repository, TARGETS_DAYS, later, read_document},
    trust_error,
};

/// What is staged.
#[derive(Debug, Clone, Default)]
pub struct Staged {
    /// The next root.
    pub root: Option<Offered<RootMeta>>,
    /// The next targets.
    pub targets: Option<Offered<TargetsMeta>>,
}

/// What [`Repository::add`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// It is published with this very content. So many files of it were missing or damaged here.
    AlreadyPublished {
        /// Files that are whole again.
        restored: usize,
    },
    /// It was staged with this very content already: its signatures stay.
    AlreadyStaged,
    /// It is staged now; so many signatures of the staged targets were dropped.
    Staged {
        /// Counter of the release.
        release_counter: u64,
        /// Signatures that stood for the content before.
        dropped_signatures: usize,
    },
}

/// How far the signatures of a staged document are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Which document.
    pub role: RoleName,
    /// Its version.
    pub version: u64,
    /// Its signatures, counted.
    pub tally: Tally,
}

impl Repository {
    pub(super) fn staged_path(&self, role: RoleName) -> PathBuf {
        self.path("staged").join(format!("{role}.json"))
    }

    /// What is staged.
    ///
    /// # Errors
    /// When a staged document was damaged.
    pub fn staged(&self) -> Result<Staged, ReleaseError> {
        Ok(Staged { root: self.staged_document()?, targets: self.staged_document()? })
    }

    fn staged_document<T: Role>(&self) -> Result<Option<Offered<T>>, ReleaseError> {
        let text = read_document::<T>(&self.staged_path(T::NAME))?;
        text.map(|text| Offered::parse(&text)).transpose().map_err(trust_error("read what is staged"))
    }

    /// Stages a document without signatures.
    pub(super) fn stage<T: Role>(&self, content: &T) -> Result<(), ReleaseError> {
        let document = Document::new(content).map_err(trust_error("stage the change"))?;
        Ok(durable::write(&self.staged_path(T::NAME), document.text().as_bytes(), 0o644)?)
    }

    /// The root that staged documents must satisfy: the staged one, or the newest published.
    ///
    /// # Errors
    /// When there is none.
    pub fn next_root(&self) -> Result<RootMeta, ReleaseError> {
        if let Some(root) = self.staged_document::<RootMeta>()? {
            return Ok(root.signed);
        }
        match self.roots()?.last() {
            Some(text) => Ok(Offered::parse(text).map_err(trust_error("read the root"))?.signed),
            None => self.refuse("there is no root; run `crossdock release init`"),
        }
    }

    /// The targets document to change: the staged one, or a successor of the published one.
    pub(super) fn next_targets(&self, now: Timestamp) -> Result<(TargetsMeta, usize), ReleaseError> {
        let (mut meta, signatures) = match (self.staged_document::<TargetsMeta>()?, self.published()?) {
            (Some(staged), _) => (staged.signed, staged.signatures.len()),
            (None, Some(published)) => match published.targets_meta() {
                Some(meta) => (TargetsMeta { version: meta.version + 1, ..meta.clone() }, 0),
                None => return self.refuse("the published metadata names no targets"),
            },
            (None, None) => return self.refuse("nothing is staged or published; run `crossdock release init`"),
        };
        meta.expires = later(now, TARGETS_DAYS);
        Ok((meta, signatures))
    }

    /// Stages a release: copies its content here and lists it in the next targets.
    ///
    /// # Errors
    /// When the version is published with another content, or content changed while it was copied.
    pub fn add(&self, built: &Built, now: Timestamp) -> Result<Added, ReleaseError> {
        let release = built.name();
        let path = release.target_path();
        let published = self.published()?;
        if let Some(old) = published.as_ref().and_then(|set| set.target(&path)) {
            if old.digest == built.digest {
                return Ok(Added::AlreadyPublished { restored: self.keep(built)? });
            }
            let (published, built) = (old.digest.short(), built.digest.short());
            return Err(ReleaseError::Immutable { release, published, built });
        }
        let earlier = self.ever_published(&release.app)?;
        let same_name = earlier.iter().find(|t| t.custom.version == release.version && t.digest != built.digest);
        if let Some(old) = same_name {
            // Withdrawn, but some node may still run it under this name.
            let (published, built) = (old.digest.short(), built.digest.short());
            return Err(ReleaseError::Immutable { release, published, built });
        }
        self.keep(built)?;
        let (mut meta, dropped_signatures) = self.next_targets(now)?;
        let same = |file| Target::try_from(file).is_ok_and(|target| target.digest == built.digest);
        if self.staged_path(RoleName::Targets).exists() && meta.targets.get(&path).is_some_and(same) {
            return Ok(Added::AlreadyStaged);
        }
        meta.targets.remove(&path);
        let release_counter = next_counter(&release, &earlier, &meta);
        let target = Target {
            length: built.bytes.len() as u64,
            digest: built.digest,
            custom: TargetCustom {
                app: release.app,
                version: release.version,
                release_counter,
                hardware: built.manifest.hardware.clone(),
                issued_at: Some(whole_seconds(now)),
            },
        };
        match target.to_file() {
            Ok(file) => drop(meta.targets.insert(path, file)),
            Err(problem) => return self.refuse(problem),
        }
        self.stage(&meta)?;
        Ok(Added::Staged { release_counter, dropped_signatures })
    }

    /// Every release of the app that some published targets document listed, withdrawn ones too.
    fn ever_published(&self, app: &Name) -> Result<Vec<Target>, ReleaseError> {
        let mut all: Vec<Target> = vec![];
        for text in self.every_targets()? {
            let offered =
                Offered::<TargetsMeta>::parse(&text?).map_err(trust_error("read what was published before"))?;
            for target in readable(&offered.signed).into_values().filter(|target| target.custom.app == *app) {
                if !all.contains(&target) {
                    all.push(target);
                }
            }
        }
        Ok(all)
    }

    /// Copies manifest and content of a build here; yields how many files were not here whole.
    fn keep(&self, built: &Built) -> Result<usize, ReleaseError> {
        let mut copied = 0;
        for (digest, source) in &built.blobs {
            copied += usize::from(keep_blob(source, digest, &self.blob_path(digest))?);
        }
        let path = self.manifest_path(&built.name(), &built.digest);
        if let Some(folder) = path.parent() {
            durable::create_dir_all(folder)?;
        }
        durable::write(&path, &built.bytes, 0o644)?;
        Ok(copied)
    }

    /// Stages the withdrawal of a release: nodes that do not have it yet will refuse it.
    ///
    /// # Errors
    /// When it is not listed.
    pub fn remove(&self, release: &ReleaseName, now: Timestamp) -> Result<(), ReleaseError> {
        let (mut meta, _) = self.next_targets(now)?;
        if meta.targets.remove(&release.target_path()).is_none() {
            return self.refuse(format!("{release} is not listed; see `crossdock release verify` for what is"));
        }
        self.stage(&meta)
    }

    /// Stages a listed release under the highest counter of its app: how an intended step back is
    /// released, for nodes refuse a counter lower than the one they trust.
    ///
    /// # Errors
    /// When it is not listed.
    pub fn reissue(&self, release: &ReleaseName, now: Timestamp) -> Result<u64, ReleaseError> {
        let path = release.target_path();
        let (mut meta, _) = self.next_targets(now)?;
        let Some(Ok(mut target)) = meta.targets.get(&path).map(Target::try_from) else {
            return self.refuse(format!("{release} is not listed; see `crossdock release verify` for what is"));
        };
        target.custom.release_counter = next_counter(release, &self.ever_published(&release.app)?, &meta);
        target.custom.issued_at = Some(whole_seconds(now));
        match target.to_file() {
            Ok(file) => drop(meta.targets.insert(path, file)),
            Err(problem) => return self.refuse(problem),
        }
        self.stage(&meta)?;
        Ok(target.custom.release_counter)
    }

    /// Stages the same content with a later end.
    ///
    /// # Errors
    /// When nothing is there to renew.
    pub fn renew(&self, role: RoleName, now: Timestamp) -> Result<(), ReleaseError> {
        if role == RoleName::Targets {
            let (meta, _) = self.next_targets(now)?;
            return self.stage(&meta);
        }
        let mut root = self.next_root()?;
        if !self.staged_path(RoleName::Root).exists() {
            root.version += 1;
        }
        root.expires = later(now, ROOT_DAYS);
        self.stage(&root)
    }

    /// Appends signatures to whatever is staged and lists the key, and tells how far each document is.
    ///
    /// # Errors
    /// When nothing is staged, a key is listed for none of it, or does not sign.
    pub fn sign<S: Signer>(&self, keys: &[S]) -> Result<Vec<Progress>, ReleaseError> {
        self.sign_shown(&self.staged()?, keys)
    }

    /// As [`Repository::sign`], but nothing else than `staged`, which the signer has seen.
    ///
    /// # Errors
    /// As there, and when what is staged is not that any more.
    pub fn sign_shown<S: Signer>(&self, staged: &Staged, keys: &[S]) -> Result<Vec<Progress>, ReleaseError> {
        if staged.root.is_none() && staged.targets.is_none() {
            return self.refuse("nothing is staged, so there is nothing to sign; run `crossdock release build` first");
        }
        let root = self.next_root()?;
        let mut signers = vec![root.clone()];
        if let Some(text) = self.roots()?.last() {
            // The keys of the root before must sign the new one too.
            signers.push(Offered::<RootMeta>::parse(text).map_err(trust_error("read the root"))?.signed);
        }
        for key in keys {
            let (mut used, id) = (false, key.public_key().id());
            if let Some(offered) = &staged.root {
                used |= listed(&signers, RoleName::Root, &id) && self.append::<RootMeta>(offered, key)?;
            }
            if let Some(offered) = &staged.targets {
                used |= listed(signers.get(..1).unwrap_or_default(), RoleName::Targets, &id)
                    && self.append::<TargetsMeta>(offered, key)?;
            }
            if !used {
                return self.refuse(format!(
                    "unknown key {}: the root lists it for nothing that is staged; sign with a listed key (`crossdock release verify` names them)",
                    short(&id)
                ));
            }
        }
        self.progress()
    }

    /// Adds one signature. Reads the file again, for another key may have signed meanwhile.
    fn append<T: Role>(&self, offered: &Offered<T>, key: &impl Signer) -> Result<bool, ReleaseError> {
        let path = self.staged_path(T::NAME);
        let text = read_document::<T>(&path)?.unwrap_or_else(|| offered.text.clone());
        let is_shown = Offered::<T>::parse(&text).is_ok_and(|now| now.canonical == offered.canonical);
        if !is_shown {
            return self.refuse(format!(
                "the staged {} was changed while it was being signed; look at it and sign again: crossdock release sign",
                T::NAME
            ));
        }
        let mut document = Document::parse::<T>(&text).map_err(trust_error("sign what is staged"))?;
        document.sign_with(key)?;
        durable::write(&path, document.text().as_bytes(), 0o644)?;
        Ok(true)
    }

    /// How far the signatures of what is staged are.
    ///
    /// # Errors
    /// When a staged document was damaged.
    pub fn progress(&self) -> Result<Vec<Progress>, ReleaseError> {
        let (staged, root) = (self.staged()?, self.next_root()?);
        let mut all = vec![];
        if let Some(offered) = &staged.root {
            // A new root needs the old root's signers as well: show whoever is further behind.
            let mut tally = offered.tally(&root);
            if let Some(text) = self.roots()?.last() {
                let old = Offered::<RootMeta>::parse(text).map_err(trust_error("read the root"))?;
                let by_old = offered.tally(&old.signed);
                if tally.is_enough() && !by_old.is_enough() {
                    tally = by_old;
                }
            }
            all.push(Progress { role: RoleName::Root, version: offered.signed.version, tally });
        }
        if let Some(offered) = &staged.targets {
            let tally = offered.tally(&root);
            all.push(Progress { role: RoleName::Targets, version: offered.signed.version, tally });
        }
        Ok(all)
    }
}

fn listed(roots: &[RootMeta], role: RoleName, id: &String) -> bool {
    roots.iter().any(|root| root.roles.get(role.as_str()).is_some_and(|keys| keys.keyids.contains(id)))
}

/// One more than any counter that the app ever had: a node's floor never falls, and a withdrawal must
/// not give a counter a second time.
fn next_counter(release: &ReleaseName, earlier: &[Target], meta: &TargetsMeta) -> u64 {
    let staged = meta.targets.values().filter_map(|file| Target::try_from(file).ok());
    let staged = staged.filter(|target| target.custom.app == release.app);
    let counters = earlier.iter().cloned().chain(staged).map(|target| target.custom.release_counter);
    counters.max().unwrap_or(0).saturating_add(1)
}

/// Copies content, unless a whole copy is here already; its digest is checked on the way. Yields whether it did.
fn keep_blob(source: &Path, digest: &Digest, path: &Path) -> Result<bool, ReleaseError> {
    if let Ok(file) = File::open(path) {
        let (found, _) = Digest::of_reader(file).map_err(io_error("read", path))?;
        if found == *digest {
            return Ok(false);
        }
    }
    let mut input = File::open(source).map_err(io_error("open", source))?;
    let temp = path.with_extension("tmp");
    let mut output = File::create(&temp).map_err(io_error("write", &temp))?;
    let (mut hasher, mut buffer) = (Hasher::default(), vec![0; 64 << 10]);
    loop {
        let n = input.read(&mut buffer).map_err(io_error("read", source))?;
        let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update(bytes);
        output.write_all(bytes).map_err(io_error("write", &temp))?;
    }
    if hasher.finish().0 != *digest {
        let problem = "it changed while it was being released; build again when nobody writes to it".into();
        return Err(ReleaseError::Tree { path: source.to_owned(), problem });
    }
    output.sync_all().map_err(io_error("flush", &temp))?;
    fs::rename(&temp, path).map_err(io_error("put in place", path))?;
    durable::sync_parent(path)?;
    Ok(true)
}

/// Paths of targets and what stands behind them, for who compares.
pub(super) fn readable(meta: &TargetsMeta) -> BTreeMap<&str, Target> {
    let targets = meta.targets.iter();
    targets.filter_map(|(path, file)| Some((path.as_str(), Target::try_from(file).ok()?))).collect()
}
