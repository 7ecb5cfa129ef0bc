//! What every peer is measured for: records a second from producer to sink, and what is lost when its
//! server is killed once.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail};
use cloudcore::stage::PATIENCE;
use tokio::time::{Instant, sleep, timeout};

use super::{
    load::{Ledger, Load, Target, Verdict},
    server::Server,
    store::Store,
};

/// Nothing new for so long: nothing more will come. Longer than any of the servers waits to send again.
const QUIET: Duration = Duration::from_secs(12);
const PERIOD: Duration = Duration::from_millis(200);

/// A server, its consumer, and the sink behind it.
pub trait Peer: Sized {
    /// Where producers connect.
    type Target: Target;
    /// Starts it in an empty folder.
    fn open(folder: &Path) -> impl Future<Output = anyhow::Result<Self>>;
    /// Where producers connect.
    fn target(&self) -> Self::Target;
    /// The sink.
    fn store(&self) -> &Store;
    /// The server.
    fn server(&mut self) -> &mut Server;
}

/// What a peer did.
#[derive(Debug)]
pub struct Found {
    /// Records a second, first offer to last in the sink.
    pub per_s: f64,
    /// After its server was killed once.
    pub killed: Verdict,
    /// Sent and never answered, while it was killed.
    pub unanswered: u64,
}

/// Measures a peer.
///
/// # Errors
/// When it does not do what it should.
pub async fn measure<P: Peer>(load: &Load, records: u64, kill_records: u64) -> anyhow::Result<Found> {
    let folder = tempfile::Builder::new().prefix("crossdock-peer-").tempdir()?;
    let peer = P::open(folder.path()).await?;
    let (ledger, begin) = (Ledger::default(), Instant::now());
    load.run(&[peer.target()], records, &ledger).await?;
    let all = timeout(PATIENCE, peer.store().reached(records)).await;
    all.with_context(|| format!("only {} of {records} records are in the sink", peer.store().count()))?;
    let per_s = records as f64 / begin.elapsed().as_secs_f64();
    drop((peer, folder));

    let folder = tempfile::Builder::new().prefix("crossdock-peer-").tempdir()?;
    let mut peer = P::open(folder.path()).await?;
    let ledger = Ledger::default();
    let (target, store) = (peer.target(), peer.store().clone());
    let kill = async {
        ledger.reached(kill_records / 2).await;
        peer.server().kill().await?;
        peer.server().again().await
    };
    let targets = [target];
    tokio::try_join!(load.run(&targets, kill_records, &ledger), kill)?;
    let killed = settled(&ledger, &store).await?;
    Ok(Found { per_s, killed, unanswered: ledger.unanswered() })
}

/// Waits until all that was acknowledged is there, or nothing more comes.
async fn settled(ledger: &Ledger, store: &Store) -> anyhow::Result<Verdict> {
    let (deadline, mut before, mut since) = (Instant::now() + PATIENCE, 0, Instant::now());
    loop {
        let count = store.count();
        if count != before {
            (before, since) = (count, Instant::now());
        }
        let quiet = since.elapsed() > QUIET;
        if quiet || count >= ledger.acknowledged() {
            let verdict = ledger.judge(store.numbers().await?);
            if quiet || verdict.lost == 0 {
                return Ok(verdict);
            }
        }
        if Instant::now() > deadline {
            bail!("after {PATIENCE:?} records still come: {count} are there");
        }
        sleep(PERIOD).await;
    }
}
