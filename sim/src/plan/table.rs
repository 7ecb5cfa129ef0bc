//! A table of a scenario file, read field by field; whatever is wrong is said with its place.

use std::{ops::Range, str::FromStr, time::Duration};

use proto::units::{Bytes, Span};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::wrong::Wrong;

/// A value and where it stands.
pub(super) type Value<'a> = &'a Spanned<DeValue<'a>>;

/// A table with known fields.
pub(super) struct Table<'a> {
    what: &'static str,
    at: Range<usize>,
    table: &'a DeTable<'a>,
}

impl<'a> Table<'a> {
    /// Looks for fields that do not exist.
    pub(super) fn new(
        what: &'static str,
        at: Range<usize>,
        table: &'a DeTable<'a>,
        known: &[&str],
    ) -> Result<Table<'a>, Wrong> {
        // The first one in the file, not in the alphabet.
        let unknown =
            table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())).min_by_key(|k| k.span().start);
        match unknown {
            None => Ok(Table { what, at, table }),
            Some(key) => {
                let problem = format!("there is no field {:?} in {what}", key.get_ref());
                Err(Wrong::new(key.span(), problem).meant(key.get_ref(), known.iter().copied()))
            }
        }
    }

    /// A value that must be a table.
    pub(super) fn of(what: &'static str, value: Value<'a>, known: &[&str]) -> Result<Table<'a>, Wrong> {
        let table = value.get_ref().as_table().ok_or_else(|| unlike(value, what, "a table, { … }"))?;
        Table::new(what, value.span(), table, known)
    }

    pub(super) fn at(&self) -> Range<usize> {
        self.at.clone()
    }

    /// Something is wrong with the table as a whole.
    pub(super) fn wrong(&self, problem: impl Into<String>) -> Wrong {
        Wrong::new(self.at.clone(), problem)
    }

    pub(super) fn get(&self, field: &str) -> Option<Value<'a>> {
        self.table.get(field)
    }

    pub(super) fn need(&self, field: &str, example: &str) -> Result<Value<'a>, Wrong> {
        let missing =
            || self.wrong(format!("{} has no {field:?}", self.what)).hint(format!("write {field} = {example}"));
        self.get(field).ok_or_else(missing)
    }

    /// Where the field's name stands, or the table where there is none.
    pub(super) fn key_at(&self, field: &str) -> Range<usize> {
        self.table.get_key_value(field).map_or(self.at.clone(), |(key, _)| key.span())
    }

    /// An optional field, understood by `read`.
    pub(super) fn read<T>(
        &self,
        field: &'static str,
        read: impl FnOnce(&'static str, Value<'a>) -> Result<T, Wrong>,
    ) -> Result<Option<T>, Wrong> {
        self.get(field).map(|value| read(field, value)).transpose()
    }

    /// Tables of a list; none where the field is absent.
    pub(super) fn tables(
        &self,
        field: &'static str,
        what: &'static str,
        known: &[&str],
    ) -> Result<Vec<Table<'a>>, Wrong> {
        let Some(value) = self.get(field) else { return Ok(vec![]) };
        let list = value.get_ref().as_array().ok_or_else(|| {
            unlike(value, field, &format!("a list: begin each one with [[{field}]]")) // as in a table header
        })?;
        list.iter().map(|value| Table::of(what, value, known)).collect()
    }
}

