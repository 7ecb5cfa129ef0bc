//! A node renews its certificate: a connection of its own, on which it shows the one of before.
//!
//! It brings a new key. The hub lets that in beside the old one until it is shown for the first time
//! ([`super::admission::promote`]), so that an answer that is lost costs nothing: the same request comes to the same.
//! The old certificate may have expired; its key must be on the list.

use data_encoding::BASE64;
use jiff::{SignedDuration, Timestamp};
use proto::{
    digest::Digest,
    link::{
        CloseCode,
        frame::{self, MAX_METADATA_BYTES, MAX_REQUEST_BYTES},
        message::{RenewReply, RenewRequest},
    },
    object::{EventType, NextCertificate, Node, NodeSpec},
};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    PATIENCE,
    admission::{self, Caller, NotAdmitted},
    close,
};
use crate::{
    ca::{Ca, NODE_LIFETIME},
    events,
    hub::Hub,
};

/// Between two certificates for keys of one node.
const NOT_WITHIN: SignedDuration = SignedDuration::from_hours(1);

/// Answers one node and closes its connection.
pub(crate) async fn serve(hub: &Hub, connection: quinn::Connection, slot: OwnedSemaphorePermit) {
    let remote = connection.remote_address();
    let talk = async {
        let caller = admission::caller(&connection).map_err(|why| (CloseCode::NotAdmitted, why))?;
        admission::admitted(hub, &caller).await.map_err(|error| match error {
            NotAdmitted::Refused(why) => (CloseCode::NotAdmitted, why),
            NotAdmitted::Store(error) => (CloseCode::Overload, error.to_string()),
        })?;
        drop(slot);
        let (mut send, mut recv) = connection.accept_bi().await.map_err(|e| (CloseCode::Done, e.to_string()))?;
        let request = frame::read::<RenewRequest>(&mut recv, MAX_REQUEST_BYTES).await;
        let request = request.map_err(|e| (CloseCode::ProtocolError, e.to_string()))?;
        let reply = renew(hub, &caller, &request).await;
        let written = frame::write(&mut send, &reply, MAX_METADATA_BYTES).await;
        written.map_err(|e| (CloseCode::Done, e.to_string()))?;
        let _ = send.finish(); // fails only on a closed stream
        let _ = send.stopped().await; // completes when all of it arrived
        Ok::<_, (CloseCode, String)>(())
    };
    match tokio::time::timeout(PATIENCE * 2, talk).await {
        Ok(Ok(())) => close(&connection, CloseCode::Done, ""),
        Ok(Err((code, why))) => {
            tracing::warn!(%remote, why, "a renewal came to nothing");
            close(&connection, code, &why);
        }
        Err(_) => close(&connection, CloseCode::Overload, "renewing took too long"),
    }
}

/// Whether a certificate was issued within [`NOT_WITHIN`] for another key than this.
fn is_early(node: &Node, spki: Digest, now: Timestamp) -> bool {
    let Some(identity) = &node.status.identity else { return false };
    let newest = identity.next.as_ref().map_or((identity.spki, identity.not_after), |next| (next.spki, next.not_after));
    let issued = newest.1.checked_sub(NODE_LIFETIME).unwrap_or(Timestamp::MIN);
    newest.0 != spki && now.duration_since(issued) < NOT_WITHIN
}

async fn renew(hub: &Hub, caller: &Caller, request: &RenewRequest) -> RenewReply {
    let refuse = |message: String| RenewReply::Refused { message };
    let Ok(csr) = BASE64.decode(request.csr.as_bytes()) else {
        return refuse("the certificate request is not base64".into());
    };
    let _one = hub.joining().lock().await;
    let spki = match Ca::proven_key(&csr) {
        Ok(spki) => spki,
        Err(error) => return refuse(error.to_string()),
    };
    let taken = hub.store().list::<NodeSpec>(None).await.map(|nodes| {
        let other = |node: &&Node| node.name() != caller.name.as_str();
        nodes.items.iter().filter(other).any(|n| n.status.identity.as_ref().is_some_and(|i| i.is_of(spki)))
    });
    match taken {
        Ok(false) => {}
        Ok(true) => return refuse("the new key speaks for another node; make one of its own".into()),
        Err(error) => return refuse(format!("the hub could not look the key up ({error}); try again")),
    }
    match hub.store().get::<NodeSpec>(caller.name.as_str()).await {
        Ok(node) if node.as_ref().is_some_and(|node| is_early(node, spki, hub.env().wall.now())) => {
            return refuse(
                "its certificate was renewed within the hour, for another key; ask with that one, or later".into(),
            );
        }
        Ok(_) => {}
        Err(error) => return refuse(format!("the hub could not look the node up ({error}); try again")),
    }
    let certificate = match hub.ca().issue_node(&caller.name, &csr) {
        Ok(certificate) => certificate,
        Err(error) => return refuse(error.to_string()),
    };
    let (held, not_after) = (caller.spki, certificate.not_after);
    let change = move |node: &mut Node| {
        let Some(identity) = node.status.identity.as_mut().filter(|identity| identity.admits(held)) else { return };
        if identity.spki == spki {
            identity.not_after = not_after; // the same key again
        } else {
            identity.next = Some(NextCertificate { spki, not_after });
        }
    };
    match hub.store().modify(caller.name.as_str(), change).await {
        // Asked again: it may have been revoked or deleted meanwhile.
        Ok(Some(node)) if node.status.identity.as_ref().is_some_and(|i| i.admits(held) && i.is_of(spki)) => {}
        Ok(_) => return refuse("the node is not admitted any more".into()),
        Err(error) => return refuse(format!("the hub could not write it ({error}); try again")),
    }
    let text = format!("its certificate was renewed and is good until {not_after}");
    let name = caller.name.as_str();
    events::record(hub.store(), hub.env(), "Node", name, EventType::Normal, "Renewed", &text, name).await;
    RenewReply::Renewed { certificates: certificate.chain_pem }
}
