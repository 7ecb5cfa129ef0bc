//! One MQTT client: what its packets mean, what it is answered. Bytes in, bytes out; the only thing it
//! waits for is the outbox.

use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use mqtt_protocol_core::mqtt::{
    Connection, Version,
    common::Cursor,
    connection::ConnectionOptions,
    packet::{
        AssignedClientIdentifier, MaximumQos, Packet, Property, Qos, ReceiveMaximum, SharedSubscriptionAvailable,
        SubscriptionIdentifierAvailable, TopicAliasMaximum, WildcardSubscriptionAvailable, v3_1_1, v5_0,
    },
    prelude::{Event, GenericPacketTrait as _, TimerKind},
    result_code::{
        ConnectReasonCode, ConnectReturnCode, DisconnectReasonCode, MqttError, PubackReasonCode, SubackReasonCode,
        SubackReturnCode, UnsubackReasonCode,
    },
    role,
};
use proto::{name::Name, stream::MAX_RECORD_BYTES};
use tokio::time::Instant;

use crate::doors::{
    Desk, Reason, Refusal,
    access::Access,
    topic::{is_publishable, stream_of},
};

/// A record, the longest topic, and what else a packet may carry.
const MAX_PACKET_BYTES: u32 = MAX_RECORD_BYTES as u32 + (72 << 10);
/// Publishes of one client that are not answered yet (5).
const RECEIVE_MAXIMUM: u16 = 1024;
const TOPIC_ALIASES: u16 = 16;
/// How long a full or busy outbox is asked again before a client hears of it.
const PATIENCE_311: Duration = Duration::from_secs(10);
const PATIENCE_5: Duration = Duration::from_secs(2);

/// What a publish is answered with once it is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Nothing,
    Puback(u16),
    Pubrec(u16),
}

/// A publish that waits for its append.
#[derive(Debug)]
struct Message {
    /// The group that it belongs to, or why to none.
    group: Result<usize, Refusal>,
    answer: Answer,
}

/// Publishes of one stream, appended together.
#[derive(Debug)]
struct Group {
    stream: Name,
    records: Vec<Bytes>,
    /// Whether one of them is promised an answer.
    promised: bool,
}

/// The state of one connection.
pub(in crate::doors) struct Client<'a> {
    desk: &'a Desk,
    access: Option<&'a Access>,
    core: Connection<role::Server>,
    version: Version,
    connected: bool,
    over: bool,
    /// Name of the client, where its session is kept.
    keeps: Option<String>,
    /// QoS 2 messages that were taken and are not released.
    taken: BTreeSet<u16>,
    messages: Vec<Message>,
    groups: Vec<Group>,
    bytes: usize,
    /// Answers to publishes; they go before `out`.
    acks: Vec<u8>,
    out: Vec<u8>,
    quiet_until: Option<Instant>,
}

