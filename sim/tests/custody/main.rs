//! Keys in the hands of people: encrypted files, the ssh-agent, several signers, and what to do when a key is lost or
//! stolen. The programs that ship, the real `openssl`, `ssh-agent` and terminals; no line of it is a double.

mod agent;
mod drills;
mod files;
mod stolen_hub;
mod token;

use std::process::Command;

use anyhow::{Context as _, bail};
use cloudcore::stage::{self, Stage};

/// A folder to work in, and the program.
struct Desk {
    stage: Stage,
    /// What the environment of every command has besides.
    variables: Vec<(&'static str, String)>,
}

impl Desk {
    async fn open() -> anyhow::Result<Desk> {
        Ok(Desk { stage: Stage::open(None, stage::programs().await?, false)?, variables: vec![] })
    }

    fn command(&self, program: &str) -> Command {
        let program = if program == "crossdock" { self.stage.crossdock_program() } else { program.into() };
        let mut command = Command::new(program);
        command.current_dir(self.stage.path("")).stdin(std::process::Stdio::null());
        for name in ["CROSSDOCK_REPO", "CROSSDOCK_PASSPHRASE", "CROSSDOCK_PASSPHRASE_FILE", "SSH_AUTH_SOCK"] {
            command.env_remove(name);
        }
        command.env_remove("CROSSDOCK_PKCS11_MODULE").envs(self.variables.iter().cloned());
        command
    }

    /// Exit code and everything that was said. A line is what a person could type; quotes are not needed here.
    fn ran(&self, line: &str) -> anyhow::Result<(i32, String)> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (program, args) = words.split_first().context("an empty line")?;
        let output = self.command(program).args(args).output().with_context(|| format!("start {program}"))?;
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        Ok((output.status.code().unwrap_or(-1), said))
    }

    fn run(&self, line: &str) -> anyhow::Result<String> {
        match self.ran(line)? {
            (0, said) => Ok(said),
            (code, said) => bail!("{line}: exit code {code}: {said}"),
        }
    }

    /// As [`Desk::run`], and it must fail with this.
    fn refused(&self, line: &str, why: &str) -> anyhow::Result<()> {
        match self.ran(line)? {
            (0, said) => bail!("{line}: it was not refused: {said}"),
            (_, said) if said.contains(why) => Ok(()),
            (code, said) => bail!("{line}: exit code {code}, and not a word of {why:?}: {said}"),
        }
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.stage.path(name);
        std::fs::create_dir_all(path.parent().context("a folder")?)?;
        Ok(std::fs::write(path, text)?)
    }

    fn read(&self, name: &str) -> anyhow::Result<String> {
        std::fs::read_to_string(self.stage.path(name)).with_context(|| format!("read {name}"))
    }

    /// A release of files alone.
    fn release(&self, version: &str) -> anyhow::Result<()> {
        self.write("app/files/model", version)?;
        let yaml =
            format!("apiVersion: crossdock.io/v1\napp: model\nversion: {version}\nartifacts: [{{source: files}}]\n");
        self.write("app/release.yaml", &yaml)
    }
}
