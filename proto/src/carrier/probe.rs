//! Asks a hub over UDP whether it is there, without a connection: a QUIC packet of a version that nobody speaks,
//! which every server answers with those that it does (RFC 9000, section 6).
//!
//! The answer is not authenticated. Somebody on the way can make one up; a carrier that is chosen for it and
//! carries nothing is left again.

use bytes::{BufMut as _, BytesMut};

/// A server answers nothing shorter (RFC 9000, section 14.1), bytes.
pub const PROBE_BYTES: usize = 1200;
/// One of the versions that are reserved for this (RFC 9000, section 15).
const NO_VERSION: u32 = 0x5a6a_7a8a;
const LONG_HEADER: u8 = 0xc0;
/// Connection IDs that make a probe and its answer recognised.
const ID_BYTES: usize = 8;

/// What a probe is known by.
pub type ProbeId = [u8; ID_BYTES];

/// A probe.
#[must_use]
pub fn probe(id: ProbeId) -> BytesMut {
    let mut packet = BytesMut::with_capacity(PROBE_BYTES);
    packet.put_u8(LONG_HEADER);
    packet.put_u32(NO_VERSION);
    for _ in ["to", "from"] {
        packet.put_u8(u8::try_from(ID_BYTES).unwrap_or_default());
        packet.put_slice(&id);
    }
    packet.resize(PROBE_BYTES, 0);
    packet
}

/// Whether a datagram is the answer to a probe.
#[must_use]
pub fn is_answer(datagram: &[u8], id: ProbeId) -> bool {
    // Form bit, version 0, then the ID that the probe came from.
    let Some(([first, version @ .., length], rest)) = datagram.split_first_chunk::<6>() else { return false };
    first & 0x80 != 0 && *version == [0; 4] && usize::from(*length) == ID_BYTES && rest.starts_with(&id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_of_no_version_and_only_its_own_answer_counts() {
        let packet = probe(*b"12345678");
        assert_eq!(packet.len(), PROBE_BYTES);
        assert_eq!(&packet[..23], b"\xc0\x5a\x6a\x7a\x8a\x0812345678\x0812345678");
        let answer = b"\xd1\0\0\0\0\x0812345678\x0812345678\x0a\x1a\x2a\x3a\0\0\0\x01";
        assert!(is_answer(answer, *b"12345678"));
        assert!(!is_answer(answer, *b"12345679"));
        for other in [&b""[..], b"\xd1\0\0\0\0", b"\xd1\0\0\0\x01\x0812345678", b"\x51\0\0\0\0\x0812345678"] {
            assert!(!is_answer(other, *b"12345678"));
        }
    }
}
