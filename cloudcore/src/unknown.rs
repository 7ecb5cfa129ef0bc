//! Fields that a file holds and this version does not know: they are skipped, for a newer version may have
//! written them, and they are told, for most are typing errors. Used by `crate::config`,
//! `crate::release` and `crate::cli`.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, Visitor},
    forward_to_deserialize_any,
};
use serde_json::Value;

/// Fields that are told of one document; whatever holds more is of another kind altogether.
const MAX_TOLD: usize = 32;
/// Letters of a name that are compared.
const MAX_WORD_CHARS: usize = 64;

/// Reads a YAML document and names the fields that were skipped, as paths such as `workload.limits.memroy`.
///
/// # Errors
/// What is wrong with it, and where.
pub(crate) fn read_yaml<T: DeserializeOwned>(text: &str) -> Result<(T, Vec<String>), serde_saphyr::Error> {
    let mut skipped = vec![];
    let read = |deserializer: serde_saphyr::Deserializer<'_, '_>| {
        serde_ignored::deserialize(deserializer, |path| note(&mut skipped, path.to_string()))
    };
    let value = serde_saphyr::with_deserializer_from_str(text, read)?;
    Ok((value, skipped))
}

fn note(skipped: &mut Vec<String>, path: String) {
    if skipped.len() < MAX_TOLD {
        // An optional field is `?` on the way.
        skipped.push(path.replace(".?", "").replace("?.", ""));
    }
}

/// Fields of `sent` that are not in `kept`, which is what became of it. What is empty may be left out there.
pub(crate) fn dropped(sent: &Value, kept: &Value) -> Vec<String> {
    let mut skipped = vec![];
    compare(sent, kept, "", &mut skipped);
    skipped
}

fn compare(sent: &Value, kept: &Value, path: &str, skipped: &mut Vec<String>) {
    let at = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (sent, kept) {
        (Value::Object(sent), Value::Object(kept)) => {
            for (key, value) in sent {
                match kept.get(key) {
                    Some(kept) => compare(value, kept, &at(key), skipped),
                    None if is_empty(value) => {}
                    None => note(skipped, at(key)),
                }
            }
        }
        (Value::Array(sent), Value::Array(kept)) => {
            let pairs = sent.iter().zip(kept).enumerate();
            pairs.for_each(|(i, (sent, kept))| compare(sent, kept, &at(&i.to_string()), skipped));
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The warning about a field, with the known name that was meant, if one is close.
pub(crate) fn warning(path: &str, known: &[&'static [&'static str]]) -> String {
    let name = path.rsplit('.').next().unwrap_or(path);
    let names = known.iter().flat_map(|names| names.iter());
    // One slip in a short word, two in a long one.
    let far = if name.chars().count() < 5 { 1 } else { 2 };
    let nearest = names.map(|known| (distance(name, known), *known)).filter(|(d, _)| *d <= far).min();
    let meant = nearest.map(|(_, known)| format!("; did you mean {known}?"));
    format!("unknown field {path} is ignored{}", meant.unwrap_or_default())
}

/// Letters to insert, remove, replace or swap with their neighbour on the way from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|word| word.chars().take(MAX_WORD_CHARS).collect::<Vec<char>>());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: Option<&Vec<usize>>, j: usize| row.and_then(|row| row.get(j)).copied().unwrap_or(usize::MAX);
            let above = rows.last();
            let one = at(above, j + 1).min(at(Some(&row), j)) + 1;
            let mut least = one.min(at(above, j) + usize::from(x != y));
            if i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x) {
                least = least.min(at(rows.get(i - 1), j - 1) + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows.last().and_then(|row| row.last()).copied().unwrap_or_default()
}

/// The names of a type's fields, as they are written.
pub(crate) fn fields_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    T::deserialize(Ask).err().map_or(&[], |Names(names)| names)
}

/// Has nothing to read, and learns what is asked for.
struct Ask;

/// What was asked for, as an error: there is nothing to answer.
#[derive(Debug)]
struct Names(&'static [&'static str]);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Names {}

impl de::Error for Names {
    fn custom<T: fmt::Display>(_: T) -> Names {
        Names(&[])
    }
}

impl<'de> Deserializer<'de> for Ask {
    type Error = Names;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Names> {
        Err(Names(&[]))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Names> {
        Err(Names(fields))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_that_was_meant() {
        let known: &[&[&str]] = &[&["probes", "port", "ports"], &["liveness", "memory", "pids", "app"]];
        for (path, meant) in [
            ("probs", Some("probes")),
            ("probes.livness", Some("liveness")),
            ("limits.memroy", Some("memory")),
            ("pots", Some("ports")),
            ("prot", Some("port")),
            ("ap", Some("app")),
            ("future", None),
            ("x", None),
        ] {
            let end = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
            assert_eq!(warning(path, known), format!("unknown field {path} is ignored{end}"));
        }
    }

    #[test]
    fn what_was_dropped_is_named_and_what_is_empty_is_not() {
        let sent = json!({"a": {"b": 1, "typo": {"c": 2}, "none": null, "empty": {"x": []}}, "l": [{"y": 1, "z": 2}]});
        let kept = json!({"a": {"b": 2}, "l": [{"z": 2}], "more": 1});
        assert_eq!(dropped(&sent, &kept), ["a.typo", "l.0.y"]);
        let long: serde_json::Map<String, Value> = (0..100).map(|i| (i.to_string(), json!(1))).collect();
        assert_eq!(dropped(&Value::Object(long), &json!({})).len(), MAX_TOLD);
    }
}
