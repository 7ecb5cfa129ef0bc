//! Who may do what: roles, bindings, and the one pure function that decides, [`allowed`].
//!
//! A user has bindings; each gives a [`Role`], for the whole fleet or for some sites and some apps. A role may do all
//! that the roles before it may. What a role needs to have, by kind of resource:
//!
//! | kind | get, list, watch | create | update | delete | a binding to some sites counts | to some apps |
//! |---|---|---|---|---|---|---|
//! | `nodes` | viewer | admin | operator | admin | for nodes there | to change that app on them (version, pin) |
//! | `sites` | viewer | admin | admin | admin | for these sites | to read |
//! | `releases` | viewer | | | | | for releases of the app |
//! | `rollouts` (restarts and reboots too) | viewer | operator | operator | operator | when the selector names them | when it is of the app |
//! | `rolloutplans` | | viewer | | | as rollouts | as rollouts |
//! | `jointokens` | operator | operator | | operator | for boxes there | no |
//! | `events` | viewer | | | | as what they are about | as what they are about |
//! | `logs` | viewer | | | | for nodes there | for output of the app |
//! | `exec` | | operator | | | for nodes there | in the app |
//! | `streams` | viewer | | | | for records from there | no: a stream holds what all apps wrote |
//! | `blobs` | viewer (list: is it there) | releaser | | | yes | to ask and to upload, not to read |
//! | `metadata` | viewer | releaser | | | yes | to publish releases of the app, not to read |
//! | `director` | viewer | admin | | | no | no |
//! | `webhooks`, `users`, `audit` | admin | admin | admin | admin | no | no |
//!
//! Releases are signed elsewhere: a releaser hands them to the hub, and cannot make one. Reading webhooks takes an
//! admin because addresses of chat services are secrets.
//!
//! [`places`] says which sites and apps an object concerns, `users` keeps who has which token, [`oidc`] believes
//! ID tokens of a provider. Asked by `crate::api`
//! alone: each of its routes names a verb and a kind, or it is not built.

pub mod oidc;
pub mod places;
pub mod users;

use std::{collections::BTreeSet, fmt, str::FromStr};

use proto::name::Name;
use serde::{Deserialize, Serialize};

/// How much somebody may do. Each may do what the one before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Steers: rollouts, restarts, drains, join tokens.
    Operator,
    /// Hands signed releases to the hub.
    Releaser,
    /// Everything, users included.
    Admin,
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Read one.
    Get,
    /// Read many.
    List,
    /// Follow changes.
    Watch,
    /// Make one.
    Create,
    /// Change one.
    Update,
    /// Take one away.
    Delete,
}

/// What it is done to: the plurals of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the table above says what each is
pub enum Resource {
    Nodes,
    Sites,
    Releases,
    Rollouts,
    RolloutPlans,
    JoinTokens,
    Events,
    Logs,
    Exec,
    Streams,
    Blobs,
    Metadata,
    Director,
    Webhooks,
    Users,
    Audit,
}

impl Verb {
    /// All of them.
    pub const ALL: [Verb; 6] = [Verb::Get, Verb::List, Verb::Watch, Verb::Create, Verb::Update, Verb::Delete];

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Delete => "delete",
        }
    }

    const fn reads(self) -> bool {
        matches!(self, Verb::Get | Verb::List | Verb::Watch)
    }
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 16] = [
        Resource::Nodes,
        Resource::Sites,
        Resource::Releases,
        Resource::Rollouts,
        Resource::RolloutPlans,
        Resource::JoinTokens,
        Resource::Events,
        Resource::Logs,
        Resource::Exec,
        Resource::Streams,
        Resource::Blobs,
        Resource::Metadata,
        Resource::Director,
        Resource::Webhooks,
        Resource::Users,
        Resource::Audit,
    ];

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Resource::Nodes => "nodes",
            Resource::Sites => "sites",
            Resource::Releases => "releases",
            Resource::Rollouts => "rollouts",
            Resource::RolloutPlans => "rolloutplans",
            Resource::JoinTokens => "jointokens",
            Resource::Events => "events",
            Resource::Logs => "logs",
            Resource::Exec => "exec",
            Resource::Streams => "streams",
            Resource::Blobs => "blobs",
            Resource::Metadata => "metadata",
            Resource::Director => "director",
            Resource::Webhooks => "webhooks",
            Resource::Users => "users",
            Resource::Audit => "audit",
        }
    }
}

/// A word that is none of those known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is no {what}; there are {known}")]
pub struct UnknownWord {
    what: &'static str,
    word: String,
    known: String,
}

fn unknown(what: &'static str, word: &str, known: &[&str]) -> UnknownWord {
    UnknownWord { what, word: word.chars().take(40).collect(), known: known.join(", ") }
}

impl FromStr for Verb {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Verb, UnknownWord> {
        let found = Verb::ALL.into_iter().find(|verb| verb.as_str() == text);
        found.ok_or_else(|| unknown("verb", text, &Verb::ALL.map(Verb::as_str)))
    }
}

