//! A node's identity over its life: renewed, renewed after long absence, revoked, approved; what it signs.

use std::{future::poll_fn, task::Poll, time::Duration};

use data_encoding::BASE64;
use proto::{
    attestation::Attestation,
    digest::Digest,
    link::{
        ALPN_RENEW, CloseCode,
        frame::{self, MAX_CONTROL_BYTES, MAX_METADATA_BYTES, MAX_REQUEST_BYTES},
        message::{AgentMessage, HubMessage, JoinReply, RenewReply, RenewRequest, Report},
    },
    name::Name,
    object::{
        Admission, EventSpec, Node, NodeSpec, ReleaseRef, RunState, Running, UpdatePhase, WorkloadStatus, feature,
    },
    tuf::SecretKey,
    watch,
};
use quinn::Connection;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use crate::{
    ca::NODE_LIFETIME,
    hub::fixture::{Fixture, Machine, hello, name},
};

async fn node(fixture: &Fixture, name: &str) -> Node {
    fixture.hub.store().get::<NodeSpec>(name).await.unwrap().unwrap()
}

async fn why(connection: &Connection) -> Option<CloseCode> {
    CloseCode::of(&connection.closed().await)
}

/// What a session is while nobody drops it.
struct Greeted {
    send: quinn::SendStream,
    _recv: quinn::RecvStream,
    nonce: String,
}

/// Says Hello with what the agent can do; the connection, its stream, and the nonce if it was welcome.
async fn greet(machine: &Machine, fixture: &Fixture, features: &[&str]) -> (Connection, Option<Greeted>) {
    let connection = machine.connect(&fixture.hub).await;
    let mut hello = hello(&fixture.hub, Report::default());
    hello.info.features = features.iter().map(|f| (*f).to_owned()).collect();
    let talk = async {
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        frame::write(&mut send, &AgentMessage::Hello(Box::new(hello)), MAX_CONTROL_BYTES).await.ok()?;
        match frame::read::<HubMessage>(&mut recv, MAX_CONTROL_BYTES).await.ok()? {
            HubMessage::Welcome(welcome) => Some(Greeted { send, _recv: recv, nonce: welcome.nonce? }),
            _ => None,
        }
    };
    let welcome = talk.await;
    (connection, welcome)
}

