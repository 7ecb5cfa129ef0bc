//! The MQTT door: a server of 3.1.1 and 5 that only takes. A publish of QoS 1 is answered when it is on disk.
//!
//! | what a client does | 3.1.1 | 5 |
//! |---|---|---|
//! | QoS 0 | taken; dropped and counted when the outbox is busy or full | the same |
//! | QoS 1 | PUBACK when it is on disk | the same |
//! | QoS 2 | PUBREC when it is on disk; sent again before PUBREL it is not taken again, over reconnects too while the agent runs | refused: CONNACK says Maximum QoS 1 |
//! | outbox full or busy | waits up to 10 s, then the connection is closed | waits 2 s where it is busy, then PUBACK 0x97 |
//! | topic that leads nowhere | connection closed (QoS 0: dropped, counted) | PUBACK 0x90 (QoS 0: dropped, counted) |
//! | record or packet too large | connection closed | DISCONNECT 0x95 |
//! | SUBSCRIBE | SUBACK 0x80 | SUBACK 0x83 |
//!
//! 3.1.1 knows no negative answer to a publish, and an answer is a promise: so the connection is closed
//! instead, and the client keeps what it has. What it sends again after a lost connection with QoS 1 may
//! be taken twice. The retain flag and last wills are ignored: nobody can subscribe here. A client that
//! asks to keep its session (3.1.1) is always told that there is one: it consists of QoS 2 identifiers
//! only, and some clients throw their unsent messages away when they hear that there is none.
//!
//! What a client pipelines is read as far as it is there, up to [`MAX_PIPELINED_BYTES`], appended at once
//! and answered in order. Two clients with one name may be connected at once.

pub(super) mod client;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout},
};

use self::client::Client;
use super::{Conn, Desk, access::Access};

/// Connections of the door at once.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// What is appended at once of one connection, roughly.
const MAX_PIPELINED_BYTES: usize = 128 << 10;
const MAX_PIPELINED: usize = 1024;
const READ_BYTES: usize = 4 << 10;
/// A connection begins with CONNECT, and soon.
const CONNECT: Duration = Duration::from_secs(10);
/// A client that does not read its answers is dropped.
const WRITE: Duration = Duration::from_secs(10);
/// How long a closed connection is still read, so that its last answer is not lost in a reset.
const LINGER: Duration = Duration::from_secs(1);
const MAX_SESSIONS: usize = 256;
const MAX_SESSION_IDS: usize = 1024;

/// What clients that come back left behind: the QoS 2 messages that were taken and not yet released.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    kept: Mutex<BTreeMap<String, BTreeSet<u16>>>,
}

impl Sessions {
    fn get(&self, client: &str) -> Option<BTreeSet<u16>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(client).cloned()
    }

    /// Keeps a session, within bounds: beyond them the first by name are forgotten.
    fn put(&self, client: &str, taken: BTreeSet<u16>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = if taken.len() <= MAX_SESSION_IDS { taken } else { BTreeSet::new() };
        kept.insert(client.to_owned(), taken);
        while kept.len() > MAX_SESSIONS {
            kept.pop_first();
        }
    }

    fn remove(&self, client: &str) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(client);
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(mut conn: Conn, desk: Arc<Desk>, access: Option<Arc<Access>>) {
    let mut client = Client::new(&desk, access.as_deref());
    let mut buffer = vec![0; READ_BYTES];
    let mut quiet = Some(Instant::now() + CONNECT);
    while !client.is_over() {
        let read = match quiet {
            Some(until) => tokio::time::timeout_at(until, conn.read(&mut buffer)).await,
            None => Ok(conn.read(&mut buffer).await),
        };
        match read {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(count)) => {
                client.feed(buffer.get(..count).unwrap_or_default());
                read_on(&mut conn, &mut client, &mut buffer);
            }
            Err(_) => client.silent(),
        }
        client.settle().await;
        if !write(&mut conn, &mut client).await {
            break;
        }
        quiet = client.quiet_until().or(quiet.filter(|_| !client.is_connected()));
    }
    client.leave();
    if client.is_over() {
        linger(&mut conn, &mut buffer).await;
    }
}

/// Whatever else is there already, within the bounds of one append.
fn read_on(conn: &mut Conn, client: &mut Client<'_>, buffer: &mut [u8]) {
    while !client.is_over() && client.pipelined() < MAX_PIPELINED && client.pipelined_bytes() < MAX_PIPELINED_BYTES {
        match conn.read(buffer).now_or_never() {
            Some(Ok(count)) if count > 0 => client.feed(buffer.get(..count).unwrap_or_default()),
            // The end or an error is found again by the next read.
            _ => break,
        }
    }
}

async fn write(conn: &mut Conn, client: &mut Client<'_>) -> bool {
    let bytes = client.answers();
    if bytes.is_empty() {
        return true;
    }
    let sent = async {
        conn.write_all(&bytes).await?;
        conn.flush().await
    };
    matches!(timeout(WRITE, sent).await, Ok(Ok(())))
}

async fn linger(conn: &mut Conn, buffer: &mut [u8]) {
    conn.shutdown().await.ok();
    let rest = async { while conn.read(buffer).await.is_ok_and(|count| count > 0) {} };
    timeout(LINGER, rest).await.ok();
}
