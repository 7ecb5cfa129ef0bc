//! Records on their way to the hub: joins the [`Outbox`], the machine [`Sender`] and the link.
//!
//! ```text
//! outbox --changed--> loop --next?--> Sender --Wanted--> outbox.read --Batch--> lane's writer --> hub
//!   ^                  |  <--acked-- Sender <--Acks-- lane's reader <---------------------------- hub
//!   +---- delete ------+
//! ```
//!
//! One task owns the machine and the outbox's mark of what may go. Each of the two lanes has a task that
//! writes and one that reads, so that a full lane stops neither the other nor the acknowledgements.
//! Nothing is kept over a session: the hub's marks say where the next one begins. Only the first one of a
//! start tells the hub what the outbox held when it was opened, not what it took since: a hub that knows
//! more has seen a newer outbox than this (the box was restored from an older image), and what was taken
//! since goes on in a new epoch. Later the hub knows more because it was told.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use bytes::Bytes;
use proto::{
    link::{
        CloseCode,
        frame::{self, FrameError, MAX_REQUEST_BYTES},
        message::AgentRequest,
        priority,
    },
    stream::{
        Gap, Mark, StreamKey,
        delivery::{self, Sender, Wanted, Windows},
        message::{Down, Held, Lag, Lane, MAX_FRAME_BYTES, RecordsRequest, Up},
        ranges::Ranges,
    },
    watch,
};
use quinn::{Connection, RecvStream, SendStream};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    link::Live,
    outbox::{Item, Outbox, OutboxError},
};

/// How long the hub may take to answer the opening of a lane.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pieces that wait for a lane's writer, each at most one batch.
const QUEUE: usize = 2;
/// Frames of the hub that wait.
const INBOX: usize = 16;
/// What was acknowledged is collected for so long before it is deleted, in one transaction: each costs a
/// flush of the disk that producers wait for.
const DELETE_AFTER: Duration = Duration::from_millis(500);
/// Between two reports of how far streams are behind.
const LAG_EVERY: Duration = Duration::from_secs(5);
/// Wait after the lanes ended on a connection that goes on.
const TROUBLE_WAIT: Duration = Duration::from_secs(10);

/// Why a session of the uplink ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// The connection or a lane is gone.
    #[error("{0}")]
    Line(String),
    /// An epoch is over, because its stream goes on in a new one or all of it is delivered: the hub is told by a
    /// session that begins without it.
    #[error("an epoch is over")]
    Renewed,
    /// The outbox could not be read or written.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
}

fn line(error: impl std::fmt::Display) -> Ended {
    Ended::Line(error.to_string())
}

/// Delivers what the outbox holds over whichever connection is there, until it is dropped.
pub(crate) async fn run(outbox: Outbox, mut live: watch::Receiver<Option<Live>>) {
    let mut proven = false;
    loop {
        let connection = live.borrow_and_update().as_ref().map(Live::connection);
        if let Some(connection) = connection {
            match session(&outbox, &mut proven, &connection).await {
                Ended::Renewed => connection.close(CloseCode::Done.code(), b"an epoch is over"),
                Ended::Line(why) => tracing::debug!(why, "records are not sent"),
                Ended::Outbox(error) => tracing::warn!(%error, "records cannot be sent, trying again"),
            }
        }
        // A connection that is still there is tried again: a hub of before streams goes on refusing them.
        let wait = if live.borrow().is_some() { TROUBLE_WAIT } else { Duration::MAX };
        // Cancel safe: nothing is held, whichever comes first begins anew.
        let _ = timeout(wait, live.changed()).await;
    }
}

/// What goes to a lane's writer.
enum Piece {
    Frame(Up),
    Batch(Up, Bytes),
}

/// What a lane's reader passes on; an error is its last word.
type Answer = Result<Down, String>;

/// One lane as the loop sees it.
struct Line {
    out: mpsc::Sender<Piece>,
}

struct Uplink<'a> {
    outbox: &'a Outbox,
    sender: Sender,
    acknowledged: BTreeMap<StreamKey, Ranges>,
    delete_at: Option<Instant>,
    told: Vec<Lag>,
}

