//! A table of `agent.toml` that remembers which of its keys were asked for, and on which line they stand.

use std::{cell::RefCell, collections::BTreeSet, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// What is wrong, and where in the text.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) at: Range<usize>,
    pub(super) problem: String,
}

/// A table and its name, such as `streams.topic`.
#[derive(Debug)]
pub(super) struct Section<'a> {
    name: String,
    at: Range<usize>,
    table: &'a DeTable<'a>,
    seen: BTreeSet<&'static str>,
    skipped: &'a RefCell<Vec<(Range<usize>, String)>>,
}

type Found<T> = Result<Option<T>, Wrong>;

impl<'a> Section<'a> {
    pub(super) fn new(
        name: impl Into<String>,
        at: Range<usize>,
        table: &'a DeTable<'a>,
        skipped: &'a RefCell<Vec<(Range<usize>, String)>>,
    ) -> Section<'a> {
        Section { name: name.into(), at, table, seen: BTreeSet::new(), skipped }
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.seen.insert(key);
        self.table.get(key)
    }

    fn key(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn unlike(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) -> Wrong {
        let problem = format!("{} is {}: write {wanted}", self.key(key), kind(value.get_ref()));
        Wrong { at: value.span(), problem }
    }

    /// A problem of the table as a whole.
    pub(super) fn wrong(&self, problem: impl Into<String>) -> Wrong {
        Wrong { at: self.at.clone(), problem: problem.into() }
    }

    /// A problem of the value at `key`, or of the table where it has none.
    pub(super) fn wrong_at(&self, key: &str, problem: impl Into<String>) -> Wrong {
        let at = self.table.get(key).map_or(self.at.clone(), Spanned::span);
        Wrong { at, problem: problem.into() }
    }

    /// The text at `key`.
    pub(super) fn text(&mut self, key: &'static str) -> Found<&'a str> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.get_ref().as_str().map(Some).ok_or_else(|| self.unlike(key, value, "a text in quotes"))
    }

    /// The text at `key`, understood by `parse`, which says what is wrong and how to mend it.
    pub(super) fn parsed<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Found<T> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        parse(text).map(Some).map_err(|problem| self.wrong_at(key, format!("{}: {problem}", self.key(key))))
    }

    /// The same, of a text or of a whole number.
    pub(super) fn amount<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Found<T> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
            _ => return Err(self.unlike(key, value, "a whole number, or a text in quotes")),
        };
        parse(&text).map(Some).map_err(|problem| self.wrong_at(key, format!("{}: {problem}", self.key(key))))
    }

    /// `true` or `false` at `key`.
    pub(super) fn flag(&mut self, key: &'static str) -> Found<bool> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.get_ref().as_bool().map(Some).ok_or_else(|| self.unlike(key, value, "true or false"))
    }

    /// The table at `key`.
    pub(super) fn section(&mut self, key: &'static str) -> Found<Section<'a>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let table = value.get_ref().as_table();
        let table = table.ok_or_else(|| self.unlike(key, value, &format!("a table, [{}]", self.key(key))))?;
        Ok(Some(Section::new(self.key(key), value.span(), table, self.skipped)))
    }

    /// The tables at `key`.
    pub(super) fn sections(&mut self, key: &'static str) -> Result<Vec<Section<'a>>, Wrong> {
        let Some(value) = self.get(key) else { return Ok(vec![]) };
        let wanted = format!("a list of tables, each [[{}]]", self.key(key));
        let array = value.get_ref().as_array().ok_or_else(|| self.unlike(key, value, &wanted))?;
        let sections = array.iter().map(|item| {
            let table = item.get_ref().as_table().ok_or_else(|| self.unlike(key, item, &wanted))?;
            Ok(Section::new(self.key(key), item.span(), table, self.skipped))
        });
        sections.collect()
    }

    /// Everything known was asked for: the rest is noted as skipped.
    pub(super) fn done(self) {
        for (key, _) in self.table {
            if !self.seen.contains(key.get_ref().as_ref()) {
                self.skipped.borrow_mut().push((key.span(), self.key(key.get_ref())));
            }
        }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
