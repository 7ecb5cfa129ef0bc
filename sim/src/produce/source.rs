//! Where records come from: scans by their pace, or a file by its own times.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use proto::env::{Blocking, Seed};

use super::{
    Curve, ProduceArgs, Rate,
    door::MAX_OFFER,
    pace::Pace,
    replay::{Due, Replay},
    scan::Scans,
};

/// Where records come from.
pub(super) enum Source {
    Scans { scans: Box<Scans>, rate: Option<Pace>, made: u64 },
    File { replay: Option<Replay>, ahead: Vec<Due>, speed: Rate },
}

impl Source {
    pub(super) async fn open(args: &ProduceArgs, now: Timestamp) -> anyhow::Result<Source> {
        if let Some(path) = args.replay.clone() {
            let field = args.time_field.clone();
            let replay = Blocking::Pool.run(move || Replay::open(&path, &field)).await?;
            return Ok(Source::File { replay: Some(replay), ahead: vec![], speed: args.speed });
        }
        let scans = Scans::new(&Seed::from_u64(args.seed), args.producer.as_str(), args.lines, args.bytes);
        let day = Duration::from_secs(args.day_seconds.into());
        let since_midnight = Duration::from_secs(now.as_second().rem_euclid(86_400).unsigned_abs());
        let began = since_midnight.mul_f64(day.as_secs_f64() / 86_400.0);
        let rate = match args.rate {
            Rate::Max => None,
            Rate::Of(rate) => Some(Pace { rate, day: (args.curve == Curve::Day).then_some((day, began)) }),
        };
        Ok(Source::Scans { scans: Box::new(scans), rate, made: 0 })
    }

    /// What is due, at most `most`; `None` when no more will come.
    pub(super) async fn next(
        &mut self,
        most: usize,
        elapsed: Duration,
        now: Timestamp,
    ) -> anyhow::Result<Option<Vec<Bytes>>> {
        match self {
            Source::Scans { scans, rate, made } => {
                let due = rate.map_or(u64::MAX, |pace| pace.due(elapsed).saturating_sub(*made));
                let count = due.min(most as u64);
                let records = (*made..*made + count).map(|number| scans.next(number, now)).collect();
                *made += count;
                Ok(Some(records))
            }
            Source::File { replay, ahead, speed } => {
                if ahead.is_empty() {
                    let Some(mut file) = replay.take() else { return Ok(None) };
                    let (file, read) = Blocking::Pool
                        .run(move || {
                            let read = file.next(MAX_OFFER);
                            (file, read)
                        })
                        .await;
                    *ahead = read?;
                    if ahead.is_empty() {
                        return Ok(None);
                    }
                    *replay = Some(file);
                }
                let is_due = |due: &&Due| match *speed {
                    Rate::Max => true,
                    Rate::Of(speed) => due.after.as_secs_f64() <= elapsed.as_secs_f64() * speed,
                };
                let count = ahead.iter().take(most).take_while(is_due).count();
                Ok(Some(ahead.drain(..count).map(|due| due.record).collect()))
            }
        }
    }
}
