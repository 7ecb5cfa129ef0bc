//! A key is lost or stolen, against a real hub: the very commands that `crossdock key drill` prints, typed in order.
//! Then the thief tries, and hub and client refuse it by name.

use anyhow::{Context as _, bail, ensure};
use cloudcore::cli::client::Client;
use jiff::Timestamp;
use proto::{
    env::{SystemClock, WallClock as _},
    link::message::{MetadataReply, MetadataRequest},
    tuf::{
        RoleName, SecretKey, TrustedSet, TufError,
        schema::{MetaFile, Offered, RoleKeys, RootMeta, SnapshotMeta, TargetsMeta, TimestampMeta},
        sign::Document,
    },
};

use super::Desk;

/// The fleet: a repository with people behind its keys, a hub, and what a node believes.
struct Fleet {
    desk: Desk,
    hub: Client,
    node: TrustedSet,
}

impl Fleet {
    async fn open() -> anyhow::Result<Fleet> {
        let mut desk = Desk::open().await?;
        desk.stage.init_hub().await?;
        desk.write("pass", "correct horse")?;
        for name in ["root-a", "root-b", "root-c", "targets-a", "targets-b", "pipeline"] {
            desk.run(&format!("crossdock keys new {name} --no-passphrase"))?;
        }
        let keys = "--root-key root-a.pub --root-key root-b.pub --root-key root-c.pub --root-threshold 2 --targets-key targets-a.pub --targets-key targets-b.pub --pipeline-key pipeline.pub";
        desk.run(&format!("crossdock release init repo {keys}"))?;
        desk.release("1.0.0")?;
        desk.run("crossdock release build app/release.yaml --repo repo")?;
        desk.run("crossdock release sign --repo repo --key root-a.pem --key root-b.pem --key targets-a.pem")?;
        desk.stage.crossdock(&["release", "publish", "--repo", "repo", "--key", "pipeline.pem"]).await?;
        let url = format!("https://{}", desk.stage.api_address()?);
        let (token, ca) = (desk.read("hub/admin.token")?, desk.read("hub/ca.pem")?);
        let hub = Client::new(&url, token.trim(), ca.as_bytes())?;
        let reply = hub.metadata(&MetadataRequest::default()).await?;
        let first = reply.roots.first().context("a first root")?;
        let node = TrustedSet::new(first)?.update(&reply, now())?;
        Ok(Fleet { desk, hub, node })
    }

    /// Types what the drill prints. `signers` stand for KEY, one after the other, `pipeline` for PIPELINE-KEY.
    async fn drill(&self, case: &str, key: &str, signers: &[&str], pipeline: &str) -> anyhow::Result<String> {
        let printed = self.desk.run(&format!("crossdock key drill {case} --key {key}.pub --repo repo"))?;
        let mut typed = 0;
        for line in printed.lines().filter_map(|line| line.strip_prefix("     ")) {
            let line = line.replace("PIPELINE-KEY", pipeline);
            let mut args: Vec<String> = line.split(' ').skip(1).map(str::to_owned).collect();
            if line.starts_with("crossdock keys new") && !line.contains("--no-passphrase")
                || line.contains("release sign")
            {
                args.extend(["--passphrase-file".into(), "pass".into()]);
            }
            let each = if line.ends_with(" KEY") { signers } else { &[""][..] };
            for signer in each {
                let filled: Vec<&str> = args.iter().map(|arg| if arg == "KEY" { *signer } else { arg }).collect();
                self.desk.stage.crossdock(&filled).await.with_context(|| format!("in the drill: {line}"))?;
                typed += 1;
            }
        }
        ensure!(typed >= 7, "the drill is not whole: {printed}");
        Ok(printed)
    }

    /// The node asks the hub.
    async fn follow(&mut self) -> anyhow::Result<()> {
        let reply = self.hub.metadata(&MetadataRequest::default()).await?;
        self.node = self.node.update(&reply, now())?;
        Ok(())
    }

    /// What a thief made is refused by the node and by the hub, as signed by an unknown key.
    async fn refuses(&self, thief: &MetadataReply, role: RoleName) -> anyhow::Result<()> {
        match self.node.update(thief, now()) {
            Err(TufError::UnknownKey { role: of, .. }) if of == role => {}
            other => bail!("the node should refuse {role}: {other:?}"),
        }
        let error = self.hub.publish(thief).await.err().context("the hub took what a thief made")?;
        ensure!(error.to_string().contains(&format!("{role} metadata is signed by the unknown key")), "{error:#}");
        let reply = self.hub.metadata(&MetadataRequest::default()).await?;
        ensure!(self.node.update(&reply, now())?.versions() == self.node.versions(), "the hub serves something else");
        Ok(())
    }

