//! Joining: a box with a token becomes a node. The one thing that a stranger may ask for.
//!
//! | who comes | what happens |
//! |---|---|
//! | a key that this token admitted and its node still has | the same certificate again, nothing is used up |
//! | a token for one node | that node, whatever the box calls itself: it replaces the box before |
//! | a free name | a new node: one use |
//! | the machine that has the name | the same node with its new key: a reinstall. No use, if this token admitted the node |
//! | the same, and the node before it was here within [`SILENCE`] | refused: `NodeIsHere`, but with a token for that node |
//! | another machine under a name that is taken | refused: `NameTaken` |
//! | a key that speaks for another node | refused: `TokenForOtherNode` |
//! | a node of another site | refused: `TokenForOtherSite`, but with a token for that node which was made since it is there |
//! | a node that was revoked | refused: `Revoked`, but with a token for that node which was made since |
//!
//! The certificate is made from the hub's records; of the request nothing counts but the proven key.
//! [`decide`] is pure, [`admit`] carries it out, one at a time.

use data_encoding::BASE64;
use jiff::{SignedDuration, Timestamp};
use proto::{
    digest::Digest,
    link::{
        CloseCode,
        frame::{self, MAX_METADATA_BYTES, MAX_REQUEST_BYTES},
        message::{JoinReply, JoinRequest},
    },
    name::{Name, ObjectName},
    object::{Admission, EventType, JoinToken, JoinTokenSpec, Node, NodeIdentity, NodeSpec, Object},
    token::Token,
};
use subtle::ConstantTimeEq as _;

use super::{PATIENCE, close};
use crate::{
    audit::Entry,
    ca::{Ca, NodeCertificate},
    events,
    hub::Hub,
    store::StoreError,
};

/// Longest identity of hardware, in bytes.
const MAX_MACHINE_ID: usize = 256;
/// How long a node says nothing before a token that does not name it lets another key take its place. Longer than a
/// session whose box is gone, shorter than a reinstall.
const SILENCE: SignedDuration = SignedDuration::from_secs(120);

/// Code of a refusal that is told of the node, too.
const NODE_IS_HERE: &str = "NodeIsHere";

/// Why a box is not admitted; the codes are part of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

fn refuse<T>(code: &'static str, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { code, message: message.into() })
}

/// Answers one box and closes its connection.
pub(crate) async fn serve(hub: &Hub, connection: quinn::Connection) {
    let remote = connection.remote_address();
    let talk = async {
        let (mut send, mut recv) = connection.accept_bi().await.map_err(|e| (CloseCode::Done, e.to_string()))?;
        let request = frame::read::<JoinRequest>(&mut recv, MAX_REQUEST_BYTES).await;
        let request = request.map_err(|e| (CloseCode::ProtocolError, e.to_string()))?;
        let reply = answer(hub, request).await;
        let written = frame::write(&mut send, &reply, MAX_METADATA_BYTES).await;
        written.map_err(|e| (CloseCode::Done, e.to_string()))?;
        let _ = send.finish(); // fails only on a closed stream
        // The box closes once it has the answer; `stopped` completes when all of it arrived.
        let _ = send.stopped().await;
        Ok::<_, (CloseCode, String)>(())
    };
    match tokio::time::timeout(PATIENCE * 2, talk).await {
        Ok(Ok(())) => close(&connection, CloseCode::Done, ""),
        Ok(Err((code, why))) => {
            tracing::warn!(%remote, why, "a join came to nothing");
            close(&connection, code, &why);
        }
        Err(_) => close(&connection, CloseCode::Overload, "joining took too long"),
    }
}

/// A line of the audit log about who came.
async fn note(hub: &Hub, wanted: &[String; 3], outcome: &str, detail: &str, is_admitted: bool) {
    let [user, name, from] = wanted.clone();
    let (via, verb, kind) = ("join token".into(), "admit".into(), "nodes".into());
    let (outcome, detail) = (outcome.to_owned(), detail.to_owned());
    let entry = Entry { user, via, verb, kind, name, from, outcome, detail, ..Entry::default() };
    let by = if is_admitted { format!("boxes of {}: {}", entry.user, entry.detail) } else { "boxes".into() };
    hub.audit().noted_often(&by, entry).await;
}

