//! The MQTT door, used by mosquitto_pub, paho, and by bytes that no client sends.

use std::{sync::atomic::Ordering, time::Duration};

use mqtt_protocol_core::mqtt::{
    packet::{Packet, PayloadFormatIndicator, Property, Qos, TopicAlias, v3_1_1, v5_0},
    prelude::GenericPacketTrait as _,
};
use proptest::prelude::*;
use proto::stream::MAX_RECORD_BYTES;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::support::{Stand, run, until};
use crate::doors::Reason;

/// Debian's, with its packages.
const PYTHON: &str = "/usr/bin/python3";

/// Publishes `count` records with paho and waits until all are acknowledged.
const PAHO: &str = r#"
import sys, time
import paho.mqtt.client as mqtt
port, version, qos, count, topic, user, password = sys.argv[1:8]
protocol = mqtt.MQTTv5 if version == "5" else mqtt.MQTTv311
client = mqtt.Client(client_id="paho", protocol=protocol)
if user:
    client.username_pw_set(user, password)
connected = []
client.on_connect = lambda c, u, f, rc, *more: connected.append(rc)
client.max_inflight_messages_set(200)
client.connect("127.0.0.1", int(port), keepalive=10)
client.loop_start()
while not connected:
    time.sleep(0.01)
if int(getattr(connected[0], "value", connected[0])) != 0:
    print("refused", connected[0])
    sys.exit(3)
sent = [client.publish(topic, '{"n":%d}' % n, qos=int(qos)) for n in range(int(count))]
for message in sent:
    message.wait_for_publish(60)
print("published", sum(1 for m in sent if m.is_published()))
client.disconnect()
client.loop_stop()
"#;

async fn paho(stand: &Stand, version: &str, qos: &str, count: &str, topic: &str, login: [&str; 2]) -> (i32, String) {
    let port = stand.mqtt().to_string();
    run(PYTHON, &["-c", PAHO, &port, version, qos, count, topic, login[0], login[1]], b"").await
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{{\"n\":{n}}}")).collect()
}

/// A client that says exactly what a test wants.
struct Wire(TcpStream);

impl Wire {
    async fn open(stand: &Stand) -> Wire {
        Wire(TcpStream::connect(("127.0.0.1", stand.mqtt())).await.unwrap())
    }

    async fn say(&mut self, packet: impl Into<Packet>) {
        self.0.write_all(&packet.into().to_continuous_buffer()).await.unwrap();
    }

    /// The next packet: its first byte and its body; nothing when the server has closed.
    async fn hear(&mut self) -> Option<(u8, Vec<u8>)> {
        let read = async {
            let first = self.0.read_u8().await.ok()?;
            let (mut length, mut shift) = (0, 0);
            loop {
                let byte = self.0.read_u8().await.ok()?;
                length |= usize::from(byte & 0x7F) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).await.ok()?;
            Some((first, body))
        };
        timeout(Duration::from_secs(60), read).await.expect("an answer, or the end")
    }

    /// Connected with 3.1.1.
    async fn v311(stand: &Stand, name: &str, clean: bool) -> Wire {
        let mut wire = Wire::open(stand).await;
        wire.say(v3_1_1::Connect::builder().client_id(name).unwrap().clean_session(clean).build().unwrap()).await;
        assert_eq!(wire.hear().await.unwrap(), (0x20, vec![u8::from(!clean), 0]));
        wire
    }

    /// Connected with 5; the body of the CONNACK.
    async fn v5(stand: &Stand) -> (Wire, Vec<u8>) {
        let mut wire = Wire::open(stand).await;
        wire.say(v5_0::Connect::builder().client_id("raw").unwrap().clean_start(true).build().unwrap()).await;
        let (first, body) = wire.hear().await.unwrap();
        assert_eq!((first, &body[..2]), (0x20, &[0, 0][..]));
        (wire, body)
    }
}

