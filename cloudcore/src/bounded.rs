//! Text files and streams that somebody else wrote, read up to a bound. Used by `crate::config`,
//! `crate::release` and `crate::cli`.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Reads all of a file, at most `limit_bytes`.
///
/// # Errors
/// When it cannot be read, is no text, or is larger.
pub(crate) fn read_file(path: &Path, limit_bytes: u64) -> io::Result<String> {
    read(File::open(path)?, limit_bytes)
}

/// Reads to the end, at most `limit_bytes`. What is larger is refused, never cut: half a file says
/// something else than the whole.
///
/// # Errors
/// As [`read_file`].
pub(crate) fn read(from: impl Read, limit_bytes: u64) -> io::Result<String> {
    let mut bytes = vec![];
    from.take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {limit_bytes} bytes")));
    }
    String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_larger_is_refused_and_not_cut() {
        assert_eq!(read(&b"abc"[..], 3).unwrap(), "abc");
        assert_eq!(read(&b"abcd"[..], 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(&b"\xff"[..], 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // A stream without end, as standard input may be.
        assert_eq!(read(io::repeat(b'a'), 1 << 20).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
