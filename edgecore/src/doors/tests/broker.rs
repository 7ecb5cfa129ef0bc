//! The subscriber, at a real Mosquitto.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::SystemTime,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::{broker::Broker, stream::MAX_RECORD_BYTES};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use super::support::{Stand, run, until};
use crate::{
    doors::Reason,
    settings::{BrokerSetting, Streams, TopicSetting},
};

/// A Mosquitto with persistence, and where it keeps things.
struct Mosquitto {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

/// A port below those that the kernel hands out, so that a broker that is away finds it free again.
fn free_port() -> u16 {
    static HANDED_OUT: AtomicU16 = AtomicU16::new(0); // the tests of one process run at once
    let start = 20_000 + u16::try_from(std::process::id() % 9_000).unwrap();
    let ports = std::iter::repeat_with(|| start + HANDED_OUT.fetch_add(1, Ordering::Relaxed));
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.take(2_000).find(free).expect("a free port")
}

impl Mosquitto {
    async fn start(more: &str) -> Mosquitto {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let place = folder.path().display().to_string();
        let config = format!(
            "user root\nlistener {port} 127.0.0.1\nallow_anonymous true\npersistence true\n\
             persistence_location {place}/\nautosave_interval 3600\nmax_queued_messages 0\nlog_dest file {place}/log\n\
             log_type debug\n{}\n",
            more.replace("FOLDER", &place)
        );
        fs::write(folder.path().join("conf"), config).unwrap();
        let mut broker = Mosquitto { folder, port, child: None };
        broker.up().await;
        broker
    }

    async fn up(&mut self) {
        let mut command = Command::new("/usr/sbin/mosquitto");
        command.arg("-c").arg(self.folder.path().join("conf")).kill_on_drop(true);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("install mosquitto (.ci/test names the package)"));
        let port = self.port;
        loop {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                break;
            }
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "mosquitto ended: {ended:?}");
            tokio::task::yield_now().await;
        }
    }

    /// As a power cut would end it.
    async fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().await.unwrap();
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("mosquitto.db")
    }

    /// Has it write what it holds to disk, and waits for that.
    async fn save(&self) {
        let stamp = |path: &Path| path.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let before = stamp(&self.store());
        let pid = self.child.as_ref().unwrap().id().unwrap();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGUSR1).unwrap();
        until("mosquitto has saved", || stamp(&self.store()) > before).await;
    }

    async fn publish(&self, qos: &str, numbers: std::ops::Range<usize>) {
        let input: String = numbers.map(|n| format!("{n}\n")).collect();
        let port = self.port.to_string();
        let args = ["-h", "127.0.0.1", "-p", &port, "-q", qos, "-t", "line/1/scan", "-l"];
        let (code, said) = run("mosquitto_pub", &args, input.as_bytes()).await;
        assert_eq!(code, 0, "{said}");
    }

    fn setting(&self) -> BrokerSetting {
        let topic = |filter: &str, stream: &str| TopicSetting {
            filter: filter.parse().unwrap(),
            stream: stream.parse().unwrap(),
        };
        BrokerSetting {
            broker: Broker::at(format!("mqtt://127.0.0.1:{}", self.port).parse().unwrap()),
            client_id: None,
            topics: vec![topic("line/+/scan", "scans"), topic("log/#", "logs")],
        }
    }

    /// Doors that subscribe here, and nothing else.
    async fn stand(&self) -> Stand {
        let broker = self.setting();
        let stand = Stand::open(|s: &mut Streams| {
            (s.http, s.mqtt, s.socket) = (None, None, None);
            s.brokers = vec![broker];
        })
        .await;
        self.subscribed(&stand).await;
        stand
    }

    /// Until messages arrive: the session is there.
    async fn subscribed(&self, stand: &Stand) {
        let before = stand.intake.records("logs").len();
        let port = self.port.to_string();
        while stand.intake.records("logs").len() == before {
            let args = ["-h", "127.0.0.1", "-p", &port, "-q", "1", "-t", "log/probe", "-m", "x"];
            assert_eq!(run("mosquitto_pub", &args, b"").await.0, 0);
        }
    }
}

fn numbers(stand: &Stand) -> BTreeSet<usize> {
    stand.scans().iter().map(|s| s.parse().unwrap()).collect()
}

#[tokio::test]
async fn what_a_broker_acknowledged_arrives_although_it_is_killed() {
    let mut broker = Mosquitto::start("").await;
    let stand = broker.stand().await;
    broker.publish("1", 0..300).await;
    until("the first are there", || stand.scans().len() >= 300).await;
    // Held back here, acknowledged there, on its disk: and then it is killed.
    stand.intake.refuse(Some(Reason::Full));
    broker.publish("1", 300..600).await;
    broker.publish("2", 600..700).await;
    broker.save().await;
    broker.kill().await;
    let mut endpoints = stand.endpoints.clone();
    endpoints.wait_for(|e| e.problems.iter().any(|p| p.starts_with("broker 127.0.0.1"))).await.unwrap();
    stand.intake.refuse(None);
    broker.up().await;
    until("all of them are there", || numbers(&stand).len() == 700).await;
    broker.publish("1", 700..800).await;
    until("it goes on", || numbers(&stand).len() == 800).await;
    endpoints.wait_for(|e| e.problems.is_empty()).await.unwrap();
    // In order, each at its first coming.
    let (mut seen, mut first_comings) = (BTreeSet::new(), vec![]);
    for scan in stand.scans() {
        if seen.insert(scan.clone()) {
            first_comings.push(scan.parse::<usize>().unwrap());
        }
    }
    assert!(first_comings.is_sorted(), "{first_comings:?}");
}

