//! Output of a container or of a command in one, taken out of the frames in which the engine sends it: one byte which of
//! the two it is, three of nothing, four for its length, and that many of text.

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, ReadHalf, WriteHalf};

/// Bytes of what stands before each piece.
const HEADER_BYTES: usize = 8;

/// Read at once of what a person's command writes.
const READ_BYTES: usize = 16 << 10;
/// The first byte of errors.
const ERRORS: u8 = 2;

/// Output, as it comes.
#[derive(Debug)]
pub struct Output {
    body: Incoming,
    frames: Frames,
}

impl Output {
    pub(super) fn new(body: Incoming) -> Output {
        Output { body, frames: Frames::default() }
    }

    /// The next piece of it; `None` at its end, and when the engine breaks off. Cancel safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some((_, piece)) = self.frames.next() {
                return Some(piece);
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.frames.feed(&data);
            }
        }
    }
}

/// Which of its two a command wrote to. At a terminal there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Channel {
    /// Its output.
    #[default]
    Out,
    /// Its errors.
    Err,
}

/// A command's two ends.
#[derive(Debug)]
pub struct Attached {
    /// What it reads.
    pub input: WriteHalf<TokioIo<Upgraded>>,
    /// What it writes.
    pub output: AttachedOutput,
}

/// What a command writes, as it comes.
#[derive(Debug)]
pub struct AttachedOutput {
    reader: ReadHalf<TokioIo<Upgraded>>,
    frames: Frames,
}

impl Attached {
    pub(super) fn new(connection: Upgraded, tty: bool) -> Attached {
        let (reader, input) = tokio::io::split(TokioIo::new(connection));
        let frames = Frames { bare: tty, ..Frames::default() };
        Attached { input, output: AttachedOutput { reader, frames } }
    }
}

impl AttachedOutput {
    /// The next piece of it; `None` at its end, and when the engine breaks off. Cancel safe.
    pub async fn next(&mut self) -> Option<(Channel, Bytes)> {
        loop {
            if let Some(piece) = self.frames.next() {
                return Some(piece);
            }
            self.frames.buffer.reserve(READ_BYTES); // all that was there was handed on, but for a cut header
            self.reader.read_buf(&mut self.frames.buffer).await.ok().filter(|bytes| *bytes > 0)?;
        }
    }
}

/// What came, and how much of a frame is outstanding.
#[derive(Debug, Default)]
struct Frames {
    buffer: BytesMut,
    left: usize,
    channel: Channel,
    /// There are no frames: of a terminal.
    bare: bool,
}

impl Frames {
    fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Option<(Channel, Bytes)> {
        while self.left == 0 && !self.bare {
            self.bare = *self.buffer.first()? > 2;
            if !self.bare {
                let mut header = self.buffer.get(..HEADER_BYTES)?;
                self.channel = if header.first() == Some(&ERRORS) { Channel::Err } else { Channel::Out };
                header.advance(HEADER_BYTES / 2);
                self.left = usize::try_from(header.get_u32()).unwrap_or(usize::MAX);
                self.buffer.advance(HEADER_BYTES);
            }
        }
        if self.buffer.is_empty() {
            return None;
        }
        if self.bare {
            return Some((Channel::Out, self.buffer.split().freeze()));
        }
        let piece = self.buffer.split_to(self.left.min(self.buffer.len()));
        self.left -= piece.len();
        Some((self.channel, piece.freeze()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(chunks: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
        let (mut frames, mut text) = (Frames::default(), vec![]);
        for chunk in chunks {
            frames.feed(&chunk);
            while let Some((_, piece)) = frames.next() {
                text.extend_from_slice(&piece);
            }
        }
        text
    }

    #[test]
    fn what_is_in_no_frames_is_handed_on_as_it_is() {
        assert_eq!(taken([b"line 1\n".to_vec(), b"\x01line 2\n".to_vec()]), b"line 1\n\x01line 2\n");
    }

    proptest! {
        #[test]
        fn the_text_is_the_same_however_it_is_cut(
            pieces in proptest::collection::vec((0_u8..3, proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
            chunk_bytes in 1_usize..20,
        ) {
            let (mut sent, mut text) = (vec![], vec![]);
            for (stream, piece) in pieces {
                sent.extend_from_slice(&[stream, 0, 0, 0]);
                sent.extend_from_slice(&u32::try_from(piece.len()).unwrap().to_be_bytes());
                sent.extend_from_slice(&piece);
                text.extend_from_slice(&piece);
            }
            prop_assert_eq!(taken(sent.chunks(chunk_bytes).map(<[u8]>::to_vec)), text);
        }

        #[test]
        fn nothing_an_engine_sends_is_too_much(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let sent: usize = chunks.iter().map(Vec::len).sum();
            prop_assert!(taken(chunks).len() <= sent);
        }
    }
}
