//! The API over real TLS, against a hub that runs.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use proto::{
    digest::Digest,
    env::Seed,
    link::message::{MetadataReply, MetadataRequest},
    object::{NodeSpec, Object, RolloutSpec, SiteSpec},
    token::Token,
    watch,
};
use reqwest::{Method, StatusCode};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::{
    cli::{
        client::Client,
        exit::{CliError, Exit},
    },
    hub::fixture::{Fixture, name},
    release::publish::upload,
};

const SECOND: Duration = Duration::from_secs(1);

/// A hub and its API on loopback.
pub(crate) struct Served {
    pub(crate) fixture: Fixture,
    pub(crate) client: Client,
    pub(crate) http: reqwest::Client,
    pub(crate) url: String,
    pub(crate) token: String,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) serving: JoinHandle<Result<(), ServeError>>,
}

impl Served {
    pub(crate) async fn start() -> Served {
        Served::start_over(|sink| sink).await
    }

    /// With something between the API and the hub's sink.
    pub(crate) async fn start_over(wrap: impl FnOnce(Arc<dyn Sink>) -> Arc<dyn Sink>) -> Served {
        Served::of(Fixture::start().await, wrap)
    }

    /// The API of a hub that runs.
    pub(crate) fn of(fixture: Fixture, wrap: impl FnOnce(Arc<dyn Sink>) -> Arc<dyn Sink>) -> Served {
        let hub = fixture.hub.clone();
        let sink = wrap(Arc::clone(hub.streams().sink()));
        let (tokens, token) = tokens_of(&hub);
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (stop, stopped) = watch::channel(false);
        let router = router_over(hub.clone(), sink, tokens, stopped.clone());
        let ca = hub.ca().pem().to_owned();
        let serving = tokio::spawn(async move { serve(&hub, router, listener, stopped).await });
        let client = Client::new(&url, &token, ca.as_bytes()).unwrap();
        Served { fixture, client, http: http(&ca), url, token, stop, serving }
    }

    /// Sends anything, with the token.
    pub(crate) async fn raw(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
        let request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token);
        let response = request.body(body).send().await.unwrap();
        let code = response.status();
        (code, response.json().await.unwrap_or_default())
    }
}

/// The administrator's token; the same every time.
pub(crate) fn tokens_of(hub: &Hub) -> (Tokens, String) {
    let mut tokens = Tokens::default();
    let token = tokens.issue(hub.config(), "admin", &Seed::from_u64(5)).unwrap();
    (tokens, token)
}

fn http(ca: &str) -> reqwest::Client {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(proto::identity::crypto_provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(Arc::new(roots))
        .with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap()
}

fn site(text: &str) -> Object<SiteSpec> {
    Object::new(name(text), SiteSpec::default())
}

fn exit(error: &anyhow::Error) -> Exit {
    error.downcast_ref::<CliError>().unwrap().exit
}

/// The next change of a watch that is not a sign of life.
pub(crate) async fn change(watch: &mut (impl Stream<Item = anyhow::Result<Value>> + Unpin)) -> (String, String) {
    let next = tokio::time::timeout(SECOND * 20, watch.next()).await.unwrap().unwrap().unwrap();
    let text = |pointer: &str| next.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("/type"), text("/object/metadata/name"))
}

#[tokio::test]
async fn only_who_has_a_token_comes_in_and_only_to_the_trusted_hub() {
    let served = Served::start().await;
    served.client.list("nodes", None).await.unwrap();
    let ca = served.fixture.hub.ca().pem().to_owned();
    for wrong in ["", "x", "cda1.AAAA", &format!("{}x", served.token)] {
        let error = Client::new(&served.url, wrong, ca.as_bytes()).unwrap().list("nodes", None).await.unwrap_err();
        assert_eq!(exit(&error), Exit::Unauthorized, "{error}");
    }
    for open in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(served.http.get(format!("{}{open}", served.url)).send().await.unwrap().status(), 200, "{open}");
    }
    for path in [
        "/api/v1/nodes",
        "/api/v1/metadata",
        "/api/v1/blobs/x",
        "/api/v1/events",
        "/api/v1/streams",
        "/api/v1/streams/scans/records",
        "/api/v1/gaps",
    ] {
        let response = served.http.get(format!("{}{path}", served.url)).send().await.unwrap();
        assert_eq!(response.status(), 401, "{path}");
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
    }

    let other = Fixture::start().await;
    let stranger = Client::new(&served.url, &served.token, other.hub.ca().pem().as_bytes()).unwrap();
    let error = stranger.list("nodes", None).await.unwrap_err();
    assert_eq!(exit(&error), Exit::Unreachable, "{error}");
}

