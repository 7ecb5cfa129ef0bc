//! Roles over the real API: every route has its rule and keeps to it, and bounded users see their part alone.

use std::collections::BTreeSet;

use futures_util::StreamExt as _;
use proto::{digest::Digest, link::message::JoinReply};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{
    guard::Rule,
    tests::{Served, change},
    whole_book,
};
use crate::{
    access::{Binding, Resource, Role, Scope, Verb, allowed},
    cli::client::Client,
    hub::fixture::Machine,
};

/// A user of the API.
pub(crate) struct Somebody {
    pub(crate) client: Client,
    pub(crate) token: String,
    bindings: Vec<Binding>,
}

fn binding(role: Role, sites: &[&str], apps: &[&str]) -> Binding {
    let set = |names: &[&str]| {
        let names: BTreeSet<_> = names.iter().map(|n| n.parse().unwrap()).collect();
        Some(names).filter(|names| !names.is_empty())
    };
    Binding { role, sites: set(sites), apps: set(apps) }
}

impl Served {
    pub(crate) async fn user(&self, name: &str, role: Role, sites: &[&str], apps: &[&str]) -> Somebody {
        let bindings = vec![binding(role, sites, apps)];
        let made: Value = self.client.post("users", &json!({"name": name, "bindings": bindings})).await.unwrap();
        let token = made["token"].as_str().unwrap().to_owned();
        let ca = self.fixture.hub.ca().pem().to_owned();
        Somebody { client: Client::new(&self.url, &token, ca.as_bytes()).unwrap(), token, bindings }
    }

    async fn as_(&self, who: Option<&Somebody>, method: Method, path: &str, body: &str) -> (StatusCode, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).body(body.to_owned());
        if let Some(who) = who {
            request = request.bearer_auth(&who.token);
        }
        let response = request.send().await.unwrap();
        (response.status(), response.json().await.unwrap_or_default())
    }

    async fn site_with_node(&self, site: &str, node: &str) {
        let object = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "crossdock.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        self.client.post::<Value>("sites", &object("Site", site, json!({}))).await.unwrap();
        self.client.post::<Value>("nodes", &object("Node", node, json!({"site": site}))).await.unwrap();
    }
}

fn filled(path: &str) -> String {
    let digest = Digest::of(b"none").to_string();
    [("{name}", "x"), ("{digest}", &digest), ("{stream}", "scans"), ("{app}", "app")]
        .iter()
        .fold(path.to_owned(), |path, (from, to)| path.replace(from, to))
}

#[tokio::test]
async fn every_route_lets_through_whom_its_rule_names() {
    let served = Served::start().await;
    let mut people = vec![];
    for role in [Role::Viewer, Role::Operator, Role::Releaser, Role::Admin] {
        people.push(served.user(&format!("{role}-all"), role, &[], &[]).await);
        people.push(served.user(&format!("{role}-there"), role, &["nowhere"], &[]).await);
        people.push(served.user(&format!("{role}-for"), role, &[], &["nothing"]).await);
    }
    let book = whole_book();
    let described: usize =
        book.document()["paths"].as_object().unwrap().values().map(|i| i.as_object().unwrap().len()).sum();
    assert_eq!(book.routes.len(), described, "each route is in the description");
    assert!(book.routes.len() >= 35);
    for (method, path, rule) in &book.routes {
        let path = filled(path);
        let (code, _) = served.as_(None, method.clone(), &path, "").await;
        assert_eq!(code, 401, "{method} {path}");
        for who in &people {
            let (code, answer) = served.as_(Some(who), method.clone(), &path, "").await;
            let may = match rule {
                Rule::Anybody => true,
                Rule::May(verb, kind) => allowed(&who.bindings, *verb, *kind, Scope::Any, Scope::Any).is_ok(),
            };
            assert_ne!(code, 401, "{method} {path}");
            if !may {
                assert_eq!(code, 403, "{method} {path} as {:?}: {answer}", who.bindings);
                assert!(*method == Method::HEAD || answer["message"].as_str().unwrap().contains("takes role"));
            }
            // Whoever has the whole fleet gets as far as the request itself.
            let whole = who.bindings[0].sites.is_none() && who.bindings[0].apps.is_none();
            assert!(!(whole && may) || code != 403, "{method} {path} as {:?}: {answer}", who.bindings);
            if *method == Method::GET {
                let (head, _) = served.as_(Some(who), Method::HEAD, &path, "").await;
                assert!(code == head || path.contains("/blobs/"), "HEAD {path}: {head}, GET {code}");
            }
        }
    }
    // Nothing else leads there.
    let viewer = &people[0];
    for path in ["/api/v1/users/", "/api/v1//users", "/api/v1/%75sers", "/API/v1/users", "/api/v1/./users;x"] {
        let (code, _) = served.as_(Some(viewer), Method::GET, path, "").await;
        assert!(code == 404 || code == 403, "{path}: {code}");
    }
    let request = served.http.get(format!("{}/api/v1/sites/x", served.url)).bearer_auth(&viewer.token);
    let answer = request.header("x-http-method-override", "DELETE").send().await.unwrap();
    assert_eq!(answer.status(), 404, "it was a GET");
}

