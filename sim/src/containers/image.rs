//! Images made of files, from scratch, as `docker save` would write them: no registry is needed.

use std::{io::Write as _, path::Path};

use anyhow::Context as _;
use proto::digest::Digest;

/// A file of a layer.
#[derive(Debug, Clone)]
pub struct LayerFile {
    /// Path without the first slash.
    pub path: String,
    /// Content.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

impl LayerFile {
    /// A file that all may read, and run when it is `executable`.
    #[must_use]
    pub fn new(path: &str, content: impl Into<Vec<u8>>, executable: bool) -> LayerFile {
        LayerFile { path: path.into(), content: content.into(), mode: if executable { 0o755 } else { 0o644 } }
    }
}

/// A layer as an uncompressed tar file.
///
/// # Errors
/// When a path cannot be in one.
pub fn layer(files: &[LayerFile]) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(vec![]);
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(file.content.len() as u64);
        header.set_mode(file.mode);
        archive.append_data(&mut header, &file.path, &file.content[..])?;
    }
    Ok(archive.into_inner()?)
}

/// An entry of a layer as it is, however odd.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Path, up to 100 bytes, that nobody looks at.
    pub name: &'a str,
    /// What it is.
    pub kind: tar::EntryType,
    /// Where a link leads.
    pub target: &'a str,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Content of a file.
    pub content: &'a [u8],
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Entry { name: "", kind: tar::EntryType::Regular, target: "", device: (0, 0), content: b"" }
    }
}

/// A layer of such entries.
///
/// # Errors
/// When a path does not fit.
pub fn entries(entries: &[Entry<'_>]) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(vec![]);
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(entry.kind);
        header.set_size(entry.content.len() as u64);
        header.set_mode(0o755);
        let gnu = header.as_gnu_mut().context("a GNU header")?;
        for (field, text) in [(&mut gnu.name, entry.name), (&mut gnu.linkname, entry.target)] {
            field.get_mut(..text.len()).context("a path of at most 100 bytes")?.copy_from_slice(text.as_bytes());
        }
        header.set_device_major(entry.device.0)?;
        header.set_device_minor(entry.device.1)?;
        header.set_cksum();
        archive.append(&header, entry.content)?;
    }
    Ok(archive.into_inner()?)
}

/// A layer with a sparse file of so many bytes, all of them holes, as GNU tar writes it (format 0.1).
///
/// # Errors
/// None that can be.
pub fn sparse(name: &str, bytes: u64) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(vec![]);
    let size = bytes.to_string();
    let records = [
        ("GNU.sparse.size", &*size),
        ("GNU.sparse.numblocks", "1"),
        ("GNU.sparse.map", "0,0"),
        ("GNU.sparse.name", name),
    ];
    archive.append_pax_extensions(records.map(|(key, value)| (key, value.as_bytes())))?;
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, &b""[..])?;
    Ok(archive.into_inner()?)
}

/// A layer with Debian's static busybox under the names of a shell and its friends.
///
/// # Errors
/// When busybox is not installed.
pub fn busybox() -> anyhow::Result<Vec<u8>> {
    let content = std::fs::read("/bin/busybox").context("busybox-static is not installed")?;
    let mut archive = tar::Builder::new(vec![]);
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    archive.append_data(&mut header, "bin/busybox", &content[..])?;
    for name in ["sh", "httpd", "sleep", "cat", "echo", "id", "touch", "dd", "wget", "ls", "env", "tail"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        archive.append_link(&mut header, format!("bin/{name}"), "busybox")?;
    }
    Ok(archive.into_inner()?)
}

/// The configuration of an image of these layers that runs `command`.
#[must_use]
pub fn config(layers: &[Vec<u8>], command: &[&str]) -> String {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Cmd": command, "Env": ["PATH=/bin"], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
}

/// Writes an image as `docker save` does.
///
/// # Errors
/// When the file cannot be written.
pub fn save(path: &Path, layers: &[Vec<u8>], config: &str) -> anyhow::Result<()> {
    let mut archive = tar::Builder::new(std::fs::File::create(path)?);
    let mut append = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content)
    };
    let name = |content: &[u8]| format!("blobs/sha256/{}", Digest::of(content).hex());
    for layer in layers {
        append(&name(layer), layer)?;
    }
    append(&name(config.as_bytes()), config.as_bytes())?;
    let names: Vec<String> = layers.iter().map(|layer| name(layer)).collect();
    let saved = serde_json::json!([{ "Config": name(config.as_bytes()), "RepoTags": null, "Layers": names }]);
    append("manifest.json", saved.to_string().as_bytes())?;
    archive.into_inner()?.flush()?;
    Ok(())
}
