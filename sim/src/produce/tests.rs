//! The producer against doors of the test's own, and against a real broker.

use std::{
    collections::VecDeque,
    io::Write as _,
    sync::{Arc, Mutex},
};

use clap::Parser as _;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};

use super::*;
use crate::bench::streams::server::Server;

#[derive(Debug, clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: ProduceArgs,
}

fn args(text: &str) -> ProduceArgs {
    Cli::try_parse_from(std::iter::once("sim").chain(text.split_whitespace())).unwrap().args
}

async fn run(text: &str) -> anyhow::Result<Totals> {
    let (args, stop) = (args(text), Notify::new());
    tokio::time::timeout(Duration::from_secs(60), produce(&args, &stop)).await.expect("the producer does not end")
}

/// What a door does with a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    /// Takes it.
    Take,
    /// Takes it and closes the connection without a word.
    TakeSilently,
    /// Refuses it with a status.
    Refuse(u16),
}

/// A door with a script; when that is at its end, it takes everything.
#[derive(Debug, Clone, Default)]
struct Shelf {
    script: Arc<Mutex<VecDeque<Answer>>>,
    taken: Arc<Mutex<Vec<(Instant, String)>>>,
    seen: Arc<Mutex<Vec<(String, String)>>>,
}

impl Shelf {
    fn with(script: &[Answer]) -> Shelf {
        Shelf { script: Arc::new(Mutex::new(script.iter().copied().collect())), ..Shelf::default() }
    }

    async fn tcp(&self) -> (String, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shelf, mut tasks) = (listener.local_addr().unwrap(), self.clone(), JoinSet::new());
        tasks.spawn(async move {
            loop {
                shelf.serve(listener.accept().await.unwrap().0).await;
            }
        });
        (format!("http://{address}"), tasks)
    }

    /// Serves one connection to its end: the producer has one at a time.
    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(|request| self.answer(request));
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let header = |name: &str| request.headers().get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
        assert_eq!(header("content-type"), "application/x-ndjson");
        self.seen.lock().unwrap().push((request.uri().path().to_owned(), header("authorization")));
        let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let answer = self.script.lock().unwrap().pop_front().unwrap_or(Answer::Take);
        if !matches!(answer, Answer::Refuse(_)) {
            let now = Instant::now();
            self.taken.lock().unwrap().extend(text.lines().map(|line| (now, line.to_owned())));
        }
        match answer {
            Answer::Take => {
                let said = format!(r#"{{"stream":"scans","count":{}}}"#, text.lines().count());
                Ok(Response::new(Full::from(said)))
            }
            Answer::TakeSilently => Err(std::io::Error::other("gone")),
            Answer::Refuse(status) => {
                let said = r#"{"error":"no","message":"the reason of the door"}"#;
                Ok(Response::builder().status(status).body(Full::from(said)).unwrap())
            }
        }
    }

    fn numbers(&self) -> Vec<u64> {
        let taken = self.taken.lock().unwrap();
        taken.iter().map(|(_, line)| scan::number_in(line.as_bytes(), "scanner").unwrap()).collect()
    }
}

#[tokio::test]
async fn http_takes_all_scans_in_order() {
    let shelf = Shelf::default();
    let (url, _serving) = shelf.tcp().await;
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let auth = format!("--user dock --password-file {}", password.display());
    let totals = run(&format!("--http {url} --rate max --count 250 --batch 100 --bytes 300 {auth}")).await.unwrap();
    assert_eq!(totals, Totals { acknowledged: 250, seconds: totals.seconds, ..Totals::default() });
    assert_eq!(shelf.numbers(), (0..250).collect::<Vec<_>>());
    assert!(shelf.taken.lock().unwrap().iter().all(|(_, line)| line.len() == 300));
    let expected = ("/v1/streams/scans".to_owned(), "Basic ZG9jazpzZWNyZXQ=".to_owned());
    assert_eq!(*shelf.seen.lock().unwrap(), vec![expected; 3]);
}

#[tokio::test]
async fn a_unix_socket_that_opens_later_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("streams.sock");
    let shelf = Shelf::default();
    let text = format!("--unix {} --stream events --rate max --count 10", path.display());
    let produced = run(&text);
    let serving = async {
        sleep(BACK_OFF.0).await; // at least one try finds nobody
        let listener = UnixListener::bind(&path).unwrap();
        loop {
            shelf.serve(listener.accept().await.unwrap().0).await;
        }
    };
    let totals = tokio::select! { totals = produced => totals.unwrap(), () = serving => unreachable!() };
    assert_eq!((totals.acknowledged, totals.answers_lost), (10, 0));
    assert!(totals.unreachable > 0, "{totals:?}");
    assert_eq!(shelf.seen.lock().unwrap().first().unwrap().0, "/v1/streams/events");
}

