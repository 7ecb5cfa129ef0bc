//! Reports say what happened, hold nothing that is not escaped, and stay small.

use super::{page::page, sample::record, text::text, *};

#[test]
fn times_and_figures_are_readable() {
    let times = [0, 850, 12_500, 185_000, 7_385_000, 273_600_000].map(time);
    assert_eq!(times, ["0 ms", "850 ms", "12.5 s", "3:05 min", "2:03:05 h", "3 d 04:00 h"]);
    assert_eq!(figure(1_234_567), "1\u{202f}234\u{202f}567");
    assert_eq!(escape("<a href='x'>&\"\u{1b}"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}");
}

#[test]
fn the_text_tells_faults_books_and_verdict() {
    let good = text(&record(3, "a site is dark", false));
    for line in [
        "3 boxes, 1 site, 2:05:00 h of virtual time",
        "cut            1 begun, struck 12\u{202f}345",
        "33:20 min  cut site hz-01 for 50:00 min, struck 12\u{202f}345",
        "scan-counter@1.1.0",
        "123\u{202f}456 acknowledged",
        "all invariants held",
    ] {
        assert!(good.contains(line), "{line} is not in {good}");
    }
    let bad = text(&record(3, "", true));
    assert!(bad.contains("FAILED: I2 count is broken at 6900.000 s: record 7"), "{bad}");
    assert!(bad.contains("again: sim run made_up --seed 42"), "{bad}");
}

#[test]
fn the_command_that_plays_it_again_is_the_one_that_was_typed() {
    let mut record = record(3, "", true);
    let mut shown = |asked: Asked| {
        record.asked = Some(asked);
        let again = replay(&record);
        assert!(text(&record).contains(&format!("again: {again}\n")) && page(&record).contains(&escape(&again)));
        again
    };
    let run = |scenario: &str, nodes| Asked::Run { scenario: scenario.into(), nodes };
    assert_eq!(shown(run("dir/mine.toml", None)), "sim run dir/mine.toml --seed 42");
    assert_eq!(shown(run("line_flaps", Some(20))), "sim run line_flaps --seed 42 --nodes 20");
    assert_eq!(shown(run("it's mine.toml", None)), r"sim run 'it'\''s mine.toml' --seed 42");
    assert_eq!(shown(Asked::Replay { minutes: Some(3) }), "sim replay 42 --minutes 3");
    assert_eq!(shown(Asked::Replay { minutes: None }), "sim replay 42");
}

#[test]
fn a_fault_that_lasts_to_the_end_says_so_everywhere() {
    let mut record = record(3, "", true);
    let cut = record.breaks.first_mut().unwrap();
    (cut.healed, cut.end_ms) = (false, Some(7_500_000));
    assert!(text(&record).contains("cut site hz-01 for 1:31:40 h, to the end of the run, struck"), "{}", text(&record));
    let page = page(&record);
    assert!(page.contains("<td>1:31:40 h, to the end of the run</td>"));
    assert!(page.contains("1 cut site hz-01: 33:20 min, 1:31:40 h, to the end of the run, struck 12345"));
    assert!(text(&record).contains("rebind all at once, struck 3"));
}

#[test]
fn what_was_only_counted_is_said_and_drawn() {
    let mut record = record(3, "", false);
    record.breaks_not_kept.insert("rebind".into(), 5_000);
    record.marks_not_kept = 7;
    let track = record.nodes.values_mut().next().unwrap();
    let (_, mut state) = track.state.changes.first().unwrap().clone();
    for at in 0..6_000 {
        state.connected = !state.connected;
        track.state.set(7_400_000 + at, state.clone());
    }
    let not_kept = figure(record.changes_not_kept());
    let text = text(&record);
    for line in [
        "rebind       5001 begun".to_owned(),
        "and 5\u{202f}000 after those, which were only counted".to_owned(),
        format!("{not_kept} changes of boxes, apps and rollouts were only counted"),
    ] {
        assert!(text.contains(&line), "{line} is not in {text}");
    }
    let page = page(&record);
    assert!(page.contains(&format!("{not_kept} changes that were only counted")), "{not_kept}");
    assert!(page.contains("class='c unkept'") && page.contains("and 7 after those"));
}

#[test]
fn a_fault_that_never_fired_is_named() {
    let mut record = record(3, "", false);
    record.faults.insert("disk-full".into(), 0);
    record.breaks.last_mut().unwrap().struck = 0;
    assert!(text(&record).contains("disk-full      0 begun, struck 0  NEVER FIRED"), "{}", text(&record));
    assert!(page(&record).contains("never fired: disk-full"));
}

#[test]
fn the_page_escapes_everything_and_needs_nothing() {
    let page = page(&record(3, "<script>alert('x')</script> & more", true));
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; more"));
    assert!(page.contains("record 7 of &lt;hz-01-1&gt; is twice"));
    for word in ["<script", "http:", "https:", "@import", "src="] {
        assert!(!page.contains(word), "{word}");
    }
    for word in ["line cut", "box off", "agent down", "hub down", "healing begins", "1.1.0", "cut site hz-01", "mqtt"] {
        assert!(page.contains(word), "{word}");
    }
}

#[test]
fn a_page_of_a_hundred_boxes_stays_small() {
    let page = page(&record(100, "", false));
    assert!(page.len() < 1 << 20, "{} bytes", page.len());
    assert!(page.contains("hz-10-10"));
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let record = record(3, "", true);
    let json = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    for key in ["scenario", "seed", "trace_digest", "trace_lines", "virtual_s", "faults", "books", "ok", "error"] {
        assert!(value.get(key).is_some(), "{key}");
    }
}
