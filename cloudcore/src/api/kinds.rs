//! The kinds: which operations each has, and the rules that bind users.
//!
//! | kind | users may | rules |
//! |---|---|---|
//! | `Node` | create, change, delete | apps must be published releases; deleting revokes its key |
//! | `Site` | create, change, delete | one with nodes stays |
//! | `Rollout` | create, label, steer, delete | see [`super::rollouts`] |
//! | `JoinToken` | create in a form of its own, delete | the secret is answered once |
//! | `Release`, `Event` | read | |

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    http::{Method, StatusCode},
    response::Response,
};
use proto::{
    name::{Name, ReleaseName},
    object::{
        Event, EventSpec, EventType, JoinToken, JoinTokenSpec, Metadata, Node, NodeSpec, Release, ReleaseSpec,
        RolloutSpec, Site, SiteSpec,
    },
    selector::Selector,
    units::Span,
};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    Api, ApiError, MAX_OBJECT_BYTES,
    auth::User,
    book::{Book, Page, reference},
    guard::{Rule, told},
    objects::{self, Checked, Resource},
    rollouts,
};
use crate::{
    access::{
        self, Verb,
        places::{self, Places, Reach},
    },
    events,
    hub::Hub,
};

impl Resource for NodeSpec {
    const RESOURCE: access::Resource = access::Resource::Nodes;
    const JOINS: bool = true;

    async fn places(_: &Hub, node: &Node) -> Places {
        Places::site(node.spec.site.clone())
    }

    async fn seen_at(_: &Hub, node: &Node) -> Places {
        Places { sites: Reach::one(node.spec.site.clone()), apps: Reach::Any }
    }

    async fn change_at(_: &Hub, old: &Node, new: &Node) -> Places {
        places::of_node_change(old, new)
    }

    fn view(hub: &Hub, node: Node) -> Node {
        hub.node_view(node)
    }

    async fn check_create(hub: &Hub, new: &Node) -> Checked {
        let named: Result<Name, _> = new.name().parse(); // an object may have dots in its name, a node may not
        named.map_err(|e| ApiError::invalid(e.to_string()))?;
        check_apps(hub, new).await
    }

    async fn check_update(hub: &Hub, old: &Node, new: &Node) -> Checked {
        if old.spec.apps == new.spec.apps { Ok(()) } else { check_apps(hub, new).await }
    }

    async fn deleted(hub: &Hub, node: &Node, user: &User) {
        if let Ok(name) = node.name().parse() {
            hub.revoke_node(&name).await;
        }
        forget_tokens(hub, node.name()).await;
        let text = "deleted, and its key revoked; the box needs a new token to come back";
        events::record(hub.store(), hub.env(), "Node", node.name(), EventType::Normal, "Deleted", text, &user.name)
            .await;
    }
}

/// Tokens that name a node go with it: whoever has one would be it again.
async fn forget_tokens(hub: &Hub, node: &str) {
    let tokens = match hub.store().list::<JoinTokenSpec>(None).await {
        Ok(tokens) => tokens.items,
        Err(error) => return tracing::error!(%error, node, "the tokens of a deleted node could not be looked for"),
    };
    for token in tokens.iter().filter(|token| token.spec.node.as_ref().is_some_and(|named| named.as_str() == node)) {
        if let Err(error) = hub.store().delete::<JoinTokenSpec>(token.name()).await {
            tracing::error!(%error, node, token = token.name(), "a token of a deleted node could not be deleted");
        }
    }
}

