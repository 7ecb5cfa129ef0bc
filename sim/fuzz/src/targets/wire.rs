//! What comes over the link: frames and their messages, records, the carrier's datagrams.

use bytes::Bytes;
use proto::{
    carrier::{
        address::{self, Way},
        frame as carrier,
    },
    link::{frame, message},
    name::Name,
    stream::{
        batch::Batch,
        event::{EventRecord, SCHEMA},
        message as stream,
        ranges::Ranges,
    },
    token::Token,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{both_ways, run};

/// A frame as it comes, and its content as every message.
pub(super) fn frames(data: &[u8]) {
    let (kind, data) = data.split_first().unwrap_or((&0, &[]));
    match kind % 16 {
        0 => framed::<message::AgentMessage>(data),
        1 => framed::<message::HubMessage>(data),
        2 => framed::<message::AgentRequest>(data),
        3 => framed::<message::HubRequest>(data),
        4 => framed::<message::MetadataReply>(data),
        5 => framed::<message::BlobHeader>(data),
        6 => framed::<message::LogsHeader>(data),
        7 => framed::<message::RenewRequest>(data),
        8 => framed::<message::RenewReply>(data),
        9 => framed::<message::JoinRequest>(data),
        10 => framed::<message::JoinReply>(data),
        11 => framed::<stream::Up>(data),
        12 => framed::<stream::Down>(data),
        13 => framed::<stream::RecordsRequest>(data),
        14 => framed::<EventRecord>(data),
        _ => framed::<Ranges>(data),
    }
}

fn framed<T: Serialize + DeserializeOwned>(data: &[u8]) {
    const BOUND: usize = 1 << 16;
    let mut wire = data;
    if let Ok(value) = run(frame::read::<T>(&mut wire, BOUND)) {
        let printed = frame::encode(&value, usize::MAX).expect("what was read can be framed");
        let again: T = run(frame::read(&mut &printed[..], usize::MAX)).expect("what was framed");
        assert_eq!(serde_json::to_string(&again).unwrap(), serde_json::to_string(&value).unwrap());
    }
    both_ways::<T>(data);
}

/// A sealed batch as it comes, and one whose seal is good.
pub(super) fn batch(data: &[u8]) {
    opened(data);
    let (mode, content) = data.split_first().unwrap_or((&0, &[]));
    if mode % 2 == 1 {
        opened(&zstd::bulk::compress(content, 1).unwrap());
    }
    assert!(EventRecord::read(data).is_none_or(|record| record.schema == SCHEMA));
}

fn opened(sealed: &[u8]) {
    let Ok(batch) = Batch::open(sealed) else { return };
    assert!(!batch.records.is_empty() && batch.end() - batch.first == batch.records.len() as u64);
    let again = batch.seal().expect("what was opened can be sealed");
    assert_eq!(Batch::open(&again).as_ref(), Ok(&batch));
    let half = batch.first + batch.records.len() as u64 / 2;
    let (head, tail) = (batch.part(0..half), batch.part(half..u64::MAX));
    assert_eq!([head.records, tail.records].concat(), batch.records);
}

/// A message of the carrier, its topic, and the token that a technician pastes.
pub(super) fn carrier(data: &[u8]) {
    if let Ok(read) = carrier::read(Bytes::copy_from_slice(data)) {
        let printed = match &read {
            carrier::Message::Datagrams { segment, contents } => carrier::datagrams(*segment, contents).unwrap(),
            carrier::Message::Ask(echo) => carrier::ask(*echo),
            carrier::Message::Answer(echo) => carrier::answer(*echo),
        };
        assert_eq!(carrier::read(printed), Ok(read));
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let fleet: Name = "fleet".parse().unwrap();
    for way in [Way::Up, Way::Down] {
        if let Some(node) = address::node_of(text, &fleet, way) {
            assert_eq!(address::topic(&fleet, &node, way), text);
        }
    }
    let token = both_ways::<Token>(data).or_else(|| text.parse().ok());
    if let Some(token) = token {
        let printed = token.to_string();
        assert!(printed.len() > proto::token::MAX_TOKEN_BYTES || printed.parse().as_ref() == Ok(&token));
        assert!(
            !format!("{token:?}").contains(&token.secret) || token.secret.len() < 8 || token.id.contains(&token.secret)
        );
    }
}
