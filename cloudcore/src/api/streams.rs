//! Stream records over HTTP: which streams there are, their records, counts and gaps.
//!
//! Records come one JSON document a line, in the order in which they arrived at the hub; within what a
//! node sent in one go that is the order of their sequences. A node that comes back sends its fresh
//! records ahead of its backlog, so whoever needs a node's own order sorts by epoch and sequence.
//!
//! A page says in its headers where to go on: hand `crossdock-continue` back as `continue=`. While
//! `crossdock-more` is `true` there is more at once; when it is `false` the same place is where later
//! records will be found. With `follow=true` the answer goes on until the client leaves.
//!
//! What is read and how it is written is in [`read`] and [`line`].

pub(crate) mod line;
mod read;
mod rows;
#[cfg(test)]
pub(crate) mod tests;

use std::{collections::BTreeMap, convert::Infallible, io, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::{Body, Bytes},
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use jiff::Timestamp;
use proto::{name::Name, watch};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use self::{
    line::Encoding,
    read::{Chunk, ReadError, Reader},
};
use super::{
    Api, ApiError,
    auth::User,
    book::{Book, Page},
    guard::Rule,
    objects::query,
};
use crate::{
    access::{
        Resource, Verb,
        places::{Places, Reach},
    },
    streams::sink::{self, CountQuery, Cursor, SinkError, StreamState},
};

/// Header of a page: where to go on.
pub(crate) const CONTINUE: &str = "crossdock-continue";
/// Header of a page: whether there is more right now.
pub(crate) const MORE: &str = "crossdock-more";

/// Records of a page when nothing else is asked for.
const DEFAULT_RECORDS: usize = 1_000;
/// Most records of a page.
const MAX_RECORDS: usize = 10_000;
/// Most records from the end.
const MAX_TAIL: usize = 1_000;
/// Bytes of a page, up to one record more.
const PAGE_BYTES: usize = 4 << 20;
/// Records and bytes that a follower gets in one piece.
const FOLLOW_RECORDS: usize = 1_000;
const FOLLOW_BYTES: usize = 1 << 20;
/// How long a follower waits for news: from, to.
const FOLLOW_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How often a quiet answer shows that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// Counts of an answer when nothing else is asked for, and at most.
const DEFAULT_COUNTS: usize = 10_000;
const MAX_COUNTS: usize = 50_000;
/// Gaps of an answer when nothing else is asked for, and at most.
const DEFAULT_GAPS: usize = 1_000;
const MAX_GAPS: usize = 100_000;

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> ApiError {
        match error {
            ReadError::Sink(error) => error.into(),
            ReadError::Beyond => ApiError::new(
                StatusCode::GONE,
                "Gone",
                "this place lies beyond the end of what the hub stored: its records were restored from a backup or are \
                 kept elsewhere now; begin again, with from= if you know how far you came",
            ),
        }
    }
}

/// A time of the query.
fn time(name: &str, text: Option<&str>) -> Result<Option<Timestamp>, ApiError> {
    let wrong = |text: &str| {
        let example = "write RFC 3339 such as 2026-03-01T06:00:00Z, with %2B for +";
        ApiError::bad_request(format!("{name}={text:.60} is no time; {example}"))
    };
    text.map(|text| text.parse().map_err(|_| wrong(text))).transpose()
}

fn times(from: Option<&str>, to: Option<&str>) -> Result<(Option<Timestamp>, Option<Timestamp>), ApiError> {
    let (from, to) = (time("from", from)?, time("to", to)?);
    if from.zip(to).is_some_and(|(from, to)| from >= to) {
        return Err(ApiError::bad_request("from is not before to, so there is nothing between them"));
    }
    Ok((from, to))
}

/// A bound of the query, between 1 and `most`.
fn bound(name: &str, asked: Option<usize>, default: usize, most: usize) -> Result<usize, ApiError> {
    match asked.unwrap_or(default) {
        n if (1..=most).contains(&n) => Ok(n),
        n => Err(ApiError::bad_request(format!("{name}={n} is out of range; use 1 to {most}"))),
    }
}

fn stream_name(text: &str) -> Result<Name, ApiError> {
    text.parse().map_err(|e: proto::name::NameError| ApiError::bad_request(format!("the name of the stream: {e}")))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    node: Option<Name>,
    site: Option<Name>,
    stream: Option<Name>,
}

/// What is known of all streams: as the sink has it, or as the writer does where that is newer.
async fn states(api: &Api) -> Result<Vec<StreamState>, ApiError> {
    let mut states: BTreeMap<_, StreamState> = BTreeMap::new();
    for state in api.sink.states().await?.into_iter().chain(api.hub.streams().live()) {
        let key = (state.node.clone(), state.key.clone());
        if states.get(&key).is_none_or(|known| known.heard <= state.heard) {
            states.insert(key, state);
        }
    }
    Ok(states.into_values().collect())
}