#[tokio::test]
async fn objects_are_created_changed_and_deleted_under_their_rules() {
    let served = Served::start().await;
    let client = &served.client;
    let mut object = site("hz-01");
    object.metadata.generation = 99;
    let made: Object<SiteSpec> = client.post("sites", &object).await.unwrap();
    assert_eq!((made.metadata.generation, made.metadata.uid.len()), (1, 36));
    let error = client.post::<Value>("sites", &object).await.unwrap_err();
    assert_eq!(exit(&error), Exit::Refused, "{error}");

    let mut next = serde_json::to_value(&made).unwrap();
    next["spec"] = json!({"description": "Hangzhou", "aFieldOfLater": 1});
    let changed = client.put("sites", "hz-01", &next).await.unwrap();
    assert_eq!(changed["spec"]["description"], "Hangzhou");
    next["spec"]["description"] = json!("Suzhou");
    let error = client.put("sites", "hz-01", &next).await.unwrap_err();
    assert!(error.to_string().contains("read it again"), "{error}");

    // A node: status is the hub's, apps must be published, a site with nodes stays.
    let node = json!({"apiVersion": "crossdock.io/v1", "kind": "Node", "metadata": {"name": "n1"},
        "spec": {"site": "hz-01"}, "status": {"phase": "Ready", "observedGeneration": "nonsense"}});
    let made: Object<NodeSpec> = client.post("nodes", &node).await.unwrap();
    assert_eq!(made.status, Default::default());
    let mut with_app = node.clone();
    with_app["spec"]["apps"] = json!({"app": {"version": "9", "digest": Digest::of(b"x")}});
    let error = client.put("nodes", "n1", &with_app).await.unwrap_err();
    assert!(error.to_string().contains("there is no release app@9"), "{error}");
    with_app["spec"]["apps"] = json!({"app": {"version": "1", "digest": Digest::of(b"x")}});
    let error = client.put("nodes", "n1", &with_app).await.unwrap_err();
    assert!(error.to_string().contains("has digest"), "{error}");
    let error = client.delete("sites", "hz-01").await.unwrap_err();
    assert!(error.to_string().contains("delete them first"), "{error}");
    client.delete("nodes", "n1").await.unwrap();
    client.delete("sites", "hz-01").await.unwrap();
    assert_eq!(exit(&client.get::<SiteSpec>("hz-01").await.unwrap_err()), Exit::NotFound);
    assert_eq!(exit(&client.delete("sites", "hz-01").await.unwrap_err()), Exit::NotFound);
    let events = client.list("events", None).await.unwrap().items;
    assert!(events.iter().any(|e| e["spec"]["reason"] == "Deleted" && e["spec"]["source"] == "admin"), "{events:?}");
}

