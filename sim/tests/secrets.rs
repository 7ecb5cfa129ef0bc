//! Secrets, end to end: real hub, real agents, real processes, and Debian's `age` as judge.
//!
//! Every step is a command that somebody could type. The test runs in a mount namespace of its own, in which it may be
//! another boot, and what an agent mounts goes with it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use cloudcore::stage::{self, Stage};
use proto::object::{Node, UpdatePhase, WorkloadStatus};

/// Set in the test that has a mount namespace of its own.
const INSIDE: &str = "CROSSDOCK_TEST_INSIDE";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const PLAINTEXT: &str = "correct-horse-battery-staple-4711";
const APP: &str = "reader";

/// Runs a program of the system in the stage's folder.
fn system(stage: &Stage, program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(args).current_dir(stage.path("")).output().context(program.to_owned())?;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(output.status.success(), "{program} {}: {said}", args.join(" "));
    Ok(said)
}

/// A release that notes in its data folder what it finds, and no word of the secret.
fn write_release(stage: &Stage, version: &str, secrets: &str) -> anyhow::Result<()> {
    let folder = stage.path(&format!("v{version}"));
    fs::create_dir_all(folder.join("files"))?;
    fs::write(folder.join("files/about.txt"), version)?;
    let note = "cd $CROSSDOCK_DATA && echo $CROSSDOCK_SECRETS > where && \
                { sha256sum < $CROSSDOCK_SECRETS/db || echo none; } > sum.new; mv sum.new sum; exec sleep 100000";
    let yaml = format!(
        "apiVersion: crossdock.io/v1
app: {APP}
version: {version}
artifacts: [{{ source: files }}]
workload:
  command: /bin/sh
  args: [-c, '{note}']
  {secrets}
  soak: 300ms
  deadline: 20s
  stopGrace: 1s
"
    );
    Ok(fs::write(folder.join("release.yaml"), yaml)?)
}

/// Builds, signs and publishes; what the signer was shown comes back.
async fn publish(stage: &Stage, version: &str) -> anyhow::Result<String> {
    stage.crossdock(&["release", "build", &format!("v{version}/release.yaml"), "--repo", "repo"]).await?;
    let shown = stage.crossdock(&["release", "sign", "--repo", "repo"]).await?;
    stage.crossdock(&["release", "publish", "--repo", "repo"]).await?;
    Ok(shown)
}

async fn roll_out(stage: &Stage, version: &str, wait: bool) -> anyhow::Result<String> {
    let release = format!("{APP}@{version}");
    let mut args = vec!["rollout", "start", "--strategy", "all-at-once", &release, "--to", "all"];
    args.extend(wait.then_some("--wait"));
    stage.crossdock(&args).await
}

fn workload(node: &Node) -> Option<&WorkloadStatus> {
    node.status.workloads.get(APP)
}

fn runs(node: &Node, version: &str) -> bool {
    let running = workload(node).and_then(|w| w.running.as_ref());
    running.is_some_and(|r| r.release.version.as_str() == version && r.ready)
}

/// What the workload of a node noted, without the end of the line.
fn noted(stage: &Stage, node: &str, what: &str) -> String {
    let path = stage.path(node).join(format!("apps/{APP}/data/{what}"));
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Whether a file below a folder holds the plaintext.
fn holds_plaintext(folder: &Path) -> Option<PathBuf> {
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().ok()?;
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() {
                let bytes = fs::read(entry.path()).unwrap_or_default();
                if bytes.windows(PLAINTEXT.len()).any(|window| window == PLAINTEXT.as_bytes()) {
                    return Some(entry.path());
                }
            }
        }
    }
    None
}

/// The key that a box shows its technician.
async fn key_of(stage: &Stage, node: &str) -> anyhow::Result<String> {
    let said = stage.run("edgecore", &["status", "--data", node]).await?;
    let key = said.split_whitespace().find(|word| word.starts_with("age1"));
    Ok(key.with_context(|| format!("no key in: {said}"))?.to_owned())
}

