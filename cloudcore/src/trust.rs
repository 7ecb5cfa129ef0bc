//! The release repository that the hub serves: verified before it serves it, and only when it holds
//! every byte that the metadata names.
//!
//! The hub holds no key that signs releases. What it verifies here, every agent verifies again; the
//! hub's own check keeps bad metadata from reaching a hundred boxes that would all refuse it.
//!
//! Written by the API ([`Trust::publish`]), read by `crate::link::serve` and `crate::hub`.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use proto::{
    digest::Digest,
    durable::{DurableError, Loaded, Record},
    env::Env,
    link::message::{Assignment, MetadataReply, MetadataRequest},
    name::ReleaseName,
    object::{Object, Release, ReleaseSpec, Resources},
    release::{MAX_MANIFEST_BYTES, Manifest, ManifestError, Workload},
    tuf::{Documents, MAX_ROOTS, Target, TrustedSet, TufError, schema::TargetFile},
    watch,
};
use serde::{Deserialize, Serialize};

use crate::{
    blobs::{BlobError, Blobs},
    store::{Store, StoreError},
};

/// Missing blobs that a refusal names; the others are counted.
const NAMED_MISSING: usize = 10;
/// How far the clock of who builds releases may be ahead of the hub's.
const ISSUE_SKEW: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);
/// Withdrawn releases whose names are remembered. The repository and the nodes' counters know the rest.
const MAX_WITHDRAWN: usize = 20_000;

/// Why metadata is refused or could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It does not verify.
    #[error("the metadata is refused: {0}")]
    Refused(#[from] TufError),
    /// The first publication brings no root.
    #[error(
        "the hub has no trust root yet and the publication brings none; publish from the repository that has 1.root.json"
    )]
    NoRoot,
    /// Artifacts are not there yet.
    #[error("{release} is not complete: {missing}; upload them first, as `crossdock release publish` does")]
    Missing {
        /// Which release.
        release: ReleaseName,
        /// Which digests, in words.
        missing: String,
    },
    /// A manifest does not fit its release.
    #[error("the manifest of {release} is refused: {problem}")]
    Manifest {
        /// Which release.
        release: ReleaseName,
        /// What is wrong.
        problem: String,
    },
    /// A path of the metadata names no release.
    #[error("target {0:?} is not a release's manifest; its path must be APP/VERSION.json")]
    Path(String),
    /// Signed by a clock that was ahead.
    #[error(
        "{release} was issued at {issued}, and it is {now} here; boxes take that for the time. Set the clock of the machine that built it, or of this one, then build and sign again"
    )]
    Future {
        /// Which release.
        release: ReleaseName,
        /// What was signed.
        issued: jiff::Timestamp,
        /// The hub's time.
        now: jiff::Timestamp,
    },
    /// The name was used for other content.
    #[error(
        "{release} was published before with digest {before}, now {now}; a version is never reused: choose a new one"
    )]
    Changed {
        /// Which release.
        release: ReleaseName,
        /// Its digest.
        before: Digest,
        /// The new one.
        now: Digest,
    },
    /// What the hub kept is unreadable.
    #[error(
        "the hub's release metadata in {} is damaged in both copies; restore it from a backup, or remove both and publish the repository again",
        .0.display()
    )]
    Lost(PathBuf),
    /// A blob could not be read.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The metadata could not be kept.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// It has no JSON form.
    #[error("the metadata could not be written")]
    Encode(#[from] serde_json::Error),
}

/// What is kept on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    /// Every root, from the first on.
    roots: Vec<String>,
    documents: Documents,
    /// Releases that the metadata listed once, by path: their names are taken for ever.
    #[serde(default)]
    withdrawn: BTreeMap<String, Digest>,
}

#[derive(Clone)]
struct State {
    roots: Vec<String>,
    set: TrustedSet,
    withdrawn: BTreeMap<String, Digest>,
}

/// The release metadata of the hub. Cheap to clone.
#[derive(Clone)]
pub struct Trust(Arc<Inner>);

struct Inner {
    record: Record,
    env: Env,
    blobs: Blobs,
    store: Store,
    state: RwLock<Option<Arc<State>>>,
    /// One publication at a time.
    publishing: tokio::sync::Mutex<()>,
    publications: watch::Sender<u64>,
}

