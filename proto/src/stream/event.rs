//! What happened on a node, as records of stream [`STREAM`]: JSON, one object a record.
//!
//! ```json
//! {"schema":"crossdock.io/event/v1","time":"2026-03-01T06:00:00Z","type":"Warning","reason":"RolledBack",
//!  "message":"scan-counter@1.1.0: Unhealthy ...","service.name":"scan-counter","service.version":"1.1.0"}
//! ```
//!
//! | field | what it says |
//! |---|---|
//! | `schema` | [`SCHEMA`]; a record with another one is no event of an agent |
//! | `time` | when the agent saw it, RFC 3339, by the node's clock |
//! | `type` | `Normal` or `Warning` |
//! | `reason` | one word for programs |
//! | `message` | a sentence for people; without counts and times, so that the same again reads the same |
//! | `service.name`, `service.version` | the app and its version, where it is about one (names of OpenTelemetry) |
//!
//! The agent appends them (`edgecore::telemetry`), the hub makes `Event` objects of them. An application may
//! write to the stream too: what is not of this schema stays a record and becomes no object.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    name::{Name, Version},
    object::EventType,
};

/// The stream.
pub const STREAM: &str = "events";
/// What a record says that it is.
pub const SCHEMA: &str = "crossdock.io/event/v1";

/// Something happened. Unknown fields are skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// [`SCHEMA`].
    pub schema: String,
    /// When the agent saw it, by the node's clock.
    pub time: Timestamp,
    /// How grave.
    pub r#type: EventType,
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// The app that it is about.
    #[serde(rename = "service.name", default, skip_serializing_if = "Option::is_none")]
    pub app: Option<Name>,
    /// Its version.
    #[serde(rename = "service.version", default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
}

impl EventRecord {
    /// Reads a record; `None` when it is none of these.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<EventRecord> {
        serde_json::from_slice(bytes).ok().filter(|record: &EventRecord| record.schema == SCHEMA)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_schema_is_an_event() {
        let record = EventRecord {
            schema: SCHEMA.into(),
            time: "2026-03-01T06:00:00Z".parse().unwrap(),
            r#type: EventType::Warning,
            reason: "Exited".into(),
            message: "shop@1.2.0: exit code 1".into(),
            app: Some("shop".parse().unwrap()),
            version: Some("1.2.0".parse().unwrap()),
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(
            text,
            "{\"schema\":\"crossdock.io/event/v1\",\"time\":\"2026-03-01T06:00:00Z\",\"type\":\"Warning\",\
             \"reason\":\"Exited\",\"message\":\"shop@1.2.0: exit code 1\",\"service.name\":\"shop\",\
             \"service.version\":\"1.2.0\"}"
        );
        assert_eq!(EventRecord::read(text.as_bytes()), Some(record.clone()));
        // A newer agent's: more fields, another word for how grave.
        let newer = text.replace("\"Warning\"", "\"Fatal\"").replace("{\"schema\"", "{\"pid\":7,\"schema\"");
        assert_eq!(EventRecord::read(newer.as_bytes()), Some(record));
        for other in ["", "scan", "{}", &text.replace("event/v1", "event/v2"), &text.replace("06:00", "")] {
            assert_eq!(EventRecord::read(other.as_bytes()), None, "{other}");
        }
    }
}
