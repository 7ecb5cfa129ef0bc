//! Kind `Event`: something that happened to an object, told once with a count.

use jiff::Timestamp;

kind!(Event, EventSpec, EventStatus, "events");

data! {
    /// Something that happened.
    pub struct EventSpec {
        /// Kind of the object it happened to.
        pub involved_kind: String,
        /// Its name.
        pub involved_name: String,
        /// `Normal` or `Warning`.
        pub r#type: EventType,
        /// One word for programs.
        pub reason: String,
        /// A sentence for people.
        pub message: String,
        /// Who did it: a user, `hub`, or a node.
        pub source: String,
        /// First time.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub first_at: Timestamp,
        /// Last time.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub last_at: Timestamp,
        /// How often.
        pub count: u32,
    }

    /// Nothing.
    #[derive(Default)]
    pub struct EventStatus {}
}

words! {
    /// Weight of an event.
    pub enum EventType {
        /// As it should be.
        Normal,
        /// Somebody may want to look.
        #[serde(other)]
        Warning,
    }
}
