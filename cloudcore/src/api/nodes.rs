//! What is done to the identity of a node by hand: `POST /nodes/{name}/revoke`, `…/approve`.

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::Method,
};
use proto::{
    name::Name,
    object::{Admission, EventType, Node, NodeSpec},
};

use super::{
    Api, ApiError,
    auth::User,
    book::{Book, Page, reference},
    guard::Rule,
};
use crate::{
    access::{Resource, Verb, places::Places},
    events,
};

async fn revoke(state: State<Api>, user: Extension<User>, name: Path<String>) -> Result<Json<Node>, ApiError> {
    let text = "its key is not let in any more, and its session was closed";
    admit(state, user, name, Admission::Revoked, ("Revoked", text)).await
}

async fn approve(state: State<Api>, user: Extension<User>, name: Path<String>) -> Result<Json<Node>, ApiError> {
    admit(state, user, name, Admission::Admitted, ("Approved", "its key is let in")).await
}

async fn admit(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path(name): Path<String>,
    admission: Admission,
    (reason, text): (&str, &str),
) -> Result<Json<Node>, ApiError> {
    let none = || ApiError::not_found(format!("node {name:.80} does not exist; `crossdock get nodes` lists them"));
    let parsed: Name = name.parse().map_err(|_| none())?;
    let held = api.hub.store().get::<NodeSpec>(parsed.as_str()).await?.ok_or_else(none)?;
    user.may(Verb::Update, Resource::Nodes, &Places::site(held.spec.site))?;
    let node = match api.hub.set_admission(&parsed, admission).await? {
        Some(node) => node,
        None => {
            let text = format!("node {parsed} never joined, so it has no key; its token decides who it will be");
            return Err(ApiError::conflict(text));
        }
    };
    events::record(api.hub.store(), api.hub.env(), "Node", node.name(), EventType::Normal, reason, text, &user.name)
        .await;
    Ok(Json(api.hub.node_view(node)))
}

/// Adds both.
pub(super) fn add(book: Book) -> Book {
    let page = |summary: &str| Page::new(summary).answer(200, "The node", "application/json", reference("Node"));
    let (off, on) = (page("Let the key of a node in no longer; its session ends at once"), page("Let it in"));
    let may = Rule::May(Verb::Update, Resource::Nodes);
    book.on(Method::POST, "/api/v1/nodes/{name}/revoke", revoke, may, off).on(
        Method::POST,
        "/api/v1/nodes/{name}/approve",
        approve,
        may,
        on,
    )
}