/// Renews with a new key; the machine as it is afterwards.
async fn renew(machine: &Machine, fixture: &Fixture) -> Result<Machine, String> {
    let connection = machine.connect_as(&fixture.hub, &[ALPN_RENEW.to_vec()], true).await.map_err(|e| e.to_string())?;
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    let talk = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
        let request = RenewRequest { csr: BASE64.encode(csr.der()) };
        frame::write(&mut send, &request, MAX_REQUEST_BYTES).await.map_err(|e| e.to_string())?;
        frame::read::<RenewReply>(&mut recv, MAX_METADATA_BYTES).await.map_err(|e| e.to_string())
    };
    match talk.await {
        Ok(RenewReply::Renewed { certificates }) => {
            let chain = CertificateDer::pem_slice_iter(certificates.as_bytes()).map(Result::unwrap).collect();
            Ok(Machine { id: machine.id.clone(), key, chain, endpoint: machine.endpoint.clone() })
        }
        Ok(RenewReply::Refused { message }) => Err(message),
        Err(error) => Err(format!("{error} {:?}", connection.close_reason())),
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_of_its_life_and_the_old_key_ends_with_the_new_ones_first_use() {
    let fixture = Fixture::start().await;
    let old = fixture.member("n1").await;
    let (young, welcome) = greet(&old, &fixture, &[feature::RENEW]).await;
    assert!(welcome.is_some(), "{:?}", young.close_reason());

    fixture.shift(NODE_LIFETIME / 2 + Duration::from_secs(3600));
    let (due, _welcome) = greet(&old, &fixture, &[feature::RENEW]).await;
    assert_eq!(why(&due).await, Some(CloseCode::Renew));
    // One that could not renew is served all the same, and asked again later; one that cannot is let be.
    let (_served, welcome) = greet(&old, &fixture, &[feature::RENEW]).await;
    assert!(welcome.is_some());
    let (_older, welcome) = greet(&old, &fixture, &[]).await;
    assert!(welcome.is_some());

    let new = renew(&old, &fixture).await.unwrap();
    let identity = node(&fixture, "n1").await.status.identity.unwrap();
    assert!(identity.next.is_some(), "both keys are let in: the answer may have been lost");
    let (_still, welcome) = greet(&old, &fixture, &[]).await;
    assert!(welcome.is_some());
    let early = renew(&old, &fixture).await.err().unwrap();
    assert!(early.contains("within the hour"), "{early}");
    fixture.shift(Duration::from_secs(2 * 3600));
    let again = renew(&old, &fixture).await.unwrap();
    let (_unused, welcome) = greet(&again, &fixture, &[feature::RENEW]).await;
    assert!(welcome.is_some());
    for gone in [&old, &new] {
        let connection = gone.connect(&fixture.hub).await;
        assert_eq!(why(&connection).await, Some(CloseCode::NotAdmitted));
    }
    assert!(node(&fixture, "n1").await.status.identity.unwrap().next.is_none());
}

#[tokio::test]
async fn a_node_that_was_away_past_the_end_of_its_certificate_renews_it_by_its_old_key() {
    let fixture = Fixture::start().await;
    let old = fixture.member("n1").await;
    fixture.shift(NODE_LIFETIME + Duration::from_secs(30 * 86_400));
    let expired = old.connect(&fixture.hub).await;
    assert_eq!(why(&expired).await, Some(CloseCode::Renew), "for nothing else is it let in");
    let new = renew(&old, &fixture).await.unwrap();
    let (_back, welcome) = greet(&new, &fixture, &[feature::RENEW]).await;
    assert!(welcome.is_some());

    // Not so a key that is on no list.
    let other = Fixture::start().await;
    let stranger = other.member("n1").await;
    assert!(renew(&stranger, &fixture).await.is_err(), "another fleet's");
    let deleted = fixture.member("n2").await;
    fixture.hub.store().delete::<NodeSpec>("n2").await.unwrap();
    let error = renew(&deleted, &fixture).await.err().unwrap();
    assert!(error.contains("no node n2"), "{error}");
    // Nor with another node's key.
    let third = fixture.member("n3").await;
    let csr = CertificateParams::default().serialize_request(&new.key).unwrap();
    let connection = third.connect_as(&fixture.hub, &[ALPN_RENEW.to_vec()], true).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &RenewRequest { csr: BASE64.encode(csr.der()) }, MAX_REQUEST_BYTES).await.unwrap();
    let reply: RenewReply = frame::read(&mut recv, MAX_METADATA_BYTES).await.unwrap();
    assert!(matches!(reply, RenewReply::Refused { message } if message.contains("another node")));
}

