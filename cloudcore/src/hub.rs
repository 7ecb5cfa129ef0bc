//! The hub put together: what it owns, how it starts and how it drains.
//!
//! ```text
//!              +--------- Store (objects) <----------------- API (REST, CLI)
//!   Planner ---+   ^
//!   (rollouts)     | reports, when changed
//!              Sessions <== QUIC ==> agents
//!                  |  assignments, artifacts, metadata
//!              Blobs, Trust, Director, Ca, Streams, Webhooks
//! ```
//!
//! [`Hub::open`] binds the link, [`Hub::run`] serves until told to stop. Opened by `cloudcore serve`, by
//! the simulator and by tests; all of them hand in an [`Env`].

#[cfg(test)]
pub(crate) mod fixture;

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use jiff::Timestamp;
use proto::{
    durable::DurableError,
    env::Env,
    link::message::LogsRequest,
    name::{Name, NameError, ObjectName},
    object::{Admission, JoinToken, JoinTokenSpec, Node, Object, Site, SiteSpec},
    selector::bad_label,
    token::Token,
    watch,
};
use quinn::{RecvStream, SendStream};
use rand::Rng as _;
use rand_chacha::ChaCha12Rng;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    audit::Audit,
    blobs::{BlobError, Blobs},
    bus,
    ca::{Ca, CaError},
    config::HubConfig,
    director::{Director, DirectorError},
    link::{
        self, ExecError, LogsError,
        brokers::{Brokers, Through},
        endpoint,
        sessions::Sessions,
    },
    planner,
    store::{Store, StoreError},
    streams::{self, Streams},
    trust::{Trust, TrustError},
    webhooks::{self, Webhooks},
};

/// Most boxes that one token may admit.
pub const MAX_TOKEN_USES: u32 = 10_000;
/// Longest life of a token.
pub const MAX_TOKEN_TTL: Duration = Duration::from_secs(366 * 86_400);
/// How long peers have to take note that the hub goes away.
const DRAIN: Duration = Duration::from_secs(3);

/// Why the hub cannot start, run, or do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blobs failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The release metadata failed.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The director failed.
    #[error(transparent)]
    Director(#[from] DirectorError),
    /// The certificate authority failed.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A file could not be written.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// The link's keys are damaged.
    #[error(
        "the link's keys in {} are damaged; remove the file and its .bak: agents will need a minute longer to notice the restart",
        .0.display()
    )]
    LinkKeys(PathBuf),
    /// TLS refused the certificates.
    #[error("TLS refused the hub's certificates: {0}")]
    Tls(String),
    /// The port is taken, or the address not ours.
    #[error("could not listen on UDP {address}; choose another link address or stop what uses it")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A token without a release repository would admit boxes that trust nobody.
    #[error(
        "the hub has no release repository yet, and boxes learn from their token whose releases to trust; publish first: crossdock release publish"
    )]
    NoTrustRoot,
    /// A token's bounds are out of range.
    #[error("a token needs 1 to {MAX_TOKEN_USES} uses and a life of 1 second to 366 days")]
    TokenBounds,
    /// A label cannot be selected.
    #[error("label {0:?} is not usable; use letters, digits, '-', '_', '.' and '/' in key and value, 1 to 128 of them")]
    Label(String),
    /// A name came out malformed.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// The hub. Cheap to clone.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    config: HubConfig,
    env: Env,
    store: Store,
    blobs: Blobs,
    trust: Trust,
    director: Director,
    ca: Ca,
    sessions: Sessions,
    brokers: Arc<Brokers>,
    streams: Streams,
    webhooks: Webhooks,
    audit: Audit,
    endpoint: quinn::Endpoint,
    /// What new connections get.
    terms: Mutex<quinn::ServerConfig>,
    address: SocketAddr,
    tokens: Mutex<ChaCha12Rng>,
    /// One admission at a time.
    joining: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hub({})", self.0.address)
    }
}

