//! What one MQTT message of the carrier holds: several datagrams, or a question whether messages get through.
//!
//! ```text
//! byte 0      version, 1
//! byte 1      kind: 0 datagrams, 1 ask, 2 answer
//! datagrams:  size of each (2 bytes, big endian), then the datagrams; the last one may be shorter
//! ask:        number (8 bytes, big endian), then zeros: as large as the messages that are to get through
//! answer:     the same number, as large as the ask
//! ```
//!
//! Whoever holds the broker can write all of this. Nothing is believed of it but what QUIC verifies; a forged
//! answer costs speed.

use bytes::{BufMut as _, Bytes, BytesMut};

/// Version that is written, and the only one that is read.
pub const VERSION: u8 = 1;
/// Datagrams in one message at most: as many as quinn sends at once.
pub const MAX_SEGMENTS: usize = 10;
/// The same where messages above 4 KiB are slow.
pub const WEB_SEGMENTS: usize = 2;
/// Largest datagram, bytes: what an Ethernet carries.
pub const MAX_SEGMENT_BYTES: usize = 1472;
/// Bytes before the datagrams.
pub const HEADER_BYTES: usize = 4;
/// Largest message, bytes.
pub const MAX_MESSAGE_BYTES: usize = message_bytes(MAX_SEGMENTS);
/// Smallest ask or answer, bytes.
pub const MIN_ASK_BYTES: usize = 10;

const DATAGRAMS: u8 = 0;
const ASK: u8 = 1;
const ANSWER: u8 = 2;

/// Size in bytes of a message of so many largest datagrams.
#[must_use]
pub const fn message_bytes(segments: usize) -> usize {
    HEADER_BYTES + segments * MAX_SEGMENT_BYTES
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// QUIC datagrams, each of `segment` bytes; the last may be shorter. Neither is empty.
    Datagrams {
        /// Bytes of each.
        segment: usize,
        /// All of them, at most [`MAX_SEGMENTS`].
        contents: Bytes,
    },
    /// Wants an answer of the same size.
    Ask(Echo),
    /// Is one.
    Answer(Echo),
}

/// An ask and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Tells one from another.
    pub number: u64,
    /// Bytes of the whole message, [`MIN_ASK_BYTES`] to [`MAX_MESSAGE_BYTES`].
    pub bytes: usize,
}

/// Why a message is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Neither a version nor a kind.
    #[error("it is too short")]
    Short,
    /// Larger than anything that is sent.
    #[error("it is larger than {MAX_MESSAGE_BYTES} bytes")]
    Long,
    /// Of another version.
    #[error("its version {0} is not known here")]
    Version(u8),
    /// Of another kind.
    #[error("its kind {0} is not known here")]
    Kind(u8),
    /// Datagrams that nobody sends.
    #[error("its datagrams are empty, too large or too many")]
    Segments,
}

/// Datagrams as a message. `None` when they are empty, too large or too many.
#[must_use]
pub fn datagrams(segment: usize, contents: &[u8]) -> Option<Bytes> {
    check(segment, contents.len()).ok()?;
    let mut message = BytesMut::with_capacity(HEADER_BYTES + contents.len());
    message.put_u8(VERSION);
    message.put_u8(DATAGRAMS);
    message.put_u16(u16::try_from(segment).ok()?);
    message.put_slice(contents);
    Some(message.freeze())
}

/// A question, padded to its size.
#[must_use]
pub fn ask(echo: Echo) -> Bytes {
    padded(ASK, echo)
}

/// The answer to one.
#[must_use]
pub fn answer(echo: Echo) -> Bytes {
    padded(ANSWER, echo)
}

fn padded(kind: u8, echo: Echo) -> Bytes {
    let bytes = echo.bytes.clamp(MIN_ASK_BYTES, MAX_MESSAGE_BYTES);
    let mut message = BytesMut::with_capacity(bytes);
    message.put_u8(VERSION);
    message.put_u8(kind);
    message.put_u64(echo.number);
    message.put_bytes(0, bytes - MIN_ASK_BYTES);
    message.freeze()
}

fn check(segment: usize, contents: usize) -> Result<(), Malformed> {
    let fits = (1..=MAX_SEGMENT_BYTES).contains(&segment) && contents > 0;
    if fits && contents.div_ceil(segment) <= MAX_SEGMENTS { Ok(()) } else { Err(Malformed::Segments) }
}

