//! What stands before each route: whether the user may do this anywhere at all, and for what changes anything the
//! audit log. Handlers ask again for the places that they find out.
//!
//! [`super::book::Book::on`] takes a [`Rule`] with each route and puts [`pass`] before it, so there is no route
//! without. A change is written down before it is done, and its outcome before it is answered; when that cannot be
//! written, nothing is done. An upload of an artifact is written down once it is there: it changes nothing until
//! metadata names it. Answers without end stop here when their user is deleted, gets another token, or its token ends.

use axum::{
    body::{Body, HttpBody as _},
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::{Api, ApiError, auth::User, rim};
use crate::{
    access::{Resource, Scope, Verb, allowed},
    audit::{AuditError, Entry},
};

/// Header of an answer to a change: the end of the audit log, for whoever wants to keep it.
pub(crate) const AUDIT_HEAD: HeaderName = HeaderName::from_static("crossdock-audit-head");

/// Answers of one user that are not over yet: a quarter of all, so that nobody shuts the others out.
const MAX_OPEN: usize = 256;

/// What a route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// To be somebody: it tells users about themselves.
    Anybody,
    /// To be allowed this, somewhere.
    May(Verb, Resource),
}

impl Rule {
    /// Whether it changes anything.
    pub(crate) fn changes(self) -> bool {
        match self {
            // A plan starts nothing.
            Rule::Anybody | Rule::May(_, Resource::RolloutPlans) => false,
            Rule::May(verb, _) => matches!(verb, Verb::Create | Verb::Update | Verb::Delete),
        }
    }

    /// Whether it is written down before it is done.
    fn is_announced(self) -> bool {
        self.changes() && !matches!(self, Rule::May(_, Resource::Blobs))
    }
}

/// What a handler has to say for the audit log; carried by its response.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    /// What it was done to, where the path does not say.
    pub(crate) name: Option<String>,
    /// More.
    pub(crate) detail: String,
}

/// An answer with what the audit log is to say of it.
pub(crate) fn told(
    name: impl Into<String>,
    detail: impl Into<String>,
    response: impl axum::response::IntoResponse,
) -> Response {
    let mut response = response.into_response();
    response.extensions_mut().insert(Told { name: Some(name.into()), detail: detail.into() });
    response
}

/// What is known of a request before it is done.
pub(crate) fn entry_of(request: &Request) -> Entry {
    let extensions = request.extensions();
    let user = extensions.get::<User>();
    Entry {
        user: user.map(|user| user.name.to_string()).unwrap_or_default(),
        via: user.map(|user| user.via().to_owned()).unwrap_or_default(),
        name: request.uri().path().split('/').nth(4).unwrap_or_default().to_owned(),
        from: rim::remote(request).map(|address| address.to_string()).unwrap_or_default(),
        request: extensions.get::<rim::RequestId>().map(ToString::to_string).unwrap_or_default(),
        ..Entry::default()
    }
}

/// Lets through who may do this somewhere.
pub(crate) async fn pass(rule: Rule, request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    let (Some(user), Some(api)) = (extensions.get::<User>().cloned(), extensions.get::<Api>().cloned()) else {
        // `auth::admit` was not asked before: better closed than open.
        return ApiError::unavailable("the hub does not know who asks; this is a fault of the hub").into_response();
    };
    let mut entry = entry_of(&request);
    if let Rule::May(verb, kind) = rule {
        (entry.verb, entry.kind) = (verb.to_string(), kind.to_string());
        if let Err(denied) = allowed(&user.bindings, verb, kind, Scope::Any, Scope::Any) {
            let text = denied.to_string();
            if rule.changes() {
                let entry = Entry { outcome: "403".into(), detail: text.clone(), ..entry };
                api.hub.audit().noted_often(&user.name, entry).await;
            }
            return user.forbidden(&text).into_response();
        }
    }
    if !rule.changes() {
        return while_admitted(api, user, next.run(request).await);
    }
    if rule.is_announced() {
        // Who changes too often would push out of the audit log what others did.
        if let Err(wait) = api.limits.changes.take(&user.name.to_string(), Instant::now()) {
            let entry = Entry { outcome: "429".into(), ..entry };
            api.hub.audit().noted_often(&user.name, entry).await;
            return ApiError::too_many("you make more changes than the hub takes from one user", wait).into_response();
        }
        let asked = Entry { outcome: "asked".into(), ..entry.clone() };
        if let Err(error) = api.hub.audit().append(asked).await {
            tracing::error!(%error, "a change was refused: it could not be written into the audit log");
            return ApiError::unavailable(format!("nothing was done, for it cannot be written down: {error}"))
                .into_response();
        }
    }
    let mut response = next.run(request).await;
    match api.hub.audit().append(outcome(entry, &response)).await {
        Ok(head) => {
            if let Ok(head) = HeaderValue::try_from(head.to_string()) {
                response.headers_mut().insert(AUDIT_HEAD, head);
            }
            response
        }
        Err(error) => unwritten(&response, &error),
    }
}

fn outcome(entry: Entry, response: &Response) -> Entry {
    let Told { name, detail } = response.extensions().get::<Told>().cloned().unwrap_or_default();
    let name = name.unwrap_or_else(|| entry.name.clone());
    Entry { outcome: response.status().as_u16().to_string(), name, detail, ..entry }
}

fn unwritten(response: &Response, error: &AuditError) -> Response {
    let status = response.status();
    tracing::error!(%error, %status, "the outcome of a change could not be written into the audit log");
    ApiError::unavailable(format!(
        "the outcome ({status}) could not be written down: {error}; look what became of it before you ask again"
    ))
    .into_response()
}

/// An answer without end goes on as long as its user would be let in.
fn while_admitted(api: Api, user: User, response: Response) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    let Some(seat) = api.limits.open.take(user.name.to_string(), MAX_OPEN) else {
        let text = format!("you have {MAX_OPEN} watches, streams and downloads open; close some");
        return ApiError::too_many(&text, std::time::Duration::from_secs(5)).into_response();
    };
    let (parts, body) = response.into_parts();
    let pieces = body.into_data_stream().take_while(move |_| {
        let _held = &seat; // as long as the answer lives
        let goes_on = user.is_still(&api.users, api.hub.env().wall.now());
        std::future::ready(goes_on)
    });
    Response::from_parts(parts, Body::from_stream(pieces))
}