async fn answer(hub: &Hub, request: JoinRequest) -> JoinReply {
    let wanted = [request.token_id.clone(), request.name.clone(), request.machine_id.clone()];
    match admit(hub, request).await {
        Ok(Ok(reply)) => {
            if let JoinReply::Accepted { node, .. } = &reply {
                note(hub, &wanted, "admitted", &format!("as node {node}"), true).await;
            }
            reply
        }
        Ok(Err(Refusal { code, message })) => {
            tracing::warn!(code, message, "a box was not admitted");
            note(hub, &wanted, code, &message, false).await;
            JoinReply::Refused { code: code.into(), message }
        }
        Err(error) => {
            tracing::error!(%error, "a box could not be admitted");
            let message = format!("the hub could not admit the box ({error}); try again or look at the hub's log");
            JoinReply::Refused { code: "BadRequest".into(), message }
        }
    }
}

/// Admits a box, or says why not. Repeated with the same key it comes to the same.
pub(crate) async fn admit(hub: &Hub, request: JoinRequest) -> Result<Result<JoinReply, Refusal>, StoreError> {
    let (spki, csr) = match key_of(&request) {
        Ok(key) => key,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let _one = hub.joining().lock().await;
    let token = match token_of(hub, &request).await? {
        Ok(token) => token,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let nodes = hub.store().list::<NodeSpec>(None).await?.items;
    let nodes: Vec<Node> = nodes.into_iter().map(|node| hub.node_view(node)).collect();
    let name = match decide(&token, &nodes, &request, spki, hub.env().wall.now()) {
        Ok(name) => name,
        Err(refusal) => {
            let text = format!("{} wanted to join as {:?}: {}", request.machine_id, request.name, refusal.message);
            let id = token.name();
            events::record(hub.store(), hub.env(), "JoinToken", id, EventType::Warning, refusal.code, &text, "hub")
                .await;
            if refusal.code == NODE_IS_HERE {
                let (name, text) = (&request.name, format!("token {id}: {text}"));
                events::record(hub.store(), hub.env(), "Node", name, EventType::Warning, refusal.code, &text, "hub")
                    .await;
            }
            return Ok(Err(refusal));
        }
    };
    let certificate = match hub.ca().issue_node(&name, &csr) {
        Ok(certificate) => certificate,
        Err(error) => return Ok(refuse("BadRequest", error.to_string())),
    };
    let Some((root, _)) = hub.trust().first_root() else {
        return Ok(refuse(
            "BadRequest",
            "the hub has no release repository yet; publish first: crossdock release publish",
        ));
    };
    // The node first: a crash in between lets the box ask again, and it is the same box then.
    write_node(hub, &token, &name, &request, &certificate).await?;
    let (key, used_name) = (spki.hex(), name.clone());
    let used = move |token: &mut JoinToken| drop(token.status.used_by.insert(key.clone(), used_name.clone()));
    hub.store().modify(token.name(), used).await?;
    let text = format!("joined with token {} from machine {}", token.name(), request.machine_id);
    events::record(hub.store(), hub.env(), "Node", name.as_str(), EventType::Normal, "Joined", &text, "hub").await;
    Ok(Ok(JoinReply::Accepted {
        node: name,
        site: token.spec.site,
        fleet: hub.config().fleet.clone(),
        certificates: certificate.chain_pem,
        root,
        director_root: Some(hub.director().first_root().0),
        hubs: hub.config().advertise.clone(),
    }))
}

fn key_of(request: &JoinRequest) -> Result<(Digest, Vec<u8>), Refusal> {
    if request.machine_id.is_empty() || request.machine_id.len() > MAX_MACHINE_ID {
        return refuse("BadRequest", "the machine id must have 1 to 256 bytes");
    }
    let Ok(csr) = BASE64.decode(request.csr.as_bytes()) else {
        return refuse("BadRequest", "the certificate request is not base64");
    };
    match Ca::proven_key(&csr) {
        Ok(spki) => Ok((spki, csr)),
        Err(error) => refuse("BadRequest", error.to_string()),
    }
}

/// The token, when the secret is right. A wrong secret and an unknown token look alike.
async fn token_of(hub: &Hub, request: &JoinRequest) -> Result<Result<JoinToken, Refusal>, StoreError> {
    let unknown =
        || refuse("TokenUnknown", "the hub does not know this token; create one with `crossdock token create`");
    let Ok(id) = request.token_id.parse::<ObjectName>() else { return Ok(unknown()) };
    let Some(token) = hub.store().get::<JoinTokenSpec>(id.as_str()).await? else { return Ok(unknown()) };
    let given = Token::secret_hash(&request.secret);
    let right = bool::from(given.as_bytes().ct_eq(token.spec.secret_hash.as_bytes()));
    Ok(if right { Ok(token) } else { unknown() })
}

/// The name that the box gets.
pub(crate) fn decide(
    token: &JoinToken,
    nodes: &[Node],
    request: &JoinRequest,
    spki: Digest,
    now: Timestamp,
) -> Result<Name, Refusal> {
    let known = token.status.used_by.contains_key(&spki.hex());
    let held = nodes.iter().find(|n| n.status.identity.as_ref().is_some_and(|i| i.is_of(spki)));
    let name = match &token.spec.node {
        Some(node) => node.clone(),
        None => name_of(request, held)?,
    };
    if let Some(other) = held.filter(|n| n.name() != name.as_str()) {
        let message = format!(
            "this box is node {} already and the token is for {name}; use a token for {0}, or delete node {0} first",
            other.name()
        );
        return refuse("TokenForOtherNode", message);
    }
    check_revoked(token, &name, nodes)?;
    check_site(token, &name, nodes)?;
    if known && held.is_some() {
        return Ok(name); // the answer was lost on the way
    }
    if token.spec.expires_at <= now {
        return refuse(
            "TokenExpired",
            format!("the token ended at {}; create a new one with `crossdock token create`", token.spec.expires_at),
        );
    }
    let used = token.used();
    // The same command on the same box after a reinstall: the key is new, the box is not.
    let returns = token.status.used_by.values().any(|n| *n == name) && is_same_machine(&name, nodes, request);
    if known || (used >= token.spec.uses as usize && !returns) {
        return refuse(
            "TokenUsedUp",
            format!(
                "the token admitted {used} of {} boxes; create a new one with `crossdock token create`",
                token.spec.uses
            ),
        );
    }
    if token.spec.node.is_none() {
        check_free(&name, nodes, request)?;
        check_silent(&name, nodes, held, now)?;
    }
    Ok(name)
}

/// The machine's identity is what a box says of itself: a token of one site is not for the nodes of another. Nor is one
/// for a name that was free when it was made.
fn check_site(token: &JoinToken, name: &Name, nodes: &[Node]) -> Result<(), Refusal> {
    let Some(node) = nodes.iter().find(|n| n.name() == name.as_str()) else { return Ok(()) };
    let is_for_it =
        token.spec.node.as_ref() == Some(name) && token.metadata.creation_timestamp >= node.metadata.creation_timestamp;
    if node.spec.site == token.spec.site || is_for_it {
        return Ok(());
    }
    refuse(
        "TokenForOtherSite",
        format!(
            "node {name} stands at another site than {}, for which the token is; use a token for the node: \
             crossdock token create --site SITE --node {name}",
            token.spec.site
        ),
    )
}

/// A lost box has its token and its key: neither brings it back.
fn check_revoked(token: &JoinToken, name: &Name, nodes: &[Node]) -> Result<(), Refusal> {
    let node = nodes.iter().find(|n| n.name() == name.as_str());
    let Some(identity) = node.and_then(|n| n.status.identity.as_ref()) else { return Ok(()) };
    let since = identity.admission_since;
    let is_newer = token.spec.node.as_ref() == Some(name) && token.metadata.creation_timestamp > since;
    if identity.admission != Admission::Revoked || is_newer {
        return Ok(());
    }
    refuse(
        "Revoked",
        format!(
            "node {name} was revoked; if this box is to be it, make a token for it now: \
             crossdock token create --node {name}"
        ),
    )
}

fn name_of(request: &JoinRequest, held: Option<&Node>) -> Result<Name, Refusal> {
    let held = held.and_then(|n| n.name().parse().ok());
    if let Some(name) = held {
        return Ok(name);
    }
    request.name.parse().or_else(|e| refuse("BadRequest", format!("{e}; choose one with --name")))
}

fn check_free(name: &Name, nodes: &[Node], request: &JoinRequest) -> Result<(), Refusal> {
    let taken = nodes.iter().find(|n| n.name() == name.as_str()).and_then(|n| n.status.identity.as_ref());
    match taken {
        Some(identity) if identity.machine_id != request.machine_id => refuse(
            "NameTaken",
            format!(
                "node {name} is another machine; choose another name with --name, or, if this box replaces it, \
                 use a token for it: crossdock token create --node {name}"
            ),
        ),
        _ => Ok(()),
    }
}

/// What machine it is, a box says of itself: where the node is here, another key is another box, or a reinstall that
/// was quick.
fn check_silent(name: &Name, nodes: &[Node], held: Option<&Node>, now: Timestamp) -> Result<(), Refusal> {
    let node = nodes.iter().find(|n| n.name() == name.as_str() && n.status.identity.is_some());
    let seen = node.filter(|_| held.is_none()).and_then(|node| node.status.last_seen);
    match seen.map(|seen| now.duration_since(seen)) {
        Some(ago) if ago < SILENCE => refuse(
            NODE_IS_HERE,
            format!(
                "node {name} was here {} s ago, with another key; if this is its box after a reinstall, join again in \
                 {} s, or use a token for it: crossdock token create --node {name}",
                ago.as_secs().max(0),
                (SILENCE - ago).as_secs().min(SILENCE.as_secs())
            ),
        ),
        _ => Ok(()),
    }
}

/// Whether the node of that name joined from this machine last.
fn is_same_machine(name: &Name, nodes: &[Node], request: &JoinRequest) -> bool {
    let node = nodes.iter().find(|n| n.name() == name.as_str());
    node.and_then(|n| n.status.identity.as_ref()).is_some_and(|i| i.machine_id == request.machine_id)
}

async fn write_node(
    hub: &Hub,
    token: &JoinToken,
    name: &Name,
    request: &JoinRequest,
    certificate: &NodeCertificate,
) -> Result<(), StoreError> {
    hub.ensure_site(&token.spec.site).await?;
    let identity = NodeIdentity {
        spki: certificate.spki,
        machine_id: request.machine_id.clone(),
        joined_at: hub.env().wall.now(),
        not_after: certificate.not_after,
        admission: Admission::Admitted,
        admission_since: None,
        next: None,
    };
    let approve = token.spec.approve;
    let (site, labels) = (token.spec.site.clone(), token.spec.labels.clone());
    let change = move |node: &mut Node| {
        let same_key = node.status.identity.as_ref().filter(|before| before.spki == identity.spki);
        if let Some(before) = same_key.filter(|before| before.admission != Admission::Revoked) {
            // The same box asks again: what was changed since stands.
            let kept = NodeIdentity { not_after: identity.not_after, ..before.clone() };
            node.status.identity = Some(kept);
            return;
        }
        node.spec.site = site.clone();
        node.spec.reboot = None; // it was another installation that was to restart
        node.metadata.labels.extend(labels.clone());
        let admission = if approve { Admission::Pending } else { Admission::Admitted };
        node.status.identity = Some(NodeIdentity { admission, ..identity.clone() });
    };
    let node = match hub.store().modify(name.as_str(), change.clone()).await? {
        Some(node) => node,
        None => {
            let spec = NodeSpec::new(token.spec.site.clone());
            let mut node: Node = Object::new(name.clone(), spec);
            change(&mut node);
            hub.store().create(node).await?
        }
    };
    hub.sessions().assign(&node);
    Ok(())
}
