//! Windows of the week, in the time zone of a site.

use jiff::{Timestamp, ToSpan as _, civil::Date, tz::TimeZone};
use proto::object::{
    Site,
    rollout::{Window, Windows},
};

/// Days that are looked ahead for a window: a week, and one for the days on which clocks change.
const DAYS_AHEAD: i64 = 8;

/// The time zone that holds for a site: its own, or the rollout's, or UTC. An unknown one (refused when it is
/// written, so only from a newer hub) counts as UTC.
pub(super) fn zone(site: Option<&Site>, windows: &Windows) -> TimeZone {
    let own = site.and_then(|site| site.spec.time_zone.as_deref());
    let named = own.or(windows.time_zone.as_deref());
    named.and_then(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC)
}

/// `None`: it is open. Otherwise when it opens next; `Some(None)`: not within a week.
pub(super) fn opens(windows: &[Window], zone: &TimeZone, now: Timestamp) -> Option<Option<Timestamp>> {
    if windows.is_empty() {
        return None;
    }
    let today = now.to_zoned(zone.clone()).date();
    let mut next: Option<Timestamp> = None;
    for window in windows {
        for ahead in -1..=DAYS_AHEAD {
            let Ok(day) = today.checked_add(ahead.days()) else { continue };
            if !window.days.is_empty() && !window.days.iter().any(|d| d.weekday() == day.weekday()) {
                continue;
            }
            let Some((from, to)) = bounds(window, day, zone) else { continue };
            if from <= now && now < to {
                return None;
            }
            if from > now {
                next = Some(next.map_or(from, |next| next.min(from)));
            }
        }
    }
    Some(next)
}

/// When the window of a day begins and ends. A time that the clocks skip is the one after the gap.
fn bounds(window: &Window, day: Date, zone: &TimeZone) -> Option<(Timestamp, Timestamp)> {
    let (from, to) = (window.from.time(), window.to.time());
    let last = if to > from { day } else { day.tomorrow().ok()? };
    let at = |day: Date, time| Some(day.to_datetime(time).to_zoned(zone.clone()).ok()?.timestamp());
    Some((at(day, from)?, at(last, to)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days: &str, from: &str, to: &str) -> Window {
        let json = format!(r#"{{"days": {days}, "from": "{from}", "to": "{to}"}}"#);
        serde_json::from_str(&json).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_begins() {
        let shanghai = TimeZone::get("Asia/Shanghai").unwrap();
        let friday_night = [window(r#"["Fri"]"#, "22:00", "04:00")];
        let opens = |now: &str| opens(&friday_night, &shanghai, at(now));
        assert_eq!(opens("2026-11-20T13:59:59Z"), Some(Some(at("2026-11-20T14:00:00Z"))));
        assert_eq!(opens("2026-11-20T14:00:00Z"), None);
        assert_eq!(opens("2026-11-20T19:59:59Z"), None, "Saturday, 03:59 there");
        assert_eq!(opens("2026-11-20T20:00:00Z"), Some(Some(at("2026-11-27T14:00:00Z"))));
    }

    #[test]
    fn clocks_that_change_take_no_window_away() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        // 02:30 does not exist on 2026-03-29; the window is the hour after the gap.
        let nightly = [window("[]", "02:15", "02:45")];
        assert_eq!(opens(&nightly, &berlin, at("2026-03-29T01:20:00Z")), None);
        // Without windows it is always open.
        assert_eq!(opens(&[], &berlin, at("2026-03-29T01:20:00Z")), None);
    }
}
