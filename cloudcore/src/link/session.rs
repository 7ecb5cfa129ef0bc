//! One connection of an admitted node: control stream, reports, assignments. A task a connection,
//! started by `link::accept_loop`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use proto::{
    digest::Digest,
    director::LIFETIME_DAYS,
    identity,
    link::{
        CloseCode,
        frame::{self, FrameError, MAX_CONTROL_BYTES},
        message::{AgentMessage, Assignment, DirectorRequest, Hello, HubMessage, Report, Welcome},
        priority,
    },
    name::Name,
    object::{EventType, Node, NodePhase, NodeSpec, UpdatePhase, WorkloadStatus},
    tuf::schema::TargetFile,
    watch,
};
use rustls_pki_types::CertificateDer;
use tokio::{sync::OwnedSemaphorePermit, task::JoinSet};

use super::{
    PATIENCE,
    brokers::Through,
    close, report,
    serve::{self, Bounds, Peer, ServeError},
    sessions::Turn,
};
use crate::{events, hub::Hub, store::StoreError};

/// The director's metadata is signed anew at half of its life.
const SIGN_AGAIN: Duration = Duration::from_secs(LIFETIME_DAYS.unsigned_abs() * 86_400 / 2);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    /// Not on the list.
    #[error("{0}")]
    NotAdmitted(String),
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
    let (name, spki) = peer(connection)?;
    admitted(hub, &name, spki).await?;
    drop(slot);
    let turn = hub.sessions().open(&name, spki, connection.clone());
    // Again, now that a change of the list would find this session.
    let node = admitted(hub, &name, spki).await?;
    hub.sessions().assign(&node);

    let first = tokio::time::timeout(PATIENCE, control(connection));
    let (hello, mut send, recv) = first.await.map_err(|_| SessionError::Protocol("no Hello came in time".into()))??;
    turn.heard(Some(hello.usage.clone()));
    if hello.tells_events {
        turn.tells_events();
    }
    // What the store has of it was told when it was written, however often node and hub restart.
    failures(&node.status.workloads).iter().for_each(|(_, message)| turn.was_told(message));
    let teller = Teller { hub: hub.clone(), name: name.clone(), director: hello.director.clone() };
    let mut assignment = turn.assignment.clone();
    let welcome = HubMessage::Welcome(welcome(hub));
    frame::write(&mut send, &welcome, MAX_CONTROL_BYTES).await?;
    let before = node.status.phase;
    take(hub, &name, connection, &turn, hello.report, Some(hello.info)).await?;
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
        ended = listen(hub, &name, connection, through, &turn, recv) => ended,
        ended = teller.tell(send, &mut assignment) => ended,
        ended = answer(hub, connection, &peer, &bounds) => ended,
    }
}

/// Who is there, by its certificate and by nothing else.
fn peer(connection: &quinn::Connection) -> Result<(Name, Digest), SessionError> {
    let refuse = |why: String| SessionError::NotAdmitted(why);
    let identity = connection.peer_identity().and_then(|i| i.downcast::<Vec<CertificateDer<'static>>>().ok());
    let chain = identity.ok_or_else(|| refuse("no client certificate was shown; join first".into()))?;
    let leaf = chain.first().ok_or_else(|| refuse("no client certificate was shown; join first".into()))?;
    let name = identity::node_name(leaf).map_err(|e| refuse(e.to_string()))?;
    let spki = identity::spki_digest(leaf).map_err(|e| refuse(e.to_string()))?;
    Ok((name, spki))
}

async fn admitted(hub: &Hub, name: &Name, spki: Digest) -> Result<Node, SessionError> {
    let node = hub.store().get::<NodeSpec>(name.as_str()).await?;
    let node = node.ok_or_else(|| SessionError::NotAdmitted(format!("there is no node {name}; join again")))?;
    match &node.status.identity {
        Some(identity) if identity.spki == spki => Ok(node),
        _ => Err(SessionError::NotAdmitted(format!("this key does not speak for node {name}; join again"))),
    }
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

fn welcome(hub: &Hub) -> Welcome {
    Welcome {
        hub_version: proto::VERSION.into(),
        fleet: hub.config().fleet.clone(),
        clock: hub.env().wall.now(),
        heartbeat_ms: u64::try_from(hub.config().heartbeat.get().as_millis()).unwrap_or(u64::MAX),
    }
}

async fn listen(
    hub: &Hub,
    name: &Name,
    connection: &quinn::Connection,
    through: &Through,
    turn: &Turn,
    mut recv: quinn::RecvStream,
) -> Result<(), SessionError> {
    loop {
        let message = frame::read::<AgentMessage>(&mut recv, MAX_CONTROL_BYTES).await?;
        through.look(connection.remote_address());
        match message {
            AgentMessage::Hello(_) => return Err(SessionError::Protocol("a second Hello".into())),
            AgentMessage::Report(report) => {
                turn.heard(None);
                take(hub, name, connection, turn, *report, None).await?;
            }
            AgentMessage::Heartbeat(beat) => {
                turn.heard(Some(beat.usage));
                revive(hub, name, turn).await?;
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

/// Writes a report into the node, when it changes anything.
async fn take(
    hub: &Hub,
    name: &Name,
    connection: &quinn::Connection,
    turn: &Turn,
    mut report: Report,
    info: Option<proto::object::NodeInfo>,
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
                frame::write(&mut send, &self.signed(next, targets)?, MAX_CONTROL_BYTES).await?;
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
    ) -> Result<HubMessage, SessionError> {
        let Some(request) = &mut self.director else { return Ok(HubMessage::Assignment(assignment)) };
        let signed = self.hub.director().sign(&self.name, request, assignment, targets);
        let reply = signed.map_err(|e| SessionError::Over(format!("its assignment could not be signed: {e}")))?;
        // Whether it took this one is not known: the next has a higher version, and roots are sent again.
        request.have.targets = request.have.targets.saturating_add(1);
        Ok(HubMessage::Directive(Box::new(reply)))
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