fn publish_311(topic: &str, qos: Qos, id: u16, payload: &[u8]) -> Packet {
    let publish = v3_1_1::Publish::builder().topic_name(topic).unwrap().qos(qos).payload(payload);
    let publish = if qos == Qos::AtMostOnce { publish } else { publish.packet_id(id) };
    publish.build().unwrap().into()
}

fn publish_5(topic: &str, qos: Qos, id: u16, payload: &[u8], props: Vec<Property>) -> Packet {
    let publish = v5_0::Publish::builder().topic_name(topic).unwrap().qos(qos).payload(payload).props(props);
    let publish = if qos == Qos::AtMostOnce { publish } else { publish.packet_id(id) };
    publish.build().unwrap().into()
}

/// A publish whose topic no builder would let through.
fn publish_bytes(topic: &[u8], id: u16, payload: &[u8], v5: bool) -> Vec<u8> {
    let mut body = u16::try_from(topic.len()).unwrap().to_be_bytes().to_vec();
    body.extend(topic);
    body.extend(id.to_be_bytes());
    if v5 {
        body.push(0);
    }
    body.extend(payload);
    let mut bytes = vec![0x32, u8::try_from(body.len()).unwrap()];
    bytes.append(&mut body);
    bytes
}

const SCANS: &str = "crossdock/streams/scans";

#[tokio::test]
async fn mosquitto_pub_publishes_with_every_version_and_quality() {
    let stand = Stand::open(|_| {}).await;
    let port = stand.mqtt().to_string();
    let input: String = (0..50).map(|n| format!("{n}\n")).collect();
    let mut expected = 0;
    for (version, qos) in [("311", "0"), ("311", "1"), ("311", "2"), ("5", "0"), ("5", "1")] {
        let args = ["-h", "127.0.0.1", "-p", &port, "-V", version, "-q", qos, "-t", SCANS, "-l"];
        let (code, said) = run("mosquitto_pub", &args, input.as_bytes()).await;
        assert_eq!(code, 0, "{version} {qos}: {said}");
        expected += 50;
        if qos == "0" {
            until("what was not promised came too", || stand.scans().len() == expected).await;
        }
        assert_eq!(stand.scans().len(), expected, "{version} {qos}");
    }
    let in_order: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    assert!(stand.scans().chunks(50).all(|run| run == in_order));
    // There is no QoS 2 in version 5. The client is told so when it connects, and does without.
    let args = ["-h", "127.0.0.1", "-p", &port, "-V", "5", "-q", "2", "-t", SCANS, "-m", "x"];
    let (_, said) = run("mosquitto_pub", &args, b"").await;
    assert!(stand.scans().len() <= expected + 1, "{said}");
}

#[tokio::test]
async fn paho_publishes_and_what_is_pipelined_is_committed_together() {
    for (version, qos) in [("311", "0"), ("311", "1"), ("311", "2"), ("5", "0"), ("5", "1")] {
        let stand = Stand::open(|_| {}).await;
        let (code, said) = paho(&stand, version, qos, "2000", SCANS, ["", ""]).await;
        assert_eq!((code, said.trim()), (0, "published 2000"), "{version} {qos}");
        if qos == "0" {
            until("what was not promised came too", || stand.scans().len() == 2000).await;
        }
        assert_eq!(stand.scans(), numbered(2000), "{version} {qos}");
        let appends = stand.intake.appends.load(Ordering::Relaxed);
        assert!(appends < 1500, "{appends} appends for 2000 publishes, {version} {qos}");
    }
}

#[tokio::test]
async fn user_and_password_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "right").unwrap();
    let stand = Stand::open(|s| {
        s.user = Some("scanner".into());
        s.password_file = Some(file);
    })
    .await;
    for version in ["311", "5"] {
        for login in [["", ""], ["scanner", "wrong"], ["other", "right"]] {
            let (code, said) = paho(&stand, version, "1", "1", SCANS, login).await;
            assert_eq!(code, 3, "{version} {login:?}: {said}");
        }
        let (code, said) = paho(&stand, version, "1", "1", SCANS, ["scanner", "right"]).await;
        assert_eq!(code, 0, "{said}");
    }
    assert_eq!(stand.scans().len(), 2);
}

