//! The API on a TCP port: TLS with the hub's own certificate, renewed in time, drained at the end.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use axum_server::{
    Handle,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use hyper_util::rt::TokioTimer;
use jiff::Timestamp;
use proto::{
    env::Env,
    identity::{TlsClock, crypto_provider},
    watch,
};

use super::door::Door;
use crate::{
    ca::{Ca, CaError, ServerIdentity},
    hub::Hub,
};

/// How long a client may take to send the head of a request (for the handshake axum-server has the same).
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once; each holds a file descriptor. More are refused and come again.
const MAX_CONNECTIONS: usize = 512;
/// Of these, from one address: one host alone does not shut the others out.
const MAX_CONNECTIONS_SOURCE: usize = 256;
/// Buffer for what HTTP/1 sends as a head, in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Requests at the same time over one connection of HTTP/2.
const MAX_STREAMS: u32 = 256;
/// How long what is sent may stay unacknowledged, in milliseconds.
const USER_TIMEOUT_MS: u32 = 60_000;
/// How long requests in work may take when the hub drains.
const DRAIN: Duration = Duration::from_secs(5);
/// How often the certificate's age is looked at, and the end of the audit log told.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);

/// The API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No certificate.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// TLS does not take the certificate.
    #[error(
        "TLS refused the API's certificate; remove tls/api.pem and tls/api.key from the data folder, new ones are made then"
    )]
    Tls(#[from] rustls::Error),
    /// The port failed.
    #[error("the API could not go on serving its port")]
    Io(#[from] io::Error),
}

/// Serves `router` on `listener` until `stop` becomes true, then finishes what is in work.
///
/// # Errors
/// When there is no usable certificate, or the port fails.
pub async fn serve(
    hub: &Hub,
    router: Router,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ApiError> {
    let identity = identity(hub).await?;
    let mut renew_at = identity.renew_at;
    let tls = RustlsConfig::from_config(config(hub.env(), identity)?);
    listener.set_nonblocking(true)?;
    let handle = Handle::new();
    let door = Door::new(RustlsAcceptor::new(tls.clone()), MAX_CONNECTIONS, MAX_CONNECTIONS_SOURCE, HEAD_TIMEOUT);
    // What is accepted inherits it: who vanished is found within this, once something is sent to them.
    rustix::net::sockopt::set_tcp_user_timeout(&listener, USER_TIMEOUT_MS).map_err(io::Error::from)?;
    let mut server = axum_server::from_tcp(listener)?.acceptor(door).handle(handle.clone());
    let mut http1 = server.http_builder().http1();
    http1.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    let mut http2 = server.http_builder().http2();
    http2.timer(TokioTimer::new()).keep_alive_interval(Some(HEAD_TIMEOUT * 2));
    http2.max_concurrent_streams(MAX_STREAMS).max_header_list_size(16 << 10);
    let mut serving = std::pin::pin!(server.serve(router.into_make_service_with_connect_info::<SocketAddr>()));
    let mut check = tokio::time::interval(RENEWAL_CHECK);
    loop {
        tokio::select! { biased;
            ended = &mut serving => return Ok(ended?),
            () = async { drop(stop.wait_for(|stop| *stop).await) } => break,
            _ = check.tick() => {
                tell_audit_head(hub).await;
                if hub.env().wall.now() >= renew_at {
                    // The old one serves on for half of its life: time enough to try again.
                    match renew(hub, &tls).await {
                        Ok(next) => renew_at = next,
                        Err(error) => tracing::error!(%error, "the API's certificate could not be renewed; trying again in an hour"),
                    }
                }
            }
        }
    }
    handle.graceful_shutdown(Some(DRAIN));
    Ok(serving.await?)
}

/// Says in the hub's own log where the audit log ends, for whoever collects that.
async fn tell_audit_head(hub: &Hub) {
    match hub.audit().head().await {
        Ok(Some(head)) => tracing::info!(%head, "the audit log ends here"),
        Ok(None) => {}
        Err(error) => tracing::error!(%error, "the audit log cannot be used, so nobody can change anything"),
    }
}

/// Puts a new certificate in place of the old; yields when that one is due.
async fn renew(hub: &Hub, tls: &RustlsConfig) -> Result<Timestamp, ApiError> {
    let identity = identity(hub).await?;
    let renew_at = identity.renew_at;
    tls.reload_from_config(config(hub.env(), identity)?);
    Ok(renew_at)
}

/// The API's certificate for the configured names; it is renewed when half of its life is over.
async fn identity(hub: &Hub) -> Result<ServerIdentity, CaError> {
    let (ca, names): (Ca, _) = (hub.ca().clone(), hub.config().api_names.clone());
    let names = if names.is_empty() { vec!["localhost".to_owned(), "127.0.0.1".to_owned()] } else { names };
    hub.env().blocking.run(move || ca.server_identity("api", &names)).await
}

fn config(env: &Env, identity: ServerIdentity) -> Result<Arc<rustls::ServerConfig>, rustls::Error> {
    let clock = Arc::new(TlsClock(Arc::clone(&env.wall)));
    let mut config = rustls::ServerConfig::builder_with_details(crypto_provider(), clock)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(identity.chain, identity.key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
