//! The audit log over HTTP: its lines, its end, and whether it is whole. What is written into it, [`super::guard`] says.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::Method,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Api, ApiError,
    book::{Book, Page},
    guard::Rule,
    objects::query,
};
use crate::{
    access::{Resource, Verb},
    audit::{AuditError, Head},
};

/// Lines of an answer when nothing else is asked for, and at most.
const DEFAULT_LINES: usize = 100;
const MAX_LINES: usize = 1_000;

impl From<AuditError> for ApiError {
    fn from(error: AuditError) -> ApiError {
        ApiError::unavailable(format!("the audit log cannot be read: {error}"))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    limit: Option<usize>,
    before: Option<u64>,
    user: Option<String>,
    verb: Option<String>,
    kind: Option<String>,
    name: Option<String>,
}

async fn list(
    State(api): State<Api>,
    asked: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let ListQuery { limit, before, user, verb, kind, name } = query(asked)?;
    let limit = limit.unwrap_or(DEFAULT_LINES);
    if !(1..=MAX_LINES).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit={limit} is out of range; use 1 to {MAX_LINES}")));
    }
    let fits = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|wanted| wanted == is);
    // Reading back through all of a log is work: one at a time.
    let _one = api.auditing.lock().await;
    let lines = api.hub.audit().read(before.unwrap_or(u64::MAX), limit, move |line| {
        let entry = &line.entry;
        fits(&user, &entry.user) && fits(&verb, &entry.verb) && fits(&kind, &entry.kind) && fits(&name, &entry.name)
    });
    let items = lines.await?;
    let next = items.last().filter(|line| items.len() == limit && line.seq > 1).map(|line| line.seq);
    Ok(Json(json!({"apiVersion": proto::API_VERSION, "kind": "AuditList", "items": items, "before": next})))
}

async fn head(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let head = api.hub.audit().head().await?.unwrap_or_else(Head::none);
    Ok(Json(
        json!({"apiVersion": proto::API_VERSION, "kind": "AuditHead", "head": head.to_string(), "lines": head.seq}),
    ))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VerifyQuery {
    head: Option<String>,
}

async fn verify(
    State(api): State<Api>,
    asked: Result<Query<VerifyQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let heads = query(asked)?.head.unwrap_or_default();
    let heads = heads.split(',').filter(|text| !text.trim().is_empty()).map(str::parse::<Head>);
    let heads = heads.collect::<Result<Vec<_>, _>>().map_err(|e| ApiError::bad_request(e.to_string()))?;
    let _one = api.auditing.lock().await;
    Ok(Json(match api.hub.audit().verify(heads).await? {
        Ok(report) => json!({"apiVersion": proto::API_VERSION, "kind": "AuditReport", "whole": true,
            "first": report.first, "head": report.head.to_string(), "tornBytes": report.torn_bytes}),
        Err(broken) => json!({"apiVersion": proto::API_VERSION, "kind": "AuditReport", "whole": false,
            "problem": broken.to_string()}),
    }))
}

/// Adds the audit log.
pub(super) fn add(book: Book) -> Book {
    let json_type = "application/json";
    let object = || json!({"type": "object"});
    let list_page = ["user", "verb", "kind", "name"]
        .into_iter()
        .fold(Page::new("Lines of the audit log, the newest first"), |page, field| {
            page.query(field, "string", "Of this alone")
        })
        .query("limit", "integer", "At most so many, 1 to 1000; 100 by default")
        .query("before", "integer", "Lines before this sequence; an answer says where to go on")
        .answer(200, "The lines", json_type, object());
    let head_page = Page::new("The end of the audit log, to be kept elsewhere").answer(200, "It", json_type, object());
    let verify_page = Page::new("Whether the audit log is whole")
        .query("head", "string", "Heads that were kept elsewhere, joined by commas")
        .answer(200, "Whether, and if not, where it breaks", json_type, object());
    let may = |verb| Rule::May(verb, Resource::Audit);
    book.on(Method::GET, "/api/v1/audit", list, may(Verb::List), list_page)
        .on(Method::GET, "/api/v1/audit/head", head, may(Verb::Get), head_page)
        .on(Method::GET, "/api/v1/audit/verify", verify, may(Verb::Get), verify_page)
}
