//! The program that the demo releases: a small scan counter with an HTTP endpoint.
//!
//! It is this very executable, copied into a release and started by an agent as
//! `bin/scan-counter demo-app serve`. It listens on a free loopback port, so several may run on one
//! machine, writes the port to its data folder, and answers `GET /healthz` with its version and count.
//! `demo-app check` is its exec probe. `--crash` is the bad release of the demo.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// `crossdock demo-app`.
#[derive(Debug, clap::Args)]
pub struct DemoAppArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Serve.
    Serve {
        /// Version to answer with.
        #[arg(long)]
        version: String,
        /// Work for a moment, then fail.
        #[arg(long)]
        crash: bool,
    },
    /// Ask the one that serves whether it is well and of this version.
    Check {
        /// Version to expect.
        #[arg(long)]
        version: String,
    },
}

fn port_file() -> anyhow::Result<PathBuf> {
    let folder = std::env::var_os("CROSSDOCK_DATA").context("CROSSDOCK_DATA is not set: an agent sets it")?;
    Ok(PathBuf::from(folder).join("port"))
}

/// Serves, or asks the one that serves.
///
/// # Errors
/// When the port cannot be bound or the answer is not the expected one.
pub async fn run(args: DemoAppArgs) -> anyhow::Result<()> {
    match args.action {
        Action::Serve { version, crash } => serve(&version, crash).await,
        Action::Check { version } => check(&version).await,
    }
}

async fn serve(version: &str, crash: bool) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("bind a loopback port")?;
    let port = listener.local_addr()?.port();
    proto::durable::write(&port_file()?, port.to_string().as_bytes(), 0o644)?;
    println!("scan-counter {version} listens on port {port}");
    if crash {
        bail!("lane table is missing (this release is broken on purpose)");
    }
    let mut answered = 0_u64;
    loop {
        let (stream, _) = listener.accept().await?;
        answered += 1;
        let body = format!("{{\"version\":\"{version}\",\"answered\":{answered}}}\n");
        // A slow or broken peer costs one attempt, not the service.
        let _ = tokio::time::timeout(Duration::from_secs(2), answer(stream, &body)).await;
    }
}

async fn answer(mut stream: TcpStream, body: &str) -> std::io::Result<()> {
    let mut request = [0; 1024];
    let _ = stream.read(&mut request).await?;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

async fn check(version: &str) -> anyhow::Result<()> {
    let file = port_file()?;
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let port: u16 = text.trim().parse().context("the port file does not hold a port")?;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.context("connect to the service")?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut reply = String::new();
    stream.take(4096).read_to_string(&mut reply).await?;
    if reply.contains(&format!("\"version\":\"{version}\"")) {
        Ok(())
    } else {
        bail!("expected version {version}, got: {}", reply.lines().last().unwrap_or("nothing"))
    }
}