impl Hub {
    /// Opens the data folder of `config`, which `cloudcore init` made, and binds the link.
    ///
    /// # Errors
    /// When a part of the folder is missing or damaged, or the address cannot be bound.
    pub async fn open(config: HubConfig, env: Env) -> Result<Hub, HubError> {
        let data = config.data_dir.clone();
        let ca = Ca::open(&data, &env)?;
        let store = Store::open(&data.join("hub.db"), &env).await?;
        let blobs = Blobs::open(&data.join("blobs"), &env)?;
        let trust = Trust::open(&data.join("trust.record"), &env, &blobs, &store).await?;
        let director = Director::open(&data, &env)?;
        let brokers = Arc::new(Brokers::new(&config.brokers, &config.fleet, config.data_dir.clone()));
        let (endpoint, terms) = endpoint::bind(&config, &env, &ca, &brokers)?;
        let address = endpoint.local_addr().map_err(|source| HubError::Bind { address: config.link_listen, source })?;
        let sessions = Sessions::new(&env, &config, Arc::clone(&brokers));
        let streams = Streams::open(&config, &env);
        let webhooks = Webhooks::open(config.webhooks.clone(), &store).await?;
        let tokens = Mutex::new(env.seed.stream(&format!("join tokens since {}", env.wall.now())));
        let audit = Audit::at(config.audit(), &env);
        let joining = tokio::sync::Mutex::default();
        Ok(Hub(Arc::new(Inner {
            config,
            env,
            store,
            blobs,
            trust,
            director,
            ca,
            sessions,
            brokers,
            streams,
            webhooks,
            audit,
            endpoint,
            terms: Mutex::new(terms),
            address,
            tokens,
            joining,
        })))
    }

