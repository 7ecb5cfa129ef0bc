//! `sim`: runs scenarios and benches, and produces scans.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sim::{bench, load, produce, scenario, swarm};

/// A world of hundreds of hosts allocates all the time, in one thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Crossdock's simulator and benchmarks.
///
/// Exit codes: 0 all was as it must be, 1 it was not, 2 usage.
#[derive(Debug, Parser)]
#[command(name = "sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play a scenario file, or a scenario by name: hub and agents in one process under virtual time.
    Run(scenario::RunArgs),
    /// List the scenarios.
    List,
    /// Play random plans, and make small what fails.
    Swarm(swarm::SwarmArgs),
    /// Play a seed of the swarm again.
    Replay(swarm::ReplayArgs),
    /// Connect many light agents to a real hub, over real sockets.
    Load(load::LoadArgs),
    /// Hand scans to an agent: made up in the shape of a parcel scanner's, or replayed from a file.
    Produce(Box<produce::ProduceArgs>),
    /// Measure the shipped binaries over real sockets.
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// One idle agent: memory, binary, traffic.
    Agent(bench::agent::AgentArgs),
    /// QUIC over UDP and through a broker, and plain MQTT beside it.
    Carrier(bench::carrier::CarrierArgs),
    /// Many agents: connecting, a rollout, the hub's cost, and plain TLS beside it.
    Fleet(bench::fleet::FleetArgs),
    /// Stream records: from producer to sink, beside Mosquitto and NATS JetStream, with kills in between.
    Streams(bench::streams::StreamsArgs),
    /// The simulator: processor time of a day and of a thousand boxes, and ten thousand that reconnect.
    World(bench::world::WorldArgs),
    /// Many real agents: a release in waves, and one whose canary crashes
    Waves(bench::waves::WavesArgs),
    /// Verifying, signing and handshakes, and the bare cryptography beside them.
    Trust(bench::trust::TrustArgs),
    /// Containers: the agent's share of a start, its memory with many, and one layer that changes
    Containers(bench::containers::ContainersArgs),
    /// One pass of the planner over 10,000 nodes with 50 rollouts
    Plan(bench::plan::PlanArgs),
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match Cli::parse().command {
        Command::Run(args) => scenario::run(&args),
        Command::List => scenario::list(),
        Command::Swarm(args) => swarm::swarm(&args),
        Command::Replay(args) => swarm::replay(&args),
        Command::Load(args) => block_on(load::run(args)),
        Command::Produce(args) => block_on(produce::run(*args)),
        Command::Bench { bench: Bench::World(args) } => bench::world::run(&args),
        Command::Bench { bench: Bench::Plan(args) } => bench::plan::run(&args),
        Command::Bench { bench } => block_on(run_bench(bench)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run_bench(bench: Bench) -> anyhow::Result<()> {
    tokio::select! { biased;
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        result = async { match bench {
            Bench::Agent(args) => bench::agent::run(args).await,
            Bench::Carrier(args) => bench::carrier::run(args).await,
            Bench::Fleet(args) => bench::fleet::run(args).await,
            Bench::Trust(args) => bench::trust::run(&args).await,
            Bench::Containers(args) => bench::containers::run(&args).await,
            Bench::Waves(args) => bench::waves::run(args).await,
            Bench::Streams(args) => bench::streams::run(args).await,
            // Virtual time has a runtime of its own.
            Bench::World(args) => bench::world::run(&args),
            Bench::Plan(args) => bench::plan::run(&args),
        } } => result,
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default(); // somebody else's will do as well
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}
