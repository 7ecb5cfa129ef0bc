//! What a staged change adds and removes, in words that a signer can judge. Called by the command line
//! before a signature is made.

mod workload;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proto::{
    digest::Digest,
    release::Manifest,
    tuf::{
        PublicKey, RoleName, Target,
        json::Json,
        schema::{RootMeta, TargetsMeta},
    },
};

use super::{
    provenance,
    repository::Repository,
    rotate::{Duty, label},
    secrets::{self, Pins},
    staging::readable,
};

/// How the targets change, one line a change.
#[must_use]
pub fn targets(repository: &Repository, old: Option<&TargetsMeta>, new: &TargetsMeta) -> Vec<String> {
    let (before, after) = (old.map(readable).unwrap_or_default(), readable(new));
    let mut lines = vec![];
    for (path, target) in &after {
        let name = format!("{}@{}", target.custom.app, target.custom.version);
        match before.get(path) {
            None => {
                lines.push(format!("adds     {name}, {}", facts(target)));
                lines.extend(content(repository, &before, target));
            }
            Some(old) if old != target && old.digest == target.digest => {
                lines.push(format!("reissues {name}, {}", facts(target)));
                lines.extend(differences(old, target));
            }
            Some(old) if old != target => {
                lines.push(format!("CHANGES  {name}, was {} -> {}", old.digest.short(), facts(target)));
                lines.extend(differences(old, target));
                lines.extend(content(repository, &before, target));
            }
            Some(_) if old.is_some_and(|old| old.targets.get(*path) != new.targets.get(*path)) => {
                lines.push(format!("CHANGES  {name} in fields that this version does not know: do not sign blindly"));
            }
            Some(_) => {}
        }
    }
    for (path, target) in &before {
        if !after.contains_key(path) {
            let Target { custom, digest, .. } = target;
            let name = format!("{}@{}", custom.app, custom.version);
            lines.push(format!("WITHDRAWS {name}, counter {}, manifest {}", custom.release_counter, digest.short()));
        }
    }
    for path in new.targets.keys().filter(|path| !after.contains_key(path.as_str())) {
        lines.push(format!("lists    {}, which is not a release that this version understands", plain(path)));
    }
    for path in old.iter().flat_map(|old| old.targets.keys()) {
        if !before.contains_key(path.as_str()) && !new.targets.contains_key(path) {
            lines.push(format!("removes  {}, which is not a release that this version understands", plain(path)));
        }
    }
    lines.extend(unknown(old.map(|old| &old.other), &new.other));
    lines.push(expires(old.map(|old| old.expires), new.expires));
    lines
}

/// What of a listed release's signed facts is another than before.
fn differences(old: &Target, new: &Target) -> Vec<String> {
    let (was, is) = (&old.custom, &new.custom);
    let hardware = |set: &BTreeSet<String>| {
        if set.is_empty() {
            "any".to_owned()
        } else {
            set.iter().map(|class| plain(class)).collect::<Vec<_>>().join(", ")
        }
    };
    let mut lines = vec![];
    if was.release_counter != is.release_counter {
        let lower = if is.release_counter < was.release_counter { ", LOWER: nodes will refuse it" } else { "" };
        lines.push(format!("         counter {} -> {}{lower}", was.release_counter, is.release_counter));
    }
    if was.hardware != is.hardware {
        lines.push(format!("         HARDWARE {} -> {}", hardware(&was.hardware), hardware(&is.hardware)));
    }
    if was.issued_at != is.issued_at {
        let time = |at: &Option<Timestamp>| at.map_or_else(|| "never said".to_owned(), |at| at.to_string());
        lines.push(format!("         issued {} -> {}", time(&was.issued_at), time(&is.issued_at)));
    }
    lines
}

/// What somebody else wrote, without what would move a terminal's cursor.
fn plain(text: &str) -> String {
    text.escape_debug().to_string()
}

