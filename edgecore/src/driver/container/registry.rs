//! An image of a registry at the engine: pulled by its digest, with the release's credentials where it names some, and
//! checked afterwards.
//!
//! The engine asks the registry. Mirrors, proxies, certificates and registries without TLS are its settings, and so are
//! credentials that it was given by others. It compares what it gets with the digest, and what it has then is looked at
//! here once more. An image that is there is not pulled again: a box whose registry is gone restarts what it has.

use proto::{digest::Digest, name::Name};

use super::{
    api::{Api, ApiError, model::ImageDetails},
    credentials::{self, Credentials},
    image::{self, ImageError, find, normal},
};

/// Most characters of what an engine says that are shown: the mend comes after them.
const SHOWN_CHARS: usize = 500;
/// How registries and engines say that they want other credentials.
const UNAUTHORIZED: [&str; 7] = [
    "unauthorized",
    "no basic auth credentials",
    "authentication required",
    "access denied",
    "denied:",
    "forbidden",
    "invalid username",
];
/// How they say that there is no such image.
const UNKNOWN: [&str; 2] = ["manifest unknown", "name unknown"];

/// How engines say that a registry handed out another content than its digest says.
const OTHER: [&str; 2] = ["verification failed", "does not match provided manifest digest"];

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Pinned<'a> {
    /// The app.
    pub app: &'a Name,
    /// Its release.
    pub release: Digest,
    /// The image: `registry.example/app@sha256:...`.
    pub image: &'a str,
    /// Name of the secret with credentials.
    pub secret: Option<&'a str>,
}

/// Sees to it that the image is at the engine, under the release's [`image::reference`]. `credentials` is asked only
/// where it has to be pulled.
///
/// # Errors
/// Why it is not.
pub async fn ensure(
    api: &Api,
    wanted: Pinned<'_>,
    credentials: impl Future<Output = Result<Option<Credentials>, ImageError>>,
) -> Result<(), ImageError> {
    let Pinned { app, release, image, .. } = wanted;
    let digest = image.rsplit_once('@').and_then(|(_, digest)| digest.parse::<Digest>().ok());
    let digest = digest.ok_or_else(|| ImageError::Wrong(format!("{image} is not pinned by a digest")))?;
    let is = |found: &Option<ImageDetails>| found.as_ref().is_some_and(|found| has(found, digest));
    if is(&find(api, &image::reference(app, release)).await?) {
        return Ok(());
    }
    if !is(&find(api, image).await?) {
        let credentials = credentials.await?;
        let pulled = api.pull(image, credentials.as_ref().map(Credentials::header)).await;
        pulled.map_err(|e| failed(wanted, credentials.as_ref(), &e))?;
        let found = find(api, image).await?;
        if !is(&found) {
            return Err(other(image, found.as_ref()));
        }
    }
    Ok(image::tag(api, image, app, release).await?)
}

/// Whether an image is the one that registries know by this digest: of its manifest, or of the index that names it.
fn has(found: &ImageDetails, digest: Digest) -> bool {
    let digest_of = |name: &String| name.rsplit_once('@').and_then(|(_, digest)| digest.parse::<Digest>().ok());
    let known = found.repo_digests.iter().flatten().filter_map(digest_of);
    known.chain(normal(&found.id).parse().ok()).any(|known| known == digest)
}

fn other(image: &str, found: Option<&ImageDetails>) -> ImageError {
    let is =
        found.map_or_else(|| "nothing".to_owned(), |found| found.repo_digests.clone().unwrap_or_default().join(", "));
    let message = format!(
        "{image} is refused: it was pulled, and the engine has {is} for it, which is another content; the registry, or \
         what stands between, tampers with it"
    );
    ImageError::Pull { reason: "VerificationFailed", message }
}

