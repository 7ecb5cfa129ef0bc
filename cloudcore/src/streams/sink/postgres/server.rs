//! The Postgres of the sink's tests: with TLS and a password over TCP, and without over its Unix socket.

use std::{
    path::PathBuf,
    sync::{
        Mutex, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use super::*;
use crate::{stage::postgres, streams::config::SinkChoice};

pub(crate) const PASSWORD: &str = "correct horse";

/// A running server. It ends with the test, however that ends.
pub(crate) struct Server {
    postgres: postgres::Postgres,
    databases: AtomicU32,
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
        let mut postgres = postgres::Postgres::make(PASSWORD).unwrap();
        let authority = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&authority).unwrap();
        let issuer = rcgen::Issuer::from_params(&params, &authority);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        postgres.write("ca.pem", &ca.pem()).unwrap();
        for (setting, name, content) in
            [("ssl_cert_file", "tls.pem", leaf.pem()), ("ssl_key_file", "key.pem", key.serialize_pem())]
        {
            let path = postgres.write(name, &content).unwrap();
            postgres.set(setting, &path.display().to_string());
        }
        postgres.set("ssl", "on");
        postgres.set("timezone", "Asia/Shanghai");
        postgres.start().unwrap();
        Server { postgres, databases: AtomicU32::new(0) }
    }

    /// Kills it without a word, as a machine that fails.
    pub(crate) fn kill(&mut self) {
        self.postgres.kill().unwrap();
    }

    /// Starts it again on its data.
    pub(crate) fn again(&mut self) {
        self.postgres.start().unwrap();
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.postgres.path(name)
    }

    /// The address of a database, over the Unix socket.
    pub(crate) fn address(&self, database: &str) -> String {
        self.postgres.address(database)
    }

    /// The same over TCP, which asks for a password.
    pub(crate) fn tcp_address(&self, database: &str) -> String {
        self.postgres.tcp_address(database)
    }

    /// A client of its own, once the server answers.
    pub(crate) async fn client(&self, database: &str) -> tokio_postgres::Client {
        self.postgres.client(database).await.unwrap()
    }

    /// A new database; returns its name.
    pub(crate) async fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.client("postgres").await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        name
    }
}

/// A sink at an address.
pub(crate) fn sink(address: &str, change: impl FnOnce(&mut StreamsConfig)) -> Postgres {
    let mut settings = StreamsConfig { sink: address.parse().unwrap(), ..StreamsConfig::default() };
    change(&mut settings);
    let SinkChoice::Postgres(address) = &settings.sink else { panic!("{address}") };
    Postgres::new(address, &settings, &Env::real().unwrap())
}
