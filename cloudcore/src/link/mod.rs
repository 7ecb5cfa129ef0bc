//! QUIC towards the agents: joining, sessions, artifacts.
//!
//! ```text
//! accept_loop --> one task a connection
//!                   |  ALPN crossdock-join/1: join::serve      (the one thing a stranger may ask for)
//!                   |  ALPN crossdock-renew/1: renew::serve    (a node whose certificate ends)
//!                   |  ALPN crossdock/1:      session::serve   (a node whose key is on the list)
//!                   |                           |-- control stream: Hello, Report, Heartbeat / Assignment
//!                   |                           `-- request streams: serve (metadata, blobs, lanes of records)
//! follow_loop    changes of nodes and sites --> assignments, revocations, byte budgets
//! liveness_loop  silent nodes become Unknown
//! admission      who is there, and whether its key is let in
//! verifier       certificates in the handshake
//! brokers        MQTT brokers beside UDP, below the same endpoint
//! logs, exec     streams that the hub opens
//! ```
//!
//! The list of admitted keys (`node.status.identity.spki`) is looked at on every connection and
//! followed while one lasts. Everything a peer can make grow is bounded where it is named.

pub(crate) mod admission;
pub(crate) mod brokers;
pub(crate) mod budget;
pub mod endpoint;
pub(crate) mod exec;
#[cfg(test)]
mod identity_tests;
pub(crate) mod join;
pub(crate) mod logs;
pub(crate) mod renew;
pub(crate) mod report;
pub(crate) mod serve;
pub(crate) mod session;
pub mod sessions;
#[cfg(test)]
mod tests;
pub(crate) mod verifier;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::SignedDuration;
use proto::{
    link::{ALPN, ALPN_JOIN, ALPN_RENEW, CloseCode},
    object::{EventType, Node, NodePhase, NodeSpec, Site, SiteSpec},
    watch,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::Instant,
};

use self::brokers::Through;
pub use self::{exec::ExecError, logs::LogsError};
use crate::{
    events,
    hub::Hub,
    store::{List, StoreError, Watch, WatchEvent},
};

/// Handshakes at once; more are refused and come again.
const MAX_HANDSHAKES: usize = 1024;
/// Boxes that join at once; more are told to come again. Strangers hold no more than these for long.
const MAX_JOINS: usize = 128;
/// From here on a peer must show that its address is its own before the hub computes for it.
const RETRY_ABOVE: usize = 256;
/// An offline root takes people: they are told so long before it ends.
const ROOT_WARNING: SignedDuration = SignedDuration::from_hours(60 * 24);
/// How long a handshake, a first stream or a first frame may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Accepts connections until `stop`. Their tasks end with `peers`, so that nothing of a hub outlives it.
pub(crate) async fn accept_loop(hub: Hub, mut stop: watch::Receiver<bool>, peers: &mut JoinSet<()>) {
    let (slots, joins) = (Arc::new(Semaphore::new(MAX_HANDSHAKES)), Arc::new(Semaphore::new(MAX_JOINS)));
    loop {
        // Both arms are cancel safe: a connection not taken stays with the endpoint.
        let incoming = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            Some(_) = peers.join_next() => continue,
            incoming = hub.endpoint().accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let busy = MAX_HANDSHAKES - slots.available_permits();
        if busy > RETRY_ABOVE && incoming.may_retry() {
            let _ = incoming.retry(); // it cannot fail: may_retry was asked
            continue;
        }
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (hub, joins) = (hub.clone(), Arc::clone(&joins));
        peers.spawn(async move {
            let remote = incoming.remote_address();
            let through = Through::default();
            through.look(remote);
            let connection = match incoming.accept_with(hub.terms(&through)) {
                Ok(connecting) => tokio::time::timeout(PATIENCE, connecting).await,
                Err(error) => Ok(Err(error)),
            };
            match connection {
                Ok(Ok(connection)) => welcome(&hub, connection, through, slot, &joins).await,
                Ok(Err(error)) => tracing::debug!(%remote, %error, "a handshake failed"),
                Err(_) => tracing::debug!(%remote, "a handshake took too long"),
            }
        });
    }
}

