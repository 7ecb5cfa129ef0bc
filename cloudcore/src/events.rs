//! What happened, for people: `Event` objects, folded and bounded. Called by every part of the hub that
//! does something an operator may want to know. What happens on a node comes as records of its own, see
//! [`crate::streams::follow`].

use jiff::Timestamp;
use proto::{
    digest::Digest,
    env::Env,
    name::{Name, ObjectName},
    object::{Event, EventSpec, EventType, Object},
    stream::event::EventRecord,
};

use crate::store::{Store, StoreError};

/// Most events kept; the ones that were last seen longest ago go first.
pub const MAX_EVENTS: u64 = 10_000;
/// Longest message kept, in characters.
const MAX_MESSAGE_CHARS: usize = 1_000;
/// Longest reason kept: it is one word.
const MAX_REASON_CHARS: usize = 64;

/// Records that something happened. The same again raises the count of the event that is there. What
/// cannot be recorded is logged: an event never stands in the way of what it tells about.
#[allow(clippy::too_many_arguments)] // a sentence: to what, how grave, what, by whom
pub async fn record(
    store: &Store,
    env: &Env,
    involved_kind: &str,
    involved_name: &str,
    r#type: EventType,
    reason: &str,
    message: &str,
    source: &str,
) {
    let now = env.wall.now();
    let spec = EventSpec {
        involved_kind: involved_kind.into(),
        involved_name: involved_name.into(),
        r#type,
        reason: reason.into(),
        message: one_line(message, MAX_MESSAGE_CHARS),
        source: source.into(),
        first_at: now,
        last_at: now,
        count: 1,
    };
    tracing::info!(kind = involved_kind, name = involved_name, reason, message = spec.message, source, "event");
    if let Err(error) = write(store, spec).await {
        tracing::warn!(%error, reason, "an event could not be recorded");
    }
}

async fn write(store: &Store, spec: EventSpec) -> Result<(), StoreError> {
    let Ok(name) = name_of(&spec).parse::<ObjectName>() else { return Ok(()) }; // `e-` and hex: always a name
    let now = spec.last_at;
    let repeat = move |event: &mut Event| {
        event.spec.count = event.spec.count.saturating_add(1);
        event.spec.last_at = now;
    };
    if store.modify(name.as_str(), repeat).await?.is_some() {
        return Ok(());
    }
    match store.create(Object::new(name.clone(), spec)).await {
        Ok(_) => store.trim::<EventSpec>(MAX_EVENTS).await,
        Err(StoreError::AlreadyExists { .. }) => store.modify(name.as_str(), repeat).await.map(drop),
        Err(error) => Err(error),
    }
}

/// A text in one line and of bounded length, without what could play with a terminal: any application on a box may
/// write events, and boxes that are not admitted yet say who they are.
pub(crate) fn one_line(text: &str, most_chars: usize) -> String {
    let blank = |c: char| if matches!(c, '\n' | '\r' | '\t') { ' ' } else { c };
    text.chars().map(blank).filter(|c| !c.is_control()).take(most_chars).collect()
}

/// An event that came with a record of a node; `None` when its text makes no name.
pub(crate) fn told_by(node: &Name, record: EventRecord, now: Timestamp) -> Option<Event> {
    // A clock that runs ahead must not keep its node's events the newest for ever.
    let at = record.time.min(now);
    let spec = EventSpec {
        involved_kind: "Node".into(),
        involved_name: node.to_string(),
        r#type: record.r#type,
        reason: one_line(&record.reason, MAX_REASON_CHARS),
        message: one_line(&record.message, MAX_MESSAGE_CHARS),
        source: node.to_string(),
        first_at: at,
        last_at: at,
        count: 1,
    };
    let name = name_of(&spec).parse::<ObjectName>().ok()?;
    Some(Object::new(name, spec))
}

/// Folds an event into the one that is there. Nodes that come back tell fresh events ahead of older ones.
pub(crate) fn fold(event: &mut Event, again: &EventSpec) {
    let spec = &mut event.spec;
    spec.count = spec.count.saturating_add(again.count);
    spec.first_at = spec.first_at.min(again.first_at);
    spec.last_at = spec.last_at.max(again.last_at);
}

/// The same happening has the same name.
fn name_of(spec: &EventSpec) -> String {
    let parts = [&spec.involved_kind, &spec.involved_name, &spec.reason, &spec.message, &spec.source];
    let mut text = spec.r#type.as_str().to_owned();
    parts.iter().for_each(|part| {
        text.push('\0');
        text.push_str(part);
    });
    format!("e-{}", Digest::of(text.as_bytes()).hex().get(..20).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_record_tells_cannot_play_with_a_terminal() {
        let now: Timestamp = "2026-03-01T06:00:00Z".parse().unwrap();
        let record = EventRecord {
            schema: proto::stream::event::SCHEMA.into(),
            time: now,
            r#type: EventType::Warning,
            reason: "Bad\u{7}".into(),
            message: "\u{1b}]0;owned\u{7}line one\nline\u{9b}31m two\u{7f}".into(),
            app: None,
            version: None,
        };
        let event = told_by(&"n1".parse().unwrap(), record, now).unwrap();
        assert_eq!((event.spec.reason.as_str(), event.spec.message.as_str()), ("Bad", "]0;ownedline one line31m two"));
    }

    #[tokio::test]
    async fn repeats_are_counted_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let env = Env { blocking: proto::env::Blocking::Inline, ..Env::real().unwrap() };
        let store = Store::open(&folder.path().join("hub.db"), &env).await.unwrap();
        for _ in 0..3 {
            record(&store, &env, "Node", "n1", EventType::Warning, "Silent", "not heard from", "hub").await;
        }
        record(&store, &env, "Node", "n2", EventType::Normal, "Joined", "joined", "hub").await;
        let events = store.list::<EventSpec>(None).await.unwrap().items;
        let mut counts: Vec<_> = events.iter().map(|e| (e.spec.involved_name.as_str(), e.spec.count)).collect();
        counts.sort_unstable();
        assert_eq!(counts, [("n1", 3), ("n2", 1)]);

        store.trim::<EventSpec>(1).await.unwrap();
        let events = store.list::<EventSpec>(None).await.unwrap().items;
        assert_eq!(events.iter().map(|e| e.spec.involved_name.as_str()).collect::<Vec<_>>(), ["n2"]);
    }
}
