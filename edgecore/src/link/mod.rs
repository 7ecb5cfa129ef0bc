//! The link to the hub: connect, hold a session, come back.
//!
//! | module | what it holds |
//! |---|---|
//! | `carriers` | UDP and MQTT, and the connection that moves between them |
//! | [`quic`] | endpoint and TLS of one connection |
//! | [`session`] | one session: control stream, reports, heartbeats, logs, commands |
//! | `renew` | a new certificate in place of the one that ends |
//! | [`source`] | metadata and blobs over the current connection |
//! | [`assignment`] | the newest assignment, on disk before anybody acts on it |
//! | [`problem`] | why there is no session |
//!
//! [`crate::agent`] runs one [`Link`]. Nothing here decides what runs.

pub mod assignment;
pub(crate) mod carriers;
pub mod problem;
pub(crate) mod quic;
pub(crate) mod renew;
mod session;
pub mod source;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use proto::{
    backoff::Backoff,
    env::{Env, Seed},
    link::{ALPN, ALPN_RENEW, CloseCode, message::Report},
    name::Name,
    object::{NodeInfo, Usage},
    tuf::SecretKey,
    watch,
};
use quinn::{Connection, Endpoint};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use self::{
    assignment::Assignments,
    carriers::{Carriers, Path},
    problem::Problem,
    session::Session,
    source::HubSource,
};
use crate::{
    config::{AgentConfig, Identity, Paths},
    driver::Driver,
    exec,
    facts::Facts,
    metrics::Metrics,
};

/// First bound of the wait between attempts.
const RECONNECT_BASE: Duration = Duration::from_millis(250);
/// Last bound of it.
const RECONNECT_CAP: Duration = Duration::from_secs(30);
/// How long a polite end may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// How the link stands, for the status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkState {
    /// Whether there is a session.
    pub connected: bool,
    /// Address of the hub that was tried or reached last.
    #[serde(default)]
    pub hub: String,
    /// Since when there is, or is not, a session.
    pub since: Timestamp,
    /// Why there is none.
    #[serde(default)]
    pub problem: Option<Problem>,
    /// Attempts that failed in a row.
    #[serde(default)]
    pub failures: u32,
}

/// The current connection.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    endpoint: Endpoint,
    connection: Connection,
}

impl Live {
    pub fn new(endpoint: Endpoint, connection: Connection) -> Live {
        Live { endpoint, connection }
    }

    pub fn connection(&self) -> Connection {
        self.connection.clone()
    }
}

/// What the link shares with the rest of the agent.
#[derive(Debug)]
pub(crate) struct Shared {
    pub env: Env,
    pub node: Name,
    pub paths: Paths,
    pub facts: Facts,
    /// What workloads tell of themselves.
    pub metrics: Metrics,
    pub driver: Arc<dyn Driver>,
    pub board: watch::Sender<Report>,
    pub assignments: Assignments,
    /// Whether events are told as records.
    pub tells_events: bool,
    /// Public half of the key that secrets for this node are sealed to.
    pub sealing_key: Option<String>,
    /// Runs commands of people.
    pub exec: exec::Server,
    /// Where there are brokers.
    pub carriers: Option<Arc<Carriers>>,
}

impl Shared {
    /// What changes all the time.
    fn usage(&self) -> Usage {
        Usage { metrics: self.metrics.live(), ..self.facts.usage() }
    }

    /// What the hub is told of the box.
    fn info(&self) -> NodeInfo {
        NodeInfo { sealing_key: self.sealing_key.clone(), ..self.facts.info() }
    }
}

/// What a connection is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Session,
    Renewal,
}

impl Purpose {
    fn of(renew: bool) -> Purpose {
        if renew { Purpose::Renewal } else { Purpose::Session }
    }
}

/// Reason of an attempt that renewed the certificate.
const RENEWED: &str = "Renewed";

/// The link.
#[derive(Debug)]
pub(crate) struct Link {
    shared: Arc<Shared>,
    state: watch::Sender<LinkState>,
    live: watch::Sender<Option<Live>>,
    online: watch::Sender<bool>,
}

impl Link {
    pub fn new(shared: Arc<Shared>) -> Link {
        let since = shared.env.wall.now();
        let state = LinkState { connected: false, hub: String::new(), since, problem: None, failures: 0 };
        Link { shared, state: watch::channel(state).0, live: watch::channel(None).0, online: watch::channel(false).0 }
    }

    /// How it stands.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    /// Whether there is a session.
    pub fn online(&self) -> watch::Receiver<bool> {
        self.online.subscribe()
    }

    /// Whichever connection is there.
    pub fn live(&self) -> watch::Receiver<Option<Live>> {
        self.live.subscribe()
    }

    /// Metadata and blobs over whichever connection is there.
    pub fn source(&self) -> HubSource {
        HubSource::new(self.live.subscribe())
    }

    /// Connects and comes back until it is dropped.
    pub async fn run(&self) {
        let mut backoff = Backoff::new(RECONNECT_BASE, RECONNECT_CAP);
        // An agent that was started again may have the same seed: the time keeps its connections apart.
        let started = self.shared.env.wall.now();
        let seed = self.shared.env.seed.child(&format!("link at {started}"));
        let mut rng = seed.stream("reconnect");
        let (mut renew, mut previous) = (false, false);
        for attempt in 0.. {
            let own = seed.child(&format!("connection {attempt}"));
            let (problem, lived) = self.attempt(attempt, &own, Purpose::of(renew), previous).await;
            // Whatever came of renewing: the next attempt is for a session, which the hub may end so again.
            renew = !renew && problem.reason == problem::RENEW;
            // A hub from before the last renewal lets the key of then in, and has it renewed again.
            let other = problem.reason == problem::NOT_ADMITTED && self.shared.paths.previous_identity().exists();
            previous = if other { !previous } else { previous && problem.reason != RENEWED };
            self.live.send_replace(None);
            self.online.send_replace(false);
            backoff.ended(lived);
            if renew || problem.reason == RENEWED {
                tracing::info!("{}", problem.message);
                continue;
            }
            let wait = backoff.failed(&mut rng);
            tracing::info!(reason = %problem.reason, ?wait, "no session: {}", problem.message);
            let now = self.shared.env.wall.now();
            self.state.send_modify(|state| {
                if std::mem::take(&mut state.connected) {
                    state.since = now;
                }
                state.problem = Some(problem);
                state.failures = backoff.failures();
            });
            sleep(wait).await;
        }
    }

