//! The writer over a sink that fails, forgets answers and is slow; and over SQLite.

mod memory;
mod property;

use std::collections::BTreeMap;

use proto::{
    env::Blocking,
    stream::{Class, Epoch, GapReason, batch::Record, ranges::Ranges},
};
use tokio::task::JoinHandle;

use self::memory::{Fault, Memory};
use super::{super::sink::sqlite::Sqlite, *};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// As the simulator has it: blocking work is done on the spot.
fn env() -> Env {
    Env { blocking: Blocking::Inline, ..Env::real().unwrap() }
}

fn key(epoch: u64) -> StreamKey {
    StreamKey { stream: name("scans"), epoch: Epoch(epoch) }
}

fn held(epoch: u64, first: u64, next: u64) -> Held {
    Held { key: key(epoch), class: Class::Scans, first, next }
}

fn text(sequence: u64) -> String {
    format!("record {sequence}")
}

fn batch(epoch: u64, range: Range) -> Batch {
    let record = |n: u64| Record { time_ms: 1000 + n as i64, bytes: text(n).into() };
    Batch { epoch: Epoch(epoch), first: range.start, records: range.map(record).collect() }
}

/// Offers records as a lane does.
async fn offer(offers: &Offers, epoch: u64, range: Range) -> Result<(), IngestError> {
    let batch = batch(epoch, range);
    let sealed: Bytes = batch.seal().unwrap().into();
    let room = offers.room(sealed.len() + batch.bytes()).await;
    offers.batch(room, &name("scans"), batch, sealed)
}

