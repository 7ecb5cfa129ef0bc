//! `sim bench trust`: what verifying and signing cost, how large a node's metadata is, and how many handshakes a hub
//! can do, each beside the bare cryptography of it in the same run.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use cloudcore::{ca::Ca, config::HubConfig, link::endpoint};
use jiff::Timestamp;
use proto::{
    digest::Digest,
    director::{self, Directive, Issue},
    env::Env,
    identity::{HUB_DNS_NAME, TlsClock, crypto_provider},
    link::{
        ALPN,
        message::{Assignment, MetadataReply, OrderedApp},
    },
    name::{Name, Version},
    object::ReleaseRef,
    tuf::{
        RoleName, SecretKey, Target, TargetCustom, TrustedSet,
        schema::{
            MetaFile, Role, RoleKeys, RootMeta, SPEC_VERSION, SnapshotMeta, TargetFile, TargetsMeta, TimestampMeta,
        },
        sign::Document,
    },
};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use tokio::{task::JoinSet, time::Instant};

use super::{Figures, profile, warn_if_debug, yardstick};

/// Times that each of the small things is done.
const ROUNDS: u32 = 200;
/// Handshakes at once.
const AT_ONCE: usize = 16;

/// `sim bench trust`.
#[derive(Debug, clap::Args)]
pub struct TrustArgs {
    /// Releases that the release repository lists.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    releases: u32,
    /// Apps that the node is to run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    apps: u32,
    /// Handshakes that are counted.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(16..=100_000))]
    handshakes: u32,
    /// One JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Runs the bench.
///
/// # Errors
/// When what it made does not verify, or a handshake fails.
pub async fn run(args: &TrustArgs) -> anyhow::Result<()> {
    warn_if_debug();
    let now: Timestamp = "2026-06-01T00:00:00Z".parse()?;
    let fleet = Fleet::new(args, now)?;
    let mut figures = Figures::default();
    figures.add("profile", profile(), "how this was built");

    let releases = TrustedSet::new(&fleet.release_root)?;
    let verify = timed(|| {
        let set = releases.update(&fleet.publication, now)?;
        let directed = fleet.director.update(&fleet.directive, now)?;
        let directive = director::admit(&directed, &fleet.node, NONCE, 0)?;
        for path in directive.assignment.apps.keys().map(|app| format!("{app}/1.0.0.json")) {
            let (ordered, signed) = (directed.target_file(&path), set.target_file(&path));
            let (ordered, signed) = ordered.zip(signed).context("the repositories do not list it")?;
            ensure!(director::agree(ordered, signed).is_ok(), "they do not agree");
        }
        Ok(())
    })?;
    let bare = timed(|| fleet.bare_verification())?;
    figures.add("releases", args.releases, "listed by the release repository");
    figures.add("verify_us", micros(verify), "both repositories from their pinned roots, and their agreement");
    figures.add("verify_bare_us", micros(bare), "the same signatures and digests alone");
    figures.add("verify_ratio", ratio(verify, bare), "of them: reading and writing JSON is the rest");

    let sign = timed(|| fleet.issue(now).sign(&fleet.online).map(drop).map_err(Into::into))?;
    let bare = timed(|| {
        (0..3).for_each(|_| drop(fleet.online.sign(fleet.node.as_str().as_bytes())));
        Ok(())
    })?;
    figures.add("sign_node_us", micros(sign), "targets, snapshot and timestamp of one node");
    figures.add("sign_bare_us", micros(bare), "three signatures alone");
    figures.add("sign_ratio", ratio(sign, bare), "of them");
    figures.add("metadata_bytes_per_node", size(&fleet.directive), "the three documents that a session brings");
    figures.add("metadata_bytes_releases", size(&fleet.publication), "of the release repository, once for each change");

    let (hub, plain) = (handshakes(args.handshakes).await?, yardstick::run(args.handshakes as usize, 1).await?);
    let per_s = |took: Duration| (f64::from(args.handshakes) / took.as_secs_f64()).round();
    figures.add("handshakes_per_s", per_s(hub), "QUIC with both certificates, both ends on this machine");
    figures.add("handshakes_plain_per_s", per_s(plain), "TLS over TCP with the server's certificate alone");
    figures.add("handshakes_ratio", (per_s(hub) / per_s(plain) * 100.0).round() / 100.0, "of them");
    figures.print(args.json);
    Ok(())
}

const NONCE: &str = "6e6f6e63656e6f6e63656e6f6e63656e";

fn size(reply: &MetadataReply) -> usize {
    [&reply.timestamp, &reply.snapshot, &reply.targets].into_iter().flatten().map(String::len).sum()
}

fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}