#[tokio::test]
async fn what_is_pushed_back_is_offered_again() {
    let shelf = Shelf::with(&[Answer::Take, Answer::Refuse(429), Answer::Refuse(507)]);
    let (url, _serving) = shelf.tcp().await;
    let totals = run(&format!("--http {url} --rate max --count 20 --batch 10")).await.unwrap();
    assert_eq!((totals.acknowledged, totals.pushed_back, totals.answers_lost), (20, 2, 0));
    assert_eq!(shelf.numbers(), (0..20).collect::<Vec<_>>());
}

#[test]
fn an_offer_is_bounded_in_bytes() {
    let records = vec![Bytes::from(vec![b'x'; MAX_OFFER_BYTES / 4]); 10];
    assert_eq!((fitting(&records), fitting(&records[..2]), fitting(&[])), (3, 2, 0));
    assert_eq!(fitting(&[Bytes::from(vec![b'x'; MAX_OFFER_BYTES])]), 1, "one goes in any case");
}

#[tokio::test]
async fn an_answer_that_is_lost_is_counted() {
    let shelf = Shelf::with(&[Answer::TakeSilently]);
    let (url, _serving) = shelf.tcp().await;
    let totals = run(&format!("--http {url} --rate max --count 4 --batch 2")).await.unwrap();
    assert_eq!((totals.acknowledged, totals.answers_lost), (4, 1));
    assert_eq!(shelf.numbers(), [0, 1, 0, 1, 2, 3]);
}

#[tokio::test]
async fn a_refusal_ends_it_with_the_reason() {
    let shelf = Shelf::with(&[Answer::Refuse(404)]);
    let (url, _serving) = shelf.tcp().await;
    let error = run(&format!("--http {url}")).await.unwrap_err().to_string();
    assert!(error.contains("the reason of the door") && error.contains(&url), "{error}");
}

#[tokio::test]
async fn a_file_is_replayed_with_its_own_timing() {
    let mut file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
    write!(file, "barcode,at\na,1000\nb,1000\nc,1004\n").unwrap();
    let shelf = Shelf::default();
    let (url, _serving) = shelf.tcp().await;
    let path = file.path().display();
    let totals = run(&format!("--http {url} --replay {path} --time-field at --speed 10")).await.unwrap();
    assert_eq!(totals.acknowledged, 3);
    let taken = shelf.taken.lock().unwrap();
    assert_eq!(taken[2].1, r#"{"at":"1004","barcode":"c"}"#);
    assert_eq!(taken[0].0, taken[1].0, "what is due at the same time goes together");
    assert!(taken[2].0 - taken[1].0 >= Duration::from_millis(300), "{taken:?}");
}

#[tokio::test]
async fn a_rate_is_kept_and_the_end_is_told() {
    let shelf = Shelf::default();
    let (url, _serving) = shelf.tcp().await;
    let totals = run(&format!("--http {url} --rate 50 --seconds 1")).await.unwrap();
    // Never ahead of the rate; how far behind is up to the machine.
    assert!((1..=51).contains(&totals.acknowledged), "{totals:?}");
    assert!(totals.seconds >= 1.0);
}

#[tokio::test]
async fn a_broker_gets_each_scan_as_a_publish() {
    let folder = tempfile::tempdir().unwrap();
    let config = |address: SocketAddr| {
        format!("listener {} {}\nallow_anonymous true\nuser root\n", address.port(), address.ip())
    };
    let server = Server::start("mosquitto", "mosquitto", folder.path(), config).await.unwrap();
    let mut options = MqttOptions::new("reader", "127.0.0.1", server.address.port());
    options.set_keep_alive(Duration::ZERO);
    let (client, mut events) = AsyncClient::new(options, 10);
    client.try_subscribe("crossdock/streams/scans", QoS::AtLeastOnce).unwrap();
    while !matches!(events.poll().await.unwrap(), Event::Incoming(Packet::SubAck(_))) {}
    let (count, mut numbers) = (1500, vec![]);
    let text = format!("--mqtt {} --rate max --count {count} --batch 700", server.address);
    let produced = run(&text);
    let read = async {
        while numbers.len() < count {
            if let Event::Incoming(Packet::Publish(publish)) = events.poll().await.unwrap() {
                numbers.push(scan::number_in(&publish.payload, "scanner").unwrap());
            }
        }
    };
    let (totals, ()) = tokio::join!(produced, read);
    assert_eq!(totals.unwrap().acknowledged, count as u64);
    assert_eq!(numbers, (0..count as u64).collect::<Vec<_>>());
}

#[test]
fn wrong_arguments_are_told() {
    let try_args = |text: &str| Cli::try_parse_from(std::iter::once("sim").chain(text.split_whitespace()));
    for (text, expected) in [
        ("--rate 1", "--http"),
        ("--http http://a:1 --rate 1", "http://127.0.0.1:7480"),
        ("--http http://127.0.0.1:1 --mqtt 127.0.0.1:2", "cannot be used with"),
        ("--http http://127.0.0.1:1 --rate 0", "above 0, or max"),
        ("--http http://127.0.0.1:1 --batch 5000", "4096"),
        ("--http http://127.0.0.1:1 --replay x.csv --rate 3", "cannot be used with"),
    ] {
        let error = try_args(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert!(try_args("--http http://localhost:7480/").is_ok());
}
