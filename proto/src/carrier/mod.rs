//! What takes QUIC datagrams from agent to hub where UDP does not: an MQTT broker that is trusted with nothing.
//!
//! ```text
//! quinn <-- CarrierSocket --> UDP
//!                |
//!                +---------> Pipe (queues) <--> client (rumqttc) <--> broker
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`frame`] | several datagrams in one message; asks whether messages get through |
//! | [`address`] | topics, and the addresses by which QUIC knows who is behind a broker |
//! | [`pipe`] | bounded queues between QUIC and one broker |
//! | [`socket`] | one QUIC socket over UDP and brokers |
//! | [`client`] | one connection with a broker |
//! | [`probe`] | asks a hub over UDP whether it is there |
//!
//! The trust is QUIC's, between agent and hub, on whichever carrier: a broker sees ciphertext. It can drop,
//! delay, repeat and invent messages, and that costs speed.
//!
//! Topics are `crossdock/v1/<fleet>/<node>/up` and `.../down`. A node's name there only says where messages go;
//! who somebody is says their certificate. The hub's end is `cloudcore::link::brokers`, the agent's is
//! `edgecore::link::carriers`.

pub mod address;
pub mod client;
pub mod frame;
pub mod pipe;
pub mod probe;
pub mod socket;
