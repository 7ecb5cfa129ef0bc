//! Who is let in, and what becomes of a command whose person is gone.

use std::{collections::BTreeMap, path::PathBuf};

use bytes::Bytes;
use proto::{
    digest::Digest,
    env::BoxFuture,
    exec::tls::{Key, client},
    object::{LastExit, ReleaseRef},
    release::{Exec, Probe, Workload},
    tuf::SecretKey,
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ED25519};
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use tokio::io::DuplexStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::{
    config,
    driver::{DriverError, Instance, ProbeOutcome, Side},
    fetch::tests::env,
};

const BUFFER: usize = 64 << 10;

/// A command that says back what it is told, and in which order it is let go.
#[derive(Debug, Default)]
struct Echo {
    started: Mutex<Vec<Start>>,
    gone: Arc<tokio::sync::Notify>,
}

impl Driver for Echo {
    fn start<'a>(&'a self, _: &'a InstanceSpec) -> BoxFuture<'a, Result<(), DriverError>> {
        unreachable!()
    }
    fn inspect<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<Option<Instance>, DriverError>> {
        unreachable!()
    }
    fn wait<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<LastExit, DriverError>> {
        unreachable!()
    }
    fn stop<'a>(&'a self, _: &'a Name, _: Duration) -> BoxFuture<'a, Result<(), DriverError>> {
        unreachable!()
    }
    fn remove<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<(), DriverError>> {
        unreachable!()
    }
    fn list(&self) -> BoxFuture<'_, Result<Vec<Name>, DriverError>> {
        unreachable!()
    }
    fn probe<'a>(&'a self, _: &'a InstanceSpec, _: &'a Probe) -> BoxFuture<'a, ProbeOutcome> {
        unreachable!()
    }
    fn exec<'a>(&'a self, _: &'a InstanceSpec, start: &'a Start) -> BoxFuture<'a, Result<Attached, String>> {
        self.started.lock().unwrap().push(start.clone());
        let ((input, mut typed), (shown, output)) = (mpsc::channel(1), mpsc::channel(1));
        let gone = self.gone.clone();
        tokio::spawn(async move {
            while let Some(Input::Bytes(bytes)) = typed.recv().await {
                shown.send(Output::Out(bytes)).await.unwrap();
            }
            let ended = Ended { code: Some(7), ..Ended::default() };
            let _ = shown.send(Output::Ended(ended)).await; // nobody may be there
            gone.notify_one();
        });
        Box::pin(std::future::ready(Ok(Attached { input, output })))
    }
    fn logs<'a>(&'a self, _: &'a Name, _: Option<u32>, _: bool) -> BoxFuture<'a, Option<mpsc::Receiver<Bytes>>> {
        unreachable!()
    }
}

struct Box1 {
    server: Server,
    echo: Arc<Echo>,
    roots: RootCertStore,
    events: mpsc::Receiver<EventRecord>,
    _folder: tempfile::TempDir,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

/// A box whose app lets the holder of key 1 in.
fn box_1() -> Box1 {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::new(folder.path());
    config::create_folders(&paths).unwrap();
    let authority = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let certificate = params.self_signed(&authority).unwrap();
    let own = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut params_own = CertificateParams::new(vec!["box-1.node.crossdock.internal".into()]).unwrap();
    params_own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params_own.signed_by(&own, &Issuer::new(params, authority)).unwrap();
    let pem = [own.serialize_pem(), leaf.pem(), certificate.pem()].concat();
    std::fs::write(paths.identity(), pem).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();

    let (desk, events) = Desk::new();
    let authorized_keys = vec![key(1).public().named("ann").to_openssh().unwrap()];
    let workload = Workload { exec: Some(Exec { authorized_keys }), ..Workload::new("run".into()) };
    let release = ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(b"1") };
    let (tree, data) = (PathBuf::from("/tree"), PathBuf::from("/data"));
    let spec = InstanceSpec {
        app: name("shop"),
        side: Side::A,
        replica: 0,
        release,
        tree,
        data,
        run: None,
        workload,
        gpus: vec![],
        uses: BTreeMap::new(),
    };
    let closed = InstanceSpec { app: name("vault"), workload: Workload::new("run".into()), ..spec.clone() };
    desk.runs(&name("shop"), Some(spec));
    desk.runs(&name("vault"), Some(closed));
    let echo = Arc::new(Echo::default());
    let server = Server { env: env(), node: name("box-1"), paths, driver: echo.clone(), desk };
    Box1 { server, echo, roots, events, _folder: folder }
}

impl Box1 {
    /// A hub has led a person to `shop`; the other end of the line.
    fn led(&self) -> DuplexStream {
        let (hub, line) = tokio::io::duplex(BUFFER);
        let server = self.server.clone();
        tokio::spawn(async move {
            let (spec, keys) = server.desk.open(&name("shop")).unwrap();
            let _ = server.serve(line, spec, &keys).await; // the person is told
        });
        hub
    }

