//! Who talks to the API: bearer tokens (RFC 6750), looked up in [`crate::access::users`], or
//! ID tokens of the provider ([`crate::access::oidc`]).
//!
//! Failed logins are counted by source, requests by user ([`super::limits`]). [`admit`] stands before every route of the API and says who it is; what that user may do is asked at the route,
//! in [`super::guard`].

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError},
};

use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use proto::digest::Digest;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{Api, ApiError, guard, limits, rim};
use crate::{
    access::{
        Binding, Resource, Verb,
        oidc::{jwt, keys::NotIn},
        places::{self, Places},
        users::{Entry as UserEntry, Known, Users},
    },
    audit::Entry,
};

/// Logins that are remembered so that each is written down once.
const MAX_SEEN: usize = 10_000;

/// The user behind a request.
#[derive(Debug, Clone)]
pub(crate) struct User {
    /// As events and the audit log name it.
    pub(crate) name: Arc<str>,
    /// What it may do.
    pub(crate) bindings: Arc<[Binding]>,
    /// When what it showed ends.
    pub(crate) until: Option<Timestamp>,
    /// What it showed.
    shown: Shown,
}

#[derive(Debug, Clone)]
enum Shown {
    /// A token of this entry.
    Token(Arc<UserEntry>),
    /// A token of the provider.
    Id,
}

impl User {
    fn of(entry: &UserEntry) -> User {
        User {
            name: entry.name.as_str().into(),
            bindings: entry.bindings.clone().into(),
            until: entry.expires,
            shown: Shown::Token(Arc::new(entry.clone())),
        }
    }

    /// How it logged in, in a word.
    pub(crate) fn via(&self) -> &'static str {
        match self.shown {
            Shown::Token(_) => "token",
            Shown::Id => "oidc",
        }
    }

    /// Whether it would be let in again: not after its token was rotated, deleted or came to its end.
    pub(crate) fn is_still(&self, users: &Users, now: Timestamp) -> bool {
        let is_over = self.until.is_some_and(|end| end <= now);
        !is_over
            && match &self.shown {
                Shown::Token(entry) => users.all().users().contains(entry),
                Shown::Id => true,
            }
    }

    /// Whether it may do this in all of these places.
    ///
    /// # Errors
    /// 403, with what is missing.
    pub(crate) fn may(&self, verb: Verb, kind: Resource, places: &Places) -> Result<(), ApiError> {
        places::may(&self.bindings, verb, kind, places).map_err(|denied| self.forbidden(&denied.to_string()))
    }

    /// Whether it may read what is in one of these places.
    pub(crate) fn sees(&self, kind: Resource, places: &Places) -> bool {
        places::sees(&self.bindings, kind, places)
    }

    /// Whether it may read all there is of a kind.
    pub(crate) fn sees_all(&self, kind: Resource) -> bool {
        places::sees(&self.bindings, kind, &Places::whole())
    }

    /// Whether it may change all there is of a kind.
    pub(crate) fn changes_all(&self, kind: Resource) -> bool {
        places::may(&self.bindings, Verb::Update, kind, &Places::whole()).is_ok()
    }

    /// 403: `missing` says what.
    pub(crate) fn forbidden(&self, missing: &str) -> ApiError {
        let has: Vec<String> = self.bindings.iter().map(ToString::to_string).collect();
        let has = if has.is_empty() { "no role".to_owned() } else { has.join("; ") };
        let text = format!("{missing}; {} has {has:.400}. An administrator gives roles: crossdock user", self.name);
        ApiError::new(StatusCode::FORBIDDEN, "Forbidden", text)
    }
}

fn unauthorized(text: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "Unauthorized", text)
}