/// `slot` bounds handshakes; an admitted node gives it back, and a box that joins takes a seat in its place.
async fn welcome(
    hub: &Hub,
    connection: quinn::Connection,
    through: Through,
    slot: OwnedSemaphorePermit,
    joins: &Semaphore,
) {
    let data = connection.handshake_data().and_then(|d| d.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    let alpn = data.and_then(|d| d.protocol).unwrap_or_default();
    if alpn == ALPN_JOIN {
        let Ok(_seat) = joins.try_acquire() else {
            close(&connection, CloseCode::Overload, "too many boxes join at this moment; come again");
            return;
        };
        drop(slot);
        join::serve(hub, connection).await;
    } else if alpn == ALPN_RENEW {
        // Strangers have no part in these: the handshake's slot is held until the node is known to be admitted.
        renew::serve(hub, connection, slot).await;
    } else if ALPN.contains(&alpn.as_slice()) {
        session::serve(hub, connection, through, slot).await;
    } else {
        close(&connection, CloseCode::ProtocolError, "unknown protocol");
    }
}

/// Closes a connection with a code and a word for people.
pub(crate) fn close(connection: &quinn::Connection, code: CloseCode, why: &str) {
    connection.close(code.code(), why.as_bytes());
}

/// Follows nodes and sites, so that a changed spec reaches its session at once.
pub(crate) async fn follow_loop(hub: Hub, mut stop: watch::Receiver<bool>) {
    let mut pause = Duration::from_millis(100);
    while !*stop.borrow() {
        match follow(&hub, &mut stop).await {
            Ok(()) => pause = Duration::from_millis(100),
            Err(error) => {
                tracing::error!(%error, "changes of nodes cannot be followed; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
        }
    }
}

/// Returns when a watch fell behind: then everything is read anew.
async fn follow(hub: &Hub, stop: &mut watch::Receiver<bool>) -> Result<(), StoreError> {
    let (nodes, mut node_changes): (List<NodeSpec>, Watch<NodeSpec>) = list_and_watch(hub).await?;
    let (sites, mut site_changes): (List<SiteSpec>, Watch<SiteSpec>) = list_and_watch(hub).await?;
    let known: BTreeMap<_, Node> = nodes.items.into_iter().map(|n| (n.name().to_owned(), n)).collect();
    hub.sessions().keep_only(&known);
    known.values().for_each(|node| hub.sessions().assign(node));
    sites.items.iter().for_each(|site| hub.sessions().budgets().site_rate(&site.spec, site.name()));
    loop {
        // Cancel safe: a dropped `next` loses nothing.
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            change = node_changes.next() => match change {
                Some(WatchEvent::Added(node) | WatchEvent::Modified(node)) => hub.sessions().assign(&node),
                Some(WatchEvent::Deleted(node)) => hub.sessions().forget(node.name()),
                None => return Ok(()),
            },
            change = site_changes.next() => match change {
                Some(WatchEvent::Deleted(site)) => hub.sessions().budgets().site_rate(&SiteSpec::default(), site.name()),
                Some(change) => {
                    let site: &Site = change.object();
                    hub.sessions().budgets().site_rate(&site.spec, site.name());
                }
                None => return Ok(()),
            },
        }
    }
}

/// All objects of a kind, and what happens to them from there on.
pub(crate) async fn list_and_watch<S: proto::object::Kind + PartialEq>(
    hub: &Hub,
) -> Result<(List<S>, Watch<S>), StoreError> {
    let list = hub.store().list::<S>(None).await?;
    let watch = hub.store().watch(Some(&list.resource_version))?;
    Ok((list, watch))
}

/// Marks nodes that were not heard from for too long, and renews the link's certificate.
pub(crate) async fn liveness_loop(hub: Hub, mut stop: watch::Receiver<bool>) {
    let patience = hub.config().unknown_after.get();
    let every = (patience / 8).clamp(Duration::from_millis(100), Duration::from_secs(5));
    let started = Instant::now();
    let mut renewal = Instant::now() + Duration::from_secs(3600);
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(every) => {}
        }
        if Instant::now() >= renewal {
            renewal = Instant::now() + Duration::from_secs(3600);
            match endpoint::server_config(hub.config(), hub.env(), hub.ca()) {
                Ok(config) => hub.set_terms(config),
                Err(error) => tracing::error!(%error, "the link's certificate could not be looked after"),
            }
            look_after_root(&hub).await;
        }
        if let Err(error) = mark_silent(&hub, started, patience).await {
            tracing::error!(%error, "silent nodes could not be marked");
        }
    }
}

/// Renews the director's root where the hub can, and says in time where it cannot.
async fn look_after_root(hub: &Hub) {
    if let Err(error) = hub.director().renew().await {
        tracing::error!(%error, "the director's root could not be renewed");
    }
    let (ends, renews) = hub.director().root_ends();
    let left = ends.duration_since(hub.env().wall.now());
    if !renews && left < ROOT_WARNING {
        let text = format!(
            "the director's root ends at {ends}, and nodes take no assignment then; sign its next version: crossdock root rotate"
        );
        events::record(hub.store(), hub.env(), "Repository", "director", EventType::Warning, "RootEnds", &text, "hub")
            .await;
    }
}

async fn mark_silent(hub: &Hub, started: Instant, patience: Duration) -> Result<(), StoreError> {
    for name in hub.sessions().silent(started, patience) {
        let (sessions, wall) = (hub.sessions().clone(), hub.env().wall.now());
        let change = move |node: &mut Node| {
            // Asked again where writes are in order: it may have spoken meanwhile.
            if sessions.is_silent(node.name(), started, patience) {
                let seen = sessions.last_seen(node.name());
                report::silence(node, seen, wall);
            }
        };
        let Some(node) = hub.store().modify(&name, change).await? else { continue };
        hub.sessions().assign(&node);
        if node.status.phase == NodePhase::Unknown {
            let ready = node.status.conditions.iter().find(|c| c.r#type == report::READY);
            let text = ready.map(|c| c.message.as_str()).unwrap_or_default();
            events::record(hub.store(), hub.env(), "Node", &name, EventType::Warning, "Silent", text, "hub").await;
        }
    }
    Ok(())
}
