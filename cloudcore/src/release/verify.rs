//! Verifies a repository without a hub: signatures, versions, expiry, and every byte that is kept here.
//! Called by `crossdock release verify`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
};

use jiff::Timestamp;
use proto::{
    digest::Digest,
    link::message::MetadataRequest,
    name::ReleaseName,
    tuf::{RoleName, Target, TrustedSet},
};

use super::{Built, ReleaseError, io_error, provenance, repository::Repository, staging::Progress, staging::readable};

/// What was found to be sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Versions of the published metadata; all 0 when nothing is published yet.
    pub versions: MetadataRequest,
    /// When each published document ends.
    pub expiries: BTreeMap<RoleName, Timestamp>,
    /// Published releases.
    pub releases: BTreeMap<ReleaseName, Target>,
    /// Distinct files whose content was read and agrees.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is said of releases' origin and content, and whether it fits, for people.
    pub evidence: BTreeMap<ReleaseName, Vec<String>>,
    /// What is staged, and how far its signatures are.
    pub staged: Vec<Progress>,
}

/// Verifies everything in a repository, published and staged.
///
/// # Errors
/// The first thing that is not sound, by name.
pub fn repository(repository: &Repository, now: Timestamp) -> Result<Verified, ReleaseError> {
    let mut verified = Verified {
        versions: MetadataRequest::default(),
        expiries: BTreeMap::new(),
        releases: BTreeMap::new(),
        files: 0,
        bytes: 0,
        evidence: BTreeMap::new(),
        staged: repository.progress()?,
    };
    let mut seen = BTreeSet::new();
    if let Some(set) = published(repository, now)? {
        verified.versions = set.versions();
        verified.expiries = set.expiries();
        for target in set.targets().values() {
            let name = content(repository, target, &mut seen, &mut verified)?;
            verified.releases.insert(name, target.clone());
        }
    }
    if let Some(staged) = repository.staged()?.targets {
        for target in readable(&staged.signed).values() {
            content(repository, target, &mut seen, &mut verified)?;
        }
    }
    Ok(verified)
}

fn published(repository: &Repository, now: Timestamp) -> Result<Option<TrustedSet>, ReleaseError> {
    let Some(reply) = repository.published_reply()? else { return Ok(None) };
    repository.verified(&reply, now).map(Some)
}

/// Reads every file of a release and compares its digest.
fn content(
    repository: &Repository,
    target: &Target,
    seen: &mut BTreeSet<Digest>,
    verified: &mut Verified,
) -> Result<ReleaseName, ReleaseError> {
    let manifest = repository.manifest(target)?;
    let attached = [("provenance", manifest.provenance), ("sbom", manifest.sbom)];
    let attached = attached.iter().filter_map(|(name, attachment)| Some((*name, (*attachment)?)));
    let files = manifest.files.iter().map(|file| (file.path.as_str(), file.digest, file.size));
    for (name, digest, size) in files.chain(attached.map(|(name, a)| (name, a.digest, a.size))) {
        if !seen.insert(digest) {
            continue;
        }
        let path = repository.blob_path(&digest);
        let of = format!("{name} of {}; run `crossdock release build` for it again", manifest.name());
        let opened = match File::open(&path) {
            Ok(opened) => opened,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ReleaseError::Tree { path, problem: format!("it is gone: {of}") });
            }
            Err(e) => return Err(io_error("open", &path)(e)),
        };
        let found = Digest::of_reader(opened).map_err(io_error("read", &path))?;
        if found != (digest, size) {
            return Err(ReleaseError::Tree { path, problem: format!("its content is not that of {of}") });
        }
        verified.files += 1;
        verified.bytes += size;
    }
    let lines = provenance::describe(repository, &manifest);
    if !lines.is_empty() {
        verified.evidence.insert(manifest.name(), lines);
    }
    Ok(manifest.name())
}

/// Whether a build is what was signed and published under its name.
///
/// # Errors
/// When it is not listed, or its content differs.
pub fn build(repository: &Repository, built: &Built, now: Timestamp) -> Result<Target, ReleaseError> {
    let release = built.name();
    let Some(set) = published(repository, now)? else {
        return repository.refuse("nothing is published here; run `crossdock release publish`");
    };
    let target = set.manifest_target(&release).map_err(super::trust_error("find the release"))?;
    if target.digest != built.digest {
        let (published, built) = (target.digest.short(), built.digest.short());
        return Err(ReleaseError::Immutable { release, published, built });
    }
    Ok(target.clone())
}
