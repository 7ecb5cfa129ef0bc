//! A container instead of a process of the box: its image, and what of the box it may see.
//!
//! The image travels as files of the release: its configuration at [`CONFIG_PATH`], each layer uncompressed below
//! [`LAYERS_FOLDER`]. So a layer's digest is the one that the configuration names it by (its *diff ID*, OCI image
//! specification, config.md), and what a box holds of an earlier release is not sent again. No registry is needed.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{FileEntry, ManifestError};
use crate::{digest::Digest, name::Name, units::Bytes};

/// The image's configuration, in the tree.
pub const CONFIG_PATH: &str = "image/config.json";
/// Where layers lie in the tree, each `<digest in hex>.tar`.
pub const LAYERS_FOLDER: &str = "image/layers";
/// Most layers of an image; engines stop at 127.
pub const MAX_LAYERS: usize = 127;

/// A container to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// In a `release.yaml`: an image as `docker save` writes it, or an OCI layout, folder or archive. `release build`
    /// puts it into the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
    /// The image in the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// An image of a registry that the box reaches, pinned: `registry.example/app@sha256:...`. The engine pulls it, by
    /// its own settings of mirrors, proxies and registries without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// Which of the workload's secrets opens to credentials for that registry: a Docker `config.json`
    /// (`{"auths": {"registry.example": {"auth": "..."}}}`), as of Kubernetes' `kubernetes.io/dockerconfigjson`. It is the
    /// engine's alone: the workload is not given it. Agents that do not know it pull without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secret: Option<String>,
    /// What network it sees.
    #[serde(default, skip_serializing_if = "Network::is_bridge")]
    pub network: Network,
    /// Ports of the container that are ports of the box, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Publish>,
    /// Folders of the box that it sees, besides its data at `/crossdock/data`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Files of other apps' releases, such as a model, which stay as they are for as long as the instance lives: see
    /// [`uses`](super::uses).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uses: Vec<Uses>,
    /// Devices of the box, such as `/dev/video0`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Linux capabilities that it keeps, such as `NET_BIND_SERVICE`; all others are dropped.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub capabilities: BTreeSet<String>,
    /// Whether it may write to its root file system. What it writes there is gone with the next start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub writable_root: bool,
    /// Size of `/dev/shm`. Default: the engine's, 64 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm: Option<Bytes>,
}

/// An image whose content is in the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of its configuration: the image ID.
    pub config: Digest,
    /// Digests of its layers, uncompressed, from the base up.
    pub layers: Vec<Digest>,
}

/// What network a container sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Network {
    /// One of the engine's, behind the box's addresses.
    #[default]
    Bridge,
    /// The box's.
    Host,
    /// None.
    None,
}

impl Network {
    fn is_bridge(&self) -> bool {
        *self == Network::Bridge
    }
}

/// A port of the container that is a port of the box, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Publish {
    /// TCP port in the container.
    pub port: u16,
    /// TCP port of the box. Default: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// Address of the box. Default: `127.0.0.1`, nobody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<std::net::IpAddr>,
}

/// A folder that the container sees. Exactly one of `name` and `hostPath`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// A folder of the app's, which stays from release to release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// A folder or file of the box.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// Where it is in the container.
    pub mount_path: String,
    /// Whether the container may only read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// Files of another app's release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Uses {
    /// The app.
    pub app: Name,
    /// Where its files are in the container, read-only.
    pub mount_path: String,
}

impl Image {
    /// Where a layer lies in the tree.
    #[must_use]
    pub fn layer_path(layer: Digest) -> String {
        format!("{LAYERS_FOLDER}/{}.tar", layer.hex())
    }
}

/// Whether a path of the tree is part of an image.
#[must_use]
pub fn is_of_image(path: &str) -> bool {
    path == CONFIG_PATH || path.strip_prefix(LAYERS_FOLDER).is_some_and(|rest| rest.starts_with('/'))
}

impl Container {
    /// Checks what the types do not, for a manifest with these files.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub(super) fn check(&self, files: &[FileEntry]) -> Result<(), ManifestError> {
        let wrong = |problem: String| Err(ManifestError::Workload(problem));
        match (&self.archive, &self.image, &self.registry) {
            (None, Some(image), None) => image.check(files)?,
            (None, None, Some(reference)) => check_reference(reference)?,
            (Some(_), ..) => return wrong("container.archive is for release.yaml; `release build` replaces it".into()),
            _ => return wrong("container needs exactly one of image (release.yaml: archive) and registry".into()),
        }
        if self.pull_secret.is_some() && self.registry.is_none() {
            return wrong("pullSecret is for container.registry; an image in the release needs none".into());
        }
        let clean = |path: &str| {
            path.starts_with('/') && !path.contains(['\0', ':']) && path.split('/').all(|part| part != "..")
        };
        let mounts = self.volumes.iter().map(|v| &v.mount_path).chain(self.uses.iter().map(|u| &u.mount_path));
        let mut seen = BTreeSet::new();
        for path in mounts {
            let path = path.trim_end_matches('/');
            if !clean(path) || path == "/crossdock" || path.starts_with("/crossdock/") {
                return wrong(format!(
                    "mountPath {path:?} must be absolute, not /, not below /crossdock, without .. or ':'"
                ));
            }
            if !seen.insert(path) {
                return wrong(format!("mountPath {path:?} appears twice"));
            }
        }
        for volume in &self.volumes {
            match (&volume.name, &volume.host_path) {
                (Some(_), None) => {}
                (None, Some(path)) if clean(path) => {}
                (None, Some(path)) => return wrong(format!("hostPath {path:?} must be absolute, without .. or ':'")),
                _ => return wrong(format!("volume at {} needs exactly one of name and hostPath", volume.mount_path)),
            }
        }
        if let Some(device) = self.devices.iter().find(|device| !device.starts_with("/dev/") || !clean(device)) {
            return wrong(format!("device {device:?} must be below /dev"));
        }
        let word = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        if let Some(name) = self.capabilities.iter().find(|name| name.is_empty() || !name.chars().all(word)) {
            return wrong(format!("capability {name:?} must be written as NET_BIND_SERVICE is"));
        }
        let mut ports = BTreeSet::new();
        for Publish { port, host_port, .. } in &self.publish {
            let host_port = host_port.unwrap_or(*port);
            if *port == 0 || host_port == 0 || !ports.insert(host_port) {
                return wrong(format!(
                    "port {port} of the container cannot be port {host_port} of the box: 0, or taken twice"
                ));
            }
        }
        if !self.publish.is_empty() && self.network != Network::Bridge {
            return wrong("publish is for network: bridge; the others have no ports of their own".into());
        }
        Ok(())
    }
}

