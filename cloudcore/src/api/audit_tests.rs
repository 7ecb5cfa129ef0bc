//! The audit log, limits and headers over the real API.

use std::{
    fs, io,
    sync::{Arc, Mutex},
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{MAX_REQUESTS_USER, tests::Served};
use crate::{
    access::Role,
    audit::{Head, log},
    cli::client::Client,
    hub::fixture::Fixture,
};

async fn lines(served: &Served) -> Vec<Value> {
    let (code, listed) = served.raw(Method::GET, "/api/v1/audit", "").await;
    assert_eq!(code, 200, "{listed}");
    listed["items"].as_array().unwrap().clone()
}

fn words(line: &Value) -> [&str; 5] {
    ["user", "verb", "kind", "name", "outcome"].map(|field| line[field].as_str().unwrap())
}

const SITE: &str = r#"{"apiVersion": "crossdock.io/v1", "kind": "Site", "metadata": {"name": "a"}, "spec": {}}"#;

#[tokio::test]
async fn what_is_changed_is_written_down_before_it_is_answered() {
    let served = Served::start().await;
    let viewer = served.user("eve", Role::Viewer, &[], &[]).await;
    let url = format!("{}/api/v1/sites", served.url);
    let answer = served.http.post(&url).bearer_auth(&served.token).body(SITE).send().await.unwrap();
    let (head, id) = (answer.headers()["crossdock-audit-head"].clone(), answer.headers()["x-request-id"].clone());
    assert_eq!(answer.status(), 201);
    let kept: Head = head.to_str().unwrap().parse().unwrap();
    served.raw(Method::PUT, "/api/v1/sites/a", SITE.replace("{}", r#"{"description": "x"}"#)).await;
    assert!(viewer.client.delete("sites", "a").await.is_err());
    assert_eq!(served.raw(Method::DELETE, "/api/v1/sites/none", "").await.0, 404);
    let stranger = Client::new(&served.url, "cda1.wrong", served.fixture.hub.ca().pem().as_bytes()).unwrap();
    assert!(stranger.list("sites", None).await.is_err());
    served.fixture.member("n1").await;
    served.client.list("sites", None).await.unwrap(); // reading is not written down

    let lines = lines(&served).await;
    let newest: Vec<_> = lines.iter().map(words).take(10).collect();
    let expected = [
        ["", "admit", "nodes", "n1", "admitted"],
        ["", "login", "users", "", "401"],
        ["admin", "delete", "sites", "none", "404"],
        ["admin", "delete", "sites", "none", "asked"],
        ["eve", "delete", "sites", "a", "403"],
        ["eve", "login", "users", "", "200"], // the first time from there
        ["admin", "update", "sites", "a", "200"],
        ["admin", "update", "sites", "a", "asked"],
        ["admin", "create", "sites", "a", "201"],
        ["admin", "create", "sites", "", "asked"],
    ];
    assert_eq!(newest[1..], expected[1..]);
    assert_eq!(newest[0][1..], expected[0][1..]);
    assert_eq!(lines[6]["detail"], "changed description to \"x\"");
    assert!(
        lines[8]["request"] == id.to_str().unwrap() && lines[8]["from"].as_str().unwrap().starts_with("127.0.0.1:")
    );
    assert!(lines[4]["detail"].as_str().unwrap().contains("takes role admin"));

    let (_, head) = served.raw(Method::GET, "/api/v1/audit/head", "").await;
    let verify =
        async |heads: String| served.raw(Method::GET, &format!("/api/v1/audit/verify?head={heads}"), "").await.1;
    let report = verify(format!("{kept},{}", head["head"].as_str().unwrap())).await;
    assert_eq!((&report["whole"], &report["head"]), (&json!(true), &head["head"]));
    let report = verify(format!("{}@999", kept.hash)).await;
    assert!(report["whole"] == false && report["problem"].as_str().unwrap().contains("cut off"), "{report}");
    let (code, _) = served.raw(Method::GET, "/api/v1/audit/verify?head=x", "").await;
    assert_eq!(code, 400);

    // Offline the same; and a changed line is named.
    let folder = served.fixture.hub.config().audit();
    assert!(log::verify(&folder, vec![kept]).unwrap().is_ok());
    let file = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&file).unwrap().replace("\"user\":\"eve\"", "\"user\":\"bob\"");
    fs::write(&file, text).unwrap();
    let broken = log::verify(&folder, vec![]).unwrap().unwrap_err();
    assert_eq!(broken.at.unwrap().1 as u64, lines[5]["seq"].as_u64().unwrap());
    assert_eq!(verify(String::new()).await["whole"], false);
}

#[tokio::test]
async fn nothing_is_changed_that_cannot_be_written_down() {
    let fixture = Fixture::start_with(|config| {
        // A file where the folder has to be.
        fs::create_dir_all(&config.data_dir).unwrap();
        fs::write(config.audit(), b"").unwrap();
    })
    .await;
    let served = Served::of(fixture, |sink| sink);
    let (code, answer) = served.raw(Method::POST, "/api/v1/sites", SITE).await;
    assert_eq!(code, 503);
    assert!(answer["message"].as_str().unwrap().contains("nothing was done"), "{answer}");
    assert!(served.client.list("sites", None).await.unwrap().items.is_empty(), "it can still be looked at");
    fs::remove_file(served.fixture.hub.config().audit()).unwrap();
    assert_eq!(served.raw(Method::POST, "/api/v1/sites", SITE).await.0, 201, "mended, it goes on");
}

#[tokio::test]
async fn who_fails_or_asks_too_often_waits() {
    let fixture = Fixture::start_with(|config| {
        config.limits.failed_logins_per_min = 3;
        (config.limits.requests_per_s, config.limits.request_burst) = (1, 40);
    })
    .await;
    let served = Served::of(fixture, |sink| sink);
    let get = async |token: &str| {
        let request = served.http.get(format!("{}/api/v1/self", served.url)).bearer_auth(token);
        let answer = request.send().await.unwrap();
        let wait = answer.headers().get("retry-after").map(|wait| wait.to_str().unwrap().parse::<u64>().unwrap());
        (answer.status().as_u16(), wait)
    };
    for _ in 0..3 {
        assert_eq!(get("cda1.wrong").await, (401, None));
    }
    let (code, wait) = get("cda1.wrong").await;
    assert!(code == 429 && (1..=21).contains(&wait.unwrap()), "{code} {wait:?}");
    assert_eq!(get(&served.token).await.0, 200, "others behind that address still get in");
    let mut codes = vec![];
    for _ in 0..60 {
        codes.push(get(&served.token).await.0);
    }
    assert!(codes[0] == 200 && codes.contains(&429), "{codes:?}");
    assert_eq!(get("cda1.wrong").await.0, 429);
}

#[tokio::test]
async fn who_changes_too_often_waits_and_pushes_nothing_out_of_the_log() {
    let fixture = Fixture::start_with(|hub| (hub.limits.changes_per_s, hub.limits.change_burst) = (0.01, 5)).await;
    let served = Served::of(fixture, |sink| sink);
    let mut codes = vec![];
    for n in 0..80 {
        let body = SITE.replace("\"a\"", &format!("\"a{n}\""));
        codes.push(served.raw(Method::POST, "/api/v1/sites", body).await.0.as_u16());
    }
    assert!(codes[..5].iter().all(|code| *code == 201) && codes[5..].iter().all(|code| *code == 429), "{codes:?}");
    // Artifacts are no changes, and reading goes on.
    let blob = b"content";
    let path = format!("/api/v1/blobs/{}", proto::digest::Digest::of(blob));
    assert!(served.raw(Method::PUT, &path, blob.as_slice()).await.0.is_success());
    let lines = lines(&served).await;
    assert!(lines.len() < 70, "of 75 refusals the first are written: {} lines", lines.len());
    assert_eq!(lines.iter().filter(|line| line["outcome"] == "asked").count(), 5);
}

/// A body of which nothing more ever comes.
fn endless() -> reqwest::Body {
    let piece = futures_util::stream::iter([Ok::<_, io::Error>(b"{".to_vec())]);
    reqwest::Body::wrap_stream(futures_util::StreamExt::chain(piece, futures_util::stream::pending()))
}

#[tokio::test]
async fn one_user_has_a_part_of_the_seats_and_gives_them_back() {
    let served = Served::start().await;
    let eve = served.user("eve", Role::Admin, &[], &[]).await;
    let url = format!("{}/api/v1/sites", served.url);
    let send = || tokio::spawn(served.http.post(&url).bearer_auth(&eve.token).body(endless()).send());
    let mut slow: Vec<_> = (0..MAX_REQUESTS_USER).map(|_| send()).collect();
    let ask = async || served.http.get(&url).bearer_auth(&eve.token).send().await.unwrap();
    let mut answer = ask().await;
    for _ in 0..2_000 {
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await; // until they are all at the hub
        if slow.len() < 2 * MAX_REQUESTS_USER {
            slow.push(send()); // the look before may have had the seat of one
        }
        answer = ask().await;
    }
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS, "{:?}", slow.iter().filter(|s| s.is_finished()).count());
    assert_eq!(answer.headers()["retry-after"], "2");
    let text = answer.text().await.unwrap();
    assert!(text.contains("64 requests of yours are in work"), "{text}");
    served.client.list("sites", None).await.unwrap(); // another user

    slow.iter().for_each(tokio::task::JoinHandle::abort);
    let mut answer = ask().await;
    for _ in 0..2_000 {
        if answer.status() == StatusCode::OK {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await; // until the hub has seen it
        answer = ask().await;
    }
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_provider_is_not_asked_for_whom_the_address_speaks_against() {
    let provider = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", provider.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let answering = tokio::spawn(async move {
        while provider.accept().await.is_ok() {
            *count.lock().unwrap() += 1; // and is gone: no provider
        }
    });
    let config = json!({"issuer": issuer, "clientId": "crossdock"});
    let fixture = Fixture::start_with(|hub| {
        hub.oidc = Some(serde_json::from_value(config).unwrap());
        hub.limits.failed_logins_per_min = 3;
    })
    .await;
    let served = Served::of(fixture, |sink| sink);
    let end = served.fixture.hub.env().wall.now().as_second() + 600;
    let id_token = |alg: &str| {
        let part = |value: Value| data_encoding::BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let claims = json!({"iss": issuer, "aud": "crossdock", "sub": "eve", "exp": end, "iat": end - 600});
        format!("{}.{}.AAAA", part(json!({"alg": alg, "kid": "k"})), part(claims))
    };
    let get = async |token: String| {
        let request = served.http.get(format!("{}/api/v1/self", served.url)).bearer_auth(token);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(get(id_token("RS256")).await, 503, "the provider is asked for somebody new");
    let before = *asked.lock().unwrap();
    assert!(before > 0);
    for _ in 0..3 {
        assert_eq!(get(id_token("none")).await, 401);
    }
    for token in [id_token("RS256"), id_token("none")] {
        assert_eq!(get(token).await, 429);
    }
    assert_eq!(*asked.lock().unwrap(), before);
    assert_eq!(get(served.token.clone()).await, 200, "a token of ours costs a hash, and goes on");
    answering.abort();
}

#[tokio::test]
async fn answers_carry_what_keeps_browsers_from_harm_and_no_version() {
    let served = Served::start().await;
    for (path, code) in [("/healthz", 200), ("/api/v1/nodes", 401), ("/none", 404), ("/openapi.json", 200)] {
        let answer = served.http.get(format!("{}{path}", served.url)).send().await.unwrap();
        assert_eq!(answer.status(), code);
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        for (name, value) in [
            ("strict-transport-security", "max-age=31536000"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(header(name).as_deref(), Some(value), "{path} {name}");
        }
        assert!(header("content-security-policy").unwrap().contains("default-src 'none'"), "{path}");
        assert!(header("server").is_none() && header("x-powered-by").is_none() && header("x-request-id").is_some());
        assert!(!answer.text().await.unwrap().contains(proto::VERSION), "{path}");
    }
    let answer = served.http.delete(format!("{}/healthz", served.url)).send().await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["x-frame-options"]),
        (StatusCode::METHOD_NOT_ALLOWED, &"DENY".parse().unwrap())
    );
}

/// What the log says, kept.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_token_is_ever_in_a_log() {
    let kept = Kept::default();
    let writer = kept.clone();
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(move || writer.clone());
    let _log = tracing::subscriber::set_default(log.finish());
    // With one alone, tracing asks the thread that comes first to a line of code whether anybody listens, for all threads.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let served = Served::start().await;
    let eve = served.user("eve", Role::Viewer, &[], &[]).await;
    let (_, made) = served.raw(Method::POST, "/api/v1/users/eve/rotate", "{}").await;
    let (_, join) = served.raw(Method::POST, "/api/v1/jointokens", r#"{"site": "a"}"#).await;
    let typo = format!("{}x", served.token);
    let stranger = Client::new(&served.url, &typo, served.fixture.hub.ca().pem().as_bytes()).unwrap();
    assert!(stranger.list("sites", None).await.is_err());
    assert!(eve.client.list("sites", None).await.is_err());
    served.fixture.member("n1").await;
    served.raw(Method::POST, "/api/v1/users", format!(r#"{{"name": "x", "token": "{typo}"}}"#)).await;

    let join: proto::token::Token = join["token"].as_str().unwrap().parse().unwrap();
    let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
    let folder = served.fixture.hub.config().audit();
    let audit: String = fs::read_dir(folder).unwrap().map(|f| fs::read_to_string(f.unwrap().path()).unwrap()).collect();
    assert!(text.contains("eve") && audit.contains("eve"), "the log was looked at");
    for secret in [&served.token, &eve.token, &made["token"].as_str().unwrap().to_owned(), &join.secret] {
        let secret = secret.trim_start_matches("cda1.");
        assert!(!text.contains(secret) && !audit.contains(secret), "a secret is in a log");
    }
}