    /// A person with this key, who believes to talk to `node`.
    async fn person(&self, seed: u8, node: &str) -> io::Result<tokio_rustls::client::TlsStream<DuplexStream>> {
        let secret = key(seed);
        let sign = move |message: &[u8]| {
            let hex = secret.sign(message);
            data_encoding::HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).map_err(|e| e.to_string())
        };
        let shown = Key::new(&key(seed).public(), sign).unwrap();
        let clock = Arc::new(TlsClock(self.server.env.wall.clone()));
        let config = client(&name(node), self.roots.clone(), shown, clock).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(ServerName::try_from("any.internal").unwrap(), self.led()).await
    }

    async fn ask(
        &self,
        seed: u8,
        start: &Start,
    ) -> Result<(tokio_rustls::client::TlsStream<DuplexStream>, Reply), FrameError> {
        let mut stream = self.person(seed, "box-1").await?;
        frame::write(&mut stream, start, MAX_REQUEST_BYTES).await?;
        let reply = frame::read(&mut stream, MAX_REQUEST_BYTES).await?;
        Ok((stream, reply))
    }
}

fn start(node: &str, app: &str) -> Start {
    let command = vec!["ls".into(), "-l".into()];
    Start { node: name(node), app: name(app), command, stdin: true, terminal: None }
}

#[tokio::test]
async fn who_holds_a_listed_key_is_let_in_and_it_is_told() {
    let mut here = box_1();
    let (mut stream, reply) = here.ask(1, &start("box-1", "shop")).await.unwrap();
    assert_eq!(reply, Reply::Started);
    let hello = Bytes::from_static(b"hello");
    Input::Bytes(hello.clone()).write(&mut stream).await.unwrap();
    assert_eq!(Output::read(&mut stream).await.unwrap(), Some(Output::Out(hello)));
    Input::End.write(&mut stream).await.unwrap();
    let ended = Ended { code: Some(7), ..Ended::default() };
    assert_eq!(Output::read(&mut stream).await.unwrap(), Some(Output::Ended(ended)));
    assert_eq!(Output::read(&mut stream).await.unwrap(), None);
    let event = here.events.recv().await.unwrap();
    assert_eq!(event.reason, "CommandRun");
    assert!(event.message.starts_with("shop@1: ann (") && event.message.ends_with(r#"runs "ls -l""#), "{event:?}");
}

#[tokio::test]
async fn nobody_else_is() {
    let here = box_1();
    assert!(here.ask(2, &start("box-1", "shop")).await.is_err(), "a key that is not listed");
    // A hub that has the fleet's CA and no key of a person.
    let mut hub = here.led();
    let config = rustls::ClientConfig::builder_with_provider(proto::identity::crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(here.roots.clone())
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let connected = connector.connect(ServerName::try_from("any.internal").unwrap(), &mut hub).await;
    assert!(connected.is_err());
    frame::write(&mut here.led(), &start("box-1", "shop"), MAX_REQUEST_BYTES).await.unwrap();
    assert!(here.echo.started.lock().unwrap().is_empty());
    let refusal = |app: &str| here.server.desk.open(&name(app)).unwrap_err().to_string();
    assert!(refusal("vault").contains("authorizedKeys"), "{}", refusal("vault"));
    assert!(refusal("ghost").contains("nothing of ghost runs"), "{}", refusal("ghost"));
}

#[tokio::test]
async fn a_hub_leads_nobody_where_they_do_not_want_to_go() {
    let here = box_1();
    let error = here.person(1, "box-2").await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "the terminal notices: {error}");
    for (node, app) in [("box-2", "shop"), ("box-1", "vault")] {
        let (_, reply) = here.ask(1, &start(node, app)).await.unwrap();
        assert!(
            matches!(reply, Reply::Refused { message } if message.contains("this is shop on box-1")),
            "{node} {app}"
        );
    }
    let nothing = Start { command: vec![], ..start("box-1", "shop") };
    assert!(matches!(here.ask(1, &nothing).await.unwrap().1, Reply::Refused { .. }));
    assert!(here.echo.started.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_command_goes_with_its_person_and_only_so_many_run() {
    let here = box_1();
    let mut people = BTreeMap::new();
    for number in 0..MAX_COMMANDS {
        let (stream, reply) = here.ask(1, &start("box-1", "shop")).await.unwrap();
        assert_eq!(reply, Reply::Started);
        people.insert(number, stream);
    }
    let (_, reply) = here.ask(1, &start("box-1", "shop")).await.unwrap();
    assert!(matches!(reply, Reply::Refused { message } if message.contains("end one of them")));
    people.remove(&0);
    here.echo.gone.notified().await;
    // Its seat is free a moment after it has gone.
    while here.server.desk.seats.available_permits() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(here.ask(1, &start("box-1", "shop")).await.unwrap().1, Reply::Started);
}