    fn key(&self, name: &str) -> anyhow::Result<SecretKey> {
        Ok(SecretKey::from_pem(&self.desk.read(&format!("{name}.pem"))?)?)
    }

    /// A publication of the next versions: targets signed by one key, snapshot and timestamp by another.
    async fn forge(&self, targets_key: &SecretKey, pipeline: &SecretKey, step: u64) -> anyhow::Result<MetadataReply> {
        let mut reply = self.hub.metadata(&MetadataRequest::default()).await?;
        let (was, documents) = (self.node.versions(), self.node.documents());
        let read = |text: Option<String>| text.context("a document");
        let mut targets: TargetsMeta = Offered::parse(&read(documents.targets)?)?.signed;
        targets.version = was.targets + step;
        targets.targets.clear(); // everything is withdrawn
        let text = signed(&targets, &[targets_key])?;
        let mut snapshot: SnapshotMeta = Offered::parse(&read(documents.snapshot)?)?.signed;
        snapshot.version = was.snapshot + step;
        snapshot.meta.insert("targets.json".into(), MetaFile::of(targets.version, &text));
        let snapshot_text = signed(&snapshot, &[pipeline])?;
        let mut timestamp: TimestampMeta = Offered::parse(&read(documents.timestamp)?)?.signed;
        timestamp.version = was.timestamp + step;
        timestamp.meta.insert("snapshot.json".into(), MetaFile::of(snapshot.version, &snapshot_text));
        reply.targets = Some(text);
        reply.snapshot = Some(snapshot_text);
        reply.timestamp = Some(signed(&timestamp, &[pipeline])?);
        Ok(reply)
    }

    /// The next root, in which the thief's own key does everything.
    async fn forge_root(&self, stolen: &SecretKey) -> anyhow::Result<MetadataReply> {
        let mine = SecretKey::from_seed(&[66; 32]);
        let mut reply = self.hub.metadata(&MetadataRequest::default()).await?;
        let mut root: RootMeta = self.node.root().clone();
        root.version += 1;
        root.keys.insert(mine.id(), mine.public());
        root.roles.values_mut().for_each(|keys| *keys = RoleKeys::new(vec![mine.id()], 1));
        reply.roots.push(signed(&root, &[stolen, &mine])?);
        Ok(reply)
    }
}

fn signed<T: proto::tuf::schema::Role>(content: &T, keys: &[&SecretKey]) -> anyhow::Result<String> {
    let mut document = Document::new(content)?;
    keys.iter().for_each(|key| document.sign(key));
    Ok(document.text())
}

fn now() -> Timestamp {
    SystemClock.now()
}