#[tokio::test]
async fn a_lost_box_is_out_within_a_second_and_neither_key_nor_token_brings_it_back() {
    let fixture = Fixture::start().await;
    let token = fixture.token(Some("n1"), 9).await;
    let mut lost = Machine::new("m1");
    assert!(matches!(lost.join(&fixture.hub, &token, "n1").await, JoinReply::Accepted { .. }));
    let (open, welcome) = greet(&lost, &fixture, &[feature::RENEW]).await;
    assert!(welcome.is_some());

    let n1: Name = name("n1");
    fixture.hub.set_admission(&n1, Admission::Revoked).await.unwrap().unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(1), why(&open)).await;
    assert_eq!(closed.unwrap(), Some(CloseCode::NotAdmitted));
    assert_eq!(why(&lost.connect(&fixture.hub).await).await, Some(CloseCode::NotAdmitted));
    assert!(renew(&lost, &fixture).await.is_err());
    let again = lost.join(&fixture.hub, &token, "n1").await;
    assert!(matches!(&again, JoinReply::Refused { code, .. } if code == "Revoked"), "{again:?}");
    let wiped = Machine::new("m1").join(&fixture.hub, &token, "n1").await;
    assert!(matches!(&wiped, JoinReply::Refused { code, .. } if code == "Revoked"), "{wiped:?}");
    let free = fixture.token(None, 1).await;
    let free = Machine::new("m1").join(&fixture.hub, &free, "n1").await;
    assert!(matches!(&free, JoinReply::Refused { code, .. } if code == "Revoked"), "not its token: {free:?}");

    // A box in its place comes with a token that was made for it since.
    let replaced = fixture.token(Some("n1"), 1).await;
    let mut new = Machine::new("m2");
    assert!(matches!(new.join(&fixture.hub, &replaced, "n1").await, JoinReply::Accepted { .. }));
    let (_in, welcome) = greet(&new, &fixture, &[]).await;
    assert!(welcome.is_some());
    assert_eq!(why(&lost.connect(&fixture.hub).await).await, Some(CloseCode::NotAdmitted));
}

/// `work`, which stands still before its poll number `held` until `go` is true.
async fn held_at<T>(work: impl Future<Output = T>, held: usize, mut go: watch::Receiver<bool>) -> T {
    let mut work = std::pin::pin!(work);
    for _ in 0..held {
        if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
            return done;
        }
        // Its waker is gone by now, so it is looked at again, with time for what it waits for.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    go.wait_for(|go| *go).await.unwrap();
    work.await
}

#[tokio::test]
async fn a_node_is_revoked_whatever_moment_of_its_join_the_revocation_meets() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let mut refused = 0;
    for moment in 0..40 {
        let n1 = name(&format!("n{moment}"));
        let (token, id) = (fixture.token(Some(n1.as_str()), 9).await, format!("m{moment}"));
        let joined = Machine::new(&id).join(hub, &token, n1.as_str()).await;
        assert!(matches!(joined, JoinReply::Accepted { .. }), "{joined:?}");
        // Reinstalled, with the same token, while somebody revokes it.
        let again = Machine::new(&id).request(&token, n1.as_str());
        let (go, gate) = watch::channel(false);
        let revoke = async {
            let mut revoking = std::pin::pin!(hub.set_admission(&n1, Admission::Revoked));
            let early = tokio::time::timeout(Duration::from_millis(moment + 10), &mut revoking).await;
            go.send_replace(true);
            match early {
                Ok(revoked) => revoked,
                Err(_) => revoking.await,
            }
        };
        let join = held_at(super::join::admit(hub, again), moment as usize, gate);
        let (join, revoked) = tokio::join!(join, revoke);
        assert!(revoked.unwrap().is_some());
        refused += usize::from(join.unwrap().is_err_and(|refusal| refusal.code == "Revoked"));
        let identity = node(&fixture, n1.as_str()).await.status.identity.unwrap();
        assert_eq!(identity.admission, Admission::Revoked, "moment {moment}");
    }
    assert!(refused > 0, "no revocation came before a join");
    assert!(refused < 40, "no revocation came into a join");
}

