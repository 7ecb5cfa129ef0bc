//! Events on their way to a real receiver over HTTP, and the hub that is stopped in between.

use std::{
    collections::VecDeque,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Mutex,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
};
use proto::object::Object;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    config::{Format, Retry, Selection},
    *,
};
use crate::{api::tests::Served, hub::fixture::Fixture};

const SECRET: &str = "correct horse";
const PATIENCE: Duration = Duration::from_secs(20);

/// What a receiver got.
struct Got {
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn message(&self) -> String {
        self.json()["event"]["spec"]["message"].as_str().unwrap().to_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    fn query(&self, name: &str) -> String {
        let url = reqwest::Url::parse(&format!("http://h{}", self.uri)).unwrap();
        url.query_pairs().find(|(key, _)| key == name).unwrap().1.into_owned()
    }
}

/// Answers that a receiver gives, in turn; the last one for ever.
type Answers = Arc<Mutex<VecDeque<(u16, &'static str)>>>;

struct Receiver {
    url: String,
    answers: Answers,
    got: mpsc::UnboundedReceiver<Got>,
}

#[derive(Clone)]
struct Receiving {
    answers: Answers,
    got: mpsc::UnboundedSender<Got>,
}

async fn receive(
    State(to): State<Receiving>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, HeaderMap, &'static str) {
    let _ = to.got.send(Got { uri, headers, body }); // the test may have seen enough
    let mut answers = to.answers.lock().unwrap();
    let (code, text) = if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0] };
    let elsewhere = HeaderMap::from_iter([(axum::http::header::LOCATION, "/elsewhere".parse().unwrap())]);
    (StatusCode::from_u16(code).unwrap(), if code == 302 { elsewhere } else { HeaderMap::new() }, text)
}

