//! Whatever happens in whatever order: a record that was taken is read as it was, once, in its place, until
//! it is deleted; or a gap with the right reason stands there. Against a model of maps.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proptest::prelude::*;
use proto::env::Seed;

use super::{
    super::{
        db, edit,
        epoch::Draw,
        store::{self, Files, Store, current},
    },
    *,
};

#[derive(Debug, Clone, PartialEq)]
enum Slot {
    Record(Bytes),
    Gone(GapReason),
    Deleted,
}

#[derive(Debug, Clone)]
enum Op {
    Append(usize, u64, usize),
    /// Of the current epoch or an older one, a part of what was given.
    Delete(usize, usize, u64, u64),
    Shed(u64),
    Flip(usize, usize),
    Renew(usize),
    Restart,
    PowerCut,
    OlderCopy,
    Noise,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..4usize, 1..30u64, 0..600usize).prop_map(|(s, n, b)| Op::Append(s, n, b)),
        5 => (0..4usize, 0..3usize, 0..100u64, 1..60u64).prop_map(|(s, e, from, count)| Op::Delete(s, e, from, count)),
        2 => (1..9000u64).prop_map(Op::Shed),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(row, bit)| Op::Flip(row, bit)),
        1 => (0..4usize).prop_map(Op::Renew),
        1 => Just(Op::Restart),
        2 => Just(Op::PowerCut),
        1 => Just(Op::OlderCopy),
        1 => Just(Op::Noise),
    ]
}

/// What stands at each sequence that was given.
type Model = BTreeMap<StreamKey, BTreeMap<u64, Slot>>;

const NAMES: [&str; 4] = ["scans", "events", "metrics", "logs"];

struct Rig {
    folder: tempfile::TempDir,
    store: Option<Store>,
    starts: u64,
    written: u64,
    model: Model,
    /// Where each stream stood at this start.
    began: BTreeMap<StreamKey, u64>,
    /// A copy from an earlier start, and the model of it.
    copy: Option<(tempfile::TempDir, Model)>,
}

