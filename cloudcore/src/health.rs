//! `cloudcore health`: whether the hub of a data folder does its work. For a container engine, which asks inside the
//! hub's own container, where there is no shell and no curl.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail};

use crate::{bounded, cli::client::Client, config::HubConfig, serve::Addresses};

/// How long the hub may take to answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// Largest files that are read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Asks the hub of `data_dir` at its API whether it is ready, as anybody may.
///
/// # Errors
/// When it does not run, does not answer within a few seconds, or says that it is not ready.
pub async fn check(data_dir: &Path) -> anyhow::Result<()> {
    let config = HubConfig::load(data_dir)?;
    let text = bounded::read_file(&config.addresses(), MAX_BYTES)
        .with_context(|| format!("no hub runs on {}: it would have said where it listens", data_dir.display()))?;
    let addresses: Addresses = serde_json::from_str(&text).context("read the hub's addresses")?;
    let ca = bounded::read_file(&config.ca_certificate(), MAX_BYTES).context("read the hub's CA")?;
    let client = Client::new(&format!("https://{}", reachable(addresses.api)), "", ca.as_bytes())?;
    match tokio::time::timeout(PATIENCE, client.ready()).await {
        Ok(answer) => answer,
        Err(_) => bail!("the hub at {} did not answer within {PATIENCE:?}", addresses.api),
    }
}

/// Where a server on this machine is reached that listens at `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use proto::env::Env;

    use super::*;

    #[tokio::test]
    async fn a_hub_that_does_not_run_is_not_healthy() {
        let folder = tempfile::tempdir().unwrap();
        let error = check(folder.path()).await.unwrap_err().to_string();
        assert!(error.contains("hub.yaml is not there"), "{error}");
        let config = HubConfig::new(folder.path(), "hz".parse().unwrap());
        config.save().unwrap();
        let ca = crate::ca::Ca::create(folder.path(), &config.fleet, &Env::real().unwrap()).unwrap();
        std::fs::write(config.ca_certificate(), ca.pem()).unwrap();
        let error = check(folder.path()).await.unwrap_err().to_string();
        assert!(error.contains("no hub runs"), "{error}");
        // Killed, it left its addresses behind; port 1 is nobody's.
        std::fs::write(config.addresses(), r#"{"link": "0.0.0.0:1", "api": "0.0.0.0:1"}"#).unwrap();
        let error = check(folder.path()).await.unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:1 does not answer"), "{error}");
    }
}
