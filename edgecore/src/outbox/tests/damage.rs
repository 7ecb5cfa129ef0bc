//! Damage: flipped bits, noise, truncation, loss, older copies, power cuts.

use super::*;

/// Copies the files as a power cut would leave them. What SQLite keeps in memory only is not among them.
fn power_cut(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for file in ["outbox.db", "outbox.db-wal", "epoch", "epoch.bak"] {
        if from.join(file).exists() {
            fs::copy(from.join(file), to.path().join(file)).unwrap();
        }
    }
    to
}

/// Changes the file beside the agent that has it open.
fn sql(folder: &Path, sql: &str) -> usize {
    let connection = Connection::open(folder.join("outbox.db")).unwrap();
    connection.execute(sql, []).unwrap()
}

#[tokio::test]
async fn a_power_cut_loses_nothing_that_was_answered() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    let mut answered = 0;
    for round in 0..20 {
        answered = outbox.append(&name("scans"), records(answered..answered + 1 + round)).await.unwrap().range.end;
        let after = power_cut(folder.path());
        let other = open(after.path()).await;
        let held = held(&other, "scans");
        assert_eq!((held.key.epoch, held.next), (self::held(&outbox, "scans").key.epoch, answered));
        assert_eq!(all(&other, &held.key).await, texts(0..answered));
        assert_eq!(other.state().borrow().problem, None);
    }
}

#[tokio::test]
async fn a_power_cut_in_the_middle_of_an_append_takes_that_one_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    // Few enough that the log is not flushed meanwhile: a copy of two files is a moment only while one grows.
    let appending = async {
        for n in 0..100 {
            outbox.append(&name("scans"), records(n..n + 1)).await.unwrap();
        }
    };
    let cutting = async {
        for _ in 0..20 {
            let answered = held(&outbox, "scans").next;
            let after = env().blocking.run({
                let from = folder.path().to_owned();
                move || power_cut(&from)
            });
            let other = open(after.await.path()).await;
            let held = held(&other, "scans");
            assert!(held.next >= answered, "{answered} answered, {} left", held.next);
            assert_eq!(all(&other, &held.key).await, texts(0..held.next));
        }
    };
    tokio::join!(appending, cutting);
}

#[tokio::test]
async fn a_torn_log_loses_its_end_only() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    for n in 0..20 {
        outbox.append(&name("scans"), records(n..n + 1)).await.unwrap();
    }
    let log = fs::read(folder.path().join("outbox.db-wal")).unwrap();
    for cut in (0..log.len()).step_by(log.len() / 17) {
        let after = power_cut(folder.path());
        fs::write(after.path().join("outbox.db-wal"), &log[..cut]).unwrap();
        let other = open(after.path()).await;
        let held = held(&other, "scans");
        let read = all(&other, &held.key).await;
        assert_eq!(read, texts(0..held.next), "cut at {cut}");
    }
}

#[tokio::test]
async fn a_flipped_bit_costs_its_batch_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    let mut key = None;
    for n in 0..10 {
        key = Some(outbox.append(&name("scans"), records(n * 10..n * 10 + 10)).await.unwrap().key);
    }
    let key = key.unwrap();
    close(outbox).await;
    // In the file itself, in the middle of the batch that begins with 40.
    let sealed: Vec<u8> = Connection::open(folder.path().join("outbox.db"))
        .unwrap()
        .query_row("SELECT sealed FROM batches ORDER BY id LIMIT 1 OFFSET 4", [], |row| row.get(0))
        .unwrap();
    let mut file = fs::read(folder.path().join("outbox.db")).unwrap();
    let places: Vec<usize> = (0..file.len() - sealed.len()).filter(|at| file[*at..].starts_with(&sealed)).collect();
    assert_eq!(places.len(), 1);
    file[places[0] + sealed.len() / 2] ^= 4;
    fs::write(folder.path().join("outbox.db"), &file).unwrap();

    let outbox = open(folder.path()).await;
    let mut expected = texts(0..100);
    expected[40..50].fill(Err(GapReason::Damaged));
    assert_eq!(all(&outbox, &key).await, expected);
    assert_eq!(all(&outbox, &key).await, expected, "it stays a gap");
    let state = outbox.state().borrow().clone();
    assert_eq!((state.damaged_records, state.records, state.problem), (10, 90, None));
    assert_eq!(held(&outbox, "scans").key, key, "the epoch goes on");
}