#[tokio::test]
async fn every_drill_shuts_the_thief_out_and_the_fleet_goes_on() -> anyhow::Result<()> {
    let mut fleet = Fleet::open().await?;

    // 1. A root key is lost: the two that are left put another in its place.
    let printed = fleet.drill("lost-root-key", "root-a", &["root-b.pem", "root-c.pem"], "pipeline.pem").await?;
    ensure!(printed.contains("2 that are left can go on"), "{printed}");
    fleet.follow().await?;
    ensure!(fleet.node.versions().root == 2);

    // 2. A root key is stolen. One of three signs nothing alone, before and after.
    let stolen = fleet.key("root-b")?;
    fleet.refuses(&fleet.forge_root(&stolen).await?, RoleName::Root).await?;
    fleet.drill("stolen-root-key", "root-b", &["root-c.pem", "root-2.pem"], "pipeline.pem").await?;
    fleet.follow().await?;
    ensure!(fleet.node.versions().root == 3 && !fleet.node.root().keys.contains_key(&stolen.id()));
    fleet.refuses(&fleet.forge_root(&stolen).await?, RoleName::Root).await?;
    // With the lost one, which somebody found: two of the old keys, and of the new root none.
    let found = fleet.key("root-a")?;
    let mut reply = fleet.forge_root(&stolen).await?;
    let mut root: RootMeta = fleet.node.root().clone();
    root.version += 1;
    reply.roots.pop();
    reply.roots.push(signed(&root, &[&stolen, &found])?);
    fleet.refuses(&reply, RoleName::Root).await?;

    // 3. A targets key is lost, 4. the other is stolen: alone it could withdraw everything.
    let roots = ["root-2.pem", "root-3.pem"];
    fleet.drill("lost-targets-key", "targets-a", &[roots[0], roots[1], "targets-b.pem"], "pipeline.pem").await?;
    fleet.follow().await?;
    fleet.desk.refused("crossdock release sign --repo repo --key targets-a.pem", "nothing is staged")?;
    let (stolen, pipeline) = (fleet.key("targets-b")?, fleet.key("pipeline")?);
    let forged = fleet.forge(&stolen, &pipeline, 1).await?;
    ensure!(fleet.node.update(&forged, now()).is_ok(), "before the revocation it works, or this shows nothing");
    fleet.drill("stolen-targets-key", "targets-b", &[roots[0], roots[1], "targets-4.pem"], "pipeline.pem").await?;
    fleet.follow().await?;
    fleet.refuses(&fleet.forge(&stolen, &pipeline, 1).await?, RoleName::Targets).await?;
    ensure!(fleet.node.targets().len() == 1, "the release is still there");

    // 5. The pipeline's key is lost, 6. its successor is stolen: it can hold back, and jump ahead.
    fleet.drill("lost-pipeline-key", "pipeline", &roots, "").await?;
    fleet.follow().await?;
    let stolen = fleet.key("pipeline-6")?;
    let targets = fleet.desk.run("crossdock release verify --repo repo")?;
    ensure!(targets.contains("model@1.0.0"), "{targets}");
    let ahead = fleet.ahead(&stolen).await?;
    let fooled = fleet.node.update(&ahead, now()).context("before the revocation it works")?;
    fleet.drill("stolen-pipeline-key", "pipeline-6", &roots, "").await?;
    fleet.follow().await?;
    fleet.refuses(&fleet.ahead(&stolen).await?, RoleName::Timestamp).await?;
    let reply = fleet.hub.metadata(&MetadataRequest::default()).await?;
    let back = fooled.update(&reply, now()).context("a node that the thief fooled comes back")?;
    ensure!(back.versions() == fleet.node.versions());

    // And a release goes out as ever.
    fleet.desk.release("2.0.0")?;
    fleet.desk.run("crossdock release build app/release.yaml --repo repo")?;
    fleet.desk.run("crossdock release sign --repo repo --key targets-5.pem --passphrase-file pass")?;
    let publish = ["release", "publish", "--repo", "repo", "--key", "pipeline-7.pem"];
    fleet.desk.stage.crossdock(&publish).await?;
    fleet.follow().await?;
    ensure!(fleet.node.targets().len() == 2 && fleet.node.versions().root == 7);
    fleet.desk.stage.close().await
}

impl Fleet {
    /// The published snapshot under a timestamp far ahead.
    async fn ahead(&self, pipeline: &SecretKey) -> anyhow::Result<MetadataReply> {
        let mut reply = self.hub.metadata(&MetadataRequest::default()).await?;
        let text = reply.timestamp.as_deref().context("a timestamp")?;
        let mut timestamp: TimestampMeta = Offered::parse(text)?.signed;
        timestamp.version += 1_000_000;
        reply.timestamp = Some(signed(&timestamp, &[pipeline])?);
        Ok(reply)
    }
}

