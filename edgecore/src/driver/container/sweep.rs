//! Images that an app needs no more. Only its own names are touched, and nothing that a container needs which runs.

use std::collections::{BTreeMap, BTreeSet};

use proto::{digest::Digest, name::Name};

use super::{
    api::{Api, ApiError, model::Listed},
    create::AGENT,
    image::{UNNAMED, images, normal, reference},
};

/// Whether an image has names besides those in `surplus`, and only such as a pull by digest leaves behind, which would
/// keep it for ever. One that somebody else gave a name, or has a container of, is theirs.
async fn is_pulled_for_us(
    api: &Api,
    agent: &str,
    id: &str,
    surplus: &BTreeMap<String, String>,
) -> Result<bool, ApiError> {
    let found = match api.image(id).await {
        Err(e) if e.is_missing() => return Ok(false),
        found => found?,
    };
    let of_nobody = |name: &String| name.contains('@') || name == UNNAMED || surplus.contains_key(name);
    if found.repo_digests.is_none_or(|digests| digests.is_empty()) || !found.repo_tags.iter().flatten().all(of_nobody) {
        return Ok(false);
    }
    let is_ours = |of: &Listed| of.labels.as_ref().and_then(|labels| labels.get(AGENT)).is_some_and(|of| of == agent);
    Ok(containers_of(api, id).await?.iter().all(is_ours))
}

/// The containers of an image, whoever's they are.
async fn containers_of(api: &Api, id: &str) -> Result<Vec<Listed>, ApiError> {
    let mut all = api.containers(&[]).await?;
    all.retain(|of| of.image_id.as_deref().is_some_and(|image| normal(image) == normal(id)));
    Ok(all)
}

/// Removes images of an app but those of the releases in `keep`. `agent` is whose containers are ours.
///
/// # Errors
/// What the engine says; one that is in use stays, and is no error.
pub async fn collect(api: &Api, agent: &str, app: &Name, keep: &BTreeSet<Digest>) -> Result<(), ApiError> {
    let kept: BTreeSet<String> = keep.iter().map(|release| reference(app, *release)).collect();
    let mut surplus = images(api, Some(app)).await?;
    surplus.retain(|name, _| !kept.contains(name));
    for (name, id) in &surplus {
        let whole = is_pulled_for_us(api, agent, id, &surplus).await?;
        // By force: one that ended and is kept for its output needs its image no more. Docker lets go of no image of which
        // a container runs, also then; Podman ends the container.
        let by_force = api.is_docker() || containers_of(api, id).await?.is_empty();
        match api.remove_image(if whole { id } else { name }, by_force).await {
            Ok(()) => tracing::info!(%app, name, "an image that nobody needs is gone"),
            // Gone meanwhile, or one of it still runs: the next sweep comes after that.
            Err(e) if e.is_missing() || e.is_conflict() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::driver::container::api::tests::{Fake, say};

    /// Two apps have the same image, and this engine tells all names of an image that it finds by one.
    #[tokio::test]
    async fn what_another_app_has_stays() {
        let removed = Arc::new(Mutex::new(vec![]));
        let note = removed.clone();
        let fake = Fake::new(move |line, mut stream| {
            let note = note.clone();
            async move {
                let asked = line.split(' ').nth(1).unwrap().to_owned();
                if line.starts_with("DELETE") {
                    note.lock().unwrap().push(asked);
                    say(&mut stream, "200 OK", "[]").await;
                } else if asked.contains("/images/json") {
                    let names = r#"["crossdock.local/a:1", "crossdock.local/b:2", "crossdock.local/bb:3"]"#;
                    say(&mut stream, "200 OK", &format!(r#"[{{"Id": "sha256:12", "RepoTags": {names}}}]"#)).await;
                } else if asked.contains("/containers/json") {
                    say(&mut stream, "200 OK", r#"[{"Id": "c", "ImageID": "sha256:12", "Created": 1}]"#).await;
                } else {
                    say(&mut stream, "200 OK", r#"{"Id": "sha256:12", "RepoTags": ["crossdock.local/a:1"]}"#).await;
                }
            }
        });
        let api = fake.api().await;
        collect(&api, "me", &"b".parse().unwrap(), &BTreeSet::new()).await.unwrap();
        let removed = removed.lock().unwrap().clone();
        assert!(removed.len() == 1 && removed[0].contains("/images/crossdock.local/b:2?"), "{removed:?}");
    }
}
