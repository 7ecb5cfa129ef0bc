//! Seeds on the command line: `FIRST..LAST`, one number, or a fresh one.

use std::{io, str::FromStr};

use proto::env::Seed;

/// Most seeds of one command.
pub const MAX_SEEDS: u64 = 1_000_000;

/// Seeds in a row, at least one and at most [`MAX_SEEDS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    count: u64,
}

impl Seeds {
    /// One seed.
    #[must_use]
    pub fn one(seed: u64) -> Seeds {
        Seeds { first: seed, count: 1 }
    }

    /// So many from a fresh one on. It is small, so that it is easy to type.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn fresh(count: u32) -> io::Result<Seeds> {
        let first = u64::from(u32::from_be_bytes(Seed::from_os()?.bytes("number")));
        Ok(Seeds { first, count: u64::from(count).clamp(1, MAX_SEEDS) })
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> u64 {
        self.count
    }

    /// The seed at a place; nothing behind the last.
    #[must_use]
    pub fn at(self, place: u64) -> Option<u64> {
        (place < self.count).then(|| self.first + place)
    }

    /// The first and the last.
    #[must_use]
    pub fn ends(self) -> (u64, u64) {
        (self.first, self.first + (self.count - 1))
    }

    /// All of them.
    pub fn iter(self) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |place| self.first + place)
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Seeds, String> {
        let wrong = || format!("{text:?} is not FIRST..LAST, such as 1..20");
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let parse = |number: &str| number.parse::<u64>().map_err(|_| wrong());
        let (first, last) = (parse(first)?, parse(last)?);
        let more =
            last.checked_sub(first).ok_or_else(|| format!("{text:?} is empty: the last seed is below the first"))?;
        if more >= MAX_SEEDS {
            return Err(format!("{text:?} are more than {MAX_SEEDS} seeds; give them in parts"));
        }
        Ok(Seeds { first, count: more + 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_up_to_the_top_and_bounded() {
        let all = |text: &str| text.parse::<Seeds>().map(|seeds| seeds.iter().collect::<Vec<_>>());
        assert_eq!(all("3..5").unwrap(), [3, 4, 5]);
        assert_eq!(all("78").unwrap(), [78]);
        let top: Seeds = format!("{}..{}", u64::MAX - 1, u64::MAX).parse().unwrap();
        assert_eq!(top.iter().collect::<Vec<_>>(), [u64::MAX - 1, u64::MAX]);
        assert_eq!(
            (top.count(), top.ends(), top.at(1), top.at(2)),
            (2, (u64::MAX - 1, u64::MAX), Some(u64::MAX), None)
        );
        assert_eq!("1..1000000".parse::<Seeds>().unwrap().count(), MAX_SEEDS);
        for (text, problem) in [
            ("0..18446744073709551615", "more than 1000000"),
            ("1..1000001", "more than"),
            ("5..4", "empty"),
            ("", "is not FIRST..LAST"),
            ("5..", "is not FIRST..LAST"),
            ("-1..2", "is not"),
            ("1..18446744073709551616", "is not"),
        ] {
            let error = all(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
        assert_eq!(Seeds::fresh(20).unwrap().count(), 20);
    }
}
