//! Objects of any kind over HTTP: list, get, create, update, delete. What is special to a kind is in [`super::kinds`].

use std::future::Future;

use axum::{
    Extension, Json,
    body::{self, Body},
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use proto::{
    object::{Kind, Object},
    selector::{Selector, bad_label},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{Api, ApiError, MAX_OBJECT_BYTES, auth::User, guard::told, stream};
use crate::{
    access::{self, Verb, places::Places},
    hub::Hub,
    plain, store,
};

/// Most labels of an object, and annotations.
const MAX_LABELS: usize = 64;
/// Longest annotation, in bytes.
const MAX_ANNOTATION_BYTES: usize = 16 << 10;

/// Outcome of a rule.
pub(crate) type Checked = Result<(), ApiError>;

/// A kind with its rules for users. The hub itself is not bound by them.
pub(crate) trait Resource: Kind + PartialEq + ToSchema {
    /// What the rules of users call it.
    const RESOURCE: access::Resource;
    /// Whether a join that is under way is waited for before one is deleted: it must not bring it back, or use it later.
    const JOINS: bool = false;

    /// Which sites and apps it concerns: who makes or deletes it must be allowed to in all of them.
    fn places(_hub: &Hub, _object: &Object<Self>) -> impl Future<Output = Places> + Send {
        async { Places::whole() }
    }
    /// Where somebody must be allowed to read, at one of them, to see it.
    fn seen_at(hub: &Hub, object: &Object<Self>) -> impl Future<Output = Places> + Send {
        Self::places(hub, object)
    }
    /// Which sites and apps a change concerns.
    fn change_at(hub: &Hub, old: &Object<Self>, new: &Object<Self>) -> impl Future<Output = Places> + Send {
        async { Self::places(hub, old).await.and(Self::places(hub, new).await) }
    }
    /// What the audit log says of a new one.
    fn tell(_object: &Object<Self>) -> String {
        String::new()
    }
    /// Leaves out what somebody who sees it may not see of it.
    fn trim(_hub: &Hub, _user: &User, object: Object<Self>) -> impl Future<Output = Object<Self>> + Send {
        async { object }
    }
    /// As users see it.
    fn view(_hub: &Hub, object: Object<Self>) -> Object<Self> {
        object
    }
    /// Fills in what a new one leaves open.
    fn complete(_hub: &Hub, _new: &mut Object<Self>) -> Checked {
        Ok(())
    }
    /// Whether it may be created.
    fn check_create(_hub: &Hub, _new: &Object<Self>) -> impl Future<Output = Checked> + Send {
        async { Ok(()) }
    }
    /// Whether it may be changed so.
    fn check_update(_hub: &Hub, _old: &Object<Self>, _new: &Object<Self>) -> impl Future<Output = Checked> + Send {
        async { Ok(()) }
    }
    /// Whether it may be deleted.
    fn check_delete(_hub: &Hub, _name: &str) -> impl Future<Output = Checked> + Send {
        async { Ok(()) }
    }
    /// What else is to be done once it is there, or was changed.
    fn written(
        _hub: &Hub,
        _old: Option<&Object<Self>>,
        _new: &Object<Self>,
        _user: &User,
    ) -> impl Future<Output = ()> + Send {
        async {}
    }
    /// What else is to be done once it is gone.
    fn deleted(_hub: &Hub, _object: &Object<Self>, _user: &User) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// What may stand after `?` of a collection.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListQuery {
    label_selector: Option<String>,
    #[serde(default)]
    watch: bool,
    resource_version: Option<String>,
}

/// A query that was not understood is refused in our own form.
pub(crate) fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    query.map(|Query(query)| query).map_err(|e| ApiError::bad_request(format!("the query is wrong: {}", e.body_text())))
}

/// What of a kind is shown: what was asked for, to somebody who may see only a part.
#[derive(Debug, Clone)]
pub(crate) struct Lens {
    selector: Option<Selector>,
    /// `None`: whoever looks may see all.
    user: Option<User>,
}

impl Lens {
    fn new<S: Resource>(selector: Option<Selector>, user: User) -> Lens {
        Lens { selector, user: Some(user).filter(|user| !user.sees_all(S::RESOURCE)) }
    }

    /// Whether it leaves nothing out.
    pub(crate) fn is_clear(&self) -> bool {
        self.selector.is_none() && self.user.is_none()
    }

    /// Whether there are objects that must not even be named.
    pub(crate) fn is_bounded(&self) -> bool {
        self.user.is_some()
    }

    /// Whether somebody bounded may see it, whatever was asked for.
    pub(crate) async fn permits<S: Resource>(&self, hub: &Hub, object: &Object<S>) -> bool {
        match &self.user {
            Some(user) => user.sees(S::RESOURCE, &S::seen_at(hub, object).await),
            None => true,
        }
    }

    /// Whether it was asked for, and may be seen.
    pub(crate) async fn shows<S: Resource>(&self, hub: &Hub, object: &Object<S>) -> bool {
        let selects = |selector| serde_json::to_value(object).is_ok_and(|value| store::selects(selector, &value));
        self.selector.as_ref().is_none_or(selects) && self.permits(hub, object).await
    }

    /// As it is shown.
    pub(crate) async fn view<S: Resource>(&self, hub: &Hub, object: Object<S>) -> Object<S> {
        let object = S::view(hub, object);
        match &self.user {
            Some(user) => S::trim(hub, user, object).await,
            None => object,
        }
    }
}

/// `GET /{plural}`: a list, or a watch.
pub(crate) async fn list<S: Resource>(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    asked: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let asked = query(asked)?;
    let selector = asked.label_selector.as_deref().filter(|s| !s.trim().is_empty());
    let selector: Option<Selector> =
        selector.map(str::parse).transpose().map_err(|e| ApiError::bad_request(format!("{e}")))?;
    let lens = Lens::new::<S>(selector, user);
    if asked.watch {
        let since = asked.resource_version.filter(|v| !v.is_empty());
        return stream::watch::<S>(&api, lens, since).await;
    }
    let list = api.hub.store().list::<S>(lens.selector.as_ref()).await?;
    let mut items = Vec::with_capacity(list.items.len());
    for object in list.items {
        if lens.permits(&api.hub, &object).await {
            items.push(lens.view(&api.hub, object).await);
        }
    }
    Ok(Json(json!({
        "apiVersion": proto::API_VERSION,
        "kind": format!("{}List", S::KIND),
        "metadata": {"resourceVersion": list.resource_version},
        "items": items,
    }))
    .into_response())
}

/// `GET /{plural}/{name}`.
pub(crate) async fn get<S: Resource>(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path(name): Path<String>,
) -> Result<Json<Object<S>>, ApiError> {
    let object = api.hub.store().get::<S>(&name).await?.ok_or_else(|| missing::<S>(&name))?;
    let lens = Lens::new::<S>(None, user.clone());
    if !lens.permits(&api.hub, &object).await {
        user.may(Verb::Get, S::RESOURCE, &S::seen_at(&api.hub, &object).await)?;
    }
    Ok(Json(lens.view(&api.hub, object).await))
}

fn missing<S: Kind>(name: &str) -> ApiError {
    let name: String = name.chars().take(130).collect();
    ApiError::not_found(format!("{} {name} does not exist; `crossdock get {}` lists what does", S::KIND, S::PLURAL))
}

/// `POST /{plural}`.
pub(crate) async fn create<S: Resource>(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    body: Body,
) -> Result<Response, ApiError> {
    let mut object: Object<S> = read_object(body).await?;
    object.metadata.generation = 0; // counted by the store
    S::complete(&api.hub, &mut object)?;
    user.may(Verb::Create, S::RESOURCE, &S::places(&api.hub, &object).await)?;
    S::check_create(&api.hub, &object).await?;
    let object = api.hub.store().create(object).await?;
    S::written(&api.hub, None, &object, &user).await;
    let (name, detail) = (object.name().to_owned(), S::tell(&object));
    Ok(told(name, detail, (StatusCode::CREATED, Json(S::view(&api.hub, object)))))
}

/// `PUT /{plural}/{name}`.
pub(crate) async fn update<S: Resource>(
    State(api): State<Api>,
    Path(name): Path<String>,
    Extension(user): Extension<User>,
    body: Body,
) -> Result<Response, ApiError> {
    let mut object: Object<S> = read_object(body).await?;
    if object.name() != name {
        let text =
            format!("the object is named {}, the path says {name:.130}; a name cannot be changed", object.name());
        return Err(ApiError::invalid(text));
    }
    let old = api.hub.store().get::<S>(&name).await?.ok_or_else(|| missing::<S>(&name))?;
    user.may(Verb::Update, S::RESOURCE, &S::change_at(&api.hub, &old, &object).await)?;
    if !user.changes_all(S::RESOURCE) {
        // What was allowed is a change of this very version: it must not move elsewhere meanwhile.
        let given = std::mem::replace(&mut object.metadata.resource_version, old.metadata.resource_version.clone());
        if !given.is_empty() && given != old.metadata.resource_version {
            object.metadata.resource_version = given; // stale: the store says so
        }
    }
    S::check_update(&api.hub, &old, &object).await?;
    let object = api.hub.store().update(object).await?;
    S::written(&api.hub, Some(&old), &object, &user).await;
    let detail = format!("changed {}", changed(&old, &object));
    Ok(told(name, detail, Json(S::view(&api.hub, object))))
}

/// Which fields differ, for the audit log.
fn changed<S: Resource>(old: &Object<S>, new: &Object<S>) -> String {
    let fields = |object: &Object<S>| match serde_json::to_value(&object.spec) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (before, after) = (fields(old), fields(new));
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut words: Vec<String> = vec![];
    for key in keys.into_iter().filter(|key| before.get(*key) != after.get(*key)) {
        words.push(format!("{key} to {:.200}", after.get(key).unwrap_or(&Value::Null).to_string()));
    }
    if old.metadata.labels != new.metadata.labels {
        words.push("labels".into());
    }
    if old.metadata.annotations != new.metadata.annotations {
        words.push("annotations".into());
    }
    if words.is_empty() { "nothing".into() } else { words.join(", ") }
}

/// `DELETE /{plural}/{name}`.
pub(crate) async fn delete<S: Resource>(
    State(api): State<Api>,
    Path(name): Path<String>,
    Extension(user): Extension<User>,
) -> Result<Json<Object<S>>, ApiError> {
    let there = api.hub.store().get::<S>(&name).await?.ok_or_else(|| missing::<S>(&name))?;
    user.may(Verb::Delete, S::RESOURCE, &S::places(&api.hub, &there).await)?;
    S::check_delete(&api.hub, &name).await?;
    let _no_join = match S::JOINS {
        true => Some(api.hub.joining().lock().await),
        false => None,
    };
    let object = api.hub.store().delete::<S>(&name).await?.ok_or_else(|| missing::<S>(&name))?;
    S::deleted(&api.hub, &object, &user).await;
    Ok(Json(object))
}

/// Reads a bounded JSON body.
pub(crate) async fn read_json<T: DeserializeOwned>(body: Body, limit_bytes: usize) -> Result<T, ApiError> {
    let bytes = body::to_bytes(body, limit_bytes).await.map_err(|e| {
        if is_slow(&e) {
            return ApiError::new(StatusCode::REQUEST_TIMEOUT, "TooSlow", e.to_string());
        }
        // axum names the bound in the error's source alone; everything else is a broken connection.
        let text = format!("the body is larger than {limit_bytes} bytes, or ended early ({e})");
        ApiError::too_large(text)
    })?;
    plain::read(&bytes).map_err(|e| ApiError::bad_request(format!("the body is not what it should be: {e}")))
}

/// Whether the body was given up by `super::rim`.
fn is_slow(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::TimedOut) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Reads an object as a user may write it: without `status`, with labels that selectors can name.
pub(crate) async fn read_object<S: Resource>(body: Body) -> Result<Object<S>, ApiError> {
    let mut value: Value = read_json(body, MAX_OBJECT_BYTES).await?;
    let Some(map) = value.as_object_mut() else { return Err(ApiError::bad_request("the body is not an object")) };
    map.remove("status");
    let object: Object<S> = serde_json::from_value(value)
        .map_err(|e| ApiError::bad_request(format!("this is no {} as this hub knows it: {e}", S::KIND)))?;
    if object.kind != S::KIND || object.api_version != proto::API_VERSION {
        let text = format!("write apiVersion: {} and kind: {}", proto::API_VERSION, S::KIND);
        return Err(ApiError::bad_request(text));
    }
    check_labels(&object)?;
    Ok(object)
}

fn check_labels<S: Kind + PartialEq>(object: &Object<S>) -> Checked {
    let (labels, annotations) = (&object.metadata.labels, &object.metadata.annotations);
    if let Some((key, value)) = bad_label(labels) {
        let text = format!(
            "label {key:.80}={value:.80}: use letters, digits, '-', '_', '.' and '/', 1 to 128 in key and value"
        );
        return Err(ApiError::invalid(text));
    }
    if labels.len() > MAX_LABELS || annotations.len() > MAX_LABELS {
        return Err(ApiError::invalid(format!("at most {MAX_LABELS} labels and as many annotations")));
    }
    if annotations.iter().any(|(k, v)| k.len() + v.len() > MAX_ANNOTATION_BYTES) {
        return Err(ApiError::invalid(format!("an annotation has at most {MAX_ANNOTATION_BYTES} bytes")));
    }
    Ok(())
}
