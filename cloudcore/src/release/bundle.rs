//! A staged change as one file, to be carried to a signer's machine and back.
//!
//! ```text
//! coordinator: export --> change.json --> ann:  import into a folder of hers, sign, export --> change-ann.json
//!              import <-------------------------------------------------------------------------'
//! ```
//!
//! Importing joins signatures, of whichever copies, and only where the signed content is the same to the byte; it
//! changes nothing that is signed. What the file says is published must follow from what the folder trusts already. A
//! folder that trusts nothing yet begins with the file's first root, whose digest its owner compares with the others.
//! Content of the releases does not travel: manifests do, for they are what a signer reads.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proto::{
    API_VERSION,
    digest::Digest,
    durable,
    link::message::MetadataReply,
    name::ReleaseName,
    release::{MAX_MANIFEST_BYTES, Manifest},
    tuf::{
        RoleName, Target, TrustedSet,
        schema::{Offered, Role, RootMeta, TargetsMeta},
        sign::Document,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    ReleaseError,
    chain::verify_chain,
    read_text,
    repository::{FOLDERS, Repository},
    staging::readable,
    trust_error,
};

/// Largest file, in bytes.
pub const MAX_BUNDLE_BYTES: u64 = 64 << 20;
const KIND: &str = "StagedChange";

/// What is staged, and what a signer needs to judge it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bundle {
    /// `crossdock.io/v1`.
    pub api_version: String,
    /// `StagedChange`.
    pub kind: String,
    /// What is published, against which the change stands; only roots where there are no releases.
    pub published: MetadataReply,
    /// The staged root, to the byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// The staged targets, to the byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<String>,
    /// Manifests of the releases that change, and those before them, to the byte.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<String>,
}

/// What an import did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Digest of the first published root, when the folder began to trust it just now.
    pub began_with: Option<Digest>,
    /// Whether what is published was brought up to the file's.
    pub caught_up: bool,
    /// Documents that were not staged here before.
    pub staged: usize,
    /// Good signatures that are new here.
    pub signatures: usize,
    /// Signatures in the file that were left out: wrong, or of keys that may not sign this.
    pub ignored: usize,
}

impl Bundle {
    /// Reads one.
    ///
    /// # Errors
    /// When it is too large, or something else.
    pub fn read(path: &std::path::Path) -> Result<Bundle, ReleaseError> {
        let refuse = |problem: String| ReleaseError::Tree { path: path.to_owned(), problem };
        let text = read_text(path, MAX_BUNDLE_BYTES)?;
        let bundle: Bundle = serde_json::from_str(&text)
            .map_err(|e| refuse(format!("it is no file of `crossdock release export`: {e}")))?;
        if bundle.api_version != API_VERSION || bundle.kind != KIND {
            let (version, kind) = (bundle.api_version.escape_debug(), bundle.kind.escape_debug());
            return Err(refuse(format!(
                "it is {version} {kind}, and {API_VERSION} {KIND} is read here; export it anew"
            )));
        }
        Ok(bundle)
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &std::path::Path) -> Result<(), ReleaseError> {
        let refuse = |e: serde_json::Error| ReleaseError::Tree { path: path.to_owned(), problem: e.to_string() };
        let text = serde_json::to_string(self).map_err(refuse)? + "\n";
        Ok(durable::write(path, text.as_bytes(), 0o644)?)
    }
}

impl Repository {
    /// What is staged, to be carried elsewhere.
    ///
    /// # Errors
    /// When nothing is, or something here was damaged.
    pub fn export(&self) -> Result<Bundle, ReleaseError> {
        let staged = self.staged()?;
        if staged.root.is_none() && staged.targets.is_none() {
            return self.refuse("nothing is staged, so there is nothing to carry");
        }
        let published = match self.published_reply()? {
            Some(reply) => reply,
            None => MetadataReply { roots: self.roots()?, ..MetadataReply::default() },
        };
        let set = self.published()?;
        let old = set.as_ref().and_then(|set| set.targets_meta()).map(readable).unwrap_or_default();
        let new = staged.targets.as_ref().map(|targets| readable(&targets.signed)).unwrap_or_default();
        let mut manifests = BTreeMap::new();
        let changed = new.iter().filter(|(path, target)| old.get(*path).is_none_or(|o| o.digest != target.digest));
        for (_, target) in changed {
            let same_app = old.values().filter(|old| old.custom.app == target.custom.app);
            let before = same_app.max_by_key(|old| old.custom.release_counter);
            for target in before.into_iter().chain([target]) {
                manifests.insert(target.digest, read_text(&self.manifest_file(target), MAX_MANIFEST_BYTES)?);
            }
        }
        Ok(Bundle {
            api_version: API_VERSION.into(),
            kind: KIND.into(),
            published,
            root: staged.root.map(|root| root.text),
            targets: staged.targets.map(|targets| targets.text),
            manifests: manifests.into_values().collect(),
        })
    }

