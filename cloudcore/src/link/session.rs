//! One connection of an admitted node: control stream, reports, assignments. A task a connection,
//! started by `link::accept_loop`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use proto::{
    director::{LIFETIME_DAYS, NONCE_BYTES},
    link::{
        CloseCode,
        frame::{self, FrameError, MAX_CONTROL_BYTES},
        message::{AgentMessage, Assignment, DirectorRequest, Hello, HubMessage, Report, Welcome},
        priority,
    },
    name::Name,
    object::{Attested, EventType, Node, NodeInfo, NodePhase, UpdatePhase, WorkloadStatus, feature},
    tuf::schema::TargetFile,
    watch,
};
use tokio::{sync::OwnedSemaphorePermit, task::JoinSet};

use super::{
    PATIENCE,
    admission::{self, NotAdmitted, Notary},
    brokers::Through,
    close, report,
    serve::{self, Bounds, Peer, ServeError},
    sessions::Turn,
};
use crate::{events, hub::Hub, store::StoreError};

/// Most apps that a node may report.
const MAX_WORKLOADS: usize = 512;
/// The director's metadata is signed anew at half of its life.
const SIGN_AGAIN: Duration = Duration::from_secs(LIFETIME_DAYS.unsigned_abs() * 86_400 / 2);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    /// Not on the list.
    #[error("{0}")]
    NotAdmitted(String),
    /// Its certificate comes first.
    #[error("its certificate is to be renewed")]
    Renew,
    /// The peer broke the protocol.
    #[error("{0}")]
    Protocol(String),
    /// The connection is over.
    #[error("{0}")]
    Over(String),
    /// Ours.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<NotAdmitted> for SessionError {
    fn from(error: NotAdmitted) -> SessionError {
        match error {
            NotAdmitted::Refused(why) => SessionError::NotAdmitted(why),
            NotAdmitted::Store(error) => SessionError::Store(error),
        }
    }
}

impl From<FrameError> for SessionError {
    fn from(error: FrameError) -> SessionError {
        match error {
            FrameError::TooLarge { .. } | FrameError::Malformed(_) => SessionError::Protocol(error.to_string()),
            FrameError::Ended | FrameError::Io(_) => SessionError::Over(error.to_string()),
        }
    }
}

/// Serves a node until its connection ends. `slot` is given back once the node is known to be admitted.
pub(crate) async fn serve(hub: &Hub, connection: quinn::Connection, through: Through, slot: OwnedSemaphorePermit) {
    let remote = connection.remote_address();
    let result = run(hub, &connection, &through, slot).await;
    match &result {
        Ok(()) => close(&connection, CloseCode::Done, ""),
        Err(SessionError::NotAdmitted(why)) => {
            tracing::warn!(%remote, why, "a connection was refused");
            close(&connection, CloseCode::NotAdmitted, why);
        }
        Err(SessionError::Renew) => {
            tracing::info!(%remote, "a node is sent to renew its certificate");
            close(&connection, CloseCode::Renew, "renew the certificate");
        }
        Err(SessionError::Protocol(why)) => {
            tracing::warn!(%remote, why, "a session was closed");
            close(&connection, CloseCode::ProtocolError, why);
        }
        Err(SessionError::Over(why)) => {
            tracing::debug!(%remote, why, "a session ended");
            close(&connection, CloseCode::Done, "");
        }
        Err(SessionError::Store(error)) => {
            tracing::error!(%remote, %error, "a session could not go on");
            close(&connection, CloseCode::Overload, "the hub could not write; come again");
        }
    }
}

