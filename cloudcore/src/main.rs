//! The hub's program: `cloudcore init`, `serve`, `health`, `token`, `audit verify`.
//!
//! Exit codes: 0 ended as asked, 1 failed, 2 wrong command line, 3 configuration or data folder unusable.

#![forbid(unsafe_code)]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use cloudcore::{
    api::{AuthError, Tokens},
    audit::{self, Head},
    config::HubConfig,
    health,
    init::{self, InitArgs, InitError},
    serve,
};
use proto::{env::Env, name::Name};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Crossdock's hub.
#[derive(Debug, Parser)]
#[command(
    name = "cloudcore",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 ended as asked, 1 failed, 2 wrong command line, 3 configuration or data folder unusable."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the data folder of a new hub: keys, certificates, administrator's token, database
    Init(InitArgs),
    /// Run the hub
    Serve {
        /// Data folder, made by init
        #[arg(long, default_value = "/var/lib/cloudcore", value_name = "DIR")]
        data: PathBuf,
    },
    /// Whether the hub of a data folder runs and does its work; exit code 1 when not. For health checks of containers
    Health {
        /// Data folder, made by init
        #[arg(long, default_value = "/var/lib/cloudcore", value_name = "DIR")]
        data: PathBuf,
    },
    /// Make an API token for a user, in place of the one before; valid once the hub was started again. A user that is
    /// new is an administrator; `crossdock user create` makes others
    Token {
        /// Data folder, made by init
        #[arg(long, default_value = "/var/lib/cloudcore", value_name = "DIR")]
        data: PathBuf,
        /// Whom it stands for
        #[arg(default_value = "admin")]
        user: Name,
    },
    /// Look at the audit log of a hub, running or not
    #[command(subcommand)]
    Audit(AuditCommand),
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Whether it is whole: nothing changed, left out or put in; with --head, nothing cut off either
    Verify {
        /// Data folder of the hub, or a copy of its folder audit
        #[arg(default_value = "/var/lib/cloudcore")]
        dir: PathBuf,
        /// An end of the log that was kept elsewhere; may be given several times
        #[arg(long = "head", value_name = "HASH@SEQUENCE")]
        heads: Vec<Head>,
    },
}

/// An error, and how the program ends with it.
struct Failed(u8, anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Failed {
        Failed(1, error.into())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    let outcome = match cli.command {
        Command::Init(args) => make(args).await,
        Command::Serve { data } => run(data).await,
        Command::Health { data } => health::check(&data).await.map_err(Failed::from),
        Command::Token { data, user } => token(data, &user),
        Command::Audit(AuditCommand::Verify { dir, heads }) => verify(&dir, heads),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed(code, error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(code)
        }
    }
}

async fn make(args: InitArgs) -> Result<(), Failed> {
    let (data, keep) = (args.data.clone(), args.keep);
    let config = match init::init(args, &Env::real()?).await {
        Err(InitError::Exists(_)) if keep => {
            println!("there is a hub in {}: left as it is", data.display());
            return Ok(());
        }
        other => other.map_err(|e| Failed(3, e.into()))?,
    };
    let data = config.data_dir.display();
    println!("made the hub of fleet {} in {data}", config.fleet);
    println!("start it:  cloudcore serve --data {data}");
    println!(
        "log in:    crossdock login https://HOST:{} --token-file {} --ca {}",
        config.api_listen.port(),
        config.admin_token().display(),
        config.ca_certificate().display()
    );
    Ok(())
}

async fn run(data: PathBuf) -> Result<(), Failed> {
    let config = HubConfig::load(&data).map_err(|e| Failed(3, e.into()))?;
    let env = Env::real()?;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = async move {
        tokio::select! { biased; _ = term.recv() => {}, _ = int.recv() => {} }
        // Whoever asks twice does not want to wait.
        tokio::spawn(async move {
            tokio::select! { biased; _ = term.recv() => {}, _ = int.recv() => {} }
            std::process::exit(1);
        });
    };
    let ready = |addresses: &serve::Addresses| println!("ready link={} api={}", addresses.link, addresses.api);
    let ended = serve::run(config, env, ready, shutdown).await;
    ended.map_err(|e| Failed(if e.is_unusable_folder() { 3 } else { 1 }, e.into()))
}

fn verify(dir: &Path, heads: Vec<Head>) -> Result<(), Failed> {
    let within = dir.join("audit");
    let folder = if within.is_dir() { within.as_path() } else { dir };
    if !folder.is_dir() {
        let text = format!("{} is no folder; name the hub's data folder, or a copy of its folder audit", dir.display());
        return Err(Failed(3, anyhow::anyhow!(text)));
    }
    let report = audit::log::verify(folder, heads)??;
    if report.torn_bytes > 0 {
        println!("{} bytes at the end are no whole line: the hub mends that with its next line", report.torn_bytes);
    }
    println!("whole, lines {} to {}", report.first, report.head);
    Ok(())
}

fn token(data: PathBuf, user: &Name) -> Result<(), Failed> {
    let unusable = |e: anyhow::Error| Failed(3, e);
    let config = HubConfig::load(&data).map_err(|e| unusable(e.into()))?;
    let mut tokens = match Tokens::load(&config) {
        // Begun anew: whoever may write the data folder is its administrator.
        Err(AuthError::Lost(_)) => Tokens::default(),
        other => other.map_err(|e| unusable(e.into()))?,
    };
    let path = init::issue_token(&config, &mut tokens, user.as_str(), &Env::real()?)?;
    println!("the token of {user} is in {}; start the hub again to make it valid", path.display());
    Ok(())
}
