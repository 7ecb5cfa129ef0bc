//! Webhooks over HTTP: how each fares, what was given up, and another chance for it. They are configured in
//! `hub.yaml`; no secret is ever shown. See `crate::webhooks`.

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::Method,
};
use proto::object::EventType;
use serde_json::{Value, json};

use super::{
    Api, ApiError,
    auth::User,
    book::{Book, Page},
    guard::Rule,
};
use crate::{
    access::{Resource, Verb},
    events,
    webhooks::{self, config::WebhookConfig},
};

async fn list(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let mut items = vec![];
    for config in api.hub.webhooks().configs() {
        let state = api.hub.store().webhook_state(config.name.as_str()).await?;
        items.push(json!({
            "name": config.name,
            "url": config.url.to_string(),
            "format": config.format,
            "events": config.events,
            "signed": config.secret_file.is_some(),
            "waiting": state.waiting,
            "deadLetters": state.dead,
            "delivered": state.delivered,
            "dropped": state.dropped,
            "succeededAt": state.succeeded_at,
            "failedAt": state.failed_at,
            "failure": state.failure,
        }));
    }
    Ok(Json(json!({"apiVersion": proto::API_VERSION, "kind": "WebhookList", "items": items})))
}

fn find<'a>(api: &'a Api, name: &str) -> Result<&'a WebhookConfig, ApiError> {
    api.hub.webhooks().find(name).ok_or_else(|| {
        let known: Vec<&str> = api.hub.webhooks().configs().iter().map(|config| config.name.as_str()).collect();
        let known =
            if known.is_empty() { "hub.yaml has none".into() } else { format!("there are {}", known.join(", ")) };
        ApiError::not_found(format!("webhook {name:.80} does not exist; {known}"))
    })
}

async fn dead_letters(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let config = find(&api, &name)?;
    let letters = api.hub.store().dead_letters(config.name.as_str()).await?;
    let items: Vec<Value> = letters
        .into_iter()
        .map(|letter| {
            let id = webhooks::send::id(config.name.as_str(), &letter);
            json!({"id": id, "since": letter.since, "attempts": letter.attempts, "reason": letter.reason,
                "event": letter.event})
        })
        .collect();
    Ok(Json(json!({"apiVersion": proto::API_VERSION, "kind": "DeadLetterList", "items": items})))
}

async fn retry(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let name = find(&api, &name)?.name.as_str();
    let retried = api.hub.webhooks().retry(&api.hub, name).await?;
    let (store, env) = (api.hub.store(), api.hub.env());
    let text = "its dead letters are delivered again";
    events::record(store, env, webhooks::KIND, name, EventType::Normal, "Retried", text, &user.name).await;
    Ok(Json(json!({"apiVersion": proto::API_VERSION, "kind": "Status", "code": 200, "reason": "Retried",
        "message": text, "retried": retried})))
}

/// Adds webhooks.
pub(super) fn add(book: Book) -> Book {
    let json_type = "application/json";
    let list_of = || json!({"type": "object", "properties": {"items": {"type": "array", "items": {"type": "object"}}}});
    let all = Page::new("How the webhooks fare").answer(200, "All of them, without secrets", json_type, list_of());
    let dead = Page::new("Deliveries of a webhook that were given up, oldest first").answer(
        200,
        "Each with its event and reason",
        json_type,
        list_of(),
    );
    let again = Page::new("Deliver the dead letters of a webhook again, and what waits at once").answer(
        200,
        "How many are tried again",
        json_type,
        json!({"type": "object", "properties": {"retried": {"type": "integer"}}}),
    );
    let may = |verb| Rule::May(verb, Resource::Webhooks);
    book.on(Method::GET, "/api/v1/webhooks", list, may(Verb::List), all)
        .on(Method::GET, "/api/v1/webhooks/{name}/deadletters", dead_letters, may(Verb::Get), dead)
        .on(Method::POST, "/api/v1/webhooks/{name}/retry", retry, may(Verb::Update), again)
}
