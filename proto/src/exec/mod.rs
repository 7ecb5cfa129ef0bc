//! Commands of people in workloads: `crossdock exec NODE/APP -- COMMAND`.
//!
//! ```text
//! person's terminal --HTTP upgrade--> hub --stream of the link--> agent --> the command, as the workload's user
//!         `------------------ TLS 1.3, both ends known by key ------------------'
//! ```
//!
//! The hub joins the two ends and cannot make what goes between them: were its word enough, who steals a hub would run
//! what they like on every box, and all signatures of releases were for nothing. (As the nodes' CA a stolen hub can answer
//! in a box's place, and read what the person types to it; nothing of that runs on a box.) So the release says
//! who may ([`crate::release::Exec`]), signed like all of it, and a person proves to the agent that they hold such a
//! key. Ends and their keys are in [`tls`].
//!
//! Inside TLS a person sends one frame, [`Start`], and the node answers one, [`Reply`]; after [`Reply::Started`] both
//! send packets: a byte that says of which kind, the length of what follows (four bytes, big endian), and that. A packet
//! of a kind that is not known is skipped.

pub mod tls;

use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::name::Name;

/// Longest content of a packet, in bytes.
pub const MAX_PACKET_BYTES: usize = 64 << 10;
/// HTTP `Upgrade` token of the connection between command line and hub.
pub const UPGRADE: &str = "crossdock-exec";

/// What a person wants to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    /// Where: the node refuses what was meant for another.
    pub node: Name,
    /// In which app's workload.
    pub app: Name,
    /// Program and arguments; the program is looked for as that of a probe.
    pub command: Vec<String>,
    /// Whether input follows. Without it the command reads an end at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// Run it at a terminal of this kind and size: output and errors are one then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Terminal>,
}

/// A terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Its kind, as `TERM` has it.
    pub term: String,
    /// Its size.
    #[serde(flatten)]
    pub size: Size,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// Answer to [`Start`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "camelCase")]
pub enum Reply {
    /// It runs: packets follow.
    Started,
    /// It does not.
    Refused {
        /// For people, with what to do.
        message: String,
    },
}

/// How a command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code, when it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Signal, when it was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// What else is to be said, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// What a person sends to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Bytes for it to read, at most [`MAX_PACKET_BYTES`].
    Bytes(Bytes),
    /// No more follow.
    End,
    /// The terminal has another size.
    Resize(Size),
}

/// What comes of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Bytes of its output, at most [`MAX_PACKET_BYTES`].
    Out(Bytes),
    /// The same of its errors.
    Err(Bytes),
    /// It ended; nothing follows.
    Ended(Ended),
}

const BYTES: u8 = 0;
const END: u8 = 1;
const RESIZE: u8 = 2;
const OUT: u8 = 16;
const ERR: u8 = 17;
const ENDED: u8 = 18;

impl Input {
    /// Writes it as a packet. Not cancel safe.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        match self {
            Input::Bytes(bytes) => write(stream, BYTES, bytes).await,
            Input::End => write(stream, END, &[]).await,
            Input::Resize(size) => write(stream, RESIZE, &serde_json::to_vec(size)?).await,
        }
    }

    /// Reads the next one that is known; `None` at the end. Not cancel safe.
    ///
    /// # Errors
    /// When a packet is too long, cut off or malformed, and those of the stream.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Input>> {
        while let Some((kind, content)) = read(stream).await? {
            match kind {
                BYTES => return Ok(Some(Input::Bytes(content))),
                END => return Ok(Some(Input::End)),
                RESIZE => return Ok(Some(Input::Resize(serde_json::from_slice(&content)?))),
                _ => {}
            }
        }
        Ok(None)
    }
}

