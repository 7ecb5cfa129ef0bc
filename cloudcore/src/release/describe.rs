//! What a staged change adds and removes, in words that a signer can judge. Called by the command line
//! before a signature is made.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    digest::Digest,
    release::Manifest,
    tuf::{
        RoleName, Target,
        key::short,
        schema::{RootMeta, TargetsMeta},
    },
};

use super::{repository::Repository, staging::readable};

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
                lines.push(format!("reissues {name}, counter {} -> {}", old.custom.release_counter, facts(target)));
            }
            Some(old) if old != target => {
                lines.push(format!("CHANGES  {name}, {} -> {}", old.digest.short(), facts(target)));
                lines.extend(content(repository, &before, target));
            }
            Some(_) => {}
        }
    }
    for (path, target) in &before {
        if !after.contains_key(path) {
            lines.push(format!("removes  {}@{}", target.custom.app, target.custom.version));
        }
    }
    for path in new.targets.keys().filter(|path| !after.contains_key(path.as_str())) {
        lines.push(format!("lists    {path}, which is not a release that this version understands"));
    }
    lines.push(format!("expires  {}", new.expires));
    lines
}

fn facts(target: &Target) -> String {
    let hardware = target.custom.hardware.iter().cloned().collect::<Vec<_>>().join(", ");
    let hardware = if hardware.is_empty() { "any hardware".to_owned() } else { hardware };
    format!("counter {}, manifest {}, {hardware}", target.custom.release_counter, target.digest.short())
}

/// What a release contains, against the newest listed release of the same app.
fn content(repository: &Repository, before: &BTreeMap<&str, Target>, target: &Target) -> Vec<String> {
    let Ok(new) = repository.manifest(target) else {
        return vec!["         its manifest is not in this copy of the repository: do not sign blindly".into()];
    };
    let mut lines = vec![format!("         {} files, {} bytes; {}", new.files.len(), new.total_bytes(), command(&new))];
    let same_app = before.values().filter(|old| old.custom.app == target.custom.app);
    let newest = same_app.max_by_key(|old| old.custom.release_counter);
    let Some((version, old)) =
        newest.and_then(|old| Some((old.custom.version.clone(), repository.manifest(old).ok()?)))
    else {
        lines.push("         first release of this app here".into());
        return lines;
    };
    let (was, is) = (files(&old), files(&new));
    let changed = is.iter().filter(|(path, digest)| was.get(*path).is_some_and(|old| old != *digest)).count();
    let added = is.keys().filter(|path| !was.contains_key(*path)).count();
    let gone = was.keys().filter(|path| !is.contains_key(*path)).count();
    lines.push(format!("         against {version}: {changed} files changed, {added} added, {gone} removed"));
    if old.workload != new.workload {
        lines.push("         the workload changes: command, environment, limits or probes".into());
    }
    if old.hooks != new.hooks {
        lines.push("         the hooks change: what runs before the old one stops, or in the trial".into());
    }
    lines
}

fn files(manifest: &Manifest) -> BTreeMap<&str, Digest> {
    manifest.files.iter().map(|file| (file.path.as_str(), file.digest)).collect()
}

fn command(manifest: &Manifest) -> String {
    let Some(workload) = &manifest.workload else { return "nothing of it runs: files for other apps".into() };
    let words = std::iter::once(&workload.command).chain(&workload.args);
    let text: String = words.map(String::as_str).collect::<Vec<_>>().join(" ").chars().take(100).collect();
    match &workload.user {
        Some(user) => format!("runs {text:?} as {user}"),
        None => format!("runs {text:?} as the agent's user"),
    }
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
        let names = is.1.iter().map(|id| short(id)).collect::<Vec<_>>().join(", ");
        let line = format!("{role}: {} of {} keys: {names}", is.0, is.1.len());
        lines.push(match was {
            None => format!("trusts   {line}"),
            Some(ref was) if *was != is => format!("CHANGES  {line} (was {} of {} keys)", was.0, was.1.len()),
            Some(_) => format!("keeps    {line}"),
        });
        // In full: what is signed here decides whom the fleet believes.
        let was = was.map(|(_, ids)| ids).unwrap_or_default();
        lines.extend(is.1.difference(&was).map(|id| format!("         adds key {id}")));
        lines.extend(was.difference(&is.1).map(|id| format!("         removes key {id}")));
    }
    lines.push(format!("expires  {}", new.expires));
    lines
}
