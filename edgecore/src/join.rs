//! `edgecore join`: keys made here, certificate from the hub, identity written durably.
//!
//! ```text
//! key on disk -> ask (TLS to the CA that the token pins) -> check the answer -> trust, identity, agent.json
//! ```
//!
//! Until the answer is checked nothing of an identity that is there is touched. A cut at any point is
//! mended by the same command: the hub knows the key and answers again without using the token up. On a
//! box that had joined before it yields the same node with a new key; what the box trusts is kept when
//! it is whole and descends from the roots that the token pins. Under another root the apps go on, while the
//! assignment, the floors and the failures of before, which the other root vouched for, are forgotten.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use data_encoding::BASE64;
use proto::{
    broker::Broker,
    digest::Digest,
    durable::{self, DurableError},
    env::Env,
    identity::{self, PinnedCa},
    link::{
        ALPN_JOIN, CloseCode, DEFAULT_PORT,
        frame::{self, MAX_METADATA_BYTES, MAX_REQUEST_BYTES},
        message::{JoinReply, JoinRequest},
    },
    name::Name,
    token::Token,
};
use quinn::{Connection, Endpoint};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::time::timeout;

use crate::{
    agent::assignment_place,
    apps::{self, slot::SlotError},
    config::{self, AgentConfig, ConfigError, Paths},
    link::{
        assignment,
        carriers::Carriers,
        problem::Problem,
        quic,
        renew::{self, RenewError},
    },
    secrets,
    settings::{Settings, SettingsError},
    trust::{self, Refusal},
};

/// How long the hub may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// Rounds over all addresses before it counts as unreachable.
const ROUNDS: usize = 2;

/// What joining needs.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// The data folder.
    pub data_dir: PathBuf,
    /// Addresses of the hub, `host` or `host:port`, tried in turn.
    pub hub: Vec<String>,
    /// The token that the operator handed out.
    pub token: Token,
    /// Name to ask for; the host name when absent.
    pub name: Option<String>,
    /// Identity of the hardware.
    pub machine_id: String,
    /// Brokers to reach the hub through where UDP does not get through; they are remembered.
    pub brokers: Vec<Broker>,
}

/// Who this box is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its name.
    pub node: Name,
    /// Its site.
    pub site: Name,
    /// Its fleet.
    pub fleet: Name,
}

/// Joining failed; an identity that was there before is untouched.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No address was given.
    #[error("no hub was named: edgecore join HOST[:PORT] --token TOKEN")]
    NoHub,
    /// An address is none.
    #[error(
        "{hub:?} is no address of a hub: {port:?} is no port; write HOST or HOST:PORT, with a port from 1 to 65535"
    )]
    Address {
        /// What was given.
        hub: String,
        /// What stands where the port should.
        port: String,
    },
    /// No hub answered.
    #[error("no hub answered: {0}")]
    Unreachable(String),
    /// The hub is not the one that the token is from.
    #[error(
        "{hub} is not the hub that this token is from: its CA is another. Check the address; \
         if the hub was set up anew, ask for a new token (crossdock token create)"
    )]
    WrongHub {
        /// The address.
        hub: String,
    },
    /// Hub and agent have no protocol in common, or the clock is wrong, or the like.
    #[error("{}", .0.message)]
    Link(Problem),
    /// The hub refused.
    #[error("the hub refused: {message} ({code})")]
    Refused {
        /// One word for programs.
        code: String,
        /// For people, with what to do.
        message: String,
    },
    /// The answer contradicts the token or itself.
    #[error("the hub's answer is refused: {0}")]
    Answer(String),
    /// The first trust root is none.
    #[error(transparent)]
    Trust(#[from] Refusal),
    /// Without fleet and name there is no topic at a broker.
    #[error("no hub can be asked through a broker: {0}")]
    Topic(String),
    /// `agent.toml` is wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// State could not be written.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file could not be written.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// What is known of an app could not be read or written.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// No key or request could be made.
    #[error("no certificate request could be made: {0}")]
    Key(#[from] rcgen::Error),
}

impl From<RenewError> for JoinError {
    fn from(error: RenewError) -> JoinError {
        match error {
            RenewError::Key(error) => error.into(),
            RenewError::Durable(error) => error.into(),
            other => JoinError::Answer(other.to_string()),
        }
    }
}

impl JoinError {
    /// Whether trying again later may help.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, JoinError::Unreachable(_))
    }
}

