//! What is wrong in a scenario file, where, and what was probably meant.

use std::{fmt, ops::Range};

/// A scenario file that cannot be played.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PlanError {
    /// The file, as it was named.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
    /// What was meant, or what to write.
    pub hint: String,
    /// The line of the file and what of it is meant.
    excerpt: (String, usize),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.problem)?;
        let (text, marked) = &self.excerpt;
        let number = self.line.to_string();
        let (margin, before) = (" ".repeat(number.len()), " ".repeat(self.column.saturating_sub(1)));
        write!(f, "\n {number} | {text}\n {margin} | {before}{}", "^".repeat(*marked))?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "\n {margin} = {}", self.hint) }
    }
}

/// What is wrong with some bytes of the text.
#[derive(Debug)]
pub(super) struct Wrong {
    at: Range<usize>,
    problem: String,
    hint: String,
}

impl Wrong {
    pub(super) fn new(at: Range<usize>, problem: impl Into<String>) -> Wrong {
        Wrong { at, problem: problem.into(), hint: String::new() }
    }

    /// What to do about it.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Wrong {
        self.hint = hint.into();
        self
    }

    /// Offers the nearest of the known names, or all of them where none is near.
    pub(super) fn meant<'n>(self, written: &str, known: impl IntoIterator<Item = &'n str>) -> Wrong {
        let known: Vec<&str> = known.into_iter().collect();
        match (nearest(written, known.iter().copied()), known.len()) {
            (Some(name), _) => self.hint(format!("did you mean {name:?}?")),
            (None, 0) => self.hint("there are none"),
            (None, 1..=20) => self.hint(format!("known: {}", known.join(", "))),
            (None, more) => {
                let some = known.get(..8).unwrap_or_default().join(", ");
                self.hint(format!("known: {some} and {} more", more - 8))
            }
        }
    }

    /// Finds line and column in the text.
    pub(super) fn locate(self, file: &str, text: &str) -> PlanError {
        let begin = (0..=self.at.start.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        let (before, after) = text.split_at(begin);
        let line_begin = before.rfind('\n').map_or(0, |i| i + 1);
        let line = text.get(line_begin..).unwrap_or_default().lines().next().unwrap_or_default();
        let of_line = after.lines().next().unwrap_or_default();
        let marked = of_line.char_indices().filter(|(i, _)| begin + i < self.at.end).count().max(1);
        PlanError {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_begin..).unwrap_or_default().chars().count() + 1,
            problem: self.problem,
            hint: self.hint,
            excerpt: (line.to_owned(), marked),
        }
    }
}

/// The known name that is nearest, if it is near: a third of its letters may differ.
pub(crate) fn nearest<'n>(written: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let (distance, name) = known.map(|name| (strsim::damerau_levenshtein(written, name), name)).min()?;
    (distance <= written.chars().count().max(name.chars().count()).div_ceil(3)).then_some(name)
}
