//! A container image becomes files of a release. Called by [`super::build`].
//!
//! Read is what `docker save`, `podman save` and `skopeo` write: the archive of Docker (`manifest.json`) or an OCI
//! layout (`index.json`), as a folder or a tar file. Its layers are uncompressed, so that each has the digest that the
//! image's configuration names it by: what two images share is one file, whatever tool compressed it how.
//!
//! Nothing of the archive is believed: names lead nowhere outside, sizes are bounded, every digest is computed.

mod archive;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufReader, Read, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::{
    digest::{Digest, Hasher},
    release::{
        FileEntry, Image, TreePath,
        container::{CONFIG_PATH, MAX_LAYERS},
    },
};
use serde::Deserialize;
use tempfile::TempDir;

use self::archive::Archive;
use super::{ReleaseError, io_error};

/// Largest layer, uncompressed, in bytes: what a few bytes of gzip may grow to.
pub const MAX_LAYER_BYTES: u64 = 64 << 30;
/// Largest document of an image: manifest, index, configuration.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// An image as files of a release.
#[derive(Debug)]
pub struct Unpacked {
    /// What the manifest says of it.
    pub image: Image,
    /// Its files, each with where its content is.
    pub files: Vec<(FileEntry, PathBuf)>,
    /// Whom it runs as, unless its release says otherwise; root without.
    pub user: Option<String>,
    /// The hardware class that it is for, as the box calls it.
    pub hardware: String,
    /// Holds that content.
    pub spool: Arc<TempDir>,
}

