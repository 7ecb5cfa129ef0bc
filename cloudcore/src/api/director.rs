//! The director's roots and its online key: `GET POST /director/metadata`, `POST /director/rekey`.

use axum::{Extension, Json, body::Body, extract::State, http::Method};
use proto::{
    link::{frame::MAX_METADATA_BYTES, message::MetadataReply},
    object::EventType,
};
use serde_json::{Value, json};

use super::{
    Api, ApiError,
    auth::User,
    book::{Book, Page},
    guard::Rule,
    objects::read_json,
};
use crate::{
    access::{Resource, Verb},
    director::Rekeyed,
    events,
};

async fn roots(State(api): State<Api>) -> Json<MetadataReply> {
    Json(MetadataReply { roots: api.hub.director().roots(), ..MetadataReply::default() })
}

async fn publish(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let reply: MetadataReply = read_json(body, MAX_METADATA_BYTES).await?;
    let result = api.hub.director().publish(reply.roots).await;
    let (kind, reason, text) = match &result {
        Ok(version) => (EventType::Normal, "RootPublished", format!("root version {version} is in force")),
        Err(error) => (EventType::Warning, "Refused", error.to_string()),
    };
    events::record(api.hub.store(), api.hub.env(), "Repository", "director", kind, reason, &text, &user.name).await;
    let version = result.map_err(|e| ApiError::invalid(e.to_string()))?;
    Ok(Json(json!({"apiVersion": proto::API_VERSION, "kind": "Status", "code": 200, "reason": reason,
        "message": text, "root": version})))
}

async fn rekey(State(api): State<Api>, Extension(user): Extension<User>) -> Result<Json<Value>, ApiError> {
    let rekeyed = api.hub.director().rekey().await.map_err(|e| ApiError::unavailable(e.to_string()))?;
    let (done, text, key) = match rekeyed {
        Rekeyed::Done { root } => (true, format!("a new online key signs since root version {root}"), None),
        Rekeyed::Waits { key } => {
            let text = format!("a new online key {} waits for a root that lists it", proto::tuf::key::short(&key.id()));
            (false, text, Some(key))
        }
    };
    let store = (api.hub.store(), api.hub.env());
    events::record(store.0, store.1, "Repository", "director", EventType::Normal, "Rekeyed", &text, &user.name).await;
    Ok(Json(json!({"apiVersion": proto::API_VERSION, "kind": "Status", "code": 200, "reason": "Rekeyed",
        "message": text, "done": done, "key": key})))
}

/// Adds them.
pub(super) fn add(book: Book) -> Book {
    let (path, json_type) = ("/api/v1/director/metadata", "application/json");
    let roots_of =
        || json!({"type": "object", "properties": {"roots": {"type": "array", "items": {"type": "string"}}}});
    let status = || super::book::reference("Status");
    let all =
        Page::new("Every root of the director, from the first on").answer(200, "The roots", json_type, roots_of());
    let newer = Page::new("Publish newer roots of the director, each signed by the one before")
        .body(json_type, roots_of())
        .answer(200, "They are in force", json_type, status());
    let new_key = Page::new("Make a new online key, in place of one that was stolen or is old").answer(
        200,
        "Whether it signs already, or waits for a root that lists it",
        json_type,
        status(),
    );
    let may = |verb| Rule::May(verb, Resource::Director);
    book.on(Method::GET, path, roots, may(Verb::Get), all).on(Method::POST, path, publish, may(Verb::Create), newer).on(
        Method::POST,
        "/api/v1/director/rekey",
        rekey,
        may(Verb::Create),
        new_key,
    )
}