/// Why it could not be pulled: what was attempted, what was said, and the mend.
fn failed(wanted: Pinned<'_>, credentials: Option<&Credentials>, error: &ApiError) -> ImageError {
    let Pinned { app, image, secret, .. } = wanted;
    let said = error.to_string();
    let said = credentials.map_or(said.clone(), |credentials| credentials.hide(&said));
    let shown: String = said.chars().take(SHOWN_CHARS).collect();
    let attempt = format!("{image} could not be pulled: {shown}");
    if !matches!(error, ApiError::Refused { .. }) || image::is_full(&said) {
        return ImageError::of_engine(attempt); // the engine's trouble, not the registry's
    }
    let (registry, lower) = (credentials::registry_of(image), said.to_lowercase());
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let (reason, mend) = match secret {
        _ if says(&OTHER) => (
            "VerificationFailed",
            format!("{registry}, or what stands between, hands out something else, which is refused"),
        ),
        _ if says(&UNKNOWN) => ("ImagePullFailed", format!("push that digest to {registry}, it is tried again")),
        Some(secret) if says(&UNAUTHORIZED) => (
            "ImagePullUnauthorized",
            format!(
                "{registry} does not take the credentials in secret {secret:?}: let them in there, it is tried again, or \
                 seal others (crossdock secret seal {secret} --app {app}) and release them under a new version"
            ),
        ),
        None if says(&UNAUTHORIZED) => (
            "ImagePullUnauthorized",
            format!("{registry} wants credentials: name a secret that holds them, container.pullSecret"),
        ),
        _ => (
            "ImagePullFailed",
            format!(
                "it is tried again; can this box reach {registry}? Mirrors, proxies and registries without TLS are \
                 settings of the engine"
            ),
        ),
    };
    ImageError::Pull { reason, message: format!("{attempt}; {mend}") }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;
    use crate::driver::container::api::tests::{Fake, say};

    const CONFIG: &str = r#"{"auths": {"registry.example": {"username": "ann", "password": "hunter22"}}}"#;

    fn digest() -> Digest {
        Digest::of(b"manifest")
    }

    fn pinned() -> String {
        format!("registry.example/team/vision@{}", digest())
    }

    /// What is said when an engine that has nothing yet answers a pull so, and then has an image of these digests.
    async fn pull(answer: &'static str, digests: String, secret: Option<&str>) -> Result<(), ImageError> {
        let pulled = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let fake = Fake::new(move |line, mut stream| {
            let (pulled, digests) = (pulled.clone(), digests.clone());
            async move {
                let order = std::sync::atomic::Ordering::SeqCst;
                let image = format!(r#"{{"Id": "sha256:12", "RepoDigests": [{digests}]}}"#);
                match line.split('/').nth(3).unwrap() {
                    _ if line.contains("/tag?") => say(&mut stream, "201 Created", "").await,
                    begin if begin.starts_with("create?fromImage=registry.example%2Fteam%2Fvision%40sha256") => {
                        pulled.store(true, order);
                        say(&mut stream, "200 OK", answer).await;
                    }
                    "registry.example" if pulled.load(order) => say(&mut stream, "200 OK", &image).await,
                    _ => say(&mut stream, "404 Not Found", r#"{"message": "No such image"}"#).await,
                }
            }
        });
        let (api, image, app) = (fake.api().await, pinned(), "vision".parse().unwrap());
        let wanted = Pinned { app: &app, release: Digest::of(b"x"), image: &image, secret };
        let credentials = secret.map(|_| Credentials::find(CONFIG.as_bytes(), &image).unwrap());
        ensure(&api, wanted, ready(Ok(credentials))).await
    }

    #[tokio::test]
    async fn what_was_pulled_has_the_digest_or_is_refused() {
        let named = |digest: Digest| format!(r#""registry.example/team/vision@{digest}""#);
        pull("{\"status\": \"done\"}\n", named(digest()), None).await.unwrap();
        for digests in [named(Digest::of(b"other")), String::new()] {
            let refused = pull("{\"status\": \"done\"}\n", digests, None).await.unwrap_err();
            assert_eq!(refused.reason(), "VerificationFailed");
            assert!(refused.to_string().contains("another content"), "{refused}");
        }
        let index = ImageDetails { id: digest().hex(), ..ImageDetails::default() };
        assert!(has(&index, digest()) && !has(&index, Digest::of(b"other")), "as of an engine that keeps indexes");
    }

    #[tokio::test]
    async fn a_registry_that_says_no_is_told_with_its_mend_and_without_what_it_was_told() {
        const WRONG: &str = "{\"error\": \"unauthorized: no user ann with password hunter22\"}\n";
        let told = |result: Result<(), ImageError>| {
            let error = result.unwrap_err();
            assert!(error.to_string().contains(&pinned()), "{error}");
            (error.reason(), error.to_string())
        };
        let (reason, said) = told(pull(WRONG, String::new(), Some("registry")).await);
        assert_eq!(reason, "ImagePullUnauthorized");
        assert!(said.contains("ann with password [hidden]") && !said.contains("hunter22"), "{said}");
        assert!(said.contains("crossdock secret seal registry --app vision"), "{said}");
        let (reason, said) = told(pull(r#"{"error": "no basic auth credentials"}"#, String::new(), None).await);
        assert!(reason == "ImagePullUnauthorized" && said.contains("container.pullSecret"), "{said}");
        let (reason, said) = told(pull(r#"{"error": "not found: manifest unknown"}"#, String::new(), None).await);
        assert!(reason == "ImagePullFailed" && said.contains("push that digest to registry.example"), "{said}");
        let (reason, said) = told(pull(r#"{"error": "connection refused"}"#, String::new(), Some("registry")).await);
        assert!(reason == "ImagePullFailed" && said.contains("can this box reach registry.example"), "{said}");
        let (reason, _) =
            told(pull(r#"{"error": "manifest verification failed for digest"}"#, String::new(), None).await);
        assert_eq!(reason, "VerificationFailed");
        let (reason, _) = told(pull(r#"{"error": "x: no space left on device"}"#, String::new(), None).await);
        assert_eq!(reason, "DiskFull");
        let long: &str = Box::leak(format!("{{\"error\": \"{}\"}}", "x".repeat(3000)).into_boxed_str());
        let (_, said) = told(pull(long, String::new(), None).await);
        assert!(
            said.chars().count() < 1000 && said.contains("settings of the engine"),
            "the mend is not cut off: {said}"
        );
    }
}