impl FromStr for Resource {
    type Err = UnknownWord;
    /// Singular or plural, as kubectl takes them.
    fn from_str(text: &str) -> Result<Resource, UnknownWord> {
        let fits = |kind: &Resource| kind.as_str() == text || kind.as_str().strip_suffix('s') == Some(text);
        let found = Resource::ALL.into_iter().find(fits);
        found.ok_or_else(|| unknown("kind", text, &Resource::ALL.map(Resource::as_str)))
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Releaser => "releaser",
            Role::Admin => "admin",
        })
    }
}

/// A role, and where it holds. An absent bound is none; an empty one lets nothing through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// The role.
    pub role: Role,
    /// At these sites only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sites: Option<BTreeSet<Name>>,
    /// For these apps only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apps: Option<BTreeSet<Name>>,
}

impl Binding {
    /// A role for the whole fleet.
    #[must_use]
    pub fn of_fleet(role: Role) -> Binding {
        Binding { role, sites: None, apps: None }
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &BTreeSet<Name>| names.iter().map(Name::as_str).collect::<Vec<_>>().join(",");
        write!(f, "{}", self.role)?;
        if let Some(sites) = &self.sites {
            write!(f, " at {}", list(sites))?;
        }
        if let Some(apps) = &self.apps {
            write!(f, " for {}", list(apps))?;
        }
        Ok(())
    }
}

/// One side of where something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Wherever it may be: whether there is any place at all.
    Any,
    /// The whole fleet.
    Whole,
    /// This site, or this app.
    One(&'a Name),
}

/// Why somebody may not: what is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    verb: Verb,
    kind: Resource,
    /// `None`: nobody may.
    role: Option<Role>,
    place: String,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Denied { verb, kind, role, place } = self;
        match role {
            Some(role) => write!(f, "to {verb} {kind} takes role {role}{place}"),
            None => write!(f, "there is no way to {verb} {kind}"),
        }
    }
}

/// What a verb on a kind takes.
struct Need {
    role: Role,
    /// Whether a binding to some sites counts, and to some apps.
    by_site: bool,
    by_app: bool,
}

/// The table of the module.
fn need(verb: Verb, kind: Resource) -> Option<Need> {
    use Resource::{
        Audit, Blobs, Director, Events, Exec, JoinTokens, Logs, Metadata, Nodes, Releases, RolloutPlans, Rollouts,
        Sites, Streams, Users, Webhooks,
    };
    let (role, by_site, by_app) = match (kind, verb) {
        (Nodes | Sites | Releases | Rollouts | Events | Logs, verb) if verb.reads() => (Role::Viewer, true, true),
        (Nodes, Verb::Update) => (Role::Operator, true, true),
        (Nodes | Sites, _) => (Role::Admin, true, true),
        (Rollouts, _) => (Role::Operator, true, true),
        (Exec, Verb::Create) => (Role::Operator, true, true),
        (RolloutPlans, Verb::Create) => (Role::Viewer, true, true),
        (JoinTokens, Verb::Update) => return None,
        (JoinTokens, _) => (Role::Operator, true, false),
        (Streams, verb) if verb.reads() => (Role::Viewer, true, false),
        (Blobs, Verb::List) => (Role::Viewer, true, true),
        (Blobs | Metadata, Verb::Get) => (Role::Viewer, true, false),
        (Blobs | Metadata, Verb::Create) => (Role::Releaser, true, true),
        (Director, Verb::Get) => (Role::Viewer, false, false),
        (Director, Verb::Create) => (Role::Admin, false, false),
        (Webhooks | Users | Audit, _) => (Role::Admin, false, false),
        (Releases | Events | Logs | Exec | RolloutPlans | Streams | Blobs | Metadata | Director, _) => return None,
    };
    Some(Need { role, by_site, by_app })
}

/// Whether somebody with these bindings may do `verb` to `kind` at `site` with `app`.
///
/// # Errors
/// Says what is missing.
pub fn allowed(
    bindings: &[Binding],
    verb: Verb,
    kind: Resource,
    site: Scope<'_>,
    app: Scope<'_>,
) -> Result<(), Denied> {
    let Some(need) = need(verb, kind) else {
        return Err(Denied { verb, kind, role: None, place: String::new() });
    };
    // Where a bound does not count, only who has none fits.
    let site = if need.by_site { site } else { Scope::Whole };
    let app = if need.by_app { app } else { Scope::Whole };
    let fits =
        |b: &Binding| b.role >= need.role && is_within(b.sites.as_ref(), site) && is_within(b.apps.as_ref(), app);
    if bindings.iter().any(fits) {
        return Ok(());
    }
    Err(Denied { verb, kind, role: Some(need.role), place: format!("{}{}", at("site", site), at("app", app)) })
}

fn is_within(bound: Option<&BTreeSet<Name>>, scope: Scope<'_>) -> bool {
    match (bound, scope) {
        (None, _) => true,
        (Some(names), Scope::Any) => !names.is_empty(),
        (Some(_), Scope::Whole) => false,
        (Some(names), Scope::One(name)) => names.contains(name),
    }
}

