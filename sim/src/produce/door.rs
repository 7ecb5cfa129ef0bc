//! A producer's way into an agent: HTTP on TCP or on a Unix socket, or MQTT.
//!
//! One [`Connection`] at a time, one offer at a time; whoever wants more opens more. An offer that was
//! sent and not answered is neither taken nor refused: [`Failed::NoAnswer`] says so, and its producer decides.

mod http;
mod mqtt;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use bytes::Bytes;

/// How long a door may take to answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most records of one offer.
pub const MAX_OFFER: usize = 4096;
/// Bytes of one offer; an agent's HTTP door takes twice as many.
pub const MAX_OFFER_BYTES: usize = 4 << 20;

/// Which door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// HTTP on TCP.
    Http(SocketAddr),
    /// HTTP on a Unix socket.
    Unix(PathBuf),
    /// MQTT 3.1.1 on TCP.
    Mqtt(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Http(address) => write!(f, "http://{address}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
            Address::Mqtt(address) => write!(f, "mqtt://{address}"),
        }
    }
}

/// A door, what goes through it, and who asks.
#[derive(Debug, Clone)]
pub struct Door {
    /// Where it is.
    pub address: Address,
    /// Name of the stream.
    pub stream: String,
    /// MQTT topic; `None`: the agent's own for the stream.
    pub topic: Option<String>,
    /// MQTT client ID, and the name in what is said about it.
    pub client: String,
    /// User and password.
    pub user: Option<(String, String)>,
}

/// What did not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// Nobody listens there now: nothing was sent.
    #[error("the door cannot be reached: {0}")]
    Unreachable(String),
    /// The first `acknowledged` records are taken; whether the others are is not known.
    #[error("no answer for records that were sent: {why}")]
    NoAnswer {
        /// Taken for certain, from the first on.
        acknowledged: usize,
        /// What happened.
        why: String,
    },
    /// Nothing was taken now; the same may be taken later.
    #[error("not taken now: {why}")]
    PushedBack {
        /// What the door said.
        why: String,
        /// When to ask again, if the door said so.
        after: Option<Duration>,
    },
    /// Nothing was taken, and it never will be.
    #[error("refused: {0}")]
    Refused(String),
}

/// A connection to a door.
#[derive(Debug)]
pub enum Connection {
    /// HTTP.
    Http(http::Http),
    /// MQTT.
    Mqtt(Box<mqtt::Mqtt>),
}

impl Door {
    /// Connects.
    ///
    /// # Errors
    /// [`Failed::Unreachable`], or [`Failed::Refused`] by one that does not know us.
    pub async fn connect(&self) -> Result<Connection, Failed> {
        let connecting = async {
            match &self.address {
                Address::Mqtt(address) => Ok(Connection::Mqtt(Box::new(mqtt::Mqtt::connect(self, *address).await?))),
                Address::Http(_) | Address::Unix(_) => Ok(Connection::Http(http::Http::connect(self).await?)),
            }
        };
        let late = |_| Failed::Unreachable(format!("it did not answer within {CONNECT_TIMEOUT:?}"));
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(late)?
    }
}

impl Connection {
    /// Offers records, at most [`MAX_OFFER`]; returns when all of them are acknowledged. After any error
    /// but [`Failed::PushedBack`] the connection is of no use any more.
    ///
    /// # Errors
    /// See [`Failed`].
    pub async fn offer(&mut self, records: &[Bytes]) -> Result<(), Failed> {
        match self {
            Connection::Http(http) => http.offer(records).await,
            Connection::Mqtt(mqtt) => mqtt.offer(records).await,
        }
    }
}