impl Receiver {
    async fn start(answers: &[(u16, &'static str)]) -> Receiver {
        let answers: Answers = Arc::new(Mutex::new(answers.iter().copied().collect()));
        let listener = tokio::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
        let url = format!("http://{}/hook?token=s3cret", listener.local_addr().unwrap());
        let (sender, got) = mpsc::unbounded_channel();
        let app = Router::new().fallback(receive).with_state(Receiving { answers: Arc::clone(&answers), got: sender });
        tokio::spawn(async move { axum::serve(listener, app).await });
        Receiver { url, answers, got }
    }

    fn answer(&self, answers: &[(u16, &'static str)]) {
        *self.answers.lock().unwrap() = answers.iter().copied().collect();
    }

    async fn next(&mut self) -> Got {
        tokio::time::timeout(PATIENCE, self.got.recv()).await.unwrap().unwrap()
    }

    /// A webhook that tries again soon, and signs.
    fn config(&self, folder: &Path) -> WebhookConfig {
        fs::create_dir_all(folder).unwrap();
        let secret_file = folder.join("webhook.secret");
        fs::write(&secret_file, format!("{SECRET}\n")).unwrap();
        let [first, longest] = ["1ms", "20ms"].map(|text| text.parse().unwrap());
        WebhookConfig {
            name: "on-duty".parse().unwrap(),
            url: self.url.clone().into(),
            secret_file: Some(secret_file),
            ca: None,
            events: Selection::default(),
            format: Format::Json,
            retry: Retry { first, longest, attempts: 1000, ..Retry::default() },
        }
    }

    async fn hub(&self, change: impl FnOnce(&mut WebhookConfig)) -> Fixture {
        Fixture::bare(|config| {
            let mut webhook = self.config(&config.data_dir);
            change(&mut webhook);
            config.webhooks = vec![webhook];
        })
        .await
    }
}

async fn tell(hub: &Hub, kind: &str, reason: &str, message: &str) {
    events::record(hub.store(), hub.env(), kind, "n1", EventType::Warning, reason, message, "hub").await;
}

/// Waits until an event with this reason was written.
async fn until_told(hub: &Hub, reason: &str) -> Event {
    let work = async {
        let mut watch = hub.store().watch::<EventSpec>(None).unwrap();
        loop {
            let events = hub.store().list::<EventSpec>(None).await.unwrap().items;
            if let Some(event) = events.into_iter().find(|event| event.spec.reason == reason) {
                return event;
            }
            watch.next().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, work).await.unwrap()
}

#[tokio::test]
async fn selected_events_arrive_in_order_signed_and_once() {
    let mut receiver = Receiver::start(&[(204, "")]).await;
    let events = Selection { reasons: vec!["Silent".into(), "Paused".into()], ..Selection::default() };
    let fixture = receiver.hub(|webhook| webhook.events = events).await;
    for (reason, message) in [("Silent", "a"), ("Joined", "no"), ("Paused", "b"), ("Silent", "c")] {
        tell(&fixture.hub, "Node", reason, message).await;
    }
    for (message, reason) in [("a", "Silent"), ("b", "Paused"), ("c", "Silent")] {
        let got = receiver.next().await;
        assert_eq!(got.message(), message);
        let document = got.json();
        assert_eq!((&document["kind"], &document["fleet"]), (&json!("EventNotification"), &json!("test")));
        assert_eq!(document["event"]["spec"]["reason"], reason);
        assert_eq!(document["delivery"]["attempt"], 1);
        assert_eq!(document["delivery"]["id"], got.header("x-crossdock-delivery"));
        let timestamp = got.header("x-crossdock-timestamp");
        let age = fixture.hub.env().wall.now().as_second() - timestamp.parse::<i64>().unwrap();
        assert!((0..60).contains(&age), "{age}");
        // As a receiver verifies it, with tools of its own.
        let mut signed = timestamp.as_bytes().to_vec();
        signed.extend_from_slice(b".");
        signed.extend_from_slice(&got.body);
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
        let hex = got.header("x-crossdock-signature").strip_prefix("sha256=").unwrap();
        ring::hmac::verify(&key, &signed, &data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap()).unwrap();
        signed.push(b' ');
        assert_ne!(send::signature(SECRET, timestamp, &signed), got.header("x-crossdock-signature"));
    }
    tell(&fixture.hub, "Node", "Silent", "a").await;
    let again = receiver.next().await;
    assert_eq!((again.message().as_str(), &again.json()["event"]["spec"]["count"]), ("a", &json!(2)));
}

#[test]
fn signatures_are_those_that_other_tools_compute() {
    // printf '1700000000.{}' | openssl dgst -sha256 -hmac secret
    let expected = "sha256=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163";
    assert_eq!(send::signature("secret", "1700000000", b"{}"), expected);
    // printf '1700000000000\nSECabc' | openssl dgst -sha256 -hmac SECabc -binary | base64
    assert_eq!(send::dingtalk_sign("SECabc", "1700000000000"), "jcUpW0QmtKduN03n4JqQ0PBosVjqnM8gU7fIIvsDmCM=");
}

#[tokio::test]
async fn a_failure_is_tried_again_and_nothing_overtakes() {
    let mut receiver = Receiver::start(&[(500, ""), (429, ""), (302, ""), (200, "")]).await;
    let fixture = receiver.hub(|_| {}).await;
    tell(&fixture.hub, "Node", "Silent", "first").await;
    tell(&fixture.hub, "Node", "Silent", "second").await;
    let mut ids = vec![];
    for attempt in 1..=4 {
        let got = receiver.next().await;
        assert_eq!((got.message().as_str(), &got.json()["delivery"]["attempt"]), ("first", &json!(attempt)));
        assert_eq!(got.uri.path(), "/hook", "redirects are not followed");
        ids.push(got.header("x-crossdock-delivery").to_owned());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "one delivery has one id");
    let second = receiver.next().await;
    assert_eq!((second.message().as_str(), second.header("x-crossdock-delivery") == ids[0]), ("second", false));
}

#[tokio::test]
async fn what_waited_is_delivered_by_the_hub_that_starts_again() {
    let mut receiver = Receiver::start(&[(503, "")]).await;
    let mut fixture = receiver.hub(|_| {}).await;
    tell(&fixture.hub, "Node", "Silent", "before").await;
    // The second attempt follows a failure that is on disk.
    while receiver.next().await.json()["delivery"]["attempt"] != 2 {}
    fixture.stop().await;
    // Written, and not taken up any more: the hub was on its way out.
    tell(&fixture.hub, "Node", "Silent", "at the end").await;
    receiver.answer(&[(200, "")]);
    while receiver.got.try_recv().is_ok() {}
    fixture.again().await;
    let (mut got, mut attempts) = (receiver.next().await, vec![]);
    while got.message() == "before" {
        attempts.push(got.json()["delivery"]["attempt"].as_u64().unwrap());
        got = receiver.next().await;
    }
    assert!(attempts.last().is_some_and(|attempt| *attempt > 1), "{attempts:?}: attempts before the stop count");
    assert_eq!(got.message(), "at the end");
}

#[tokio::test]
async fn what_cannot_be_delivered_is_a_dead_letter_until_somebody_asks() {
    let mut receiver = Receiver::start(&[(500, ""), (500, ""), (500, ""), (200, "")]).await;
    let served = Served::of(receiver.hub(|webhook| webhook.retry.attempts = 3).await, |sink| sink);
    let hub = &served.fixture.hub;
    tell(hub, "Node", "Silent", "lost").await;
    let mut id = String::new();
    for _ in 0..3 {
        id = receiver.next().await.header("x-crossdock-delivery").to_owned();
    }
    let event = until_told(hub, "DeadLetters").await;
    assert!(event.spec.involved_kind == KIND && event.spec.message.contains("webhooks retry on-duty"), "{event:?}");
    // It is told to nobody; what comes later is.
    tell(hub, "Rollout", "Paused", "later").await;
    assert_eq!(receiver.next().await.message(), "later");
    let listed = async || served.raw(Method::GET, "/api/v1/webhooks", "").await.1["items"][0].clone();
    let webhook = listed().await;
    assert_eq!((&webhook["name"], &webhook["deadLetters"]), (&json!("on-duty"), &json!(1)));
    assert!(webhook["url"].as_str().unwrap().ends_with("/…") && !webhook.to_string().contains("s3cret"), "{webhook}");
    let (_, dead) = served.raw(Method::GET, "/api/v1/webhooks/on-duty/deadletters", "").await;
    let letter = &dead["items"][0];
    assert_eq!((&letter["id"], &letter["attempts"]), (&json!(id), &json!(3)));
    assert_eq!(letter["event"]["spec"]["message"], "lost");
    assert!(letter["reason"].as_str().unwrap().contains("500") && !dead.to_string().contains("s3cret"), "{dead}");
    let (code, refused) = served.raw(Method::POST, "/api/v1/webhooks/on-dity/retry", "").await;
    assert!(code == 404 && refused["message"].as_str().unwrap().contains("there are on-duty"), "{refused}");
    let (_, retried) = served.raw(Method::POST, "/api/v1/webhooks/on-duty/retry", "").await;
    assert_eq!(retried["retried"], 1);
    let got = receiver.next().await;
    assert_eq!((got.message().as_str(), got.header("x-crossdock-delivery")), ("lost", id.as_str()));
    assert_eq!(got.json()["delivery"]["attempt"], 1);
}

#[tokio::test]
async fn a_robot_of_dingtalk_gets_a_text_that_is_signed_its_way() {
    let refusal = r#"{"errcode": 310000, "errmsg": "sign not match"}"#;
    let mut receiver = Receiver::start(&[(200, refusal), (200, r#"{"errcode": 0, "errmsg": "ok"}"#)]).await;
    let fixture = receiver.hub(|webhook| webhook.format = Format::Dingtalk).await;
    tell(&fixture.hub, "Node", "Silent", "not heard from").await;
    for _ in 0..2 {
        let got = receiver.next().await;
        assert_eq!(got.json()["msgtype"], "text");
        let text = got.json()["text"]["content"].as_str().unwrap().to_owned();
        assert!(text.starts_with("[Warning] Node n1: Silent\nnot heard from\nfleet test"), "{text}");
        assert_eq!(got.query("token"), "s3cret", "what the URL had stays");
        let timestamp = got.query("timestamp");
        assert_eq!(timestamp.len(), 13, "milliseconds");
        assert_eq!(got.query("sign"), send::dingtalk_sign(SECRET, &timestamp));
        assert!(!got.uri.query().unwrap().contains(['+', '/']), "encoded for a query: {}", got.uri);
    }
    // Nothing that is shown holds a secret.
    let shown = format!("{:?} {}", fixture.hub.webhooks(), fixture.hub.webhooks().configs()[0].url);
    assert!(!shown.contains("s3cret") && !shown.contains(SECRET), "{shown}");
}

#[tokio::test]
async fn what_waits_is_bounded_and_repetitions_share_a_place() {
    let fixture = Fixture::bare(|_| {}).await;
    let (store, now) = (fixture.hub.store(), fixture.hub.env().wall.now());
    store.begin_webhooks(vec!["w".into()]).await.unwrap();
    let wants = || vec![("w".to_owned(), |_: &Event| true)];
    for _ in 0..3 {
        tell(&fixture.hub, "Node", "Silent", "again").await;
    }
    store.take_up_events(wants(), now).await.unwrap();
    tell(&fixture.hub, "Node", "Silent", "again").await;
    store.take_up_events(wants(), now).await.unwrap();
    assert_eq!(store.webhook_state("w").await.unwrap().waiting, 1);
    assert_eq!(store.next_delivery("w").await.unwrap().unwrap().event.spec.count, 4);

    let spec = store.next_delivery("w").await.unwrap().unwrap().event.spec;
    let many = usize::try_from(MAX_WAITING + MAX_DEAD).unwrap() + 7;
    let names: Vec<String> = (0..many).map(|n| format!("e-{n}")).collect();
    let all = names.clone();
    let make = move |n: usize, _: Option<Event>| {
        Some(Object::new(all[n].parse::<proto::name::ObjectName>().unwrap(), spec.clone()))
    };
    store.take_over::<EventSpec>(names, make, vec![]).await.unwrap();
    while store.take_up_events(wants(), now).await.unwrap().1 {}
    let state = store.webhook_state("w").await.unwrap();
    assert_eq!((state.waiting, state.dead, state.dropped), (MAX_WAITING, MAX_DEAD, 8));
    assert_eq!(store.dead_letters("w").await.unwrap()[0].reason, "too many waited");
    // Forgotten with its configuration.
    store.begin_webhooks(vec![]).await.unwrap();
    assert_eq!(store.webhook_state("w").await.unwrap(), Default::default());
}