/// Joins the fleet that the token is for.
///
/// # Errors
/// What was refused or failed, with the mend.
pub async fn join(options: JoinOptions, env: &Env) -> Result<Joined, JoinError> {
    let hubs = options.hub.iter().map(|h| with_port(h)).collect::<Result<Vec<String>, _>>()?;
    let paths = Paths::new(&options.data_dir);
    config::create_folders(&paths)?;
    let key = joining_key(&paths, env)?;
    let name = wanted_name(options.name.as_deref());
    let csr = CertificateParams::new(vec![])?.serialize_request(&key)?;
    let request = JoinRequest {
        token_id: options.token.id.clone(),
        secret: options.token.secret.clone(),
        csr: BASE64.encode(csr.der()),
        name,
        machine_id: options.machine_id.clone(),
        agent_version: proto::VERSION.into(),
    };
    let carriers = carriers(env, &options, &request.name)?;
    match ask_all(env, &hubs, &options.token, &request, carriers).await? {
        JoinReply::Refused { code, message } => Err(JoinError::Refused { code, message }),
        JoinReply::Accepted { node, site, fleet, certificates, root, director_root, hubs: more } => {
            let roots = Roots { release: root, director: director_root };
            check(&options.token, &key, &node, &certificates, &roots)?;
            let mut config =
                AgentConfig { data_dir: options.data_dir, node, site, fleet, hubs, brokers: options.brokers };
            for hub in more.iter().filter_map(|h| with_port(h).ok()) {
                if !config.hubs.contains(&hub) {
                    config.hubs.push(hub);
                }
            }
            keep(&paths, &config, &key, &certificates, &roots, env)?;
            Ok(Joined { node: config.node, site: config.site, fleet: config.fleet })
        }
    }
}

/// The brokers, where there are some: those of `agent.toml`, else those that joining was told.
fn carriers(env: &Env, options: &JoinOptions, name: &str) -> Result<Option<Arc<Carriers>>, JoinError> {
    let link = Settings::load(&options.data_dir)?.link;
    let brokers = if link.brokers.is_empty() { &options.brokers } else { &link.brokers };
    if brokers.is_empty() {
        return Ok(None);
    }
    // Its topics until it has a name: the broker's rules may want that of the node it is to become.
    let node = name.parse::<Name>().map_err(|e| JoinError::Topic(e.to_string()))?;
    let no_fleet = "the token does not say which fleet it is for: make a new one (crossdock token create)";
    let fleet = options.token.fleet.as_ref().ok_or_else(|| JoinError::Topic(no_fleet.into()))?;
    Ok(Carriers::new(env, brokers, link.udp, fleet, &node, options.data_dir.clone()))
}

/// The key that asks: on disk before it is used, so that a lost answer can be asked for again.
fn joining_key(paths: &Paths, env: &Env) -> Result<KeyPair, JoinError> {
    Ok(renew::key_at(&paths.joining_key(), env, "node key")?)
}

/// `name`, or the host's name made to fit the rules of names.
fn wanted_name(name: Option<&str>) -> String {
    if let Some(name) = name {
        return name.to_owned();
    }
    let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let label = host.split('.').next().unwrap_or_default();
    let clean: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    match clean.trim_matches('-') {
        "" => "node".into(),
        clean => clean.to_owned(),
    }
}

/// An address of a hub as it is kept: with its port, and without a scheme before it.
///
/// # Errors
/// When what stands in the place of the port is none.
pub fn with_port(given: &str) -> Result<String, JoinError> {
    let hub = given.split_once("://").map_or(given, |(_, rest)| rest).trim_end_matches('/');
    match hub.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse::<u16>() {
            Ok(1..) => Ok(hub.to_owned()),
            _ => Err(JoinError::Address { hub: given.into(), port: port.into() }),
        },
        Some(_) if !hub.starts_with('[') => Ok(format!("[{hub}]:{DEFAULT_PORT}")),
        _ => Ok(format!("{hub}:{DEFAULT_PORT}")),
    }
}

/// Asks the hubs in turn until one answers.
async fn ask_all(
    env: &Env,
    hubs: &[String],
    token: &Token,
    request: &JoinRequest,
    carriers: Option<Arc<Carriers>>,
) -> Result<JoinReply, JoinError> {
    let Some(carriers) = carriers else { return ask_in_turn(env, hubs, token, request).await };
    // Neither is begun again: the brokers are kept while the hub is asked.
    tokio::select! {
        biased;
        () = carriers.run() => Err(JoinError::NoHub),
        asked = ask_over(env, hubs, token, request, &carriers) => asked,
    }
}