async fn run(
    hub: &Hub,
    connection: &quinn::Connection,
    through: &Through,
    slot: OwnedSemaphorePermit,
) -> Result<(), SessionError> {
    let caller = admission::caller(connection).map_err(SessionError::NotAdmitted)?;
    admission::admitted(hub, &caller).await?;
    if caller.not_after <= hub.env().wall.now() {
        return Err(SessionError::Renew); // its key is good for nothing else
    }
    drop(slot);
    let name = caller.name.clone();
    let turn = hub.sessions().open(&name, caller.spki, connection.clone());
    // Again, now that a change of the list would find this session.
    let node = admission::admitted(hub, &caller).await?;
    let node = admission::promote(hub, &caller, node).await?;
    hub.sessions().assign(&node);

    let first = tokio::time::timeout(PATIENCE, control(connection));
    let (hello, mut send, recv) = first.await.map_err(|_| SessionError::Protocol("no Hello came in time".into()))??;
    turn.heard(Some(hello.usage.clone()));
    if hello.tells_events {
        turn.tells_events();
    }
    // What the store has of it was told when it was written, however often node and hub restart.
    failures(&node.status.workloads).iter().for_each(|(_, message)| turn.was_told(message));
    let teller = Teller { hub: hub.clone(), name: name.clone(), director: hello.director.clone(), signed: 0 };
    let mut assignment = turn.assignment.clone();
    let knows = |feature: &str| hello.info.features.contains(feature);
    let renews = knows(feature::RENEW);
    let mut notary = Notary::new(caller.clone(), nonce(hub, &turn), knows(feature::ATTEST));
    let welcome = HubMessage::Welcome(welcome(hub, &notary.nonce));
    frame::write(&mut send, &welcome, MAX_CONTROL_BYTES).await?;
    let before = node.status.phase;
    let (mut first, mut info) = (hello.report, hello.info);
    report::bound_info(&mut info);
    first.attestation = None; // made before the nonce was known
    take(hub, &name, connection, &turn, (first, None), Some(info)).await?;
    if before != NodePhase::Ready {
        events::record(
            hub.store(),
            hub.env(),
            "Node",
            name.as_str(),
            EventType::Normal,
            "Connected",
            "the agent reports",
            "hub",
        )
        .await;
    }

    let bounds = Bounds {
        node: Arc::new(hub.sessions().budgets().node()),
        site: hub.sessions().budgets().site(node.spec.site.as_str()),
        fleet: hub.sessions().budgets().fleet(),
    };
    let peer = Peer { name: name.clone(), site: node.spec.site.clone(), session: turn.number() };
    // None of the three is dropped but with the session, so that none needs to be cancel safe.
    tokio::select! {
        biased;
        ended = listen(hub, &name, connection, through, &turn, &mut notary, recv) => ended,
        ended = due(hub, caller.not_after, &turn), if renews => ended,
        ended = teller.tell(send, &mut assignment) => ended,
        ended = answer(hub, connection, &peer, &bounds) => ended,
    }
}

/// Returns when the node's certificate is to be renewed.
async fn due(hub: &Hub, not_after: Timestamp, turn: &Turn) -> Result<(), SessionError> {
    loop {
        // The time of day may be set meanwhile: never trusted for longer than a day.
        let left = admission::renewal_in(not_after, hub.env().wall.now()).min(Duration::from_secs(86_400));
        if left.is_zero() && turn.may_be_sent_to_renew() {
            return Err(SessionError::Renew);
        }
        tokio::time::sleep(left.max(Duration::from_secs(60))).await;
    }
}

/// Drawn anew for each session, whoever restarts.
fn nonce(hub: &Hub, turn: &Turn) -> String {
    let purpose = format!("nonce of session {} at {}", turn.number(), hub.env().wall.now());
    HEXLOWER.encode(&hub.env().seed.bytes::<NONCE_BYTES>(&purpose))
}

/// Takes the control stream and its first message.
async fn control(
    connection: &quinn::Connection,
) -> Result<(Hello, quinn::SendStream, quinn::RecvStream), SessionError> {
    let (send, mut recv) = connection.accept_bi().await.map_err(|e| SessionError::Over(e.to_string()))?;
    let _ = send.set_priority(priority::CONTROL); // fails only on a closed stream
    match frame::read::<AgentMessage>(&mut recv, MAX_CONTROL_BYTES).await? {
        AgentMessage::Hello(hello) => Ok((*hello, send, recv)),
        _ => Err(SessionError::Protocol("the first message must be a Hello".into())),
    }
}

fn welcome(hub: &Hub, nonce: &str) -> Welcome {
    Welcome {
        hub_version: proto::VERSION.into(),
        fleet: hub.config().fleet.clone(),
        clock: hub.env().wall.now(),
        heartbeat_ms: u64::try_from(hub.config().heartbeat.get().as_millis()).unwrap_or(u64::MAX),
        nonce: Some(nonce.to_owned()),
    }
}

