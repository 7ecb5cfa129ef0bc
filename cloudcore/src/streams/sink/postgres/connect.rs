//! Connections: address, password, TLS.

use std::{sync::Arc, time::Duration};

use proto::env::WallClock;
use tokio::task::JoinHandle;
use tokio_postgres::{
    Client, NoTls,
    config::{Host, SslMode},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::words;
use crate::{
    roots,
    streams::config::{PostgresAddress, StreamsConfig},
};

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// A server that is gone without a word is noticed within about half a minute.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const UNANSWERED: Duration = Duration::from_secs(25);

/// A connection. Dropping it closes it, and with it whatever was not committed.
pub(super) struct Link {
    pub(super) client: Client,
    /// The last position that was given; kept by the writer.
    pub(super) position: i64,
    driver: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Where it is, without secrets.
pub(super) fn describe(address: &PostgresAddress) -> String {
    let config = address.config();
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => String::new(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let user = config.get_user().unwrap_or_default();
    format!("Postgres {user}@{host}:{port}/{}", config.get_dbname().unwrap_or(user))
}

/// Connects; the error is for people.
pub(super) async fn connect(
    address: &PostgresAddress,
    settings: &StreamsConfig,
    wall: &Arc<dyn WallClock>,
) -> Result<Link, String> {
    let mut config = address.config().clone();
    if let Some(password) = settings.password().map_err(|e| format!("the password file cannot be read: {e}"))? {
        config.password(password);
    }
    config
        .application_name("crossdock")
        .connect_timeout(CONNECT_PATIENCE)
        .keepalives_idle(KEEPALIVE_IDLE)
        .tcp_user_timeout(UNANSWERED);
    let (client, driver) = if config.get_ssl_mode() == SslMode::Require {
        let tls = MakeRustlsConnect::new(roots::client_config(settings.ca.as_deref(), "streams.ca", wall)?);
        let (client, connection) = config.connect(tls).await.map_err(|e| words(&e))?;
        (client, tokio::spawn(drive(connection)))
    } else {
        config.ssl_mode(SslMode::Disable);
        let (client, connection) = config.connect(NoTls).await.map_err(|e| words(&e))?;
        (client, tokio::spawn(drive(connection)))
    };
    Ok(Link { client, position: 0, driver })
}

async fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if let Err(error) = connection.await {
        tracing::debug!(why = words(&error), "a connection to Postgres ended");
    }
}