#[tokio::test]
async fn damage_beside_a_batch_loses_nothing() {
    for change in ["count = 3", "count = 300", "count = -1", "bytes = 7", "time_ms = 1", "checksum = 5"] {
        let folder = tempfile::tempdir().unwrap();
        let outbox = open(folder.path()).await;
        for n in 0..3 {
            outbox.append(&name("scans"), records(n * 10..n * 10 + 10)).await.unwrap();
        }
        let key = held(&outbox, "scans").key;
        assert_eq!(sql(folder.path(), &format!("UPDATE batches SET {change} WHERE id % 1024 = 10")), 1);
        assert_eq!(all(&outbox, &key).await, texts(0..30), "{change}");
        assert_eq!(outbox.state().borrow().damaged_records, 0, "{change}");
        // Deleting across it is exact too.
        sql(folder.path(), &format!("UPDATE batches SET {change} WHERE id % 1024 = 10"));
        outbox.delete(&key, vec![0..15]).await.unwrap();
        assert_eq!(all(&outbox, &key).await[15..], texts(15..30), "{change}");
    }
}

#[tokio::test]
async fn noise_is_set_aside_and_a_new_epoch_begins() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    let before = outbox.append(&name("scans"), records(0..9)).await.unwrap().key;
    close(outbox).await;
    let db = folder.path().join("outbox.db");
    for bytes in [200_000, 4096, 100, 0] {
        fs::write(&db, noise(bytes as u64, bytes)).unwrap();
        let outbox = open(folder.path()).await;
        let appended = outbox.append(&name("scans"), records(0..2)).await.unwrap();
        assert!(appended.key.epoch > before.epoch && appended.range == (0..2), "{bytes} bytes");
        assert!(outbox.state().borrow().problem.is_some(), "{bytes} bytes");
        assert_eq!(all(&outbox, &appended.key).await, texts(0..2));
        close(outbox).await;
        let outbox = open(folder.path()).await;
        assert_eq!(outbox.state().borrow().problem, None, "the next start is sound");
        assert!(!folder.path().join("outbox.damaged.db").exists());
        close(outbox).await;
    }
}

#[tokio::test]
async fn of_a_truncated_file_the_rest_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    let mut key = None;
    for n in 0..200 {
        let records =
            (0..10).map(|i| [records(n * 10 + i..n * 10 + i + 1)[0].as_ref(), &noise(n, 500)].concat().into());
        key = Some(outbox.append(&name("scans"), records.collect()).await.unwrap().key);
    }
    let key = key.unwrap();
    close(outbox).await;
    let whole = fs::read(folder.path().join("outbox.db")).unwrap();
    let mut saved = vec![];
    for percent in [90, 50, 20] {
        let folder = power_cut(folder.path());
        fs::write(folder.path().join("outbox.db"), &whole[..whole.len() * percent / 100]).unwrap();
        let outbox = open(folder.path()).await;
        let problem = outbox.state().borrow().problem.clone().unwrap();
        assert!(problem.contains("damaged") && problem.contains("saved"), "{problem}");
        let appended = outbox.append(&name("scans"), records(0..1)).await.unwrap();
        assert!(appended.key.epoch > key.epoch && appended.range == (0..1));
        let read = all(&outbox, &key).await;
        assert_eq!(read.len(), 2000, "what is not there is a gap");
        for (n, record) in read.iter().enumerate() {
            match record {
                Ok(text) => assert!(text.starts_with(&format!("record {n}")), "{n}"),
                Err(reason) => assert_eq!(*reason, GapReason::Damaged),
            }
        }
        saved.push(read.iter().filter(|r| r.is_ok()).count());
    }
    assert!(saved[0] > 1600 && saved[1] > 600 && saved[2] > 0, "{saved:?} of 2000");
}

#[tokio::test]
async fn a_page_of_noise_found_while_it_runs_costs_what_stood_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    for n in 0..2000 {
        outbox.append(&name("events"), records(n..n + 1)).await.unwrap();
    }
    let key = held(&outbox, "events").key;
    close(outbox).await;
    let db = folder.path().join("outbox.db");
    let whole = fs::read(&db).unwrap();
    let mut saved = vec![];
    for page in [whole.len() / 4096 / 2, whole.len() / 4096 - 3] {
        let folder = power_cut(folder.path());
        let mut file = whole.clone();
        file[page * 4096..][..4096].copy_from_slice(&noise(page as u64, 4096));
        fs::write(folder.path().join("outbox.db"), &file).unwrap();
        let outbox = open(folder.path()).await;
        let read = all(&outbox, &key).await;
        assert_eq!(read.len(), 2000);
        let good = read.iter().enumerate().filter(|(n, r)| **r == Ok(format!("record {n}"))).count();
        assert_eq!(good, read.iter().filter(|r| r.is_ok()).count(), "no record stands in another's place");
        saved.push(good);
        outbox.append(&name("events"), records(0..1)).await.unwrap();
        assert_ne!(held(&outbox, "events").key, key, "a new epoch");
    }
    assert!(saved.iter().all(|saved| *saved > 1900), "{saved:?} of 2000");
}