#[tokio::test]
async fn topics_lead_to_their_streams() {
    let stand = Stand::open(|s| {
        let topic = |filter: &str, stream: &str| crate::settings::TopicSetting {
            filter: filter.parse().unwrap(),
            stream: stream.parse().unwrap(),
        };
        s.topics = vec![topic("line/7/scan", "events"), topic("line/+/scan", "scans"), topic("log/#", "logs")];
    })
    .await;
    let (mut wire, _) = Wire::v5(&stand).await;
    // One write: three streams, one of them twice, and a topic that leads nowhere.
    let mut bytes = vec![];
    for (id, topic) in ["line/1/scan", "line/7/scan", "log/a/b", "nowhere", "line/2/scan"].into_iter().enumerate() {
        let id = u16::try_from(id).unwrap() + 1;
        bytes.extend(publish_5(topic, Qos::AtLeastOnce, id, topic.as_bytes(), vec![]).to_continuous_buffer());
    }
    wire.0.write_all(&bytes).await.unwrap();
    for id in 1..=5 {
        let (first, body) = wire.hear().await.unwrap();
        assert_eq!((first, body[1]), (0x40, id), "in order");
        assert_eq!(body.get(2).copied().unwrap_or(0), if id == 4 { 0x90 } else { 0 }, "{body:?}");
    }
    assert_eq!(stand.scans(), ["line/1/scan", "line/2/scan"]);
    assert_eq!(stand.intake.records("events"), ["line/7/scan"]);
    assert_eq!(stand.intake.records("logs"), ["log/a/b"]);
    // Without a promise it is dropped and counted.
    wire.say(publish_5("nowhere", Qos::AtMostOnce, 0, b"x", vec![])).await;
    until("it is counted", || stand.counts.dropped.load(Ordering::Relaxed) == 1).await;
    // 3.1.1 knows no such answer: the connection ends, and nothing was acknowledged.
    let mut old = Wire::v311(&stand, "old", true).await;
    old.say(publish_311("line/3/scan", Qos::AtLeastOnce, 1, b"good")).await;
    assert_eq!(old.hear().await.unwrap(), (0x40, vec![0, 1]));
    old.say(publish_311("nowhere", Qos::AtLeastOnce, 2, b"x")).await;
    assert_eq!(old.hear().await, None);
}

#[tokio::test]
async fn version_5_is_told_what_this_server_can_do() {
    let stand = Stand::open(|_| {}).await;
    let (mut wire, connack) = Wire::v5(&stand).await;
    let has = |property: &[u8]| connack.windows(property.len()).any(|w| w == property);
    assert!(has(&[0x24, 1]), "maximum QoS 1");
    assert!(has(&[0x21, 4, 0]), "receive maximum");
    assert!(has(&[0x27, 0, 5, 0x20, 0]), "maximum packet size");
    // Topic aliases.
    let alias = || vec![Property::from(TopicAlias::new(3).unwrap())];
    wire.say(publish_5(SCANS, Qos::AtLeastOnce, 1, b"a", alias())).await;
    let unnamed =
        v5_0::Publish::builder().qos(Qos::AtLeastOnce).packet_id(2u16).payload(b"b".as_slice()).props(alias());
    wire.say(unnamed.build().unwrap()).await;
    for id in 1..=2 {
        assert_eq!(wire.hear().await.unwrap().1[..2], [0, id]);
    }
    assert_eq!(stand.scans(), ["a", "b"]);
    // It is no broker.
    wire.0.write_all(&[0x82, 7, 0, 9, 0, 0, 1, b'#', 1]).await.unwrap();
    assert_eq!(wire.hear().await.unwrap(), (0x90, vec![0, 9, 0, 0x83]));
    wire.0.write_all(&[0xC0, 0]).await.unwrap();
    assert_eq!(wire.hear().await.unwrap(), (0xD0, vec![]));
    // QoS 2 all the same.
    wire.say(publish_5(SCANS, Qos::ExactlyOnce, 3, b"c", vec![])).await;
    assert_eq!(wire.hear().await.unwrap(), (0xE0, vec![0x9B]));
    assert_eq!(wire.hear().await, None);
    assert_eq!(stand.scans().len(), 2);
}

