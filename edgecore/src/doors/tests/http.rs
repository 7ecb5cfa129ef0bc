//! The HTTP door.

use std::{
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    sync::atomic::Ordering,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
};

use super::support::{Stand, run, until};
use crate::doors::{Reason, bind, body::MAX_BODY_BYTES, http::MAX_CONNECTIONS};

const NDJSON: &str = "application/x-ndjson";

/// What was answered.
#[derive(Debug)]
struct Reply {
    status: u16,
    retry_after: Option<String>,
    document: Value,
}

impl Reply {
    fn message(&self) -> &str {
        self.document["message"].as_str().unwrap_or_default()
    }
}

async fn client(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> SendRequest<Full<Bytes>> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn send(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Reply {
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let retry_after = response.headers().get("retry-after").map(|v| v.to_str().unwrap().to_owned());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    Reply { status, retry_after, document: serde_json::from_slice(&bytes).unwrap() }
}

fn request(method: &str, path: &str, content_type: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("host", "box");
    if !content_type.is_empty() {
        request = request.header("content-type", content_type);
    }
    request.body(Full::new(body.into())).unwrap()
}

async fn post(stand: &Stand, path: &str, content_type: &str, body: impl Into<Bytes>) -> Reply {
    let mut client = client(TcpStream::connect(stand.http()).await.unwrap()).await;
    send(&mut client, request("POST", path, content_type, body)).await
}

/// Bytes as they are, and everything that is answered.
async fn raw(stand: &Stand, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(stand.http()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    rest(&mut stream).await
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = vec![];
    stream.read_to_end(&mut answer).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn records_are_taken_over_tcp_and_over_the_unix_socket() {
    let stand = Stand::open(|_| {}).await;
    let reply = post(&stand, "/v1/streams/scans", NDJSON, "{\"a\":1}\n{\"a\":2}\n").await;
    let taken = json!({ "stream": "scans", "epoch": 7, "first": 0, "last": 1, "count": 2 });
    assert_eq!((reply.status, reply.document), (200, taken));

    let path = stand.endpoints.borrow().socket.clone().unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let mut unix = client(UnixStream::connect(&path).await.unwrap()).await;
    let reply = send(&mut unix, request("POST", "/v1/streams/scans", "application/json", "[1,2]")).await;
    assert_eq!((reply.status, &reply.document["first"], &reply.document["count"]), (200, &json!(2), &json!(1)));
    // The connection is kept.
    let reply = send(&mut unix, request("POST", "/v1/streams/logs", "text/plain", "hello\nworld\n")).await;
    assert_eq!(reply.document["count"], 2);
    let reply = send(&mut unix, request("POST", "/v1/streams/scans", "application/octet-stream", "x\ny")).await;
    assert_eq!(reply.document["last"], 3);

    assert_eq!(stand.scans(), ["{\"a\":1}", "{\"a\":2}", "[1,2]", "x\ny"]);
    assert_eq!(stand.intake.records("logs"), ["hello", "world"]);
    let list = send(&mut unix, request("GET", "/v1/streams", "", "")).await.document;
    assert_eq!(
        list["streams"][0],
        json!({
            "stream": "scans", "class": "scans", "epoch": 7, "next": 4, "waiting": 4, "oldest": null,
        })
    );
    assert_eq!(list["streams"].as_array().unwrap().len(), 4);
    let health = send(&mut unix, request("GET", "/healthz", "", "")).await.document;
    assert_eq!((&health["status"], &health["taken"]), (&json!("ok"), &json!(6)));
}

#[tokio::test]
async fn what_is_wrong_is_said_and_nothing_is_taken() {
    let stand = Stand::open(|_| {}).await;
    let long = Bytes::from(vec![b'1'; 300 << 10]);
    let too_long = Bytes::from(vec![b'\n'; MAX_BODY_BYTES + 1]);
    let scans = "/v1/streams/scans";
    for (path, content_type, body, status, part) in [
        (scans, NDJSON, Bytes::from("{}\n{oops\n{}\n"), 400, "line 2"),
        (scans, NDJSON, Bytes::from_static(b"{}\n\"\xC3\x28\"\n"), 400, "line 2 is no UTF-8"),
        (scans, NDJSON, Bytes::new(), 400, "no record"),
        (scans, "application/json", Bytes::from("{"), 400, "no JSON"),
        (scans, "text/plain", Bytes::from_static(b"\xFF"), 400, "UTF-8"),
        (scans, "", Bytes::from("{}"), 415, "application/x-ndjson"),
        (scans, "application/x-www-form-urlencoded", Bytes::from("{}"), 415, "Content-Type"),
        (scans, NDJSON, long, 413, "262144"),
        (scans, NDJSON, too_long, 413, "at most"),
        (scans, NDJSON, Bytes::from("1\n".repeat(20_000)), 413, "16384"),
        ("/v1/streams/nix", NDJSON, Bytes::from("{}"), 404, "scans, events, metrics, logs"),
        ("/v1/streams/../scans", NDJSON, Bytes::from("{}"), 404, "stream"),
        ("/v2", NDJSON, Bytes::from("{}"), 404, "POST /v1/streams"),
        ("/v1/streams", NDJSON, Bytes::from("{}"), 405, "GET"),
        ("/healthz", NDJSON, Bytes::from("{}"), 405, "GET"),
    ] {
        let reply = post(&stand, path, content_type, body).await;
        assert_eq!(reply.status, status, "{path} {content_type}: {reply:?}");
        assert!(reply.message().contains(part), "{path} {content_type}: {reply:?}");
    }
    let mut client = client(TcpStream::connect(stand.http()).await.unwrap()).await;
    assert_eq!(send(&mut client, request("GET", scans, "", "")).await.status, 405);
    let mut packed = request("POST", scans, NDJSON, "{}");
    packed.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    assert_eq!(send(&mut client, packed).await.status, 415);
    assert_eq!(stand.intake.asked.load(Ordering::Relaxed), 0, "no request got as far as the intake");
    // The door is as it was.
    assert_eq!(post(&stand, scans, NDJSON, "{}").await.status, 200);
}

#[tokio::test]
async fn a_full_and_a_busy_intake_push_back() {
    let stand = Stand::open(|_| {}).await;
    for (reason, status, after) in
        [(Reason::Full, 507, Some("10")), (Reason::Busy, 429, Some("1")), (Reason::Failed, 500, None)]
    {
        stand.intake.refuse(Some(reason));
        let reply = post(&stand, "/v1/streams/scans", NDJSON, "{}").await;
        assert_eq!((reply.status, reply.retry_after.as_deref()), (status, after), "{reply:?}");
        assert_eq!(reply.message(), "told to refuse");
    }
    stand.intake.refuse(None);
    assert_eq!(post(&stand, "/v1/streams/scans", NDJSON, "{}").await.status, 200);
    assert_eq!(stand.scans(), ["{}"]);
    assert_eq!(stand.counts.refused.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn user_and_password_are_required_over_tcp_once_they_are_set() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "pa:ss\n").unwrap();
    let file = folder.path().join("secret");
    let stand = Stand::open(|s| {
        s.user = Some("scanner".into());
        s.password_file = Some(file);
    })
    .await;
    let basic = |text: &str| format!("Basic {}", data_encoding::BASE64.encode(text.as_bytes()));
    for (login, status) in [
        (None, 401),
        (Some(basic("scanner:wrong")), 401),
        (Some("Basic ???".into()), 401),
        (Some(basic("scanner:pa:ss")), 200),
    ] {
        let mut request = request("POST", "/v1/streams/scans", NDJSON, "{}");
        if let Some(login) = &login {
            request.headers_mut().insert("authorization", login.parse().unwrap());
        }
        let mut client = client(TcpStream::connect(stand.http()).await.unwrap()).await;
        assert_eq!(send(&mut client, request).await.status, status, "{login:?}");
    }
    let list = raw(&stand, b"GET /v1/streams HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(list.starts_with("HTTP/1.1 401") && list.contains("www-authenticate: Basic"), "{list}");
    // Over the socket the file's permissions are the lock.
    let path = stand.endpoints.borrow().socket.clone().unwrap();
    let mut unix = client(UnixStream::connect(&path).await.unwrap()).await;
    assert_eq!(send(&mut unix, request("POST", "/v1/streams/scans", NDJSON, "{}")).await.status, 200);
    assert_eq!(stand.scans().len(), 2);
}

#[tokio::test]
async fn bytes_that_are_no_request_hurt_nobody() {
    let stand = Stand::open(|_| {}).await;
    let head = "POST /v1/streams/scans HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-ndjson\r\n";
    for (bytes, status) in [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), "HTTP/1.1 400"),
        (b"nonsense\r\n\r\n".to_vec(), "HTTP/1.1 400"),
        (format!("{head}x: {}\r\n\r\n", "y".repeat(40_000)).into_bytes(), "HTTP/1.1 431"),
        (format!("{head}content-length: 99999999999999\r\n\r\n").into_bytes(), "HTTP/1.1 413"),
        (format!("{head}content-length: 5\r\ncontent-length: 6\r\n\r\n123456").into_bytes(), "HTTP/1.1 400"),
        (format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n").into_bytes(), "HTTP/1.1 400"),
    ] {
        let answer = raw(&stand, &bytes).await;
        assert!(answer.starts_with(status), "{:?}: {answer}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)]));
    }
    assert_eq!(stand.intake.asked.load(Ordering::Relaxed), 0);
    // A client that has closed its side still gets its answer.
    let mut stream = TcpStream::connect(stand.http()).await.unwrap();
    stream.write_all(format!("{head}content-length: 3\r\n\r\n{{}}\n").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_chunked_body_without_end_is_cut_off_at_the_bound() {
    let stand = Stand::open(|_| {}).await;
    let mut stream = TcpStream::connect(stand.http()).await.unwrap();
    let head = "POST /v1/streams/scans HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\n\
                transfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x10000));
    let endless = async { while write.write_all(chunk.as_bytes()).await.is_ok() {} };
    let answer = async {
        let mut first = vec![0; 4096];
        let count = read.read(&mut first).await.unwrap();
        String::from_utf8_lossy(&first[..count]).into_owned()
    };
    let answer = tokio::select! {
        answer = answer => answer,
        () = endless => panic!("cut off without an answer"),
    };
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(stand.intake.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_producer_that_dies_within_its_request_leaves_nothing() {
    let stand = Stand::open(|_| {}).await;
    for framing in ["content-length: 100\r\n\r\n{}\n{}\n", "transfer-encoding: chunked\r\n\r\n6\r\n{}\n{}\n\r\n"] {
        let mut stream = TcpStream::connect(stand.http()).await.unwrap();
        let head = "POST /v1/streams/scans HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-ndjson\r\n";
        stream.write_all(format!("{head}{framing}").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        // Whatever is answered, it is no success; and the server is done with the request then.
        assert!(!rest(&mut stream).await.contains("200 OK"));
    }
    assert_eq!(stand.intake.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn slow_clients_are_timed_out() {
    let stand = Stand::open(|_| {}).await;
    // A body that stops.
    let head = "POST /v1/streams/scans HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: 10\r\n\r\n";
    let begun = tokio::time::Instant::now();
    let answer = raw(&stand, format!("{head}abc").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!((10..12).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    // A head that stops, and a connection that says nothing.
    for bytes in [&b"POST /v1/streams/scans HTTP/1.1\r\nho"[..], b""] {
        let begun = tokio::time::Instant::now();
        raw(&stand, bytes).await;
        assert!((30..32).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    }
    // A body that trickles: never idle for long, and still not for ever.
    let mut stream = TcpStream::connect(stand.http()).await.unwrap();
    let endless = head.replace("content-length: 10", "content-length: 1000");
    stream.write_all(endless.as_bytes()).await.unwrap();
    let begun = tokio::time::Instant::now();
    let (mut read, mut write) = stream.into_split();
    let mut answer = String::new();
    let trickle = async {
        while write.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    tokio::select! {
        _ = read.read_to_string(&mut answer) => {}
        () = trickle => {}
    }
    assert!((59..70).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert_eq!(stand.intake.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_for_their_turn() {
    let stand = Stand::open(|_| {}).await;
    let mut idle = vec![];
    for _ in 0..MAX_CONNECTIONS {
        idle.push(client(TcpStream::connect(stand.http()).await.unwrap()).await);
    }
    for sender in &mut idle {
        assert_eq!(send(sender, request("GET", "/healthz", "", "")).await.status, 200);
    }
    let mut late = client(TcpStream::connect(stand.http()).await.unwrap()).await;
    let waiting = send(&mut late, request("GET", "/healthz", "", ""));
    tokio::pin!(waiting);
    // All the others were answered in between, so the late one had its chance and did not get in.
    for sender in &mut idle {
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("served beyond the bound"),
            reply = send(sender, request("GET", "/healthz", "", "")) => assert_eq!(reply.status, 200),
        }
    }
    idle.pop();
    assert_eq!(waiting.await.status, 200);
}

#[tokio::test]
async fn all_bodies_together_are_bounded() {
    let stand = Stand::open(|_| {}).await;
    let head = format!(
        "POST /v1/streams/scans HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: {MAX_BODY_BYTES}\r\n\r\n"
    );
    // Two bodies of all but a byte fill the budget.
    let mut held = vec![];
    for _ in 0..2 {
        let mut stream = TcpStream::connect(stand.http()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'\n'; MAX_BODY_BYTES - 1]).await.unwrap();
        held.push(stream);
    }
    let mut reply = post(&stand, "/v1/streams/scans", "text/plain", "a").await;
    while reply.status == 200 {
        reply = post(&stand, "/v1/streams/scans", "text/plain", "a").await; // they are still arriving
    }
    assert_eq!((reply.status, reply.retry_after.as_deref()), (429, Some("1")), "{reply:?}");
    drop(held);
    loop {
        let reply = post(&stand, "/v1/streams/scans", "text/plain", "b").await;
        if reply.status == 200 {
            break;
        }
        assert_eq!(reply.status, 429);
    }
}

#[tokio::test]
async fn doors_come_back_where_they_were() {
    let stand = Stand::open(|_| {}).await;
    let before = stand.endpoints.borrow().clone();
    let memory: Value = serde_json::from_slice(&std::fs::read(stand.folder.path().join(bind::FILE)).unwrap()).unwrap();
    assert_eq!(memory["http"], json!(before.http.unwrap()));
    let stand = stand.reopen().await;
    assert_eq!(*stand.endpoints.borrow(), before);
    // A damaged memory costs the port, not the door.
    std::fs::write(stand.folder.path().join(bind::FILE), "{").unwrap();
    let stand = stand.reopen().await;
    assert!(stand.endpoints.borrow().problems.is_empty());
    assert_eq!(post(&stand, "/v1/streams/scans", NDJSON, "{}").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_door_that_cannot_be_opened_is_a_problem_and_is_tried_again() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (socket, password) = (folder.path().join("s.sock"), folder.path().join("password"));
    std::fs::write(&socket, "no socket").unwrap();
    let stand = Stand::open(|s| {
        s.http = Some(address);
        s.socket = Some(socket.clone());
        s.user = Some("u".into());
        s.password_file = Some(password.clone());
    })
    .await;
    // Without its password a door that must have one stays shut.
    let problems = stand.endpoints.borrow().problems.clone();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[0].starts_with("http: could not read"), "{problems:?}");
    assert!(problems[2].starts_with("socket: ") && problems[2].contains("no socket"), "{problems:?}");
    std::fs::write(&password, "p").unwrap();
    let mut endpoints = stand.endpoints.clone();
    endpoints.wait_for(|e| e.mqtt.is_some() && e.problems.len() == 2).await.unwrap();
    let in_use = |e: &crate::doors::Endpoints| e.problems.iter().any(|p| p.contains("could not listen on 127.0.0.1"));
    endpoints.wait_for(in_use).await.unwrap();
    drop(taken);
    std::fs::remove_file(&socket).unwrap();
    endpoints.wait_for(|e| e.http == Some(address) && e.socket.is_some() && e.problems.is_empty()).await.unwrap();
}

#[tokio::test]
async fn a_group_is_given_to_the_socket_and_a_stale_socket_is_replaced() {
    let stand = Stand::open(|s| {
        s.socket_group = Some("root".into());
        s.socket_mode = 0o600;
    })
    .await;
    let path = stand.endpoints.borrow().socket.clone().unwrap();
    let found = path.metadata().unwrap();
    assert_eq!((found.gid(), found.permissions().mode() & 0o777), (0, 0o600));
    // The file stays behind when an agent dies, and the next one takes its place.
    let stand = stand.reopen().await;
    assert!(stand.endpoints.borrow().problems.is_empty());
    UnixStream::connect(&path).await.unwrap();
    stand.close().await;

    let stand = Stand::open(|s| s.socket_group = Some("no-such-group".into())).await;
    let problems = stand.endpoints.borrow().problems.clone();
    assert!(problems[0].contains("groupadd no-such-group"), "{problems:?}");
}

#[tokio::test]
async fn curl_works_as_documented() {
    let stand = Stand::open(|_| {}).await;
    let url = format!("http://{}/v1/streams/scans", stand.http());
    let body = "{\"n\":1}\n".repeat(4000);
    let post = ["-sS", "-H", "Content-Type: application/x-ndjson", "--data-binary", "@-"];
    let (code, said) = run("curl", &[&post[..], &[&url]].concat(), body.as_bytes()).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("\"count\":4000"), "{said}");
    let socket = stand.folder.path().join("doors/streams.sock");
    let unix = ["--unix-socket", socket.to_str().unwrap(), "http://box/v1/streams/scans"];
    let (code, said) = run("curl", &[&post[..], &unix].concat(), b"{}\n").await;
    assert!(code == 0 && said.contains("\"first\":4000"), "{said}");
    // It asks before it sends so much, and is told at once.
    let large = vec![b'\n'; MAX_BODY_BYTES + 1];
    let (_, said) = run("curl", &[&post[..], &["-H", "Expect: 100-continue", &url]].concat(), &large).await;
    assert!(said.contains("too-large"), "{said}");
    assert!(Path::new(&socket).exists());
    until("all are there", || stand.scans().len() == 4001).await;
}

#[tokio::test]
async fn a_workload_tells_of_itself_while_it_runs() {
    let stand = Stand::open(|_| {}).await;
    let (vision, runs) = ("vision".parse().unwrap(), proto::digest::Digest::of(b"runs"));
    let tell = |app: &str, digest: &str, values: Value| {
        let body = json!({"app": app, "digest": digest, "values": values, "later": 1}).to_string();
        request("PUT", "/v1/metrics", "application/json", body)
    };
    let other = proto::digest::Digest::of(b"other").to_string();
    let runs_text = runs.to_string();
    let socket = stand.endpoints.borrow().socket.clone().unwrap();
    let mut doors = [
        client(TcpStream::connect(stand.http()).await.unwrap()).await,
        client(UnixStream::connect(&socket).await.unwrap()).await,
    ];
    for door in &mut doors {
        let refused = send(door, tell("vision", &runs_text, json!({}))).await;
        assert_eq!((refused.status, refused.document["error"].as_str()), (404, Some("unknown-app")));
    }
    stand.metrics.begin(&vision, runs);
    for door in &mut doors {
        let values = json!({"frames_per_second": 24.9, "queue_length": 3});
        let response = door.send_request(tell("vision", &runs_text, values)).await.unwrap();
        assert_eq!(response.status(), 204);
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
        let refused = send(door, tell("vision", &other, json!({"frames_per_second": 1}))).await;
        assert_eq!((refused.status, refused.document["error"].as_str()), (409, Some("other-release")));
        for values in [json!({"9": 1}), json!({"fps": "fast"}), json!({"fps": null}), json!([])] {
            let refused = send(door, tell("vision", &runs_text, values)).await;
            assert_eq!(refused.status, 400);
            assert!(refused.message().contains("CROSSDOCK_APP"), "{}", refused.message());
        }
        let much: serde_json::Map<String, Value> = (0..33).map(|i| (format!("m{i}"), json!(1))).collect();
        assert_eq!(send(door, tell("vision", &runs_text, much.into())).await.status, 400);
        let large = request("PUT", "/v1/metrics", "", vec![b' '; 20 << 10]);
        assert_eq!(send(door, large).await.status, 413);
        assert_eq!(send(door, request("POST", "/v1/metrics", "", "{}")).await.status, 405);
    }
    assert_eq!(stand.metrics.live()[&vision]["frames_per_second"], 24.9);
    stand.close().await;
}
