//! Rollouts: what a hub accepts of one, what people may do to it while it goes on, and what it would do.
//!
//! All of a rollout's spec but `control` is fixed when it is created. What people do to it is told as an event:
//! who, what, and when.

use axum::{Json, body::Body, extract::State, http::Method};
use proto::object::{EventType, Rollout, RolloutPhase, RolloutSpec, rollout::Control};

use super::{
    Api, ApiError,
    auth::User,
    book::{Book, Page, reference},
    objects::{self, Checked, Resource},
};
use crate::{
    events,
    hub::Hub,
    planner::{
        check, drive,
        forecast::{Forecast, forecast},
    },
};

impl Resource for RolloutSpec {
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
            events::record(store, env, "Rollout", new.name(), EventType::Normal, reason, &text, &user.0).await;
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
async fn plan(State(api): State<Api>, body: Body) -> Result<Json<Forecast>, ApiError> {
    let mut object: Rollout = objects::read_object(body).await?;
    RolloutSpec::complete(&api.hub, &mut object)?;
    let snapshot = drive::current(&api.hub).await?;
    forecast(object.spec, snapshot, api.hub.env().wall.now()).map(Json).map_err(ApiError::invalid)
}

/// Adds what rollouts have besides other objects.
pub(super) fn add(mut book: Book) -> Book {
    let forecast = book.schema::<Forecast>();
    let page = Page::new("Show what a rollout would do, and start nothing")
        .body("application/json", reference("Rollout"))
        .answer(200, "Its waves, nodes and bytes", "application/json", forecast);
    book.on(Method::POST, "/api/v1/rolloutplans", plan, page)
}
