//! Lines by name, and own ones: `[[line]]` of a scenario file.

use std::collections::BTreeMap;

use super::{
    table::{Table, Value, bytes, parsed, rate, share_ppm, span_or_zero, text, whole},
    wrong::Wrong,
};
use crate::net::Profile;

/// Fields of `[[line]]`.
const FIELDS: &[&str] = &[
    "name",
    "like",
    "latency",
    "jitter",
    "loss",
    "duplicate",
    "reorder",
    "reorder-delay",
    "rate",
    "up",
    "down",
    "queue",
    "mtu",
];
/// All lines that a file may name.
pub(super) struct Lines(BTreeMap<String, Profile>);

impl Lines {
    pub(super) fn read(file: &Table<'_>) -> Result<Lines, Wrong> {
        let mut lines =
            Lines(Profile::NAMES.iter().filter_map(|name| Some(((*name).to_owned(), Profile::named(name)?))).collect());
        for table in file.tables("line", "[[line]]", FIELDS)? {
            let (name, at) = (text("name", table.need("name", "\"bad\"")?)?, table.need("name", "\"bad\"")?.span());
            if lines.0.contains_key(name) {
                return Err(Wrong::new(at, format!("there already is a line {name:?}")).hint("give it another name"));
            }
            let profile = lines.own(&table)?;
            lines.0.insert(name.to_owned(), profile);
        }
        Ok(lines)
    }

    fn own(&self, table: &Table<'_>) -> Result<Profile, Wrong> {
        let like = table.read("like", |field, value| self.find(field, value))?;
        let like = like.map_or_else(default, |(_, profile)| profile);
        let (mut up, mut down) = (like.up(), like.down());
        for profile in [&mut up, &mut down] {
            both_ways(table, profile)?;
        }
        for (field, profile) in [("up", &mut up), ("down", &mut down)] {
            if let Some(rate) = table.read(field, rate)? {
                profile.bytes_per_s = Some(rate);
            }
        }
        let back = (up != down).then(|| Box::new(down));
        Ok(Profile { back, ..up })
    }

    /// The line that a field names, with its name.
    pub(super) fn find(&self, field: &'static str, value: Value<'_>) -> Result<(String, Profile), Wrong> {
        let name: String = parsed(field, value)?;
        let known = self.0.keys().map(String::as_str);
        let missing = || Wrong::new(value.span(), format!("there is no line {name:?}")).meant(&name, known);
        let profile = self.0.get(&name).cloned().ok_or_else(missing)?;
        Ok((name, profile))
    }
}

/// A line that needs no `[[line]]`.
#[must_use]
pub fn named(name: &str) -> Option<Profile> {
    Profile::named(name)
}

/// The line where a file says nothing.
pub(super) fn default() -> Profile {
    Profile::named("4g").unwrap_or_else(Profile::edge)
}

/// The line between hub and broker where a file says nothing.
pub(super) fn near() -> Profile {
    Profile::named("fiber").unwrap_or_else(Profile::edge)
}

/// Fields that mean both directions.
fn both_ways(table: &Table<'_>, profile: &mut Profile) -> Result<(), Wrong> {
    for (to, field) in [
        (&mut profile.latency, "latency"),
        (&mut profile.jitter, "jitter"),
        (&mut profile.reorder_delay, "reorder-delay"),
    ] {
        if let Some(value) = table.read(field, span_or_zero)? {
            *to = value;
        }
    }
    for (to, field) in [
        (&mut profile.loss_ppm, "loss"),
        (&mut profile.duplicate_ppm, "duplicate"),
        (&mut profile.reorder_ppm, "reorder"),
    ] {
        if let Some(share) = table.read(field, share_ppm)? {
            *to = share;
        }
    }
    if let Some(rate) = table.read("rate", rate)? {
        profile.bytes_per_s = Some(rate);
    }
    if let Some(queue) = table.read("queue", |field, value| bytes(field, value, (1 << 10, 1 << 30)))? {
        profile.queue_bytes = queue;
    }
    if let Some(mtu) = table.read("mtu", |field, value| whole(field, value, (1_200, 65_000)))? {
        profile.mtu_bytes = mtu as usize;
    }
    Ok(())
}
