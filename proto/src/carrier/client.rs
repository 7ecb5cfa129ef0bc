//! One connection with a broker, by rumqttc: subscribes, then carries what a [`Pipe`] holds, until it ends.
//!
//! QoS 0 throughout: what is lost QUIC sends again. The session is clean and the client's name is its own in
//! every run of the program: two of one name would throw each other out for ever.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, Incoming, MqttOptions, QoS, SubscribeReasonCode,
    TlsError,
};
use serde::{Deserialize, Serialize};

use super::{
    frame::MAX_MESSAGE_BYTES,
    pipe::{Outgoing, Pipe},
};
use crate::{
    broker::Broker,
    env::{Blocking, WallClock},
};

/// Seconds that connecting may take, from the first packet to the broker's word.
const CONNECT_SECS: u64 = 10;
/// Silence after which the broker is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Messages between the pipe and the wire.
const REQUESTS: usize = 4;
/// What an MQTT packet has besides our message: header, lengths, a topic of two names.
const PACKET_EXTRA_BYTES: usize = 512;

/// Who connects, and where to.
#[derive(Debug, Clone)]
pub struct Client {
    /// The broker.
    pub broker: Broker,
    /// Where relative paths of its settings lie.
    pub folder: PathBuf,
    /// The name of this client at the broker.
    pub id: String,
    /// For certificates.
    pub clock: Arc<dyn WallClock>,
    /// For files.
    pub blocking: Blocking,
}

/// Why a carrier does not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// One word for programs: `Unreachable`, `WrongCertificate`, `Refused`, `Forbidden`, `Proxy`, `PacketLimit`,
    /// `NoHub`, `Lost`, `Local`.
    pub reason: String,
    /// For people, with what to do.
    pub message: String,
}

impl Trouble {
    /// Of a reason.
    #[must_use]
    pub fn new(reason: &str, message: impl Into<String>) -> Trouble {
        Trouble { reason: reason.into(), message: message.into() }
    }
}

impl Client {
    /// Connects, and carries what `pipe` holds until the connection ends; says why it did. Dropped, it hangs up.
    pub async fn run(&self, pipe: &Pipe) -> Trouble {
        let _down = Down(pipe);
        let mut options = match self.options(MAX_MESSAGE_BYTES + PACKET_EXTRA_BYTES).await {
            Ok(options) => options,
            Err(trouble) => return trouble,
        };
        options.set_keep_alive(KEEP_ALIVE).set_inflight(1);
        let (requests, mut events) = AsyncClient::new(options, REQUESTS);
        events.network_options.set_tcp_nodelay(true);
        events.network_options.set_connection_timeout(CONNECT_SECS);
        // Neither is begun again: whichever ends, the connection does.
        tokio::select! {
            biased;
            trouble = self.receive(&requests, &mut events, pipe) => trouble,
            trouble = self.forward(&requests, pipe) => trouble,
        }
    }

