//! The link's carriers: UDP, and MQTT through the brokers of `agent.toml`. One QUIC connection moves between them.
//!
//! | module | what it holds |
//! |---|---|
//! | [`choice`] | which carrier to use: a machine |
//! | [`reach`] | whether the hub answers through a broker, and how large messages may be: a machine |
//! | [`route`] | where datagrams go, and what was seen of the path |
//! | [`path`] | one connection's socket, and the loop around the choice |
//! | [`broker`] | the connection with a broker, the first that works |
//!
//! Without brokers none of this is there: [`super::quic`] connects over UDP alone.

mod broker;
mod choice;
mod path;
mod reach;
mod route;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use proto::{
    broker::Broker,
    env::{Env, Seed},
    name::Name,
    object::CarrierStatus,
    watch,
};
use quinn::{Connection, Endpoint};
use tokio::time::{Instant, sleep, timeout};

pub(crate) use self::path::Path;
use self::{
    broker::Brokers,
    choice::{Carrier, Choice, Input},
};
use super::{
    problem::Problem,
    quic::{self, HANDSHAKE},
};

/// After this the attempt is over as soon as a broker is in trouble, for each of them.
const IN_TROUBLE: Duration = Duration::from_secs(4);
/// How long any carrier may take to reach a hub.
const DECIDE: Duration = Duration::from_secs(12);

/// The carriers of an agent. They outlive its connections.
#[derive(Debug)]
pub(crate) struct Carriers {
    env: Env,
    node: Name,
    udp: bool,
    brokers: Brokers,
    choice: Mutex<Choice>,
    /// What went wrong over UDP last, and whether it is still so.
    udp_trouble: Mutex<(Option<String>, bool)>,
    told: watch::Sender<Vec<CarrierStatus>>,
}

impl Carriers {
    /// Of the brokers in `list`, whose relative paths are in `folder`; `None` when there are none.
    pub(crate) fn new(
        env: &Env,
        list: &[Broker],
        udp: bool,
        fleet: &Name,
        node: &Name,
        folder: PathBuf,
    ) -> Option<Arc<Carriers>> {
        if list.is_empty() {
            return None;
        }
        Some(Arc::new(Carriers {
            env: env.clone(),
            node: node.clone(),
            udp,
            brokers: Brokers::new(list.to_vec(), fleet, node, folder),
            choice: Mutex::new(Choice::new(Instant::now(), udp)),
            udp_trouble: Mutex::default(),
            told: watch::Sender::new(vec![]),
        }))
    }

    /// Keeps a connection with a broker, for ever.
    pub(crate) async fn run(&self) {
        self.brokers.run(&self.env).await;
    }

    /// How the carriers stand, as it changes.
    pub(crate) fn told(&self) -> watch::Receiver<Vec<CarrierStatus>> {
        self.told.subscribe()
    }

    /// Connects to one of `hubs` over the carrier that works. The path is to run beside the connection.
    pub(crate) async fn connect(
        self: &Arc<Carriers>,
        hubs: &[String],
        tls: rustls::ClientConfig,
        seed: &Seed,
    ) -> Result<(Endpoint, Connection, Path), Problem> {
        let no_socket = |e: std::io::Error| Problem::new("Local", format!("no socket could be made here: {e}"));
        let path = Path::new(Arc::clone(self), hubs.to_vec(), seed.bytes("probe")).map_err(no_socket)?;
        let endpoint = quic::endpoint_over(&self.env, path.socket(), seed).map_err(no_socket)?;
        let name = hubs.join(", ");
        self.choice(|choice| choice.again(Instant::now()));
        // Neither is begun again.
        let decided = tokio::select! {
            biased;
            decided = timeout(DECIDE, path.decided(&endpoint)) => decided.is_ok(),
            () = self.in_trouble() => false,
        };
        if !decided {
            return Err(self.unreachable(&name));
        }
        let client = quic::client(tls, seed)?;
        let connecting = endpoint
            .connect_with(client, path::destination(), proto::identity::HUB_DNS_NAME)
            .map_err(|e| Problem::new("Local", format!("{name} cannot be connected to: {e}")))?;
        let connected = tokio::select! {
            biased;
            () = path.run(&endpoint, None) => return Err(self.unreachable(&name)),
            connected = timeout(HANDSHAKE, connecting) => connected,
        };
        let failed = || self.choice(|choice| choice.handle(Instant::now(), Input::Failed));
        match connected {
            Ok(Ok(connection)) => Ok((endpoint, connection, path)),
            Ok(Err(error)) => {
                if matches!(error, quinn::ConnectionError::TimedOut) {
                    failed();
                }
                Err(Problem::of(&error, &name, false))
            }
            Err(_) => {
                failed();
                Err(Problem::unreachable(&name, format!("no answer within {} s", HANDSHAKE.as_secs())))
            }
        }
    }