/// Asks the hub over the carrier that works.
async fn ask_over(
    env: &Env,
    hubs: &[String],
    token: &Token,
    request: &JoinRequest,
    carriers: &Arc<Carriers>,
) -> Result<JoinReply, JoinError> {
    let mut problem = None;
    for round in 0..ROUNDS {
        let seed = env.seed.child(&format!("join at {} {round}", env.wall.now()));
        let tls = tls(env, token).map_err(JoinError::Link)?;
        let name = hubs.join(", ");
        let asked = match carriers.connect(hubs, tls, &seed).await {
            Ok((endpoint, connection, path)) => tokio::select! {
                biased;
                () = path.run(&endpoint, Some(&connection)) => continue,
                asked = ask_on(&endpoint, &connection, &name, request) => asked,
            },
            Err(problem) => Err(problem),
        };
        match asked {
            Ok(reply) => return Ok(reply),
            Err(found) => problem = Some(final_or(found, &name)?),
        }
    }
    Err(problem.map_or(JoinError::NoHub, |p| JoinError::Unreachable(p.message)))
}

/// A problem that asking again does not mend is an error at once.
fn final_or(problem: Problem, hub: &str) -> Result<Problem, JoinError> {
    match problem.reason.as_str() {
        "WrongCa" => Err(JoinError::WrongHub { hub: hub.to_owned() }),
        "WrongProtocol" | "ClockWrong" | "Local" => Err(JoinError::Link(problem)),
        _ => Ok(problem),
    }
}

async fn ask_in_turn(env: &Env, hubs: &[String], token: &Token, request: &JoinRequest) -> Result<JoinReply, JoinError> {
    let mut problems = vec![];
    for round in 0..ROUNDS {
        for (i, hub) in hubs.iter().enumerate() {
            let problem = match ask(env, hub, round, i, token, request).await {
                Ok(reply) => return Ok(reply),
                Err(problem) => problem,
            };
            let problem = final_or(problem, hub)?;
            if round == 0 {
                problems.push(problem.message);
            }
        }
    }
    if problems.is_empty() {
        Err(JoinError::NoHub)
    } else {
        Err(JoinError::Unreachable(format!("{} (tried {ROUNDS} times)", problems.join("; "))))
    }
}

async fn ask(
    env: &Env,
    hub: &str,
    round: usize,
    number: usize,
    token: &Token,
    request: &JoinRequest,
) -> Result<JoinReply, Problem> {
    let tls = tls(env, token)?;
    let seed = env.seed.child(&format!("join at {} {round} {number}", env.wall.now()));
    let (endpoint, connection) = quic::connect(env, hub, round, tls, &seed).await?;
    ask_on(&endpoint, &connection, hub, request).await
}

fn tls(env: &Env, token: &Token) -> Result<rustls::ClientConfig, Problem> {
    let builder = quic::tls(env).map_err(|e| Problem::new("Local", e.to_string()))?;
    // Not the verifier of the web's names: the token pins the CA itself.
    let pinned = builder.dangerous().with_custom_certificate_verifier(PinnedCa::new(token.ca));
    let mut tls = pinned.with_no_client_auth();
    tls.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    Ok(tls)
}

async fn ask_on(
    endpoint: &Endpoint,
    connection: &Connection,
    hub: &str,
    request: &JoinRequest,
) -> Result<JoinReply, Problem> {
    let answered = timeout(ANSWER, async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|e| frame::FrameError::Io(e.into()))?;
        frame::write(&mut send, request, MAX_REQUEST_BYTES).await?;
        send.finish().ok(); // a stream that is gone shows in the read
        frame::read(&mut receive, MAX_METADATA_BYTES).await
    });
    let answered = answered.await;
    let reply = match answered {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => Err(match connection.close_reason() {
            Some(reason) => Problem::of(&reason, hub, true),
            None => Problem::unreachable(hub, error),
        }),
        Err(_) => Err(Problem::unreachable(hub, "it connected and did not answer")),
    };
    connection.close(CloseCode::Done.code(), b"");
    // Late is no harm: the hub notices the silence.
    timeout(Duration::from_secs(1), endpoint.wait_idle()).await.ok();
    reply
}

/// The first roots of both repositories, as the hub answered.
struct Roots {
    release: String,
    /// Hubs of before the director have none.
    director: Option<String>,
}