fn ratio(time: Duration, of: Duration) -> f64 {
    (time.as_secs_f64() / of.as_secs_f64() * 100.0).round() / 100.0
}

/// How long one of many takes.
fn timed(work: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    work()?; // not cold
    let begin = Instant::now();
    for _ in 0..ROUNDS {
        work()?;
    }
    Ok(begin.elapsed() / ROUNDS)
}

/// A release repository with 2 of 3 keys, and a director.
struct Fleet {
    node: Name,
    online: SecretKey,
    release_root: String,
    publication: MetadataReply,
    director: TrustedSet,
    directive: MetadataReply,
    targets: BTreeMap<String, TargetFile>,
    apps: u32,
    expires: Timestamp,
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn signed<T: Role>(content: &T, keys: &[u8]) -> anyhow::Result<String> {
    let mut document = Document::new(content)?;
    keys.iter().for_each(|n| document.sign(&key(*n)));
    Ok(document.text())
}

macro_rules! meta {
    ($name:ident, $kind:literal, $expires:expr, $($rest:tt)*) => {
        $name {
            kind: $kind.into(), spec_version: SPEC_VERSION.into(), version: 1, expires: $expires,
            other: BTreeMap::new(), $($rest)*
        }
    };
}

impl Fleet {
    fn new(args: &TrustArgs, now: Timestamp) -> anyhow::Result<Fleet> {
        let expires = now.checked_add(jiff::SignedDuration::from_hours(24 * 30))?;
        let role = |keys: &[u8], threshold| RoleKeys {
            keyids: keys.iter().map(|n| key(*n).id()).collect(),
            threshold,
            other: BTreeMap::new(),
        };
        let roles = RoleName::ALL.map(|name| {
            let keys = match name {
                RoleName::Root => role(&[1, 2, 3], 2),
                RoleName::Targets => role(&[4, 5, 6], 2),
                RoleName::Snapshot | RoleName::Timestamp => role(&[7], 1),
            };
            (name.as_str().to_owned(), keys)
        });
        let keys = (1..=7).map(|n| (key(n).id(), key(n).public())).collect();
        let root = meta!(RootMeta, "root", expires, consistent_snapshot: true, keys, roles: roles.into());
        let release_root = signed(&root, &[1, 2])?;
        let version: Version = "1.0.0".parse()?;
        let target = |n: u32| {
            let custom = TargetCustom {
                app: format!("app-{n}").parse()?,
                version: version.clone(),
                release_counter: u64::from(n) + 1,
                hardware: ["x86_64".to_owned()].into(),
                issued_at: Some(now),
            };
            let target = Target { length: 1_000, digest: Digest::of(&n.to_be_bytes()), custom };
            anyhow::Ok((format!("app-{n}/1.0.0.json"), target.to_file().map_err(anyhow::Error::msg)?))
        };
        let all: BTreeMap<String, TargetFile> =
            (0..args.releases.max(args.apps)).map(target).collect::<anyhow::Result<_>>()?;
        let targets = signed(&meta!(TargetsMeta, "targets", expires, targets: all.clone()), &[4, 5])?;
        let meta = [("targets.json".to_owned(), MetaFile::of(1, &targets))].into();
        let snapshot = signed(&meta!(SnapshotMeta, "snapshot", expires, meta), &[7])?;
        let meta = [("snapshot.json".to_owned(), MetaFile::of(1, &snapshot))].into();
        let timestamp = signed(&meta!(TimestampMeta, "timestamp", expires, meta), &[7])?;
        let publication = MetadataReply {
            roots: vec![],
            timestamp: Some(timestamp),
            snapshot: Some(snapshot),
            targets: Some(targets),
        };
        let online = key(9);
        let root = signed(&director::root(&[key(8).public()], 1, &online.public(), expires), &[8])?;
        let mine = (0..args.apps).map(|n| format!("app-{n}/1.0.0.json"));
        let targets = mine.filter_map(|path| all.get(&path).map(|file| (path, file.clone()))).collect();
        let mut fleet = Fleet {
            node: "hz-01-scan-1".parse()?,
            online,
            release_root,
            publication,
            director: TrustedSet::new(&root)?,
            directive: MetadataReply::default(),
            targets,
            apps: args.apps,
            expires,
        };
        fleet.directive = fleet.issue(now).sign(&fleet.online)?;
        Ok(fleet)
    }

