//! Commands of people in workloads, end to end: real hub, real agents, real processes, a real terminal.
#![allow(clippy::unwrap_used)] // helpers of tests, too, may end a test

use std::{fs, process::Stdio};

use anyhow::{Context as _, ensure};
use cloudcore::stage::{self, Stage};
use tokio::io::AsyncWriteExt as _;

const APP: &str = "shell";

async fn release(stage: &Stage, version: &str, exec: &str) -> anyhow::Result<()> {
    let folder = stage.path(&format!("v{version}"));
    fs::create_dir_all(folder.join("files"))?;
    fs::write(folder.join("files/about.txt"), version)?;
    let yaml = format!(
        "apiVersion: crossdock.io/v1
app: {APP}
version: {version}
artifacts: [{{ source: files }}]
workload:
  command: /bin/sh
  args: [-c, 'exec sleep 100000']
  env: {{ LINE: '7' }}
  {exec}
  soak: 300ms
  deadline: 20s
  stopGrace: 1s
"
    );
    fs::write(folder.join("release.yaml"), yaml)?;
    stage.publish(&format!("v{version}")).await?;
    stage.roll_out(&format!("{APP}@{version}"), true).await
}

/// Makes a key; the line that a release lists it by.
async fn key(stage: &Stage, name: &str) -> anyhow::Result<String> {
    stage.crossdock(&["keys", "new", name, "--no-passphrase"]).await?;
    let shown = stage.crossdock(&["keys", "show", &format!("{name}.pem")]).await?;
    let line = shown.lines().find_map(|line| line.strip_prefix("openssh"));
    Ok(line.with_context(|| format!("no line of OpenSSH in: {shown}"))?.trim().to_owned())
}

async fn exec(stage: &Stage, key: &str, command: &[&str]) -> anyhow::Result<(i32, String)> {
    let at = ["exec", "box-1/shell", "--key", key, "--"];
    stage.try_run("crossdock", &[&at[..], command].concat()).await
}

/// Whether a process with this in its command line lives.
fn lives(mark: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.starts_with(b"sleep\0") && String::from_utf8_lossy(&line).contains(mark)
    })
}

#[tokio::test]
async fn a_person_runs_commands_where_the_release_lets_them() -> anyhow::Result<()> {
    let mut stage = Stage::open(None, stage::programs().await?, false)?;
    stage.init_hub().await?;
    stage.init_repository().await?;
    stage.join("box-1", "hz-01").await?;
    stage.start_agent("box-1")?;
    let (ann, _) = (key(&stage, "ann").await?, key(&stage, "bob").await?);

    // A release that says nothing lets nobody in.
    release(&stage, "1.0.0", "").await?;
    let (code, said) = exec(&stage, "ann.pem", &["/bin/true"]).await?;
    ensure!(code == 4 && said.contains("lets nobody run commands in it"), "{code}: {said}");

    release(&stage, "2.0.0", &format!("exec: {{ authorizedKeys: ['{ann}'] }}")).await?;
    let script = "echo $CROSSDOCK_APP $LINE; cat about.txt; echo oops >&2; exit 5";
    let (code, said) = exec(&stage, "ann.pem", &["/bin/sh", "-c", script]).await?;
    ensure!(code == 5 && said == "shell 7\n2.0.0oops\n", "{code}: {said}");
    let (code, said) = exec(&stage, "ann.pem", &["/bin/sh", "-c", "kill -TERM $$"]).await?;
    ensure!(code == 128 + 15, "{code}: {said}");
    let (code, said) = exec(&stage, "ann.pem", &["/no/such/program"]).await?;
    ensure!(code == 126 && said.contains("does not exist on this box"), "{code}: {said}");
    let (code, said) = exec(&stage, "bob.pem", &["/bin/true"]).await?;
    ensure!(code == 8 && said.contains("does the release list it"), "{code}: {said}");

    // What is typed goes in, much of it, and its end.
    let mut command =
        stage.command("crossdock", &["exec", "-i", "box-1/shell", "--key", "ann.pem", "--", "/usr/bin/sha256sum"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let much = vec![b'x'; 3 << 20];
    let mut stdin = child.stdin.take().context("its input")?;
    stdin.write_all(&much).await?;
    drop(stdin);
    let output = tokio::time::timeout(stage::PATIENCE, child.wait_with_output()).await??;
    let sum = proto::digest::Digest::of(&much).hex();
    ensure!(String::from_utf8_lossy(&output.stdout).starts_with(&sum), "{output:?}");

    // At a terminal, of its size and kind; Ctrl-C is the command's affair.
    let inner = "test -t 0 && test -t 1 && stty size && echo $TERM && tty";
    let line = format!(
        "stty rows 30 cols 99; {} exec -t box-1/shell --key ann.pem -- /bin/sh -c '{inner}'",
        stage.crossdock_program().display()
    );
    let mut command = stage.command("/usr/bin/script", &["-qec", &line, "/dev/null"]);
    let output = tokio::time::timeout(stage::PATIENCE, command.env("TERM", "vt100").output()).await??;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && text.contains("30 99") && text.contains("vt100") && text.contains("/dev/pts/"),
        "{text}"
    );

    // A person who goes takes the command along, and all that it started.
    let sleeps = "sleep 86461 & sleep 86462";
    let mut child = stage
        .command("crossdock", &["exec", "box-1/shell", "--key", "ann.pem", "--", "/bin/sh", "-c", sleeps])
        .spawn()?;
    stage.wait_until("both sleep", || lives("86461") && lives("86462")).await?;
    child.kill().await?;
    stage.wait_until("neither does", || !lives("86461") && !lives("86462")).await?;

    // Who asked is at the hub, what ran is at the node.
    let audit = stage.crossdock(&["audit", "list", "-o", "json"]).await?;
    ensure!(audit.contains("\"exec\"") && audit.contains("a command in shell"), "{audit}");
    let told = stage.path("box-1.log");
    stage.wait_until("the node says who", || fs::read_to_string(&told).unwrap().contains("ann (")).await?;
    let mut events = String::new();
    for _ in 0..100 {
        events = stage.crossdock(&["get", "events"]).await?;
        if events.contains("CommandRun") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await; // one look to the next
    }
    ensure!(events.contains("CommandRun"), "{events}");

    // Who may not at the hub, may not, whatever their key.
    let viewer = stage.crossdock(&["user", "create", "eve", "--role", "viewer"]).await?;
    let token = viewer.lines().find(|line| !line.contains(' ') && !line.is_empty()).context(viewer.clone())?;
    let mut command = stage.command("crossdock", &["exec", "box-1/shell", "--key", "ann.pem", "--", "/bin/true"]);
    let output = command.env("CROSSDOCK_TOKEN", token).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(8) && said.contains("takes role operator"), "{said}");

    // It is gone.
    stage.kill_agent("box-1").await?;
    let (code, said) = exec(&stage, "ann.pem", &["/bin/true"]).await?;
    ensure!(
        code != 0 && said.contains("not connected") || said.contains("did not answer") || said.contains("failed"),
        "{code}: {said}"
    );
    stage.close().await
}