impl Trust {
    /// Reads what was published before, verifies it again, and brings the release objects in line.
    ///
    /// # Errors
    /// When the record is damaged, does not verify, or the store fails.
    pub async fn open(record: &Path, env: &Env, blobs: &Blobs, store: &Store) -> Result<Trust, TrustError> {
        let record = Record::at(record);
        let content = match record.load_and_mend()? {
            Loaded::Absent => None,
            Loaded::Good(content) => Some(content),
            Loaded::Fallback(content) => {
                tracing::warn!(path = %record.path().display(), "release metadata is damaged; the copy before it is used: publish again");
                Some(content)
            }
            Loaded::Lost => return Err(TrustError::Lost(record.path().to_owned())),
        };
        let state = match content {
            None => None,
            Some(content) => {
                let kept: Kept = serde_json::from_slice(&content)?;
                Some(Arc::new(State {
                    set: TrustedSet::load(&kept.documents)?,
                    roots: kept.roots,
                    withdrawn: kept.withdrawn,
                }))
            }
        };
        let trust = Trust(Arc::new(Inner {
            record,
            env: env.clone(),
            blobs: blobs.clone(),
            store: store.clone(),
            state: RwLock::new(state.clone()),
            publishing: tokio::sync::Mutex::default(),
            publications: watch::channel(0).0,
        }));
        if let Some(state) = state {
            // A crash between the record and the objects is mended here.
            match trust.releases(&state.set).await {
                Ok(releases) => trust.write_releases(releases).await?,
                Err(error) => tracing::error!(%error, "some releases are not whole; publish them again"),
            }
        }
        Ok(trust)
    }

