//! Lines by name, and own ones: `[[line]]` of a scenario file.

use std::{collections::BTreeMap, time::Duration};

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
/// Lines that need no `[[line]]`.
pub(super) const NAMED: [&str; 5] = ["fiber", "4g", "256k-lossy", "flapping", "double-eleven"];

/// A line that needs no `[[line]]`.
#[must_use]
pub fn named(name: &str) -> Option<Profile> {
    let ms = Duration::from_millis;
    let like = Profile::edge();
    Some(match name {
        "fiber" => Profile { latency: ms(8), jitter: ms(1), loss_ppm: 0, bytes_per_s: Some(12_500_000), ..like },
        "4g" => like,
        "256k-lossy" => Profile {
            latency: ms(300),
            jitter: ms(50),
            loss_ppm: 50_000,
            bytes_per_s: Some(32_000),
            queue_bytes: 32 << 10,
            ..like
        },
        "flapping" => Profile { latency: ms(60), jitter: ms(120), loss_ppm: 120_000, ..like },
        "double-eleven" => {
            Profile { latency: ms(90), jitter: ms(60), loss_ppm: 15_000, bytes_per_s: Some(500_000), ..like }
        }
        _ => return None,
    })
}

/// All lines that a file may name.
pub(super) struct Lines(BTreeMap<String, Profile>);

impl Lines {
    pub(super) fn read(file: &Table<'_>) -> Result<Lines, Wrong> {
        let mut lines = Lines(NAMED.iter().filter_map(|name| Some(((*name).to_owned(), named(name)?))).collect());
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
        let like = like.map_or_else(Profile::edge, |(_, profile)| profile);
        let (mut profile, mut down) = (like.up(), like.down().bytes_per_s);
        let set = |to: &mut Duration, field| -> Result<(), Wrong> {
            if let Some(value) = table.read(field, span_or_zero)? {
                *to = value;
            }
            Ok(())
        };
        set(&mut profile.latency, "latency")?;
        set(&mut profile.jitter, "jitter")?;
        set(&mut profile.reorder_delay, "reorder-delay")?;
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
            down = Some(rate);
        }
        if let Some(queue) = table.read("queue", |field, value| bytes(field, value, (1 << 10, 1 << 30)))? {
            profile.queue_bytes = queue;
        }
        if let Some(mtu) = table.read("mtu", |field, value| whole(field, value, (1_200, 65_000)))? {
            profile.mtu_bytes = mtu as usize;
        }
        // Nothing but the rate can differ between the directions.
        let down = table.read("down", rate)?.or(down);
        if let Some(up) = table.read("up", rate)? {
            profile.bytes_per_s = Some(up);
        }
        if down != profile.bytes_per_s {
            profile.back = Some(Box::new(Profile { bytes_per_s: down, ..profile.clone() }));
        }
        Ok(profile)
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
