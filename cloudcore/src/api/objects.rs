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

use super::{Api, ApiError, MAX_OBJECT_BYTES, auth::User, stream};
use crate::hub::Hub;

/// Most labels of an object, and annotations.
const MAX_LABELS: usize = 64;
/// Longest annotation, in bytes.
const MAX_ANNOTATION_BYTES: usize = 16 << 10;

/// Outcome of a rule.
pub(crate) type Checked = Result<(), ApiError>;

/// A kind with its rules for users. The hub itself is not bound by them.
pub(crate) trait Resource: Kind + PartialEq + ToSchema {
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

/// `GET /{plural}`: a list, or a watch.
pub(crate) async fn list<S: Resource>(
    State(api): State<Api>,
    asked: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let asked = query(asked)?;
    let selector = asked.label_selector.as_deref().filter(|s| !s.trim().is_empty());
    let selector: Option<Selector> =
        selector.map(str::parse).transpose().map_err(|e| ApiError::bad_request(format!("{e}")))?;
    if asked.watch {
        let since = asked.resource_version.filter(|v| !v.is_empty());
        return stream::watch::<S>(&api, selector, since).await;
    }
    let list = api.hub.store().list::<S>(selector.as_ref()).await?;
    let items: Vec<_> = list.items.into_iter().map(|object| S::view(&api.hub, object)).collect();
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
    Path(name): Path<String>,
) -> Result<Json<Object<S>>, ApiError> {
    let object = api.hub.store().get::<S>(&name).await?.ok_or_else(|| missing::<S>(&name))?;
    Ok(Json(S::view(&api.hub, object)))
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
    S::check_create(&api.hub, &object).await?;
    let object = api.hub.store().create(object).await?;
    S::written(&api.hub, None, &object, &user).await;
    Ok((StatusCode::CREATED, Json(S::view(&api.hub, object))).into_response())
}

/// `PUT /{plural}/{name}`.
pub(crate) async fn update<S: Resource>(
    State(api): State<Api>,
    Path(name): Path<String>,
    Extension(user): Extension<User>,
    body: Body,
) -> Result<Json<Object<S>>, ApiError> {
    let object: Object<S> = read_object(body).await?;
    if object.name() != name {
        let text =
            format!("the object is named {}, the path says {name:.130}; a name cannot be changed", object.name());
        return Err(ApiError::invalid(text));
    }
    let old = api.hub.store().get::<S>(&name).await?.ok_or_else(|| missing::<S>(&name))?;
    S::check_update(&api.hub, &old, &object).await?;
    let object = api.hub.store().update(object).await?;
    S::written(&api.hub, Some(&old), &object, &user).await;
    Ok(Json(S::view(&api.hub, object)))
}

/// `DELETE /{plural}/{name}`.
pub(crate) async fn delete<S: Resource>(
    State(api): State<Api>,
    Path(name): Path<String>,
    Extension(user): Extension<User>,
) -> Result<Json<Object<S>>, ApiError> {
    S::check_delete(&api.hub, &name).await?;
    let object = api.hub.store().delete::<S>(&name).await?.ok_or_else(|| missing::<S>(&name))?;
    S::deleted(&api.hub, &object, &user).await;
    Ok(Json(object))
}

/// Reads a bounded JSON body.
pub(crate) async fn read_json<T: DeserializeOwned>(body: Body, limit_bytes: usize) -> Result<T, ApiError> {
    let bytes = body::to_bytes(body, limit_bytes).await.map_err(|e| {
        // axum names the bound in the error's source alone; everything else is a broken connection.
        let text = format!("the body is larger than {limit_bytes} bytes, or ended early ({e})");
        ApiError::too_large(text)
    })?;
    serde_json::from_slice(&bytes).map_err(|e| ApiError::bad_request(format!("the body is not what it should be: {e}")))
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