    fn issue(&self, now: Timestamp) -> Issue {
        let ordered = |n: u32| {
            let release = ReleaseRef { version: "1.0.0".parse().ok()?, digest: Digest::of(&n.to_be_bytes()) };
            Some((format!("app-{n}").parse().ok()?, OrderedApp::from(release)))
        };
        let apps = (0..self.apps).filter_map(ordered).collect();
        let assignment = Assignment { generation: 7, apps, ..Assignment::default() };
        let directive = Directive { node: self.node.clone(), nonce: NONCE.into(), issued_at: now, assignment };
        Issue { directive, targets: self.targets.clone(), version: 1, expires: self.expires }
    }

    /// As many signatures and digests as both repositories have, over as many bytes.
    fn bare_verification(&self) -> anyhow::Result<()> {
        let (message, signer) = ([0; 1_000], key(1));
        let (public, signature) = (signer.public(), signer.sign(&message));
        // Two of the targets, one each of snapshot and timestamp; three of the director.
        for _ in 0..7 {
            ensure!(public.verifies(&message, &signature), "a good signature does not verify");
        }
        for reply in [&self.publication, &self.directive] {
            for text in [&reply.snapshot, &reply.targets].into_iter().flatten() {
                std::hint::black_box(Digest::of(text.as_bytes()));
            }
        }
        Ok(())
    }
}

/// How long so many handshakes with a hub's terms take.
async fn handshakes(count: u32) -> anyhow::Result<Duration> {
    let folder = tempfile::tempdir()?;
    let env = Env::real()?;
    let config = HubConfig::new(folder.path(), "bench".parse()?);
    let ca = Ca::create(&config.data_dir, &config.fleet, &env)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = quinn::Endpoint::server(endpoint::server_config(&config, &env, &ca)?, address)?;
    let hub = server.local_addr()?;
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let csr = CertificateParams::new(vec![])?.serialize_request(&key)?;
    let certificate = ca.issue_node(&"node".parse()?, csr.der())?;
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes()).collect::<Result<_, _>>()?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.certificate().clone())?;
    let mut tls = rustls::ClientConfig::builder_with_details(crypto_provider(), Arc::new(TlsClock(env.wall.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))?;
    tls.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
    tls.resumption = rustls::client::Resumption::disabled();
    let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));

    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    let each = (count as usize).div_ceil(AT_ONCE);
    for _ in 0..AT_ONCE {
        let client = client.clone();
        tasks.spawn(async move {
            let endpoint = quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            for _ in 0..each {
                let connection = endpoint.connect_with(client.clone(), hub, HUB_DNS_NAME)?.await?;
                // The hub's end is done when it answers with a stream of its own: its verdict on our certificate.
                connection.accept_uni().await.map(drop)?;
                connection.close(0_u32.into(), b"");
            }
            anyhow::Ok(())
        });
    }
    let accept = async {
        while let Some(incoming) = server.accept().await {
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else { return };
                if let Ok(mut stream) = connection.open_uni().await {
                    let _ = stream.write_all(b"1").await; // the client says what failed
                }
                connection.closed().await;
            });
        }
    };
    let all = async {
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        biased;
        done = all => done?,
        () = accept => anyhow::bail!("the hub's endpoint ended"),
    }
    Ok(begin.elapsed())
}