impl Output {
    /// Writes it as a packet. Not cancel safe.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        match self {
            Output::Out(bytes) => write(stream, OUT, bytes).await,
            Output::Err(bytes) => write(stream, ERR, bytes).await,
            Output::Ended(ended) => write(stream, ENDED, &serde_json::to_vec(ended)?).await,
        }
    }

    /// Reads the next one that is known; `None` at the end. Not cancel safe.
    ///
    /// # Errors
    /// As [`Input::read`].
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Output>> {
        while let Some((kind, content)) = read(stream).await? {
            match kind {
                OUT => return Ok(Some(Output::Out(content))),
                ERR => return Ok(Some(Output::Err(content))),
                ENDED => return Ok(Some(Output::Ended(serde_json::from_slice(&content)?))),
                _ => {}
            }
        }
        Ok(None)
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), kind: u8, content: &[u8]) -> io::Result<()> {
    let length = u32::try_from(content.len()).ok().filter(|_| content.len() <= MAX_PACKET_BYTES);
    let length = length.ok_or_else(|| too_long(content.len()))?.to_be_bytes();
    let mut head = [kind, 0, 0, 0, 0];
    head.iter_mut().skip(1).zip(length).for_each(|(slot, byte)| *slot = byte);
    stream.write_all(&head).await?;
    stream.write_all(content).await?;
    stream.flush().await
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(u8, Bytes)>> {
    let mut kind = [0];
    if stream.read(&mut kind).await? == 0 {
        return Ok(None);
    }
    let length = stream.read_u32().await? as usize;
    if length > MAX_PACKET_BYTES {
        return Err(too_long(length));
    }
    let mut content = Vec::with_capacity(length);
    if stream.take(length as u64).read_to_end(&mut content).await? < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let [kind] = kind;
    Ok(Some((kind, content.into())))
}

fn too_long(length: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a packet of {length} bytes is over the bound of {MAX_PACKET_BYTES}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_go_both_ways_and_strange_ones_are_skipped() {
        let size = Size { rows: 24, columns: 80 };
        let inputs = [Input::Bytes(Bytes::from_static(b"ls\n")), Input::Resize(size), Input::End];
        let mut wire = vec![9, 0, 0, 0, 2, 1, 2];
        for input in &inputs {
            input.write(&mut wire).await.unwrap();
        }
        assert_eq!(wire.get(7..15), Some(&[0, 0, 0, 0, 3, b'l', b's', b'\n'][..]), "the form is fixed");
        let mut reader = &wire[..];
        for input in inputs {
            assert_eq!(Input::read(&mut reader).await.unwrap(), Some(input));
        }
        assert_eq!(Input::read(&mut reader).await.unwrap(), None);

        let ended = Output::Ended(Ended { code: Some(3), ..Ended::default() });
        let outputs = [Output::Out(Bytes::from_static(b"a")), Output::Err(Bytes::new()), ended];
        let mut wire = vec![];
        for output in &outputs {
            output.write(&mut wire).await.unwrap();
        }
        let mut reader = &wire[..];
        for output in outputs {
            assert_eq!(Output::read(&mut reader).await.unwrap(), Some(output));
        }
    }

    #[tokio::test]
    async fn packets_are_bounded() {
        assert!(Output::Out(vec![0; MAX_PACKET_BYTES + 1].into()).write(&mut vec![]).await.is_err());
        for hostile in [&[0, 0xff, 0xff, 0xff, 0xff, 1][..], &[0, 0, 0, 0, 2, 1], &[0, 0, 0], &[2, 0, 0, 0, 1, b'x']] {
            assert!(Input::read(&mut &*hostile).await.is_err(), "{hostile:?}");
        }
    }

    #[test]
    fn messages_of_later_versions_are_understood() {
        let text =
            r#"{"node":"n","app":"a","command":["sh"],"terminal":{"term":"x","rows":1,"columns":2,"new":1},"new":1}"#;
        let start: Start = serde_json::from_str(text).unwrap();
        let size = Size { rows: 1, columns: 2 };
        assert_eq!(start.terminal, Some(Terminal { term: "x".into(), size }));
        assert!(!start.stdin);
        let reply: Reply = serde_json::from_str(r#"{"status":"refused","message":"no","new":1}"#).unwrap();
        assert_eq!(reply, Reply::Refused { message: "no".into() });
    }
}
