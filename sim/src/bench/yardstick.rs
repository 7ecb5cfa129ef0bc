//! What the machine can do without Crossdock: the same bytes to as many clients over plain TLS.
//!
//! tokio-rustls on TCP over loopback, one handshake a client, everybody at once, nothing written to
//! disk. It is what a rollout could take if deciding, verifying, unpacking and starting were free.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const BUFFER_BYTES: usize = 64 << 10;

/// Sends `bytes` to each of `clients` and says how long it took from first connection to last byte.
///
/// # Errors
/// When a transfer fails.
pub async fn run(clients: usize, bytes: u64) -> anyhow::Result<Duration> {
    let (acceptor, connector) = tls()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let mut tasks = JoinSet::new();
    let begin = Instant::now();
    tasks.spawn(serve(listener, acceptor, clients, bytes));
    for _ in 0..clients {
        tasks.spawn(fetch(address, connector.clone(), bytes));
    }
    while let Some(result) = tasks.join_next().await {
        result.context("a task of the yardstick ended early")??;
    }
    Ok(begin.elapsed())
}

fn tls() -> anyhow::Result<(TlsAcceptor, TlsConnector)> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let certificate = rcgen::CertificateParams::new(vec!["yardstick".to_owned()])?.self_signed(&key)?;
    let certificate: CertificateDer<'static> = certificate.der().clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok((Arc::new(server).into(), Arc::new(client).into()))
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, clients: usize, bytes: u64) -> anyhow::Result<()> {
    let mut transfers = JoinSet::new();
    for _ in 0..clients {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        transfers.spawn(async move {
            let mut stream = acceptor.accept(stream).await?;
            let buffer = vec![0x5a; BUFFER_BYTES];
            let mut left = bytes;
            while left > 0 {
                let part = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER_BYTES);
                stream.write_all(buffer.get(..part).unwrap_or_default()).await?;
                left -= u64::try_from(part)?;
            }
            stream.shutdown().await?;
            anyhow::Ok(())
        });
    }
    while let Some(result) = transfers.join_next().await {
        result.context("a transfer of the yardstick ended early")??;
    }
    Ok(())
}

async fn fetch(address: SocketAddr, connector: TlsConnector, bytes: u64) -> anyhow::Result<()> {
    let stream = TcpStream::connect(address).await?;
    let mut stream = connector.connect(ServerName::try_from("yardstick")?, stream).await?;
    let (mut buffer, mut got) = (vec![0; BUFFER_BYTES], 0);
    loop {
        let part = stream.read(&mut buffer).await?;
        if part == 0 {
            break;
        }
        got += u64::try_from(part)?;
    }
    ensure!(got == bytes, "got {got} of {bytes} bytes");
    Ok(())
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn all_bytes_reach_all_clients() {
        super::run(3, 200_000).await.unwrap();
    }
}