fn facts(target: &Target) -> String {
    let hardware = target.custom.hardware.iter().map(|class| plain(class)).collect::<Vec<_>>().join(", ");
    let hardware = if hardware.is_empty() { "any hardware".to_owned() } else { hardware };
    let issued = target.custom.issued_at.map(|at| format!(", issued {at}")).unwrap_or_default();
    format!("counter {}, manifest {}, {hardware}{issued}", target.custom.release_counter, target.digest.short())
}

/// What a release contains, against the newest listed release of the same app.
fn content(repository: &Repository, before: &BTreeMap<&str, Target>, target: &Target) -> Vec<String> {
    let Ok(new) = repository.manifest(target) else {
        return vec!["         its manifest is not in this copy of the repository: do not sign blindly".into()];
    };
    let mut lines =
        vec![format!("         {} files, {} bytes; {}", new.files.len(), new.total_bytes(), workload::command(&new))];
    lines.extend(workload::access(&new));
    lines.extend(provenance::describe(repository, &new).into_iter().map(|line| format!("         {line}")));
    let same_app = before.values().filter(|old| old.custom.app == target.custom.app);
    let newest = same_app.max_by_key(|old| old.custom.release_counter);
    let Some((version, old)) =
        newest.and_then(|old| Some((old.custom.version.clone(), repository.manifest(old).ok()?)))
    else {
        lines.push("         first release of this app here".into());
        lines.extend(people(None, &new));
        lines.extend(secrets(repository, None, &new));
        return lines;
    };
    let (was, is) = (files(&old), files(&new));
    let changed = is.iter().filter(|(path, digest)| was.get(*path).is_some_and(|old| old != *digest)).count();
    let added = is.keys().filter(|path| !was.contains_key(*path)).count();
    let gone = was.keys().filter(|path| !is.contains_key(*path)).count();
    lines.push(format!("         against {version}: {changed} files changed, {added} added, {gone} removed"));
    if old.hardware != new.hardware {
        lines.push("         the HARDWARE that it may run on changes".into());
    }
    if old.min_agent != new.min_agent {
        let needs = new.min_agent.as_deref().unwrap_or("any");
        lines.push(format!("         the oldest agent that takes it is now: {}", needs.escape_debug()));
    }
    lines.extend(secrets(repository, Some(&old), &new));
    lines.extend(people(Some(&old), &new));
    lines.extend(workload::changes(&old, &new));
    if old.hooks != new.hooks {
        lines.push("         the hooks change: what runs before the old one stops, or in the trial".into());
    }
    lines
}

/// What changes about its secrets. Pinned keys that cannot be read are told, and keep nobody from reading the rest.
fn secrets(repository: &Repository, old: Option<&Manifest>, new: &Manifest) -> Vec<String> {
    let pins = Pins::load(repository.dir());
    let problem = pins.as_ref().err().filter(|_| !secrets::of(new).is_empty()).map(ToString::to_string);
    let lines = secrets::describe(old, new, pins.ok().as_ref());
    lines.into_iter().chain(problem).map(|line| format!("         {line}")).collect()
}

/// Who may run commands in it from now on, and who no longer may.
fn people(old: Option<&Manifest>, new: &Manifest) -> Vec<String> {
    let keys = |manifest: &Manifest| -> BTreeSet<String> {
        let exec = manifest.workload.as_ref().and_then(|workload| workload.exec.clone());
        exec.into_iter().flat_map(|exec| exec.authorized_keys).map(|line| line.escape_debug().to_string()).collect()
    };
    let (was, is) = (old.map(keys).unwrap_or_default(), keys(new));
    let adds = is.difference(&was).map(|line| format!("         COMMANDS may be run in it by {line}"));
    adds.chain(was.difference(&is).map(|line| format!("         no longer may commands be run in it by {line}")))
        .collect()
}

fn files(manifest: &Manifest) -> BTreeMap<&str, Digest> {
    manifest.files.iter().map(|file| (file.path.as_str(), file.digest)).collect()
}

