//! Users that an OpenID Connect provider of the house vouches for: ID tokens, checked here, mapped to roles by group.
//!
//! | module | what it holds |
//! |---|---|
//! | here | the section `oidc` of `hub.yaml`, and from claims to a user, pure |
//! | [`jwt`] | a signed token: its form, its signature, its claims; pure |
//! | [`keys`] | the provider's keys: found by discovery, kept, asked for again within bounds |
//!
//! The hub holds no secret of the provider and takes part in no login: `crossdock login --oidc` does that, and hands
//! the ID token on. A provider that does not answer lets nobody in anew; tokens of the hub's own users go on.

pub mod jwt;
pub mod keys;

use std::path::PathBuf;

use proto::name::Name;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::jwt::{Claims, Refused};
use super::{Binding, Role};

/// Most groups of a token that are looked at.
const MAX_GROUPS: usize = 1_000;
/// Longest name of a user, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// Section `oidc` of `hub.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OidcConfig {
    /// The provider, to the letter as its tokens name it: `https://`, or `http://` on this machine.
    pub issuer: String,
    /// What the provider calls Crossdock; tokens must be for it.
    pub client_id: String,
    /// Certificate authorities of the provider, PEM. Default: those of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Claim with the name of the user.
    #[serde(default = "default_username")]
    pub username_claim: String,
    /// Claim with the groups of the user: a list, or one text.
    #[serde(default = "default_groups")]
    pub groups_claim: String,
    /// What `crossdock login --oidc` asks for.
    #[serde(default = "default_scopes")]
    pub scopes: Vec<String>,
    /// Which group may do what. Who is in none of them may do nothing.
    #[serde(default)]
    pub bindings: Vec<GroupBinding>,
}

fn default_username() -> String {
    "sub".into()
}
fn default_groups() -> String {
    "groups".into()
}
fn default_scopes() -> Vec<String> {
    ["openid", "profile", "email", "offline_access"].map(str::to_owned).into()
}

/// What a group may do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupBinding {
    /// The group, as the provider names it.
    pub group: String,
    /// Its role.
    pub role: Role,
    /// At these sites only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sites: Option<std::collections::BTreeSet<Name>>,
    /// For these apps only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apps: Option<std::collections::BTreeSet<Name>>,
}

/// Whether a URL is one over which keys and tokens may go: nobody on the way can read or change them.
#[must_use]
pub fn is_safe_url(text: &str) -> bool {
    let Ok(url) = text.parse::<reqwest::Url>() else { return false };
    let is_local = match url.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        None => false,
    };
    url.username().is_empty()
        && url.password().is_none()
        && (url.scheme() == "https" || (url.scheme() == "http" && is_local))
}

impl OidcConfig {
    /// What contradicts itself, with the mend.
    pub(crate) fn contradiction(&self) -> Result<(), String> {
        if !is_safe_url(&self.issuer) {
            return Err(format!("oidc.issuer {:.200} is no https:// URL; copy it from the provider", self.issuer));
        }
        if self.client_id.is_empty() || self.username_claim.is_empty() || self.groups_claim.is_empty() {
            return Err("oidc: clientId, usernameClaim and groupsClaim must not be empty".into());
        }
        if !self.scopes.iter().any(|scope| scope == "openid") {
            return Err("oidc.scopes lacks openid, without which there is no ID token".into());
        }
        let empty = |names: &Option<std::collections::BTreeSet<Name>>| names.as_ref().is_some_and(|n| n.is_empty());
        match self.bindings.iter().find(|b| b.group.is_empty() || empty(&b.sites) || empty(&b.apps)) {
            Some(bad) => Err(format!(
                "oidc.bindings: group {:?} is empty, or has an empty list of sites or apps; leave the list out for all",
                bad.group
            )),
            None => Ok(()),
        }
    }

    /// Whom claims stand for, with what that user may do. Such names have a colon, so none is that of a user with a
    /// token.
    ///
    /// # Errors
    /// When they name nobody.
    pub fn user_of(&self, claims: &Claims) -> Result<(String, Vec<Binding>), Refused> {
        let claim = &self.username_claim;
        let name = claims.all.get(claim).and_then(Value::as_str).unwrap_or_default();
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            return Err(Refused::Claim(format!("claim {claim} holds no name of a user")));
        }
        // Anybody may claim an address that nobody verified.
        if claim == "email" && claims.all.get("email_verified") != Some(&Value::Bool(true)) {
            return Err(Refused::Claim("the provider has not verified the e-mail address".into()));
        }
        let groups: Vec<&str> = match claims.all.get(&self.groups_claim) {
            Some(Value::Array(groups)) => groups.iter().take(MAX_GROUPS).filter_map(Value::as_str).collect(),
            Some(Value::String(group)) => vec![group],
            _ => vec![],
        };
        let bindings = self.bindings.iter().filter(|binding| groups.contains(&binding.group.as_str()));
        let bindings = bindings.map(|b| Binding { role: b.role, sites: b.sites.clone(), apps: b.apps.clone() });
        Ok((format!("oidc:{name}"), bindings.collect()))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    #[test]
    fn groups_give_roles_and_nothing_else_does() {
        let config: OidcConfig = serde_json::from_value(json!({
            "issuer": "https://id.example", "clientId": "crossdock", "usernameClaim": "email",
            "bindings": [{"group": "ops", "role": "operator", "sites": ["a"]}, {"group": "root", "role": "admin"}],
        }))
        .unwrap();
        config.contradiction().unwrap();
        let of = |all: Value| config.user_of(&Claims { until: Timestamp::UNIX_EPOCH, all });
        let (name, bindings) = of(json!({"email": "a@b", "email_verified": true, "groups": ["ops", 7, "x"]})).unwrap();
        assert_eq!((name.as_str(), bindings[0].to_string(), bindings.len()), ("oidc:a@b", "operator at a".into(), 1));
        assert!(of(json!({"email": "a@b", "email_verified": true})).unwrap().1.is_empty());
        let (_, bindings) = of(json!({"email": "a@b", "email_verified": true, "groups": "root"})).unwrap();
        assert_eq!(bindings, [Binding::of_fleet(Role::Admin)]);
        for bad in [
            json!({}),
            json!({"email": ""}),
            json!({"email": "a@b"}),
            json!({"email": "a\u{1b}b", "email_verified": true}),
        ] {
            assert!(of(bad.clone()).is_err(), "{bad}");
        }
        for (url, safe) in [
            ("https://id.example/x", true),
            ("http://127.0.0.1:1/x", true),
            ("http://[::1]:1", true),
            ("http://localhost", true),
            ("http://id.example", false),
            ("http://127.0.0.1.example", false),
            ("http://127.0.0.1@id.example", false),
            ("file:///etc/passwd", false),
            ("id.example", false),
        ] {
            assert_eq!(is_safe_url(url), safe, "{url}");
        }
    }
}
