//! Which sites and apps something concerns, and whether somebody with some bindings may do it in all of them.

use std::collections::BTreeSet;

use proto::{
    name::Name,
    object::{Node, RolloutSpec},
    selector::Selector,
};

use super::{Binding, Denied, Resource, Scope, Verb, allowed};

/// One side of where something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// It has no such side.
    Any,
    /// All of the fleet, or nobody knows which part.
    Whole,
    /// These.
    These(BTreeSet<Name>),
}

impl Reach {
    /// One alone.
    #[must_use]
    pub fn one(name: Name) -> Reach {
        Reach::These([name].into())
    }

    fn scopes(&self) -> Vec<Scope<'_>> {
        match self {
            Reach::Any => vec![Scope::Any],
            // Nothing that is named is nothing that is known.
            Reach::These(names) if names.is_empty() => vec![Scope::Whole],
            Reach::Whole => vec![Scope::Whole],
            Reach::These(names) => names.iter().map(Scope::One).collect(),
        }
    }

    fn and(self, other: Reach) -> Reach {
        match (self, other) {
            (Reach::Whole, _) | (_, Reach::Whole) => Reach::Whole,
            (Reach::Any, other) | (other, Reach::Any) => other,
            (Reach::These(mut names), Reach::These(others)) => {
                names.extend(others);
                Reach::These(names)
            }
        }
    }
}

/// Where something is: at which sites, of which apps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// At these sites.
    pub sites: Reach,
    /// Of these apps.
    pub apps: Reach,
}

impl Places {
    /// The whole fleet: what is not known to be in a part of it.
    #[must_use]
    pub fn whole() -> Places {
        Places { sites: Reach::Whole, apps: Reach::Whole }
    }

    /// At a site, with all of its apps.
    #[must_use]
    pub fn site(site: Name) -> Places {
        Places { sites: Reach::one(site), apps: Reach::Whole }
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Places) -> Places {
        Places { sites: self.sites.and(other.sites), apps: self.apps.and(other.apps) }
    }
}

/// Whether somebody may do it in every place.
///
/// # Errors
/// Names the first place where not.
pub fn may(bindings: &[Binding], verb: Verb, kind: Resource, places: &Places) -> Result<(), Denied> {
    for site in places.sites.scopes() {
        for app in places.apps.scopes() {
            allowed(bindings, verb, kind, site, app)?;
        }
    }
    Ok(())
}

/// Whether somebody may read what is in these places: one of them is enough.
#[must_use]
pub fn sees(bindings: &[Binding], kind: Resource, places: &Places) -> bool {
    let (sites, apps) = (places.sites.scopes(), places.apps.scopes());
    sites.iter().any(|site| apps.iter().any(|app| allowed(bindings, Verb::Get, kind, *site, *app).is_ok()))
}

/// What a rollout concerns, by its spec alone. Nodes that join later take part in it when its selector names them,
/// so what counts is which sites the selector names, not where its nodes stand now.
#[must_use]
pub fn of_rollout(spec: &RolloutSpec) -> Places {
    let apps = if spec.reboot { Reach::Whole } else { Reach::one(spec.app.clone()) };
    Places { sites: sites_of(&spec.selector), apps }
}

/// The sites that a selector names; the whole fleet when it names none.
#[must_use]
pub fn sites_of(selector: &Selector) -> Reach {
    let Some(values) = selector.values_of("site") else { return Reach::Whole };
    // A value that is no name is no site.
    Reach::These(values.into_iter().filter_map(|value| value.parse().ok()).collect())
}

/// What a change of a node concerns: a single app of it, or the node as a whole.
#[must_use]
pub fn of_node_change(old: &Node, new: &Node) -> Places {
    let sites = Reach::one(old.spec.site.clone()).and(Reach::one(new.spec.site.clone()));
    let (before, after) = (&old.spec, &new.spec);
    let is_whole = before.site != after.site
        || before.cordoned != after.cordoned
        || before.drained != after.drained
        || before.reboot != after.reboot
        || before.allocation != after.allocation
        || before.reserved_for != after.reserved_for
        || old.metadata.labels != new.metadata.labels
        || old.metadata.annotations != new.metadata.annotations;
    let mut apps: BTreeSet<Name> = before.pinned.symmetric_difference(&after.pinned).cloned().collect();
    let all = before.apps.keys().chain(after.apps.keys());
    apps.extend(all.filter(|app| before.apps.get(*app) != after.apps.get(*app)).cloned());
    let apps = if is_whole {
        Reach::Whole
    } else if apps.is_empty() {
        Reach::Any
    } else {
        Reach::These(apps)
    };
    Places { sites, apps }
}

