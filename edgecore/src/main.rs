//! Crossdock's edge agent: the program.
//!
//! Exit codes: 0 done, 1 error, 2 usage, 3 no node here or its state is not usable, 4 the hub refused,
//! 7 hub unreachable.

#![forbid(unsafe_code)]

use std::{
    future::Future,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use edgecore::{
    agent::{Agent, AgentError},
    config::{DEFAULT_DATA_DIR, Paths},
    driver::{self, container::ContainerDriver, kinds::Kinds, process::ProcessDriver},
    facts::Facts,
    gpu::{self, GpuWatch, helper::NvmlProbe},
    join::{self, JoinError, JoinOptions},
    settings::Settings,
    status::{self, StatusError},
    unit,
};
use proto::{
    broker::{Broker, BrokerUrl, ProxyUrl},
    env::Env,
    token::Token,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Crossdock's edge agent: runs the releases that its hub assigns, and goes on without it.
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit codes: 0 done, 1 error, 2 usage, 3 no node here, 4 refused, 7 hub unreachable")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Admit this box to a fleet; again after a reinstall
    Join(Box<JoinArgs>),
    /// Run the agent
    Run(DataArgs),
    /// Say what runs here and why it does not, hub or not
    Status(StatusArgs),
    /// Write the systemd unit and start it
    Install(InstallArgs),
}

#[derive(Debug, Args)]
struct DataArgs {
    /// Folder of the agent's state
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR, env = "EDGECORE_DATA", value_parser = absolute)]
    data: PathBuf,
}

/// What the agent starts works in folders of its own: a relative path would mean another folder there.
fn absolute(path: &str) -> io::Result<PathBuf> {
    std::path::absolute(path)
}

#[derive(Debug, Args)]
struct JoinArgs {
    /// Addresses of the hub, HOST or HOST:PORT
    #[arg(required = true, value_name = "HUB")]
    hub: Vec<String>,
    /// Token of `crossdock token create`
    #[arg(long, env = "CROSSDOCK_JOIN_TOKEN", hide_env_values = true, required_unless_present = "token_file")]
    token: Option<String>,
    /// File that holds the token
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// MQTT broker to reach the hub through where UDP does not get through, such as mqtts://HOST:8883; again for
    /// more of them. What each node has of its own (user, files, proxy) can stand in agent.toml instead
    #[arg(long, value_name = "URL")]
    broker: Vec<BrokerUrl>,
    #[command(flatten)]
    broker_access: BrokerAccess,
    /// Name to ask for (default: the host name)
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    data: DataArgs,
}

/// How the brokers of `--broker` are reached.
#[derive(Debug, Args)]
struct BrokerAccess {
    /// User at the broker
    #[arg(long, value_name = "USER", requires = "broker")]
    broker_user: Option<String>,
    /// File that holds that user's password
    #[arg(long, value_name = "FILE", requires = "broker", value_parser = absolute)]
    broker_password_file: Option<PathBuf>,
    /// Certificates (PEM) of the authority that the broker's is signed by; with mqtts:// and wss://
    #[arg(long, value_name = "FILE", requires = "broker", value_parser = absolute)]
    broker_ca: Option<PathBuf>,
    /// Certificate (PEM) to show to the broker
    #[arg(long, value_name = "FILE", requires = "broker", value_parser = absolute)]
    broker_certificate: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "broker", value_parser = absolute)]
    broker_key: Option<PathBuf>,
    /// HTTP proxy that lets the connection out (CONNECT), such as http://HOST:3128
    #[arg(long, value_name = "URL", requires = "broker")]
    broker_proxy: Option<ProxyUrl>,
}

impl BrokerAccess {
    fn brokers(self, urls: Vec<BrokerUrl>) -> anyhow::Result<Vec<Broker>> {
        let broker = |url: BrokerUrl| {
            let tls = url.scheme.is_tls();
            let broker = Broker {
                user: self.broker_user.clone(),
                password_file: self.broker_password_file.clone(),
                // Several may be of both kinds.
                ca: self.broker_ca.clone().filter(|_| tls),
                certificate: self.broker_certificate.clone().filter(|_| tls),
                key: self.broker_key.clone().filter(|_| tls),
                proxy: self.broker_proxy.clone(),
                ..Broker::at(url)
            };
            broker.check().map_err(|wrong| anyhow::anyhow!("--broker {}: {}", broker.url, wrong.problem))?;
            Ok(broker)
        };
        urls.into_iter().map(broker).collect()
    }
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// How to print it
    #[arg(short, long, default_value = "text")]
    output: Output,
    /// Only whether the agent runs: exit code 1 when not. For health checks of containers
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Args)]
struct InstallArgs {
    /// Print the unit instead of installing it
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    data: DataArgs,
}