#[tokio::test]
async fn a_missing_or_older_or_foreign_file_begins_a_new_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    let old = outbox.append(&name("scans"), records(0..4)).await.unwrap().key;
    let copy = power_cut(folder.path());
    close(outbox).await;
    let outbox = open(folder.path()).await;
    outbox.append(&name("scans"), records(4..8)).await.unwrap();
    close(outbox).await;

    // An older copy is put back: what it holds is still delivered.
    let restore = |from: &Path| {
        for file in ["outbox.db", "outbox.db-wal"] {
            let _ = fs::remove_file(folder.path().join(file));
            if from.join(file).exists() {
                fs::copy(from.join(file), folder.path().join(file)).unwrap();
            }
        }
    };
    restore(copy.path());
    let outbox = open(folder.path()).await;
    assert!(outbox.state().borrow().problem.clone().unwrap().contains("older copy"));
    let new = held(&outbox, "scans");
    assert_eq!((all(&outbox, &old).await, new.next), (texts(0..4), 0));
    assert!(new.key.epoch > old.epoch);
    close(outbox).await;

    for (gone, word) in [("outbox.db", "gone"), ("epoch", "epoch file")] {
        let before = power_cut(folder.path());
        let _ = fs::remove_file(before.path().join("epoch.bak"));
        fs::remove_file(before.path().join(gone)).unwrap();
        let outbox = open(before.path()).await;
        assert!(outbox.state().borrow().problem.clone().unwrap().contains(word), "{gone}");
        assert!(held(&outbox, "scans").key.epoch > new.key.epoch, "{gone}");
    }

    let other = tempfile::tempdir().unwrap();
    let foreign = open(other.path()).await;
    let theirs = foreign.append(&name("scans"), records(0..3)).await.unwrap().key;
    close(foreign).await;
    restore(other.path());
    let outbox = open(folder.path()).await;
    assert!(outbox.state().borrow().problem.clone().unwrap().contains("not the one of this folder"));
    assert_eq!(all(&outbox, &theirs).await, texts(0..3));
    assert_ne!(held(&outbox, "scans").key, theirs);
}

#[tokio::test]
async fn a_file_that_is_removed_while_it_is_open_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    let old = outbox.append(&name("scans"), records(0..4)).await.unwrap().key;
    fs::remove_file(folder.path().join("outbox.db")).unwrap();
    let appended = outbox.append(&name("scans"), records(0..2)).await.unwrap();
    assert!(appended.key.epoch > old.epoch && appended.range == (0..2));
    assert_eq!(all(&outbox, &appended.key).await, texts(0..2));
    assert!(outbox.state().borrow().problem.is_some());
    close(outbox).await;
    let outbox = open(folder.path()).await;
    assert_eq!(all(&outbox, &appended.key).await, texts(0..2));
}

#[tokio::test]
async fn a_salvage_that_was_cut_short_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    let old = outbox.append(&name("scans"), records(0..4)).await.unwrap().key;
    let copy = power_cut(folder.path());
    close(outbox).await;
    let at = |file: &str| copy.path().join(file);
    // The log was set aside, its database not yet; or both were and a new one was begun.
    fs::rename(at("outbox.db-wal"), at("outbox.damaged.db-wal")).unwrap();
    let second = power_cut(copy.path());
    fs::copy(at("outbox.damaged.db-wal"), second.path().join("outbox.damaged.db-wal")).unwrap();
    fs::rename(second.path().join("outbox.db"), second.path().join("outbox.damaged.db")).unwrap();
    fs::write(second.path().join("outbox.new.db"), noise(1, 5000)).unwrap();
    for folder in [copy.path(), second.path()] {
        let outbox = open(folder).await;
        assert_eq!(all(&outbox, &old).await, texts(0..4));
        assert!(held(&outbox, "scans").key.epoch > old.epoch);
    }
}

#[tokio::test]
async fn a_newer_schema_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    close(open(folder.path()).await).await;
    Connection::open(folder.path().join("outbox.db")).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let error = Outbox::open(folder.path(), config(), env()).await.unwrap_err();
    assert!(error.to_string().contains("newer"), "{error}");
    assert!(folder.path().join("outbox.db").exists() && !folder.path().join("outbox.damaged.db").exists());
}

#[test]
fn epochs_are_whole_for_every_json_reader() {
    assert!(Epoch::new(Timestamp::MAX, u32::MAX).0 < super::super::epoch::MAX_EPOCH);
}