#[tokio::test]
async fn a_node_that_needs_approval_waits_for_it() {
    let fixture = Fixture::start().await;
    let hour = Duration::from_secs(3600);
    let token = fixture.hub.create_token(name("s1"), None, 2, hour, Default::default(), true).await.unwrap().1;
    let mut machine = Machine::new("m1");
    assert!(matches!(machine.join(&fixture.hub, &token, "n1").await, JoinReply::Accepted { .. }));
    assert_eq!(why(&machine.connect(&fixture.hub).await).await, Some(CloseCode::NotAdmitted));
    assert_eq!(node(&fixture, "n1").await.status.identity.unwrap().admission, Admission::Pending);
    fixture.hub.set_admission(&name("n1"), Admission::Admitted).await.unwrap().unwrap();
    let (_in, welcome) = greet(&machine, &fixture, &[]).await;
    assert!(welcome.is_some());
    // Its answer was lost: what was decided stands. Another box is another decision, once this one is silent.
    assert!(matches!(machine.join(&fixture.hub, &token, "n1").await, JoinReply::Accepted { .. }));
    assert_eq!(node(&fixture, "n1").await.status.identity.unwrap().admission, Admission::Admitted);
    fixture.shift(Duration::from_secs(150));
    let mut reinstalled = Machine::new("m1");
    assert!(matches!(reinstalled.join(&fixture.hub, &token, "n1").await, JoinReply::Accepted { .. }));
    assert_eq!(node(&fixture, "n1").await.status.identity.unwrap().admission, Admission::Pending);
    assert!(fixture.hub.set_admission(&name("none"), Admission::Admitted).await.unwrap().is_none());
}

fn report(content: &[u8]) -> Report {
    let running = Running {
        release: ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(content) },
        state: RunState::Running,
        ready: true,
        restarts: 0,
        started_at: None,
        last_exit: None,
    };
    let status = WorkloadStatus {
        running: Some(running),
        ..WorkloadStatus::new(None, UpdatePhase::Succeeded, jiff::Timestamp::UNIX_EPOCH)
    };
    Report { workloads: [(name("web"), status)].into(), ..Report::default() }
}

#[tokio::test]
async fn what_a_node_signed_of_what_it_runs_is_kept_and_a_wrong_signature_ends_the_session() {
    let fixture = Fixture::start().await;
    let machine = fixture.member("n1").await;
    let key = SecretKey::from_der(&machine.key.serialize_der()).unwrap();
    let n1 = name("n1");
    let say = async |send: &mut quinn::SendStream, report: Report, signed: Option<Attestation>| {
        let message = AgentMessage::Report(Box::new(Report { attestation: signed, ..report }));
        frame::write(send, &message, MAX_CONTROL_BYTES).await.unwrap();
    };
    let (connection, welcome) = greet(&machine, &fixture, &[feature::ATTEST]).await;
    let Greeted { mut send, nonce, _recv } = welcome.unwrap();
    let mut watch = fixture.hub.store().watch::<NodeSpec>(None).unwrap();
    say(&mut send, report(b"1"), Some(Attestation::sign(&key, &n1, &nonce, 1, &report(b"1")))).await;
    let attested = loop {
        if let Some(attested) = node(&fixture, "n1").await.status.attested {
            break attested;
        }
        watch.next().await;
    };
    assert_eq!(attested.running, [(n1.clone(), Digest::of(b"1"))].map(|(_, d)| (name("web"), d)).into());
    // Whoever has the object and the key can check it.
    let again = Attestation { nonce: attested.nonce, counter: attested.counter, signature: attested.signature };
    assert!(again.verifies(&key.public(), &n1, &report(b"1")));
    // The same report once more.
    say(&mut send, report(b"1"), Some(again)).await;
    assert_eq!(why(&connection).await, Some(CloseCode::ProtocolError));

    let other = SecretKey::from_seed(&[1; 32]);
    for wrong in 0..4 {
        let (connection, welcome) = greet(&machine, &fixture, &[feature::ATTEST]).await;
        let Greeted { mut send, nonce, _recv } = welcome.unwrap();
        let signed = match wrong {
            0 => Some(Attestation::sign(&other, &n1, &nonce, 1, &report(b"1"))),
            1 => Some(Attestation::sign(&key, &n1, "another", 1, &report(b"1"))),
            2 => Some(Attestation::sign(&key, &n1, &nonce, 1, &report(b"2"))),
            _ => None,
        };
        say(&mut send, report(b"1"), signed).await;
        assert_eq!(why(&connection).await, Some(CloseCode::ProtocolError), "{wrong}");
    }
    let events = fixture.hub.store().list::<EventSpec>(None).await.unwrap().items;
    assert!(events.iter().any(|event| event.spec.reason == "AttestationWrong"));
}