/// Waits for the acknowledgement of all of `range`.
async fn acked(acks: &mut Acks, epoch: u64, range: Range) {
    let wait = async {
        while !acks.next().await.unwrap().iter().any(|m| m.key == key(epoch) && m.durable.contains(&range)) {}
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
}

fn start(sink: &Arc<impl Sink + 'static>, limits: Limits) -> (Ingest, JoinHandle<()>) {
    let (ingest, writer) = Ingest::start(Arc::clone(sink) as Arc<dyn Sink>, &env(), limits);
    (ingest, tokio::spawn(writer))
}

async fn open(ingest: &Ingest, session: u64, held: &[Held]) -> Result<Opened, IngestError> {
    ingest.opened(session, &name("n1"), &name("s1"), Lane::Live, held).await
}

#[tokio::test(start_paused = true)]
async fn only_what_is_new_is_kept_and_all_of_it_is_acknowledged() {
    let sink = Arc::new(Memory::default());
    let (ingest, _writer) = start(&sink, Limits::default());
    let Opened { marks, offers, mut acks } = open(&ingest, 1, &[held(7, 0, 20)]).await.unwrap();
    assert_eq!(marks, []);
    offer(&offers, 7, 0..10).await.unwrap();
    offer(&offers, 7, 5..15).await.unwrap();
    acked(&mut acks, 7, 0..15).await;
    // Again, as after a lost answer: acknowledged again, not kept again.
    let commits = sink.commits();
    offer(&offers, 7, 0..10).await.unwrap();
    acked(&mut acks, 7, 0..15).await;
    assert_eq!(sink.commits(), commits);
    assert_eq!(sink.sequences("n1", 7), (0..15).collect::<Vec<_>>());

    // The next session is told what is durable.
    let again = open(&ingest, 2, &[held(7, 0, 20)]).await.unwrap();
    assert_eq!(again.marks, [Mark { key: key(7), durable: std::iter::once(0..15).collect() }]);
    // What was not opened is not taken, nor what no node counts to.
    let error = offer(&offers, 8, 0..1).await.unwrap_err();
    assert!(error.to_string().contains("not opened"), "{error}");
    assert!(offer(&offers, 7, MAX_NUMBER..MAX_NUMBER + 1).await.is_err());
    assert!(open(&ingest, 3, &[held(7, 9, 8)]).await.is_err());
    let many: Vec<Held> = (0..65).map(|epoch| held(epoch, 0, 0)).collect();
    assert!(matches!(open(&ingest, 3, &many).await, Err(IngestError::TooManyStreams(65))));
    // Nor more lanes than an honest node has; one that ended makes place.
    let mut lanes = vec![];
    while let Ok(lane) = open(&ingest, 4, &[held(7, 0, 20)]).await {
        lanes.push(lane);
        assert!(lanes.len() <= MAX_LANES);
    }
    assert!(lanes.len() >= 2);
    lanes.pop();
    open(&ingest, 4, &[held(7, 0, 20)]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_down_pushes_back_and_nothing_is_lost() {
    let sink = Arc::new(Memory::default());
    sink.always(Some(Fault::Unavailable));
    let limits = Limits { queue_bytes: 64 << 10, ..Limits::default() };
    let (ingest, _writer) = start(&sink, limits);
    let mut health = ingest.health();
    health.wait_for(|h| matches!(h, Health::Down(_))).await.unwrap();
    sink.always(None); // the marks are read
    let Opened { offers, mut acks, .. } = open(&ingest, 1, &[held(7, 0, 0)]).await.unwrap();
    sink.always(Some(Fault::Unavailable));

    // The queue takes what it has room for, then a lane waits, for however long.
    let mut taken = 0;
    while tokio::time::timeout(Duration::from_secs(3600), offer(&offers, 7, taken * 10..taken * 10 + 10)).await.is_ok()
    {
        taken += 1;
        assert!(taken < 100, "the queue is not bounded");
    }
    assert!(taken > 10, "{taken}");
    assert!(matches!(&*ingest.health().borrow(), Health::Down(why) if why.contains("on purpose")));
    assert_eq!(sink.sequences("n1", 7), [0; 0]);

    sink.always(None);
    acked(&mut acks, 7, 0..taken * 10).await;
    offer(&offers, 7, taken * 10..taken * 10 + 10).await.unwrap();
    acked(&mut acks, 7, 0..taken * 10 + 10).await;
    assert_eq!(sink.sequences("n1", 7), (0..taken * 10 + 10).collect::<Vec<_>>());
    assert_eq!(*ingest.health().borrow(), Health::Up);
    let returned = async {
        while ingest.0.room.available_permits() < 64 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), returned).await.unwrap(); // all of it is given back
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_is_torn_to_shreds_is_refused_and_said() {
    let sink = Arc::new(Memory::default());
    let (ingest, _writer) = start(&sink, Limits::default());
    let Opened { offers, mut acks, .. } = open(&ingest, 1, &[held(7, 0, 9999)]).await.unwrap();
    for piece in 0..40 {
        offer(&offers, 7, piece * 10..piece * 10 + 1).await.unwrap();
    }
    let error = loop {
        match acks.next().await {
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("holes"), "{error}");
    assert_eq!(sink.sequences("n1", 7).len(), proto::stream::MAX_PIECES + 1);
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_the_node_lost_ends_with_a_gap_that_says_at_least() {
    let sink = Arc::new(Memory::default());
    let (ingest, writer) = start(&sink, Limits::default());
    let Opened { offers, mut acks, .. } = open(&ingest, 1, &[held(7, 0, 10), held(5, 3, 3)]).await.unwrap();
    offer(&offers, 7, 0..4).await.unwrap();
    offer(&offers, 7, 6..10).await.unwrap();
    acked(&mut acks, 7, 6..10).await;
    let lag = Lag { key: key(7), next: 25, records: 17, oldest: None };
    offers.lag(&[lag]).unwrap();
    // The other lane of the same session ends nothing, even if it was opened with less.
    let other = ingest.opened(1, &name("n1"), &name("s1"), Lane::Backlog, &[held(7, 0, 10)]).await.unwrap();
    assert_eq!(other.marks.len(), 1);
    let noted = async {
        while sink.states().await.unwrap().iter().all(|s| s.reported_next != 25) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), noted).await.unwrap();
    assert!(sink.states().await.unwrap().iter().all(|s| !s.ended));

    // The hub restarts; the box was wiped meanwhile and its clock is wrong: its epoch is a lower one.
    writer.abort();
    let (ingest, _writer) = start(&sink, Limits::default());
    let Opened { offers, mut acks, .. } = open(&ingest, 1, &[held(2, 0, 0)]).await.unwrap();
    let ended = async {
        while sink.states().await.unwrap().iter().filter(|s| s.ended).count() < 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
    let mut gaps: Vec<_> = sink.gaps(None, None, 9).await.unwrap();
    gaps.sort_by_key(|g| (g.epoch, g.first));
    let plain: Vec<_> = gaps.iter().map(|g| (g.epoch.0, g.first, g.count, g.at_least, g.reason)).collect();
    let lost = GapReason::OutboxLost;
    assert_eq!(plain, [(5, 0, 3, true, lost), (7, 4, 2, false, lost), (7, 10, 15, true, lost)]);
    // An old epoch takes nothing; the new one does; the same session again ends nothing twice.
    assert!(offer(&offers, 7, 10..11).await.is_err());
    offer(&offers, 2, 0..1).await.unwrap();
    acked(&mut acks, 2, 0..1).await;
    open(&ingest, 2, &[held(2, 0, 1)]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(sink.gaps(None, None, 9).await.unwrap().len(), 3);
    assert!(matches!(open(&ingest, 1, &[held(7, 0, 1)]).await, Err(IngestError::Replaced)));
    // Found again after all, it is taken.
    open(&ingest, 3, &[held(2, 1, 1), held(7, 10, 25)]).await.unwrap();
    offer(&offers, 7, 10..25).await.unwrap();
    acked(&mut acks, 7, 10..25).await;
}

#[tokio::test(start_paused = true)]
async fn an_outbox_that_is_gone_may_have_taken_more_than_nothing() {
    let sink = Arc::new(Memory::default());
    let (ingest, _writer) = start(&sink, Limits::default());
    // It took records while the line was cut, and then the box was wiped.
    open(&ingest, 1, &[held(7, 0, 0)]).await.unwrap();
    open(&ingest, 2, &[held(9, 0, 0)]).await.unwrap();
    // An epoch that another of this outbox went on from leaves no trace if it never held anything.
    open(&ingest, 3, &[held(9, 0, 0), held(10, 0, 0)]).await.unwrap();
    open(&ingest, 4, &[held(10, 0, 5)]).await.unwrap();
    let written = async {
        while !sink.states().await.unwrap().iter().any(|s| s.key == key(10) && s.reported_next == 5) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), written).await.unwrap();
    let gaps = sink.gaps(None, None, 9).await.unwrap();
    let gaps: Vec<_> = gaps.iter().map(|g| (g.epoch.0, g.first, g.count, g.at_least)).collect();
    assert_eq!(gaps, [(7, 0, 0, true)]);
}

#[tokio::test(start_paused = true)]
async fn an_epoch_ends_after_what_still_waits_of_it() {
    for reported in [0, 40] {
        let sink = Arc::new(Memory::default());
        let limits = Limits { group_bytes: 1, ..Limits::default() };
        let (ingest, _writer) = start(&sink, limits);
        let Opened { offers, .. } = open(&ingest, 1, &[held(7, 0, reported)]).await.unwrap();
        sink.always(Some(Fault::Slow));
        // A group each: the line breaks while they wait, and the box comes back with another outbox.
        for part in 0..4 {
            offer(&offers, 7, part * 10..part * 10 + 10).await.unwrap();
        }
        drop(offers);
        let Opened { offers, mut acks, .. } = open(&ingest, 2, &[held(9, 0, 10)]).await.unwrap();
        offer(&offers, 9, 0..10).await.unwrap();
        acked(&mut acks, 9, 0..10).await;
        let ended = async {
            let old = |s: &StreamState| s.key == key(7) && s.ended;
            while !ingest.live().iter().any(old) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
        assert_eq!(sink.sequences("n1", 7), (0..40).collect::<Vec<_>>());
        let gaps = sink.gaps(None, None, 9).await.unwrap();
        let gaps: Vec<_> = gaps.iter().map(|g| (g.epoch.0, g.first, g.count, g.at_least)).collect();
        assert_eq!(gaps, [(7, 40, 0, true)], "all that was there arrived; nobody knows what came after");
    }
}

#[tokio::test(start_paused = true)]
async fn gaps_take_the_place_of_records_once() {
    let sink = Arc::new(Memory::default());
    let (ingest, _writer) = start(&sink, Limits::default());
    let Opened { offers, mut acks, .. } = open(&ingest, 1, &[held(7, 0, 30)]).await.unwrap();
    offer(&offers, 7, 5..10).await.unwrap();
    let gap = |first, count| Gap { key: key(7), first, count, reason: GapReason::Shed };
    for _ in 0..2 {
        offers.gap(gap(0, 20)).await.unwrap();
        acked(&mut acks, 7, 0..20).await;
    }
    assert_eq!(
        sink.gaps(None, None, 9).await.unwrap().iter().map(|g| (g.first, g.count)).collect::<Vec<_>>(),
        [(10, 10), (0, 5)]
    );
    assert!(offers.gap(gap(3, 0)).await.is_err());
    assert!(offers.gap(gap(3, u64::MAX)).await.is_err());
}

fn sqlite(folder: &tempfile::TempDir, env: &Env) -> Arc<Sqlite> {
    Arc::new(Sqlite::new(folder.path().join("streams.db"), env))
}

#[tokio::test(start_paused = true)]
async fn a_hub_restored_from_an_older_database_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("streams.db");
    let backup = folder.path().join("backup.db");
    let sink = sqlite(&folder, &env());
    let (ingest, writer) = start(&sink, Limits::default());
    let Opened { offers, mut acks, .. } = open(&ingest, 1, &[held(7, 0, 30)]).await.unwrap();
    offer(&offers, 7, 0..10).await.unwrap();
    acked(&mut acks, 7, 0..10).await;
    rusqlite::Connection::open(&database).unwrap().execute("VACUUM INTO ?", [backup.to_str().unwrap()]).unwrap();
    offer(&offers, 7, 10..30).await.unwrap();
    acked(&mut acks, 7, 0..30).await;
    writer.abort();
    drop((ingest, offers, acks, writer.await, sink));

    std::fs::copy(&backup, &database).unwrap();
    let sink = sqlite(&folder, &env());
    let (ingest, _writer) = start(&sink, Limits::default());
    let Opened { marks, offers, mut acks } = open(&ingest, 1, &[held(7, 20, 40)]).await.unwrap();
    assert_eq!(marks[0].durable, std::iter::once(0..10).collect::<Ranges>());
    // The node has deleted what was acknowledged: it says so, and sends the rest again.
    offers.gap(Gap { key: key(7), first: 10, count: 10, reason: GapReason::HubLost }).await.unwrap();
    offer(&offers, 7, 20..40).await.unwrap();
    acked(&mut acks, 7, 0..40).await;
    let kept = super::super::sink::suite::all("scans");
    let sequences: Vec<u64> = sink.query(&kept).await.unwrap().rows.iter().map(|r| r.sequence).collect();
    assert_eq!(sequences, (0..10).chain(20..40).collect::<Vec<_>>());
    assert_eq!(sink.gaps(None, None, 9).await.unwrap()[0].reason, GapReason::HubLost);
}

/// What a run with SQLite looks like from outside, times included.
async fn trace(seed: u64) -> Vec<String> {
    use rand::Rng as _;
    let folder = tempfile::tempdir().unwrap();
    let sink = sqlite(&folder, &env());
    let (ingest, writer) = start(&sink, Limits::default());
    let mut random = proto::env::Seed::from_u64(seed).stream("trace");
    let began = tokio::time::Instant::now();
    let mut trace = vec![];
    let mut lanes: BTreeMap<u64, (Opened, u64)> = BTreeMap::new();
    for node in 0..5_u64 {
        let opened = ingest.opened(1, &name(&format!("n{node}")), &name("s1"), Lane::Live, &[held(7, 0, 0)]).await;
        lanes.insert(node, (opened.unwrap(), 0));
    }
    for _ in 0..40 {
        let node = random.next_u64() % 5;
        let count = random.next_u64() % 20 + 1;
        let (opened, next) = lanes.get_mut(&node).unwrap();
        offer(&opened.offers, 7, *next..*next + count).await.unwrap();
        *next += count;
        if random.next_u64().is_multiple_of(3) {
            let marks = opened.acks.next().await.unwrap();
            trace.push(format!("{:?} n{node} {marks:?}", began.elapsed()));
        }
    }
    tokio::time::sleep(Duration::from_secs(9)).await;
    let rows = sink.query(&super::super::sink::suite::all("scans")).await.unwrap();
    trace.push(format!(
        "{rows:?} {:?}",
        sink.states().await.unwrap().iter().map(|s| s.durable.clone()).collect::<Vec<_>>()
    ));
    writer.abort();
    trace
}

#[tokio::test(start_paused = true)]
async fn in_virtual_time_a_run_repeats_itself() {
    let first = trace(3).await;
    assert!(first.len() > 5 && first.last().unwrap().len() > 1000);
    assert_eq!(first, trace(3).await);
    assert_ne!(first, trace(4).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_a_second_into_sqlite() {
    const BATCHES: u64 = 200;
    const RECORDS: u64 = 500;
    let folder = tempfile::tempdir().unwrap();
    let real = Env::real().unwrap();
    let (ingest, writer) = Ingest::start(sqlite(&folder, &real), &real, Limits::default());
    let writer = tokio::spawn(writer);
    let sealed: Vec<Bytes> = (0..BATCHES)
        .map(|b| {
            let record = |n: u64| {
                // Half of it no two records share.
                let code = proto::digest::Digest::of(&n.to_be_bytes()).hex();
                let note = proto::digest::Digest::of(code.as_bytes()).hex();
                let head = format!(r#"{{"code":"{code}","line":{},"weight":{},"note":"{note}"#, n % 12, n % 3001);
                Record { time_ms: n as i64, bytes: format!("{head:x<298}\"}}").into() }
            };
            let records = (b * RECORDS..(b + 1) * RECORDS).map(record).collect();
            Batch { epoch: Epoch(7), first: b * RECORDS, records }.seal().unwrap().into()
        })
        .collect();
    let Opened { offers, mut acks, .. } = open(&ingest, 1, &[held(7, 0, BATCHES * RECORDS)]).await.unwrap();
    let began = tokio::time::Instant::now();
    for sealed in sealed {
        let room = offers.room(1 << 20).await;
        let batch = Batch::open(&sealed).unwrap(); // as a lane does
        offers.batch(room, &name("scans"), batch, sealed).unwrap();
    }
    acked(&mut acks, 7, 0..BATCHES * RECORDS).await;
    let took = began.elapsed().as_secs_f64();
    println!("ingest into SQLite: {:.0} records/s of 300 bytes, 500 a batch", (BATCHES * RECORDS) as f64 / took);
    assert!(took < 60.0, "{took} s");
    writer.abort();
}