/// How the keys change, one line a change.
#[must_use]
pub fn root(old: Option<&RootMeta>, new: &RootMeta) -> Vec<String> {
    let mut lines = vec![];
    for role in RoleName::ALL {
        let keys = |root: &RootMeta| {
            let role = root.roles.get(role.as_str())?;
            Some((role.threshold, role.keyids.iter().cloned().collect::<BTreeSet<String>>()))
        };
        let (was, is) = (old.and_then(keys), keys(new).unwrap_or_default());
        let names = is.1.iter().map(|id| label(new, id)).collect::<Vec<_>>().join(", ");
        let line = format!("{role}: {} of {} keys: {names}", is.0, is.1.len());
        lines.push(match was {
            None => format!("trusts   {line}"),
            Some(ref was) if *was != is => format!("CHANGES  {line} (was {} of {} keys)", was.0, was.1.len()),
            Some(_) => format!("keeps    {line}"),
        });
        // In full: what is signed here decides whom the fleet believes.
        let was = was.map(|(_, ids)| ids).unwrap_or_default();
        lines.extend(is.1.difference(&was).map(|id| format!("         adds key {id}{}", named(Some(new), id))));
        lines.extend(was.difference(&is.1).map(|id| format!("         removes key {id}{}", named(old, id))));
    }
    lines.extend(renamed(old, new));
    lines.extend(several_duties(new));
    if old.is_some_and(|old| old.consistent_snapshot != new.consistent_snapshot) {
        lines.push(format!("CHANGES  consistent snapshots: now {}", new.consistent_snapshot));
    }
    lines.extend(unknown(old.map(|old| &old.other), &new.other));
    lines.push(expires(old.map(|old| old.expires), new.expires));
    lines
}

/// A key that people know under another name from now on.
fn renamed(old: Option<&RootMeta>, new: &RootMeta) -> Vec<String> {
    let both =
        old.into_iter().flat_map(|old| new.keys.iter().filter_map(|(id, key)| Some((id, old.keys.get(id)?, key))));
    let other_name = both.filter(|(_, was, is)| was.name() != is.name());
    let name = |key: &PublicKey| key.name().unwrap_or("nobody").escape_debug().to_string();
    other_name.map(|(id, was, is)| format!("RENAMES  key {id}: {} -> {}", name(was), name(is))).collect()
}

/// One key that may both change the keys and release is worth two thefts.
fn several_duties(root: &RootMeta) -> Vec<String> {
    let ids = root.keys.keys().filter_map(|id| {
        let duties = Duty::of(root, id);
        (duties.len() > 1).then(|| (id, duties.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")))
    });
    ids.map(|(id, duties)| format!("note     {} stands for {duties}: one theft takes both", label(root, id))).collect()
}

/// Fields that this version does not know are signed all the same.
fn unknown(old: Option<&BTreeMap<String, Json>>, new: &BTreeMap<String, Json>) -> Vec<String> {
    let changed = new.iter().filter(|(field, value)| old.and_then(|old| old.get(*field)) != Some(value));
    let mut lines: Vec<String> =
        changed.map(|(field, _)| format!("CHANGES  field {field:?}, which this version does not know")).collect();
    let gone = old.into_iter().flat_map(|old| old.keys()).filter(|field| !new.contains_key(*field));
    lines.extend(gone.map(|field| format!("removes  field {field:?}, which this version does not know")));
    lines
}

fn expires(was: Option<Timestamp>, is: Timestamp) -> String {
    match was {
        Some(was) if is < was => format!("EXPIRES  {is}, EARLIER than before ({was})"),
        Some(was) if is > was => format!("expires  {is} (before: {was})"),
        _ => format!("expires  {is}"),
    }
}

fn named(root: Option<&RootMeta>, id: &str) -> String {
    let name = root.and_then(|root| root.keys.get(id)).and_then(PublicKey::name);
    name.map(|name| format!(", {}", name.escape_debug())).unwrap_or_default()
}