    /// Until it is clear that no broker helps.
    async fn in_trouble(&self) {
        sleep(IN_TROUBLE * u32::try_from(self.brokers.count()).unwrap_or(u32::MAX).min(4)).await;
        let mut standing = self.brokers.standing();
        if standing.wait_for(|s| s.trouble.is_some()).await.is_err() {
            std::future::pending::<()>().await; // the sender is ours and lives longer
        }
    }

    fn unreachable(&self, hubs: &str) -> Problem {
        let trouble = self.brokers.standing().borrow().trouble.as_ref().map(|t| t.message.clone());
        let mqtt = trouble.unwrap_or_else(|| "the broker has not answered yet".into());
        let udp = match self.udp {
            true => "UDP: no answer to its port",
            false => "UDP: switched off in agent.toml",
        };
        Problem::new("Unreachable", format!("hub {hubs} is reached over no carrier. {udp}. MQTT: {mqtt}"))
    }

    /// A name that does not resolve.
    fn unresolved(&self, hub: &str, why: &str) {
        tracing::debug!("hub {hub}: its name does not resolve: {why}");
        let mut trouble = self.udp_trouble.lock().unwrap_or_else(PoisonError::into_inner);
        *trouble = (Some(format!("{}: the name of hub {hub} does not resolve: {why}", self.env.wall.now())), true);
    }

    /// Tells how the carriers stand now.
    fn tell(&self, hub: Option<SocketAddr>) {
        let (active, alive) = self.choice(|choice| (choice.active(), choice.is_udp_alive()));
        let standing = self.brokers.standing().borrow().clone();
        let now = self.env.wall.now();
        let at = hub.map(|hub| SocketAddr::new(hub.ip().to_canonical(), hub.port()).to_string()).unwrap_or_default();
        let last_error = {
            let mut trouble = self.udp_trouble.lock().unwrap_or_else(PoisonError::into_inner);
            if alive {
                trouble.1 = false;
            } else if active.is_some() && !std::mem::replace(&mut trouble.1, true) {
                trouble.0 =
                    Some(format!("{now:.0}: no answer over UDP from {at}: check that UDP goes out to its port"));
            }
            trouble.0.clone()
        };
        let udp = CarrierStatus {
            name: "udp".into(),
            in_use: active == Some(Carrier::Udp),
            reachable: alive,
            at,
            last_error,
            warning: None,
        };
        let before = self.told.borrow().iter().find(|c| c.name == "mqtt").and_then(|c| c.last_error.clone());
        let mqtt = CarrierStatus {
            name: "mqtt".into(),
            in_use: active == Some(Carrier::Mqtt),
            reachable: standing.reached,
            at: standing.at,
            last_error: match standing.trouble {
                Some(trouble) if before.as_ref().is_some_and(|b| b.ends_with(&trouble.message)) => before,
                Some(trouble) => Some(format!("{now:.0}: {}", trouble.message)),
                None => before,
            },
            warning: standing.warning,
        };
        let carriers = if self.udp { vec![udp, mqtt] } else { vec![mqtt] };
        self.told.send_if_modified(|told| {
            let changed = *told != carriers;
            *told = carriers;
            changed
        });
    }
}
