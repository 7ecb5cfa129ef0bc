//! The hub's REST API: objects under `/api/v1`, artifacts, metadata, logs; TLS, bearer tokens.
//!
//! | path | what |
//! |---|---|
//! | `GET POST /api/v1/{plural}`, `GET PUT DELETE /api/v1/{plural}/{name}` | objects ([`objects`], rules in [`kinds`]) |
//! | `GET /api/v1/{plural}?watch=true&resourceVersion=` | changes, one JSON document a line ([`stream`]) |
//! | `GET /api/v1/nodes/{name}/apps/{app}/logs` | output of a workload ([`stream`]) |
//! | `GET /api/v1/nodes/{name}/apps/{app}/exec` | a way to run commands in an app ([`exec`]) |
//! | `GET /api/v1/streams`, `…/{stream}/records`, `…/{stream}/counts`, `GET /api/v1/gaps` | stream records ([`streams`]) |
//! | `POST /api/v1/nodes/{name}/revoke`, `…/approve` | whether a node's key is let in ([`nodes`]) |
//! | `GET POST /api/v1/director/metadata`, `POST /api/v1/director/rekey` | the director's keys ([`director`]) |
//! | `HEAD GET PUT /api/v1/blobs/{digest}`, `GET POST /api/v1/metadata` | releases ([`content`]) |
//! | `GET /api/v1/webhooks`, `…/{name}/deadletters`, `POST …/{name}/retry` | who is told of events ([`webhooks`]) |
//! | `GET POST /api/v1/users`, `DELETE …/{name}`, `POST …/{name}/rotate`, `GET /api/v1/self` | users ([`users`]) |
//! | `GET /api/v1/top/nodes`, `…/gpus`, `GET /metrics` | how nodes and GPUs do now ([`top`]) |
//! | `GET /api/v1/audit`, `…/head`, `…/verify` | who changed what ([`audit`]) |
//! | `/healthz`, `/readyz`, `/openapi.json`, `/api/v1/login` | open to everybody |
//!
//! Routes and their OpenAPI description are made together in [`book`], so neither goes without the other;
//! each names what it takes ([`guard`], rules in [`crate::access`]).
//! Every refusal is a `Status` document ([`error`]). Served by `crate::serve`; used by `crate::cli::client`.

#[cfg(test)]
pub(crate) mod access_tests;
mod audit;
#[cfg(test)]
mod audit_tests;
pub mod auth;
mod book;
mod content;
mod director;
mod door;
mod error;
mod exec;
mod guard;
mod kinds;
pub mod limits;
mod nodes;
pub(crate) mod objects;
mod rim;
mod rollouts;
mod server;
mod stream;
pub(crate) mod streams;
#[cfg(test)]
pub(crate) mod tests;
mod top;
mod users;
mod webhooks;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    middleware,
    response::{IntoResponse as _, Response},
    routing::get,
};
use proto::{digest::Digest, object::SiteSpec, watch};
use tokio::sync::Semaphore;

pub use self::server::{ApiError as ServeError, serve};
use self::{book::Book, error::ApiError, limits::Limits};
pub use crate::access::users::{AuthError, Tokens};
use crate::{
    access::{oidc::keys::Provider, users::Users},
    hub::Hub,
    streams::sink::Sink,
};

/// Largest body with an object, in bytes.
const MAX_OBJECT_BYTES: usize = 1 << 20;
/// Requests in work at the same time; more are asked to come again.
const MAX_REQUESTS: usize = 512;
/// Of these, of one user: an eighth, so that nobody shuts the others out with bodies that come slowly.
const MAX_REQUESTS_USER: usize = MAX_REQUESTS / 8;
/// Requests in work of one address without a user.
const MAX_REQUESTS_ADDRESS: usize = MAX_REQUESTS / 8;
/// Watches and log streams at the same time.
const MAX_STREAMS: usize = 1024;
/// Pages of records in memory at the same time.
const MAX_PAGES: usize = 64;

