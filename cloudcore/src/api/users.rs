//! Users over HTTP: who there is, new tokens, and what somebody may do. A token is answered once and kept nowhere.

use std::{collections::BTreeSet, time::Duration};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{Method, StatusCode},
    response::Response,
};
use jiff::Timestamp;
use proto::{name::Name, object::EventType, units::Span};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Api, ApiError, MAX_OBJECT_BYTES,
    auth::User,
    book::{Book, Page, reference},
    guard::{self, Rule},
    objects::{query, read_json},
};
use crate::{
    access::{
        Binding, Resource, Scope, Verb, allowed,
        users::{AuthError, Entry},
    },
    events,
};

/// Most bindings of a user.
const MAX_BINDINGS: usize = 32;
/// Most sites or apps of a binding.
const MAX_NAMES: usize = 1_000;
/// Longest life of a token that has an end.
const MAX_LIFE: Duration = Duration::from_secs(10 * 366 * 86_400);

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> ApiError {
        match error {
            AuthError::Exists(_) => ApiError::new(StatusCode::CONFLICT, "AlreadyExists", error.to_string()),
            AuthError::Unknown(_) => ApiError::not_found(error.to_string()),
            AuthError::Full | AuthError::LastAdmin(_) => ApiError::conflict(error.to_string()),
            _ => ApiError::unavailable(format!("the list of users could not be changed: {error}")),
        }
    }
}

fn shown(api: &Api, entry: &Entry) -> Value {
    json!({
        "name": entry.name,
        "bindings": entry.bindings,
        "created": entry.created,
        "expires": entry.expires,
        "lastUsed": api.users.last_used(&entry.name),
    })
}

