//! Images that are not what they say, or do what no image may, signed by people who did not look.

use std::fs;

use anyhow::ensure;
use proto::{digest::Digest, object::UpdatePhase};
use sim::containers::{
    engine::{Engine, Kind, in_own_network},
    image::{self, Entry},
    yard::{self, APP, NODE, Program},
};
use tar::EntryType;

use super::ONE_ENGINE;

const COMMAND: [&str; 2] = ["/bin/sh", "/app/run.sh"];

/// An image, and what must be said of it.
struct Case {
    layers: Vec<Vec<u8>>,
    config: String,
    words: &'static [&'static str],
}

/// An image with one more layer.
fn with(layer: Vec<u8>, words: &'static [&'static str]) -> anyhow::Result<Case> {
    let mut layers = yard::base()?;
    layers.push(layer);
    let config = image::config(&layers, &COMMAND);
    Ok(Case { layers, config, words })
}

fn cases() -> anyhow::Result<Vec<Case>> {
    let file = |name: &'static str| Entry { name, ..Entry::default() };
    let link = |kind, name, target| Entry { name, kind, target, ..Entry::default() };
    // Its configuration names another content for the last layer.
    let mut other = with(image::entries(&[file("a")])?, &["names other layers"])?;
    let last = Digest::of(other.layers.last().unwrap()).to_string();
    other.config = other.config.replace(&last, &Digest::of(b"x").to_string());
    Ok(vec![
        other,
        with(
            image::entries(&[file("../../../../../../../../crossdock-escaped")])?,
            &["crossdock-escaped", "leads out"],
        )?,
        with(
            image::entries(&[link(EntryType::Link, "a", "../../../../../../../etc/shadow")])?,
            &["etc/shadow", "leads out"],
        )?,
        with(image::entries(&[link(EntryType::Link, "a", "/etc/shadow")])?, &["the engine would not load"])?,
        // 1 TiB of nothing, in 2 KiB.
        with(image::sparse("bomb", 1 << 40)?, &["bomb", "1024.0 GiB"])?,
        with(vec![7; 100_000], &["is no tar archive"])?,
    ])
}

/// What the engine holds: images, their layers, and what it unpacks.
async fn held(engine: &Engine) -> anyhow::Result<(String, usize, usize)> {
    let images = engine.docker(&["images", "-aq", "--no-trunc"]).await?;
    let entries = |folder: &str| anyhow::Ok(fs::read_dir(engine.path("data").join(folder))?.count());
    Ok((images, entries("image/overlay2/layerdb/sha256")?, entries("tmp")?))
}

#[tokio::test]
async fn a_hostile_image_stops_nothing_and_leaves_nothing() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("hostile::a_hostile_image_stops_nothing_and_leaves_nothing")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let mut stage = yard::open(&engine).await?;
    yard::release(&stage, &Program::serves("1.0.0")).await?;
    let (first, before) = (yard::running(&engine).await?, held(&engine).await?);
    for (version, Case { layers, config, words }) in (2..).zip(cases()?) {
        let version = format!("{version}.0.0");
        yard::publish_unseen(&stage, &version, &layers, &config).await?;
        yard::order(&stage, &format!("{APP}@{version}")).await?;
        let refused = |node: &proto::object::Node| {
            yard::app(node, APP).is_some_and(|w| {
                w.target.as_ref().is_some_and(|t| t.version.as_str() == version)
                    && w.reason == "ImageNotLoaded"
                    && words.iter().all(|word| w.message.contains(word))
            })
        };
        stage.wait_for_nodes(&format!("{version} is refused: {words:?}"), refused).await?;
        ensure!(yard::running(&engine).await? == first, "{version} disturbed what ran");
        stage.wait_for_nodes("1.0.0 is ready", |node| yard::is_ready(node, "1.0.0")).await?;
    }
    ensure!(!fs::exists("/crossdock-escaped")?, "a file of an image is on the box");

    // Another release is ordered: nothing of those is left, at the engine and on the box's disk.
    yard::order(&stage, &format!("{APP}@1.0.0")).await?;
    stage.wait_for_nodes("1.0.0 is what is wanted", |node| yard::runs(node, "1.0.0", UpdatePhase::Succeeded)).await?;
    let releases = stage.path(NODE).join("apps").join(APP).join("releases");
    stage
        .wait_until("one release is on disk", || fs::read_dir(&releases).is_ok_and(|found| found.count() == 1))
        .await?;
    let after = held(&engine).await?;
    ensure!(after == before, "the engine held {before:?} and holds {after:?}");
    ensure!(yard::running(&engine).await? == first, "it was started again");
    engine.close().await?;
    stage.close().await
}

/// What an image may hold reaches nothing of the box.
#[tokio::test]
async fn links_and_devices_of_an_image_reach_nothing_of_the_box() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("hostile::links_and_devices_of_an_image_reach_nothing_of_the_box")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let mut stage = yard::open(&engine).await?;
    let outside = folder.path().join("outside");
    fs::create_dir(&outside)?;
    fs::write(outside.join("secret"), "of the box")?;
    let (outside, secret) = (outside.display().to_string(), outside.join("secret").display().to_string());
    let through = format!("out{}/escaped", outside);
    let script = format!(
        "cat {secret} /secret && echo READ SECRET
for device in /null-of-the-image /mem /disk; do cat $device > /dev/null && echo READ $device; done
echo done; while true; do sleep 1000; done\n"
    );
    let device = |name, kind, device| Entry { name, kind, device, ..Entry::default() };
    let mut layers = yard::base()?;
    layers.push(image::entries(&[
        Entry { name: "out", kind: EntryType::Symlink, target: "/", ..Entry::default() },
        Entry { name: &through, content: b"by an image", ..Entry::default() },
        Entry { name: "secret", kind: EntryType::Symlink, target: &secret, ..Entry::default() },
        device("mem", EntryType::Char, (1, 1)),
        device("disk", EntryType::Block, (7, 0)),
        Entry { name: "app/run.sh", content: script.as_bytes(), ..Entry::default() },
    ])?);
    yard::publish_unseen(&stage, "1.0.0", &layers, &image::config(&layers, &COMMAND)).await?;
    yard::order(&stage, &format!("{APP}@1.0.0")).await?;
    stage.wait_for_nodes("it runs", |node| yard::runs(node, "1.0.0", UpdatePhase::Succeeded)).await?;
    let logs = stage.crossdock(&["logs", &format!("{NODE}/{APP}")]).await?;
    ensure!(logs.contains("done") && !logs.contains("READ"), "{logs}");
    for device in ["/mem", "/disk"] {
        ensure!(logs.contains(&format!("can't open '{device}': Operation not permitted")), "{logs}");
    }
    let left: Vec<_> = fs::read_dir(&outside)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left == ["secret"], "{left:?}");
    engine.close().await?;
    stage.close().await
}
