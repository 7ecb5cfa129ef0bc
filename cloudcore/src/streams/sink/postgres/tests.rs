//! The sink against a real Postgres.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    super::suite,
    server::{PASSWORD, Server, sink},
    *,
};
use crate::streams::ingest::{Health, Ingest, Limits};

macro_rules! suite {
    ($($test:ident)*) => {$(
        #[tokio::test]
        async fn $test() {
            let server = Server::get();
            let address = server.address(&server.database().await);
            let sink = sink(&address, |_| {});
            sink.states().await.unwrap(); // makes the tables, as the writer does
            suite::$test(&sink).await;
        }
    )*};
}
suite!(keeps_and_reads tails counts_and_gaps all_or_nothing retains);

/// The states, once the connection before has ended at the server and let go of the lock.
async fn states(sink: &Postgres) -> Result<Vec<StreamState>, SinkError> {
    let free = async {
        loop {
            match sink.states().await {
                Err(SinkError::Unavailable(why)) if why.contains("another hub") => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => return other,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), free).await.unwrap()
}

#[tokio::test]
async fn records_are_there_for_sql_and_odd_ones_are_kept_as_bytes() {
    let server = Server::get();
    let database = server.database().await;
    let sink = sink(&server.address(&database), |_| {});
    let odd = [r#"{"code":"x1","weight":12.5}"#, "no json", r#"{"nul":"\u0000"}"#, "1e-400000", "\"\u{e4}\"", ""];
    let mut batch = suite::batch("n1", "scans", 0, 60, &odd);
    batch.batch.records[1].bytes = Bytes::from_static(b"\xff\0\xfe");
    batch.batch.records[2].time_ms = i64::MAX;
    batch.batch.records[3].time_ms = i64::MIN;
    let records = batch.batch.records.clone();
    sink.commit(&Commit { batches: vec![batch], ..Commit::default() }).await.unwrap();
    let rows = sink.query(&suite::all("scans")).await.unwrap().rows;
    assert_eq!(rows.iter().map(|r| &r.bytes).collect::<Vec<_>>(), records.iter().map(|r| &r.bytes).collect::<Vec<_>>());
    assert_eq!((rows[0].time_ms, rows[3].time_ms < -60_000_000_000_000), (60_000, true));
    let counts = CountQuery { stream: suite::name("scans"), site: None, from: None, to: None, limit: 9 };
    assert_eq!(sink.counts(&counts).await.unwrap().iter().map(|c| c.records).collect::<Vec<_>>(), [1, 4, 1]);
    let client = server.client(&database).await;
    let sql = "SELECT doc->>'code', doc IS NULL, time = 'epoch'::timestamptz + '1 minute' FROM crossdock_records ORDER BY sequence";
    let found = client.query(sql, &[]).await.unwrap();
    assert_eq!((found[0].get::<_, String>(0), found[0].get::<_, bool>(2)), ("x1".into(), true));
    assert_eq!(found.iter().map(|r| r.get(1)).collect::<Vec<bool>>(), [false, true, true, true, false, true]);
}

#[tokio::test]
async fn two_writers_do_not_write_at_once_and_the_second_goes_on_after_the_first() {
    let server = Server::get();
    let address = server.address(&server.database().await);
    let (first, second) = (sink(&address, |_| {}), sink(&address, |_| {}));
    let commit = |at| Commit {
        batches: vec![suite::batch("n1", "scans", at, 60, &["x"])],
        states: vec![suite::state("n1", "scans", at + 1)],
        ..Commit::default()
    };
    first.commit(&commit(0)).await.unwrap();
    for refused in [second.states().await.map(drop), second.commit(&commit(1)).await] {
        assert!(matches!(&refused, Err(SinkError::Unavailable(why)) if why.contains("another hub")), "{refused:?}");
    }
    // Reading is for everybody.
    assert_eq!(second.query(&suite::all("scans")).await.unwrap().rows.len(), 1);
    // A writer that waits takes over when the first is gone, with what that one has kept.
    let second: Arc<dyn Sink> = Arc::new(second);
    let (ingest, writer) = Ingest::start(Arc::clone(&second), &Env::real().unwrap(), Limits::default());
    let writer = tokio::spawn(writer);
    ingest.health().wait_for(|h| matches!(h, Health::Down(_))).await.unwrap();
    first.commit(&commit(1)).await.unwrap();
    drop(first);
    let mut health = ingest.health();
    let up = health.wait_for(|h| *h == Health::Up);
    tokio::time::timeout(Duration::from_secs(60), up).await.unwrap().unwrap();
    assert_eq!(ingest.live(), [suite::state("n1", "scans", 2)]);
    writer.abort();
}

#[tokio::test]
async fn a_server_that_dies_is_found_again_and_an_unanswered_commit_is_not_guessed() {
    let mut server = Server::start();
    let database = server.database().await;
    let sink = sink(&server.address(&database), |_| {});
    let commit = |at| Commit {
        batches: vec![suite::batch("n1", "scans", at, 60, &["x"])],
        states: vec![suite::state("n1", "scans", at + 1)],
        ..Commit::default()
    };
    sink.commit(&commit(0)).await.unwrap();
    server.kill();
    assert!(matches!(sink.commit(&commit(1)).await, Err(SinkError::Unavailable(_))));
    assert!(matches!(sink.query(&suite::all("scans")).await, Err(SinkError::Unavailable(_))));
    server.again();
    let client = server.client(&database).await;
    sink.commit(&commit(1)).await.unwrap();

    // The connection ends while the commit is under way: a trigger sees to that.
    let trigger = "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS
                       $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
                   CREATE CONSTRAINT TRIGGER die AFTER INSERT ON crossdock_records DEFERRABLE INITIALLY DEFERRED
                       FOR EACH ROW EXECUTE FUNCTION die()";
    client.batch_execute(trigger).await.unwrap();
    let answer = sink.commit(&commit(2)).await;
    assert!(matches!(answer, Err(SinkError::Unknown(_))), "{answer:?}");
    client.batch_execute("DROP TRIGGER die ON crossdock_records").await.unwrap();
    // The new connection waits for the end of the old one, and then the states tell.
    let states = states(&sink).await.unwrap();
    assert_eq!(states, [suite::state("n1", "scans", 2)]);
    sink.commit(&commit(2)).await.unwrap();
    assert_eq!(sink.query(&suite::all("scans")).await.unwrap().rows.len(), 3);
    // What is there already was written by somebody whom we do not know.
    assert!(matches!(sink.commit(&commit(2)).await, Err(SinkError::Unknown(_))));
}

#[tokio::test]
async fn passwords_and_certificates_are_asked_for_and_checked() {
    let server = Server::get();
    let database = server.database().await;
    let plain = server.tcp_address(&database);
    let secure = format!("{plain}?sslmode=require");
    let (password, ca) = (server.file("password"), server.file("ca.pem"));
    let wrong = server.file("wrong");
    std::fs::write(&wrong, "wrong\n").unwrap();
    let with = |address: &str, password: &std::path::Path, ca: Option<&std::path::Path>| {
        sink(address, |s| (s.password_file, s.ca) = (Some(password.into()), ca.map(Into::into)))
    };
    assert_eq!(states(&with(&secure, &password, Some(&ca))).await.unwrap(), []);
    assert_eq!(states(&with(&plain, &password, None)).await.unwrap(), []);
    let refused = [
        (with(&plain, &wrong, None), "password"),
        (with(&secure, &password, None), "certificate"),
        (with(&secure.replace("localhost", "127.0.0.1"), &password, Some(&ca)), "certificate"),
        (with(&plain, &server.file("absent"), None), "password file"),
    ];
    for (sink, word) in refused {
        let error = sink.states().await.unwrap_err().to_string();
        assert!(error.contains(word) && !error.contains(PASSWORD), "{error}");
        assert!(error.contains("Postgres postgres@"), "{error}");
    }
    assert!(format!("{:?}", with(&plain, &password, None)).starts_with("Postgres postgres@localhost:"));
}

#[tokio::test]
async fn a_database_of_another_encoding_or_a_newer_version_is_refused_in_words() {
    let server = Server::get();
    let database = server.database().await;
    let client = server.client("postgres").await;
    client.batch_execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0").await.unwrap();
    let error = sink(&server.address("latin"), |_| {}).states().await.unwrap_err();
    assert!(matches!(&error, SinkError::Unavailable(why) if why.contains("UTF8")), "{error}");
    sink(&server.address(&database), |_| {}).states().await.unwrap();
    let newer = "UPDATE crossdock_meta SET value = 99 WHERE name = 'version'";
    server.client(&database).await.batch_execute(newer).await.unwrap();
    let newer = sink(&server.address(&database), |_| {});
    let error = states(&newer).await.unwrap_err();
    assert!(matches!(&error, SinkError::Damaged(why) if why.contains("newer")), "{error}");
}
