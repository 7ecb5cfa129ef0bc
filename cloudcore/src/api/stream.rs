//! Answers without end: watches and logs. They end when the client goes or the hub drains.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{Method, header},
    response::{IntoResponse as _, Response},
};
use futures_util::{StreamExt as _, stream};
use proto::{link::message::LogsRequest, name::Name, selector::Selector};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::{
    Api, ApiError,
    book::{Book, Page},
    objects::{Resource, query},
};
use crate::{
    hub::Hub,
    link::LogsError,
    store::{self, Watch, WatchEvent},
};

/// How often a quiet watch shows that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

fn permit(api: &Api) -> Result<OwnedSemaphorePermit, ApiError> {
    let busy = |_| ApiError::unavailable("too many watches and logs are open; close some or try again");
    Arc::clone(&api.streams).try_acquire_owned().map_err(busy)
}

/// Serves a watch: after `since`, or everything that is and then its changes.
pub(crate) async fn watch<S: Resource>(
    api: &Api,
    selector: Option<Selector>,
    since: Option<String>,
) -> Result<Response, ApiError> {
    let permit = permit(api)?;
    let (first, since) = match since {
        Some(since) => (vec![], since),
        None => {
            let list = api.hub.store().list::<S>(selector.as_ref()).await?;
            let lines = list.items.into_iter().map(|o| line("ADDED", &S::view(&api.hub, o)));
            (lines.collect(), list.resource_version)
        }
    };
    let changes = Changes::<S> {
        watch: api.hub.store().watch(Some(&since))?,
        hub: api.hub.clone(),
        selector,
        stop: api.stop.clone(),
        ended: false,
        _permit: permit,
    };
    let changes = stream::unfold(changes, |mut changes| async move { changes.next().await.map(|l| (l, changes)) });
    let body = stream::iter(first).chain(changes).map(Ok::<_, Infallible>);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

struct Changes<S: Resource> {
    watch: Watch<S>,
    hub: Hub,
    selector: Option<Selector>,
    stop: watch::Receiver<bool>,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl<S: Resource> Changes<S> {
    /// The next line; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            // Each arm is cancel safe: a dropped `next` loses no change.
            let change = tokio::select! { biased;
                _ = self.stop.wait_for(|stop| *stop) => return None,
                change = self.watch.next() => change,
                () = tokio::time::sleep(SIGN_OF_LIFE) => return Some(Bytes::from_static(b"{\"type\":\"BOOKMARK\"}\n")),
            };
            let Some(change) = change else {
                self.ended = true;
                let text = "the watch fell behind; list again and watch from there";
                return Some(line_of(&json!({"type": "ERROR", "code": 410, "reason": "Gone", "message": text})));
            };
            let (word, object) = match change {
                WatchEvent::Added(object) => ("ADDED", object),
                WatchEvent::Modified(object) => ("MODIFIED", object),
                WatchEvent::Deleted(object) => ("DELETED", object),
            };
            if self.selects(&object) {
                return Some(line(word, &S::view(&self.hub, object)));
            }
        }
        None
    }

    fn selects(&self, object: &proto::object::Object<S>) -> bool {
        let Some(selector) = &self.selector else { return true };
        serde_json::to_value(object).is_ok_and(|value| store::selects(selector, &value))
    }
}

fn line(word: &str, object: &impl Serialize) -> Bytes {
    line_of(&json!({"type": word, "object": object}))
}

fn line_of(value: &Value) -> Bytes {
    let mut text = value.to_string();
    text.push('\n');
    text.into()
}

#[derive(Debug, Deserialize)]
struct LogsQuery {
    tail: Option<u32>,
    #[serde(default)]
    follow: bool,
}

async fn logs(
    State(api): State<Api>,
    Path((node, app)): Path<(String, String)>,
    asked: Result<Query<LogsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let asked = query(asked)?;
    let name = |text: String| text.parse::<Name>().map_err(|e| ApiError::bad_request(e.to_string()));
    let (node, app) = (name(node)?, name(app)?);
    if api.hub.store().get::<proto::object::NodeSpec>(node.as_str()).await?.is_none() {
        return Err(ApiError::not_found(format!("Node {node} does not exist; `crossdock get nodes` lists what does")));
    }
    let permit = permit(&api)?;
    let output = api.hub.node_logs(&node, LogsRequest { app, tail: asked.tail, follow: asked.follow }).await?;
    let state = (output, api.stop.clone(), permit);
    let body = stream::unfold(state, |(mut output, mut stop, permit)| async move {
        let next = next_output(&mut output, &mut stop).await?;
        Some((next, (output, stop, permit)))
    });
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(body)).into_response())
}

async fn next_output(
    output: &mut mpsc::Receiver<Result<Bytes, LogsError>>,
    stop: &mut watch::Receiver<bool>,
) -> Option<Result<Bytes, LogsError>> {
    tokio::select! { biased;
        _ = stop.wait_for(|stop| *stop) => None,
        next = output.recv() => next, // cancel safe
    }
}

/// Adds the logs; watches are part of the kinds.
pub(crate) fn add(book: Book) -> Book {
    let page = Page::new("Output of an app on a node")
        .query("tail", "integer", "Only so many lines from the end")
        .query("follow", "boolean", "Go on with new lines")
        .answer(200, "The output as it comes", "text/plain", json!({"type": "string"}));
    book.on(Method::GET, "/api/v1/nodes/{name}/apps/{app}/logs", logs, page)
}
