//! The agent's end of its brokers: one at a time, the first that works.

use std::{path::PathBuf, sync::Arc, time::Duration};

use proto::{
    backoff::Backoff,
    broker::Broker,
    carrier::{
        client::{Client, Trouble},
        pipe::{Pipe, PipeState, Role},
    },
    env::Env,
    name::Name,
    watch,
};
use rand::Rng as _;
use tokio::time::{Instant, sleep, sleep_until};

use super::reach::{Found, Input, Reach};

const BACKOFF_BASE: Duration = Duration::from_millis(250);
const BACKOFF_CAP: Duration = Duration::from_secs(10);
/// A broker without a hub behind it is left for the next after this.
const PATIENCE: Duration = Duration::from_secs(8);

/// How the brokers stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Standing {
    /// Whether the hub answers through one.
    pub(super) reached: bool,
    /// Which one is used, or tried.
    pub(super) at: String,
    /// What is wrong, if something is.
    pub(super) trouble: Option<Trouble>,
    /// What works and should not.
    pub(super) warning: Option<String>,
}

/// The brokers of an agent.
#[derive(Debug)]
pub(super) struct Brokers {
    list: Vec<Broker>,
    pipe: Arc<Pipe>,
    standing: watch::Sender<Standing>,
    fleet: Name,
    node: Name,
    folder: PathBuf,
}

impl Brokers {
    pub(super) fn new(list: Vec<Broker>, fleet: &Name, node: &Name, folder: PathBuf) -> Brokers {
        let pipe = Arc::new(Pipe::new(Role::Node { fleet: fleet.clone(), node: node.clone() }));
        let at = list.first().map(|b| b.url.to_string()).unwrap_or_default();
        let standing = watch::Sender::new(Standing { at, ..Standing::default() });
        Brokers { list, pipe, standing, fleet: fleet.clone(), node: node.clone(), folder }
    }

    pub(super) fn pipe(&self) -> Arc<Pipe> {
        Arc::clone(&self.pipe)
    }

    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Keeps a connection with the first broker through which the hub answers, for ever.
    pub(super) async fn run(&self, env: &Env) {
        let mut rng = env.seed.stream(&format!("brokers at {}", env.wall.now()));
        let id = format!("crossdock-{}-{:08x}", self.node, rng.next_u32());
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP);
        let mut known: Vec<(&Broker, Reach)> = self.list.iter().map(|b| (b, Reach::new(b.segments()))).collect();
        let mut turn = 0;
        loop {
            let several = known.len() > 1;
            let Some((broker, reach)) = known.get_mut(turn) else {
                turn = 0;
                continue;
            };
            let client = Client {
                broker: (*broker).clone(),
                folder: self.folder.clone(),
                id: id.clone(),
                clock: env.wall.clone(),
                blocking: env.blocking,
            };
            let at = client.broker.url.to_string();
            self.standing.send_modify(|standing| standing.at.clone_from(&at));
            let began = Instant::now();
            // Neither is begun again: whichever ends, this connection is over.
            let trouble = tokio::select! {
                biased;
                trouble = env.network.broker(&client, &self.pipe) => trouble,
                trouble = self.watch(broker, reach, several) => trouble,
            };
            reach.handle(Instant::now(), Input::Up(false));
            let was_reached = self.standing.borrow().reached;
            tracing::info!(reason = %trouble.reason, "{}", trouble.message);
            self.standing.send_modify(|standing| {
                standing.reached = false;
                standing.trouble = Some(trouble);
            });
            backoff.ended(began.elapsed());
            // In order: after one that worked they are tried from the first on.
            turn = if was_reached { 0 } else { turn + 1 };
            if turn == 0 || turn >= known.len() {
                sleep(backoff.failed(&mut rng)).await;
            }
        }
    }

    /// Asks for the hub through this broker. Ends when there is none and another broker could be tried.
    async fn watch(&self, broker: &Broker, reach: &mut Reach, several: bool) -> Trouble {
        let mut state = self.pipe.state();
        let began = Instant::now();
        let (mut up, mut answered) = (false, None);
        loop {
            let now = Instant::now();
            let PipeState { up: is_up, answered: last, exposed, .. } = *state.borrow_and_update();
            if is_up != up {
                up = is_up;
                reach.handle(now, Input::Up(up));
            }
            if let Some(echo) = last.filter(|_| last != answered) {
                reach.handle(now, Input::Answered(echo));
            }
            answered = last;
            reach.handle(now, Input::Tick);
            while let Some(echo) = reach.poll() {
                self.pipe.ask(echo);
            }
            self.pipe.set_segments(reach.segments());
            let trouble = self.stand(broker, reach.found(), exposed);
            if let Some(trouble) = trouble.filter(|_| several && began.elapsed() >= PATIENCE) {
                return trouble;
            }
            let wake = reach.wake_at();
            // Both arms are cancel safe.
            tokio::select! {
                biased;
                changed = state.changed() => if changed.is_err() {
                    std::future::pending::<()>().await; // the pipe is ours and lives longer
                },
                () = until(wake) => {}
            }
        }
    }

    /// Tells how it stands now; what is wrong, if that is known.
    fn stand(&self, broker: &Broker, found: Found, exposed: bool) -> Option<Trouble> {
        let url = &broker.url;
        let trouble = match found {
            Found::Unknown | Found::Reached => None,
            Found::NoAnswer => Some(Trouble::new(
                "NoHub",
                format!(
                    "broker {url} lets this node in, but no hub answers through it: check that the hub has this \
                     broker in hub.yaml, and that the broker allows this node to write {topic}/up and to read \
                     {topic}/down (images/mosquitto has the rules)",
                    topic = format_args!("crossdock/v1/{}/{}", self.fleet, self.node)
                ),
            )),
            Found::TooSmall => Some(Trouble::new(
                "PacketLimit",
                format!(
                    "broker {url} takes small messages only: raise its limit (message_size_limit and \
                     max_packet_size in Mosquitto) to 2 KiB at least; 16 KiB is fast"
                ),
            )),
        };
        let warning = exposed.then(|| {
            format!(
                "broker {url} lets this node read other nodes' topics: give it rules for each node \
                 (images/mosquitto has them). What they say stays secret, who talks when does not"
            )
        });
        self.standing.send_if_modified(|standing| {
            let before = standing.clone();
            standing.reached = found == Found::Reached;
            if standing.reached || trouble.is_some() {
                standing.trouble.clone_from(&trouble);
            }
            standing.warning = warning;
            *standing != before
        });
        trouble
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