#[tokio::test]
async fn what_is_published_while_the_agent_is_away_arrives() {
    let broker = Mosquitto::start("").await;
    let mut stand = broker.stand().await;
    for round in 0..3 {
        // The doors are dropped in the middle of the stream, wherever they are.
        let publish = broker.publish("1", round * 1000..(round + 1) * 1000);
        let before = stand.intake.appends.load(Ordering::Relaxed);
        let intake = stand.intake.clone();
        let interrupt = async {
            until("some came", || intake.appends.load(Ordering::Relaxed) > before + 2).await;
            stand.reopen().await
        };
        let ((), again) = tokio::join!(publish, interrupt);
        stand = again;
    }
    until("all of them are there", || numbers(&stand).len() == 3000).await;
    // Nothing is sent again that was acknowledged: only what was on its way when the doors fell.
    // Only what the broker sent again, having seen no acknowledgement of it, came twice.
    let twice = stand.scans().len() - 3000;
    let log = fs::read_to_string(broker.folder.path().join("log")).unwrap();
    let again = log.lines().filter(|l| l.contains("Sending PUBLISH to crossdock-box-1 (d1,")).count();
    assert!(twice <= again, "{twice} came twice, and the broker sent {again} again");
}

#[tokio::test]
async fn what_can_never_be_taken_blocks_nothing() {
    let broker = Mosquitto::start("").await;
    let stand = broker.stand().await;
    let port = broker.port.to_string();
    let to = |topic: &'static str| ["-h", "127.0.0.1", "-p", port.as_str(), "-q", "1", "-t", topic];
    let large = vec![b'a'; MAX_RECORD_BYTES];
    let over = vec![b'a'; MAX_RECORD_BYTES + 1];
    for body in [&large, &over] {
        let (code, said) = run("mosquitto_pub", &[&to("line/1/scan")[..], &["-s"]].concat(), body).await;
        assert_eq!(code, 0, "{said}");
    }
    // A retained one comes at every subscription; it is old news then.
    run("mosquitto_pub", &[&to("line/9/scan")[..], &["-r", "-m", "retained"]].concat(), b"").await;
    until("it came while it was new", || stand.scans().len() == 2).await;
    let stand = stand.reopen().await;
    broker.subscribed(&stand).await;
    broker.publish("1", 0..1).await;
    until("the next one is there", || stand.scans().last().is_some_and(|s| s == "0")).await;
    let lengths: Vec<usize> = stand.scans().iter().map(String::len).collect();
    assert_eq!(lengths, [MAX_RECORD_BYTES, "retained".len(), 1]);
}

#[tokio::test]
async fn a_broker_over_tls_with_a_password() {
    // PKCS#8 of this kind of key is what OpenSSL reads too.
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().self_signed(&key).unwrap();
    let keep = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = keep.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let (ca, key) = (file("ca.pem", &certificate.pem()), file("key.pem", &key.serialize_pem()));
    let users = file("users", "");
    let made = run("mosquitto_passwd", &["-b", users.to_str().unwrap(), "agent", "secret"], b"").await;
    assert_eq!(made.0, 0, "{}", made.1);
    let more = format!(
        "certfile {}\nkeyfile {}\npassword_file {}\nallow_anonymous false",
        ca.display(),
        key.display(),
        users.display()
    );
    let broker = Mosquitto::start(&more).await;
    let password = file("password", "wrong");
    let setting = BrokerSetting {
        broker: Broker {
            user: Some("agent".into()),
            password_file: Some(password.clone()),
            ca: Some(ca.clone()),
            ..Broker::at(format!("mqtts://127.0.0.1:{}", broker.port).parse().unwrap())
        },
        ..broker.setting()
    };
    let stand = Stand::open_in(
        Arc::new(tempfile::tempdir().unwrap()),
        Streams { http: None, mqtt: None, socket: None, brokers: vec![setting], ..Streams::default() },
    )
    .await;
    let mut endpoints = stand.endpoints.clone();
    endpoints.wait_for(|e| e.problems.iter().any(|p| p.contains("user"))).await.unwrap();
    // What is mended is found without a restart.
    fs::write(&password, "secret\n").unwrap();
    endpoints.wait_for(|e| e.problems.is_empty()).await.unwrap();
    let port = broker.port.to_string();
    let args = ["-h", "127.0.0.1", "-p", &port, "--cafile", ca.to_str().unwrap(), "-u", "agent", "-P", "secret"];
    let (code, said) =
        run("mosquitto_pub", &[&args[..], &["-q", "1", "-t", "line/1/scan", "-m", "7"]].concat(), b"").await;
    assert_eq!(code, 0, "{said}");
    until("it is there", || stand.scans() == ["7"]).await;
}