#[tokio::test]
async fn qos_2_is_taken_once_over_a_reconnect() {
    let stand = Stand::open(|_| {}).await;
    let mut wire = Wire::v311(&stand, "twice", false).await;
    wire.say(publish_311(SCANS, Qos::ExactlyOnce, 5, b"once")).await;
    assert_eq!(wire.hear().await.unwrap(), (0x50, vec![0, 5]));
    // Again on the same connection, and on the next one: the client did not see the answer.
    wire.say(publish_311(SCANS, Qos::ExactlyOnce, 5, b"once")).await;
    assert_eq!(wire.hear().await.unwrap(), (0x50, vec![0, 5]));
    wire.0.shutdown().await.unwrap();
    assert_eq!(wire.hear().await, None, "the server has noticed");
    let mut wire = Wire::v311(&stand, "twice", false).await;
    wire.say(publish_311(SCANS, Qos::ExactlyOnce, 5, b"once")).await;
    assert_eq!(wire.hear().await.unwrap(), (0x50, vec![0, 5]));
    wire.say(v3_1_1::Pubrel::builder().packet_id(5u16).build().unwrap()).await;
    assert_eq!(wire.hear().await.unwrap(), (0x70, vec![0, 5]));
    assert_eq!(stand.scans(), ["once"]);
    // Released: the identifier means a new message.
    wire.say(publish_311(SCANS, Qos::ExactlyOnce, 5, b"new")).await;
    assert_eq!(wire.hear().await.unwrap(), (0x50, vec![0, 5]));
    assert_eq!(stand.scans(), ["once", "new"]);
    // What was not taken is not remembered as taken.
    stand.intake.refuse(Some(Reason::Failed));
    wire.say(publish_311(SCANS, Qos::ExactlyOnce, 6, b"later")).await;
    assert_eq!(wire.hear().await, None);
    stand.intake.refuse(None);
    let mut wire = Wire::v311(&stand, "twice", false).await;
    wire.say(publish_311(SCANS, Qos::ExactlyOnce, 6, b"later")).await;
    assert_eq!(wire.hear().await.unwrap(), (0x50, vec![0, 6]));
    assert_eq!(stand.scans(), ["once", "new", "later"]);
}

