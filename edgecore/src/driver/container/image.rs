//! The image of a release at the engine: there already, or loaded from the release's files, and checked afterwards.
//!
//! It is loaded as an archive that is made while it is sent, an OCI layout that Docker's own `manifest.json` stands
//! beside, so every engine reads it. Each file is hashed on its way: one that is not what was signed ends the load.
//! Docker does not look at layers that it holds below the same ones, so those are left out; an engine that insists on
//! them gets the whole. What no image may be is refused before (`layer`), as is what does not fit on the engine's disk.
//!
//! Each release's image has a name of its own at the engine, [`reference`], by which it is found and later collected.

use std::{
    collections::BTreeMap,
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

use super::{
    api::{Api, ApiError, model::ImageDetails},
    layer,
};
use crate::{
    disk_space,
    fetch::space::{MARGIN_BYTES, people},
    secrets::SecretsError,
};

/// Names of our images begin with this; nobody else's do.
const PREFIX: &str = "crossdock.local/";
/// Bytes that are read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes of a layer that are read at once for a look at its headers.
const HEADER_BYTES: usize = 8 << 10;
/// Chunks on their way to the engine.
const CHUNKS: usize = 8;
/// What Docker says in place of a name.
pub(super) const UNNAMED: &str = "<none>:<none>";
/// How engines say that their disk is full: `ENOSPC`.
const NO_ROOM: &str = "no space left on device";

/// An image is not at the engine, and why.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file of the release is not what was signed.
    #[error("{0}: the release is damaged on disk and will be fetched again")]
    Damaged(String),
    /// What was signed is no image that an engine may get.
    #[error("{0}: release another image")]
    Wrong(String),
    /// The engine has no room for it.
    #[error("{0}; make room there, such as with docker image prune")]
    DiskFull(String),
    /// The engine would not have it.
    #[error("{0}")]
    Engine(String),
    /// Its registry did not hand it out.
    #[error("{message}")]
    Pull {
        /// One word for programs.
        reason: &'static str,
        /// For people, with what to do.
        message: String,
    },
    /// The credentials for its registry cannot be opened.
    #[error(transparent)]
    Secret(#[from] SecretsError),
}

impl From<ApiError> for ImageError {
    fn from(error: ApiError) -> ImageError {
        ImageError::of_engine(error.to_string())
    }
}

impl ImageError {
    pub(super) fn of_engine(message: String) -> ImageError {
        match is_full(&message) {
            true => ImageError::DiskFull(message),
            false => ImageError::Engine(message),
        }
    }

    /// One word for programs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            ImageError::DiskFull(_) => "DiskFull",
            ImageError::Pull { reason, .. } => reason,
            ImageError::Secret(error) => error.reason(),
            _ => "ImageNotLoaded",
        }
    }
}

/// Name of a release's image at the engine.
#[must_use]
pub fn reference(app: &Name, release: Digest) -> String {
    format!("{PREFIX}{app}:{}", tag_of(release))
}

fn tag_of(release: Digest) -> String {
    release.hex().chars().take(32).collect()
}

/// Gives an image of the engine's the release's [`reference`].
pub(super) async fn tag(api: &Api, image: &str, app: &Name, release: Digest) -> Result<(), ApiError> {
    api.tag(image, &format!("{PREFIX}{app}"), &tag_of(release)).await
}

