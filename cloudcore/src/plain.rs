//! JSON of others, before it becomes a value of any form.
//!
//! Where `serde_json` is built with raw values (axum asks for it), an object with the one key [`RAW`] is not read as an
//! object: the JSON in its text is read in its place, with a new bound of depth. Texts in texts so nest without any
//! bound until the stack ends, and the process with it; and other readers see another document. Used where strangers'
//! JSON becomes a [`serde_json::Value`].

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};

/// The key that `serde_json` takes for itself.
const RAW: &str = "$serde_json::private::";

/// Reads JSON that says what it means.
///
/// # Errors
/// What is wrong with it, and where.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    Walk.deserialize(&mut reader)?;
    reader.end()?;
    serde_json::from_slice(bytes)
}

/// A value of any form, looked at and forgotten; for readers of other formats.
pub(crate) struct Plain;

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Plain, D::Error> {
        deserializer.deserialize_any(Walk).map(|()| Plain)
    }
}

/// Goes through a value and looks at its keys.
struct Walk;

impl<'de> DeserializeSeed<'de> for Walk {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(Walk)
    }
    fn visit_i128<E>(self, _: i128) -> Result<(), E> {
        Ok(())
    }
    fn visit_u128<E>(self, _: u128) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Walk)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(is_taken) = map.next_key_seed(Key)? {
            if is_taken {
                return Err(A::Error::custom(format!("no key may begin with {RAW}")));
            }
            map.next_value_seed(Walk)?;
        }
        Ok(())
    }
}

/// Whether a key is one of those that are taken, however it is escaped.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = bool;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key.starts_with(RAW))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// JSON in texts in JSON, so many times, each as deep as `serde_json` allows.
    fn nested(levels: usize) -> String {
        let deep = |inner: &str| format!("{}{inner}{}", "[".repeat(120), "]".repeat(120));
        let raw = |text: String| deep(&json!({"$serde_json::private::RawValue": text}).to_string());
        (0..levels).fold(deep(""), |text, _| raw(text))
    }

    #[test]
    fn what_nests_in_texts_is_refused_before_it_is_read() {
        let nested = nested(16); // enough to end the stack of a thread
        assert!(nested.len() < 1 << 20);
        assert!(read::<Value>(nested.as_bytes()).unwrap_err().to_string().contains("no key may begin"));
        let escaped = br#"{"a": [{"\u0024serde_json::private::RawValue": "1"}]}"#;
        assert!(read::<Value>(escaped).is_err());
    }

    #[test]
    fn everything_else_is_read_as_it_is() {
        let text = r#"{"a": [1, -2, 1.5, true, null, "x"], "$serde": {"RawValue": "[]"}}"#;
        assert_eq!(read::<Value>(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        for bad in ["", "{", "[1] x", r#"{"a" 1}"#, &"[".repeat(100_000)] {
            assert!(read::<Value>(bad.as_bytes()).is_err());
        }
    }
}