fn folder() -> tempfile::TempDir {
    // A flush costs nothing there; what is flushed when is not this test's question.
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn copy_files(from: &Path, to: &Path, files: &[&str]) {
    for file in files {
        let _ = fs::remove_file(to.join(file));
        if from.join(file).exists() {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }
}

const ALL: &[&str] = &["outbox.db", "outbox.db-wal", "epoch", "epoch.bak"];

impl Rig {
    fn new() -> Rig {
        let mut rig = Rig {
            folder: folder(),
            store: None,
            starts: 0,
            written: 0,
            model: BTreeMap::new(),
            began: BTreeMap::new(),
            copy: None,
        };
        rig.start();
        rig
    }

    fn draw(&self) -> Draw {
        Draw { now: Timestamp::UNIX_EPOCH, seed: Seed::from_u64(self.starts) }
    }

    fn start(&mut self) {
        self.store = None;
        self.starts += 1;
        let opened = store::open(&Files::of(self.folder.path()), &config(), &self.draw(), false).unwrap();
        self.began = opened.store.streams().iter().map(|s| (s.key.clone(), s.next)).collect();
        self.store = Some(opened.store);
    }

    fn store(&mut self) -> &mut Store {
        self.store.as_mut().unwrap()
    }

    fn current(&mut self, stream: usize) -> StreamKey {
        let name = name(NAMES[stream]);
        current(self.store().streams(), &name).unwrap().key.clone()
    }

    /// Reads everything of a stream, mending damage as the outbox does.
    fn read(&mut self, row: &StreamRow) -> Vec<Slot> {
        let (mut at, mut read) = (0, vec![]);
        while at < row.next {
            let reader = db::open_reader(&self.folder.path().join("outbox.db")).unwrap();
            match read::read(&reader, row.id, &row.key, &(at..row.next)).unwrap() {
                Found::Item(Item::Batch { first, count, sealed }) => {
                    let batch = Batch::open(&sealed).unwrap();
                    assert_eq!((batch.epoch, batch.first, first), (row.key.epoch, at, at));
                    assert_eq!(batch.records.len() as u64, count);
                    read.extend(batch.records.into_iter().map(|r| Slot::Record(r.bytes)));
                    at += count;
                }
                Found::Item(Item::Gap(gap)) => {
                    assert!(gap.first == at && gap.count > 0);
                    read.extend((0..gap.count).map(|_| Slot::Gone(gap.reason)));
                    at += gap.count;
                }
                Found::Damaged => self.settle(row.id, at),
            }
        }
        read
    }

    fn settle(&mut self, id: i64, at: u64) {
        let settled = self.store().transact(|connection, streams| {
            let stream = streams.iter_mut().find(|s| s.id == id).unwrap();
            let stored = db::at_or_before(connection, id, at)?.unwrap();
            edit::settle(connection, stream, stored)
        });
        settled.unwrap();
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Append(stream, count, bytes) => {
                let key = self.current(stream);
                let first = self.written;
                self.written += count;
                let taken: Vec<Record> =
                    (first..first + count).map(|n| Record { time_ms: n as i64, bytes: noise(n, bytes) }).collect();
                let done = self.store().transact(|connection, streams| {
                    let stream = streams.iter_mut().find(|s| s.key == key).unwrap();
                    store::append(connection, stream, &taken).map(|()| stream.next)
                });
                let model = self.model.entry(key).or_default();
                let next = model.len() as u64;
                model.extend((next..).zip(taken.into_iter().map(|r| Slot::Record(r.bytes))));
                assert_eq!(done.unwrap(), model.len() as u64);
            }
            Op::Delete(stream, epoch, from, count) => {
                let keys: Vec<_> = self.model.keys().filter(|k| k.stream.as_str() == NAMES[stream]).cloned().collect();
                let Some(key) = keys.get(epoch.min(keys.len().saturating_sub(1))) else { return };
                let model = self.model.get_mut(key).unwrap();
                let from = from * model.len() as u64 / 100;
                for (_, slot) in model.range_mut(from..from + count) {
                    *slot = Slot::Deleted;
                }
                let (key, store) = (key.clone(), self.store());
                let mut left = Some(from);
                while let Some(at) = left {
                    let deleted = store.transact(|connection, streams| {
                        let Some(stream) = streams.iter_mut().find(|s| s.key == key) else { return Ok(None) };
                        let rest = edit::delete(connection, stream, at..from + count)?.rest;
                        edit::prune(connection, streams).map(|()| rest)
                    });
                    left = deleted.unwrap();
                }
            }
            Op::Shed(bytes) => {
                let shed = |rig: &mut Rig| rig.store().streams().iter().map(|s| s.shed).sum::<u64>();
                let before = shed(self);
                self.store().shed(Class::Logs, bytes).unwrap();
                let shed = shed(self) - before;
                // Which of them: the oldest of their streams.
                let mut found = 0;
                for row in self.store().streams().to_vec() {
                    let read = self.read(&row);
                    let Some(model) = self.model.get_mut(&row.key) else { continue };
                    for (sequence, slot) in model.iter_mut() {
                        let now = &read[*sequence as usize];
                        if *now == Slot::Gone(GapReason::Shed) && matches!(slot, Slot::Record(_)) {
                            assert_eq!(row.class, Class::Logs);
                            *slot = now.clone();
                            found += 1;
                        } else if *now == Slot::Gone(GapReason::Shed) && *slot == Slot::Gone(GapReason::Damaged) {
                            *slot = now.clone(); // shed before anybody noticed that it was damaged
                            found += 1;
                        }
                    }
                    if row.class == Class::Logs {
                        let last = model.values().rposition(|s| *s == Slot::Gone(GapReason::Shed)).unwrap_or(0);
                        let kept = model.values().take(last).any(|s| matches!(s, Slot::Record(_)));
                        assert!(!kept, "younger records were shed before older ones");
                    }
                }
                assert_eq!(found, shed, "what is shed is counted");
            }
            Op::Flip(row, bit) => {
                let connection = Connection::open(self.folder.path().join("outbox.db")).unwrap();
                let rows: Vec<(i64, Vec<u8>)> = connection
                    .prepare("SELECT id, sealed FROM batches WHERE sealed IS NOT NULL")
                    .unwrap()
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
                    .unwrap()
                    .map(Result::unwrap)
                    .collect();
                if rows.is_empty() {
                    return;
                }
                let (id, mut sealed) = rows[row % rows.len()].clone();
                let (stream, first) = db::of_row(id);
                let key = self.store().streams().iter().find(|s| s.id == stream).unwrap().key.clone();
                let Ok(batch) = Batch::open(&sealed) else { return };
                let bit = bit % (sealed.len() * 8);
                sealed[bit / 8] ^= 1 << (bit % 8);
                connection.execute("UPDATE batches SET sealed = ? WHERE id = ?", (&sealed, id)).unwrap();
                if Batch::open(&sealed).is_ok() {
                    return; // a bit that no reader looks at
                }
                for (_, slot) in self.model.get_mut(&key).unwrap().range_mut(first..batch.end()) {
                    *slot = Slot::Gone(GapReason::Damaged);
                }
            }
            Op::Renew(stream) => {
                let (key, draw) = (self.current(stream), self.draw());
                let new = self.store().renew(&key, &draw, |_| {}).unwrap();
                assert!(new.epoch > key.epoch);
                let began = self.began.get(&key).copied().unwrap_or(0);
                let moved = self.model.entry(key).or_default().split_off(&began);
                let moved = moved.into_values().filter(|slot| *slot != Slot::Deleted);
                self.model.insert(new, (0..).zip(moved).collect());
            }
            Op::Restart => {
                let copy = folder();
                copy_files(self.folder.path(), copy.path(), ALL);
                self.copy = Some((copy, self.model.clone()));
                self.start();
            }
            Op::PowerCut => {
                let after = folder();
                copy_files(self.folder.path(), after.path(), ALL);
                self.store = None;
                self.folder = after;
                self.start();
            }
            Op::OlderCopy => {
                let Some((copy, model)) = self.copy.take() else { return };
                self.store = None;
                copy_files(copy.path(), self.folder.path(), &["outbox.db", "outbox.db-wal"]);
                self.start();
                for stream in 0..4 {
                    let key = self.current(stream);
                    assert!(!self.model.contains_key(&key), "a new epoch");
                }
                self.model = model;
            }
            Op::Noise => {
                self.store = None;
                fs::write(self.folder.path().join("outbox.db"), noise(self.starts, 20_000)).unwrap();
                self.start();
                let known: Vec<_> = self.model.keys().cloned().collect();
                assert!((0..4).all(|stream| !known.contains(&self.current(stream))), "a new epoch");
                self.model.clear();
                self.copy = None; // it would bring back what the epoch file has no memory of
            }
        }
    }

    fn check(&mut self) {
        let rows = self.store().streams().to_vec();
        for (key, model) in self.model.clone() {
            let Some(row) = rows.iter().find(|s| s.key == key) else {
                assert!(model.values().all(|s| *s == Slot::Deleted), "{key} is forgotten and holds something");
                continue;
            };
            assert_eq!(row.next, model.len() as u64, "{key}");
            let read = self.read(row);
            for ((sequence, slot), read) in model.iter().zip(&read) {
                match slot {
                    Slot::Deleted => assert_eq!(*read, Slot::Gone(GapReason::HubLost), "{key} {sequence}"),
                    slot => assert_eq!(read, slot, "{key} {sequence}"),
                }
            }
            let row = self.store().streams().iter().find(|s| s.key == key).unwrap().clone();
            let first = model.iter().find(|(_, s)| **s != Slot::Deleted).map_or(row.next, |(sequence, _)| *sequence);
            assert_eq!(row.first, first, "{key}");
            let records = model.values().filter(|s| matches!(s, Slot::Record(_))).count() as u64;
            assert_eq!(row.records, records, "{key}");
        }
    }
}

#[test]
fn what_was_shed_across_a_start_moves_in_part() {
    let mut rig = Rig::new();
    for op in
        [Op::Append(3, 1, 0), Op::Restart, Op::Append(3, 2, 0), Op::Shed(22), Op::Renew(3), Op::Shed(1), Op::PowerCut]
    {
        rig.apply(op);
        rig.check();
    }
}

proptest! {
    #[test]
    fn it_is_as_its_model(ops in prop::collection::vec(op(), 1..60)) {
        let mut rig = Rig::new();
        for op in ops {
            rig.apply(op);
        }
        rig.check();
        rig.start();
        rig.check();
    }
}