impl<'a> Client<'a> {
    pub(in crate::doors) fn new(desk: &'a Desk, access: Option<&'a Access>) -> Client<'a> {
        let options = ConnectionOptions::new().maximum_packet_size_recv(MAX_PACKET_BYTES);
        Client {
            desk,
            access,
            core: Connection::with_options(Version::Undetermined, options),
            version: Version::Undetermined,
            connected: false,
            over: false,
            keeps: None,
            taken: BTreeSet::new(),
            messages: vec![],
            groups: vec![],
            bytes: 0,
            acks: vec![],
            out: vec![],
            quiet_until: None,
        }
    }

    /// Whether the connection is to be closed once the answers are out.
    pub(in crate::doors) fn is_over(&self) -> bool {
        self.over
    }

    pub(in crate::doors) fn is_connected(&self) -> bool {
        self.connected
    }

    /// When the client must have said something.
    pub(in crate::doors) fn quiet_until(&self) -> Option<Instant> {
        self.quiet_until
    }

    pub(in crate::doors) fn pipelined(&self) -> usize {
        self.messages.len()
    }

    pub(in crate::doors) fn pipelined_bytes(&self) -> usize {
        self.bytes
    }

    /// What is to be sent.
    pub(in crate::doors) fn answers(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.acks);
        bytes.append(&mut self.out);
        bytes
    }

    /// The connection ended.
    pub(in crate::doors) fn leave(&mut self) {
        if let Some(name) = &self.keeps {
            self.desk.sessions.put(name, std::mem::take(&mut self.taken));
        }
    }

    /// Bytes came.
    pub(in crate::doors) fn feed(&mut self, bytes: &[u8]) {
        let mut cursor = Cursor::new(bytes);
        while !self.over && cursor.position() < bytes.len() as u64 {
            let events = self.core.recv(&mut cursor);
            self.handle(events);
        }
    }

    /// Nothing came for too long.
    pub(in crate::doors) fn silent(&mut self) {
        if self.connected {
            let events = self.core.notify_timer_fired(TimerKind::PingreqRecv);
            self.handle(events);
        }
        self.over = true;
    }

    fn handle(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::NotifyPacketReceived(packet) if !self.over => self.received(packet),
                Event::RequestSendPacket { packet, .. } => self.out.extend(packet.to_continuous_buffer()),
                Event::RequestTimerReset { kind: TimerKind::PingreqRecv, duration_ms } => {
                    self.quiet_until = Some(Instant::now() + Duration::from_millis(duration_ms));
                }
                Event::RequestTimerCancel(TimerKind::PingreqRecv) => self.quiet_until = None,
                Event::NotifyError(error) => self.broke_the_rules(error),
                Event::RequestClose => self.over = true,
                _ => {}
            }
        }
    }

    fn broke_the_rules(&mut self, error: MqttError) {
        self.over = true;
        self.desk.counts.refused.fetch_add(1, Ordering::Relaxed);
        self.desk.complain(format_args!("an MQTT client was disconnected: its packets are not right ({error:?})"));
    }

    /// Sends a packet, or only writes it where the core has already ended the connection.
    fn say(&mut self, packet: impl Into<Packet>) {
        let packet = packet.into();
        let bytes = packet.to_continuous_buffer();
        let events = self.core.send(packet);
        if events.iter().any(|e| matches!(e, Event::NotifyError(MqttError::PacketNotAllowedToSend))) {
            self.out.extend(bytes);
        } else {
            self.handle(events);
        }
    }

    /// Ends the connection, saying why where the protocol can.
    fn end(&mut self, reason: DisconnectReasonCode) {
        if self.version == Version::V5_0
            && let Ok(packet) = v5_0::Disconnect::builder().reason_code(reason).build()
        {
            self.say(packet);
        }
        self.over = true;
        self.desk.counts.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn received(&mut self, packet: Packet) {
        match packet {
            Packet::V3_1_1Connect(connect) => self.connect_311(&connect),
            Packet::V5_0Connect(connect) => self.connect_5(&connect),
            _ if !self.connected => self.over = true,
            Packet::V3_1_1Publish(p) => self.publish(p.topic_name(), p.payload().as_slice(), p.qos(), p.packet_id()),
            Packet::V5_0Publish(p) => self.publish(p.topic_name(), p.payload().as_slice(), p.qos(), p.packet_id()),
            Packet::V3_1_1Pubrel(p) => self.pubrel(p.packet_id()),
            Packet::V3_1_1Pingreq(_) => self.say_built(v3_1_1::Pingresp::builder().build()),
            Packet::V5_0Pingreq(_) => self.say_built(v5_0::Pingresp::builder().build()),
            Packet::V3_1_1Subscribe(p) => {
                let codes = vec![SubackReturnCode::Failure; p.entries().len()];
                self.say_built(v3_1_1::Suback::builder().packet_id(p.packet_id()).return_codes(codes).build());
            }
            Packet::V5_0Subscribe(p) => {
                let codes = vec![SubackReasonCode::ImplementationSpecificError; p.entries().len()];
                self.say_built(v5_0::Suback::builder().packet_id(p.packet_id()).reason_codes(codes).build());
            }
            Packet::V3_1_1Unsubscribe(p) => {
                self.say_built(v3_1_1::Unsuback::builder().packet_id(p.packet_id()).build());
            }
            Packet::V5_0Unsubscribe(p) => {
                let codes = vec![UnsubackReasonCode::NoSubscriptionExisted; p.entries().len()];
                self.say_built(v5_0::Unsuback::builder().packet_id(p.packet_id()).reason_codes(codes).build());
            }
            Packet::V3_1_1Disconnect(_) | Packet::V5_0Disconnect(_) => self.over = true,
            // Answers to what this server never sends.
            _ => self.end(DisconnectReasonCode::ProtocolError),
        }
    }

    fn say_built(&mut self, built: Result<impl Into<Packet>, MqttError>) {
        match built {
            Ok(packet) => self.say(packet),
            Err(error) => self.broke_the_rules(error),
        }
    }

    fn admits(&self, user: Option<&str>, password: Option<&[u8]>) -> bool {
        let admitted = self
            .access
            .is_none_or(|access| access.admits(user.unwrap_or_default().as_bytes(), password.unwrap_or_default()));
        if !admitted {
            self.desk.complain(format_args!("an MQTT client was refused: user or password is missing or wrong"));
        }
        admitted
    }

    fn connect_311(&mut self, connect: &v3_1_1::Connect) {
        self.version = Version::V3_1_1;
        let code = if !self.admits(connect.user_name(), connect.password()) {
            ConnectReturnCode::BadUserNameOrPassword
        } else if connect.client_id().is_empty() && !connect.clean_session() {
            ConnectReturnCode::IdentifierRejected
        } else {
            ConnectReturnCode::Accepted
        };
        let accepted = code == ConnectReturnCode::Accepted;
        let keeps = accepted && !connect.clean_session();
        if accepted {
            self.resume(connect.client_id(), keeps);
        }
        self.say_built(v3_1_1::Connack::builder().session_present(keeps).return_code(code).build());
        self.connected = accepted;
        self.over |= !accepted;
    }

    fn connect_5(&mut self, connect: &v5_0::Connect) {
        self.version = Version::V5_0;
        let code = if connect.props().iter().any(|p| matches!(p, Property::AuthenticationMethod(_))) {
            ConnectReasonCode::BadAuthenticationMethod
        } else if !self.admits(connect.user_name(), connect.password()) {
            ConnectReasonCode::BadUserNameOrPassword
        } else {
            ConnectReasonCode::Success
        };
        let accepted = code == ConnectReasonCode::Success;
        let name = connect.client_id();
        let keeps = accepted && !connect.clean_start() && !name.is_empty();
        let present = keeps && self.desk.sessions.get(name).is_some();
        if accepted {
            self.resume(name, keeps);
        }
        let props = if accepted { capabilities(name.is_empty()) } else { vec![] };
        self.say_built(v5_0::Connack::builder().session_present(present).reason_code(code).props(props).build());
        self.connected = accepted;
        self.over |= !accepted;
    }

    fn resume(&mut self, name: &str, keeps: bool) {
        if !keeps {
            self.desk.sessions.remove(name);
            return;
        }
        self.keeps = Some(name.to_owned());
        self.taken = self.desk.sessions.get(name).unwrap_or_default();
        self.core.restore_qos2_publish_handled(self.taken.iter().copied().collect());
        self.desk.sessions.put(name, self.taken.clone());
    }

    fn publish(&mut self, topic: &str, payload: &[u8], qos: Qos, id: Option<u16>) {
        let answer = match (qos, id) {
            (Qos::AtMostOnce, _) => Answer::Nothing,
            (Qos::AtLeastOnce, Some(id)) if id > 0 => Answer::Puback(id),
            (Qos::ExactlyOnce, Some(_)) if self.version == Version::V5_0 => {
                return self.end(DisconnectReasonCode::QosNotSupported);
            }
            (Qos::ExactlyOnce, Some(id)) if id > 0 => Answer::Pubrec(id),
            _ => return self.end(DisconnectReasonCode::MalformedPacket),
        };
        if !is_publishable(topic) {
            self.desk.complain(format_args!("an MQTT client was disconnected: {topic:?} is no topic to publish to"));
            return self.end(DisconnectReasonCode::TopicNameInvalid);
        }
        if payload.len() > MAX_RECORD_BYTES {
            self.desk.complain(format_args!(
                "an MQTT client was disconnected: a record of {} bytes on {topic} is over the bound of \
                 {MAX_RECORD_BYTES}: make records smaller",
                payload.len()
            ));
            return self.end(DisconnectReasonCode::PacketTooLarge);
        }
        let group = match stream_of(&self.desk.topics, topic) {
            Some(stream) => Ok(self.group(stream.clone(), payload, answer != Answer::Nothing)),
            None => Err(Refusal::new(
                Reason::UnknownStream,
                format!(
                    "topic {topic} leads to no stream: add it to agent.toml ([[streams.topic]]), or publish to crossdock/streams/STREAM"
                ),
            )),
        };
        self.messages.push(Message { group, answer });
    }

    fn group(&mut self, stream: Name, payload: &[u8], promised: bool) -> usize {
        self.bytes += payload.len();
        let record = Bytes::copy_from_slice(payload);
        match self.groups.iter_mut().position(|g| g.stream == stream) {
            Some(at) => {
                if let Some(group) = self.groups.get_mut(at) {
                    group.records.push(record);
                    group.promised |= promised;
                }
                at
            }
            None => {
                self.groups.push(Group { stream, records: vec![record], promised });
                self.groups.len() - 1
            }
        }
    }

    fn pubrel(&mut self, id: u16) {
        self.taken.remove(&id);
        self.say_built(v3_1_1::Pubcomp::builder().packet_id(id).build());
    }

    /// Appends what was published, one append a stream, and answers in order.
    pub(in crate::doors) async fn settle(&mut self) {
        let (desk, groups) = (self.desk, std::mem::take(&mut self.groups));
        let messages = std::mem::take(&mut self.messages);
        self.bytes = 0;
        let (patience, full_too) = match self.version {
            Version::V5_0 => (PATIENCE_5, false),
            _ => (PATIENCE_311, true),
        };
        let appends = groups.into_iter().map(|group| async move {
            let patience = if group.promised { patience } else { Duration::ZERO };
            desk.append_patiently(&group.stream, group.records, patience, full_too).await
        });
        let results = join_all(appends).await;
        for message in messages {
            let result = match &message.group {
                Ok(at) => results.get(*at).map_or(Ok(()), |r| r.as_ref().map(drop)),
                Err(refusal) => Err(refusal),
            };
            if !self.answer(message.answer, result) {
                self.over = true; // nothing after it is answered: order would be lost
                break;
            }
        }
    }

    /// Whether the connection can go on.
    fn answer(&mut self, answer: Answer, result: Result<(), &Refusal>) -> bool {
        if let Err(refusal) = result {
            let counts = &self.desk.counts;
            let counter = if answer == Answer::Nothing { &counts.dropped } else { &counts.refused };
            counter.fetch_add(1, Ordering::Relaxed);
            self.desk.complain(format_args!("an MQTT message was not taken: {refusal}"));
        }
        let packet: Result<Packet, MqttError> = match (answer, result, self.version) {
            (Answer::Nothing, ..) => return true,
            (Answer::Puback(id), Ok(()), Version::V5_0) => {
                v5_0::Puback::builder().packet_id(id).build().map(Into::into)
            }
            (Answer::Puback(id), Err(refusal), Version::V5_0) => {
                v5_0::Puback::builder().packet_id(id).reason_code(code_of(refusal)).build().map(Into::into)
            }
            (Answer::Puback(id), Ok(()), _) => v3_1_1::Puback::builder().packet_id(id).build().map(Into::into),
            (Answer::Pubrec(id), Ok(()), _) => {
                self.taken.insert(id);
                v3_1_1::Pubrec::builder().packet_id(id).build().map(Into::into)
            }
            (_, Err(_), _) => return false,
        };
        let Ok(packet) = packet else { return false };
        self.acks.extend(packet.to_continuous_buffer());
        // The core counts what is in flight; what it would send is sent already.
        drop(self.core.send(packet));
        true
    }
}

fn code_of(refusal: &Refusal) -> PubackReasonCode {
    match refusal.reason {
        Reason::UnknownStream => PubackReasonCode::TopicNameInvalid,
        Reason::Full | Reason::Busy => PubackReasonCode::QuotaExceeded,
        Reason::TooLarge => PubackReasonCode::ImplementationSpecificError,
        Reason::Failed => PubackReasonCode::UnspecifiedError,
    }
}

/// What a client of version 5 is told about this server. Its packet bound is added by the core.
fn capabilities(unnamed: bool) -> Vec<Property> {
    let properties = [
        MaximumQos::new(1).map(Property::from),
        ReceiveMaximum::new(RECEIVE_MAXIMUM).map(Property::from),
        TopicAliasMaximum::new(TOPIC_ALIASES).map(Property::from),
        WildcardSubscriptionAvailable::new(0).map(Property::from),
        SubscriptionIdentifierAvailable::new(0).map(Property::from),
        SharedSubscriptionAvailable::new(0).map(Property::from),
    ];
    let name = unnamed.then(|| AssignedClientIdentifier::new("producer").map(Property::from));
    properties.into_iter().chain(name).flatten().collect()
}
