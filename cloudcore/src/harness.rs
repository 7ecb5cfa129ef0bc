//! Parsers that stand behind closed doors, for the fuzzers of `sim/fuzz` alone: what a request's body, a file that is
//! applied, a `release.yaml` and a certificate request become, without a hub.

use axum::body::Body;
use bytes::Bytes;
use proto::{
    object::{EventSpec, JoinTokenSpec, NodeSpec, ReleaseSpec, RolloutSpec, SiteSpec},
    release::ReleaseYaml,
};
use serde_json::Value;

use crate::{
    api::objects::{Resource, read_object},
    ca, cli,
    release::build,
};

/// An object as a request brings it, and as it would be stored.
///
/// # Errors
/// What the answer would say.
pub async fn body(kind: u8, bytes: Bytes) -> Result<Value, String> {
    match kind % 6 {
        0 => object::<NodeSpec>(bytes).await,
        1 => object::<SiteSpec>(bytes).await,
        2 => object::<JoinTokenSpec>(bytes).await,
        3 => object::<ReleaseSpec>(bytes).await,
        4 => object::<EventSpec>(bytes).await,
        _ => object::<RolloutSpec>(bytes).await,
    }
}

async fn object<S: Resource>(bytes: Bytes) -> Result<Value, String> {
    let object = read_object::<S>(Body::from(bytes)).await.map_err(|e| format!("{e:?}"))?;
    serde_json::to_value(&object).map_err(|e| e.to_string())
}

/// The objects of a file for `crossdock apply`.
///
/// # Errors
/// What is wrong with it.
pub fn applied(text: &str) -> Result<Vec<Value>, String> {
    let objects = cli::apply::parse(text).map_err(|e| format!("{e:#}"))?;
    Ok(objects.into_iter().map(|(_, object)| object).collect())
}

/// A `release.yaml` with the warnings about it.
///
/// # Errors
/// What is wrong with it.
pub fn release_yaml(text: &str) -> Result<(ReleaseYaml, Vec<String>), String> {
    build::parse_yaml("release.yaml".as_ref(), text).map_err(|e| e.to_string())
}

/// The key of a certificate request that proves it, in DER.
///
/// # Errors
/// What is wrong with it.
pub fn certificate_request(der: &[u8]) -> Result<Vec<u8>, String> {
    ca::proven_key_der(der).map_err(|e| e.to_string())
}