#[cfg(test)]
mod tests {
    use proto::{
        digest::Digest,
        object::{AssignedApp, NodeSpec, Object},
    };

    use super::*;
    use crate::access::Role;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn these(names: &[&str]) -> Reach {
        Reach::These(names.iter().map(|n| name(n)).collect())
    }

    #[test]
    fn a_rollout_is_where_its_selector_says() {
        for (text, sites) in [
            ("site=a", these(&["a"])),
            ("site in (a,b),gpu", these(&["a", "b"])),
            ("site in (a,b),site=b", these(&["b"])),
            ("site=a,site=b", these(&[])),
            ("all", Reach::Whole),
            ("site!=a", Reach::Whole),
            ("site", Reach::Whole),
            ("name=n1", Reach::Whole),
            ("line=site", Reach::Whole),
        ] {
            assert_eq!(sites_of(&text.parse().unwrap()), sites, "{text}");
        }
        let reboot = RolloutSpec::reboot("site=a".parse().unwrap());
        assert_eq!(of_rollout(&reboot), Places { sites: these(&["a"]), apps: Reach::Whole });
        let restart = RolloutSpec::restart(name("x"), "all".parse().unwrap());
        assert_eq!(of_rollout(&restart), Places { sites: Reach::Whole, apps: these(&["x"]) });
    }

    #[test]
    fn every_field_of_a_node_that_changes_counts() {
        let old: Node = Object::new(name("n1"), NodeSpec::new(name("a")));
        let changed = |change: &dyn Fn(&mut Node)| {
            let mut new = old.clone();
            change(&mut new);
            of_node_change(&old, &new)
        };
        let app = |digest: &[u8]| AssignedApp {
            version: "1".parse().unwrap(),
            digest: Digest::of(digest),
            rollout: None,
            order: Default::default(),
        };
        assert_eq!(changed(&|_| {}).apps, Reach::Any);
        assert_eq!(changed(&|n| n.spec.pinned = [name("x")].into()).apps, these(&["x"]));
        assert_eq!(changed(&|n| drop(n.spec.apps.insert(name("y"), app(b"1")))).apps, these(&["y"]));
        for whole in [
            &(|n: &mut Node| n.spec.cordoned = true) as &dyn Fn(&mut Node),
            &|n| n.spec.drained = true,
            &|n| n.spec.reboot = Some("r".into()),
            &|n| n.spec.allocation.system_reserved.cpu_millis = Some(1),
            &|n| n.spec.reserved_for = [name("x")].into(),
            &|n| drop(n.metadata.labels.insert("k".into(), "v".into())),
            &|n| drop(n.metadata.annotations.insert("k".into(), "v".into())),
        ] {
            assert_eq!(changed(whole), Places { sites: these(&["a"]), apps: Reach::Whole });
        }
        let moved = changed(&|n| n.spec.site = name("b"));
        assert_eq!(moved, Places { sites: these(&["a", "b"]), apps: Reach::Whole });
    }

    #[test]
    fn to_do_it_takes_every_place_and_to_see_it_one() {
        let there = [Binding { role: Role::Operator, sites: Some([name("a")].into()), apps: None }];
        let both = Places { sites: these(&["a", "b"]), apps: these(&["x"]) };
        assert!(may(&there, Verb::Update, Resource::Rollouts, &both).is_err());
        assert!(sees(&there, Resource::Rollouts, &both));
        let nowhere = Places { sites: these(&[]), apps: Reach::Any };
        assert!(may(&there, Verb::Update, Resource::Nodes, &nowhere).is_err());
        assert!(!sees(&there, Resource::Nodes, &Places::whole()));
    }
}