/// Where somebody must be allowed to read, to read records from a site, or from all sites.
fn from_site(site: Option<&Name>) -> Places {
    Places { sites: site.map_or(Reach::Whole, |site| Reach::one(site.clone())), apps: Reach::Any }
}

/// The site that is read. A sink reads one site or all, so who may not read all must name one; for who is bound to
/// a single one it goes without saying.
fn site_for(user: &User, asked: Option<Name>) -> Result<Option<Name>, ApiError> {
    let asked = asked.or_else(|| {
        let mut sites = user.bindings.iter().filter_map(|binding| binding.sites.as_ref()).flatten();
        let first = sites.next().filter(|_| !user.sees_all(Resource::Streams))?;
        sites.all(|site| site == first).then(|| first.clone())
    });
    match user.may(Verb::Get, Resource::Streams, &from_site(asked.as_ref())) {
        Ok(()) => Ok(asked),
        Err(_) if asked.is_none() => Err(user.forbidden(
            "to read records of all sites takes role viewer for all sites and all apps; name one with site=",
        )),
        Err(error) => Err(error),
    }
}

/// `GET /streams`.
async fn list(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    asked: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let ListQuery { node, site, stream } = query(asked)?;
    let mut states = states(&api).await?;
    let fits = |wanted: &Option<Name>, is: &Name| wanted.as_ref().is_none_or(|wanted| wanted == is);
    states.retain(|s| fits(&node, &s.node) && fits(&site, &s.site) && fits(&stream, &s.key.stream));
    let mut gaps = api.sink.gaps(node.as_ref(), stream.as_ref(), MAX_GAPS).await?;
    states.retain(|state| user.sees(Resource::Streams, &from_site(Some(&state.site))));
    gaps.retain(|gap| user.sees(Resource::Streams, &from_site(Some(&gap.site))));
    let items = rows::rows(states, &gaps);
    Ok(Json(json!({"apiVersion": proto::API_VERSION, "kind": "StreamList", "items": items})))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordsQuery {
    node: Option<Name>,
    site: Option<Name>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<usize>,
    tail: Option<usize>,
    #[serde(rename = "continue")]
    place: Option<String>,
    #[serde(default)]
    follow: bool,
    #[serde(default)]
    bookmarks: bool,
    #[serde(default)]
    encoding: Encoding,
}

/// A place as text: `stored.offset`.
fn place(text: &str) -> Result<Cursor, ApiError> {
    let parse = || {
        let (stored, offset) = text.split_once('.')?;
        let cursor = Cursor { stored: stored.parse().ok()?, offset: offset.parse().ok()? };
        (place_text(cursor) == text).then_some(cursor)
    };
    parse().ok_or_else(|| {
        ApiError::bad_request(format!(
            "continue={text:.60} is no place in a stream; use what a page before said in its header {CONTINUE}, and leave it out to begin"
        ))
    })
}

fn place_text(cursor: Cursor) -> String {
    format!("{}.{}", cursor.stored, cursor.offset)
}

/// `GET /streams/{stream}/records`.
async fn records(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path(stream): Path<String>,
    asked: Result<Query<RecordsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let asked = query(asked)?;
    let stream = stream_name(&stream)?;
    let (from, to) = times(asked.from.as_deref(), asked.to.as_deref())?;
    let limit = bound("limit", asked.limit, DEFAULT_RECORDS, MAX_RECORDS)?;
    let after = asked.place.as_deref().map(place).transpose()?;
    if asked.follow && asked.limit.is_some() {
        return Err(ApiError::bad_request("follow has no end, so leave limit out; for the last records use tail"));
    }
    if asked.bookmarks && !asked.follow {
        return Err(ApiError::bad_request(format!("bookmarks go with follow; a page has the header {CONTINUE}")));
    }
    if asked.tail.is_some() && (asked.limit.is_some() || after.is_some()) {
        return Err(ApiError::bad_request("tail chooses its own beginning, so leave limit and continue out"));
    }
    let tail = asked.tail.map(|n| if n == 0 { Ok(0) } else { bound("tail", Some(n), n, MAX_TAIL) }).transpose()?;
    let (node, site) = (asked.node, site_for(&user, asked.site)?);
    let began = after.is_some();
    let wanted = sink::Query { stream, node, site, from, to, after, limit };
    let mut reader = Reader::new(Arc::clone(&api.sink), wanted, asked.encoding);

    let permit = if asked.follow { super::stream::permit(&api)? } else { page_permit(&api)? };
    let chunk = match tail {
        Some(count) => reader.tail(count, PAGE_BYTES).await?,
        None if asked.follow => reader.chunk(FOLLOW_RECORDS, FOLLOW_BYTES).await?,
        None => reader.chunk(limit, PAGE_BYTES).await?,
    };
    if chunk.rows == 0 && !began && tail != Some(0) {
        check_known(&api, reader.stream()).await?;
    }
    Ok(if asked.follow {
        follow(Follow::new(&api, reader, chunk, asked.bookmarks, permit))
    } else {
        page(&reader, chunk, permit)
    })
}

fn page_permit(api: &Api) -> Result<OwnedSemaphorePermit, ApiError> {
    let busy = |_| ApiError::unavailable("too many pages of records are being read; try again");
    Arc::clone(&api.pages).try_acquire_owned().map_err(busy)
}

/// Whoever mistypes the name of a stream should not conclude that nothing happened.
async fn check_known(api: &Api, stream: &Name) -> Result<(), ApiError> {
    let states = states(api).await?;
    if states.iter().any(|state| state.key.stream == *stream) {
        return Ok(());
    }
    let mut known: Vec<String> = states.into_iter().map(|state| state.key.stream.to_string()).collect();
    known.sort_unstable();
    known.dedup();
    let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
    Err(ApiError::not_found(format!("no node has sent a stream {stream}; the hub knows {known:.400}")))
}

fn page(reader: &Reader, chunk: Chunk, permit: OwnedSemaphorePermit) -> Response {
    let mut headers = ndjson();
    headers.insert(MORE, HeaderValue::from_static(if chunk.more { "true" } else { "false" }));
    if let Some(place) = reader.place().and_then(|at| HeaderValue::try_from(place_text(at)).ok()) {
        headers.insert(CONTINUE, place);
    }
    // The permit is held until the page is sent: pages in memory are bounded.
    let body = stream::iter([(chunk.lines, permit)]);
    let body = futures_util::StreamExt::map(body, |(lines, _permit)| Ok::<_, Infallible>(Bytes::from(lines)));
    (headers, Body::from_stream(body)).into_response()
}

fn ndjson() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers
}

