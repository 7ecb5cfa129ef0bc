//! The image of a release at the engine: there already, or loaded from the release's files, and checked afterwards.
//!
//! It is loaded as an archive that is made while it is sent, an OCI layout that Docker's own `manifest.json` stands
//! beside, so every engine reads it. Each file is hashed on its way: one that is not what was signed ends the load.
//! Docker does not look at layers that it holds below the same ones, so those are left out; an engine that insists on
//! them gets the whole.
//!
//! Each release's image has a name of its own at the engine, [`reference`], by which it is found and later collected.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use proto::{
    digest::{Digest, Hasher},
    env::Env,
    name::Name,
    release::{Image, container::CONFIG_PATH},
};
use tokio::sync::mpsc;

use super::api::{Api, ApiError, model::ImageDetails};

/// Names of our images begin with this; nobody else's do.
const PREFIX: &str = "crossdock.local/";
/// Bytes that are read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks on their way to the engine.
const CHUNKS: usize = 8;

/// An image is not at the engine, and why.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file of the release is not what was signed.
    #[error("{0}: the release is damaged on disk and will be fetched again")]
    Damaged(String),
    /// The engine would not have it.
    #[error("{0}")]
    Engine(String),
}

impl From<ApiError> for ImageError {
    fn from(error: ApiError) -> ImageError {
        ImageError::Engine(error.to_string())
    }
}

/// Name of a release's image at the engine.
#[must_use]
pub fn reference(app: &Name, release: Digest) -> String {
    format!("{PREFIX}{app}:{}", tag(release))
}

fn tag(release: Digest) -> String {
    release.hex().chars().take(32).collect()
}

/// An image as files on disk.
#[derive(Debug, Clone)]
pub struct Files {
    tree: PathBuf,
    image: Image,
    config: String,
    /// The OCI manifest that we write for it.
    manifest: String,
}

impl Files {
    /// Of the release whose files are in `tree`.
    ///
    /// # Errors
    /// When the configuration is not what was signed.
    pub fn at(tree: &Path, image: &Image) -> Result<Files, ImageError> {
        let path = tree.join(CONFIG_PATH);
        let damaged = |problem: String| ImageError::Damaged(format!("{} {problem}", path.display()));
        let config = std::fs::read_to_string(&path).map_err(|e| damaged(format!("cannot be read ({e})")))?;
        if Digest::of(config.as_bytes()) != image.config {
            return Err(damaged("has another content than its digest says".into()));
        }
        let size = |path: PathBuf| {
            path.metadata().map(|m| m.len()).map_err(|e| ImageError::Damaged(format!("{}: {e}", path.display())))
        };
        let layers = image.layers.iter().map(|layer| {
            let size = size(tree.join(Image::layer_path(*layer)))?;
            Ok(descriptor("application/vnd.oci.image.layer.v1.tar", *layer, size))
        });
        let layers: Vec<_> = layers.collect::<Result<_, ImageError>>()?;
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", image.config, config.len() as u64),
            "layers": layers,
        });
        Ok(Files { tree: tree.to_owned(), image: image.clone(), config, manifest: manifest.to_string() })
    }

    /// Whether this is the image: its ID, which engines take from its configuration or from its manifest, and layers.
    fn is(&self, found: &ImageDetails) -> bool {
        let id = normal(&found.id).parse::<Digest>().ok();
        let layers = found.root_fs.as_ref().and_then(|root| root.layers.as_ref());
        let layers: Option<Vec<Digest>> = layers.map(|layers| layers.iter().filter_map(|l| l.parse().ok()).collect());
        let ids = [self.image.config, Digest::of(self.manifest.as_bytes())];
        id.is_some_and(|id| ids.contains(&id)) && layers.as_ref() == Some(&self.image.layers)
    }

    /// Writes the archive, without the first `held` layers.
    fn write(&self, reference: &str, held: usize, to: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
        let blob = |digest: Digest| format!("blobs/sha256/{}", digest.hex());
        let mut archive = tar::Builder::new(Chunks { to, buffer: Vec::with_capacity(CHUNK_BYTES) });
        let sent: BTreeSet<Digest> = self.image.layers.iter().skip(held).copied().collect();
        for layer in sent {
            let file = File::open(self.tree.join(Image::layer_path(layer)))?;
            let size = file.metadata()?.len();
            let mut checked = Checked { file, hasher: Some(Hasher::default()), expected: layer };
            append(&mut archive, &blob(layer), size, &mut checked)?;
        }
        let manifest = Digest::of(self.manifest.as_bytes());
        let mut listed = descriptor("application/vnd.oci.image.manifest.v1+json", manifest, self.manifest.len() as u64);
        let name = serde_json::json!({ "io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference });
        if let Some(fields) = listed.as_object_mut() {
            fields.insert("annotations".into(), name);
        }
        let index = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [listed],
        });
        let layers: Vec<String> = self.image.layers.iter().map(|layer| blob(*layer)).collect();
        let saved =
            serde_json::json!([{ "Config": blob(self.image.config), "RepoTags": [reference], "Layers": layers }]);
        let documents = [
            (blob(self.image.config), self.config.clone()),
            (blob(manifest), self.manifest.clone()),
            ("index.json".to_owned(), index.to_string()),
            ("oci-layout".to_owned(), r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned()),
            ("manifest.json".to_owned(), saved.to_string()),
        ];
        for (name, text) in documents {
            append(&mut archive, &name, text.len() as u64, &mut text.as_bytes())?;
        }
        archive.into_inner()?.flush_all()
    }
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> serde_json::Value {
    serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

fn append<W: io::Write>(
    archive: &mut tar::Builder<W>,
    name: &str,
    size: u64,
    content: &mut dyn Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, content)
}

