//! The hub's machine: what of an offer is new, and what the mark is afterwards. Pure.

use super::{
    MAX_PIECES,
    ranges::{Range, Ranges},
};

/// What to do with records that a node offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Store these parts of it; the others are durable already.
    Store(Vec<Range>),
    /// All of it is durable already: acknowledge again.
    Duplicate,
    /// It would tear the mark into too many pieces: the node broke the protocol.
    TooManyPieces,
}

/// Judges an offer of the sequences `offered` against what is durable and what is on its way to the disk.
#[must_use]
pub fn judge(durable: &Ranges, offered: Range) -> Verdict {
    let missing = durable.missing(offered.clone());
    if missing.is_empty() {
        return Verdict::Duplicate;
    }
    let mut after = durable.clone();
    after.insert(offered);
    // One more than an honest agent needs, which may open a front while the answer to another is on its way.
    if after.pieces() > MAX_PIECES + 1 { Verdict::TooManyPieces } else { Verdict::Store(missing) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_stored() {
        let durable: Ranges = [0..10, 20..30].into_iter().collect();
        assert_eq!(judge(&durable, 3..9), Verdict::Duplicate);
        assert_eq!(judge(&durable, 5..25), Verdict::Store(vec![10..20]));
        assert_eq!(judge(&durable, 5..40), Verdict::Store(vec![10..20, 30..40]));
        assert_eq!(judge(&durable, 50..60), Verdict::Store(vec![50..60]));
    }

    #[test]
    fn a_mark_is_not_torn_to_shreds() {
        let shreds: Ranges = (0..=MAX_PIECES as u64).map(|i| i * 10..i * 10 + 1).collect();
        assert_eq!(judge(&shreds, 5000..5001), Verdict::TooManyPieces);
        assert_eq!(judge(&shreds, 1..10), Verdict::Store(vec![1..10]));
    }
}