/// An answer that goes on.
struct Follow {
    reader: Reader,
    /// What is to be sent first.
    first: Option<Chunk>,
    bookmarks: bool,
    pause: Duration,
    stop: watch::Receiver<bool>,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

fn follow(follow: Follow) -> Response {
    let body = stream::unfold(follow, |mut follow| async move { follow.next().await.map(|next| (next, follow)) });
    (ndjson(), Body::from_stream(body)).into_response()
}

impl Follow {
    fn new(api: &Api, reader: Reader, first: Chunk, bookmarks: bool, permit: OwnedSemaphorePermit) -> Follow {
        let (stop, pause) = (api.stop.clone(), FOLLOW_PAUSE.0);
        Follow { reader, first: Some(first), bookmarks, pause, stop, ended: false, _permit: permit }
    }

    /// The next lines; `None` at the end.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(self.piece(first))); // even an empty one: the client learns its place
        }
        let quiet_until = Instant::now() + SIGN_OF_LIFE;
        while !self.ended {
            let (reader, mut stop) = (&mut self.reader, self.stop.clone());
            // Neither arm need be cancel safe: after a stop nothing is read any more.
            let chunk = tokio::select! { biased;
                _ = stop.wait_for(|stop| *stop) => return None,
                chunk = reader.chunk(FOLLOW_RECORDS, FOLLOW_BYTES) => chunk,
            };
            match chunk {
                Ok(chunk) if chunk.rows > 0 => {
                    self.pause = FOLLOW_PAUSE.0;
                    return Some(Ok(self.piece(chunk)));
                }
                Ok(_) | Err(ReadError::Sink(SinkError::Unavailable(_) | SinkError::Unknown(_))) => {}
                Err(error) => {
                    tracing::error!(?error, "a follower of a stream cannot go on");
                    self.ended = true;
                    return Some(Err(io::Error::other("the sink cannot be read"))); // a new request is told why
                }
            }
            if Instant::now() >= quiet_until {
                return Some(Ok(self.piece(Chunk::default())));
            }
            tokio::select! { biased;
                _ = self.stop.wait_for(|stop| *stop) => return None,
                () = tokio::time::sleep(self.pause) => {}
            }
            self.pause = (self.pause * 2).min(FOLLOW_PAUSE.1);
        }
        None
    }

    /// Lines, and after them the place where they end if that is wanted. A line of its own without records.
    fn piece(&self, chunk: Chunk) -> Bytes {
        let mut lines = chunk.lines;
        match self.reader.place() {
            Some(place) if self.bookmarks => {
                let bookmark = json!({"continue": place_text(place)}).to_string();
                lines.extend_from_slice(bookmark.as_bytes());
                lines.push(b'\n');
            }
            _ if lines.is_empty() => lines.push(b'\n'),
            _ => {}
        }
        lines.into()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CountsQuery {
    site: Option<Name>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<usize>,
}

/// `GET /streams/{stream}/counts`.
async fn counts(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    Path(stream): Path<String>,
    asked: Result<Query<CountsQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let asked = query(asked)?;
    let stream = stream_name(&stream)?;
    let (from, to) = times(asked.from.as_deref(), asked.to.as_deref())?;
    let limit = bound("limit", asked.limit, DEFAULT_COUNTS, MAX_COUNTS)?;
    let from = from.map(rows::minute_of);
    let began = from.is_some();
    let wanted = CountQuery { stream, site: site_for(&user, asked.site)?, from, to, limit: limit + 1 };
    let mut items = api.sink.counts(&wanted).await?;
    if items.is_empty() && !began {
        check_known(&api, &wanted.stream).await?;
    }
    let next = rows::cut_at_minute(&mut items, limit).map_err(|()| {
        ApiError::bad_request(format!(
            "more than limit={limit} sites counted something in one minute; raise limit or name a site"
        ))
    })?;
    Ok(Json(json!({"apiVersion": proto::API_VERSION, "kind": "CountList", "items": items, "next": next})))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GapsQuery {
    node: Option<Name>,
    stream: Option<Name>,
    limit: Option<usize>,
}

/// `GET /gaps`.
async fn gaps(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    asked: Result<Query<GapsQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let GapsQuery { node, stream, limit } = query(asked)?;
    let limit = bound("limit", limit, DEFAULT_GAPS, MAX_GAPS)?;
    // What a bounded user may not see is left out before the rest is counted.
    let ask = if user.sees_all(Resource::Streams) { limit + 1 } else { MAX_GAPS };
    let mut items = api.sink.gaps(node.as_ref(), stream.as_ref(), ask).await?;
    items.retain(|gap| user.sees(Resource::Streams, &from_site(Some(&gap.site))));
    let more = items.len() > limit;
    items.truncate(limit);
    Ok(Json(json!({"apiVersion": proto::API_VERSION, "kind": "GapList", "items": items, "more": more})))
}

/// Adds streams.
pub(crate) fn add(mut book: Book) -> Book {
    rows::define(&mut book);
    line::define(&mut book);
    let json_type = "application/json";
    let items = |of: &str| {
        json!({"type": "object", "required": ["items"], "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "items": {"type": "array", "items": super::book::reference(of)},
        }})
    };
    let list_page = Page::new("Streams of the nodes, one row a node and stream")
        .query("node", "string", "Of this node only")
        .query("site", "string", "Of this site only")
        .query("stream", "string", "With this name only")
        .answer(200, "The streams", json_type, items("Stream"));
    let about = format!(
        "One record a line, at most 4 MiB a page; header {CONTINUE} says where to go on, {MORE} whether there is more now"
    );
    let records_page = Page::new("Records of a stream, in the order in which they arrived at the hub")
        .query("node", "string", "Of this node only")
        .query("site", "string", "Of this site only")
        .query("from", "string", "Taken at or after this time by the node's clock, RFC 3339")
        .query("to", "string", "Taken before this time")
        .query("limit", "integer", "Records of a page, 1 to 10000; 1000 by default")
        .query("continue", "string", "Go on where a page ended")
        .query("tail", "integer", "Begin with so many records from the end, 0 to 1000")
        .query("follow", "boolean", "Go on with new records; an empty line now and then shows that the hub is there")
        .query("bookmarks", "boolean", "With follow: lines {\"continue\": PLACE} say where to go on after a cut")
        .query(
            "encoding",
            "string",
            "json (default): records that are JSON as such, others base64; base64: all of them",
        )
        .answer(200, &about, "application/x-ndjson", super::book::reference("Record"));
    let counts_page = Page::new("Records of a stream by site and minute")
        .query("site", "string", "Of this site only")
        .query("from", "string", "From the minute with this time on, RFC 3339")
        .query("to", "string", "Minutes that begin before this time")
        .query("limit", "integer", "At most so many, 1 to 50000; 10000 by default")
        .answer(200, "The counts, oldest first; with next, go on with from=next", json_type, items("Count"));
    let gaps_page = Page::new("Records that will never come, and why; newest first")
        .query("node", "string", "Of this node only")
        .query("stream", "string", "Of this stream only")
        .query("limit", "integer", "At most so many, 1 to 100000; 1000 by default")
        .answer(200, "The gaps; with more, there are older ones", json_type, items("Gap"));
    let may = |verb| Rule::May(verb, Resource::Streams);
    book.on(Method::GET, "/api/v1/streams", list, may(Verb::List), list_page)
        .on(Method::GET, "/api/v1/streams/{stream}/records", records, may(Verb::Get), records_page)
        .on(Method::GET, "/api/v1/streams/{stream}/counts", counts, may(Verb::Get), counts_page)
        .on(Method::GET, "/api/v1/gaps", gaps, may(Verb::List), gaps_page)
}