async fn list(State(api): State<Api>) -> Json<Value> {
    let items: Vec<Value> = api.users.all().users().iter().map(|entry| shown(&api, entry)).collect();
    Json(json!({"apiVersion": proto::API_VERSION, "kind": "UserList", "items": items}))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewUser {
    name: Name,
    bindings: Vec<Binding>,
    #[serde(default)]
    expires_in: Option<Span>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewBindings {
    bindings: Vec<Binding>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewToken {
    #[serde(default)]
    expires_in: Option<Span>,
}

/// What a user may be given.
fn check_bindings(bindings: &[Binding]) -> Result<(), ApiError> {
    if bindings.is_empty() || bindings.len() > MAX_BINDINGS {
        return Err(ApiError::invalid(format!("a user has 1 to {MAX_BINDINGS} bindings, each with a role")));
    }
    let bad = |names: &Option<BTreeSet<Name>>| names.as_ref().is_some_and(|n| n.is_empty() || n.len() > MAX_NAMES);
    if bindings.iter().any(|binding| bad(&binding.sites) || bad(&binding.apps)) {
        return Err(ApiError::invalid(format!(
            "a binding names 1 to {MAX_NAMES} sites, and as many apps; leave sites out for all sites, apps for all apps"
        )));
    }
    Ok(())
}

fn end_of(api: &Api, life: Option<Span>) -> Result<Option<Timestamp>, ApiError> {
    let Some(life) = life else { return Ok(None) };
    if life.get().is_zero() || life.get() > MAX_LIFE {
        return Err(ApiError::invalid(
            "expiresIn is longer than nothing and at most 10 years; leave it out for no end",
        ));
    }
    Ok(Some(api.hub.env().wall.now().checked_add(life.get()).unwrap_or(Timestamp::MAX)))
}

async fn told(api: &Api, user: &User, name: &str, reason: &str, text: &str) {
    let (store, env) = (api.hub.store(), api.hub.env());
    events::record(store, env, "User", name, EventType::Normal, reason, text, &user.name).await;
}

fn with_token(api: &Api, entry: &Entry, token: String) -> Value {
    let mut answer = shown(api, entry);
    if let Some(map) = answer.as_object_mut() {
        map.insert("token".into(), Value::String(token));
    }
    answer
}

fn roles(bindings: &[Binding]) -> String {
    bindings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

async fn create(State(api): State<Api>, Extension(user): Extension<User>, body: Body) -> Result<Response, ApiError> {
    let asked: NewUser = read_json(body, MAX_OBJECT_BYTES).await?;
    check_bindings(&asked.bindings)?;
    let expires = end_of(&api, asked.expires_in)?;
    let (entry, token) = api.users.create(&asked.name, asked.bindings, expires).await?;
    let roles = roles(&entry.bindings);
    told(&api, &user, &entry.name, "Created", &roles).await;
    let answer = Json(with_token(&api, &entry, token));
    Ok(guard::told(&entry.name, roles, (StatusCode::CREATED, answer)))
}

/// `PUT /users/{name}`: its token stays, what it may do is this from now on.
async fn update(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path(name): Path<String>,
    body: Body,
) -> Result<Response, ApiError> {
    let asked: NewBindings = read_json(body, MAX_OBJECT_BYTES).await?;
    check_bindings(&asked.bindings)?;
    let (entry, before) = api.users.bind(&name, asked.bindings).await?;
    let change = format!("{}; before: {}", roles(&entry.bindings), roles(&before.bindings));
    told(&api, &user, &entry.name, "Changed", &change).await;
    let name = entry.name.clone();
    Ok(guard::told(name, change, Json(shown(&api, &entry))))
}

async fn rotate(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let asked: NewToken = read_json(body, MAX_OBJECT_BYTES).await?;
    let expires = end_of(&api, asked.expires_in)?;
    let (entry, token) = api.users.rotate(&name, expires).await?;
    told(&api, &user, &entry.name, "Rotated", "has a new token; the one before is no longer valid").await;
    Ok(Json(with_token(&api, &entry, token)))
}

async fn delete(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let entry = api.users.delete(&name).await?;
    told(&api, &user, &entry.name, "Deleted", "its token is no longer valid").await;
    Ok(Json(shown(&api, &entry)))
}

/// `GET /self`: who asks.
async fn whoami(Extension(user): Extension<User>) -> Json<Value> {
    Json(json!({
        "apiVersion": proto::API_VERSION,
        "kind": "Self",
        "name": &*user.name,
        "via": user.via(),
        "bindings": &*user.bindings,
        "expires": user.until,
    }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    verb: String,
    kind: String,
    site: Option<Name>,
    app: Option<Name>,
}

/// `GET /self/can`: whether who asks may do something; without site and app, whether anywhere.
async fn can(
    Extension(user): Extension<User>,
    asked: Result<Query<Question>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Question { verb, kind, site, app } = query(asked)?;
    let wrong = |e: crate::access::UnknownWord| ApiError::bad_request(e.to_string());
    let (verb, kind): (Verb, Resource) = (verb.parse().map_err(wrong)?, kind.parse().map_err(wrong)?);
    let site = site.as_ref().map_or(Scope::Any, Scope::One);
    let app = app.as_ref().map_or(Scope::Any, Scope::One);
    let verdict = allowed(&user.bindings, verb, kind, site, app);
    let reason = verdict.as_ref().err().map(ToString::to_string);
    Ok(Json(json!({"apiVersion": proto::API_VERSION, "kind": "Answer", "allowed": verdict.is_ok(), "reason": reason})))
}

/// Adds users.
pub(super) fn add(mut book: Book) -> Book {
    let json_type = "application/json";
    let names = || json!({"type": "array", "minItems": 1, "items": {"type": "string"}});
    book.define(
        "Binding",
        json!({
            "type": "object",
            "required": ["role"],
            "properties": {
                "role": {"type": "string", "enum": ["viewer", "operator", "releaser", "admin"]},
                "sites": names(),
                "apps": names(),
            },
        }),
    );
    let time = || json!({"type": ["string", "null"], "format": "date-time"});
    book.define(
        "User",
        json!({
            "type": "object",
            "required": ["name", "bindings"],
            "properties": {
                "name": {"type": "string"},
                "bindings": {"type": "array", "items": reference("Binding")},
                "created": time(),
                "expires": time(),
                "lastUsed": time(),
                "token": {"type": "string", "description": "Where it is new, this once"},
            },
        }),
    );
    let life = || json!({"type": "string", "description": "Such as 90d; absent: no end"});
    let new = json!({"type": "object", "required": ["name", "bindings"], "properties": {
        "name": {"type": "string"},
        "bindings": {"type": "array", "items": reference("Binding")},
        "expiresIn": life(),
    }});
    let again = json!({"type": "object", "properties": {"expiresIn": life()}});
    let all = json!({"type": "object", "properties": {"items": {"type": "array", "items": reference("User")}}});
    let one = || reference("User");
    let (users, user) = ("/api/v1/users", "/api/v1/users/{name}");
    let page = |text: &str| Page::new(text);
    let may = |verb| Rule::May(verb, Resource::Users);
    let list_page = page("Users that have a token").answer(200, "All of them, without tokens", json_type, all);
    let create_page = page("Make a user").body(json_type, new).answer(201, "The user and its token", json_type, one());
    let bound = json!({"type": "object", "required": ["bindings"], "properties": {
        "bindings": {"type": "array", "items": reference("Binding")},
    }});
    let update_page =
        page("Change what a user may do").body(json_type, bound).answer(200, "The user", json_type, one());
    let rotate_page =
        page("Give a user a new token").body(json_type, again).answer(200, "The user and its token", json_type, one());
    let delete_page = page("Delete a user").answer(200, "Who it was", json_type, one());
    let self_page = page("Who I am, and what I may do").answer(200, "Name and bindings", json_type, one());
    let can_page = page("Whether I may do something")
        .query("verb", "string", "get, list, watch, create, update or delete")
        .query("kind", "string", "Such as rollouts")
        .query("site", "string", "There; absent: anywhere")
        .query("app", "string", "With this app; absent: with any")
        .answer(
            200,
            "Whether, and if not, what is missing",
            json_type,
            json!({"type": "object", "required": ["allowed"], "properties": {
                "allowed": {"type": "boolean"},
                "reason": {"type": ["string", "null"]},
            }}),
        );
    book.on(Method::GET, users, list, may(Verb::List), list_page)
        .on(Method::POST, users, create, may(Verb::Create), create_page)
        .on(Method::PUT, user, update, may(Verb::Update), update_page)
        .on(Method::DELETE, user, delete, may(Verb::Delete), delete_page)
        .on(Method::POST, "/api/v1/users/{name}/rotate", rotate, may(Verb::Update), rotate_page)
        .on(Method::GET, "/api/v1/self", whoami, Rule::Anybody, self_page)
        .on(Method::GET, "/api/v1/self/can", can, Rule::Anybody, can_page)
}