    /// Takes a publication: verifies it, checks that everything it names is here, keeps it durably, serves
    /// it, and makes the release objects.
    ///
    /// # Errors
    /// Says what is wrong or missing; what was served before is served on. Only when the store fails at the
    /// very end the new metadata is served already: the release objects follow with the next publication
    /// (the same one again will do) or the next start.
    pub async fn publish(&self, reply: MetadataReply) -> Result<(), TrustError> {
        let _one = self.0.publishing.lock().await;
        let (before, now) = (self.state(), self.0.env.wall.now());
        let next = self.0.env.blocking.run(move || verify(before.as_deref(), &reply, now)).await?;
        let releases = self.releases(&next.set).await?;
        let withdrawn = next.withdrawn.clone();
        let kept = Kept { roots: next.roots.clone(), documents: next.set.documents(), withdrawn };
        let (record, content) = (self.0.record.clone(), serde_json::to_vec(&kept)?);
        self.0.env.blocking.run(move || record.store(&content)).await?;
        *self.0.state.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(next));
        self.0.publications.send_modify(|count| *count += 1);
        self.write_releases(releases).await
    }

    /// Counts publications: what is signed for nodes names what they list.
    #[must_use]
    pub fn publications(&self) -> watch::Receiver<u64> {
        self.0.publications.subscribe()
    }

    /// The releases of an assignment as the metadata lists them, by path. What is not listed is left out.
    #[must_use]
    pub fn target_files(&self, assignment: &Assignment) -> BTreeMap<String, TargetFile> {
        let Some(state) = self.state() else { return BTreeMap::new() };
        let paths = assignment.apps.iter().map(|(app, ordered)| {
            ReleaseName { app: app.clone(), version: ordered.release.version.clone() }.target_path()
        });
        paths.filter_map(|path| Some((path.clone(), state.set.target_file(&path)?.clone()))).collect()
    }

    /// What a peer lacks. Empty while nothing was published.
    #[must_use]
    pub fn reply(&self, request: &MetadataRequest) -> MetadataReply {
        self.state().map(|state| state.set.newer_than(request, &state.roots)).unwrap_or_default()
    }

    /// The first root, to the byte, and its digest: what join tokens pin.
    #[must_use]
    pub fn first_root(&self) -> Option<(String, Digest)> {
        let state = self.state()?;
        let root = state.roots.first()?;
        Some((root.clone(), Digest::of(root.as_bytes())))
    }

    fn state(&self) -> Option<Arc<State>> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The release objects that the metadata stands for, each checked to be whole.
    async fn releases(&self, set: &TrustedSet) -> Result<Vec<Release>, TrustError> {
        let known = self.0.store.list::<ReleaseSpec>(None).await?.items;
        let known: BTreeMap<String, Release> = known.into_iter().map(|r| (r.name().to_owned(), r)).collect();
        let mut releases = vec![];
        for path in set.targets().keys() {
            let name = release_of(path)?;
            let target = set.manifest_target(&name)?;
            releases.push(match known.get(name.object_name().as_str()) {
                // It was whole when it was published; only what is new is looked at again.
                Some(known) if known.spec.digest == target.digest => {
                    let Release { mut spec, .. } = known.clone();
                    if spec.requests.is_none() {
                        spec.requests = self.look_again(&name, target).await; // a hub of before did not look
                    }
                    Object::new(name.object_name(), signed(spec, target))
                }
                Some(known) => {
                    let (before, now) = (known.spec.digest, target.digest);
                    return Err(TrustError::Changed { release: name, before, now });
                }
                None => self.release(&name, target).await?,
            });
        }
        Ok(releases)
    }

    async fn release(&self, name: &ReleaseName, target: &Target) -> Result<Release, TrustError> {
        let wrong = |problem: String| TrustError::Manifest { release: name.clone(), problem };
        if target.length > MAX_MANIFEST_BYTES {
            return Err(wrong(format!("{} bytes are over the bound of {MAX_MANIFEST_BYTES}", target.length)));
        }
        let bytes = match self.0.blobs.read(target.digest, MAX_MANIFEST_BYTES).await {
            Err(BlobError::NotFound(_) | BlobError::Damaged { .. }) => {
                let missing = format!("its manifest {} is missing", target.digest);
                return Err(TrustError::Missing { release: name.clone(), missing });
            }
            other => other?,
        };
        if bytes.len() as u64 != target.length {
            return Err(wrong(format!("it has {} bytes, the metadata says {}", bytes.len(), target.length)));
        }
        let manifest = Manifest::parse(&bytes, name).map_err(|e: ManifestError| wrong(e.to_string()))?;
        self.check_whole(name, &manifest).await?;
        let spec = ReleaseSpec {
            app: name.app.clone(),
            version: name.version.clone(),
            digest: target.digest,
            release_counter: 0,
            hardware: vec![],
            issued_at: None,
            requests: Some(asks(&manifest)),
            gpus: manifest.workload.as_ref().and_then(|w| w.gpus.clone()),
            anti_affinity: manifest.workload.as_ref().map(|w| w.anti_affinity.clone()).unwrap_or_default(),
            files: manifest.files.len() as u64,
            total_bytes: manifest.total_bytes(),
        };
        Ok(Object::new(name.object_name(), signed(spec, target)))
    }

    /// What a release asks for that was published before; `None` when its manifest cannot be read.
    async fn look_again(&self, name: &ReleaseName, target: &Target) -> Option<Resources> {
        let bytes = self.0.blobs.read(target.digest, MAX_MANIFEST_BYTES).await.ok()?;
        Some(asks(&Manifest::parse(&bytes, name).ok()?))
    }

    async fn check_whole(&self, name: &ReleaseName, manifest: &Manifest) -> Result<(), TrustError> {
        let mut wanted: BTreeMap<Digest, u64> = BTreeMap::new();
        let mut missing: BTreeSet<Digest> = BTreeSet::new();
        for (digest, size) in manifest.content() {
            if *wanted.entry(digest).or_insert(size) != size {
                let problem = format!("{digest} is given two sizes");
                return Err(TrustError::Manifest { release: name.clone(), problem });
            }
        }
        for (digest, size) in wanted {
            match self.0.blobs.size(digest).await? {
                None => drop(missing.insert(digest)),
                Some(found) if found != size => {
                    let problem = format!("{digest} has {found} bytes, the manifest says {size}");
                    return Err(TrustError::Manifest { release: name.clone(), problem });
                }
                Some(_) => {}
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let named: Vec<String> = missing.iter().take(NAMED_MISSING).map(Digest::to_string).collect();
        let more = missing.len().saturating_sub(NAMED_MISSING);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        let missing = format!("{} file(s) are missing: {}{rest}", missing.len(), named.join(", "));
        Err(TrustError::Missing { release: name.clone(), missing })
    }

    /// Makes the objects what the metadata says; one that left the metadata is withdrawn.
    async fn write_releases(&self, releases: Vec<Release>) -> Result<(), TrustError> {
        let names: BTreeSet<String> = releases.iter().map(|r| r.name().to_owned()).collect();
        for old in self.0.store.list::<ReleaseSpec>(None).await?.items {
            if !names.contains(old.name()) {
                self.0.store.delete::<ReleaseSpec>(old.name()).await?;
            }
        }
        for release in releases {
            let spec = release.spec.clone();
            let known = self.0.store.modify(release.name(), move |old: &mut Release| old.spec = spec.clone()).await?;
            if known.is_none() {
                self.0.store.create(release).await?;
            }
        }
        Ok(())
    }
}

/// What a release asks of its box.
fn asks(manifest: &Manifest) -> Resources {
    manifest.workload.as_ref().map(Workload::asks).unwrap_or_default()
}

/// With what the signatures say beside the digest.
fn signed(spec: ReleaseSpec, target: &Target) -> ReleaseSpec {
    let custom = &target.custom;
    let hardware = custom.hardware.iter().cloned().collect();
    ReleaseSpec { release_counter: custom.release_counter, hardware, issued_at: custom.issued_at, ..spec }
}

/// `scan-uploader/1.4.0.json` stands for `scan-uploader@1.4.0`.
fn release_of(path: &str) -> Result<ReleaseName, TrustError> {
    let wrong = || TrustError::Path(path.chars().take(120).collect());
    let (app, file) = path.split_once('/').ok_or_else(wrong)?;
    let version = file.strip_suffix(".json").ok_or_else(wrong)?;
    let name = ReleaseName { app: app.parse().map_err(|_| wrong())?, version: version.parse().map_err(|_| wrong())? };
    if name.target_path() == path { Ok(name) } else { Err(wrong()) }
}

/// Roots that are known already may be sent again; everything else is the client's workflow of TUF.
fn verify(before: Option<&State>, reply: &MetadataReply, now: jiff::Timestamp) -> Result<State, TrustError> {
    let (set, mut roots) = match before {
        Some(state) => (state.set.clone(), state.roots.clone()),
        None => {
            let first = reply.roots.first().filter(|root| root_version(root) == Some(1)).ok_or(TrustError::NoRoot)?;
            (TrustedSet::new(first)?, vec![first.clone()])
        }
    };
    let set = newest(set, reply, now)?;
    not_from_the_future(&set, now)?;
    for root in &reply.roots {
        // The n-th root has version n; those that were skipped are not kept.
        if root_version(root) == Some(roots.len() as u64 + 1) && set.versions().root > roots.len() as u64 {
            roots.push(root.clone());
        }
    }
    let withdrawn = before.map(|before| withdrawn(before, &set)).transpose()?.unwrap_or_default();
    Ok(State { roots, set, withdrawn })
}

/// What a publication leads to, which may bring more roots than an answer to a box.
fn newest(mut set: TrustedSet, reply: &MetadataReply, now: jiff::Timestamp) -> Result<TrustedSet, TrustError> {
    let mut parts = reply.roots.chunks(MAX_ROOTS).map(<[String]>::to_vec);
    let last = parts.next_back().unwrap_or_default();
    for roots in parts {
        set = set.walk(&MetadataReply { roots, ..MetadataReply::default() })?.unwrap_or(set);
    }
    Ok(set.update(&MetadataReply { roots: last, ..reply.clone() }, now)?)
}

/// Issue times are the floor of the boxes' time: one that is ahead of the hub's is refused before anybody has it.
fn not_from_the_future(set: &TrustedSet, now: jiff::Timestamp) -> Result<(), TrustError> {
    let latest = now.checked_add(ISSUE_SKEW).unwrap_or(jiff::Timestamp::MAX);
    for (path, target) in set.targets() {
        if let Some(issued) = target.custom.issued_at.filter(|issued| *issued > latest) {
            return Err(TrustError::Future { release: release_of(path)?, issued, now });
        }
    }
    Ok(())
}

/// The releases that are listed no more. One that comes back must have the content that it had.
fn withdrawn(before: &State, set: &TrustedSet) -> Result<BTreeMap<String, Digest>, TrustError> {
    let listed = before.set.targets().iter().map(|(path, target)| (path.clone(), target.digest));
    let mut gone: BTreeMap<String, Digest> = before.withdrawn.clone().into_iter().chain(listed).collect();
    for (path, target) in set.targets() {
        match gone.remove(path) {
            Some(before) if before != target.digest => {
                return Err(TrustError::Changed { release: release_of(path)?, before, now: target.digest });
            }
            _ => {}
        }
    }
    while gone.len() > MAX_WITHDRAWN {
        gone.pop_first();
    }
    Ok(gone)
}

/// What a root says of itself. Believed only beside a verification.
fn root_version(text: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Root {
        signed: Signed,
    }
    #[derive(Deserialize)]
    struct Signed {
        version: u64,
    }
    serde_json::from_str::<Root>(text).ok().map(|root| root.signed.version)
}