/// Reads a message.
///
/// # Errors
/// What is wrong with it; it is to be dropped.
pub fn read(mut message: Bytes) -> Result<Message, Malformed> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(Malformed::Long);
    }
    let bytes = message.len();
    let [version, kind] = *message.first_chunk().ok_or(Malformed::Short)?;
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    let body = message.split_off(2);
    match kind {
        DATAGRAMS => {
            let segment = usize::from(u16::from_be_bytes(*body.first_chunk().ok_or(Malformed::Short)?));
            let contents = body.slice(2..);
            check(segment, contents.len())?;
            Ok(Message::Datagrams { segment, contents })
        }
        ASK | ANSWER => {
            let number = u64::from_be_bytes(*body.first_chunk().ok_or(Malformed::Short)?);
            let echo = Echo { number, bytes };
            Ok(if kind == ASK { Message::Ask(echo) } else { Message::Answer(echo) })
        }
        kind => Err(Malformed::Kind(kind)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The form on the wire: agents and hubs of other versions read it.
    #[test]
    fn golden_bytes() {
        let message = datagrams(3, b"abcdefg").unwrap();
        assert_eq!(&message[..], b"\x01\x00\x00\x03abcdefg");
        assert_eq!(read(message), Ok(Message::Datagrams { segment: 3, contents: Bytes::from_static(b"abcdefg") }));
        let echo = Echo { number: 0x0102_0304_0506_0708, bytes: 12 };
        assert_eq!(&ask(echo)[..], b"\x01\x01\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00");
        assert_eq!(&answer(echo)[..], b"\x01\x02\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00");
        assert_eq!((read(ask(echo)), read(answer(echo))), (Ok(Message::Ask(echo)), Ok(Message::Answer(echo))));
    }

    #[test]
    fn what_nobody_sends_is_refused() {
        let of = |bytes: &[u8]| read(Bytes::copy_from_slice(bytes)).unwrap_err();
        assert_eq!((of(b""), of(b"\x01"), of(b"\x01\x00\x00")), (Malformed::Short, Malformed::Short, Malformed::Short));
        assert_eq!((of(b"\x02\x00\x00\x01a"), of(b"\x01\x09")), (Malformed::Version(2), Malformed::Kind(9)));
        assert_eq!((of(b"\x01\x00\x00\x00a"), of(b"\x01\x00\x00\x05")), (Malformed::Segments, Malformed::Segments));
        assert_eq!(of(b"\x01\x00\x00\x01abcdefghijk"), Malformed::Segments, "eleven of them");
        assert_eq!(of(&vec![1; MAX_MESSAGE_BYTES + 1]), Malformed::Long);
        assert_eq!((datagrams(0, b"a"), datagrams(1, b"")), (None, None));
        assert_eq!(datagrams(MAX_SEGMENT_BYTES + 1, &[0; MAX_SEGMENT_BYTES + 1]), None);
        let full = datagrams(MAX_SEGMENT_BYTES, &[7; MAX_SEGMENTS * MAX_SEGMENT_BYTES]).unwrap();
        assert_eq!(full.len(), MAX_MESSAGE_BYTES);
        assert!(read(full).is_ok());
        assert_eq!(ask(Echo { number: 1, bytes: usize::MAX }).len(), MAX_MESSAGE_BYTES);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_within_bounds(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Message::Datagrams { segment, contents }) = read(Bytes::from(bytes)) {
                prop_assert!(segment > 0 && !contents.is_empty());
                prop_assert!(contents.len().div_ceil(segment) <= MAX_SEGMENTS);
            }
        }

        #[test]
        fn datagrams_go_both_ways(segment in 1usize..=MAX_SEGMENT_BYTES, contents in prop::collection::vec(any::<u8>(), 1..3000)) {
            match datagrams(segment, &contents) {
                Some(message) => {
                    let read = read(message).unwrap();
                    prop_assert_eq!(read, Message::Datagrams { segment, contents: contents.into() });
                }
                None => prop_assert!(contents.len().div_ceil(segment) > MAX_SEGMENTS),
            }
        }
    }
}