#[tokio::test]
async fn bad_requests_are_refused_with_a_reason() {
    let served = Served::start().await;
    let site = r#"{"apiVersion": "crossdock.io/v1", "kind": "Site", "metadata": {"name": "a"}, "spec": {}}"#;
    let with = |from: &str, to: &str| site.replace(from, to);
    let big = with("{}", &format!(r#"{{"description": "{}"}}"#, "x".repeat(2 << 20)));
    let zero = with("{}", r#"{"bulkBytesPerS": 0}"#);
    let label = with(r#""name": "a""#, r#""name": "a", "labels": {"a b": "c"}"#);
    let post = Method::POST;
    for (method, path, body, code, word) in [
        (post.clone(), "/api/v1/sites", "{", 400, "body"),
        (post.clone(), "/api/v1/sites", "[]", 400, "not an object"),
        (post.clone(), "/api/v1/sites", &with("Site", "Pod"), 400, "kind: Site"),
        (post.clone(), "/api/v1/sites", &with("/v1", "/v9"), 400, "apiVersion"),
        (post.clone(), "/api/v1/sites", &with(r#""a""#, r#""../a""#), 400, "lower-case"),
        (post.clone(), "/api/v1/sites", &with(r#""a""#, r#""a.b""#), 422, "not a valid name"),
        (post.clone(), "/api/v1/sites", &label, 422, "label"),
        (post.clone(), "/api/v1/sites", &zero, 422, "bulkBytesPerS"),
        (post.clone(), "/api/v1/sites", &big, 413, "larger"),
        (Method::PUT, "/api/v1/sites/b", site, 422, "cannot be changed"),
        (Method::PUT, "/api/v1/sites/a", site, 404, "does not exist"),
        (post.clone(), "/api/v1/events", "{}", 405, "openapi"),
        (Method::PUT, "/api/v1/releases/app.1", "{}", 405, "openapi"),
        (Method::PATCH, "/api/v1/sites/a", "{}", 405, "openapi"),
        (Method::GET, "/api/v1/pods", "", 404, "openapi"),
        (Method::GET, "/api/v1/nodes?labelSelector=a%20b", "", 400, "selector"),
        (Method::GET, "/api/v1/nodes?watch=perhaps", "", 400, "query"),
        (Method::GET, "/api/v1/nodes?watch=true&resourceVersion=99999", "", 410, "list again"),
        (Method::GET, "/api/v1/blobs/md5:00", "", 400, "sha256:"),
        (Method::GET, "/api/v1/nodes/none/apps/app/logs", "", 404, "does not exist"),
        (Method::GET, "/api/v1/nodes/A/apps/app/logs", "", 400, "valid name"),
        (post.clone(), "/api/v1/metadata", r#"{"roots": 1}"#, 400, "body"),
        (post.clone(), "/api/v1/metadata", r#"{"timestamp": "{}"}"#, 422, "refused"),
        (post.clone(), "/api/v1/jointokens", r#"{"site": "hz", "uses": 0}"#, 422, "uses"),
        (post.clone(), "/api/v1/jointokens", r#"{"site": "hz", "ttl": "5 parsecs"}"#, 400, "span of time"),
        (post.clone(), "/api/v1/jointokens", r#"{"site": "hz", "labels": {"a b": ""}}"#, 422, "label"),
    ] {
        let (got, answer) = served.raw(method.clone(), path, body.to_owned()).await;
        assert_eq!(got, code, "{method} {path}: {answer}");
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(answer["kind"] == "Status" && message.contains(word), "{method} {path}: {answer}");
    }
    assert!(served.client.list("sites", None).await.unwrap().items.is_empty(), "nothing was created");
}

#[tokio::test]
async fn a_watch_goes_on_from_a_list_and_ends_when_the_hub_drains() {
    let served = Served::start().await;
    let client = &served.client;
    client.post::<Value>("sites", &site("a")).await.unwrap();
    let list = client.list("sites", None).await.unwrap();
    let selector = "name!=b".parse().unwrap();
    let mut watch = Box::pin(client.watch("sites", &list.resource_version, Some(&selector)).await.unwrap());
    let mut whole = Box::pin(client.watch("sites", "", None).await.unwrap()); // from what is
    for text in ["b", "c"] {
        client.post::<Value>("sites", &site(text)).await.unwrap();
    }
    client.delete("sites", "a").await.unwrap();
    for (word, text) in [("ADDED", "c"), ("DELETED", "a")] {
        assert_eq!(change(&mut watch).await, (word.into(), text.into()));
    }
    for (word, text) in [("ADDED", "a"), ("ADDED", "b"), ("ADDED", "c"), ("DELETED", "a")] {
        assert_eq!(change(&mut whole).await, (word.into(), text.into()));
    }
    served.stop.send_replace(true);
    assert!(tokio::time::timeout(SECOND * 20, watch.next()).await.unwrap().is_none());
    tokio::time::timeout(SECOND * 20, served.serving).await.unwrap().unwrap().unwrap();
    assert_eq!(exit(&client.list("sites", None).await.unwrap_err()), Exit::Unreachable);
}

#[tokio::test]
async fn what_leaves_a_selection_is_deleted_for_who_watches_it() {
    let served = Served::start().await;
    let client = &served.client;
    let label = async |name: &str, line: Option<&str>| {
        let mut object = client.get_value("sites", name).await.unwrap();
        object["metadata"]["labels"] = line.map_or(json!({}), |line| json!({"line": line}));
        client.put("sites", name, &object).await.unwrap();
    };
    for name in ["a", "b", "c"] {
        client.post::<Value>("sites", &site(name)).await.unwrap();
    }
    label("a", Some("1")).await;
    label("b", Some("1")).await;
    let selector = "line=1".parse().unwrap();
    let list = client.list("sites", Some(&selector)).await.unwrap();
    label("a", None).await; // between the list and the watch
    let mut on = Box::pin(client.watch("sites", &list.resource_version, Some(&selector)).await.unwrap());
    let mut whole = Box::pin(client.watch("sites", "", Some(&selector)).await.unwrap());
    label("b", None).await;
    label("b", Some("2")).await; // still outside: nothing is said
    label("c", Some("1")).await;
    client.delete("sites", "c").await.unwrap();
    client.delete("sites", "b").await.unwrap();
    label("a", Some("1")).await;
    for (word, name) in [("DELETED", "a"), ("DELETED", "b"), ("ADDED", "c"), ("DELETED", "c"), ("ADDED", "a")] {
        assert_eq!(change(&mut on).await, (word.into(), name.into()));
    }
    for (word, name) in [("ADDED", "b"), ("DELETED", "b"), ("ADDED", "c"), ("DELETED", "c"), ("ADDED", "a")] {
        assert_eq!(change(&mut whole).await, (word.into(), name.into()));
    }
}

#[tokio::test]
async fn a_release_is_uploaded_published_and_rolled_out() {
    let served = Served::start().await;
    let (client, fixture) = (&served.client, &served.fixture);
    let content = vec![7; 700 << 10]; // three chunks
    let publication = fixture.signed("app", "2", &content);
    let error = client.publish(&publication.reply).await.unwrap_err();
    assert!(error.to_string().contains("app@2 is not complete"), "{error}");
    let uploaded = upload(client, &publication, |_| {}).await.unwrap();
    assert_eq!(uploaded.sent, 2, "the manifest and the file");
    let again = upload(client, &publication, |_| {}).await.unwrap();
    assert_eq!(again.sent, 0);

    let digest = Digest::of(&content);
    let path = format!("{}/api/v1/blobs/{digest}", served.url);
    let answer = served.http.get(&path).bearer_auth(&served.token).send().await.unwrap();
    assert_eq!(answer.headers()["content-length"], content.len().to_string());
    assert_eq!(answer.bytes().await.unwrap(), content);
    let other = Digest::of(b"other");
    assert!(!client.has_blob(&other).await.unwrap());
    let file = fixture.folder.path().join("other");
    std::fs::write(&file, b"something else").unwrap();
    let error = client.put_blob(&other, &file).await.unwrap_err();
    assert!(exit(&error) == Exit::Refused && error.to_string().contains("send it again"), "{error}");
    assert!(!client.has_blob(&other).await.unwrap());
    assert!(client.put_blob(&other, Path::new("/no/such/file")).await.is_err());

    let everything = client.metadata(&MetadataRequest::default()).await.unwrap();
    assert!(!everything.roots.is_empty() && everything.targets.is_some());
    let nothing = MetadataRequest { root: 1, timestamp: 2, snapshot: 2, targets: 2 };
    assert_eq!(client.metadata(&nothing).await.unwrap(), MetadataReply::default());

    // Rollouts: the release and a node have to be there, and the spec stays.
    let rollout = |version: &str, to: &str| {
        let spec = json!({"app": "app", "version": version, "selector": to, "strategy": "all-at-once"});
        json!({"apiVersion": "crossdock.io/v1", "kind": "Rollout", "metadata": {"name": "r1"}, "spec": spec})
    };
    let error = client.post::<Value>("rollouts", &rollout("9", "all")).await.unwrap_err();
    assert!(error.to_string().contains("no release app@9"), "{error}");
    let error = client.post::<Value>("rollouts", &rollout("2", "all")).await.unwrap_err();
    assert!(error.to_string().contains("names no node"), "{error}");
    fixture.member("n1").await;
    let made: Object<RolloutSpec> = client.post("rollouts", &rollout("2", "name=n1")).await.unwrap();
    assert_eq!(made.spec.what(), "app@2");
    let error = client.put("rollouts", "r1", &rollout("1", "name=n1")).await.unwrap_err();
    assert!(error.to_string().contains("start a new one"), "{error}");
    let waits = async {
        let mut watch = Box::pin(client.watch("rollouts", "", None).await.unwrap());
        loop {
            let rollout = client.get::<RolloutSpec>("r1").await.unwrap();
            if rollout.status.nodes.get("n1").is_some_and(|node| node.reason == "NeverConnected") {
                return;
            }
            change(&mut watch).await;
        }
    };
    // What it would do can be asked first, and people may steer it.
    let plan: Value = client.post("rolloutplans", &rollout("2", "name=n1")).await.unwrap();
    assert_eq!((&plan["waves"][0]["nodes"][0], &plan["nodes"]["n1"]["phase"]), (&json!("n1"), &json!("Deferred")));
    let error = client.post::<Value>("rolloutplans", &rollout("9", "all")).await.unwrap_err();
    assert!(error.to_string().contains("no release app@9"), "{error}");
    let steered = |control: Value| {
        let mut rollout = rollout("2", "name=n1");
        rollout["spec"]["control"] = control;
        rollout
    };
    client.put("rollouts", "r1", &steered(json!({"paused": true, "retries": 1}))).await.unwrap();
    let error = client.put("rollouts", "r1", &steered(json!({"retries": 0}))).await.unwrap_err();
    assert!(error.to_string().contains("never fall"), "{error}");
    client.put("rollouts", "r1", &steered(json!({"retries": 1}))).await.unwrap();
    tokio::time::timeout(SECOND * 20, waits).await.unwrap();
    let error = client.logs("n1", "app", None, false).await.err().unwrap();
    assert!(error.to_string().contains("not connected"), "{error}");
}

#[tokio::test]
async fn a_token_is_shown_once_and_a_deleted_node_is_shut_out() {
    let served = Served::start().await;
    let client = &served.client;
    let asked = json!({"site": "hz-01", "node": "n1", "uses": 1, "ttl": "10m", "labels": {"line": "3"}});
    let made: Value = client.post("jointokens", &asked).await.unwrap();
    let token: Token = made["token"].as_str().unwrap().parse().unwrap();
    assert_eq!(made["metadata"]["name"], token.id);
    let listed = client.list("jointokens", None).await.unwrap().items;
    assert!(!listed[0].to_string().contains(&token.secret), "{listed:?}");

    let hub = &served.fixture.hub;
    let machine = served.fixture.member("n2").await;
    let session = machine.session(hub, Default::default()).await;
    let ready = async {
        let mut watch = Box::pin(client.watch("nodes", "", None).await.unwrap());
        while client.get::<NodeSpec>("n2").await.unwrap().status.remote.is_none() {
            change(&mut watch).await;
        }
    };
    tokio::time::timeout(SECOND * 20, ready).await.unwrap();
    client.delete("nodes", "n2").await.unwrap();
    let closed = tokio::time::timeout(SECOND * 20, session.closed()).await.unwrap();
    assert_eq!(closed, Some(proto::link::CloseCode::NotAdmitted));
}

#[test]
fn the_description_is_whole() {
    let document = openapi();
    let text = document.to_string();
    let parsed: utoipa::openapi::OpenApi = serde_json::from_value(document.clone()).unwrap();
    assert!(parsed.paths.paths.len() >= 15);
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name} is referred to and not described");
    }
    for (path, method) in [
        ("/api/v1/nodes", "post"),
        ("/api/v1/blobs/{digest}", "put"),
        ("/api/v1/metadata", "get"),
        ("/api/v1/streams/{stream}/records", "get"),
        ("/api/v1/gaps", "get"),
    ] {
        assert!(document["paths"][path][method].is_object(), "{method} {path}");
    }
}
