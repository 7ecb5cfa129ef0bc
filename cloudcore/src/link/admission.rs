//! Who is at the other end, whether its key is let in, and when its certificate is due.
//!
//! The list is `node.status.identity` in the store. It is asked on every connection; no TLS ticket gets around it.

use std::time::Duration;

use jiff::Timestamp;
use proto::{
    attestation::{self, Attestation},
    digest::Digest,
    identity,
    link::message::Report,
    name::Name,
    object::{Admission, Attested, Node, NodeSpec},
    tuf::PublicKey,
};
use rustls_pki_types::CertificateDer;

use crate::{ca::NODE_LIFETIME, hub::Hub, store::StoreError};

/// The other end of a connection, by its certificate and by nothing else.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) name: Name,
    pub(crate) spki: Digest,
    pub(crate) key: PublicKey,
    /// When its certificate ends.
    pub(crate) not_after: Timestamp,
}

/// Why a caller is not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAdmitted {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads the certificate of a connection, which TLS verified.
pub(crate) fn caller(connection: &quinn::Connection) -> Result<Caller, String> {
    let chain = connection.peer_identity().and_then(|i| i.downcast::<Vec<CertificateDer<'static>>>().ok());
    let chain = chain.ok_or("no client certificate was shown; join first")?;
    let leaf = chain.first().ok_or("no client certificate was shown; join first")?;
    let text = |e: identity::IdentityError| e.to_string();
    let (_, not_after) = identity::validity(leaf).map_err(text)?;
    Ok(Caller {
        name: identity::node_name(leaf).map_err(text)?,
        spki: identity::spki_digest(leaf).map_err(text)?,
        key: PublicKey::from_bytes(&identity::public_key(leaf).map_err(text)?).map_err(|e| e.to_string())?,
        not_after: Timestamp::from_second(not_after).map_err(|e| e.to_string())?,
    })
}

/// The node that the caller speaks for, if its key is let in.
pub(crate) async fn admitted(hub: &Hub, caller: &Caller) -> Result<Node, NotAdmitted> {
    let refuse = |why: String| Err(NotAdmitted::Refused(why));
    let name = &caller.name;
    let Some(node) = hub.store().get::<NodeSpec>(name.as_str()).await? else {
        return refuse(format!("there is no node {name}; join again"));
    };
    let Some(identity) = node.status.identity.as_ref().filter(|identity| identity.is_of(caller.spki)) else {
        return refuse(format!("this key does not speak for node {name}; join again"));
    };
    match identity.admission {
        Admission::Admitted => Ok(node),
        Admission::Pending => refuse(format!("node {name} waits for somebody to approve it: crossdock node approve")),
        Admission::Revoked => refuse(format!("node {name} was revoked; join again with a token for it")),
    }
}

/// A renewed certificate that is shown for the first time takes the place of the one before, whose key is nobody's then.
pub(crate) async fn promote(hub: &Hub, caller: &Caller, node: Node) -> Result<Node, StoreError> {
    let spki = caller.spki;
    let is_next =
        |node: &Node| node.status.identity.as_ref().and_then(|i| i.next.as_ref()).is_some_and(|next| next.spki == spki);
    if !is_next(&node) {
        return Ok(node);
    }
    let change = move |node: &mut Node| {
        let Some(identity) = &mut node.status.identity else { return };
        if let Some(next) = identity.next.take_if(|next| next.spki == spki) {
            (identity.spki, identity.not_after) = (next.spki, next.not_after);
        }
    };
    let promoted = hub.store().modify(caller.name.as_str(), change).await?;
    Ok(promoted.unwrap_or(node))
}

/// How long until half of the certificate's life is over.
pub(crate) fn renewal_in(not_after: Timestamp, now: Timestamp) -> Duration {
    let left = not_after.duration_since(now);
    Duration::try_from(left).unwrap_or_default().saturating_sub(NODE_LIFETIME / 2)
}

/// Checks the signed reports of one session.
#[derive(Debug)]
pub(crate) struct Notary {
    caller: Caller,
    /// What they must echo.
    pub(crate) nonce: String,
    counter: u64,
    /// Whether the agent signs at all; those of before do not.
    signs: bool,
}

impl Notary {
    pub(crate) fn new(caller: Caller, nonce: String, signs: bool) -> Notary {
        Notary { caller, nonce, counter: 0, signs }
    }

    /// What the node signed, or `None` for an agent that does not sign.
    ///
    /// # Errors
    /// For people: what is wrong with the signature. The session ends then.
    pub(crate) fn check(&mut self, report: &Report, now: Timestamp) -> Result<Option<Attested>, String> {
        let Some(signed) = &report.attestation else {
            return if self.signs { Err("a report is not signed, and its agent can sign".into()) } else { Ok(None) };
        };
        let Attestation { nonce, counter, signature } = signed;
        if *nonce != self.nonce {
            return Err("a report was signed for another session".into());
        }
        if *counter <= self.counter {
            return Err(format!("report {counter} came after report {}", self.counter));
        }
        if !signed.verifies(&self.caller.key, &self.caller.name, report) {
            return Err("the signature of a report is wrong".into());
        }
        self.counter = *counter;
        Ok(Some(Attested {
            at: now,
            spki: self.caller.spki,
            nonce: nonce.clone(),
            counter: *counter,
            observed_generation: report.observed_generation,
            running: attestation::running(report).map(|(app, digest)| (app.clone(), digest)).collect(),
            signature: signature.clone(),
        }))
    }
}