fn main() -> ExitCode {
    // The hidden helpers come first: they must stay small and must not start a runtime.
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|a| a.to_str()) {
        Some("shim") => return driver::shim::main(args),
        Some("exec") => return driver::exec::main(args),
        Some("gpu") => return gpu::helper::main(args),
        _ => {}
    }
    let cli = Cli::parse();
    log();
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgecore: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Lines on standard error. `CROSSDOCK_LOG` holds a level, or levels by module such as `info,edgecore=debug`:
/// no expressions, whose machinery would cost the agent a tenth of its memory.
fn log() {
    let wanted = std::env::var("CROSSDOCK_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let lines = tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    let levels = wanted.unwrap_or_else(|| Targets::new().with_default(tracing::Level::INFO));
    tracing_subscriber::registry().with(lines.with_filter(levels)).init();
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match (error.downcast_ref::<AgentError>(), error.downcast_ref::<JoinError>()) {
        (Some(AgentError::Config(_)), _) => 3,
        (_, Some(JoinError::Address { .. })) => 2,
        (_, Some(JoinError::Refused { .. })) => 4,
        (_, Some(e)) if e.is_unreachable() => 7,
        _ if matches!(error.downcast_ref::<StatusError>(), Some(StatusError::Config(_))) => 3,
        _ => 1,
    }
}

/// One thread for everything, a few for what blocks: the agent is to stay small.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_stack_size(1 << 20)
        .thread_keep_alive(Duration::from_secs(2))
        .build()?;
    let result = runtime.block_on(future);
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

fn execute(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Join(args) => block_on(join(*args)),
        Command::Run(args) => block_on(run(args.data)),
        Command::Status(args) => block_on(status(args)),
        Command::Install(args) => install(args),
    }
}

async fn join(args: JoinArgs) -> anyhow::Result<()> {
    let file = args.token_file;
    let text = match (args.token, &file) {
        (Some(text), _) => text,
        (None, Some(file)) => std::fs::read_to_string(file)
            .map_err(|e| anyhow::anyhow!("could not read the token file {}: {e}", file.display()))?,
        (None, None) => anyhow::bail!("no token: give --token or --token-file"),
    };
    let token: Token = match (text.parse::<Token>(), file) {
        (Err(error), Some(file)) => anyhow::bail!("token file {}: {error}", file.display()),
        (token, _) => token?,
    };
    let env = Env::real()?;
    let data_dir = args.data.data;
    let machine_id = Facts::new(data_dir.clone()).machine_id();
    let brokers = args.broker_access.brokers(args.broker)?;
    let (data, name) = (data_dir.clone(), args.name.clone());
    let options = JoinOptions { data_dir: data, hub: args.hub, token, name, machine_id, brokers };
    let joined = join::join(options, &env).await?;
    println!("joined: this box is node {} of site {}, fleet {}", joined.node, joined.site, joined.fleet);
    if let Some(name) = args.name.filter(|name| *name != joined.node.as_str()) {
        println!("the token, or what this box was before, decides its name: --name {name} counted for nothing");
    }
    let running = status::read(&data_dir, &env).await.is_ok_and(|s| s.running);
    match running {
        true => {
            println!("the agent runs: restart it to make it act on what changed (systemctl restart crossdock-edge)")
        }
        false => println!("next: edgecore install (a systemd unit), or edgecore run --data {}", data_dir.display()),
    }
    Ok(())
}

async fn run(data_dir: PathBuf) -> anyhow::Result<()> {
    let env = Env::real()?;
    let paths = Paths::new(&data_dir);
    let settings = Settings::load(&data_dir)?;
    let containers = ContainerDriver::new(&paths.containers(), settings.containers.sockets, env.clone());
    let driver = Arc::new(Kinds::new(ProcessDriver::new(paths.driver(), env.clone()), containers));
    let gpus = GpuWatch::new(Box::new(NvmlProbe::new()));
    let facts = Facts::new(data_dir.clone()).with_gpus(gpus);
    let agent = Agent::open(&data_dir, env, driver, facts).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tracing::info!(node = %agent.config().node, version = proto::VERSION, "ready");
    let status = status::serve(agent.status(), &paths);
    let running = agent.run(async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down, workloads go on");
    });
    tokio::pin!(running);
    // Without its status the agent still does its work.
    let result = tokio::select! {
        biased;
        result = &mut running => result,
        Err(error) = status => {
            tracing::warn!(%error, "no status is served");
            running.await
        }
    };
    Ok(result?)
}

async fn status(args: StatusArgs) -> anyhow::Result<()> {
    let status = status::read(&args.data.data, &Env::real()?).await?;
    if args.check {
        anyhow::ensure!(status.running, "no agent runs on {}", args.data.data.display());
        println!("node {} runs", status.node);
        return Ok(());
    }
    match args.output {
        Output::Text => print!("{}", status::explain(&status)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
    }
    Ok(())
}

fn install(args: InstallArgs) -> anyhow::Result<()> {
    let data_dir = args.data.data;
    if args.print {
        print!("{}", unit::text(&std::env::current_exe()?, &data_dir)?);
        return Ok(());
    }
    for line in unit::install(&data_dir)? {
        println!("{line}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_folder_is_absolute_whatever_was_given() {
        let here = std::env::current_dir().unwrap();
        for command in [&["run"][..], &["status"], &["join", "hub", "--token", "t"], &["install"]] {
            let args = ["edgecore"].iter().chain(command).chain(&["--data", "box-1"]);
            let data = match Cli::try_parse_from(args).unwrap().command {
                Command::Run(args) => args.data,
                Command::Status(args) => args.data.data,
                Command::Join(args) => args.data.data,
                Command::Install(args) => args.data.data,
            };
            assert_eq!(data, here.join("box-1"), "{command:?}");
        }
    }
}
