//! Answers without end: watches and logs. They end when the client goes or the hub drains.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{Method, header},
    response::{IntoResponse as _, Response},
};
use futures_util::{StreamExt as _, stream};
use proto::{
    link::message::LogsRequest,
    name::Name,
    object::{NodeSpec, Object},
    release::replicas,
    watch,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{
    Api, ApiError,
    auth::User,
    book::{Book, Page},
    guard::Rule,
    objects::{Lens, Resource, query},
};
use crate::{
    access::{
        self, Verb,
        places::{Places, Reach},
    },
    hub::Hub,
    link::LogsError,
    store::{Watch, WatchEvent},
};

/// How often a quiet watch shows that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

pub(super) fn permit(api: &Api) -> Result<OwnedSemaphorePermit, ApiError> {
    let busy = |_| ApiError::unavailable("too many watches and logs are open; close some or try again");
    Arc::clone(&api.streams).try_acquire_owned().map_err(busy)
}

/// Serves a watch: after `since`, or everything that is and then its changes.
pub(crate) async fn watch<S: Resource>(api: &Api, lens: Lens, since: Option<String>) -> Result<Response, ApiError> {
    let permit = permit(api)?;
    let mut shown = Shown { is_strict: lens.is_bounded(), ..Shown::default() };
    if !lens.is_clear()
        && let Some(since) = &since
    {
        let all = api.hub.store().list::<S>(None).await?.items;
        shown.fill(since, &lens, &api.hub, &all).await;
    }
    let (first, since) = match since {
        Some(since) => (vec![], since),
        None => {
            let mut list = api.hub.store().list::<S>(None).await?;
            if !lens.is_clear() {
                shown.fill(&list.resource_version, &lens, &api.hub, &list.items).await;
                list.items.retain(|o| shown.has.contains(o.name()));
            }
            let mut lines = Vec::with_capacity(list.items.len());
            for object in list.items {
                lines.push(line("ADDED", &lens.view(&api.hub, object).await));
            }
            (lines, list.resource_version)
        }
    };
    let changes = Changes::<S> {
        watch: api.hub.store().watch(Some(&since))?,
        shown,
        hub: api.hub.clone(),
        lens,
        stop: api.stop.clone(),
        ended: false,
        _permit: permit,
    };
    let changes = stream::unfold(changes, |mut changes| async move { changes.next().await.map(|l| (l, changes)) });
    let body = stream::iter(first).chain(changes).map(Ok::<_, Infallible>);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

/// What the client of a filtered watch has, by name. Of names in neither set it is not known: they changed
/// between its list and its watch.
#[derive(Debug, Default)]
struct Shown {
    has: BTreeSet<String>,
    lacks: BTreeSet<String>,
    /// Of what the client does not have for certain nothing is said, not even that it is gone.
    is_strict: bool,
}

impl Shown {
    /// For a client that listed at `since`: what has not changed since then is as it was.
    async fn fill<S: Resource>(&mut self, since: &str, lens: &Lens, hub: &Hub, all: &[Object<S>]) {
        let version = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
        for object in all.iter().filter(|o| version(&o.metadata.resource_version) <= version(since)) {
            let set = if lens.shows(hub, object).await { &mut self.has } else { &mut self.lacks };
            set.insert(object.name().to_owned());
        }
    }

    /// What a change is to this client, if anything: what leaves its selection is deleted for it.
    fn word_for(&mut self, word: &'static str, name: &str, is_selected: bool) -> Option<&'static str> {
        match (word, is_selected) {
            ("DELETED", _) => {
                let had = self.has.remove(name);
                let lacked = self.lacks.remove(name);
                if self.is_strict { had || (is_selected && !lacked) } else { !lacked }.then_some(word)
            }
            (_, true) => {
                self.has.insert(name.to_owned());
                Some(if self.lacks.remove(name) { "ADDED" } else { word })
            }
            (_, false) => {
                let had = self.has.remove(name);
                let lacked = !self.lacks.insert(name.to_owned());
                if self.is_strict { had } else { word != "ADDED" && !lacked }.then_some("DELETED")
            }
        }
    }
}

struct Changes<S: Resource> {
    watch: Watch<S>,
    shown: Shown,
    hub: Hub,
    lens: Lens,
    stop: watch::Receiver<bool>,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl<S: Resource> Changes<S> {
    /// The next line; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        // One deadline for all turns: changes that the selector leaves out are no sign of life.
        let quiet = tokio::time::sleep(SIGN_OF_LIFE);
        tokio::pin!(quiet);
        while !self.ended {
            // Each arm is cancel safe: a dropped `next` loses no change.
            let change = tokio::select! { biased;
                _ = self.stop.wait_for(|stop| *stop) => return None,
                change = self.watch.next() => change,
                () = &mut quiet => return Some(Bytes::from_static(b"{\"type\":\"BOOKMARK\"}\n")),
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
            if self.lens.is_clear() {
                return Some(line(word, &S::view(&self.hub, object)));
            }
            let is_shown = self.lens.shows(&self.hub, &object).await;
            let Some(word) = self.shown.word_for(word, object.name(), is_shown) else { continue };
            if !is_shown && !self.lens.permits(&self.hub, &object).await {
                // It went where this user may not look: that it is gone is all there is to say.
                let object = json!({"apiVersion": object.api_version, "kind": object.kind, "metadata": {
                    "name": object.metadata.name, "resourceVersion": object.metadata.resource_version}});
                return Some(line(word, &object));
            }
            return Some(line(word, &self.lens.view(&self.hub, object).await));
        }
        None
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
    Extension(user): Extension<User>,
    Path((node, app)): Path<(String, String)>,
    asked: Result<Query<LogsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let asked = query(asked)?;
    let name = |text: String| text.parse::<Name>().map_err(|e| ApiError::bad_request(e.to_string()));
    let (node, app) = (name(node)?, name(app)?);
    let Some(object) = api.hub.store().get::<NodeSpec>(node.as_str()).await? else {
        return Err(ApiError::not_found(format!("Node {node} does not exist; `crossdock get nodes` lists what does")));
    };
    // A replica's output is its app's.
    let places = Places { sites: Reach::one(object.spec.site), apps: Reach::one(replicas::of(&app).0) };
    user.may(Verb::Get, access::Resource::Logs, &places)?;
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
    let page = Page::new("Output of an app on a node; of a replica but the first as APP--r1, APP--r2 and so on")
        .query("tail", "integer", "Only so many lines from the end")
        .query("follow", "boolean", "Go on with new lines")
        .answer(200, "The output as it comes", "text/plain", json!({"type": "string"}));
    book.on(
        Method::GET,
        "/api/v1/nodes/{name}/apps/{app}/logs",
        logs,
        Rule::May(Verb::Get, access::Resource::Logs),
        page,
    )
}