    /// Takes a change up in a new folder. Its first root is believed because its digest is what the others have.
    ///
    /// # Errors
    /// When the folder holds a repository, or the file does not verify.
    pub fn begin(dir: &std::path::Path, bundle: &Bundle) -> Result<(Repository, Imported), ReleaseError> {
        let folders = if bundle.targets.is_none() && bundle.published.timestamp.is_none() {
            &["metadata", "staged"][..]
        } else {
            &FOLDERS
        };
        // Before anything is made: a file that does not verify leaves nothing behind.
        follow(None, &bundle.published)?;
        let repository = Repository::make(dir, folders)?;
        let imported = repository.import(bundle)?;
        Ok((repository, imported))
    }

    /// Takes up what another copy staged, or its signatures.
    ///
    /// # Errors
    /// When the file is of another repository, is behind this one, or stages something else than what is staged here.
    pub fn import(&self, bundle: &Bundle) -> Result<Imported, ReleaseError> {
        let first = bundle.published.roots.first().map(|root| Digest::of(root.as_bytes()));
        // Who has staged the first root here has seen it: what is published is compared with that.
        let new = self.roots()?.is_empty() && self.staged()?.root.is_none();
        let began_with = if new { first } else { None };
        let mut imported = Imported { caught_up: self.catch_up(bundle)?, began_with, ..Imported::default() };
        // Both first, then both are written: half a change is none.
        let root = self.joined::<RootMeta>(bundle.root.as_deref(), &mut imported)?;
        let next = match &root {
            Some(document) => Some(document.offered::<RootMeta>().map_err(trust_error("read what is staged"))?.signed),
            None => self.newest_root()?,
        };
        let Some(next) = next else { return self.refuse("the file holds no root, and there is none here") };
        let targets = self.joined::<TargetsMeta>(bundle.targets.as_deref(), &mut imported)?;
        let mut authorities = vec![next];
        if let Some(document) = targets {
            self.put::<TargetsMeta>(document, &authorities, &mut imported)?;
        }
        if let Some(document) = root {
            authorities.extend(self.newest_root()?);
            self.put::<RootMeta>(document, &authorities, &mut imported)?;
        }
        self.take_manifests(bundle)?;
        Ok(imported)
    }

    /// Follows the file to what it says is published, if that follows from what is published here.
    fn catch_up(&self, bundle: &Bundle) -> Result<bool, ReleaseError> {
        let mut ours = self.published_reply()?.unwrap_or_default();
        ours.roots = self.roots()?;
        let theirs = &bundle.published;
        for (a, b) in ours.roots.iter().zip(&theirs.roots) {
            if content::<RootMeta>(a)? != content::<RootMeta>(b)? {
                return self
                    .refuse("the file is of another repository: its roots are not those that are published here");
            }
        }
        if ours.roots.len() > theirs.roots.len() {
            return self.refuse("the file was made before the newest root was published here; export it anew");
        }
        let before = if ours.timestamp.is_some() { Some(self.verified(&ours, Timestamp::MIN)?) } else { None };
        if before.as_ref().is_some_and(|before| is_behind(theirs, before)) {
            return Ok(false); // only signatures can be of use, or what is staged on top of what is published here
        }
        let Some(set) = follow(before.as_ref(), theirs)? else {
            // A file of roots alone says nothing new to who has releases.
            return if before.is_some() { Ok(false) } else { self.take_roots(&ours.roots, bundle) };
        };
        if before.is_some_and(|before| before.versions() == set.versions()) {
            return Ok(false);
        }
        let ended = self.ended_by(bundle)?;
        self.write_metadata(&set, theirs)?;
        ended.into_iter().try_for_each(|role| self.unstage(role))?;
        Ok(true)
    }