/// What the hub answered fits the token, the key and itself.
fn check(token: &Token, key: &KeyPair, node: &Name, certificates: &str, roots: &Roots) -> Result<(), JoinError> {
    let wrong = |text: &str| Err(JoinError::Answer(text.into()));
    if Digest::of(roots.release.as_bytes()) != token.root {
        return wrong("its first trust root is not the one that the token pins; ask for a new token");
    }
    let director = roots.director.as_ref().map(|root| Digest::of(root.as_bytes()));
    if token.director.is_some() && token.director != director {
        return wrong("its director's first root is not the one that the token pins; ask for a new token");
    }
    let chain: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(certificates.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| JoinError::Answer(format!("its certificates are unreadable: {e}")))?;
    let [own, .., ca] = chain.as_slice() else {
        return wrong("it lacks the node's certificate or the CA's");
    };
    if identity::spki_digest(own) != Ok(Digest::of(&key.subject_public_key_info())) {
        return wrong("its certificate is for another key");
    }
    if identity::node_name(own).as_ref() != Ok(node) {
        return wrong("its certificate is for another node than it says");
    }
    if identity::spki_digest(ca) != Ok(token.ca) {
        return wrong("its CA is not the one that the token pins");
    }
    Ok(())
}

/// Writes all of it; `agent.json` last. What another trust root vouched for is forgotten before the new one
/// is on disk, so that a cut in between is mended by the same command.
fn keep(
    paths: &Paths,
    config: &AgentConfig,
    key: &KeyPair,
    certificates: &str,
    roots: &Roots,
    env: &Env,
) -> Result<(), JoinError> {
    let first_root = paths.first_root();
    let is_at = |path: &PathBuf, root: &str| fs::read(path).is_ok_and(|bytes| bytes == root.as_bytes());
    let same_root = is_at(&first_root, &roots.release);
    if !same_root {
        // Another fleet: its counters and generations have nothing to do with those before.
        apps::forget_trust(&paths.apps())?;
    }
    if !same_root || !trust::is_whole(&paths.trust())? {
        paths.trust().remove()?;
        trust::begin(&paths.trust(), &roots.release)?;
        durable::write(&first_root, roots.release.as_bytes(), 0o600)?;
    }
    let place = assignment_place(paths, &config.node);
    let same_director = match &roots.director {
        Some(root) => is_at(&place.first_root, root) && assignment::is_whole(&place.record)?,
        None => !place.first_root.exists(),
    };
    if !same_root || !same_director {
        // The first root goes last, and comes last: while it is there the record must hold the director's metadata.
        durable::remove(&place.first_root)?;
        place.record.remove()?;
        roots.director.as_ref().map_or(Ok(()), |root| assignment::begin(&place, root))?;
    }
    let bundle = format!("{}{certificates}", key.serialize_pem());
    durable::write(&paths.identity(), bundle.as_bytes(), 0o600)?;
    config.store()?;
    apps::forget_lost(&paths.apps())?;
    // The same one as before where there is one: what is sealed to this box stays so. A damaged one is told by the agent.
    let _ = secrets::key::load_or_make(paths, env)?;
    for of_before in [paths.renewing_key(), paths.previous_identity()] {
        durable::remove(&of_before)?;
    }
    Ok(durable::remove(&paths.joining_key())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_get_the_default_port() {
        for (given, address) in [
            ("hub", "hub:7443"),
            ("hub:1", "hub:1"),
            ("https://hub.example/", "hub.example:7443"),
            ("192.0.2.1", "192.0.2.1:7443"),
            ("2001:db8::1", "[2001:db8::1]:7443"),
            ("[2001:db8::1]", "[2001:db8::1]:7443"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
        ] {
            assert_eq!(with_port(given).unwrap(), address, "{given}");
        }
        for given in ["127.0.0.1:99999", "hub:", "hub:0", "hub:https", "[::1]:x"] {
            let error = with_port(given).unwrap_err().to_string();
            assert!(error.contains(given) && error.contains("HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn the_joining_key_stays_until_the_answer_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let env = Env { seed: proto::env::Seed::from_u64(1), ..Env::real().unwrap() };
        let paths = Paths::new(folder.path());
        config::create_folders(&paths).unwrap();
        let first = joining_key(&paths, &env).unwrap();
        let again = joining_key(&paths, &Env { seed: proto::env::Seed::from_u64(2), ..env }).unwrap();
        assert_eq!(first.serialize_der(), again.serialize_der());
    }
}
