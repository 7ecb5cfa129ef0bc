//! Kind `Release`: what can be rolled out.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::Resources;
use crate::{
    digest::Digest,
    name::{Name, Version},
    release::Gpus,
};

kind!(Release, ReleaseSpec, ReleaseStatus, "releases");

data! {
    /// A signed release that the hub has verified and holds whole. Immutable.
    pub struct ReleaseSpec {
        /// The app.
        pub app: Name,
        /// Its version.
        pub version: Version,
        /// Digest of its manifest: what the signatures stand for.
        pub digest: Digest,
        /// Counts releases of the app; a node refuses a lower one than it trusts.
        pub release_counter: u64,
        /// Hardware classes; empty means any.
        #[serde(default)]
        pub hardware: Vec<String>,
        /// When it was signed, by the signers' clock.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub issued_at: Option<Timestamp>,
        /// Memory and processor time that it asks for, with its limits where it does not say. Absent in what a hub stored
        /// that did not look.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub requests: Option<Resources>,
        /// GPUs that it needs. Absent where it needs none, and in what a hub stored that did not look.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
        pub gpus: Option<Gpus>,
        /// It is better apart from apps of these names, and from those that share one of these words.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        pub anti_affinity: BTreeSet<Name>,
        /// Files.
        pub files: u64,
        /// Bytes of all files.
        pub total_bytes: u64,
    }

    /// Nothing yet.
    #[derive(Default)]
    pub struct ReleaseStatus {}
}