#[tokio::test]
async fn a_stolen_online_key_is_worth_nothing_after_its_drill() -> anyhow::Result<()> {
    let fleet = Fleet::open().await?;
    let desk = &fleet.desk;
    let roots = async || -> anyhow::Result<Vec<String>> {
        Ok(serde_json::from_value::<MetadataReply>(fleet.hub.get_value("director", "metadata").await?)?.roots)
    };
    let first = roots().await?;
    let node = TrustedSet::new(first.first().context("a first root")?)?;
    let stolen = SecretKey::from_pem(&desk.read("hub/director/online.pem")?)?;
    let listed = |set: &TrustedSet| set.root().keys.contains_key(&stolen.id());
    ensure!(listed(&node));

    // The hub holds the director's root key, as a new one does: one command.
    let printed = desk.run("crossdock key drill stolen-online-key --repo repo")?;
    ensure!(printed.contains("     crossdock director rekey"), "{printed}");
    let said = desk.stage.crossdock(&["director", "rekey"]).await?;
    ensure!(said.contains("signs since root version 2"), "{said}");
    let second = node.update_root(&roots().await?, now())?;
    ensure!(!listed(&second), "the stolen key is listed");

    // Two people hold it from now on, and none of the hub.
    for name in ["boss-a", "boss-b"] {
        desk.run(&format!("crossdock keys new {name} --no-passphrase"))?;
    }
    let owner = SecretKey::from_pem(&desk.read("hub/director/root.pem")?)?;
    desk.write("owner.pem", &owner.to_pem()?)?;
    desk.stage.crossdock(&["director", "export", "own"]).await?;
    desk.run(&format!(
        "crossdock root rotate --repo own --replace-key root {} boss-a.pub --add-key root boss-b.pub --threshold root 2",
        owner.id()
    ))?;
    desk.run("crossdock release sign --repo own --key owner.pem --key boss-a.pem --key boss-b.pem")?;
    desk.run("crossdock root finish --repo own")?;
    desk.stage.crossdock(&["director", "publish", "own"]).await?;
    std::fs::remove_file(desk.stage.path("hub/director/root.pem"))?;

    // Stolen again: now the commands that are printed, and both sign.
    let stolen = SecretKey::from_pem(&desk.read("hub/director/online.pem")?)?;
    let said = desk.stage.crossdock(&["director", "rekey"]).await?;
    let mut typed = 0;
    for line in said.lines().filter_map(|line| line.strip_prefix("     ")) {
        let signers: &[&str] = if line.ends_with(" KEY") { &["boss-a.pem", "boss-b.pem"] } else { &[""] };
        for signer in signers {
            let filled = line.replace(" KEY", &format!(" {signer}"));
            let args: Vec<&str> = filled.split(' ').skip(1).filter(|arg| !arg.is_empty()).collect();
            desk.stage.crossdock(&args).await.with_context(|| format!("in the drill: {line}"))?;
            typed += 1;
        }
    }
    ensure!(typed == 6, "the drill is not whole: {said}");
    let last = second.update_root(&roots().await?, now())?;
    ensure!(last.versions().root == 4 && !last.root().keys.contains_key(&stolen.id()), "{:?}", last.versions());
    ensure!(desk.stage.crossdock(&["director", "show"]).await?.contains("root version 4"));
    fleet.desk.stage.close().await
}

#[tokio::test]
async fn with_one_root_key_alone_the_drill_says_to_start_over_and_how() -> anyhow::Result<()> {
    let desk = Desk::open().await?;
    desk.write("pass", "correct horse")?;
    desk.run("crossdock release init repo")?;
    desk.run("crossdock release publish --offline --repo repo")?;
    for case in ["lost-root-key", "stolen-root-key"] {
        let printed = desk.run(&format!("crossdock key drill {case} --repo repo"))?;
        ensure!(printed.contains("trust a new repository") && printed.contains("edgecore join"), "{printed}");
    }
    let printed = desk.run("crossdock key drill lost-root-key --repo repo")?;
    let lines = printed.lines().filter_map(|line| line.strip_prefix("     "));
    for line in lines.take_while(|line| !line.contains("PATH")) {
        let asks = line.contains("keys new") || line.contains("release sign");
        desk.run(&format!("{line}{}", if asks { " --passphrase-file pass" } else { "" }))?;
    }
    desk.run("crossdock release publish --offline --repo repo-2 --key pipeline.pem --passphrase-file pass")?;
    // The other keys of a small team are replaced with what lies in its folder.
    for (case, name) in [("stolen-targets-key", "targets-2"), ("stolen-pipeline-key", "pipeline-3")] {
        let printed = desk.run(&format!("crossdock key drill {case} --repo repo"))?;
        for line in printed.lines().filter_map(|line| line.strip_prefix("     ")) {
            let asks = line.contains("keys new") && !line.contains("--no-passphrase") || line.contains("release sign");
            let offline = if line.contains("release publish") { " --offline" } else { "" };
            desk.run(&format!("{line}{offline}{}", if asks { " --passphrase-file pass" } else { "" }))?;
        }
        ensure!(desk.stage.path(&format!("repo/keys/{name}.pem")).exists(), "{printed}");
    }
    desk.refused("crossdock key revoke pipeline-3 --repo repo", "timestamp would have 0 keys")?;
    desk.refused("crossdock key revoke nobody --repo repo", "keys list")?;
    desk.stage.close().await
}