    /// Serves agents and drives rollouts until `shutdown` completes, then takes leave of the agents.
    ///
    /// # Errors
    /// None at present: a loop that fails says so in the log and tries again until the shutdown.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) -> Result<(), HubError> {
        let (stop, stopped) = watch::channel(false);
        let mut peers = JoinSet::new(); // they live on while the hub takes leave of them
        let loops = async {
            let accept = link::accept_loop(self.clone(), stopped.clone(), &mut peers);
            let follow = link::follow_loop(self.clone(), stopped.clone());
            let liveness = link::liveness_loop(self.clone(), stopped.clone());
            let plan = planner::drive::run(self.clone(), stopped.clone());
            let records = streams::run(self.clone(), stopped.clone());
            let tell = webhooks::run(self.clone(), stopped.clone());
            let bus = bus::run(self.clone(), stopped.clone());
            tokio::join!(accept, follow, liveness, plan, records, tell, bus);
        };
        let stopper = async {
            shutdown.await;
            stop.send_replace(true);
        };
        let work = async {
            tokio::join!(loops, stopper);
            self.drain().await;
        };
        // The brokers' connections last until leave was taken through them. Neither arm is begun again.
        tokio::select! { biased;
            () = self.0.brokers.run(&self.0.env) => {}
            () = work => {}
        }
        Ok(())
    }

    async fn drain(&self) {
        self.0.sessions.close_all(proto::link::CloseCode::GoingAway);
        self.0.endpoint.close(proto::link::CloseCode::GoingAway.code(), b"the hub is shutting down");
        if tokio::time::timeout(DRAIN, self.0.endpoint.wait_idle()).await.is_err() {
            tracing::warn!("some agents did not take note that the hub goes away; they will notice by themselves");
        }
    }

    /// Where agents reach it (the real port, when the configuration says 0).
    #[must_use]
    pub fn link_addr(&self) -> SocketAddr {
        self.0.address
    }

    /// Its objects.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Its artifacts.
    #[must_use]
    pub fn blobs(&self) -> &Blobs {
        &self.0.blobs
    }

    /// Its release metadata.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        &self.0.trust
    }

    /// What signs its orders.
    #[must_use]
    pub fn director(&self) -> &Director {
        &self.0.director
    }

    /// Its streams of records.
    #[must_use]
    pub fn streams(&self) -> &Streams {
        &self.0.streams
    }

    /// Its certificate authority.
    #[must_use]
    pub fn ca(&self) -> &Ca {
        &self.0.ca
    }

    /// Its outside.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.0.env
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &HubConfig {
        &self.0.config
    }

    /// Who is told of events.
    #[must_use]
    pub fn webhooks(&self) -> &Webhooks {
        &self.0.webhooks
    }

    /// Who changed what.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.0.audit
    }

    pub(crate) fn brokers(&self) -> &Brokers {
        &self.0.brokers
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    pub(crate) fn joining(&self) -> &tokio::sync::Mutex<()> {
        &self.0.joining
    }

    pub(crate) fn endpoint(&self) -> &quinn::Endpoint {
        &self.0.endpoint
    }

    /// What a new connection gets.
    pub(crate) fn terms(&self, through: &Through) -> Arc<quinn::ServerConfig> {
        let terms = self.0.terms.lock().unwrap_or_else(PoisonError::into_inner);
        endpoint::of_one(&terms, &self.0.env, through.flag())
    }

    /// Changes what new connections get.
    pub(crate) fn set_terms(&self, terms: quinn::ServerConfig) {
        self.0.endpoint.set_server_config(Some(terms.clone()));
        *self.0.terms.lock().unwrap_or_else(PoisonError::into_inner) = terms;
    }

    /// Makes a join token for boxes of `site`, or for the one box `node`. The token is in no other place:
    /// the hub keeps its hash.
    ///
    /// # Errors
    /// Without a release repository, with bounds out of range, or when the store fails.
    pub async fn create_token(
        &self,
        site: Name,
        node: Option<Name>,
        uses: u32,
        ttl: Duration,
        labels: BTreeMap<String, String>,
        approve: bool,
    ) -> Result<(JoinToken, Token), HubError> {
        let (_, root) = self.0.trust.first_root().ok_or(HubError::NoTrustRoot)?;
        if !(1..=MAX_TOKEN_USES).contains(&uses) || ttl < Duration::from_secs(1) || ttl > MAX_TOKEN_TTL {
            return Err(HubError::TokenBounds);
        }
        if let Some((key, value)) = bad_label(&labels) {
            return Err(HubError::Label(format!("{key}={value}").chars().take(80).collect()));
        }
        let expires_at = self.0.env.wall.now().checked_add(ttl).unwrap_or(Timestamp::MAX);
        self.ensure_site(&site).await?;
        let (id, secret) = self.draw_token();
        let secret_hash = Token::secret_hash(&secret);
        let spec = JoinTokenSpec { site, node, uses, expires_at, secret_hash, labels, approve };
        let name: ObjectName = id.parse()?;
        let object = self.0.store.create(Object::new(name, spec)).await?;
        let (fleet, director) = (Some(self.0.config.fleet.clone()), Some(self.0.director.first_root().1));
        Ok((object, Token { id, secret, ca: self.0.ca.spki(), root, director, fleet }))
    }

    fn draw_token(&self) -> (String, String) {
        let mut rng = self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut id, mut secret) = ([0; 5], [0; 16]);
        rng.fill_bytes(&mut id);
        rng.fill_bytes(&mut secret);
        (format!("t-{}", HEXLOWER.encode(&id)), BASE64URL_NOPAD.encode(&secret))
    }

    /// Makes the site object if there is none.
    pub(crate) async fn ensure_site(&self, site: &Name) -> Result<(), StoreError> {
        if self.0.store.get::<SiteSpec>(site.as_str()).await?.is_some() {
            return Ok(());
        }
        let site: Site = Object::new(site.clone(), SiteSpec::default());
        match self.0.store.create(site).await {
            Ok(_) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Changes by hand whether a node's key is let in. Revoking closes its session before this returns. `None`: there is
    /// no such node, or it never joined.
    ///
    /// # Errors
    /// When the store fails; nothing has changed then.
    pub async fn set_admission(&self, name: &Name, admission: Admission) -> Result<Option<Node>, StoreError> {
        let _one = self.0.joining.lock().await; // a join that was decided before must not undo it
        let now = self.0.env.wall.now();
        let change = move |node: &mut Node| {
            let Some(identity) = &mut node.status.identity else { return };
            if identity.admission != admission {
                (identity.admission, identity.admission_since) = (admission, Some(now));
            }
            if admission == Admission::Revoked {
                identity.next = None;
            }
        };
        let node = self.0.store.modify(name.as_str(), change).await?;
        let node = node.filter(|node| node.status.identity.is_some());
        if let Some(node) = &node {
            self.0.sessions.assign(node);
        }
        Ok(node)
    }

    /// Closes the session of a node whose key is no longer admitted, such as a deleted one.
    #[allow(clippy::unused_async)] // so that a store with several replicas can stand behind it
    pub async fn revoke_node(&self, name: &Name) {
        self.0.sessions.revoke(name);
    }

    /// A node as the store has it, with the figures that only memory has.
    #[must_use]
    pub fn node_view(&self, node: Node) -> Node {
        self.0.sessions.view(node)
    }

    /// Output of a workload, from the node itself.
    ///
    /// # Errors
    /// When the node is not connected, does not answer, or has no such app.
    pub async fn node_logs(
        &self,
        node: &Name,
        request: LogsRequest,
    ) -> Result<mpsc::Receiver<Result<Bytes, LogsError>>, LogsError> {
        link::logs::fetch(&self.0.sessions, node, request).await
    }

    /// A way to an app on a node, for somebody who wants to run a command there.
    ///
    /// # Errors
    /// When the node is not connected, does not answer, or lets nobody in.
    pub async fn node_exec(&self, node: &Name, app: Name) -> Result<(RecvStream, SendStream), ExecError> {
        link::exec::open(&self.0.sessions, node, app).await
    }
}