    /// What a connection is made of, for packets of so many bytes at most, with a clean session.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub async fn options(&self, most_bytes: usize) -> Result<MqttOptions, Trouble> {
        let (broker, id, folder, clock) =
            (self.broker.clone(), self.id.clone(), self.folder.clone(), self.clock.clone());
        let options = self.blocking.run(move || broker.options(&id, &folder, clock)).await;
        let mut options =
            options.map_err(|problem| Trouble::new("Local", format!("broker {}: {problem}", self.broker.url)))?;
        options.set_clean_session(true).set_max_packet_size(most_bytes, most_bytes);
        Ok(options)
    }

    async fn receive(&self, requests: &AsyncClient, events: &mut EventLoop, pipe: &Pipe) -> Trouble {
        let (mut subscribed, canary) = (false, pipe.canary());
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                    if requests.try_subscribe(pipe.filter(), QoS::AtMostOnce).is_err() {
                        return self.lost("the subscription did not fit");
                    }
                }
                Ok(Event::Incoming(Incoming::SubAck(suback))) => {
                    let refused = suback.return_codes.contains(&SubscribeReasonCode::Failure);
                    if refused && !subscribed {
                        return self.forbidden(pipe);
                    }
                    if !std::mem::replace(&mut subscribed, true) {
                        pipe.up();
                        self.leave_or_seek_canary(requests, pipe);
                    }
                }
                Ok(Event::Incoming(Incoming::Publish(publish))) if publish.topic == canary => pipe.exposed(),
                Ok(Event::Incoming(Incoming::Publish(publish))) => {
                    // What a broker kept is older than anything QUIC waits for.
                    while !publish.retain && !pipe.arrived(&publish.topic, &publish.payload) {
                        pipe.room().await;
                    }
                }
                Ok(_) => {}
                Err(error) => return self.trouble(&error, subscribed),
            }
        }
    }

    /// The hub leaves a message where no node may read; a node looks whether it can. Either is only a warning's
    /// worth: when the request does not fit, it is left out.
    fn leave_or_seek_canary(&self, requests: &AsyncClient, pipe: &Pipe) {
        let asked = match pipe.is_hub() {
            true => requests.try_publish(pipe.canary(), QoS::AtMostOnce, true, "no node may read this"),
            false => requests.try_subscribe(pipe.canary(), QoS::AtMostOnce),
        };
        if let Err(error) = asked {
            tracing::debug!(%error, "the broker's rules were not looked at");
        }
    }

    /// Begins when the subscription stands: before that the pipe holds nothing.
    async fn forward(&self, requests: &AsyncClient, pipe: &Pipe) -> Trouble {
        loop {
            let Outgoing { topic, payload } = pipe.next().await;
            if requests.publish_bytes(topic, QoS::AtMostOnce, false, payload).await.is_err() {
                return self.lost("it takes no more messages");
            }
        }
    }

    fn forbidden(&self, pipe: &Pipe) -> Trouble {
        let (url, filter) = (&self.broker.url, pipe.filter());
        let who = self.broker.user.as_ref().map_or("this client".to_owned(), |user| format!("user {user}"));
        Trouble::new(
            "Forbidden",
            format!("broker {url} forbids {who} to read {filter}: allow it there (images/mosquitto has the rules)"),
        )
    }

    /// A connection ended.
    #[must_use]
    pub fn lost(&self, why: &str) -> Trouble {
        Trouble::new("Lost", format!("the connection with broker {} broke off ({why}); trying again", self.broker.url))
    }

    /// What an error of rumqttc means to an operator.
    /// `was_up`: it spoke MQTT before.
    #[must_use]
    pub fn trouble(&self, error: &ConnectionError, was_up: bool) -> Trouble {
        let url = &self.broker.url;
        match error {
            ConnectionError::ConnectionRefused(
                code @ (ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized),
            ) => {
                let who = self.broker.user.as_ref().map_or("a client without a user".into(), |u| format!("user {u}"));
                let message = format!(
                    "broker {url} does not let {who} in ({code:?}): check user and password file (with a user of \
                     its own for each node, the user is there and the password is right), or the certificate"
                );
                Trouble::new("Refused", message)
            }
            ConnectionError::ConnectionRefused(code) => {
                Trouble::new("Refused", format!("broker {url} refuses the connection ({code:?}); see its log"))
            }
            ConnectionError::Tls(TlsError::Io(error)) => self.tls(error),
            ConnectionError::Io(error) if error.get_ref().is_some_and(|e| e.is::<rustls::Error>()) => self.tls(error),
            ConnectionError::Tls(error) => self.certificate(&error.to_string()),
            ConnectionError::Websocket(error) => {
                let text = error.to_string();
                if self.broker.url.scheme.is_tls() && text.contains("certificate") {
                    return self.certificate(&text);
                }
                let message = format!(
                    "{url} speaks no WebSocket ({text}): check port and path, and that the broker's listener is \
                     for WebSockets"
                );
                Trouble::new("Unreachable", message)
            }
            ConnectionError::ResponseValidation(error) => Trouble::new(
                "Unreachable",
                format!("{url} is a WebSocket, but not one of MQTT ({error}): check its path"),
            ),
            ConnectionError::Proxy(error) => self.proxy(&error.to_string()),
            // With TLS 1.3 a certificate that the broker does not like is refused after the handshake.
            ConnectionError::MqttState(error) if !was_up && error.to_string().contains("fatal alert") => {
                self.certificate(&error.to_string())
            }
            ConnectionError::MqttState(error) if !was_up => self.unreachable(&error.to_string()),
            ConnectionError::MqttState(error) => self.lost(&error.to_string()),
            ConnectionError::FlushTimeout => self.lost("it takes nothing any more"),
            ConnectionError::NetworkTimeout => self.unreachable(&format!("no answer within {CONNECT_SECS} s")),
            other => self.unreachable(&other.to_string()),
        }
    }

    fn unreachable(&self, why: &str) -> Trouble {
        let url = &self.broker.url;
        let tls = match self.broker.url.scheme.is_tls() {
            true => "",
            false => ", and that the port is not one for TLS",
        };
        let message = format!(
            "broker {url} does not answer ({why}): check the address, that TCP goes out to its port, that it runs{tls}"
        );
        Trouble::new("Unreachable", message)
    }

    fn proxy(&self, why: &str) -> Trouble {
        let proxy = self.broker.proxy.as_ref().map(ToString::to_string).unwrap_or_default();
        let url = &self.broker.url;
        let mend = if why.contains("407") {
            "set proxy-user and proxy-password-file to what it wants"
        } else if why.contains("403") || why.contains("405") {
            "allow CONNECT to the broker's host and port there (squid: SSL_ports; tinyproxy: ConnectPort)"
        } else {
            "check its address, and that it reaches the broker"
        };
        Trouble::new("Proxy", format!("proxy {proxy} does not connect to {url} ({why}): {mend}"))
    }

    fn tls(&self, error: &std::io::Error) -> Trouble {
        match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
            Some(error) => self.certificate(&error.to_string()),
            None => self.unreachable(&format!("{error}; it may listen without TLS there")),
        }
    }

    fn certificate(&self, why: &str) -> Trouble {
        let url = &self.broker.url;
        let mend = if why.contains("fatal alert") {
            "the broker refused ours: check certificate and key in the settings of this broker"
        } else if why.contains("not valid for name") || why.contains("NotValidForName") {
            "its certificate is for another name: use that name in the url"
        } else if why.contains("xpired") || why.contains("not valid yet") {
            "check the clock of this machine, then renew the broker's certificate"
        } else {
            "check that ca in the settings of this broker holds the authority that signed its certificate"
        };
        Trouble::new("WrongCertificate", format!("no TLS with broker {url} ({why}): {mend}"))
    }
}

/// However a connection ends, the pipe learns of it.
struct Down<'a>(&'a Pipe);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        self.0.down();
    }
}