/// What is read of an image's configuration (OCI image specification, config.md).
#[derive(Deserialize)]
struct Config {
    architecture: String,
    os: String,
    rootfs: RootFs,
    #[serde(default)]
    config: Defaults,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Defaults {
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// One image of Docker's archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

/// An index or a manifest of OCI: the one lists manifests, the other a configuration and layers.
#[derive(Deserialize)]
struct Oci {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// Puts the one image of an archive or layout into files.
///
/// # Errors
/// What is wrong with it, and how to mend it.
pub fn unpack(path: &Path) -> Result<Unpacked, ReleaseError> {
    let refuse = |problem: String| ReleaseError::Tree { path: path.to_owned(), problem };
    let archive = Archive::open(path)?;
    let (config, layers) = parts(&archive).map_err(refuse)?;
    let text = archive.document(&config, MAX_DOCUMENT_BYTES).map_err(refuse)?;
    let parsed: Config = serde_json::from_slice(&text)
        .map_err(|e| refuse(format!("its configuration {config} is not that of an image: {e}")))?;
    let diff_ids = parsed.rootfs.diff_ids;
    if diff_ids.len() != layers.len() || layers.is_empty() || layers.len() > MAX_LAYERS {
        let (named, held) = (diff_ids.len(), layers.len());
        return Err(refuse(format!(
            "its configuration names {named} layers and it holds {held}; 1 to {MAX_LAYERS} are possible"
        )));
    }
    if parsed.os != "linux" {
        return Err(refuse(format!("it is an image for {}, boxes run linux", parsed.os)));
    }
    let spool =
        Arc::new(tempfile::tempdir().map_err(io_error("make a folder for the layers in", &std::env::temp_dir()))?);
    let config = Digest::of(&text);
    let mut files = vec![keep(spool.path(), CONFIG_PATH, config, &text)?];
    let mut seen = BTreeSet::new();
    for (layer, diff_id) in layers.iter().zip(&diff_ids) {
        if seen.insert(*diff_id) {
            files.push(uncompress(&archive, layer, *diff_id, spool.path())?);
        }
    }
    let image = Image { config, layers: diff_ids };
    let hardware = match parsed.architecture.as_str() {
        "amd64" => "x86_64".into(),
        "arm64" => "aarch64".into(),
        other => other.to_owned(),
    };
    let user = Some(parsed.config.user).filter(|user| !user.is_empty());
    Ok(Unpacked { image, files, user, hardware, spool })
}

/// Names of the configuration and the layers in the archive.
fn parts(archive: &Archive) -> Result<(String, Vec<String>), String> {
    if archive.holds("manifest.json") {
        let text = archive.document("manifest.json", MAX_DOCUMENT_BYTES)?;
        let saved: Vec<Saved> =
            serde_json::from_slice(&text).map_err(|e| format!("its manifest.json is none of an image: {e}"))?;
        let count = saved.len();
        let one: [Saved; 1] = saved.try_into().map_err(|_| format!("it holds {count} images; save one alone"))?;
        let [Saved { config, layers }] = one;
        return Ok((config, layers));
    }
    if !archive.holds("index.json") {
        let mend = "save the image with `docker save -o image.tar NAME` or `skopeo copy ... oci:FOLDER`";
        return Err(format!("it holds neither manifest.json nor index.json, so it is no image; {mend}"));
    }
    let read = |name: &str| -> Result<Oci, String> {
        let text = archive.document(name, MAX_DOCUMENT_BYTES)?;
        serde_json::from_slice(&text).map_err(|e| format!("its {name} is not readable: {e}"))
    };
    let blob = |digest: Digest| format!("blobs/sha256/{}", digest.hex());
    let mut document = read("index.json")?;
    // An index may lead to another; deeper is nothing that a tool writes.
    for _ in 0..4 {
        if let Some(config) = document.config {
            return Ok((blob(config.digest), document.layers.iter().map(|layer| blob(layer.digest)).collect()));
        }
        // Attestations stand beside images, for a platform of their own.
        let real =
            |d: &&Descriptor| d.platform.as_ref().is_none_or(|p| p.os != "unknown" && p.architecture != "unknown");
        let found: Vec<&Descriptor> = document.manifests.iter().filter(real).collect();
        let [one] = found[..] else {
            let mend = "save the one that the boxes run: skopeo copy --override-arch ...";
            return Err(format!("it lists {} images; {mend}", found.len()));
        };
        document = read(&blob(one.digest))?;
    }
    Err("its indexes lead to no image".into())
}

/// Writes what was read already.
fn keep(spool: &Path, path: &str, digest: Digest, content: &[u8]) -> Result<(FileEntry, PathBuf), ReleaseError> {
    let file = spool.join(digest.hex());
    std::fs::write(&file, content).map_err(io_error("write", &file))?;
    entry(path, digest, content.len() as u64, file)
}

fn entry(path: &str, digest: Digest, size: u64, file: PathBuf) -> Result<(FileEntry, PathBuf), ReleaseError> {
    Ok((FileEntry { path: TreePath::try_from(path.to_owned())?, digest, size, executable: false }, file))
}

/// Writes a layer as the tar file that it is, whatever it is compressed with.
fn uncompress(
    archive: &Archive,
    name: &str,
    diff_id: Digest,
    spool: &Path,
) -> Result<(FileEntry, PathBuf), ReleaseError> {
    let refuse = |problem: String| ReleaseError::Tree { path: archive.path().to_owned(), problem };
    let to = spool.join(diff_id.hex());
    let content = archive.read(name).map_err(refuse)?;
    let file = File::create(&to).map_err(io_error("write", &to))?;
    let (digest, size) = copy(plain(content).map_err(|e| refuse(format!("layer {name} cannot be read: {e}")))?, file)
        .map_err(|e| refuse(format!("layer {name} cannot be unpacked to {}: {e}", spool.display())))?;
    if digest != diff_id {
        let (is, named) = (digest.short(), diff_id.short());
        return Err(refuse(format!(
            "layer {name} has the digest {is} and the image names {named}: it is damaged, save it again"
        )));
    }
    entry(&Image::layer_path(diff_id), diff_id, size, to)
}

/// What a reader holds, uncompressed.
fn plain<'a>(reader: Box<dyn Read + 'a>) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::new(reader);
    let magic = io::BufRead::fill_buf(&mut reader)?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader)));
    }
    if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Ok(Box::new(zstd::Decoder::with_buffer(reader)?));
    }
    Ok(Box::new(reader))
}

fn copy(from: Box<dyn Read + '_>, mut to: File) -> io::Result<(Digest, u64)> {
    let mut from = from.take(MAX_LAYER_BYTES + 1);
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = from.read(&mut buffer)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        to.write_all(bytes)?;
    }
    let (digest, size) = hasher.finish();
    if size > MAX_LAYER_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_LAYER_BYTES} bytes")));
    }
    Ok((digest, size))
}
