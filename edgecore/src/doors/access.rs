//! User and password of the TCP doors.

use data_encoding::BASE64;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Who may come in. Kept as digests, so that comparing takes the same time whatever is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Access {
    user: [u8; 32],
    password: [u8; 32],
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

impl Access {
    pub(super) fn new(user: &str, password: &str) -> Access {
        Access { user: digest(user.as_bytes()), password: digest(password.as_bytes()) }
    }

    /// Whether these are the right ones.
    pub(super) fn admits(&self, user: &[u8], password: &[u8]) -> bool {
        bool::from(self.user.ct_eq(&digest(user)) & self.password.ct_eq(&digest(password)))
    }

    /// Whether an `Authorization` header holds the right ones (RFC 7617).
    pub(super) fn admits_basic(&self, header: Option<&[u8]>) -> bool {
        let decoded = (|| {
            let (scheme, credentials) = std::str::from_utf8(header?).ok()?.split_once(' ')?;
            let decoded = BASE64.decode(credentials.trim().as_bytes()).ok()?;
            scheme.eq_ignore_ascii_case("basic").then_some(decoded)
        })();
        let Some(decoded) = decoded else { return false };
        let mut parts = decoded.splitn(2, |b| *b == b':');
        match (parts.next(), parts.next()) {
            (Some(user), Some(password)) => self.admits(user, password),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proto::broker::read_password;

    use super::*;

    #[test]
    fn only_the_right_ones_come_in() {
        let access = Access::new("scanner", "s:cret");
        assert!(access.admits(b"scanner", b"s:cret"));
        let basic = |text: &str| format!("Basic {}", BASE64.encode(text.as_bytes()));
        assert!(access.admits_basic(Some(basic("scanner:s:cret").as_bytes())));
        for wrong in ["scanner:", "scanner:s:creT", "Scanner:s:cret", ":s:cret", "scanner", ""] {
            assert!(!access.admits_basic(Some(basic(wrong).as_bytes())), "{wrong}");
        }
        for wrong in [None, Some(&b"Basic"[..]), Some(b"Basic ?"), Some(b"Bearer abc"), Some(b"\xFF \xFF")] {
            assert!(!access.admits_basic(wrong));
        }
    }

    #[test]
    fn a_password_file_that_is_empty_opens_no_door() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p");
        assert!(read_password(&file).unwrap_err().contains("could not read"));
        fs::write(&file, "\n").unwrap();
        assert!(read_password(&file).unwrap_err().contains("empty"));
        fs::write(&file, " a b \r\n").unwrap();
        assert_eq!(read_password(&file).unwrap(), " a b ");
    }
}