/// A layer on its way: the last of it is not handed out when the whole is not what was signed.
struct Checked {
    file: File,
    hasher: Option<Hasher>,
    expected: Digest,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        match (&mut self.hasher, buffer.get(..read)) {
            (Some(hasher), Some(bytes)) if read > 0 => hasher.update(bytes),
            (hasher, _) => {
                if hasher.take().is_some_and(|hasher| hasher.finish().0 != self.expected) {
                    let short = self.expected.short();
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("layer {short} has another content than its digest says"),
                    ));
                }
            }
        }
        Ok(read)
    }
}

/// Hands on what is written in chunks.
struct Chunks<'a> {
    to: &'a mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Chunks<'_> {
    fn flush_all(mut self) -> io::Result<()> {
        io::Write::flush(&mut self)
    }
}

impl io::Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        self.to.blocking_send(Ok(chunk.into())).map_err(|_| io::Error::other("the engine takes no more"))
    }
}

/// Sees to it that the image of a release is at the engine, under its [`reference`].
///
/// # Errors
/// Why it is not.
pub async fn ensure(api: &Api, env: &Env, app: &Name, release: Digest, files: Files) -> Result<(), ImageError> {
    let name = reference(app, release);
    if find(api, &name).await?.is_some_and(|found| files.is(&found)) {
        return Ok(());
    }
    // Under another name it may be there, too: of a release that changed nothing of it.
    for id in [files.image.config, Digest::of(files.manifest.as_bytes())] {
        if find(api, &id.to_string()).await?.is_some_and(|found| files.is(&found)) {
            return Ok(api.tag(&id.to_string(), &format!("{PREFIX}{app}"), &tag(release)).await?);
        }
    }
    let held = held(api, &files.image).await?;
    let mut loaded = load(api, env, &name, &files, held).await;
    if held > 0 && matches!(loaded, Err(ImageError::Engine(_))) {
        loaded = load(api, env, &name, &files, 0).await;
    }
    loaded?;
    match find(api, &name).await? {
        Some(found) if files.is(&found) => Ok(()),
        found => {
            let is = found.map_or_else(|| "none".into(), |found| found.id);
            let id = files.image.config.short();
            Err(ImageError::Engine(format!(
                "it was loaded and the engine has image {is} for it, not {id}; is that engine supported?"
            )))
        }
    }
}