/// What a node is told to run must be a release that the hub holds, by name and digest.
async fn check_apps(hub: &Hub, node: &Node) -> Checked {
    for (app, assigned) in &node.spec.apps {
        let name = ReleaseName { app: app.clone(), version: assigned.version.clone() };
        let release = hub.store().get::<ReleaseSpec>(name.object_name().as_str()).await?;
        match release {
            None => return Err(ApiError::invalid(format!("there is no release {name}; publish it first"))),
            Some(release) if release.spec.digest != assigned.digest => {
                let text = format!("release {name} has digest {}, not {}", release.spec.digest, assigned.digest);
                return Err(ApiError::invalid(text));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

impl Resource for SiteSpec {
    const RESOURCE: access::Resource = access::Resource::Sites;

    async fn places(_: &Hub, site: &Site) -> Places {
        site.name().parse().map_or_else(|_| Places::whole(), Places::site)
    }

    async fn seen_at(hub: &Hub, site: &Site) -> Places {
        Places { apps: Reach::Any, ..Self::places(hub, site).await }
    }

    async fn check_create(_: &Hub, new: &Site) -> Checked {
        new.name().parse::<Name>().map(drop).map_err(|e| ApiError::invalid(e.to_string()))?;
        check_site(new)
    }

    async fn check_update(_: &Hub, _: &Site, new: &Site) -> Checked {
        check_site(new)
    }

    async fn check_delete(hub: &Hub, name: &str) -> Checked {
        let Ok(selector) = format!("site={name}").parse::<Selector>() else { return Ok(()) }; // then there is none
        let nodes = hub.store().list::<NodeSpec>(Some(&selector)).await?.items;
        match nodes.first() {
            None => Ok(()),
            Some(node) => {
                let text = format!("site {name} has {} nodes, such as {}; delete them first", nodes.len(), node.name());
                Err(ApiError::conflict(text))
            }
        }
    }
}

fn check_site(site: &Site) -> Checked {
    if site.spec.bulk_bytes_per_s == Some(0) {
        return Err(ApiError::invalid("bulkBytesPerS is 0, so nothing would ever arrive; leave it out for no bound"));
    }
    Ok(())
}

impl Resource for JoinTokenSpec {
    const RESOURCE: access::Resource = access::Resource::JoinTokens;
    const JOINS: bool = true;

    async fn places(_: &Hub, token: &JoinToken) -> Places {
        Places::site(token.spec.site.clone())
    }
}

impl Resource for ReleaseSpec {
    const RESOURCE: access::Resource = access::Resource::Releases;

    async fn places(_: &Hub, release: &Release) -> Places {
        Places { sites: Reach::Any, apps: Reach::one(release.spec.app.clone()) }
    }
}

impl Resource for EventSpec {
    const RESOURCE: access::Resource = access::Resource::Events;

    /// Where that is which it is about. What is gone, and what is of no site, is of the whole fleet.
    async fn places(hub: &Hub, event: &Event) -> Places {
        let (kind, name) = (event.spec.involved_kind.as_str(), event.spec.involved_name.as_str());
        async fn of<S: Resource>(hub: &Hub, name: &str) -> Option<Places> {
            let object = hub.store().get::<S>(name).await.ok()??;
            Some(S::seen_at(hub, &object).await)
        }
        let found = match kind {
            "Node" => of::<NodeSpec>(hub, name).await,
            "Site" => of::<SiteSpec>(hub, name).await,
            "Rollout" => of::<RolloutSpec>(hub, name).await,
            "Release" => of::<ReleaseSpec>(hub, name).await,
            _ => None,
        };
        found.unwrap_or_else(Places::whole)
    }
}

/// What makes a join token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenRequest {
    /// Site that the boxes belong to; made if there is none.
    site: Name,
    /// The one node it is for.
    #[serde(default)]
    node: Option<Name>,
    /// How many boxes it admits.
    #[serde(default = "one")]
    uses: u32,
    /// How long it can be used.
    #[serde(default = "hour")]
    ttl: Span,
    /// Labels for the nodes that join with it.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Whether somebody has to approve those nodes before they are let in.
    #[serde(default)]
    approve: bool,
}

fn one() -> u32 {
    1
}
fn hour() -> Span {
    Span::from_secs(3600)
}

/// Where a join token counts: at its site, and at that of the node whose name it lets another box take.
async fn token_places(api: &Api, asked: &TokenRequest) -> Result<Places, ApiError> {
    let places = Places::site(asked.site.clone());
    let Some(node) = &asked.node else { return Ok(places) };
    let there = api.hub.store().get::<NodeSpec>(node.as_str()).await?;
    Ok(there.map_or(places.clone(), |node| places.and(Places::site(node.spec.site))))
}

/// `POST /jointokens`: the object, and once, beside it, the token.
async fn create_token(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    body: Body,
) -> Result<Response, ApiError> {
    let asked: TokenRequest = objects::read_json(body, MAX_OBJECT_BYTES).await?;
    user.may(Verb::Create, access::Resource::JoinTokens, &token_places(&api, &asked).await?)?;
    let (site, ttl): (_, Duration) = (asked.site.clone(), asked.ttl.get());
    let (object, token) =
        api.hub.create_token(asked.site, asked.node, asked.uses, ttl, asked.labels, asked.approve).await?;
    let text = format!("admits {} box(es) to site {site} for {}", asked.uses, asked.ttl);
    let (store, env) = (api.hub.store(), api.hub.env());
    events::record(store, env, "JoinToken", object.name(), EventType::Normal, "Created", &text, &user.name).await;
    let mut answer = serde_json::to_value(&object).map_err(|e| ApiError::bad_request(e.to_string()))?;
    if let Some(map) = answer.as_object_mut() {
        map.insert("token".into(), Value::String(token.to_string()));
    }
    Ok(told(object.name(), text, (StatusCode::CREATED, Json(answer))))
}

const JSON: &str = "application/json";

/// Adds all kinds.
pub(crate) fn add(mut book: Book) -> Book {
    book.schema::<Metadata>();
    let token = book.schema::<TokenRequest>();
    let book = writable::<RolloutSpec>(writable::<SiteSpec>(writable::<NodeSpec>(book)));
    let book = rollouts::add(readable::<EventSpec>(readable::<ReleaseSpec>(book)));
    let with_secret = json!({"allOf": [
        reference("JoinToken"),
        {"type": "object", "required": ["token"], "properties": {"token": {"type": "string"}}},
    ]});
    let page = Page::new("Make a join token").body(JSON, token);
    let page = page.answer(201, "The object and, this once, the token", JSON, with_secret);
    deletable::<JoinTokenSpec>(readable::<JoinTokenSpec>(book)).on(
        Method::POST,
        "/api/v1/jointokens",
        create_token,
        may::<JoinTokenSpec>(Verb::Create),
        page,
    )
}

fn may<S: Resource>(verb: Verb) -> Rule {
    Rule::May(verb, S::RESOURCE)
}

fn paths<S: Resource>() -> (String, String) {
    (format!("/api/v1/{}", S::PLURAL), format!("/api/v1/{}/{{name}}", S::PLURAL))
}

fn readable<S: Resource>(mut book: Book) -> Book
where
    S::Status: ToSchema,
{
    let (spec, status) = (book.schema::<S>(), book.schema::<S::Status>());
    book.define(
        S::KIND,
        json!({
            "type": "object",
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {
                "apiVersion": {"type": "string", "enum": [proto::API_VERSION]},
                "kind": {"type": "string", "enum": [S::KIND]},
                "metadata": reference("Metadata"),
                "spec": spec,
                "status": status,
            },
        }),
    );
    let (all, one) = paths::<S>();
    let list = json!({
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {"resourceVersion": {"type": "string"}}},
            "items": {"type": "array", "items": reference(S::KIND)},
        },
    });
    let page = Page::new(format!("List or watch objects of kind {}", S::KIND))
        .query("labelSelector", "string", "Such as site=hz-01,gpu; also by name")
        .query("watch", "boolean", "Answer with changes, a JSON document {type, object} a line")
        .query("resourceVersion", "string", "With watch: changes after this; without it, what is comes first as ADDED")
        .answer(200, "The list", JSON, list);
    let book = book.on(Method::GET, &all, objects::list::<S>, may::<S>(Verb::List), page);
    let page = Page::new(format!("Read a {}", S::KIND)).answer(200, "The object", JSON, reference(S::KIND));
    book.on(Method::GET, &one, objects::get::<S>, may::<S>(Verb::Get), page)
}

fn deletable<S: Resource>(book: Book) -> Book {
    let page = Page::new(format!("Delete a {}", S::KIND)).answer(200, "What it was", JSON, reference(S::KIND));
    book.on(Method::DELETE, &paths::<S>().1, objects::delete::<S>, may::<S>(Verb::Delete), page)
}

fn writable<S: Resource>(book: Book) -> Book
where
    S::Status: ToSchema,
{
    let (all, one) = paths::<S>();
    let create = Page::new(format!("Create a {}", S::KIND)).body(JSON, reference(S::KIND)).answer(
        201,
        "As it was stored",
        JSON,
        reference(S::KIND),
    );
    let update =
        Page::new(format!("Change spec, labels and annotations of a {}; a stale resourceVersion is refused", S::KIND))
            .body(JSON, reference(S::KIND))
            .answer(200, "As it was stored", JSON, reference(S::KIND));
    let book = readable::<S>(book).on(Method::POST, &all, objects::create::<S>, may::<S>(Verb::Create), create);
    deletable::<S>(book.on(Method::PUT, &one, objects::update::<S>, may::<S>(Verb::Update), update))
}
