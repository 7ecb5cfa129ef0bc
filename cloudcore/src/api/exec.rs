//! Commands of people in workloads: the connection is upgraded, and its bytes go through to the node. What they say is
//! between the person and the node, see [`proto::exec`].

use std::time::Duration;

use axum::{
    Extension,
    extract::{Path, Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::Response,
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use proto::{
    exec::UPGRADE,
    name::Name,
    object::{NodeSpec, Object},
};
use quinn::{RecvStream, SendStream};
use serde_json::json;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{interval, timeout},
};

use super::{
    Api, ApiError,
    auth::User,
    book::{Book, Page},
    guard::{Rule, told},
    stream::permit,
};
use crate::{
    access::{
        Resource, Verb,
        places::{Places, Reach},
    },
    store::StoreError,
};

/// How long a client may take to change over.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between looks whether its user would still be let in.
const LOOK_EVERY: Duration = Duration::from_secs(5);

fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|wanted| wanted.as_bytes().eq_ignore_ascii_case(UPGRADE.as_bytes()))
}

async fn exec(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path((node, app)): Path<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    let name = |text: String| text.parse::<Name>().map_err(|e| ApiError::bad_request(e.to_string()));
    let (node, app) = (name(node)?, name(app)?);
    if !wants_upgrade(request.headers()) {
        let text = format!("this needs HTTP/1.1 and `Upgrade: {UPGRADE}`, as `crossdock exec` sends it");
        return Err(ApiError::bad_request(text));
    }
    let found: Result<Option<Object<NodeSpec>>, StoreError> = api.hub.store().get::<NodeSpec>(node.as_str()).await;
    let Some(object) = found? else {
        return Err(ApiError::not_found(format!("Node {node} does not exist; `crossdock get nodes` lists what does")));
    };
    let places = Places { sites: Reach::one(object.spec.site), apps: Reach::one(app.clone()) };
    user.may(Verb::Create, Resource::Exec, &places)?;
    let permit = permit(&api)?;
    let way = api.hub.node_exec(&node, app.clone()).await?;
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(hand_through(api, user, upgrade, way, permit));
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static(UPGRADE));
    Ok(told(node.as_str(), format!("a command in {app}; which, the node's event CommandRun says"), response))
}

/// Until one end is gone, the hub drains, or the user is one no more.
async fn hand_through(
    api: Api,
    user: User,
    upgrade: OnUpgrade,
    (recv, send): (RecvStream, SendStream),
    _permit: OwnedSemaphorePermit,
) {
    let upgraded: Upgraded = match timeout(UPGRADE_TIMEOUT, upgrade).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(error)) => return tracing::debug!(%error, "a connection was not upgraded"),
        Err(_) => return tracing::debug!("a connection was not upgraded in time"),
    };
    let (mut person, mut node) = (TokioIo::new(upgraded), tokio::io::join(recv, send));
    let mut stop = api.stop.clone();
    let mut look = interval(LOOK_EVERY);
    let goes_on = async {
        loop {
            look.tick().await;
            if !user.is_still(&api.users, api.hub.env().wall.now()) {
                return;
            }
        }
    };
    // Whichever ends, the way ends with it: nothing here is worth finishing.
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        copied = tokio::io::copy_bidirectional(&mut person, &mut node) => {
            if let Err(error) = copied {
                tracing::debug!(%error, "a command's line broke off");
            }
        }
        () = goes_on => {}
    }
}

/// Adds it.
pub(super) fn add(book: Book) -> Book {
    let page = Page::new(
        "Run a command in an app's workload: HTTP/1.1 with `Upgrade: crossdock-exec`, then TLS with the node",
    )
    .answer(
        101,
        "The bytes that follow go to the node and come from it",
        "application/octet-stream",
        json!({"type": "string"}),
    );
    let rule = Rule::May(Verb::Create, Resource::Exec);
    book.on(Method::GET, "/api/v1/nodes/{name}/apps/{app}/exec", exec, rule, page)
}