#[tokio::test]
async fn a_token_of_the_site_takes_over_no_node_that_is_here() {
    let fixture = Fixture::start().await;
    let code = |reply: JoinReply| match reply {
        JoinReply::Accepted { node, .. } => node.to_string(),
        JoinReply::Refused { code, .. } => code,
    };
    let site = fixture.token(None, 9).await;
    let mut machine = Machine::new("m1");
    assert_eq!(code(machine.join(&fixture.hub, &site, "n1").await), "n1");
    let (open, welcome) = greet(&machine, &fixture, &[feature::RENEW]).await;
    assert!(welcome.is_some());

    // Whoever has the token says that it is this machine.
    let mut thief = Machine::new("m1");
    let reply = thief.join(&fixture.hub, &site, "n1").await;
    assert!(format!("{reply:?}").contains("token create --node n1"), "{reply:?}");
    assert_eq!(code(reply), "NodeIsHere");
    assert!(open.close_reason().is_none(), "the node did not notice");
    assert_eq!(code(machine.join(&fixture.hub, &site, "n1").await), "n1", "its own key may ask again");
    let events = fixture.hub.store().list::<EventSpec>(None).await.unwrap().items;
    for kind in ["Node", "JoinToken"] {
        let is_told = |e: &&proto::object::Event| e.spec.reason == "NodeIsHere" && e.spec.involved_kind == kind;
        assert_eq!(events.iter().filter(is_told).count(), 1, "{kind}");
    }

    // A box that is reinstalled says nothing for a while; then the same command lets it in.
    drop((open, welcome));
    assert_eq!(code(Machine::new("m1").join(&fixture.hub, &site, "n1").await), "NodeIsHere", "it was here just now");
    fixture.shift(Duration::from_secs(150));
    let mut again = Machine::new("m1");
    assert_eq!(code(again.join(&fixture.hub, &site, "n1").await), "n1");
    assert_eq!(why(&machine.connect(&fixture.hub).await).await, Some(CloseCode::NotAdmitted));
    // And at once with a token for it: somebody meant this node.
    let (_open, welcome) = greet(&again, &fixture, &[feature::RENEW]).await;
    assert!(welcome.is_some());
    let own = fixture.token(Some("n1"), 1).await;
    assert_eq!(code(Machine::new("m2").join(&fixture.hub, &own, "n1").await), "n1");
}

#[tokio::test]
async fn a_token_of_one_site_takes_over_no_node_of_another() {
    let fixture = Fixture::start().await;
    let hour = Duration::from_secs(3600);
    let token = async |site: &str, node: Option<&str>| {
        fixture.hub.create_token(name(site), node.map(name), 3, hour, Default::default(), false).await.unwrap().1
    };
    let early = token("s2", Some("n1")).await;
    fixture.member("n1").await; // at s1, machine-n1
    let refused = async |token: &proto::token::Token, machine: &str| {
        let reply = Machine::new(machine).join(&fixture.hub, token, "n1").await;
        matches!(&reply, JoinReply::Refused { code, .. } if code == "TokenForOtherSite")
    };
    assert!(refused(&early, "m2").await, "it was made while the name was free");
    assert!(refused(&token("s2", None).await, "machine-n1").await, "whatever the box says it is");
    assert_eq!(node(&fixture, "n1").await.spec.site.as_str(), "s1");
    // Who moves a box to another site makes a token for it.
    let moved = token("s2", Some("n1")).await;
    let reply = Machine::new("m3").join(&fixture.hub, &moved, "n1").await;
    assert!(matches!(reply, JoinReply::Accepted { .. }), "{reply:?}");
    assert_eq!(node(&fixture, "n1").await.spec.site.as_str(), "s2");
}