async fn listen(
    hub: &Hub,
    name: &Name,
    connection: &quinn::Connection,
    through: &Through,
    turn: &Turn,
    notary: &mut Notary,
    mut recv: quinn::RecvStream,
) -> Result<(), SessionError> {
    loop {
        let message = frame::read::<AgentMessage>(&mut recv, MAX_CONTROL_BYTES).await?;
        through.look(connection.remote_address());
        match message {
            AgentMessage::Hello(_) => return Err(SessionError::Protocol("a second Hello".into())),
            AgentMessage::Report(report) if report.workloads.len() > MAX_WORKLOADS => {
                let apps = report.workloads.len();
                return Err(SessionError::Protocol(format!("a report of {apps} apps; {MAX_WORKLOADS} are the most")));
            }
            AgentMessage::Report(report) => {
                turn.heard(None);
                let signed = match notary.check(&report, hub.env().wall.now()) {
                    Ok(signed) => signed,
                    Err(why) if !turn.take_share() => return Err(SessionError::Protocol(why)),
                    Err(why) => {
                        let (kind, warning, reason) = ("Node", EventType::Warning, "AttestationWrong");
                        events::record(hub.store(), hub.env(), kind, name.as_str(), warning, reason, &why, "hub").await;
                        return Err(SessionError::Protocol(why));
                    }
                };
                take(hub, name, connection, turn, (*report, signed), None).await?;
            }
            AgentMessage::Heartbeat(beat) => {
                turn.heard(Some(beat.usage));
                revive(hub, name, turn).await?;
            }
            AgentMessage::Info(info) => {
                turn.heard(None);
                inform(hub, name, turn, *info).await?;
            }
            AgentMessage::Unknown => turn.heard(None),
        }
    }
}

/// A node that was marked silent by mistake of a slow line is back with its next heartbeat.
async fn revive(hub: &Hub, name: &Name, turn: &Turn) -> Result<(), SessionError> {
    if !hub.sessions().is_marked(name) {
        return Ok(());
    }
    let (now, ready) = (hub.env().wall.now(), turn.ready());
    let change = move |node: &mut Node| report::revive(node, ready.as_ref(), now);
    let node = hub.store().modify(name.as_str(), change).await?;
    if let Some(node) = node {
        hub.sessions().assign(&node);
    }
    Ok(())
}

/// Writes facts into the node, when they are new.
async fn inform(hub: &Hub, name: &Name, turn: &Turn, mut info: NodeInfo) -> Result<(), SessionError> {
    if !turn.is_current() {
        return Err(SessionError::Over("a newer session took over".into()));
    }
    report::bound_info(&mut info);
    let change = move |node: &mut Node| node.status.info = Some(info.clone());
    hub.store().modify(name.as_str(), change).await?;
    Ok(())
}

/// Writes a report into the node, when it changes anything.
async fn take(
    hub: &Hub,
    name: &Name,
    connection: &quinn::Connection,
    turn: &Turn,
    (mut report, signed): (Report, Option<Attested>),
    info: Option<NodeInfo>,
) -> Result<(), SessionError> {
    let over = || SessionError::Over("a newer session took over".into());
    if !turn.is_current() {
        return Err(over());
    }
    let remote = hub.brokers().describe(connection.remote_address());
    let now = hub.env().wall.now();
    report::bound(&mut report);
    turn.reported(&report.conditions);
    let failures = failures(&report.workloads);
    let open = report.carriers.iter().find_map(|c| c.warning.clone()).filter(|text| turn.warns(text));
    let adopted = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&adopted);
    let change = move |node: &mut Node| {
        let message = report::apply(node, &report, info.as_ref(), &remote, now);
        report::attest(node, signed.as_ref());
        *kept.lock().unwrap_or_else(PoisonError::into_inner) = message;
    };
    let node = hub.store().modify(name.as_str(), change).await?.ok_or_else(over)?;
    hub.sessions().assign(&node);
    if let Some(text) = open {
        events::record(hub.store(), hub.env(), "Node", name.as_str(), EventType::Warning, "BrokerOpen", &text, "hub")
            .await;
    }
    let adopted = adopted.lock().unwrap_or_else(PoisonError::into_inner).take();
    let adopted = adopted.map(|message| ("Adopted".to_owned(), message));
    for (reason, message) in failures.into_iter().chain(adopted) {
        if turn.may_tell(&message) {
            events::record(
                hub.store(),
                hub.env(),
                "Node",
                name.as_str(),
                EventType::Warning,
                &reason,
                &message,
                name.as_str(),
            )
            .await;
        }
    }
    Ok(())
}

