//! A scanner of a load: hands in records at its rate, whatever becomes of them, while another task waits for the
//! hub to have each.
//!
//! Latencies count from the moment at which a record was due, not from when the agent got round to it: an agent
//! or hub that stalls for a while is late with every record of that while, and all of them are measured.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use edgecore::outbox::{AppendError, Appended, Outbox};
use proto::{name::Name, watch};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout_at},
};

use super::Counts;

/// The hub has a record by then, or it counts as late.
pub(super) const KEPT: Duration = Duration::from_secs(60);

/// A record that the agent took, and when it was due.
struct Taken {
    appended: Appended,
    due: Instant,
}

/// The tasks of all scanners.
#[derive(Default)]
pub(super) struct Scanners {
    produce: JoinSet<()>,
    wait: JoinSet<()>,
}

impl Scanners {
    /// Starts the scanner of an agent.
    pub(super) fn add(&mut self, outbox: Outbox, node: usize, offset: Duration, every: Duration, counts: &Arc<Counts>) {
        // Bounded by the rate: what waits for longer than KEPT is let go.
        let (sender, receiver) = unbounded_channel();
        self.wait.spawn(wait(outbox.clone(), receiver, Arc::clone(counts)));
        self.produce.spawn(produce(outbox, node, offset, every, sender, Arc::clone(counts)));
    }

    /// Ends them; the hub has so long for what it was not given yet.
    pub(super) async fn end(mut self, patience: Duration) {
        self.produce.shutdown().await;
        let all = async { while self.wait.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(patience, all).await; // what still waits is seen from the counts
        self.wait.shutdown().await;
    }
}

/// One record every so often.
async fn produce(
    outbox: Outbox,
    node: usize,
    offset: Duration,
    every: Duration,
    taken: UnboundedSender<Taken>,
    counts: Arc<Counts>,
) {
    let Ok(stream) = "scans".parse::<Name>() else { return };
    sleep(offset).await; // its own moment
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0_u64.. {
        let due = ticks.tick().await;
        let record = format!("{{\"barcode\":\"LOAD{node:05}{number:010}\",\"node\":{node},\"number\":{number}}}");
        match outbox.append(&stream, vec![record.into()]).await {
            Ok(appended) => {
                counts.records.fetch_add(1, Ordering::Relaxed);
                counts.appended.add(due.elapsed());
                if taken.send(Taken { appended, due }).is_err() {
                    return;
                }
            }
            Err(AppendError::Full { .. } | AppendError::Busy) => drop(counts.refused.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                counts.refused.fetch_add(1, Ordering::Relaxed);
                counts.error(format!("agent {node}: {error}"));
            }
        }
    }
}

/// Waits for each record until the hub has it.
async fn wait(outbox: Outbox, mut taken: UnboundedReceiver<Taken>, counts: Arc<Counts>) {
    let mut changed = outbox.changed();
    while let Some(Taken { appended, due }) = taken.recv().await {
        // The outbox lets go of what the hub acknowledged, and of nothing else in a stream of scans.
        let gone = async {
            while !has_let_go(&outbox, &appended) {
                changed.changed().await?;
            }
            Ok::<_, watch::Closed>(())
        };
        match timeout_at(due + KEPT, gone).await {
            Ok(Ok(())) => {
                counts.at_hub.fetch_add(1, Ordering::Relaxed);
                counts.kept.add(due.elapsed());
            }
            Ok(Err(_)) => return, // its agent ended
            Err(_) => drop(counts.late.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

fn has_let_go(outbox: &Outbox, record: &Appended) -> bool {
    outbox.held().iter().find(|held| held.key == record.key).is_some_and(|held| held.first >= record.range.end)
}

#[cfg(test)]
mod tests {
    use edgecore::outbox::OutboxConfig;
    use proto::{
        env::{Blocking, Env},
        stream::Class,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_held_while_the_hub_answers_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let env = Env { blocking: Blocking::Inline, ..Env::real().unwrap() };
        let streams = vec![("scans".parse().unwrap(), Class::Scans)];
        let config = OutboxConfig { quota_bytes: 64 << 20, disk_share_percent: 90, streams };
        let outbox = Outbox::open(folder.path(), config, env).await.unwrap();
        let (counts, mut scanners) = (Arc::new(Counts::default()), Scanners::default());
        scanners.add(outbox.clone(), 0, Duration::ZERO, Duration::from_secs(1), &counts);
        let of = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);

        sleep(Duration::from_millis(89_500)).await;
        assert_eq!((of(&counts.records), of(&counts.at_hub), of(&counts.late)), (90, 0, 30));
        // The hub acknowledges all but the last two.
        let held = outbox.held().pop().unwrap();
        outbox.delete(&held.key, vec![held.first..held.next - 2]).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        assert_eq!((of(&counts.at_hub), of(&counts.late)), (58, 30));
        assert!(counts.kept.quantile(1.0).unwrap() > 58.0);
        scanners.end(Duration::from_secs(10)).await;
        assert_eq!((of(&counts.records), of(&counts.at_hub), of(&counts.late)), (90, 58, 30));
    }
}