/// Sees to it that an image of a registry is at the engine, under the release's [`reference`].
///
/// # Errors
/// Why it is not.
pub async fn pull(api: &Api, app: &Name, release: Digest, pinned: &str) -> Result<(), ImageError> {
    if find(api, &reference(app, release)).await?.is_some() {
        return Ok(());
    }
    if find(api, pinned).await?.is_none() {
        let pulled = api.pull(pinned).await;
        pulled.map_err(|e| ImageError::Engine(format!("{pinned} could not be pulled: {e}")))?;
    }
    Ok(api.tag(pinned, &format!("{PREFIX}{app}"), &tag(release)).await?)
}

async fn find(api: &Api, name: &str) -> Result<Option<ImageDetails>, ImageError> {
    match api.image(name).await {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.is_missing() => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// How many of the first layers Docker holds, below one of our images.
async fn held(api: &Api, image: &Image) -> Result<usize, ImageError> {
    if !api.is_docker() {
        return Ok(0); // it wants the whole
    }
    let mut most = 0;
    for (_, id) in images(api, None).await? {
        let Some(found) = find(api, &id).await? else { continue };
        let layers = found.root_fs.and_then(|root| root.layers).unwrap_or_default();
        let same = layers.iter().zip(&image.layers).take_while(|(one, other)| one.parse() == Ok(**other)).count();
        most = most.max(same);
    }
    Ok(most)
}

async fn load(api: &Api, env: &Env, name: &str, files: &Files, held: usize) -> Result<(), ImageError> {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let (files, name) = (files.clone(), name.to_owned());
    let write = env.blocking.run(move || {
        let written = files.write(&name, held, &sender);
        if let Err(e) = &written {
            // The engine must not take what was sent for the whole.
            let _ = sender.blocking_send(Err(io::Error::new(e.kind(), e.to_string()))); // it may have gone
        }
        written
    });
    let (written, read) = tokio::join!(write, api.load(receiver));
    if let Err(e) = written.as_ref()
        && e.kind() == io::ErrorKind::InvalidData
    {
        return Err(ImageError::Damaged(e.to_string()));
    }
    // The engine's word first: that it takes no more follows from it.
    read.map_err(|e| ImageError::Engine(format!("the engine would not load the image: {e}")))?;
    written.map_err(|e| ImageError::Engine(format!("the image could not be handed to the engine: {e}")))
}

/// Names and IDs of our images, of one app or of all.
async fn images(api: &Api, app: Option<&Name>) -> Result<BTreeMap<String, String>, ApiError> {
    let pattern = app.map_or_else(|| format!("{PREFIX}*"), |app| format!("{PREFIX}{app}"));
    let found = api.images(&pattern).await?;
    let named = found
        .into_iter()
        .flat_map(|image| image.repo_tags.unwrap_or_default().into_iter().map(move |name| (name, image.id.clone())));
    Ok(named.filter(|(name, _)| name.starts_with(PREFIX)).collect())
}

/// Removes images of an app but those of the releases in `keep`.
///
/// # Errors
/// What the engine says; one that is in use stays, and is no error.
pub async fn collect(api: &Api, app: &Name, keep: &BTreeSet<Digest>) -> Result<(), ApiError> {
    let kept: BTreeSet<String> = keep.iter().map(|release| reference(app, *release)).collect();
    let surplus = images(api, Some(app)).await?.into_keys().filter(|name| !kept.contains(name));
    for name in surplus.collect::<Vec<_>>() {
        // By force: one that ended and is kept for its output needs its image no more.
        match api.remove_image(&name).await {
            Ok(()) => tracing::info!(%app, name, "an image that nobody needs is gone"),
            // Gone meanwhile, or one of it still runs: the next sweep comes after that.
            Err(e) if e.is_missing() || e.is_conflict() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn normal(id: &str) -> String {
    if id.contains(':') { id.to_owned() } else { format!("sha256:{id}") } // Podman leaves it out
}
