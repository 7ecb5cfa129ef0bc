//! The command `crossdock`: kubectl's habits over the hub's REST API.
//!
//! | module | what it holds |
//! |---|---|
//! | [`context`], [`login`] | which hub, and with what token |
//! | [`client`] | the REST API seen from outside |
//! | [`get`], [`describe`], [`apply`], [`token`], [`rollout`], [`logs`] | the commands |
//! | [`kinds`], [`table`], [`output`] | what the kinds are called, how they are shown |
//! | [`keys`], [`release`] | the release engineer's side |
//! | [`demo`], [`demo_app`] | all of it on one machine, and the program that it releases |
//! | [`exit`] | the exit codes, which `crossdock --help` lists too |
//!
//! Results go to standard output, everything else to standard error; progress is drawn only where a
//! person looks. [`run`] is called by the program's `main`.

pub mod apply;
pub mod client;
pub mod context;
pub mod demo;
pub mod demo_app;
pub mod describe;
pub mod exit;
pub mod get;
pub mod keys;
pub mod kinds;
pub mod login;
pub mod logs;
pub mod output;
pub mod release;
pub mod rollout;
pub mod table;
pub mod token;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

pub use self::context::Context;

/// Takes signed releases to the edge, and shows how they fare.
#[derive(Debug, Parser)]
#[command(name = "crossdock", version, about, after_help = exit::HELP, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    context: Context,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Log in to a hub
    Login(login::LoginArgs),
    /// Show or choose the hubs that you logged in to
    Context(login::ContextArgs),
    /// Show objects in short
    Get(get::GetArgs),
    /// Show one object in full, with its events
    Describe(describe::DescribeArgs),
    /// Create or change objects from files
    Apply(apply::ApplyArgs),
    /// Delete objects
    Delete(apply::DeleteArgs),
    /// Make tokens that admit boxes
    Token(token::TokenArgs),
    /// Make keys to sign releases with
    Keys(keys::Args),
    /// Build, sign and publish releases
    Release(release::Args),
    /// Take a release to nodes
    Rollout(rollout::RolloutArgs),
    /// Show the output of an app on a node
    Logs(logs::LogsArgs),
    /// See all of it on this machine: a hub, three agents, good and bad releases
    Demo(demo::DemoArgs),
    #[command(hide = true)]
    DemoApp(demo_app::DemoAppArgs),
    /// Write a completion script for a shell
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Parses the command line, runs it and says how it ended.
pub async fn run() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if exit::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(exit::code(&error) as u8)
        }
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let context = cli.context;
    match cli.command {
        Command::Login(args) => login::login(args, &context).await,
        Command::Context(args) => login::context(args, &context),
        Command::Get(args) => get::run(args, &context).await,
        Command::Describe(args) => describe::run(args, &context).await,
        Command::Apply(args) => apply::apply(args, &context).await,
        Command::Delete(args) => apply::delete(args, &context).await,
        Command::Token(args) => token::run(args, &context).await,
        Command::Keys(args) => keys::run(args).await,
        Command::Release(args) => release::run(args, &context).await,
        Command::Rollout(args) => rollout::run(args, &context).await,
        Command::Logs(args) => logs::run(args, &context).await,
        Command::Demo(args) => demo::run(args).await,
        Command::DemoApp(args) => demo_app::run(args).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "crossdock", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        for line in [
            "get nodes -o wide -l site=hz-01 -w",
            "get node n1 -o json --context a",
            "apply -f a.yaml -f b",
            "delete node a b",
            "token create --site hz-01 --node n1 --uses 1 --ttl 1h --label line=3",
            "rollout start a@1 --to all --wait --timeout 5m",
            "rollout status r1",
            "logs n1/app -f --tail 10",
            "login https://h --token-file t --ca c --name x",
            "completion bash",
        ] {
            let words = std::iter::once("crossdock").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for bad in ["rollout start a --to all", "token create", "logs n1", "get", "rollout start a@1 --to a=,"] {
            assert!(Cli::try_parse_from(std::iter::once("crossdock").chain(bad.split(' '))).is_err(), "{bad}");
        }
    }
}
