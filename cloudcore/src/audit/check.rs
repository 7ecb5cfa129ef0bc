//! Judges an audit log: whether its chain is whole, and whether it holds heads that were kept elsewhere. Pure.

use std::fmt;

use super::line::{Head, Line};

/// Verb of the line that says that files were removed; its detail is the head at their end.
pub const TRIM: &str = "trim";

/// A log that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Sequence of the first line that is there; 1 unless older files were removed. 0: there is none.
    pub first: u64,
    /// Its end.
    pub head: Head,
    /// Bytes after the last line end: a line that was being written when power was cut.
    pub torn_bytes: usize,
}

/// Where a log is not whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Broken {
    /// The file, and the number of the line in it, from 1; `None`: the log as a whole.
    pub at: Option<(String, usize)>,
    /// What is wrong.
    pub problem: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            Some((file, line)) => write!(f, "{file}, line {line}: {}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

/// Takes the lines of a log one after the other.
#[derive(Debug)]
pub struct Check {
    head: Option<Head>,
    /// What stood before the first line that is there.
    before: Option<Head>,
    first: u64,
    /// Heads that a line says were the end of removed files.
    trimmed: Vec<Head>,
    /// Heads that were kept elsewhere, and were not met yet.
    kept: Vec<Head>,
    /// Sequences of the heads that were met.
    torn_bytes: usize,
}

impl Check {
    /// A check that wants to meet each of `kept`.
    #[must_use]
    pub fn new(kept: Vec<Head>) -> Check {
        Check { head: None, before: None, first: 0, trimmed: vec![], kept, torn_bytes: 0 }
    }

    /// The next line of `file`, without its line end.
    ///
    /// # Errors
    /// When the chain breaks here.
    pub fn line(&mut self, file: &str, number: usize, bytes: &[u8]) -> Result<(), Broken> {
        let broken = |problem: String| Broken { at: Some((file.to_owned(), number)), problem };
        let line = Line::parse(bytes).map_err(|e| broken(e.to_string()))?;
        let before = Head { seq: line.seq.saturating_sub(1), hash: line.prev };
        match self.head {
            Some(head) if before.seq != head.seq => {
                let text = format!(
                    "it has sequence {} and follows {}: lines are missing, or in another order",
                    line.seq, head.seq
                );
                return Err(broken(text));
            }
            Some(head) if before != head => {
                return Err(broken(format!("it does not follow the line before: another line {} was there", head.seq)));
            }
            Some(_) => {}
            None => (self.before, self.first) = (Some(before), line.seq),
        }
        let head = line.head();
        if let Some(other) = self.kept.iter().find(|kept| kept.seq == head.seq && kept.hash != head.hash) {
            return Err(broken(format!("the head {other} that was kept is of another line: the log was written anew")));
        }
        self.kept.retain(|kept| *kept != head);
        if line.entry.verb == TRIM && line.entry.kind == "audit" {
            self.trimmed.extend(line.entry.detail.parse::<Head>().ok());
        }
        self.head = Some(head);
        Ok(())
    }

    /// Bytes without a line end, after the last line.
    pub fn torn(&mut self, bytes: usize) {
        self.torn_bytes = bytes;
    }

    /// After the last line.
    ///
    /// # Errors
    /// When the beginning is missing, or a head that was kept elsewhere.
    pub fn finish(self) -> Result<Report, Broken> {
        let broken = |problem: String| Broken { at: None, problem };
        let before = self.before.unwrap_or_else(Head::none);
        // Older files may be gone where the log itself says so.
        if before != Head::none() && !self.trimmed.contains(&before) {
            let text = format!(
                "the log begins with line {}, and none of its lines says that older ones were removed",
                self.first
            );
            return Err(broken(text));
        }
        let head = self.head.unwrap_or_else(Head::none);
        for kept in &self.kept {
            let is_removed = kept.seq <= before.seq && before.seq > 0;
            if *kept == Head::none() || *kept == before {
                continue;
            }
            return Err(broken(if is_removed {
                format!(
                    "the head {kept} is older than what is kept here, which begins with line {}: it says nothing",
                    self.first
                )
            } else {
                format!(
                    "the log ends with line {}, and head {kept} was kept of it: lines were cut off at its end",
                    head.seq
                )
            }));
        }
        Ok(Report { first: self.first, head, torn_bytes: self.torn_bytes })
    }
}

#[cfg(test)]
mod tests {
    use proto::digest::Digest;

    use super::*;
    use crate::audit::Entry;

    fn log(count: u64) -> Vec<Vec<u8>> {
        let mut head = Head::none();
        let lines = (0..count).map(|n| {
            let time = jiff::Timestamp::from_second(1_800_000_000 + n as i64).unwrap();
            let entry = Entry { name: n.to_string(), verb: "create".into(), ..Entry::default() };
            let (line, mut bytes) = Line::after(&head, time, entry).unwrap();
            head = line.head();
            bytes.pop();
            bytes
        });
        lines.collect()
    }

    fn judge(lines: &[Vec<u8>], kept: &[Head]) -> Result<Report, Broken> {
        let mut check = Check::new(kept.to_vec());
        for (n, line) in lines.iter().enumerate() {
            check.line("f", n + 1, line)?;
        }
        check.finish()
    }

    fn at(broken: Result<Report, Broken>) -> Option<usize> {
        broken.unwrap_err().at.map(|(_, line)| line)
    }

    #[test]
    fn whatever_is_done_to_a_log_is_found_at_its_place() {
        let whole = log(6);
        let head = Line::parse(&whole[5]).unwrap().head();
        assert_eq!(judge(&whole, &[head, Head::none()]).unwrap(), Report { first: 1, head, torn_bytes: 0 });
        assert_eq!(judge(&[], &[]).unwrap().head, Head::none());

        let mut left_out = whole.clone();
        left_out.remove(2);
        assert_eq!(at(judge(&left_out, &[])), Some(3));
        let mut swapped = whole.clone();
        swapped.swap(2, 3);
        assert_eq!(at(judge(&swapped, &[])), Some(3));
        let mut twice = whole.clone();
        twice.insert(3, whole[2].clone());
        assert_eq!(at(judge(&twice, &[])), Some(4));
        let mut changed = whole.clone();
        changed[3] = String::from_utf8(changed[3].clone()).unwrap().replace("create", "delete").into_bytes();
        assert_eq!(at(judge(&changed, &[])), Some(4));
        // Changed with a hash of its own: the line after it does not follow.
        let mut forged = whole.clone();
        let before = Line::parse(&whole[2]).unwrap().head();
        forged[3] = Line::after(&before, jiff::Timestamp::UNIX_EPOCH, Entry::default()).unwrap().1;
        forged[3].pop();
        assert_eq!(at(judge(&forged, &[])), Some(5));
        let error = judge(&whole[2..], &[]).unwrap_err();
        assert!(error.at.is_none() && error.problem.contains("begins with line 3"), "{error}");
    }

    #[test]
    fn a_head_kept_elsewhere_shows_what_the_chain_cannot() {
        let whole = log(6);
        let heads: Vec<Head> = whole.iter().map(|line| Line::parse(line).unwrap().head()).collect();
        assert!(judge(&whole[..4], &[]).is_ok(), "a shorter chain is a chain");
        assert!(judge(&whole[..4], &[heads[3]]).is_ok());
        let error = judge(&whole[..4], &[heads[2], heads[5]]).unwrap_err();
        assert!(error.problem.contains("cut off"), "{error}");
        let anew = Head { hash: Digest::of(b"other"), ..heads[2] };
        let error = judge(&whole, &[anew]).unwrap_err();
        assert!(error.problem.contains("written anew") && error.at == Some(("f".into(), 3)), "{error}");
    }
}
