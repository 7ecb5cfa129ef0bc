//! Who talks to the API: bearer tokens (RFC 6750), looked up in [`crate::access::users`], or
//! ID tokens of the provider ([`crate::access::oidc`]).
//!
//! Failed logins are counted by source, requests by user ([`super::limits`]). [`admit`] stands before every route of
//! the API and says who it is; what that user may do is asked at the route, in [`super::guard`].

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError},
    time::Duration,
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

use super::{
    Api, ApiError, MAX_REQUESTS_ADDRESS, MAX_REQUESTS_USER, guard,
    limits::{self, Seat},
    rim,
};
use crate::{
    access::{
        Binding, Resource, Verb,
        oidc::{jwt, keys::NotIn},
        places::{self, Places},
        users::{Entry as UserEntry, Known, Users},
    },
    audit::Entry,
};

/// Logins that are remembered.
const MAX_SEEN: usize = 10_000;
/// After how long one comes again whose seats are taken.
const BUSY: Duration = Duration::from_secs(1);

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
async fn identify(api: &Api, token: Option<String>, source: Option<IpAddr>) -> Result<User, ApiError> {
    let token = token.ok_or_else(|| unauthorized("send a token: Authorization: Bearer TOKEN"))?;
    if jwt::is_one(&token) {
        if let Some(source) = source.filter(|source| !knows(api, &token, *source)) {
            api.limits.logins.has(&source, Instant::now()).map_err(too_many_failed)?;
        }
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

fn too_many_failed(wait: Duration) -> ApiError {
    ApiError::too_many("too many logins failed from this address", wait)
}

/// A seat among the requests of an address without a user.
fn seat_of(api: &Api, source: Option<IpAddr>) -> Result<Option<Seat<IpAddr>>, ApiError> {
    let Some(source) = source else { return Ok(None) };
    let seat = api.limits.unknown.take(source, MAX_REQUESTS_ADDRESS).map(Some);
    let text = format!("{MAX_REQUESTS_ADDRESS} requests of your address without a user are in work");
    seat.ok_or_else(|| ApiError::too_many(&text, BUSY))
}

/// Lets through who has a token, while there is capacity.
pub(crate) async fn admit(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let (token, source) = (token_of(&request), rim::remote(&request).map(limits::source));
    let shown = token.as_deref().map(|token| print_of(token, source));
    let found = match seat_of(&api, source) {
        Ok(_until_known) => identify(&api, token, source).await,
        Err(error) => Err(error),
    };
    let user = match found {
        Ok(user) => user,
        Err(error) => {
            if let Some(shown) = shown.filter(|_| error.is_unauthorized()) {
                api.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(&shown);
            }
            let stranger = Stranger::of(&request);
            return stranger.refuse(&api, error).await;
        }
    };
    let key = user.name.to_string();
    if let Err(wait) = api.limits.requests.take(&key, Instant::now()) {
        return ApiError::too_many("you send more requests than the hub takes from one user", wait).into_response();
    }
    // Held until the answer starts, as the permit below; streams hold a permit of their own.
    let Some(_seat) = api.limits.working.take(key, MAX_REQUESTS_USER) else {
        let text = format!("{MAX_REQUESTS_USER} requests of yours are in work, which is the bound of one user");
        return ApiError::too_many(&text, BUSY).into_response();
    };
    api.users.note_use(&user.name, api.hub.env().wall.now());
    request.extensions_mut().insert(user);
    if shown.is_some_and(|shown| is_new(&api, shown)) {
        let (verb, kind, outcome) = ("login".to_owned(), "users".to_owned(), "200".to_owned());
        let entry = Entry { verb, kind, outcome, name: String::new(), ..guard::entry_of(&request) };
        api.hub.audit().noted_often(&format!("logins of {}", entry.user), entry).await;
    }
    let Ok(_permit): Result<OwnedSemaphorePermit, _> = Arc::clone(&api.requests).try_acquire_owned() else {
        return ApiError::unavailable("the hub is busy with other requests; try again").into_response();
    };
    request.extensions_mut().insert(api);
    next.run(request).await
}

/// Lets anybody through, while their address has a seat.
pub(crate) async fn anybody(State(api): State<Api>, request: Request, next: Next) -> Response {
    match seat_of(&api, rim::remote(&request).map(limits::source)) {
        Ok(_seat) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// What was shown from where, as it is remembered.
fn print_of(token: &str, source: Option<IpAddr>) -> Digest {
    Digest::of(format!("{source:?} {token}").as_bytes())
}

/// Whether this let somebody in from there before, as far as is remembered.
fn knows(api: &Api, token: &str, source: IpAddr) -> bool {
    api.seen.lock().unwrap_or_else(PoisonError::into_inner).contains(&print_of(token, Some(source)))
}

/// Whether this was not seen from there before, as far as is remembered; it is remembered from now on.
fn is_new(api: &Api, shown: Digest) -> bool {
    let mut seen = api.seen.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.len() >= MAX_SEEN {
        seen.clear();
    }
    seen.insert(shown)
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
            return too_many_failed(wait).into_response();
        }
        let (verb, kind, outcome) = ("login".to_owned(), "users".to_owned(), "401".to_owned());
        let entry = Entry { verb, kind, outcome, detail: error.message().to_owned(), ..self.entry };
        api.hub.audit().noted_often(&source.to_string(), entry).await;
        error.into_response()
    }
}
