//! Kinds `Site` and `JoinToken`: where boxes stand, and what admits them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::Object;
use crate::{digest::Digest, name::Name};

kind!(Site, SiteSpec, SiteStatus, "sites");
kind!(JoinToken, JoinTokenSpec, JoinTokenStatus, "jointokens");

data! {
    /// A transfer center.
    #[derive(Default)]
    pub struct SiteSpec {
        /// For people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub description: String,
        /// IANA time zone, such as `Asia/Shanghai`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub time_zone: Option<String>,
        /// Bytes a second for artifacts to the whole site; absent is unlimited.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub bulk_bytes_per_s: Option<u64>,
    }

    /// Nothing yet.
    #[derive(Default)]
    pub struct SiteStatus {}

    /// Admits boxes to the fleet.
    pub struct JoinTokenSpec {
        /// Site that the boxes belong to.
        pub site: Name,
        /// The one node it is for; absent: any free name of the site.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub node: Option<Name>,
        /// How many boxes it admits. One of them that is reinstalled counts once.
        pub uses: u32,
        /// When it ends.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub expires_at: Timestamp,
        /// SHA-256 of the secret ([`crate::token::Token::secret_hash`]).
        pub secret_hash: Digest,
        /// Nodes that join with it are let in when somebody approved them.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub approve: bool,
        /// Labels for the nodes that join with it.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub labels: BTreeMap<String, String>,
    }

    /// Who used a token.
    #[derive(Default)]
    pub struct JoinTokenStatus {
        /// Node names by the SHA-256 of the public keys that joined: a lost answer may be asked for again.
        #[serde(default)]
        pub used_by: BTreeMap<String, Name>,
    }
}

impl Object<JoinTokenSpec> {
    /// How often it was used: nodes that it admitted, for a box that is reinstalled is no other box. When
    /// it is for one node, the keys that spoke for it, for each may be another box in the same place.
    #[must_use]
    pub fn used(&self) -> usize {
        let keys = &self.status.used_by;
        if self.spec.node.is_some() { keys.len() } else { keys.values().collect::<BTreeSet<_>>().len() }
    }
}
