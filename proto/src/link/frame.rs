//! Frames: a length of four bytes (big endian), then that many bytes of JSON.
//!
//! The length is checked against the caller's bound before anything is allocated. JSON describes
//! itself, so a peer skips what it does not know.

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bound of control messages, in bytes.
pub const MAX_CONTROL_BYTES: usize = 1 << 20;
/// Bound of requests and their headers, in bytes.
pub const MAX_REQUEST_BYTES: usize = 16 << 10;
/// Bound of a metadata reply, in bytes.
pub const MAX_METADATA_BYTES: usize = 16 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended between frames.
    #[error("the peer ended the stream")]
    Ended,
    /// The peer announced more than the bound.
    #[error("a frame of {announced} bytes is over the bound of {bound}")]
    TooLarge {
        /// Bytes that its header names.
        announced: usize,
        /// Bytes allowed here.
        bound: usize,
    },
    /// The content is not what was expected.
    #[error("a frame is malformed: {0}")]
    Malformed(String),
    /// The stream failed.
    #[error("the stream failed")]
    Io(#[from] std::io::Error),
}

/// A message as bytes of a frame.
///
/// # Errors
/// [`FrameError::TooLarge`] when it is over `bound`: the peer would close the connection.
pub fn encode(message: &impl Serialize, bound: usize) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(|e| FrameError::Malformed(e.to_string()))?;
    let length = bytes.len() - 4;
    match u32::try_from(length) {
        Ok(header) if length <= bound => {
            if let Some(slot) = bytes.first_chunk_mut::<4>() {
                *slot = header.to_be_bytes();
            }
            Ok(bytes)
        }
        _ => Err(FrameError::TooLarge { announced: length, bound }),
    }
}

/// Writes one frame.
///
/// Not cancel safe: dropped half-way, the stream is useless.
///
/// # Errors
/// As [`encode`], and those of the stream.
pub async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
    bound: usize,
) -> Result<(), FrameError> {
    stream.write_all(&encode(message, bound)?).await?;
    Ok(())
}

/// Reads one frame.
///
/// Not cancel safe: give it a task of its own or a stream that is dropped with it.
///
/// # Errors
/// [`FrameError::Ended`] when the stream ends before a frame begins; otherwise what is wrong.
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin), bound: usize) -> Result<T, FrameError> {
    let mut header = [0; 4];
    let first = stream.read(&mut header).await?;
    if first == 0 {
        return Err(FrameError::Ended);
    }
    stream.read_exact(header.get_mut(first..).unwrap_or_default()).await?;
    let announced = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if announced > bound {
        return Err(FrameError::TooLarge { announced, bound });
    }
    // Grows with what arrives: a peer that announces much and sends little costs little.
    let mut body = Vec::with_capacity(announced.min(16 << 10));
    let got = stream.take(announced as u64).read_to_end(&mut body).await?;
    if got < announced {
        return Err(FrameError::Malformed(format!("it ends after {got} of {announced} bytes")));
    }
    serde_json::from_slice(&body).map_err(|e| FrameError::Malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_go_both_ways_and_are_bounded() {
        let mut wire = vec![];
        write(&mut wire, &"hello", 100).await.unwrap();
        write(&mut wire, &7, 100).await.unwrap();
        let mut reader = &wire[..];
        assert_eq!(read::<String>(&mut reader, 100).await.unwrap(), "hello");
        assert_eq!(read::<u32>(&mut reader, 100).await.unwrap(), 7);
        assert!(matches!(read::<u32>(&mut reader, 100).await, Err(FrameError::Ended)));

        assert!(matches!(
            read::<String>(&mut &wire[..], 6).await,
            Err(FrameError::TooLarge { announced: 7, bound: 6 })
        ));
        assert!(matches!(write(&mut vec![], &"hello", 6).await, Err(FrameError::TooLarge { .. })));
        for cut in 1..11 {
            assert!(read::<String>(&mut &wire[..cut], 100).await.is_err(), "{cut}");
        }
        let hostile = [0xff, 0xff, 0xff, 0xff, b'"'];
        assert!(matches!(read::<String>(&mut &hostile[..], 100).await, Err(FrameError::TooLarge { .. })));
    }
}
