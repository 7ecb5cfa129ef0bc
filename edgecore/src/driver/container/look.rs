//! What the engine knows of an app's containers, as instances. Pure but for the asking.

use std::collections::HashMap;

use jiff::Timestamp;
use proto::{
    name::Name,
    object::{LastExit, ReleaseRef},
    release::Limits,
    units::Bytes,
};

use super::{
    api::{
        Api, ApiError,
        model::{Details, State},
    },
    create::{AGENT, APP, BOOT, DIGEST, NUMBER, VERSION},
};
use crate::driver::{Instance, STOPPED_ON_REQUEST};

/// End of the name of a container that was asked to stop.
pub const STOPPED: &str = ".stopped";

/// What the API calls the states of a container.
const STATES: [&str; 8] = ["created", "running", "paused", "restarting", "removing", "exited", "dead", "stopping"];

/// One container of an app.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its ID.
    pub id: String,
    /// Its name, without the slash.
    pub name: String,
    /// What of it is an instance; absent when it never ran, or ran in another boot.
    pub instance: Option<Instance>,
    /// Whether it runs.
    pub running: bool,
    /// Rises with each that is made of the app; 0 of one that an older agent made.
    pub number: u64,
    created: Option<String>,
    /// Its address in the engine's network.
    pub address: Option<std::net::IpAddr>,
}

/// All containers of this agent, by filters of labels: nothing else is ever touched.
pub async fn ours(api: &Api, agent: &str, app: Option<&Name>) -> Result<Vec<(Name, String)>, ApiError> {
    let mut labels = vec![format!("{AGENT}={agent}")];
    labels.extend(app.map(|app| format!("{APP}={app}")));
    let mut found = api.containers(&labels).await?;
    found.sort_by_key(|listed| std::cmp::Reverse(listed.created));
    let named = found.into_iter().filter_map(|listed| Some((listed.labels?.get(APP)?.parse().ok()?, listed.id)));
    Ok(named.collect())
}

/// A container in detail.
async fn details(api: &Api, id: &str) -> Result<Details, ApiError> {
    let details = api.container(id).await?;
    match STATES.contains(&details.state.status.as_str()) {
        true => Ok(details),
        // Podman, between two of them: what it says of its end is not the last word yet.
        false => Err(ApiError::Broken(format!("container {id} is {:?}, which is no state", details.state.status))),
    }
}

/// Whether a container runs; one that is gone does not.
pub async fn runs(api: &Api, id: &str) -> Result<bool, ApiError> {
    match details(api, id).await {
        Ok(details) => Ok(details.state.running),
        Err(e) if e.is_missing() => Ok(false),
        Err(e) => Err(e),
    }
}

/// An app's containers, the newest first.
pub async fn of(api: &Api, agent: &str, app: &Name, boot_id: &str) -> Result<Vec<Found>, ApiError> {
    let mut containers: Vec<Found> = vec![];
    for (_, id) in ours(api, agent, Some(app)).await? {
        match details(api, &id).await {
            Ok(details) => containers.push(found(id, &details, boot_id)),
            Err(e) if e.is_missing() => {} // gone meanwhile
            Err(e) => return Err(e),
        }
    }
    newest_first(&mut containers);
    Ok(containers)
}

/// What runs is what counts, whatever clocks said when it was made; of those that ended, the one that was made last.
fn newest_first(containers: &mut [Found]) {
    containers.sort_by(|one, other| {
        let key = |found: &Found| (found.running, found.number);
        key(other).cmp(&key(one)).then_with(|| other.created.cmp(&one.created))
    });
}

fn found(id: String, details: &Details, boot_id: &str) -> Found {
    let name = details.name.trim_start_matches('/').to_owned();
    let (state, running) = (&details.state, details.state.running);
    let labels = details.config.as_ref().and_then(|config| config.labels.clone()).unwrap_or_default();
    let limits =
        details.host_config.as_ref().and_then(|host| host.memory).and_then(|memory| u64::try_from(memory).ok());
    let limits = Limits { memory: limits.filter(|memory| *memory > 0).map(Bytes::new), ..Limits::default() };
    let of_this_boot = running || labels.get(BOOT).is_some_and(|boot| boot == boot_id);
    let instance = of_this_boot.then(|| instance(&labels, state, name.ends_with(STOPPED), &limits)).flatten();
    let networks = details.network_settings.as_ref().and_then(|settings| settings.networks.clone()).unwrap_or_default();
    let address = networks.values().find_map(|network| network.ip_address.as_deref()?.parse().ok());
    let number = labels.get(NUMBER).and_then(|number| number.parse().ok()).unwrap_or(0);
    Found { id, name, instance, running, number, created: details.created.clone(), address }
}