/// Whether an engine says that its disk is full.
pub(super) fn is_full(said: &str) -> bool {
    said.contains(NO_ROOM)
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
        let named = serde_json::from_str::<Config>(&config)
            .map_err(|e| ImageError::Wrong(format!("the configuration of its image is none: {e}")))?;
        if named.rootfs.diff_ids != image.layers {
            let (named, held) = (named.rootfs.diff_ids.len(), image.layers.len());
            return Err(ImageError::Wrong(format!(
                "the configuration of its image names other layers ({named}) than the release holds ({held})"
            )));
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

    /// Layers that the engine gets when it holds the first `held` of them, and how many bytes they are.
    fn sent(&self, held: usize) -> io::Result<BTreeMap<Digest, u64>> {
        let layers = self.image.layers.iter().skip(held);
        layers.map(|layer| Ok((*layer, self.layer(*layer).metadata()?.len()))).collect()
    }

    fn layer(&self, layer: Digest) -> PathBuf {
        self.tree.join(Image::layer_path(layer))
    }

    /// Looks through the layers that the engine gets; how many bytes they are.
    fn check(&self, held: usize) -> Result<u64, ImageError> {
        let unreadable = |e: io::Error| ImageError::Damaged(format!("a layer cannot be read ({e})"));
        let sent = self.sent(held).map_err(unreadable)?;
        for layer in sent.keys() {
            let file = io::BufReader::with_capacity(HEADER_BYTES, File::open(self.layer(*layer)).map_err(unreadable)?);
            layer::check(file).map_err(|e| ImageError::Wrong(format!("layer {} of its image {e}", layer.short())))?;
        }
        Ok(sent.values().sum())
    }

    /// Writes the archive, without the first `held` layers.
    fn write(&self, reference: &str, held: usize, to: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
        let blob = |digest: Digest| format!("blobs/sha256/{}", digest.hex());
        let mut archive = tar::Builder::new(Chunks { to, buffer: Vec::with_capacity(CHUNK_BYTES) });
        for (layer, size) in self.sent(held)? {
            let file = File::open(self.layer(layer))?;
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

/// What of an image's configuration counts here (OCI image specification, config.md).
#[derive(serde::Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(serde::Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
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
            return Ok(tag(api, &id.to_string(), app, release).await?);
        }
    }
    let held = held(api, &files.image).await?;
    let checked = files.clone();
    let bytes = env.blocking.run(move || checked.check(held)).await?;
    has_room(api, bytes).await?;
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

/// Whether the engine's disk holds layers of so many bytes: as the archive in which they come and, beside it, unpacked.
async fn has_room(api: &Api, bytes: u64) -> Result<(), ImageError> {
    let needed = bytes.saturating_mul(2).saturating_add(MARGIN_BYTES);
    let Some(folder) = api.info().await?.docker_root_dir else { return Ok(()) };
    // An engine that is somewhere else has its folder there.
    let Ok(disk) = disk_space::at(Path::new(&folder)) else { return Ok(()) };
    if disk.free_bytes >= needed {
        return Ok(());
    }
    let (needed, free) = (people(needed), people(disk.free_bytes));
    Err(ImageError::DiskFull(format!("the engine needs {needed} at {folder} for the image, and {free} are free")))
}

/// An image, by a name or its ID.
pub(super) async fn find(api: &Api, name: &str) -> Result<Option<ImageDetails>, ImageError> {
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
    read.map_err(|e| ImageError::of_engine(format!("the engine would not load the image: {e}")))?;
    written.map_err(|e| ImageError::Engine(format!("the image could not be handed to the engine: {e}")))
}

/// Names and IDs of our images, of one app or of all. Podman tells of an image that is found all names that it has, also
/// those for other apps.
pub(super) async fn images(api: &Api, app: Option<&Name>) -> Result<BTreeMap<String, String>, ApiError> {
    let pattern = app.map_or_else(|| format!("{PREFIX}*"), |app| format!("{PREFIX}{app}"));
    let begins = app.map_or_else(|| PREFIX.to_owned(), |app| format!("{PREFIX}{app}:"));
    let found = api.images(&pattern).await?;
    let named = found
        .into_iter()
        .flat_map(|image| image.repo_tags.unwrap_or_default().into_iter().map(move |name| (name, image.id.clone())));
    Ok(named.filter(|(name, _)| name.starts_with(&begins)).collect())
}

pub(super) fn normal(id: &str) -> String {
    if id.contains(':') { id.to_owned() } else { format!("sha256:{id}") } // Podman leaves it out
}