    /// Roots without releases: those that are new here are written.
    fn take_roots(&self, ours: &[String], bundle: &Bundle) -> Result<bool, ReleaseError> {
        let theirs = &bundle.published.roots;
        if ours.len() == theirs.len() {
            return Ok(false);
        }
        let ended = self.ended_by(bundle)?;
        for (i, text) in theirs.iter().enumerate().skip(ours.len()) {
            let path = self.path("metadata").join(format!("{}.root.json", i + 1));
            durable::write(&path, text.as_bytes(), 0o644)?;
        }
        ended.into_iter().try_for_each(|role| self.unstage(role))?;
        Ok(true)
    }

    /// What is staged here and published there, and so is done. What is neither that nor staged there too must not get
    /// lost when the published state goes on.
    fn ended_by(&self, bundle: &Bundle) -> Result<Vec<RoleName>, ReleaseError> {
        let staged = self.staged()?;
        let published = &bundle.published;
        let mut ended = vec![];
        let mut lost = false;
        let mut look = |role, done: bool, there: bool| {
            if done { ended.push(role) } else { lost |= !there }
        };
        if let Some(root) = &staged.root {
            let done = published.roots.iter().any(|text| holds(Some(text), root));
            look(RoleName::Root, done, holds(bundle.root.as_ref(), root));
        }
        if let Some(targets) = &staged.targets {
            let done = holds(published.targets.as_ref(), targets);
            look(RoleName::Targets, done, holds(bundle.targets.as_ref(), targets));
        }
        if lost {
            return self.refuse(
                "what is staged here was made before something else was published; delete staged/ to give it up, then import again",
            );
        }
        Ok(ended)
    }

    /// A document can be staged only on top of what is published here.
    fn on_top<T: Role>(&self, theirs: &Offered<T>) -> Result<(), ReleaseError> {
        let set = self.published()?;
        let newest = match T::NAME {
            RoleName::Root => self.newest_root()?.map_or(0, |root| root.version),
            _ => set.as_ref().and_then(TrustedSet::targets_meta).map_or(0, |targets| targets.version),
        };
        if theirs.signed.version() != newest + 1 {
            return self.refuse(format!(
                "the file stages {} version {}, and version {newest} is published here; export it anew from a copy that is up to date",
                T::NAME,
                theirs.signed.version()
            ));
        }
        Ok(())
    }

    /// The staged document of a role with the signatures of both sides, each once.
    fn joined<T: Role>(&self, theirs: Option<&str>, imported: &mut Imported) -> Result<Option<Document>, ReleaseError> {
        let failed = || trust_error("read what is staged");
        let path = self.staged_path(T::NAME);
        let ours = super::repository::read_document::<T>(&path)?;
        let Some(theirs) = theirs else {
            return ours.map(|text| Document::parse::<T>(&text)).transpose().map_err(failed());
        };
        let mut document = Document::parse::<T>(theirs).map_err(trust_error("read the file"))?;
        match ours {
            None => {
                self.on_top(&document.offered::<T>().map_err(failed())?)?;
                imported.staged += 1;
            }
            Some(ours) => {
                let ours = Offered::<T>::parse(&ours).map_err(failed())?;
                if ours.canonical != content::<T>(theirs)? {
                    return self.refuse(format!(
                        "the file stages other {role} than what is staged here, and signatures stand for one content; delete staged/{role}.json to take the file's, or export this one",
                        role = T::NAME
                    ));
                }
                // Of one key ours stays, if it is good: a wrong one must not push it out.
                let good = ours.signatures.iter().filter(|s| self.is_good::<T>(&ours, s)).cloned();
                good.for_each(|signature| document.append(signature));
            }
        }
        Ok(Some(document))
    }

    fn is_good<T: Role>(&self, document: &Offered<T>, signature: &proto::tuf::schema::Signature) -> bool {
        let roots = [self.next_root().ok(), self.newest_root().ok().flatten()];
        roots.iter().flatten().any(|root| may_sign::<T>(root, &document.canonical, signature))
    }