impl Image {
    fn check(&self, files: &[FileEntry]) -> Result<(), ManifestError> {
        let wrong = |problem: String| Err(ManifestError::Workload(problem));
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            return wrong(format!("an image of {} layers; 1 to {MAX_LAYERS} are possible", self.layers.len()));
        }
        let held = |path: &str, digest: Digest| files.iter().any(|f| f.path.as_str() == path && f.digest == digest);
        if !held(CONFIG_PATH, self.config) {
            return wrong(format!("the image's configuration {} is not in the tree", self.config.short()));
        }
        match self.layers.iter().find(|layer| !held(&Image::layer_path(**layer), **layer)) {
            Some(layer) => wrong(format!("layer {} of the image is not in the tree", layer.short())),
            None => Ok(()),
        }
    }
}

/// A reference that names one content for good.
fn check_reference(reference: &str) -> Result<(), ManifestError> {
    let problem = |what: &str| Err(ManifestError::Workload(format!("container.registry {reference:?} {what}")));
    let Some((name, digest)) = reference.split_once('@') else {
        return problem("is not pinned: write name@sha256:..., as `docker inspect` shows in RepoDigests");
    };
    let good = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
    if name.is_empty() || name.len() > 255 || !name.chars().all(good) {
        return problem("has no usable name before the @");
    }
    match digest.parse::<Digest>() {
        Ok(_) => Ok(()),
        Err(_) => problem("has no digest after the @: sha256: and 64 hex digits"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, digest: Digest) -> FileEntry {
        FileEntry { path: path.to_owned().try_into().unwrap(), digest, size: 1, executable: false }
    }

    fn image() -> (Image, Vec<FileEntry>) {
        let (config, layer) = (Digest::of(b"config"), Digest::of(b"layer"));
        let files = vec![file(CONFIG_PATH, config), file(&Image::layer_path(layer), layer)];
        (Image { config, layers: vec![layer, layer] }, files)
    }

    #[test]
    fn every_layer_is_in_the_tree_under_its_digest() {
        let (image, files) = image();
        let container = Container { image: Some(image.clone()), ..Container::default() };
        container.check(&files).unwrap();
        assert!(files.iter().all(|file| is_of_image(file.path.as_str())));
        assert!(!is_of_image("image/layersx") && !is_of_image("bin/run"));
        for missing in 0..files.len() {
            let mut less = files.clone();
            less.remove(missing);
            assert!(container.check(&less).unwrap_err().to_string().contains("not in the tree"));
        }
        let swapped = Image { config: Digest::of(b"other"), ..image };
        assert!(Container { image: Some(swapped), ..Container::default() }.check(&files).is_err());
    }

    #[test]
    fn contradictory_containers_are_refused() {
        let (image, files) = image();
        let text = serde_json::to_value(&image).unwrap();
        let check = |mut fields: serde_json::Value| {
            if fields.get("registry").is_none() && fields.get("archive").is_none() {
                fields["image"] = text.clone();
            }
            serde_json::from_value::<Container>(fields).unwrap().check(&files)
        };
        let pinned = format!("registry.example:5000/a/b@{}", Digest::of(b"x"));
        check(serde_json::json!({ "registry": pinned })).unwrap();
        check(serde_json::json!({ "volumes": [{ "name": "cache", "mountPath": "/cache" }] })).unwrap();
        for bad in [
            serde_json::json!({ "registry": "a:latest" }),
            serde_json::json!({ "registry": "a@sha256:12" }),
            serde_json::json!({ "registry": format!("a b@{}", Digest::of(b"x")) }),
            serde_json::json!({ "archive": "image.tar" }),
            serde_json::json!({ "pullSecret": "registry" }),
            serde_json::json!({ "volumes": [{ "name": "a", "hostPath": "/b", "mountPath": "/c" }] }),
            serde_json::json!({ "volumes": [{ "hostPath": "b", "mountPath": "/c" }] }),
            serde_json::json!({ "volumes": [{ "hostPath": "/b/../etc", "mountPath": "/c" }] }),
            serde_json::json!({ "volumes": [{ "name": "a", "mountPath": "/" }] }),
            serde_json::json!({ "volumes": [{ "name": "a", "mountPath": "/crossdock/data" }] }),
            serde_json::json!({ "volumes": [{ "name": "a", "mountPath": "/c" }, { "name": "b", "mountPath": "/c/" }] }),
            serde_json::json!({ "devices": ["/etc/shadow"] }),
            serde_json::json!({ "capabilities": ["sys admin"] }),
            serde_json::json!({ "publish": [{ "port": 80 }, { "port": 81, "hostPort": 80 }] }),
            serde_json::json!({ "publish": [{ "port": 80 }], "network": "host" }),
        ] {
            assert!(check(bad.clone()).is_err(), "{bad}");
        }
    }
}
