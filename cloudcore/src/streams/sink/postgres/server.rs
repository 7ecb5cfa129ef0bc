//! A real Postgres in a temporary folder, for tests: made by `initdb`, run as user `postgres`, with
//! TLS and a password over TCP, and without over its Unix socket. It ends with the test, however that ends.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, Weak,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use super::*;
use crate::streams::config::SinkChoice;

pub(crate) const PASSWORD: &str = "correct horse";

/// A running server.
pub(crate) struct Server {
    folder: tempfile::TempDir,
    port: u16,
    pid: rustix::process::Pid,
    waiter: Option<JoinHandle<()>>,
    databases: AtomicU32,
}

/// Debian keeps its programs out of the path.
fn program(name: &str) -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|v| v.path().join("bin").join(name)).filter(|p| p.exists()).collect())
        .unwrap_or_default();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("{name} is not there; apt-get install postgresql"))
}

/// A command as user `postgres`, which refuses to be root.
fn command(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--pdeathsig=INT", "--"]).arg(program);
    command
}

/// User and group `postgres`.
fn owner() -> (Option<u32>, Option<u32>) {
    let text = fs::read_to_string("/etc/passwd").unwrap();
    let line = text.lines().find(|l| l.starts_with("postgres:")).expect("user postgres; apt-get install postgresql");
    let mut ids = line.split(':').skip(2).map(|id| id.parse().ok());
    (ids.next().flatten(), ids.next().flatten())
}

static RUNNING: Mutex<Weak<Server>> = Mutex::new(Weak::new());

impl Server {
    /// The one that other tests use at this moment, or a new one.
    pub(crate) fn get() -> Arc<Server> {
        let mut running = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(server) = running.upgrade() {
            return server;
        }
        let server = Arc::new(Server::start());
        *running = Arc::downgrade(&server);
        server
    }

    /// One of its own.
    pub(crate) fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let give = |path: &Path| {
            if rustix::process::geteuid().is_root() {
                let (user, group) = owner();
                chown(path, user, group).unwrap();
            }
        };
        give(folder.path());
        let authority = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&authority).unwrap();
        let issuer = rcgen::Issuer::from_params(&params, &authority);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        let files = [
            ("ca.pem", ca.pem()),
            ("tls.pem", leaf.pem()),
            ("key.pem", key.serialize_pem()),
            ("password", PASSWORD.into()),
        ];
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            give(&path);
        }
        let data = folder.path().join("data");
        let made = command(&program("initdb"))
            .args(["--no-sync", "-E", "UTF8", "--locale=C", "-U", "postgres"])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .arg(format!("--pwfile={}", folder.path().join("password").display()))
            .arg("-D")
            .arg(&data)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server =
            Server { folder, port, pid: rustix::process::Pid::INIT, waiter: None, databases: AtomicU32::new(0) };
        server.run();
        server
    }

    /// Runs it. The thread that started it stays as long as it does: with it goes the server.
    fn run(&mut self) {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let mut postgres = command(&program("postgres"));
        let log = fs::File::create(path("log")).unwrap();
        postgres.args(["-D", &path("data"), "-k", &path(""), "-h", "localhost", "-p", &self.port.to_string()]);
        postgres.args(["-c", "fsync=off", "-c", "ssl=on", "-c", "timezone=Asia/Shanghai"]);
        postgres.args(["-c", &format!("ssl_cert_file={}", path("tls.pem"))]);
        postgres.args(["-c", &format!("ssl_key_file={}", path("key.pem"))]);
        postgres.current_dir(self.folder.path()).stdout(Stdio::null()).stderr(log);
        let (sender, receiver) = mpsc::channel();
        let waiter = std::thread::spawn(move || {
            let mut child = postgres.spawn().unwrap();
            sender.send(child.id()).unwrap();
            child.wait().unwrap();
        });
        let pid = receiver.recv().unwrap();
        self.pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        self.waiter = Some(waiter);
    }

    fn end(&mut self, signal: rustix::process::Signal) {
        let _ = rustix::process::kill_process(self.pid, signal); // it may be gone already
        if let Some(waiter) = self.waiter.take() {
            waiter.join().unwrap();
        }
    }

    /// Kills it without a word, as a machine that fails.
    pub(crate) fn kill(&mut self) {
        self.end(rustix::process::Signal::QUIT);
    }

    /// Starts it again on its data.
    pub(crate) fn again(&mut self) {
        self.run();
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The address of a database, over the Unix socket.
    pub(crate) fn address(&self, database: &str) -> String {
        let folder = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{folder}:{}/{database}", self.port)
    }

    /// The same over TCP, which asks for a password.
    pub(crate) fn tcp_address(&self, database: &str) -> String {
        format!("postgres://postgres@localhost:{}/{database}", self.port)
    }

    /// A client of its own, once the server answers.
    pub(crate) async fn client(&self, database: &str) -> tokio_postgres::Client {
        let connect = async {
            loop {
                match tokio_postgres::connect(&self.address(database), tokio_postgres::NoTls).await {
                    Ok((client, connection)) => {
                        tokio::spawn(connection);
                        return client;
                    }
                    // It is still starting.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        tokio::time::timeout(Duration::from_secs(60), connect).await.unwrap_or_else(|_| panic!("{}", log()))
    }

    /// A new database; returns its name.
    pub(crate) async fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.client("postgres").await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        name
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(rustix::process::Signal::INT);
    }
}

/// A sink at an address.
pub(crate) fn sink(address: &str, change: impl FnOnce(&mut StreamsConfig)) -> Postgres {
    let mut settings = StreamsConfig { sink: address.parse().unwrap(), ..StreamsConfig::default() };
    change(&mut settings);
    let SinkChoice::Postgres(address) = &settings.sink else { panic!("{address}") };
    Postgres::new(address, &settings, &Env::real().unwrap())
}