/// What of a report an operator wants to find later, of agents that do not tell it as records.
fn failures(workloads: &BTreeMap<Name, WorkloadStatus>) -> Vec<(String, String)> {
    let bad = [UpdatePhase::Failed, UpdatePhase::RolledBack, UpdatePhase::Blocked];
    let bad = workloads.iter().filter(|(_, w)| bad.contains(&w.phase));
    bad.map(|(app, w)| {
        let version = w.target.as_ref().map(|t| format!("@{}", t.version)).unwrap_or_default();
        (w.phase.to_string(), format!("{app}{version}: {} {}", w.reason, w.message))
    })
    .collect()
}

/// States what a node should run.
struct Teller {
    hub: Hub,
    name: Name,
    /// What its directives must fit; nothing with an agent of before the director.
    director: Option<DirectorRequest>,
    /// Orders that were signed in this session: each has a higher version than the one before.
    signed: u64,
}

impl Teller {
    /// Sends each newer assignment, and the same signed anew when what it names, the keys or the time call for it.
    async fn tell(
        mut self,
        mut send: quinn::SendStream,
        assignment: &mut watch::Receiver<Assignment>,
    ) -> Result<(), SessionError> {
        let (mut published, mut keys) = (self.hub.trust().publications(), self.hub.director().changes());
        let mut told = None;
        loop {
            let next = assignment.borrow_and_update().clone();
            let (targets, key) = (self.hub.trust().target_files(&next), *keys.borrow_and_update());
            published.mark_unchanged();
            let what = Some((next.clone(), targets.clone(), key));
            if told != what {
                for message in self.signed(next, targets)? {
                    frame::write(&mut send, &message, MAX_CONTROL_BYTES).await?;
                }
                told = what;
            }
            // Every arm is cancel safe.
            let ended = tokio::select! {
                biased;
                changed = assignment.changed() => changed,
                changed = published.changed(), if self.director.is_some() => changed,
                changed = keys.changed(), if self.director.is_some() => changed,
                () = tokio::time::sleep(SIGN_AGAIN), if self.director.is_some() => {
                    told = None;
                    Ok(())
                }
            };
            ended.map_err(|_| SessionError::Over("a newer session took over".into()))?;
        }
    }

    fn signed(
        &mut self,
        assignment: Assignment,
        targets: BTreeMap<String, TargetFile>,
    ) -> Result<Vec<HubMessage>, SessionError> {
        let Some(request) = &self.director else { return Ok(vec![HubMessage::Assignment(assignment)]) };
        let signed = self.hub.director().sign(&self.name, request, self.signed, assignment, targets);
        let reply = signed.map_err(|e| SessionError::Over(format!("its assignment could not be signed: {e}")))?;
        // Whether it took this one is not known: roots are sent again with the next.
        self.signed += 1;
        let parts = self.hub.director().parts(&request.have);
        Ok(parts.into_iter().chain([reply]).map(|reply| HubMessage::Directive(Box::new(reply))).collect())
    }
}

/// Answers the streams that the agent opens. Their number is bounded by the transport.
async fn answer(hub: &Hub, connection: &quinn::Connection, peer: &Peer, bounds: &Bounds) -> Result<(), SessionError> {
    let mut requests = JoinSet::new(); // they end with the session
    loop {
        // Both arms are cancel safe.
        let stream = tokio::select! {
            biased;
            Some(_) = requests.join_next() => continue,
            stream = connection.accept_bi() => stream,
        };
        let (send, recv) = stream.map_err(|e| SessionError::Over(e.to_string()))?;
        let (hub, peer, bounds, connection) = (hub.clone(), peer.clone(), bounds.clone(), connection.clone());
        requests.spawn(async move {
            match serve::serve(&hub, &peer, &bounds, send, recv).await {
                Ok(()) => {}
                Err(error @ ServeError::Protocol(_)) => {
                    tracing::warn!(remote = %connection.remote_address(), %error, "a session is closed");
                    close(&connection, CloseCode::ProtocolError, &error.to_string());
                }
                Err(error) => tracing::debug!(remote = %connection.remote_address(), %error, "a request ended early"),
            }
        });
    }
}