/// Everything of a box ends at once: agent, shims and workloads, and what was in memory.
async fn power_off(stage: &mut Stage, node: &str, memory: &Path) -> anyhow::Result<()> {
    stage.kill_agent(node).await?;
    let folder = stage.path(node).to_string_lossy().into_owned();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let at = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let of_box = at.to_string_lossy().starts_with(&folder) || String::from_utf8_lossy(&line).contains(&folder);
        if of_box && pid != std::process::id() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status(); // it may be gone
        }
    }
    let app = memory.parent().context("a folder of the app")?;
    let room = app.parent().context("a folder of the agent")?;
    let _ = Command::new("umount").arg("-l").arg(room).status(); // where the agent mounted it
    if app.exists() {
        fs::remove_dir_all(app)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_secret_reaches_the_nodes_that_need_it_and_nobody_else() -> anyhow::Result<()> {
    const TEST: &str = "a_secret_reaches_the_nodes_that_need_it_and_nobody_else";
    if std::env::var_os(INSIDE).is_none() {
        let mut again = Command::new("unshare");
        again.arg("-m").arg(std::env::current_exe()?).args([TEST, "--exact", "--nocapture"]).env(INSIDE, "1");
        ensure!(again.status()?.success(), "{TEST} failed in its own mounts; its output is above");
        return Ok(());
    }
    let mut stage = Stage::open(None, stage::programs().await?, false)?;
    let boot_id = stage.path("boot-id");
    fs::write(&boot_id, "00000000-0000-4000-8000-000000000001\n")?;
    system(&stage, "mount", &["--bind", &boot_id.to_string_lossy(), BOOT_ID])?;
    stage.init_hub().await?;
    stage.init_repository().await?;
    for node in ["box-1", "box-2"] {
        stage.join(node, "hz-01").await?;
        stage.start_agent(node)?;
    }
    write_release(&stage, "1.0.0", "")?;
    publish(&stage, "1.0.0").await?;
    roll_out(&stage, "1.0.0", true).await?;

    // 1. Sealed to box-1, and to a person. What is seen first is shown, and is what the technician sees.
    fs::write(stage.path("password"), PLAINTEXT)?;
    system(&stage, "age-keygen", &["-o", "person.key"])?;
    let person = system(&stage, "age-keygen", &["-y", "person.key"])?;
    fs::create_dir_all(stage.path("v2.0.0/files"))?;
    let seal = ["secret", "seal", "db", "--repo", "repo", "--app", APP, "--from-file", "password"];
    let more = ["--to", "name=box-1", "--also", person.trim(), "-o", "v2.0.0/files/db.age"];
    let said = stage.crossdock(&[&seal[..], &more].concat()).await?;
    let key = key_of(&stage, "box-1").await?;
    ensure!(said.contains("first time") && said.contains(&key) && !said.contains(PLAINTEXT), "{said}");
    let described = stage.crossdock(&["describe", "node", "box-1"]).await?;
    ensure!(described.contains(&format!("sealingKey: {key}")), "{described}");
    let opened = system(&stage, "age", &["-d", "-i", "person.key", "v2.0.0/files/db.age"])?;
    ensure!(opened == PLAINTEXT, "age opens what we seal: {opened}");

    // 2. Box-1 reads it; box-2 says why it cannot, before its old one stops.
    write_release(&stage, "2.0.0", "secrets: [{ name: db, file: db.age }]")?;
    let shown = publish(&stage, "2.0.0").await?;
    ensure!(shown.contains("adds secret db, sealed to box-1, age1"), "{shown}");
    roll_out(&stage, "2.0.0", false).await?;
    let told = |n: &Node| match n.name() {
        "box-1" => runs(n, "2.0.0") && workload(n).is_some_and(|w| w.phase == UpdatePhase::Succeeded),
        _ => {
            let blocked = |w: &WorkloadStatus| w.phase == UpdatePhase::Blocked && w.reason == "SecretNotForThisNode";
            runs(n, "1.0.0") && workload(n).is_some_and(|w| blocked(w) && w.message.contains("--to"))
        }
    };
    stage.wait_for_nodes("box-1 has it and box-2 says why not", told).await?;
    let sum = system(&stage, "sha256sum", &["password"])?;
    let sum = sum.split_whitespace().next().context("a sum")?.to_owned();
    ensure!(noted(&stage, "box-1", "sum").starts_with(&sum) && noted(&stage, "box-2", "sum") == "none");
    let memory = PathBuf::from(noted(&stage, "box-1", "where"));
    ensure!(fs::read_to_string(memory.join("db"))? == PLAINTEXT);
    let kind = system(&stage, "stat", &["-f", "-c", "%T", &memory.to_string_lossy()])?;
    ensure!(["tmpfs", "ramfs"].contains(&kind.trim()), "{} is on {kind}", memory.display());

    // 3. Nobody else has it: not the hub, no disk of a box, no log of anybody, no repository.
    for name in ["hub", "box-1", "box-2", "repo", "v2.0.0"] {
        ensure!(holds_plaintext(&stage.path(name)).is_none(), "{:?}", holds_plaintext(&stage.path(name)));
    }
    for name in ["hub.log", "box-1.log", "box-2.log"] {
        ensure!(!fs::read_to_string(stage.path(name))?.contains(PLAINTEXT), "{name}");
    }

    // 4. The agent comes and goes, the workload keeps it. The box comes up without a hub, and has it again.
    stage.kill_agent("box-1").await?;
    ensure!(memory.join("db").exists());
    stage.start_agent("box-1")?;
    stage.wait_for_nodes("both are as before", told).await?;
    ensure!(memory.join("db").exists());
    stage.kill_hub().await?;
    power_off(&mut stage, "box-1", &memory).await?;
    ensure!(!memory.exists(), "it survived the power");
    fs::remove_file(stage.path("box-1").join(format!("apps/{APP}/data/sum")))?;
    fs::write(&boot_id, "00000000-0000-4000-8000-000000000002\n")?;
    stage.start_agent("box-1")?;
    let noted_again = stage.path("box-1").join(format!("apps/{APP}/data/sum"));
    stage.wait_until("the workload is back without a hub", || noted_again.exists()).await?;
    ensure!(noted(&stage, "box-1", "sum").starts_with(&sum) && memory.join("db").exists());
    stage.start_hub().await?;

    // 5. The person seals it again, for all: box-2 gets it too.
    fs::create_dir_all(stage.path("v3.0.0/files"))?;
    let reseal = ["secret", "reseal", "v2.0.0/files/db.age", "--repo", "repo", "--identity", "person.key"];
    let more = ["--to", "site=hz-01", "-o", "v3.0.0/files/db.age"];
    stage.wait_for_nodes("both are back", told).await?;
    stage.crossdock(&[&reseal[..], &more].concat()).await?;
    write_release(&stage, "3.0.0", "secrets: [{ name: db, file: db.age }]")?;
    let shown = publish(&stage, "3.0.0").await?;
    ensure!(shown.contains("can be read by MORE than before: box-2"), "{shown}");
    roll_out(&stage, "3.0.0", true).await?;
    ensure!(noted(&stage, "box-2", "sum").starts_with(&sum));
    ensure!(
        !memory.exists() && Path::new(&noted(&stage, "box-1", "where")).join("db").exists(),
        "one release's at a time"
    );
    let listed = stage.crossdock(&["secret", "list", "--repo", "repo", "--node", "box-2"]).await?;
    ensure!(listed.contains("reader@3.0.0") && !listed.contains("reader@2.0.0"), "{listed}");
    let listed = stage.crossdock(&["secret", "list", "v2.0.0"]).await?;
    ensure!(listed.contains("box-1") && !listed.contains("box-2"), "{listed}");

    // 6. What age sealed, an agent opens.
    let keys = [key_of(&stage, "box-1").await?, key_of(&stage, "box-2").await?];
    fs::create_dir_all(stage.path("v4.0.0/files"))?;
    let args = ["-r", &keys[0], "-r", &keys[1], "-o", "v4.0.0/files/db.age", "password"];
    system(&stage, "age", &args)?;
    write_release(&stage, "4.0.0", "secrets: [{ name: db, file: db.age }]")?;
    publish(&stage, "4.0.0").await?;
    roll_out(&stage, "4.0.0", true).await?;
    ensure!(noted(&stage, "box-2", "sum").starts_with(&sum));

    // 7. A box that joins again keeps its key. When it is gone the hub tells another one: nothing is sealed before a
    // person accepts that.
    stage.kill_agent("box-2").await?;
    stage.join("box-2", "hz-01").await?;
    ensure!(key_of(&stage, "box-2").await? == keys[1], "joining again made another key");
    for name in ["sealing", "sealing.bak"] {
        fs::remove_file(stage.path("box-2/identity").join(name))?;
    }
    stage.start_agent("box-2")?;
    let has_other = |n: &Node| {
        let told = n.status.info.as_ref().and_then(|info| info.sealing_key.as_ref());
        n.name() != "box-2" || told.is_some_and(|told| *told != keys[1])
    };
    stage.wait_for_nodes("the hub knows the other key", has_other).await?;
    let again = [&seal[..], &["--to", "site=hz-01", "-o", "again.age"]].concat();
    let (code, said) = stage.try_run("crossdock", &again).await?;
    ensure!(code == 4 && said.contains(&keys[1]) && said.contains("--accept-new-key box-2"), "{code}: {said}");
    ensure!(!said.contains("--accept-new-key box-1") && !stage.path("again.age").exists(), "{said}");
    let other = key_of(&stage, "box-2").await?;
    let said = stage.crossdock(&[&again[..], &["--accept-new-key", "box-2"]].concat()).await?;
    ensure!(said.contains(&other) && stage.path("again.age").exists(), "{said}");
    stage.crossdock(&again).await?;
    // By hand no hub is asked.
    let by_hand = format!("box-9={other}");
    let alone = ["--recipient", &by_hand, "-o", "alone.age", "--context", "nowhere"];
    stage.crossdock(&[&seal[..], &alone].concat()).await?;

    // 8. What is stopped leaves nothing in memory.
    let memory = PathBuf::from(noted(&stage, "box-1", "where"));
    ensure!(memory.exists());
    stage.crossdock(&["drain", "box-1"]).await?;
    stage.wait_until("its secrets are gone", || !memory.exists()).await?;
    let rooms = ["box-1", "box-2"].map(|node| PathBuf::from(noted(&stage, node, "where")));
    stage.close().await?;
    for room in rooms.iter().filter_map(|memory| memory.parent()?.parent()) {
        let _ = Command::new("umount").arg("-l").arg(room).status(); // where the agent mounted it
        fs::remove_dir_all(room)?;
    }
    Ok(())
}
