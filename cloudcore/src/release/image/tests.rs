//! Images as tools write them, and as a stranger would.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use proto::release::container::is_of_image;
use tempfile::TempDir;

use super::*;

enum Entry<'a> {
    File(&'a str, Vec<u8>),
    Link(&'a str, &'a str),
}
use Entry::{File as Content, Link};

fn archive(path: &Path, entries: &[Entry<'_>]) -> PathBuf {
    let mut archive = tar::Builder::new(fs::File::create(path).unwrap());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        match entry {
            Content(name, content) => {
                header.set_size(content.len() as u64);
                // As a stranger would write it: the library refuses such names.
                header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
                header.set_cksum();
                archive.append(&header, &content[..]).unwrap();
            }
            Link(name, to) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                archive.append_link(&mut header, name, to).unwrap();
            }
        }
    }
    archive.into_inner().unwrap();
    path.to_owned()
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    serde_json::json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids } })
        .to_string()
        .into_bytes()
}

fn saved(config: &str, layers: &[&str]) -> Vec<u8> {
    serde_json::json!([{ "Config": config, "RepoTags": null, "Layers": layers }]).to_string().into_bytes()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn layers_of(unpacked: &Unpacked) -> Vec<Vec<u8>> {
    let held = |digest: &Digest| unpacked.files.iter().find(|(entry, _)| entry.digest == *digest).unwrap();
    unpacked.image.layers.iter().map(|layer| fs::read(&held(layer).1).unwrap()).collect()
}

#[test]
fn what_tools_write_is_read_and_its_layers_are_the_same_files() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (&b"layer one"[..], &b"layer two"[..]);
    let config = config(&[one, two, one]);
    let docker = archive(
        &folder.path().join("docker.tar"),
        &[
            Content("manifest.json", saved("c.json", &["a/layer.tar", "b/layer.tar", "c/layer.tar"])),
            Content("./c.json", config.clone()),
            Content("a/layer.tar", one.to_vec()),
            Content("b/layer.tar", two.to_vec()),
            Link("c/layer.tar", "../a/layer.tar"),
        ],
    );
    let docker = unpack(&docker).unwrap();
    assert_eq!(layers_of(&docker), [one, two, one]);
    assert_eq!((docker.files.len(), docker.hardware.as_str()), (3, "x86_64"), "each layer is there once");
    assert!(docker.files.iter().all(|(entry, _)| is_of_image(entry.path.as_str())));

    // The same image as an OCI layout in a folder, compressed: the same files.
    let oci = folder.path().join("oci");
    fs::create_dir_all(oci.join("blobs/sha256")).unwrap();
    let blob = |content: &[u8]| {
        let digest = Digest::of(content);
        fs::write(oci.join("blobs/sha256").join(digest.hex()), content).unwrap();
        serde_json::json!({ "mediaType": "x", "digest": digest.to_string(), "size": content.len() })
    };
    let packed = zstd::encode_all(two, 1).unwrap();
    let layers = [blob(&gzip(one)), blob(&packed), blob(one)];
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": blob(&config), "layers": layers }).to_string();
    let attestation = serde_json::json!({
        "digest": Digest::of(b"x").to_string(), "size": 1,
        "platform": { "architecture": "unknown", "os": "unknown" },
    });
    let index =
        serde_json::json!({ "schemaVersion": 2, "manifests": [blob(manifest.as_bytes()), attestation] }).to_string();
    let top = serde_json::json!({ "schemaVersion": 2, "manifests": [blob(index.as_bytes())] }).to_string();
    fs::write(oci.join("index.json"), top).unwrap();
    let oci = unpack(&oci).unwrap();
    let entries = |unpacked: &Unpacked| unpacked.files.iter().map(|(entry, _)| entry.clone()).collect::<Vec<_>>();
    assert_eq!((oci.image.clone(), entries(&oci)), (docker.image.clone(), entries(&docker)));
}

#[test]
fn what_a_stranger_writes_is_refused_with_the_reason() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("secret"), "of the engineer").unwrap();
    let layer = &b"layer"[..];
    let config_of = |layers: &[&[u8]]| Content("c.json", config(layers));
    let refused = |entries: &[Entry<'_>]| unpack(&archive(&at("a.tar"), entries)).unwrap_err().to_string();
    for (entries, why) in [
        (vec![Content("x", vec![])], "neither manifest.json nor index.json"),
        (vec![Content("manifest.json", b"[]".to_vec())], "holds 0 images"),
        (vec![Content("manifest.json", b"{".to_vec())], "none of an image"),
        (vec![Content("manifest.json", saved("../secret", &["l"]))], "lead outside"),
        (vec![Content("manifest.json", saved("/etc/passwd", &["l"]))], "lead outside"),
        (vec![Content("manifest.json", saved("c.json", &["l"])), Link("c.json", "../../etc/passwd")], "does not hold"),
        (vec![Content("manifest.json", saved("c.json", &["l"])), Link("c.json", "c.json")], "in a circle"),
        (vec![Content("manifest.json", saved("c.json", &["l"])), config_of(&[layer])], "does not hold it"),
        (
            vec![Content("manifest.json", saved("c.json", &["l", "l"])), config_of(&[layer])],
            "names 1 layers and it holds 2",
        ),
        (
            vec![
                Content("manifest.json", saved("c.json", &["l"])),
                config_of(&[layer]),
                Content("l", b"other".to_vec()),
            ],
            "it is damaged",
        ),
        (
            vec![Content("manifest.json", saved("c.json", &["l"])), Content("c.json", b"{}".to_vec())],
            "not that of an image",
        ),
    ] {
        let error = refused(&entries);
        assert!(error.contains(why), "{why}: {error}");
    }
    let windows = String::from_utf8(config(&[layer])).unwrap().replace("linux", "windows");
    let error = refused(&[
        Content("manifest.json", saved("c.json", &["l"])),
        Content("c.json", windows.into_bytes()),
        Content("l", layer.to_vec()),
    ]);
    assert!(error.contains("boxes run linux"), "{error}");

    // A folder may hold links, and none leads out of it.
    fs::create_dir(at("layout")).unwrap();
    fs::write(at("layout/manifest.json"), saved("c.json", &["l"])).unwrap();
    std::os::unix::fs::symlink(at("secret"), at("layout/c.json")).unwrap();
    assert!(unpack(&at("layout")).unwrap_err().to_string().contains("leads outside"));
    fs::write(at("whole.tar.gz"), gzip(b"x")).unwrap();
    assert!(unpack(&at("whole.tar.gz")).unwrap_err().to_string().contains("gunzip"));
    fs::write(at("text"), "x".repeat(2000)).unwrap();
    assert!(unpack(&at("text")).unwrap_err().to_string().contains("no tar file"));
}