    /// Writes a joined document with those of its signatures that are good by one of the roots.
    fn put<T: Role>(&self, joined: Document, roots: &[RootMeta], imported: &mut Imported) -> Result<(), ReleaseError> {
        let offered = joined.offered::<T>().map_err(trust_error("read what is staged"))?;
        let path = self.staged_path(T::NAME);
        let before = super::repository::read_document::<T>(&path)?.map(|text| Document::parse::<T>(&text));
        let before = before.transpose().map_err(trust_error("read what is staged"))?;
        let had = |id: &str| before.iter().flat_map(Document::signatures).any(|s| s.keyid == id);
        let mut document = joined.unsigned();
        for signature in &offered.signatures {
            if roots.iter().any(|root| may_sign::<T>(root, &offered.canonical, signature)) {
                imported.signatures += usize::from(!had(&signature.keyid));
                document.append(signature.clone());
            } else {
                imported.ignored += 1;
            }
        }
        Ok(durable::write(&path, document.text().as_bytes(), 0o644)?)
    }

    /// Keeps those manifests that something published or staged names.
    fn take_manifests(&self, bundle: &Bundle) -> Result<(), ReleaseError> {
        let set = self.published()?;
        let staged = self.staged()?.targets;
        let old = set.as_ref().and_then(|set| set.targets_meta()).map(readable).unwrap_or_default();
        let new = staged.as_ref().map(|targets| readable(&targets.signed)).unwrap_or_default();
        let named: BTreeMap<Digest, &Target> = old.values().chain(new.values()).map(|t| (t.digest, t)).collect();
        for text in &bundle.manifests {
            let Some(target) = named.get(&Digest::of(text.as_bytes())) else { continue };
            let release = ReleaseName { app: target.custom.app.clone(), version: target.custom.version.clone() };
            Manifest::parse(text.as_bytes(), &release)?;
            let path = self.manifest_file(target);
            if let Some(folder) = path.parent() {
                durable::create_dir_all(folder)?;
            }
            durable::write(&path, text.as_bytes(), 0o644)?;
        }
        Ok(())
    }
}

/// Whether what a file says is published is older than what is published here, and not another line of it: that the
/// roots agree was seen before.
fn is_behind(theirs: &MetadataReply, ours: &TrustedSet) -> bool {
    let set = theirs.roots.first().and_then(|first| TrustedSet::new(first).ok()?.update(theirs, Timestamp::MIN).ok());
    set.is_some_and(|set| {
        let (theirs, ours) = (set.versions(), ours.versions());
        theirs.root == ours.root && theirs.timestamp < ours.timestamp && theirs.targets <= ours.targets
    })
}

/// Whether a text is that document, whoever signed it.
fn holds<T: Role>(text: Option<&String>, document: &Offered<T>) -> bool {
    text.is_some_and(|text| content::<T>(text).is_ok_and(|content| content == document.canonical))
}

/// Verifies what a file says is published, from what is trusted already. `None` for roots alone.
fn follow(before: Option<&TrustedSet>, theirs: &MetadataReply) -> Result<Option<TrustedSet>, ReleaseError> {
    let Some(first) = theirs.roots.first() else { return Ok(None) };
    verify_chain(&theirs.roots, Timestamp::MIN)?;
    if theirs.timestamp.is_none() {
        return Ok(None);
    }
    // What was published may have expired meanwhile: that is what the change may mend.
    let set = before.map_or_else(|| TrustedSet::new(first), |set| Ok(set.clone()));
    let set = set.and_then(|set| set.update(theirs, Timestamp::MIN));
    set.map(Some).map_err(trust_error("take up what the file says is published"))
}

fn may_sign<T: Role>(root: &RootMeta, message: &[u8], signature: &proto::tuf::schema::Signature) -> bool {
    let listed = root.roles.get(T::NAME.as_str()).is_some_and(|keys| keys.keyids.contains(&signature.keyid));
    listed && root.keys.get(&signature.keyid).is_some_and(|key| key.verifies(message, &signature.sig))
}

fn content<T: Role>(text: &str) -> Result<Vec<u8>, ReleaseError> {
    Offered::<T>::parse(text).map(|offered| offered.canonical).map_err(trust_error("compare two copies"))
}
