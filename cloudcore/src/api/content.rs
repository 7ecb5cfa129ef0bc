//! Releases over HTTP: artifacts by digest, and the signed metadata that names them.
//!
//! An upload is believed for its digest alone, metadata for its signatures alone.

use std::collections::BTreeSet;

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::{TryStreamExt as _, stream};
use proto::{
    digest::Digest,
    link::{
        frame::MAX_METADATA_BYTES,
        message::{MetadataReply, MetadataRequest},
    },
    name::Name,
    object::EventType,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio_util::io::StreamReader;

use super::{
    Api, ApiError,
    auth::User,
    book::{Book, Page},
    guard::{Rule, told},
    objects::{query, read_json},
};
use crate::{
    access::{
        Resource, Verb,
        places::{Places, Reach},
    },
    blobs::{BlobError, MAX_BLOB_BYTES},
    events, plain,
};

fn digest(text: &str) -> Result<Digest, ApiError> {
    text.parse().map_err(|e: proto::digest::DigestError| ApiError::bad_request(e.to_string()))
}

async fn has_blob(State(api): State<Api>, Path(text): Path<String>) -> Result<Response, ApiError> {
    let digest = digest(&text)?;
    let size = api.hub.blobs().size(digest).await?.ok_or(BlobError::NotFound(digest))?;
    Ok((StatusCode::OK, blob_headers(size)).into_response())
}

fn blob_headers(size: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    headers
}

async fn get_blob(State(api): State<Api>, Path(text): Path<String>) -> Result<Response, ApiError> {
    let reader = api.hub.blobs().reader(digest(&text)?).await?;
    let headers = blob_headers(reader.size());
    let chunks = stream::try_unfold((reader, 0), |(reader, number)| async move {
        if number >= reader.chunks() {
            return Ok::<_, BlobError>(None);
        }
        let chunk = reader.plain(number).await?;
        Ok(Some((chunk, (reader, number + 1))))
    });
    Ok((headers, Body::from_stream(chunks)).into_response())
}

async fn put_blob(
    State(api): State<Api>,
    Path(text): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let digest = digest(&text)?;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BLOB_BYTES) {
        return Err(BlobError::TooLarge { digest, limit_bytes: MAX_BLOB_BYTES }.into());
    }
    let content = body.into_data_stream().map_err(std::io::Error::other);
    let mut reader = StreamReader::new(Box::pin(content));
    let size = api.hub.blobs().put(digest, &mut reader).await?;
    Ok((StatusCode::CREATED, Json(json!({"digest": digest, "size": size}))).into_response())
}

/// Versions of the metadata that somebody has, as a query.
#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Versions {
    root: u64,
    timestamp: u64,
    snapshot: u64,
    targets: u64,
}

async fn get_metadata(
    State(api): State<Api>,
    asked: Result<Query<Versions>, QueryRejection>,
) -> Result<Json<MetadataReply>, ApiError> {
    let Versions { root, timestamp, snapshot, targets } = query(asked)?;
    Ok(Json(api.hub.trust().reply(&MetadataRequest { root, timestamp, snapshot, targets })))
}

/// The apps whose releases differ between two documents of targets, of which neither is believed yet; all of them
/// when one cannot be read. Their paths are `APP/VERSION.json`, or publishing refuses them.
fn apps_of(before: Option<&str>, now: &str) -> Reach {
    let targets = |text: &str| -> Option<Map<String, Value>> {
        let mut document: Value = plain::read(text.as_bytes()).ok()?;
        match document.pointer_mut("/signed/targets")?.take() {
            Value::Object(targets) => Some(targets),
            _ => None,
        }
    };
    let Some((before, now)) = before.map_or(Some(Map::new()), targets).zip(targets(now)) else { return Reach::Whole };
    let changed = before.keys().chain(now.keys()).filter(|path| before.get(*path) != now.get(*path));
    let apps: Option<BTreeSet<Name>> = changed.map(|path| path.split_once('/')?.0.parse().ok()).collect();
    match apps {
        Some(apps) if apps.is_empty() => Reach::Any,
        Some(apps) => Reach::These(apps),
        None => Reach::Whole,
    }
}

