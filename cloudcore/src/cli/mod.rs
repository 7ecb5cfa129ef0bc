//! `crossdock`, the command of release engineers and operators.
//!
//! The habits are kubectl's: `get`, `describe`, `apply`, `delete`, `logs`, `-o`, `-l`, `-w`. On a terminal
//! long work shows progress; in a pipeline it prints plain lines. Exit codes: see [`exit`].

/// In place of the one of `std`, which panics when standard output was closed.
macro_rules! println {
    ($($arg:tt)*) => {
        $crate::cli::output::print(&format!("{}\n", format_args!($($arg)*)))
    };
}

pub mod apply;
pub mod audit;
pub mod auth;
pub mod client;
pub mod contexts;
pub mod demo;
pub mod demo_app;
pub mod describe;
pub mod director;
pub mod exec;
pub mod exit;
pub mod get;
mod hidden;
pub mod keys;
pub mod kinds;
pub mod logs;
pub mod node;
pub mod nodes;
pub mod oidc;
pub mod output;
pub mod passphrase;
pub mod promote;
pub mod release;
pub mod rollout;
pub mod root;
pub mod secret;
pub mod streams;
#[cfg(test)]
mod tests;
pub mod token;
pub mod top;
pub mod user;
pub mod webhooks;

use clap::{CommandFactory as _, Parser, Subcommand};
use client::Client;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused or conflict, 5 rollout failed, \
                          6 timed out, 7 hub unreachable, 8 not logged in or not allowed, 9 rollout paused, \
                          10 rollout rolled back.";

/// Releases for the edge: signed here, run there.
#[derive(Debug, Parser)]
#[command(name = "crossdock", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Context to use for this command, whatever CROSSDOCK_* variables say. Default: $CROSSDOCK_CONTEXT, else the one in use.
    #[arg(long, global = true)]
    context: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show objects: nodes, sites, releases, rollouts, jointokens, events
    Get(get::GetArgs),
    /// Show one object in full, with what happened to it
    Describe(describe::DescribeArgs),
    /// Create or update objects from YAML or JSON
    Apply(apply::ApplyArgs),
    /// Delete objects
    Delete(apply::DeleteArgs),
    /// How nodes and their GPUs do at this moment
    #[command(subcommand)]
    Top(top::TopCommand),
    /// Print what a workload wrote
    Logs(logs::LogsArgs),
    /// Run a command in a workload whose release lets you
    Exec(exec::ExecArgs),
    /// Records of the nodes: scans, events, metrics, logs
    #[command(subcommand)]
    Streams(streams::StreamsCommand),
    /// Log in to a hub and remember it as a context
    Login(contexts::LoginArgs),
    /// Forget a login, also what renews it
    Logout {
        /// Its context. Default: the one in use
        name: Option<String>,
    },
    /// Who I am at the hub, and what I may do
    #[command(subcommand)]
    Auth(auth::AuthCommand),
    /// People and programs that use the hub: roles and tokens
    #[command(subcommand)]
    User(user::UserCommand),
    /// Who changed what at the hub, and whether that record is whole
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Choose among several hubs
    #[command(subcommand)]
    Context(contexts::ContextCommand),
    /// Admit boxes to the fleet
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Make, show and list signing keys; what to do when one is lost or stolen
    #[command(visible_alias = "key")]
    Keys(keys::KeysArgs),
    /// Change which keys speak for what
    Root(root::RootArgs),
    /// Build, sign, publish and verify releases
    Release(release::ReleaseArgs),
    /// Secrets for workloads, encrypted to the nodes that need them
    Secret(secret::SecretArgs),
    /// Take releases to nodes
    #[command(subcommand)]
    Rollout(rollout::RolloutCommand),
    /// Start an app again on nodes, under the same waves and budgets as a rollout
    Restart(nodes::RestartArgs),
    /// Restart nodes, under the same waves and budgets
    Reboot(nodes::RebootArgs),
    /// Let rollouts begin nothing on nodes
    Cordon(nodes::Nodes),
    /// Let rollouts begin again
    Uncordon(nodes::Nodes),
    /// Stop all workloads of nodes; what is installed stays
    Drain(nodes::Nodes),
    /// Start them again
    Undrain(nodes::Nodes),
    /// Whether the key of a node is let in
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// The hub's online key, and the roots that list it
    #[command(subcommand)]
    Director(director::DirectorCommand),
    /// Leave an app on a node as it is, whatever is rolled out
    Pin(nodes::PinArgs),
    /// Let rollouts change it again
    Unpin(nodes::PinArgs),
    /// How much of nodes apps may ask for: over-commit, what the system keeps, apps that they are kept for
    Allocate(nodes::AllocateArgs),
    /// Who is told of events: how that goes, what was given up, another chance for it
    #[command(subcommand)]
    Webhooks(webhooks::WebhooksCommand),
    /// Watch a hub and three agents do the main job on this machine
    Demo(demo::DemoArgs),
    /// The program that the demo releases
    #[command(hide = true)]
    DemoApp(demo_app::DemoAppArgs),
    /// A line between an agent and a hub that the demo and the tests can cut
    #[command(hide = true)]
    Relay {
        /// Where the agent sends to.
        listen: std::net::SocketAddr,
        /// The hub.
        hub: std::net::SocketAddr,
    },
    /// Print completions for a shell
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// What commands need besides their own arguments.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Context named on the command line.
    pub name: Option<String>,
}