/// What every handler has.
#[derive(Clone)]
pub(crate) struct Api {
    hub: Hub,
    users: Users,
    /// Becomes true when the hub shuts down: streams end then.
    stop: watch::Receiver<bool>,
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    pages: Arc<Semaphore>,
    limits: Arc<Limits>,
    /// Who vouches for users, or why nobody can.
    oidc: Option<Result<Provider, String>>,
    /// What got in from where: written down once, and looked at also where others fail.
    seen: Arc<Mutex<BTreeSet<Digest>>>,
    ids: Arc<rim::Ids>,
    /// The audit log is read by one at a time.
    auditing: Arc<tokio::sync::Mutex<()>>,
    /// What keeps stream records.
    sink: Arc<dyn Sink>,
}

/// All routes. Streams end when `stop` becomes true.
pub fn router(hub: Hub, tokens: Tokens, stop: watch::Receiver<bool>) -> Router {
    let sink = Arc::clone(hub.streams().sink());
    router_over(hub, sink, tokens, stop)
}

fn router_over(hub: Hub, sink: Arc<dyn Sink>, tokens: Tokens, stop: watch::Receiver<bool>) -> Router {
    let users = Users::new(hub.config(), hub.env(), tokens);
    let (limits, ids) = (Arc::new(Limits::new(&hub.config().limits)), Arc::new(rim::Ids::new(hub.env())));
    let oidc = hub.config().oidc.as_ref().map(|config| {
        let provider = Provider::new(config, hub.env());
        provider.inspect_err(|error| tracing::error!(error, "nobody can log in with OpenID Connect"))
    });
    let api = Api {
        hub,
        users,
        stop,
        requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
        streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        pages: Arc::new(Semaphore::new(MAX_PAGES)),
        limits,
        oidc,
        seen: Arc::default(),
        ids,
        auditing: Arc::default(),
        sink,
    };
    let book = whole_book();
    let openapi: Arc<str> = book.document().to_string().into();
    let description = move || async move { ([("content-type", "application/json")], openapi.to_string()) };
    let open = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/openapi.json", get(description))
        .route("/api/v1/login", get(how_to_log_in))
        .route_layer(middleware::from_fn_with_state(api.clone(), auth::anybody));
    book.router
        .route_layer(middleware::from_fn_with_state(api.clone(), auth::admit))
        .merge(open)
        .fallback(|| async { ApiError::not_found("there is nothing at this path; see /openapi.json") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                "this cannot be done here; see /openapi.json",
            )
        })
        .layer(middleware::from_fn_with_state(api.clone(), rim::around))
        .with_state(api)
}

fn whole_book() -> Book {
    let objects = exec::add(streams::add(stream::add(kinds::add(Book::new()))));
    let objects = top::add(objects);
    audit::add(users::add(director::add(nodes::add(webhooks::add(content::add(objects))))))
}

/// The OpenAPI 3.1 description of the API.
#[must_use]
pub fn openapi() -> serde_json::Value {
    whole_book().document()
}

/// `GET /api/v1/login`: where people log in. Open: it is asked by who is not logged in yet, and tells no secret.
async fn how_to_log_in(State(api): State<Api>) -> Response {
    let oidc = api.hub.config().oidc.as_ref();
    let oidc = oidc.map(|c| serde_json::json!({"issuer": c.issuer, "clientId": c.client_id, "scopes": c.scopes}));
    Json(serde_json::json!({"apiVersion": proto::API_VERSION, "kind": "Login", "oidc": oidc})).into_response()
}

/// Whether the hub can do its work now: not while it drains, not without its database.
async fn ready(State(api): State<Api>) -> Response {
    if *api.stop.borrow() {
        return ApiError::unavailable("the hub is shutting down").into_response();
    }
    match api.hub.store().get::<SiteSpec>("readyz").await {
        Ok(_) => Json(serde_json::json!({"status": "ready"})).into_response(),
        Err(error) => ApiError::from(error).into_response(),
    }
}