async fn session(outbox: &Outbox, proven: &mut bool, connection: &Connection) -> Ended {
    let mut tasks = JoinSet::new(); // they end with the session
    match deliver(outbox, proven, connection, &mut tasks).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

/// What the outbox held when it was opened, of what it holds now.
fn at_start(outbox: &Outbox, held: &[Held]) -> Vec<Held> {
    let began = |held: &Held| outbox.began(&held.key).map_or(held.next, |began| began.clamp(held.first, held.next));
    held.iter().map(|held| Held { next: began(held), ..held.clone() }).collect()
}

/// Whether an epoch that was known, besides the newest of its stream, holds nothing more (`known` and `held` are in
/// order of age): all of it is delivered, and what its outbox lost can be counted.
fn epoch_over(known: &[Held], held: &[Held]) -> bool {
    let newest = |old: &Held| known.iter().rfind(|k| k.key.stream == old.key.stream).is_some_and(|k| k.key == old.key);
    known.iter().any(|old| !newest(old) && held.iter().all(|h| h.key != old.key))
}

/// `proven`: the hub's marks have shown that no newer outbox than this was ever delivered from.
async fn deliver(
    outbox: &Outbox,
    proven: &mut bool,
    connection: &Connection,
    tasks: &mut JoinSet<()>,
) -> Result<std::convert::Infallible, Ended> {
    let mut changed = outbox.changed();
    changed.mark_unchanged();
    let held = outbox.held();
    let told = if *proven { held.clone() } else { at_start(outbox, &held) };
    let (inbound, mut inbox) = mpsc::channel::<Answer>(INBOX);
    let live = open(connection, Lane::Live, &told, &inbound, tasks).await?;
    let backlog = open(connection, Lane::Backlog, &told, &inbound, tasks).await?;
    drop(inbound);
    let marks = timeout(PATIENCE, first_marks(&mut inbox)).await.map_err(line)??;
    let mut up = Uplink {
        outbox,
        sender: Sender::new(Windows::default()),
        acknowledged: BTreeMap::new(),
        delete_at: None,
        told: vec![],
    };
    up.begin(&held, &told, &marks, &live).await?;
    *proven = true;
    let begin = Instant::now();
    // When the hub is told how far streams are behind; only what changed can be news.
    let mut lag_at = Some(begin);
    let mut closed = pin!(connection.closed());
    let mut known = held;
    loop {
        let (live_ready, backlog_ready) = (up.sender.next(Lane::Live), up.sender.next(Lane::Backlog));
        // Every arm is cancel safe; what they lead to runs to its end in the bodies.
        tokio::select! {
            biased;
            error = &mut closed => return Err(line(error)),
            down = inbox.recv() => up.answered(next(down)?),
            () = sleep_until(up.delete_at.unwrap_or(begin)), if up.delete_at.is_some() => {
                up.delete().await?;
                if epoch_over(&known, &outbox.held()) {
                    return Err(Ended::Renewed);
                }
            }
            Ok(()) = changed.changed() => {
                up.grown(&mut known, &live).await?;
                lag_at.get_or_insert_with(|| next_tick(begin, LAG_EVERY));
            }
            permit = live.out.reserve(), if live_ready.is_some() => {
                up.send(Lane::Live, live_ready, permit.map_err(line)?).await?;
            }
            () = sleep_until(lag_at.unwrap_or(begin)), if lag_at.is_some() => {
                lag_at = (!up.tell_lag(&live)?).then(|| next_tick(begin, LAG_EVERY));
            }
            permit = backlog.out.reserve(), if backlog_ready.is_some() => {
                up.send(Lane::Backlog, backlog_ready, permit.map_err(line)?).await?;
            }
        }
    }
}

impl Uplink<'_> {
    async fn begin(&mut self, held: &[Held], told: &[Held], marks: &[Mark], live: &Line) -> Result<(), Ended> {
        // Of an epoch that is over nothing more is given, so nothing can be mistaken.
        let newest =
            |key: &StreamKey| held.iter().rev().find(|h| h.key.stream == key.stream).is_some_and(|h| h.key == *key);
        let reused: Vec<StreamKey> = delivery::reused(told, marks).into_iter().filter(newest).collect();
        if !reused.is_empty() {
            for key in &reused {
                let new = self.outbox.renew(key).await?;
                tracing::warn!(old = %key, %new, "the hub knows more of this stream than the outbox: it goes on anew");
            }
            return Err(Ended::Renewed);
        }
        for gap in self.sender.connected(held, marks) {
            tracing::warn!(stream = %gap.key, first = gap.first, count = gap.count, "the hub lost records");
            live.out.send(Piece::Frame(Up::Gap(gap))).await.map_err(line)?;
        }
        // What the hub had before this session may still be here.
        for mark in marks {
            self.acknowledge(&mark.key, &mark.durable);
        }
        Ok(())
    }

    fn acknowledge(&mut self, key: &StreamKey, durable: &Ranges) {
        self.acknowledged.entry(key.clone()).or_default().extend(durable);
        self.delete_at.get_or_insert_with(|| Instant::now() + DELETE_AFTER);
    }

    fn answered(&mut self, down: Down) {
        match down {
            Down::Marks { marks } | Down::Acks { marks } => {
                for mark in marks {
                    let new = self.sender.acked(&mark);
                    if !new.is_empty() {
                        self.acknowledge(&mark.key, &new.into_iter().collect());
                    }
                }
            }
            Down::Held { reason } => tracing::warn!(reason, "the hub takes no records now"),
            Down::Unknown => {}
        }
    }

    /// Deletes what the hub has.
    async fn delete(&mut self) -> Result<(), Ended> {
        self.delete_at = None;
        for (key, durable) in std::mem::take(&mut self.acknowledged) {
            self.outbox.delete(&key, durable.iter().collect()).await?;
        }
        Ok(())
    }

    /// The outbox took records, or began a stream.
    async fn grown(&mut self, known: &mut Vec<Held>, live: &Line) -> Result<(), Ended> {
        let held = self.outbox.held();
        for stream in &held {
            if known.iter().all(|k| k.key != stream.key) {
                live.out.send(Piece::Frame(Up::Open(stream.clone()))).await.map_err(line)?;
            }
            self.sender.committed(&stream.key, stream.class, stream.next);
        }
        *known = held;
        Ok(())
    }

    async fn send(&mut self, lane: Lane, wanted: Option<Wanted>, permit: mpsc::Permit<'_, Piece>) -> Result<(), Ended> {
        let Some(wanted) = wanted else { return Ok(()) };
        let key = wanted.key;
        match self.outbox.read(&key, wanted.range.clone()).await? {
            Some(Item::Batch { first, count, sealed }) => {
                let bytes = u32::try_from(sealed.len()).map_err(line)?;
                self.sender.sent(lane, &key, first..first + count, u64::from(bytes));
                permit.send(Piece::Batch(Up::Batch { stream: key.stream, first, count, bytes }, sealed));
            }
            Some(Item::Gap(Gap { first, count, reason, .. })) => {
                self.sender.sent(lane, &key, first..first + count, 0);
                permit.send(Piece::Frame(Up::Gap(Gap { key, first, count, reason })));
            }
            // Deleted meanwhile, or shed and not yet noted: the next look will tell.
            None => return Err(line(format!("{key} holds nothing at {}", wanted.range.start))),
        }
        Ok(())
    }

    /// Returns whether the hub knows it now.
    fn tell_lag(&mut self, live: &Line) -> Result<bool, Ended> {
        let lag = self.outbox.lag();
        if lag == self.told {
            return Ok(true);
        }
        // A line that is too busy to take it is told the next time.
        match live.out.try_send(Piece::Frame(Up::Lag { streams: lag.clone() })) {
            Ok(()) => self.told = lag,
            Err(mpsc::error::TrySendError::Full(_)) => return Ok(false),
            Err(error) => return Err(line(error)),
        }
        Ok(true)
    }
}