/// What a request shows.
fn token_of(request: &Request) -> Option<String> {
    let header = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

/// Whose ID token it is.
async fn vouched(api: &Api, token: &str) -> Result<User, ApiError> {
    let provider = match &api.oidc {
        None => return Err(unauthorized("the token is wrong or no longer valid")),
        Some(Err(error)) => return Err(ApiError::unavailable(format!("OpenID Connect cannot be used: {error}"))),
        Some(Ok(provider)) => provider,
    };
    let claims = provider.verify(token).await.map_err(|error| match error {
        NotIn::Refused(_) => unauthorized(error.to_string()),
        NotIn::Unreachable(_) => ApiError::unavailable(error.to_string()),
    })?;
    let user = provider.config().user_of(&claims).map_err(|e| unauthorized(format!("the ID token is refused: {e}")))?;
    let (name, bindings) = user;
    Ok(User { name: name.into(), bindings: bindings.into(), until: Some(claims.until), shown: Shown::Id })
}

/// Who sends this.
async fn identify(api: &Api, token: Option<String>) -> Result<User, ApiError> {
    let token = token.ok_or_else(|| unauthorized("send a token: Authorization: Bearer TOKEN"))?;
    if jwt::is_one(&token) {
        return vouched(api, &token).await;
    }
    let now = api.hub.env().wall.now();
    match api.users.all().find(&token, now) {
        Known::Yes(entry) => Ok(User::of(entry)),
        Known::Expired(entry) => Err(unauthorized(format!(
            "the token of {} ended; an administrator makes another: crossdock user rotate {0}",
            entry.name
        ))),
        Known::No => Err(unauthorized("the token is wrong or no longer valid")),
    }
}

/// Lets through who has a token, while there is capacity.
pub(crate) async fn admit(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let token = token_of(&request);
    let user = match identify(&api, token).await {
        Ok(user) => user,
        Err(error) => {
            let stranger = Stranger::of(&request);
            return stranger.refuse(&api, error).await;
        }
    };
    if let Err(wait) = api.limits.requests.take(&user.name.to_string(), Instant::now()) {
        return ApiError::too_many("you send more requests than the hub takes from one user", wait).into_response();
    }
    api.users.note_use(&user.name, api.hub.env().wall.now());
    request.extensions_mut().insert(user.clone());
    if is_new(&api, &user, rim::remote(&request).map(limits::source)) {
        let (verb, kind, outcome) = ("login".to_owned(), "users".to_owned(), "200".to_owned());
        let entry = Entry { verb, kind, outcome, name: String::new(), ..guard::entry_of(&request) };
        api.hub.audit().note(entry).await;
    }
    // Held until the answer starts; streams hold a permit of their own.
    let Ok(_permit): Result<OwnedSemaphorePermit, _> = Arc::clone(&api.requests).try_acquire_owned() else {
        return ApiError::unavailable("the hub is busy with other requests; try again").into_response();
    };
    request.extensions_mut().insert(api);
    next.run(request).await
}

/// Whether this user was not seen from there before, with what it shows; as far as is remembered.
fn is_new(api: &Api, user: &User, source: Option<IpAddr>) -> bool {
    let mut seen = api.seen.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.len() >= MAX_SEEN {
        seen.clear();
    }
    seen.insert(Digest::of(format!("{} {source:?} {:?}", user.name, user.until).as_bytes()))
}

/// Somebody who did not get in.
struct Stranger {
    source: Option<IpAddr>,
    /// Whether a token came at all: who sends none tries nothing.
    tried: bool,
    entry: Entry,
}

impl Stranger {
    fn of(request: &Request) -> Stranger {
        let tried = request.headers().contains_key(header::AUTHORIZATION);
        let entry = Entry { name: String::new(), ..guard::entry_of(request) };
        Stranger { source: rim::remote(request).map(limits::source), tried, entry }
    }

    /// Answers it. Whoever fails too often waits, and is not written down again and again.
    async fn refuse(self, api: &Api, error: ApiError) -> Response {
        let counts = self.tried && error.is_unauthorized();
        let Some(source) = self.source.filter(|_| counts) else { return error.into_response() };
        if let Err(wait) = api.limits.logins.take(&source, Instant::now()) {
            return ApiError::too_many("too many logins failed from this address", wait).into_response();
        }
        let (verb, kind, outcome) = ("login".to_owned(), "users".to_owned(), "401".to_owned());
        let entry = Entry { verb, kind, outcome, detail: error.message().to_owned(), ..self.entry };
        api.hub.audit().refused(&source.to_string(), entry).await;
        error.into_response()
    }
}