fn at(what: &str, scope: Scope<'_>) -> String {
    match scope {
        Scope::Any => String::new(),
        Scope::Whole => format!(", for all {what}s"),
        Scope::One(name) => format!(", for {what} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn bound(role: Role, sites: Option<&[&str]>, apps: Option<&[&str]>) -> Binding {
        let set = |names: &[&str]| names.iter().map(|n| name(n)).collect();
        Binding { role, sites: sites.map(set), apps: apps.map(set) }
    }

    #[test]
    fn a_role_may_do_what_the_one_before_it_may() {
        let roles = [Role::Viewer, Role::Operator, Role::Releaser, Role::Admin];
        let may =
            |role, verb, kind| allowed(&[Binding::of_fleet(role)], verb, kind, Scope::Whole, Scope::Whole).is_ok();
        for (verb, kind) in Verb::ALL.into_iter().flat_map(|verb| Resource::ALL.map(|kind| (verb, kind))) {
            let can = roles.map(|role| may(role, verb, kind));
            assert!(can.is_sorted(), "{verb} {kind}: {can:?}");
            assert!(allowed(&[], verb, kind, Scope::Any, Scope::Any).is_err(), "{verb} {kind}");
            assert_eq!((verb.as_str().parse(), kind.as_str().parse()), (Ok(verb), Ok(kind)));
        }
        for (role, verb, kind) in [
            (Role::Viewer, Verb::Watch, Resource::Nodes),
            (Role::Viewer, Verb::Create, Resource::RolloutPlans),
            (Role::Operator, Verb::Create, Resource::Rollouts),
            (Role::Operator, Verb::Create, Resource::Exec),
            (Role::Operator, Verb::Update, Resource::Nodes),
            (Role::Operator, Verb::List, Resource::JoinTokens),
            (Role::Releaser, Verb::Create, Resource::Blobs),
            (Role::Releaser, Verb::Create, Resource::Metadata),
            (Role::Admin, Verb::Delete, Resource::Nodes),
            (Role::Admin, Verb::List, Resource::Webhooks),
            (Role::Admin, Verb::Create, Resource::Users),
            (Role::Admin, Verb::List, Resource::Audit),
        ] {
            let least = roles.into_iter().find(|role| may(*role, verb, kind));
            assert_eq!(least, Some(role), "{verb} {kind}");
        }
        assert!(!may(Role::Admin, Verb::Create, Resource::Releases), "releases come signed, as metadata");
    }

    #[test]
    fn bounds_hold_and_an_empty_one_lets_nothing_through() {
        let (a, b, x) = (name("a"), name("b"), name("x"));
        let may = |bindings: &[Binding], verb, kind, site, app| allowed(bindings, verb, kind, site, app).is_ok();
        let there = [bound(Role::Operator, Some(&["a"]), None)];
        assert!(may(&there, Verb::Create, Resource::Rollouts, Scope::One(&a), Scope::One(&x)));
        assert!(may(&there, Verb::Create, Resource::Rollouts, Scope::Any, Scope::Whole));
        for site in [Scope::One(&b), Scope::Whole] {
            assert!(!may(&there, Verb::Create, Resource::Rollouts, site, Scope::One(&x)), "{site:?}");
        }
        // Neither half alone is enough, and two bindings do not add up to what neither gives.
        let both = [bound(Role::Operator, Some(&["a"]), Some(&["x"])), bound(Role::Viewer, None, None)];
        assert!(may(&both, Verb::Update, Resource::Rollouts, Scope::One(&a), Scope::One(&x)));
        assert!(!may(&both, Verb::Update, Resource::Rollouts, Scope::One(&b), Scope::One(&x)));
        assert!(!may(&both, Verb::Update, Resource::Rollouts, Scope::One(&a), Scope::Whole));
        // What is not divided takes a binding to the whole fleet, also where nobody names a place.
        for kind in [Resource::Users, Resource::Audit, Resource::Webhooks] {
            assert!(!may(&[bound(Role::Admin, Some(&["a"]), None)], Verb::List, kind, Scope::Any, Scope::Any));
        }
        let app = [bound(Role::Releaser, None, Some(&["x"]))];
        assert!(may(&app, Verb::Create, Resource::Metadata, Scope::Any, Scope::One(&x)));
        assert!(!may(&app, Verb::Get, Resource::Blobs, Scope::Any, Scope::Any));
        assert!(!may(&app, Verb::List, Resource::Streams, Scope::Any, Scope::Any));
        let none = [bound(Role::Admin, Some(&[]), None)];
        assert!(!may(&none, Verb::Get, Resource::Nodes, Scope::Any, Scope::Any));
    }

    #[test]
    fn what_is_missing_is_said() {
        let denied = allowed(&[], Verb::Delete, Resource::Nodes, Scope::One(&name("hz-01")), Scope::Whole).unwrap_err();
        assert_eq!(denied.to_string(), "to delete nodes takes role admin, for site hz-01, for all apps");
        let denied = allowed(&[], Verb::Update, Resource::Releases, Scope::Any, Scope::Any).unwrap_err();
        assert_eq!(denied.to_string(), "there is no way to update releases");
        assert!("pods".parse::<Resource>().unwrap_err().to_string().contains("rollouts"));
        assert_eq!("node".parse(), Ok(Resource::Nodes));
    }
}