/// A value is of another kind than it must be.
pub(super) fn unlike(value: Value<'_>, what: &str, wanted: &str) -> Wrong {
    let kind = match value.get_ref() {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    Wrong::new(value.span(), format!("{what} is {kind}, it must be {wanted}"))
}

pub(super) fn text<'a>(field: &'static str, value: Value<'a>) -> Result<&'a str, Wrong> {
    value.get_ref().as_str().ok_or_else(|| unlike(value, field, "a text in quotes"))
}

/// `true` or `false`.
pub(super) fn truth(field: &'static str, value: Value<'_>) -> Result<bool, Wrong> {
    value.get_ref().as_bool().ok_or_else(|| unlike(value, field, "true or false"))
}

/// What a word stands for: `written`, the text of `value`, is a `what` of `all`.
pub(super) fn one_of<T: Copy>(
    what: &str,
    written: &str,
    value: Value<'_>,
    all: &[(&'static str, T)],
) -> Result<T, Wrong> {
    let found = all.iter().find(|(word, _)| *word == written).map(|(_, meaning)| *meaning);
    found.ok_or_else(|| {
        let known = all.iter().map(|(word, _)| *word);
        Wrong::new(value.span(), format!("there is no {what} {written:?}")).meant(written, known)
    })
}

/// A text that says what is wrong with it when it is read.
pub(super) fn parsed<T: FromStr<Err: ToString>>(field: &'static str, value: Value<'_>) -> Result<T, Wrong> {
    let text = text(field, value)?;
    text.parse().map_err(|e: T::Err| Wrong::new(value.span(), format!("{field}: {}", e.to_string())))
}

/// A span of time up to 366 days; not zero.
pub(super) fn span(field: &'static str, value: Value<'_>) -> Result<Duration, Wrong> {
    let span = span_or_zero(field, value)?;
    if span.is_zero() {
        return Err(Wrong::new(value.span(), format!("{field} is zero")).hint("write such as \"30s\" or \"2h\""));
    }
    Ok(span)
}

/// A span of time up to 366 days.
pub(super) fn span_or_zero(field: &'static str, value: Value<'_>) -> Result<Duration, Wrong> {
    let span = match value.get_ref() {
        DeValue::Integer(_) | DeValue::Float(_) => {
            let hint = "write such as \"30s\", \"5m\", \"2h\" or \"3d\"";
            return Err(Wrong::new(value.span(), format!("{field} is a number without a unit")).hint(hint));
        }
        _ => match sum(text(field, value)?) {
            Some(span) => span,
            None => parsed::<Span>(field, value)?.get(),
        },
    };
    let longest = Duration::from_secs(366 * 24 * 3600);
    if span > longest {
        return Err(Wrong::new(value.span(), format!("{field} is longer than a run can be")).hint("at most \"366d\""));
    }
    Ok(span)
}

/// Several amounts in one, such as `2h30m`.
fn sum(text: &str) -> Option<Duration> {
    let (mut all, mut rest) = (Duration::ZERO, text.trim());
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let next = rest.get(unit..)?.find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| at + unit);
        all = all.checked_add(rest.get(..next)?.parse::<Span>().ok()?.get())?;
        rest = rest.get(next..)?;
    }
    (!text.trim().is_empty()).then_some(all)
}

/// An amount of bytes within bounds.
pub(super) fn bytes(field: &'static str, value: Value<'_>, bounds: (u64, u64)) -> Result<u64, Wrong> {
    let amount: Bytes = match value.get_ref() {
        DeValue::Integer(whole) => {
            whole.as_str().parse().map_err(|e| Wrong::new(value.span(), format!("{field}: {e}")))?
        }
        _ => parsed(field, value)?,
    };
    if amount.get() < bounds.0 || amount.get() > bounds.1 {
        let hint = format!("write {} to {}", Bytes::new(bounds.0), Bytes::new(bounds.1));
        return Err(Wrong::new(value.span(), format!("{field} of {amount} is out of range")).hint(hint));
    }
    Ok(amount.get())
}

/// A number within bounds, whole or not.
pub(super) fn number(field: &'static str, value: Value<'_>, bounds: (f64, f64)) -> Result<f64, Wrong> {
    let text = match value.get_ref() {
        DeValue::Integer(whole) if whole.radix() == 10 => whole.as_str(),
        DeValue::Float(float) => float.as_str(),
        _ => return Err(unlike(value, field, "a number")),
    };
    let number = text.parse::<f64>().unwrap_or(f64::NAN);
    if number >= bounds.0 && number <= bounds.1 {
        return Ok(number);
    }
    let what = if number < 0.0 { "is negative" } else { "is out of range" };
    Err(Wrong::new(value.span(), format!("{field} {what}")).hint(format!("write {} to {}", bounds.0, bounds.1)))
}

/// A whole number within bounds.
pub(super) fn whole(field: &'static str, value: Value<'_>, bounds: (u32, u32)) -> Result<u32, Wrong> {
    let DeValue::Integer(_) = value.get_ref() else { return Err(unlike(value, field, "a whole number")) };
    Ok(number(field, value, (f64::from(bounds.0), f64::from(bounds.1)))? as u32) // whole, and within bounds
}

/// A share in per cent, such as `"8%"`, as parts per million.
pub(super) fn share_ppm(field: &'static str, value: Value<'_>) -> Result<u32, Wrong> {
    let hint = "write \"0%\" to \"100%\", such as \"2.5%\"";
    let written = value.get_ref().as_str().and_then(|text| text.trim().strip_suffix('%'));
    let share = written.and_then(|text| text.trim().parse::<f64>().ok());
    match share {
        Some(share) if (0.0..=100.0).contains(&share) => Ok((share * 10_000.0).round() as u32),
        Some(_) => Err(Wrong::new(value.span(), format!("{field} is out of range")).hint(hint)),
        None => Err(Wrong::new(value.span(), format!("{field} is no share")).hint(hint)),
    }
}

/// A rate, such as `"256kbit/s"`, in bytes a second.
pub(super) fn rate(field: &'static str, value: Value<'_>) -> Result<u64, Wrong> {
    let hint = "write such as \"256kbit/s\" or \"20Mbit/s\"";
    let written = value.get_ref().as_str().and_then(|text| text.trim().strip_suffix("bit/s"));
    let number = written.and_then(|text| {
        let (digits, factor) = match text.as_bytes().last()? {
            b'k' => (text.strip_suffix('k')?, 1e3),
            b'M' => (text.strip_suffix('M')?, 1e6),
            b'G' => (text.strip_suffix('G')?, 1e9),
            _ => (text, 1.0),
        };
        Some(digits.trim().parse::<f64>().ok()? * factor / 8.0)
    });
    match number {
        Some(rate) if (125.0..=1.25e10).contains(&rate) => Ok(rate as u64),
        Some(_) => Err(Wrong::new(value.span(), format!("{field} is out of range")).hint("1kbit/s to 100Gbit/s")),
        None => Err(Wrong::new(value.span(), format!("{field} is no rate")).hint(hint)),
    }
}