    /// One attempt and the session that follows; why it ended and how long the session lived.
    async fn attempt(&self, attempt: usize, seed: &Seed, purpose: Purpose, previous: bool) -> (Problem, Duration) {
        // Read anew: joining again replaces identity and addresses under a running agent.
        let config = AgentConfig::load(self.shared.paths.data_dir());
        let paths = &self.shared.paths;
        let file = if previous { paths.previous_identity() } else { paths.identity() };
        let prepared = config.and_then(|config| Ok((config, Identity::read(file)?)));
        let (config, identity) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return (Problem::new("Local", error.to_string()), Duration::ZERO),
        };
        let hubs = config.hubs.len().max(1);
        let Some(hub) = config.hubs.get(attempt % hubs) else {
            let message = "agent.json names no hub: run `edgecore join HUB --token TOKEN` again";
            return (Problem::new("Local", message), Duration::ZERO);
        };
        self.state.send_modify(|state| state.hub.clone_from(hub));
        let tls = match tls(&self.shared.env, &identity, purpose) {
            Ok(tls) => tls,
            Err(error) => return (Problem::new("Local", error.to_string()), Duration::ZERO),
        };
        let connected = match &self.shared.carriers {
            None => quic::connect(&self.shared.env, hub, attempt / hubs, tls, seed).await.map(|(e, c)| (e, c, None)),
            // UDP is tried with all hubs at once, so that the turn is of no meaning.
            Some(carriers) => carriers.connect(&config.hubs, tls, seed).await.map(|(e, c, path)| (e, c, Some(path))),
        };
        let (endpoint, connection, path) = match connected {
            Ok(connected) => connected,
            Err(problem) => return (problem, Duration::ZERO),
        };
        let (moving, moved) = (endpoint.clone(), connection.clone());
        let moves = keep_moving(path.as_ref(), &moving, &moved);
        // The first never ends, and dropping the second is dropping the connection.
        tokio::select! {
            biased;
            never = moves => never,
            ended = self.talk(hub, endpoint, connection, &identity, purpose) => ended,
        }
    }

    /// What a connection is for.
    async fn talk(
        &self,
        hub: &str,
        endpoint: Endpoint,
        connection: Connection,
        identity: &Identity,
        purpose: Purpose,
    ) -> (Problem, Duration) {
        if purpose == Purpose::Session {
            return self.hold(hub, endpoint, connection, identity.signer.clone()).await;
        }
        let renewed = renew::renew(&self.shared.env, &self.shared.paths, identity, &connection).await;
        timeout(FAREWELL, endpoint.wait_idle()).await.ok(); // late is no harm
        let problem = match renewed {
            Ok(()) => Problem::new(RENEWED, "this node's certificate was renewed"),
            Err(error) => {
                let message =
                    format!("this node's certificate was not renewed by {hub}: {error}; it is asked for again");
                Problem::new("NotRenewed", message)
            }
        };
        (problem, Duration::ZERO)
    }

    /// The session on a connection; why it ended and how long it lived.
    async fn hold(
        &self,
        hub: &str,
        endpoint: Endpoint,
        connection: Connection,
        signer: SecretKey,
    ) -> (Problem, Duration) {
        let session = match Session::begin(self.shared.clone(), hub, connection.clone(), signer).await {
            Ok(session) => session,
            Err(problem) => return (problem, Duration::ZERO),
        };
        let began = Instant::now();
        let now = self.shared.env.wall.now();
        self.live.send_replace(Some(Live::new(endpoint, connection)));
        self.online.send_replace(true);
        self.state.send_replace(LinkState {
            connected: true,
            hub: hub.to_owned(),
            since: now,
            problem: None,
            failures: 0,
        });
        (session.run().await, began.elapsed())
    }

    /// Ends the session politely: the hub need not wait for silence.
    pub async fn farewell(&self) {
        let Some(live) = self.live.send_replace(None) else { return };
        live.connection.close(CloseCode::Done.code(), b"the agent is shutting down");
        // Late is no harm: the hub notices the silence.
        timeout(FAREWELL, live.endpoint.wait_idle()).await.ok();
    }
}

/// Keeps a connection on the carrier that works, where there are several. Never ends.
async fn keep_moving<T>(path: Option<&Path>, endpoint: &Endpoint, connection: &Connection) -> T {
    if let Some(path) = path {
        path.run(endpoint, Some(connection)).await;
    }
    std::future::pending().await
}

/// Mutual TLS: the hub by the fleet's CA, the node by its certificate.
fn tls(env: &Env, identity: &Identity, purpose: Purpose) -> Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(ca) = identity.chain.last() {
        roots.add(ca.clone())?;
    }
    let builder = quic::tls(env)?.with_root_certificates(roots);
    let mut config = builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = match purpose {
        Purpose::Session => ALPN.iter().map(|name| name.to_vec()).collect(),
        Purpose::Renewal => vec![ALPN_RENEW.to_vec()],
    };
    Ok(config)
}
