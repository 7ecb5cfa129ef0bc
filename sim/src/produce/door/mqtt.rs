//! MQTT 3.1.1, QoS 1: one publish a record, many at a time.
//!
//! PUBACKs come in the order of the publishes (MQTT 3.1.1, 4.6), so their number says which are taken.

use std::net::SocketAddr;

use bytes::Bytes;
use rumqttc::{AsyncClient, ConnectReturnCode, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::time::timeout;

use super::{ANSWER_TIMEOUT, Door, Failed, MAX_OFFER};
use proto::stream::MAX_RECORD_BYTES;

/// Publishes that wait for their PUBACK at the same time; what is beyond it waits here.
const IN_FLIGHT: u16 = 1000;
/// What a publish adds to its record, generously.
const OVERHEAD_BYTES: usize = 4096;

/// One connection.
pub struct Mqtt {
    client: AsyncClient,
    events: EventLoop,
    topic: String,
}

impl std::fmt::Debug for Mqtt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mqtt").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Mqtt {
    pub(super) async fn connect(door: &Door, address: SocketAddr) -> Result<Mqtt, Failed> {
        let mut options = MqttOptions::new(&door.client, address.ip().to_string(), address.port());
        options.set_clean_session(true).set_inflight(IN_FLIGHT);
        options.set_keep_alive(std::time::Duration::ZERO); // nobody polls between two offers
        options.set_max_packet_size(MAX_RECORD_BYTES + OVERHEAD_BYTES, MAX_RECORD_BYTES + OVERHEAD_BYTES);
        if let Some((user, password)) = &door.user {
            options.set_credentials(user, password);
        }
        let (client, mut events) = AsyncClient::new(options, MAX_OFFER);
        let mut network = rumqttc::NetworkOptions::new();
        network.set_tcp_nodelay(true);
        events.set_network_options(network);
        let topic = door.topic.clone().unwrap_or_else(|| format!("crossdock/streams/{}", door.stream));
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => return Ok(Mqtt { client, events, topic }),
                Ok(_) => {}
                Err(rumqttc::ConnectionError::ConnectionRefused(
                    code @ (ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized),
                )) => return Err(Failed::Refused(format!("{code:?}; name the user with --user and --password-file"))),
                Err(error) => return Err(Failed::Unreachable(error.to_string())),
            }
        }
    }

    pub(super) async fn offer(&mut self, records: &[Bytes]) -> Result<(), Failed> {
        if records.len() > MAX_OFFER {
            return Err(Failed::Refused(format!("{} records at once; {MAX_OFFER} is the most", records.len())));
        }
        for record in records {
            // There is room: the queue takes a whole offer, and the last one is done.
            let queued = self.client.try_publish(&self.topic, QoS::AtLeastOnce, false, record.clone());
            queued.map_err(|e| Failed::Refused(e.to_string()))?;
        }
        let mut acknowledged = 0;
        while acknowledged < records.len() {
            // A poll that is cancelled loses its place: after the timeout this connection is dropped.
            match timeout(ANSWER_TIMEOUT, self.events.poll()).await {
                Ok(Ok(Event::Incoming(Packet::PubAck(_)))) => acknowledged += 1,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(Failed::NoAnswer { acknowledged, why: error.to_string() }),
                Err(_) => {
                    let why = format!("it acknowledged nothing for {ANSWER_TIMEOUT:?}");
                    return Err(Failed::NoAnswer { acknowledged, why });
                }
            }
        }
        Ok(())
    }
}
