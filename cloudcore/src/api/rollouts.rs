//! Rollouts: what a hub accepts of one, what people may do to it while it goes on, and what it would do.
//!
//! All of a rollout's spec but `control` is fixed when it is created. What people do to it is told as an event:
//! who, what, and when.

use axum::{Extension, Json, body::Body, extract::State, http::Method};
use proto::object::{EventType, NodeSpec, Rollout, RolloutPhase, RolloutSpec, rollout::Control};

use super::{
    Api, ApiError,
    auth::User,
    book::{Book, Page, reference},
    guard::Rule,
    objects::{self, Checked, Resource},
};
use crate::{
    access::{
        self, Verb,
        places::{self, Places, Reach},
    },
    events,
    hub::Hub,
    planner::{
        check, drive,
        forecast::{Forecast, forecast},
    },
};

impl Resource for RolloutSpec {
    const RESOURCE: access::Resource = access::Resource::Rollouts;

    fn tell(rollout: &Rollout) -> String {
        format!("{} to {}", rollout.spec.what(), rollout.spec.selector)
    }

    /// One that takes another back is for the nodes of that one, whatever it selects itself.
    async fn places(hub: &Hub, rollout: &Rollout) -> Places {
        let own = places::of_rollout(&rollout.spec);
        let Some(undone) = &rollout.spec.undoes else { return own };
        match hub.store().get::<RolloutSpec>(undone).await {
            Ok(Some(undone)) => own.and(places::of_rollout(&undone.spec)),
            _ => Places { sites: Reach::Whole, ..own },
        }
    }

    /// Who may see one of its sites sees it; one that names no site may be of any.
    async fn seen_at(hub: &Hub, rollout: &Rollout) -> Places {
        let Places { sites, apps } = Self::places(hub, rollout).await;
        let sites = if sites == Reach::Whole { Reach::Any } else { sites };
        // Restarts of nodes are for whoever sees the nodes.
        let apps = if rollout.spec.reboot { Reach::Any } else { apps };
        Places { sites, apps }
    }

    /// Only the nodes of sites that may be seen, and nothing said about the others.
    async fn trim(hub: &Hub, user: &User, mut rollout: Rollout) -> Rollout {
        let nodes = hub.store().list::<NodeSpec>(None).await.map(|list| list.items).unwrap_or_default();
        let mut seen = std::collections::BTreeSet::new();
        for node in &nodes {
            if user.sees(access::Resource::Nodes, &NodeSpec::seen_at(hub, node).await) {
                seen.insert(node.name());
            }
        }
        let all = rollout.status.nodes.len();
        rollout.status.nodes.retain(|name, _| seen.contains(name.as_str()));
        if rollout.status.nodes.len() < all {
            // Sentences for people name nodes.
            rollout.status.message.clear();
            rollout.status.waves.iter_mut().for_each(|wave| wave.message.clear());
        }
        rollout
    }

    fn complete(hub: &Hub, new: &mut Rollout) -> Checked {
        hub.config().rollouts.fill_in(&mut new.spec).map_err(ApiError::invalid)
    }

    async fn check_create(hub: &Hub, new: &Rollout) -> Checked {
        if new.spec.control.aborted {
            return Err(ApiError::invalid("control.aborted: a rollout that is aborted at its start does nothing"));
        }
        let snapshot = drive::current(hub).await?;
        check::validate(&new.spec, &snapshot).map_err(ApiError::invalid)?;
        check::is_new_to_nodes(new, &snapshot).map_err(ApiError::invalid)
    }

    async fn check_update(_: &Hub, old: &Rollout, new: &Rollout) -> Checked {
        let steered = RolloutSpec { control: old.spec.control.clone(), ..new.spec.clone() };
        if steered != old.spec {
            let text = "what a rollout does is fixed when it starts; start a new one, which supersedes it. Only \
                        control may change";
            return Err(ApiError::conflict(text));
        }
        check_control(old, &new.spec.control)
    }

    async fn written(hub: &Hub, old: Option<&Rollout>, new: &Rollout, user: &User) {
        let what = new.spec.what();
        let told = match old {
            None => vec![("Created", format!("{what} to {}", new.spec.selector))],
            Some(old) => changes(&old.spec.control, &new.spec.control),
        };
        for (reason, text) in told {
            let (store, env) = (hub.store(), hub.env());
            events::record(store, env, "Rollout", new.name(), EventType::Normal, reason, &text, &user.name).await;
        }
    }
}

fn check_control(old: &Rollout, new: &Control) -> Checked {
    let before = &old.spec.control;
    if before == new {
        return Ok(());
    }
    let phase = old.status.phase;
    let name = old.name();
    // One that succeeded still begins nodes that come back or join, so it can be paused and ended.
    if phase.is_final() && phase != RolloutPhase::Succeeded {
        return Err(ApiError::conflict(format!("rollout {name} is {phase}; start a new one")));
    }
    if before.aborted && !new.aborted {
        return Err(ApiError::conflict(format!(
            "rollout {name} was aborted, which is not taken back; start a new one"
        )));
    }
    if new.resumed < before.resumed || new.retries < before.retries {
        return Err(ApiError::conflict("control.resumed and control.retries count, and never fall"));
    }
    let waves = old.status.waves.iter().map(|wave| &wave.name);
    match new.approved.iter().find(|name| !waves.clone().any(|wave| wave == *name)) {
        Some(unknown) if !old.status.waves.is_empty() => {
            let known: Vec<&str> = waves.map(String::as_str).collect();
            Err(ApiError::invalid(format!("it has no wave {unknown:.80}; there are {}", known.join(", "))))
        }
        _ => Ok(()),
    }
}

/// What somebody did, as events tell it.
fn changes(old: &Control, new: &Control) -> Vec<(&'static str, String)> {
    let mut told = vec![];
    if new.aborted && !old.aborted {
        told.push(("Aborted", "nodes that have not begun stay with what they have".to_owned()));
    }
    if new.paused != old.paused {
        told.push(if new.paused { ("Paused", "nothing more begins".into()) } else { ("Resumed", String::new()) });
    }
    if new.resumed > old.resumed && new.paused == old.paused {
        told.push(("Resumed", "what failed so far is forgiven".into()));
    }
    if new.retries > old.retries {
        told.push(("Retried", "failed nodes try once more".into()));
    }
    told.extend(new.approved.difference(&old.approved).map(|wave| ("Approved", format!("wave {wave}"))));
    told
}

/// `POST /rolloutplans`: what a rollout would do.
async fn plan(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    body: Body,
) -> Result<Json<Forecast>, ApiError> {
    let mut object: Rollout = objects::read_object(body).await?;
    RolloutSpec::complete(&api.hub, &mut object)?;
    // It shows every node that would be concerned.
    let places = RolloutSpec::places(&api.hub, &object).await;
    user.may(Verb::Create, access::Resource::RolloutPlans, &places)?;
    let snapshot = drive::current(&api.hub).await?;
    forecast(object.spec, snapshot, api.hub.env().wall.now()).map(Json).map_err(ApiError::invalid)
}

/// Adds what rollouts have besides other objects.
pub(super) fn add(mut book: Book) -> Book {
    let forecast = book.schema::<Forecast>();
    let page = Page::new("Show what a rollout would do, and start nothing")
        .body("application/json", reference("Rollout"))
        .answer(200, "Its waves, nodes and bytes", "application/json", forecast);
    book.on(Method::POST, "/api/v1/rolloutplans", plan, Rule::May(Verb::Create, access::Resource::RolloutPlans), page)
}
