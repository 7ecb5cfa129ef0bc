//! Keys that stay at the ssh-agent, and a change that is carried between two signers.

use std::process::{Child, Stdio};

use anyhow::{Context as _, ensure};

use super::Desk;

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// An agent in the foreground: it prints where it listens once it does.
fn start(desk: &mut Desk) -> anyhow::Result<Agent> {
    let socket = desk.stage.path("agent.socket");
    let mut command = desk.command("ssh-agent");
    let mut process = command.arg("-D").arg("-a").arg(&socket).stdout(Stdio::piped()).spawn().context("ssh-agent")?;
    std::io::Read::read_exact(process.stdout.as_mut().context("its output")?, &mut [0; 16])?;
    desk.variables.push(("SSH_AUTH_SOCK", socket.display().to_string()));
    Ok(Agent(process))
}

#[tokio::test]
async fn signers_use_their_agents_and_carry_the_change_between_them() -> anyhow::Result<()> {
    let mut desk = Desk::open().await?;
    let _agent = start(&mut desk)?;
    for name in ["ann@desk", "bob@desk"] {
        let status =
            desk.command("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", name]).status()?;
        ensure!(status.success());
        desk.run(&format!("ssh-add -q {name}"))?;
    }
    desk.refused("crossdock keys id ann@desk", "ssh-add")?; // OpenSSH's own form of a secret key
    let id = desk.run("crossdock keys id ann@desk.pub")?;
    ensure!(desk.run("crossdock keys id agent:ann@desk")? == id);
    desk.refused("crossdock keys id agent", "several")?;
    let said = desk.run("crossdock keys show agent")?;
    ensure!(said.contains(id.trim()) && said.contains("SHA256:"), "{said}");

    // Ann's machine has the repository, bob's gets the change as a file.
    desk.run("crossdock keys new ci --no-passphrase")?;
    let keys = "--root-key agent:ann@desk --root-key bob@desk.pub --root-threshold 2 --targets-key agent:ann@desk --targets-key bob@desk.pub --targets-threshold 2 --pipeline-key ci.pub";
    desk.run(&format!("crossdock release init repo {keys}"))?;
    desk.run("crossdock release sign --repo repo --key agent:ann@desk")?;
    desk.run("crossdock release export change.json --repo repo")?;
    desk.run("crossdock release import change.json --repo bobs")?;
    let said = desk.run("crossdock release sign --repo bobs --key agent:bob@desk")?;
    ensure!(said.contains("one theft takes both") && said.contains("2 of 2, enough"), "{said}");
    desk.run("crossdock release export back.json --repo bobs")?;
    let said = desk.run("crossdock release import back.json --repo repo")?;
    ensure!(said.contains("2 signatures"), "{said}");
    desk.run("crossdock release publish --offline --repo repo --key ci.pem")?;

    desk.release("1.0.0")?;
    desk.run("crossdock release build app/release.yaml --repo repo")?;
    desk.refused("crossdock release sign --repo repo --key agent:carl", "holds none")?;
    desk.run("crossdock release sign --repo repo --key agent:ann@desk")?;
    desk.refused("crossdock release publish --offline --repo repo --key ci.pem", "1 of 2 signatures")?;
    desk.run("crossdock release export change.json --repo repo")?;
    let said = desk.run("crossdock release import change.json --repo bobs")?;
    ensure!(said.contains("what is published was taken up") && said.contains("adds     model@1.0.0"), "{said}");
    desk.run("crossdock release sign --repo bobs --key agent:bob@desk")?;
    desk.run("crossdock release export back.json --repo bobs")?;
    desk.run("crossdock release import back.json --repo repo")?;
    desk.run("crossdock release publish --offline --repo repo --key ci.pem")?;
    desk.run("crossdock release verify --repo repo")?;
    desk.stage.close().await
}