async fn publish(State(api): State<Api>, Extension(user): Extension<User>, body: Body) -> Result<Response, ApiError> {
    let reply: MetadataReply = read_json(body, MAX_METADATA_BYTES).await?;
    let apps = match &reply.targets {
        Some(targets) => apps_of(api.hub.trust().reply(&MetadataRequest::default()).targets.as_deref(), targets),
        None => Reach::Any,
    };
    user.may(Verb::Create, Resource::Metadata, &Places { sites: Reach::Any, apps: apps.clone() })?;
    let apps = match apps {
        Reach::These(apps) => apps.iter().map(Name::as_str).collect::<Vec<_>>().join(", "),
        Reach::Whole => "all".into(),
        Reach::Any => "none".into(),
    };
    let (store, env) = (api.hub.store(), api.hub.env());
    match api.hub.trust().publish(reply).await {
        Ok(()) => {
            let text = "signed release metadata was verified and is served from now on";
            events::record(store, env, "Repository", "releases", EventType::Normal, "Published", text, &user.name)
                .await;
            let answer = json!({"apiVersion": proto::API_VERSION, "kind": "Status", "code": 200, "reason": "Published",
                "message": text});
            Ok(told("releases", format!("apps: {apps}"), Json(answer)))
        }
        Err(error) => {
            let text = error.to_string();
            events::record(store, env, "Repository", "releases", EventType::Warning, "Refused", &text, &user.name)
                .await;
            Err(error.into())
        }
    }
}

/// Adds artifacts and metadata.
pub(crate) fn add(book: Book) -> Book {
    let (blob, metadata) = ("/api/v1/blobs/{digest}", "/api/v1/metadata");
    let (bytes, json_type) = ("application/octet-stream", "application/json");
    let content = || json!({"type": "string", "format": "binary"});
    let documents = json!({
        "type": "object",
        "description": "TUF metadata, each document to the byte",
        "properties": {
            "roots": {"type": "array", "items": {"type": "string"}},
            "timestamp": {"type": ["string", "null"]},
            "snapshot": {"type": ["string", "null"]},
            "targets": {"type": ["string", "null"]},
        },
    });
    let stored = json!({"type": "object", "properties": {"digest": {"type": "string"}, "size": {"type": "integer"}}});
    let head = Page::new("Whether the hub holds an artifact");
    let get = Page::new("Content of an artifact").answer(200, "The content", bytes, content());
    let put = Page::new("Give the hub an artifact; it is verified against its digest").body(bytes, content()).answer(
        201,
        "It is on disk",
        json_type,
        stored,
    );
    let newer = ["root", "timestamp", "snapshot", "targets"]
        .into_iter()
        .fold(Page::new("Signed release metadata newer than the versions given"), |page, role| {
            page.query(role, "integer", "Version that is there already; 0 is none")
        });
    let newer = newer.answer(200, "What is newer", json_type, documents.clone());
    let publish_page = Page::new("Publish signed release metadata; every artifact that it names must be there")
        .body(json_type, documents)
        .answer(200, "It is served from now on", json_type, super::book::reference("Status"));
    let may = |verb, kind| Rule::May(verb, kind);
    book.on(Method::HEAD, blob, has_blob, may(Verb::List, Resource::Blobs), head)
        .on(Method::GET, blob, get_blob, may(Verb::Get, Resource::Blobs), get)
        .on(Method::PUT, blob, put_blob, may(Verb::Create, Resource::Blobs), put)
        .on(Method::GET, metadata, get_metadata, may(Verb::Get, Resource::Metadata), newer)
        .on(Method::POST, metadata, publish, may(Verb::Create, Resource::Metadata), publish_page)
}
