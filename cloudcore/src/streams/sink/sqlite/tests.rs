use super::{super::suite, *};

fn open(folder: &tempfile::TempDir) -> Sqlite {
    Sqlite::new(folder.path().join("streams.db"), &Env::real().unwrap())
}

macro_rules! suite {
    ($($test:ident)*) => {$(
        #[tokio::test]
        async fn $test() {
            let folder = tempfile::tempdir().unwrap();
            suite::$test(&open(&folder)).await;
        }
    )*};
}
suite!(keeps_and_reads tails counts_and_gaps all_or_nothing retains);

#[tokio::test]
async fn what_was_kept_is_there_after_a_restart_and_space_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let noise: Vec<String> = (0..400_u32).map(|i| proto::digest::Digest::of(&i.to_be_bytes()).hex()).collect();
    let texts: Vec<&str> = noise.iter().map(String::as_str).collect();
    let sink = open(&folder);
    for first in 0..40 {
        let batches = vec![suite::batch("n1", "scans", first * 400, 60, &texts)];
        sink.commit(&Commit { batches, states: vec![suite::state("n1", "scans", 1)], ..Commit::default() })
            .await
            .unwrap();
    }
    drop(sink);
    let sink = open(&folder);
    assert_eq!(sink.states().await.unwrap(), [suite::state("n1", "scans", 1)]);
    assert_eq!(sink.query(&Query { limit: 20_000, ..suite::all("scans") }).await.unwrap().rows.len(), 10_000);
    let size = || std::fs::metadata(folder.path().join("streams.db")).unwrap().len();
    assert_eq!(sink.prune(suite::at(9000)).await.unwrap(), 16_000);
    assert!(size() < 200_000, "{} bytes", size());
}

#[tokio::test]
async fn a_file_that_is_none_of_ours_is_named_and_a_disk_that_fails_is_only_down() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("streams.db");
    std::fs::write(&path, "this is no database at all, but it is long enough to be looked at as one").unwrap();
    let sink = open(&folder);
    let error = sink.states().await.unwrap_err();
    assert!(matches!(&error, SinkError::Damaged(why) if why.contains("move it away")), "{error}");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(sink.states().await.unwrap(), []);
    drop(sink);
    let newer = Connection::open(&path).unwrap();
    newer.execute_batch("PRAGMA user_version = 99; ALTER TABLE states ADD COLUMN newer TEXT").unwrap();
    newer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(newer);
    let before = std::fs::read(&path).unwrap();
    let newer = open(&folder);
    for error in [newer.states().await.unwrap_err(), newer.commit(&Commit::default()).await.unwrap_err()] {
        let told = ["streams.db has schema version 99", "knows 1", "start the version that wrote it"];
        assert!(matches!(&error, SinkError::Damaged(why) if told.iter().all(|text| why.contains(text))), "{error}");
    }
    assert!(std::fs::read(&path).unwrap() == before, "it is left as it is");
    let nowhere = Sqlite::new(folder.path().join("absent/streams.db"), &Env::real().unwrap());
    assert!(matches!(nowhere.states().await, Err(SinkError::Unavailable(_))));
}