#[tokio::test(start_paused = true)]
async fn a_full_and_a_busy_intake_push_back() {
    let stand = Stand::open(|_| {}).await;
    stand.intake.refuse(Some(Reason::Full));
    // 5: told at once.
    let (mut wire, _) = Wire::v5(&stand).await;
    wire.say(publish_5(SCANS, Qos::AtLeastOnce, 1, b"a", vec![])).await;
    assert_eq!(wire.hear().await.unwrap().1[..3], [0, 1, 0x97]);
    // 3.1.1: no answer until there is room, and the end where there is none for long.
    let mut old = Wire::v311(&stand, "old", true).await;
    let begun = Instant::now();
    old.say(publish_311(SCANS, Qos::AtLeastOnce, 1, b"b")).await;
    assert_eq!(old.hear().await, None);
    assert!((8..12).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert!(stand.scans().is_empty());
    // Busy for a moment is nobody's concern.
    stand.intake.refuse(Some(Reason::Busy));
    let asked = stand.intake.asked.load(Ordering::Relaxed);
    wire.say(publish_5(SCANS, Qos::AtLeastOnce, 2, b"c", vec![])).await;
    until("it was tried more than once", || stand.intake.asked.load(Ordering::Relaxed) > asked + 2).await;
    stand.intake.refuse(None);
    assert_eq!(wire.hear().await.unwrap().1[..2], [0, 2]);
    assert_eq!(stand.scans(), ["c"]);
    // Without a promise there is no waiting.
    stand.intake.refuse(Some(Reason::Busy));
    wire.say(publish_5(SCANS, Qos::AtMostOnce, 0, b"d", vec![])).await;
    until("it is counted", || stand.counts.dropped.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test]
async fn packets_and_topics_that_are_not_right_end_the_connection() {
    let stand = Stand::open(|_| {}).await;
    let connack_311 = [0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, 1, b'a'];
    for (what, bytes) in [
        ("no CONNECT first", vec![0xC0, 0]),
        ("publish before CONNECT", publish_bytes(SCANS.as_bytes(), 1, b"x", false)),
        ("a length without end", vec![0x10, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("an old protocol", vec![0x10, 14, 0, 6, b'M', b'Q', b'I', b's', b'd', b'p', 3, 2, 0, 0, 0, 0]),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("CONNECT twice", [&connack_311[..], &connack_311].concat()),
        ("a packet of the server", [&connack_311[..], &[0x20, 2, 0, 0]].concat()),
        ("a reserved type", [&connack_311[..], &[0x00, 0]].concat()),
        ("QoS 3", [&connack_311[..], &[0x36, 6, 0, 1, b'a', 0, 1, b'x']].concat()),
        ("identifier 0", [&connack_311[..], &publish_bytes(SCANS.as_bytes(), 0, b"x", false)].concat()),
        ("a topic of bytes", [&connack_311[..], &publish_bytes(b"\xFF\xFE", 1, b"x", false)].concat()),
        ("a wildcard", [&connack_311[..], &publish_bytes(b"crossdock/streams/+", 1, b"x", false)].concat()),
        ("a wildcard at the end", [&connack_311[..], &publish_bytes(b"crossdock/#", 1, b"x", false)].concat()),
        ("no topic", [&connack_311[..], &publish_bytes(b"", 1, b"x", false)].concat()),
    ] {
        let mut wire = Wire::open(&stand).await;
        wire.0.write_all(&bytes).await.unwrap();
        let mut heard = vec![];
        while let Some((first, _)) = wire.hear().await {
            heard.push(first);
        }
        assert!(heard.iter().all(|first| *first == 0x20), "{what}: {heard:?}");
    }
    // Version 5 says why.
    for (topic, reason) in [(&b"a/+"[..], 0x90), (b"#", 0x90)] {
        let (mut wire, _) = Wire::v5(&stand).await;
        wire.0.write_all(&publish_bytes(topic, 1, b"x", true)).await.unwrap();
        assert_eq!(wire.hear().await.unwrap(), (0xE0, vec![reason]));
        assert_eq!(wire.hear().await, None);
    }
    assert_eq!(stand.intake.asked.load(Ordering::Relaxed), 0);
    // What came before the bad packet is taken and acknowledged.
    let mut wire = Wire::v311(&stand, "half", true).await;
    let good = publish_311(SCANS, Qos::AtLeastOnce, 1, b"good").to_continuous_buffer();
    wire.0.write_all(&[&good[..], &[0x36, 6, 0, 1, b'a', 0, 1, b'x']].concat()).await.unwrap();
    assert_eq!(wire.hear().await.unwrap(), (0x40, vec![0, 1]));
    assert_eq!(wire.hear().await, None);
    assert_eq!(stand.scans(), ["good"]);
}

#[tokio::test]
async fn records_and_packets_have_a_bound() {
    let stand = Stand::open(|_| {}).await;
    let (whole, over) = (vec![b'a'; MAX_RECORD_BYTES], vec![b'a'; MAX_RECORD_BYTES + 1]);
    let (mut wire, _) = Wire::v5(&stand).await;
    wire.say(publish_5(SCANS, Qos::AtLeastOnce, 1, &whole, vec![])).await;
    assert_eq!(wire.hear().await.unwrap().1[..2], [0, 1]);
    wire.say(publish_5(SCANS, Qos::AtLeastOnce, 2, &over, vec![])).await;
    assert_eq!(wire.hear().await.unwrap(), (0xE0, vec![0x95]));
    // A packet over the bound is refused by its length alone.
    let (mut wire, _) = Wire::v5(&stand).await;
    wire.0.write_all(&[0x32, 0xFF, 0xFF, 0xFF, 0x7F, 0]).await.unwrap();
    assert_eq!(wire.hear().await.unwrap(), (0xE0, vec![0x95]));
    let mut old = Wire::v311(&stand, "old", true).await;
    old.say(publish_311(SCANS, Qos::AtLeastOnce, 1, &over)).await;
    assert_eq!(old.hear().await, None);
    assert_eq!(stand.scans().len(), 1);
    // An empty one is a record too, and a property is no matter.
    let (mut wire, _) = Wire::v5(&stand).await;
    let text = PayloadFormatIndicator::new(mqtt_protocol_core::mqtt::packet::PayloadFormat::String).unwrap();
    wire.say(publish_5(SCANS, Qos::AtLeastOnce, 1, b"", vec![text.into()])).await;
    assert_eq!(wire.hear().await.unwrap().1[..2], [0, 1]);
    assert_eq!(stand.scans()[1], "");
}

#[tokio::test(start_paused = true)]
async fn silent_clients_are_dropped() {
    let stand = Stand::open(|_| {}).await;
    let begun = Instant::now();
    let mut wire = Wire::open(&stand).await;
    assert_eq!(wire.hear().await, None);
    assert!((10..12).contains(&begun.elapsed().as_secs()), "no CONNECT: {:?}", begun.elapsed());
    let begun = Instant::now();
    let mut wire = Wire::open(&stand).await;
    let connect = v3_1_1::Connect::builder().client_id("a").unwrap().keep_alive(20).clean_session(true);
    wire.say(connect.build().unwrap()).await;
    assert_eq!(wire.hear().await.unwrap().0, 0x20);
    assert_eq!(wire.hear().await, None);
    assert!((30..33).contains(&begun.elapsed().as_secs()), "one and a half keep-alives: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_dies_within_a_packet_leaves_nothing() {
    let stand = Stand::open(|_| {}).await;
    let mut wire = Wire::v311(&stand, "dies", true).await;
    let packet = publish_311(SCANS, Qos::AtLeastOnce, 1, &[b'a'; 1000]).to_continuous_buffer();
    wire.0.write_all(&packet[..500]).await.unwrap();
    wire.0.shutdown().await.unwrap();
    assert_eq!(wire.hear().await, None);
    assert_eq!(stand.intake.asked.load(Ordering::Relaxed), 0);
}

/// Packets of a client, whole and mutilated.
fn fuzz() -> impl Strategy<Value = Vec<u8>> {
    let connect = prop_oneof![
        Just(vec![0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, 1, b'a']),
        Just(vec![0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 0, 0, 0, 1, b'a']),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    let packet = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        // A right type and length, and anything within.
        (any::<u8>(), prop::collection::vec(any::<u8>(), 0..100))
            .prop_map(|(first, body)| { [&[first, u8::try_from(body.len()).unwrap()][..], &body].concat() }),
        (any::<u16>(), any::<bool>()).prop_map(|(id, v5)| publish_bytes(SCANS.as_bytes(), id, b"x", v5)),
    ];
    (connect, prop::collection::vec(packet, 0..8))
        .prop_map(|(connect, packets)| [vec![connect], packets].concat().concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_break_a_client_down(bytes in fuzz(), cut in 1usize..50) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let desk = super::support::desk();
            let mut client = crate::doors::mqtt::client::Client::new(&desk, None);
            for piece in bytes.chunks(cut) {
                client.feed(piece);
                client.settle().await;
                client.answers();
            }
            client.silent();
            client.leave();
        });
    }
}