#[tokio::test]
async fn a_user_of_some_sites_sees_and_steers_these_alone() {
    let served = Served::start().await;
    served.site_with_node("a", "a1").await;
    served.site_with_node("b", "b1").await;
    let duty = served.user("duty", Role::Operator, &["a"], &[]).await;
    let names = async |kind: &str| {
        let items = duty.client.list(kind, None).await.unwrap().items;
        items.iter().map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((names("nodes").await, names("sites").await), (vec!["a1".into()], vec!["a".into()]));
    assert!(duty.client.list("events", None).await.unwrap().items.iter().all(|e| e["spec"]["involvedName"] != "b1"));
    for (method, path, body) in [
        (Method::GET, "/api/v1/nodes/b1", json!(null)),
        (Method::GET, "/api/v1/sites/b", json!(null)),
        (Method::GET, "/api/v1/nodes/b1/apps/app/logs", json!(null)),
        (Method::GET, "/api/v1/streams/scans/records?site=b", json!(null)),
        (Method::DELETE, "/api/v1/nodes/a1", json!(null)),
        (Method::POST, "/api/v1/jointokens", json!({"site": "b"})),
        // It would let a box take the name of a node elsewhere.
        (Method::POST, "/api/v1/jointokens", json!({"site": "a", "node": "b1"})),
    ] {
        let (code, answer) = served.as_(Some(&duty), method.clone(), path, &body.to_string()).await;
        assert_eq!(code, 403, "{method} {path}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains("duty has operator at a"), "{answer}");
    }
    let (code, answer) =
        served.as_(Some(&duty), Method::POST, "/api/v1/jointokens", r#"{"site": "a", "node": "a1"}"#).await;
    assert_eq!(code, 201, "{answer}");
    assert_eq!(names("jointokens").await.len(), 1);

    // Nodes: what is there may be drained, not taken elsewhere; what is elsewhere not fetched here.
    let mut node = duty.client.get_value("nodes", "a1").await.unwrap();
    node["spec"]["drained"] = json!(true);
    node["metadata"]["resourceVersion"] = json!("");
    duty.client.put("nodes", "a1", &node).await.unwrap();
    node["spec"]["site"] = json!("b");
    assert!(duty.client.put("nodes", "a1", &node).await.is_err());
    node["metadata"] = json!({"name": "b1"});
    node["spec"]["site"] = json!("a");
    assert!(duty.client.put("nodes", "b1", &node).await.is_err());

    // Rollouts: the selector has to keep to the sites, whatever stands there now.
    let rollout = |name: &str, to: &str| {
        let spec = json!({"app": "app", "version": "1", "selector": to, "strategy": "all-at-once"});
        json!({"apiVersion": "crossdock.io/v1", "kind": "Rollout", "metadata": {"name": name}, "spec": spec})
    };
    for to in ["all", "name=a1", "site in (a,b)", "site=b", "site!=b"] {
        for path in ["/api/v1/rollouts", "/api/v1/rolloutplans"] {
            let body = rollout("r1", to).to_string();
            let (code, answer) = served.as_(Some(&duty), Method::POST, path, &body).await;
            assert_eq!(code, 403, "{path} {to}: {answer}");
        }
    }
    duty.client.post::<Value>("rollouts", &rollout("mine", "site=a,name=a1")).await.unwrap();
    served.client.post::<Value>("rollouts", &rollout("theirs", "site=b")).await.unwrap();
    served.client.post::<Value>("rollouts", &rollout("ours", "all")).await.unwrap();
    assert_eq!(names("rollouts").await, ["mine", "ours"]);
    let mut undo = rollout("undo", "site=a");
    undo["spec"]["undoes"] = json!("theirs");
    let (code, answer) = served.as_(Some(&duty), Method::POST, "/api/v1/rollouts", &undo.to_string()).await;
    assert_eq!(code, 403, "{answer}");
    let mut ours = duty.client.get_value("rollouts", "ours").await.unwrap();
    assert!(ours["status"]["nodes"].as_object().unwrap().keys().all(|node| node == "a1"), "{ours}");
    ours["spec"]["control"] = json!({"paused": true});
    assert!(duty.client.put("rollouts", "ours", &ours).await.is_err());
    let mut mine = duty.client.get_value("rollouts", "mine").await.unwrap();
    mine["spec"]["control"] = json!({"paused": true});
    mine["metadata"]["resourceVersion"] = json!("");
    duty.client.put("rollouts", "mine", &mine).await.ok(); // the planner may have been faster
}

#[tokio::test]
async fn a_user_of_some_apps_steers_these_alone() {
    let served = Served::start().await;
    served.fixture.release("other", "1", b"other").await;
    served.site_with_node("a", "a1").await;
    let dev = served.user("dev", Role::Releaser, &[], &["app"]).await;
    let releases = dev.client.list("releases", None).await.unwrap().items;
    assert!(releases.len() == 1 && releases[0]["spec"]["app"] == "app", "{releases:?}");
    let mut node = dev.client.get_value("nodes", "a1").await.unwrap();
    node["spec"]["pinned"] = json!(["app"]);
    dev.client.put("nodes", "a1", &node).await.unwrap();
    for (pointer, value) in [("pinned", json!(["app", "other"])), ("cordoned", json!(true))] {
        let mut node = dev.client.get_value("nodes", "a1").await.unwrap();
        node["spec"][pointer] = value;
        assert!(dev.client.put("nodes", "a1", &node).await.is_err(), "{pointer}");
    }
    for path in ["/api/v1/metadata", "/api/v1/streams", "/api/v1/streams/scans/records", "/api/v1/gaps"] {
        assert_eq!(served.as_(Some(&dev), Method::GET, path, "").await.0, 403, "{path}");
    }
    // Publishing is for the apps that it changes.
    let publication = served.fixture.signed("app", "2", b"two");
    crate::release::publish::upload(&dev.client, &publication, |_| {}).await.unwrap();
    let publication = served.fixture.signed("other", "2", b"two");
    let error = crate::release::publish::upload(&dev.client, &publication, |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("for app other"), "{error}");
    served.client.publish(&publication.reply).await.unwrap();
}

#[tokio::test]
async fn a_watch_shows_a_bounded_user_nothing_else_and_ends_with_its_token() {
    let served = Served::start().await;
    let duty = served.user("duty", Role::Viewer, &["a"], &[]).await;
    served.site_with_node("a", "a1").await;
    let since = duty.client.list("nodes", None).await.unwrap().resource_version;
    let mut whole = Box::pin(duty.client.watch("nodes", "", None).await.unwrap());
    let mut on = Box::pin(duty.client.watch("nodes", &since, None).await.unwrap());
    assert_eq!(change(&mut whole).await, ("ADDED".into(), "a1".into()));
    served.site_with_node("b", "b1").await;
    served.client.delete("nodes", "b1").await.unwrap();
    let mut node = served.client.get_value("nodes", "a1").await.unwrap();
    node["spec"]["site"] = json!("b");
    served.client.put("nodes", "a1", &node).await.unwrap();
    served.client.delete("nodes", "a1").await.unwrap();
    served
        .client
        .post::<Value>(
            "nodes",
            &json!({"apiVersion": "crossdock.io/v1", "kind": "Node",
        "metadata": {"name": "a2"}, "spec": {"site": "a"}}),
        )
        .await
        .unwrap();
    for watch in [&mut whole, &mut on] {
        let gone = watch.next().await.unwrap().unwrap();
        assert_eq!((&gone["type"], &gone["object"]["metadata"]["name"]), (&json!("DELETED"), &json!("a1")), "{gone}");
        assert!(gone["object"].get("spec").is_none(), "where it went is not told: {gone}");
        assert_eq!(change(watch).await, ("ADDED".into(), "a2".into()));
    }

    served.client.delete("users", "duty").await.unwrap();
    served.client.delete("nodes", "a2").await.unwrap();
    for watch in [&mut whole, &mut on] {
        assert!(watch.next().await.is_none(), "nobody listens any more");
    }
    assert!(duty.client.list("nodes", None).await.is_err());
}

#[tokio::test]
async fn what_a_user_may_do_is_changed_and_its_token_stays() {
    let served = Served::start().await;
    let ci = served.user("ci", Role::Viewer, &[], &["app"]).await;
    let boss = served.user("boss", Role::Admin, &["a"], &[]).await;
    let put = async |name: &str, bindings: Value| {
        let body = json!({"bindings": bindings}).to_string();
        served.raw(Method::PUT, &format!("/api/v1/users/{name}"), body).await
    };
    let can =
        async || served.as_(Some(&ci), Method::GET, "/api/v1/self/can?verb=create&kind=rollouts&app=app", "").await.1;
    assert_eq!(can().await["allowed"], false);
    let mut watch = Box::pin(ci.client.watch("nodes", "", None).await.unwrap());
    let (code, answer) = put("ci", json!([{"role": "operator", "apps": ["app"]}])).await;
    assert!(code == 200 && answer["bindings"][0]["role"] == "operator" && answer["token"].is_null(), "{answer}");
    assert_eq!(can().await["allowed"], true);
    served.site_with_node("a", "a1").await;
    assert!(watch.next().await.is_none(), "what was followed by the rights of before ends");
    let (_, lines) = served.raw(Method::GET, "/api/v1/audit?verb=update&kind=users", "").await;
    assert_eq!(lines["items"][0]["detail"], "operator for app; before: viewer for app");
    assert_eq!((&lines["items"][0]["name"], &lines["items"][1]["outcome"]), (&json!("ci"), &json!("asked")));

    // Nobody but an administrator of the whole fleet gives roles, to whom it may be.
    for (who, name) in [(&ci, "ci"), (&boss, "boss"), (&boss, "ci")] {
        let body = json!({"bindings": [{"role": "admin"}]}).to_string();
        let (code, answer) = served.as_(Some(who), Method::PUT, &format!("/api/v1/users/{name}"), &body).await;
        assert_eq!(code, 403, "{answer}");
    }
    for (name, bindings, code, word) in [
        ("admin", json!([{"role": "viewer"}]), 409, "last administrator"),
        ("admin", json!([{"role": "admin", "sites": ["a"]}]), 409, "last administrator"),
        ("nobody", json!([{"role": "viewer"}]), 404, "no user nobody"),
        ("ci", json!([]), 422, "bindings"),
        ("ci", json!([{"role": "viewer", "apps": []}]), 422, "leave sites out"),
    ] {
        let (found, answer) = put(name, bindings).await;
        assert!(found == code && answer["message"].as_str().unwrap().contains(word), "{found} {answer}");
    }
    assert_eq!(put("boss", json!([{"role": "admin"}])).await.0, 200);
    assert_eq!(put("admin", json!([{"role": "viewer"}])).await.0, 200, "there is another now");
    assert_eq!(put("admin", json!([{"role": "admin"}])).await.0, 403, "and it has no way back by itself");
}

#[tokio::test]
async fn a_deleted_token_admits_nobody_and_those_for_a_node_go_with_it() {
    let served = Served::start().await;
    let hub = &served.fixture.hub;
    let code = |reply: &JoinReply| match reply {
        JoinReply::Accepted { node, .. } => node.to_string(),
        JoinReply::Refused { code, .. } => code.clone(),
    };
    // Of a node that is not there yet there is nothing to compare with: the token's secret, uses and end decide.
    let token = served.fixture.token(Some("n1"), 1).await;
    served.client.delete("jointokens", &token.id).await.unwrap();
    assert_eq!(code(&Machine::new("m1").join(hub, &token, "n1").await), "TokenUnknown");
    let token = served.fixture.token(Some("n1"), 2).await;
    let mut lost = Machine::new("m1");
    assert_eq!(code(&lost.join(hub, &token, "other").await), "n1");
    served.client.delete("nodes", "n1").await.unwrap();
    for machine in [&mut lost, &mut Machine::new("m2")] {
        let came = machine.join(hub, &token, "n1").await;
        assert_eq!(code(&came), "TokenUnknown", "as the event says, it needs a new one");
    }
    // Neither ends before a join that is under way does.
    let [used, kept] = [served.fixture.token(None, 1).await, served.fixture.token(None, 1).await];
    let under_way = hub.joining().lock().await;
    let deleting = served.client.delete("jointokens", &used.id);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(200), deleting).await.is_err());
    drop(under_way);
    assert_eq!(code(&Machine::new("m3").join(hub, &kept, "n3").await), "n3");
}

#[tokio::test]
async fn tokens_are_rotated_and_come_to_an_end() {
    let served = Served::start().await;
    let ci = served.user("ci", Role::Releaser, &[], &["app"]).await;
    let me = ci.client.whoami().await.unwrap();
    assert_eq!((&me["name"], &me["bindings"][0]["role"]), (&json!("ci"), &json!("releaser")));
    let can = async |query: &str| {
        let (code, answer) = served.as_(Some(&ci), Method::GET, &format!("/api/v1/self/can?{query}"), "").await;
        assert_eq!(code, 200, "{answer}");
        answer["allowed"].as_bool().unwrap()
    };
    assert!(can("verb=create&kind=rollouts").await && can("verb=create&kind=rollouts&app=app").await);
    assert!(!can("verb=create&kind=rollouts&app=other").await && !can("verb=delete&kind=nodes").await);
    let (code, answer) = served.as_(Some(&ci), Method::GET, "/api/v1/self/can?verb=do&kind=pods", "").await;
    assert!(code == 400 && answer["message"].as_str().unwrap().contains("is no verb"), "{answer}");

    let (_, users) = served.raw(Method::GET, "/api/v1/users", "").await;
    assert!(users["items"][1]["lastUsed"].is_string() && !users.to_string().contains(&ci.token), "{users}");
    for (body, word) in [
        (json!({"name": "ci", "bindings": [{"role": "viewer"}]}), "already"),
        (json!({"name": "x", "bindings": []}), "bindings"),
        (json!({"name": "x", "bindings": [{"role": "viewer", "sites": []}]}), "leave sites out"),
        (json!({"name": "x", "bindings": [{"role": "viewer", "site": ["a"]}]}), "unknown field"),
        (json!({"name": "x", "bindings": [{"role": "viewer"}], "expiresIn": "0s"}), "expiresIn"),
        (json!({"name": "X", "bindings": [{"role": "viewer"}]}), "lower-case"),
    ] {
        let (_, answer) = served.raw(Method::POST, "/api/v1/users", body.to_string()).await;
        assert!(answer["message"].as_str().unwrap().contains(word), "{body}: {answer}");
    }
    let (code, answer) = served.raw(Method::DELETE, "/api/v1/users/admin", "").await;
    assert!(code == 409 && answer["message"].as_str().unwrap().contains("last administrator"), "{answer}");
    let (code, made) = served.raw(Method::POST, "/api/v1/users/ci/rotate", "{}").await;
    assert!(code == 200 && made["token"].is_string(), "{made}");
    assert_eq!(served.as_(Some(&ci), Method::GET, "/api/v1/self", "").await.0, 401);
    assert!(allowed(&ci.bindings, Verb::Create, Resource::Metadata, Scope::Any, Scope::Any).is_ok());
}