impl Context {
    /// A client of the hub in use.
    ///
    /// # Errors
    /// When nobody logged in, with what to do.
    pub fn client(&self) -> anyhow::Result<Client> {
        contexts::client(self.name.as_deref())
    }
}

/// Runs one command and returns its exit code. Errors are printed with their whole chain.
pub async fn main(cli: Cli) -> u8 {
    match run(cli).await {
        Ok(()) => 0,
        Err(error) => {
            if !error.is::<exit::CommandExit>() {
                eprintln!("error: {error:#}");
            }
            exit::code(&error)
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let context = Context { name: cli.context };
    if !matches!(cli.command, Command::Login(_) | Command::Logout { .. } | Command::Context(_)) {
        contexts::renew(context.name.as_deref()).await;
    }
    match cli.command {
        Command::Get(args) => get::run(args, &context).await,
        Command::Describe(args) => describe::run(args, &context).await,
        Command::Apply(args) => apply::apply(args, &context).await,
        Command::Delete(args) => apply::delete(args, &context).await,
        Command::Top(command) => top::run(command, &context).await,
        Command::Exec(args) => exec::run(args, &context).await,
        Command::Logs(args) => logs::run(args, &context).await,
        Command::Streams(command) => streams::run(command, &context).await,
        Command::Login(args) => contexts::login(args).await,
        Command::Logout { name } => contexts::logout(name.or(context.name)).await,
        Command::Auth(command) => auth::run(command, &context).await,
        Command::Audit(command) => audit::run(command, &context).await,
        Command::User(command) => user::run(command, &context).await,
        Command::Context(command) => contexts::run(command),
        Command::Token(command) => token::run(command, &context).await,
        Command::Keys(args) => keys::run(args, &context).await,
        Command::Root(args) => root::run(args),
        Command::Release(args) => release::run(args, &context).await,
        Command::Secret(args) => secret::run(args, &context).await,
        Command::Rollout(command) => rollout::run(command, &context).await,
        Command::Restart(args) => nodes::restart(args, &context).await,
        Command::Reboot(args) => nodes::reboot(args, &context).await,
        Command::Cordon(which) => nodes::change(which, &nodes::Change::Cordon(true), &context).await,
        Command::Uncordon(which) => nodes::change(which, &nodes::Change::Cordon(false), &context).await,
        Command::Drain(which) => nodes::change(which, &nodes::Change::Drain(true), &context).await,
        Command::Undrain(which) => nodes::change(which, &nodes::Change::Drain(false), &context).await,
        Command::Node(command) => node::run(command, &context).await,
        Command::Director(command) => director::run(command, &context).await,
        Command::Pin(args) => nodes::pin(args, true, &context).await,
        Command::Unpin(args) => nodes::pin(args, false, &context).await,
        Command::Allocate(args) => nodes::allocate(args, &context).await,
        Command::Webhooks(command) => webhooks::run(command, &context).await,
        Command::Demo(args) => demo::run(args).await,
        Command::DemoApp(args) => demo_app::run(args).await,
        Command::Relay { listen, hub } => {
            let relay = crate::stage::relay::Relay::start(listen, hub).await?;
            output::print(&format!("{}\n", relay.address));
            Ok(relay.ended().await?)
        }
        Command::Completion { shell } => {
            let mut text = vec![];
            clap_complete::generate(shell, &mut Cli::command(), "crossdock", &mut text);
            output::print(&String::from_utf8_lossy(&text));
            Ok(())
        }
    }
}