/// The next multiple of `every` since `begin`.
fn next_tick(begin: Instant, every: Duration) -> Instant {
    let since = begin.elapsed();
    begin + since + every - Duration::from_nanos((since.as_nanos() % every.as_nanos()) as u64)
}

/// The answer to both openings: what the hub has.
async fn first_marks(inbox: &mut mpsc::Receiver<Answer>) -> Result<Vec<Mark>, Ended> {
    loop {
        if let Down::Marks { marks } = next(inbox.recv().await)? {
            return Ok(marks);
        }
    }
}

fn next(answer: Option<Answer>) -> Result<Down, Ended> {
    answer.unwrap_or_else(|| Err("the lanes ended".into())).map_err(Ended::Line)
}

/// Opens a lane, and starts its writer and its reader.
async fn open(
    connection: &Connection,
    lane: Lane,
    held: &[Held],
    inbound: &mpsc::Sender<Answer>,
    tasks: &mut JoinSet<()>,
) -> Result<Line, Ended> {
    let (mut send, receive) = connection.open_bi().await.map_err(line)?;
    let level = match lane {
        Lane::Live => priority::SCANS,
        Lane::Backlog => priority::LOGS,
    };
    send.set_priority(level).map_err(line)?;
    let request = AgentRequest::Records(RecordsRequest { lane, held: held.to_vec() });
    frame::write(&mut send, &request, MAX_REQUEST_BYTES).await.map_err(line)?;
    let (out, pieces) = mpsc::channel(QUEUE);
    tasks.spawn(write(send, pieces));
    tasks.spawn(read(receive, inbound.clone()));
    Ok(Line { out })
}

async fn write(mut send: SendStream, mut pieces: mpsc::Receiver<Piece>) {
    while let Some(piece) = pieces.recv().await {
        let written: Result<(), FrameError> = async {
            match piece {
                Piece::Frame(up) => frame::write(&mut send, &up, MAX_FRAME_BYTES).await,
                Piece::Batch(up, sealed) => {
                    frame::write(&mut send, &up, MAX_FRAME_BYTES).await?;
                    send.write_chunk(sealed).await.map_err(|e| FrameError::Io(e.into()))
                }
            }
        }
        .await;
        if let Err(error) = written {
            tracing::debug!(%error, "a lane ended");
            return;
        }
    }
}

async fn read(mut receive: RecvStream, inbound: mpsc::Sender<Answer>) {
    loop {
        let answer = frame::read::<Down>(&mut receive, MAX_FRAME_BYTES).await;
        let ended = answer.is_err();
        let answer = answer.map_err(|e| format!("a lane ended: {e}"));
        if inbound.send(answer).await.is_err() || ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