/// What a container says of an instance.
fn instance(labels: &HashMap<String, String>, state: &State, asked: bool, limits: &Limits) -> Option<Instance> {
    let release = ReleaseRef { version: labels.get(VERSION)?.parse().ok()?, digest: labels.get(DIGEST)?.parse().ok()? };
    let time = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
    let began = |at: &Timestamp| at.as_second() > 0; // the engine says year 1 of what never was
    if state.status == "created" {
        return None;
    }
    let started_at = time(&state.started_at).filter(began)?;
    let exit = (!state.running).then(|| {
        let at = time(&state.finished_at).filter(began).unwrap_or(started_at);
        let code = state.exit_code.and_then(|code| i32::try_from(code).ok());
        let message = match (asked, state.oom_killed, state.error.as_deref().filter(|error| !error.is_empty())) {
            (true, ..) => STOPPED_ON_REQUEST.to_owned(),
            (_, true, _) => match limits.memory {
                Some(limit) => format!("killed by the kernel: it needs more memory than its limit of {limit}"),
                None => "killed by the kernel for want of memory".to_owned(),
            },
            (_, _, Some(error)) => format!("the engine could not run it: {error}"),
            _ => code.map_or_else(|| "ended".to_owned(), |code| format!("exited with code {code}")),
        };
        LastExit { code, signal: None, at, message }
    });
    Some(Instance { release, started_at, exit })
}

#[cfg(test)]
impl Found {
    /// One that no engine has.
    pub fn pretend(number: u64, running: bool, instance: Option<Instance>) -> Found {
        let id = number.to_string();
        Found { id, name: String::new(), instance, running, number, created: None, address: None }
    }
}

#[cfg(test)]
mod tests {
    use proto::digest::Digest;

    use super::*;

    fn state(running: bool, code: i64) -> State {
        State {
            running,
            exit_code: Some(code),
            started_at: Some("2026-05-01T10:00:00.123456789Z".into()),
            finished_at: Some(if running { "0001-01-01T00:00:00Z".into() } else { "2026-05-01T10:00:09Z".into() }),
            ..State::default()
        }
    }

    #[test]
    fn what_runs_comes_first_though_its_clock_said_less() {
        let made = |number, running, created: &str| Found {
            id: created.into(),
            name: String::new(),
            instance: None,
            running,
            number,
            created: Some(created.into()),
            address: None,
        };
        let order = |mut found: Vec<Found>| -> Vec<String> {
            newest_first(&mut found);
            found.into_iter().map(|found| found.id).collect()
        };
        // The clock was a day ahead when the first one was made.
        let [ahead, right] = ["2026-05-02T10:00:00Z", "2026-05-01T10:00:00Z"];
        assert_eq!(order(vec![made(1, false, ahead), made(2, true, right)]), [right, ahead]);
        assert_eq!(order(vec![made(1, false, ahead), made(2, false, right)]), [right, ahead], "both ended");
        assert_eq!(
            order(vec![made(0, false, ahead), made(0, true, right)]),
            [right, ahead],
            "an older agent made both"
        );
        assert_eq!(order(vec![made(0, false, right), made(0, false, ahead)]), [ahead, right]);
    }

    #[test]
    fn an_end_is_told_as_it_was() {
        let digest = Digest::of(b"x").to_string();
        let labels = HashMap::from([(VERSION.to_owned(), "1.0.0".to_owned()), (DIGEST.to_owned(), digest)]);
        let limits = Limits { memory: Some(Bytes::new(1 << 20)), ..Limits::default() };
        let end = |state: &State, asked| instance(&labels, state, asked, &limits).unwrap().exit;
        assert_eq!(end(&state(true, 0), false), None);
        let exit = end(&state(false, 3), false).unwrap();
        assert_eq!(
            (exit.code, exit.message.as_str(), exit.at.to_string().as_str()),
            (Some(3), "exited with code 3", "2026-05-01T10:00:09Z")
        );
        assert_eq!(end(&state(false, 143), true).unwrap().message, STOPPED_ON_REQUEST);
        let oom = State { oom_killed: true, ..state(false, 137) };
        assert!(end(&oom, false).unwrap().message.contains("limit of 1"));
        let never = State { status: "created".into(), ..state(false, 0) };
        assert_eq!(instance(&labels, &never, false, &limits), None);
        assert_eq!(instance(&HashMap::new(), &state(true, 0), false, &limits), None);
    }
}
