//! Streams under faults: every record that a producer was promised is in the sink once, or in a counted gap.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use proto::{
    object::{Node, NodePhase},
    stream::GapReason,
};
use rand::RngExt as _;
use tokio::time::{Instant, sleep};

use crate::world::World;

const BOXES: [&str; 2] = ["box-1", "box-2"];
const BOX: &str = "box-1";
/// Time in which everything that waits must arrive once nothing is broken any more.
const HEALED: Duration = Duration::from_secs(300);

async fn begin(world: &mut World, boxes: &[&str], settings: &str) -> anyhow::Result<()> {
    world.start_hub().await?;
    for name in boxes {
        world.join(name, "hz-01").await?;
        world.settings(name, settings)?;
        world.start_agent(name).await?;
    }
    for name in boxes {
        world.produce(name, "scans", 10, 5).await?;
    }
    world.until_counted("the first scans arrive", Duration::from_secs(60)).await?;
    Ok(())
}

/// Faults 9 and 10: whatever fails when, nothing is lost and nothing is twice.
pub(super) async fn through_outages(world: &mut World) -> anyhow::Result<Vec<String>> {
    let mut choice = world.seed("scans_through_outages").stream("choices");
    begin(world, &BOXES, "").await?;
    let mut fired: BTreeMap<u32, u32> = BTreeMap::new();
    for _ in 0..20 {
        let name = if choice.random_range(0..2) == 0 { BOXES[0] } else { BOXES[1] };
        let count = choice.random_range(1..200);
        world.produce(name, "scans", count, choice.random_range(1..50)).await?;
        sleep(Duration::from_millis(choice.random_range(0..400))).await; // the moment of the fault
        let fault = choice.random_range(0..5);
        *fired.entry(fault).or_default() += 1;
        match fault {
            0 => {
                world.cut(name, true);
                world.produce(name, "scans", 20, 3).await?;
                sleep(Duration::from_secs(choice.random_range(1..90))).await; // the outage
                world.cut(name, false);
            }
            1 => {
                // The hub hears and commits; its acknowledgements are lost.
                world.cut_towards(name, true);
                world.produce(name, "scans", 20, 3).await?;
                sleep(Duration::from_secs(choice.random_range(1..60))).await; // the outage
                world.cut_towards(name, false);
            }
            2 => {
                world.crash_agent(name).await?;
                world.start_agent(name).await?;
            }
            3 => {
                world.crash_hub().await;
                world.produce(name, "scans", 20, 3).await?;
                world.start_hub().await?;
            }
            _ => {
                world.crash_hub().await;
                world.crash_agent(name).await?;
                world.start_hub().await?;
                world.start_agent(name).await?;
            }
        }
    }
    let outcome = world.until_counted("everything arrived", HEALED).await?;
    ensure!(outcome.in_gaps == 0, "nothing was to be lost: {outcome:?}");
    Ok(vec![format!("{outcome:?}; cuts 0, lost answers 1, agents 2, hubs 3, both 4: {fired:?}")])
}

/// Fault 6.
pub(super) async fn outbox_full(world: &mut World) -> anyhow::Result<Vec<String>> {
    begin(world, &[BOX], "quota = \"2Mi\"\n").await?;
    world.cut(BOX, true);
    sleep(Duration::from_secs(60)).await; // the session ends: what is on its way would arrive after all
    world.produce(BOX, "logs", 6_000, 500).await?;
    let (mut scans, mut refused) = (0, false);
    for _ in 0..400 {
        let taken = world.produce(BOX, "scans", 1_000, 500).await?;
        scans += taken;
        refused = taken < 1_000;
        if refused {
            break;
        }
    }
    ensure!(refused, "{scans} scans went into 2 MiB and none was refused: the fault did not fire");
    // Beside the quota: the ballast of 1 MiB that a full disk gives back, and one transaction's log.
    let used = folder_bytes(&world.disk(BOX)?.join("outbox"))?;
    ensure!(used <= (2 << 20) + (1 << 20) + (256 << 10), "the outbox grew to {used} bytes, its quota is 2 MiB");
    world.cut(BOX, false);
    let outcome = world.until_counted("what was taken arrived", HEALED).await?;
    let gaps = world.hub()?.streams().sink().gaps(None, None, 1000).await?;
    ensure!(!gaps.is_empty() && outcome.in_gaps > 0, "no log was shed: the fault did not fire; {outcome:?}");
    for gap in &gaps {
        ensure!(gap.stream.as_str() == "logs" && gap.reason == GapReason::Shed, "{gap:?}");
    }
    // Space came back, so scans are taken again.
    let taken = world.produce(BOX, "scans", 1_000, 500).await?;
    ensure!(taken == 1_000, "only {taken} of 1000 scans were taken after the backlog had gone");
    world.until_counted("scans flow again", HEALED).await?;
    Ok(vec![format!(
        "{scans} scans, then push-back; {} logs shed in {} gaps; {outcome:?}",
        outcome.in_gaps,
        gaps.len()
    )])
}

/// Fault 8.
pub(super) async fn outbox_bit_flip(world: &mut World) -> anyhow::Result<Vec<String>> {
    let mut choice = world.seed("outbox_bit_flip").stream("choices");
    begin(world, &[BOX], "").await?;
    world.cut(BOX, true);
    let number = world.handed_in(BOX, "scans")?;
    world.produce(BOX, "scans", 2_000, 100).await?;
    let place = world.ledger().place(&BOX.parse()?, &"scans".parse()?, number);
    let (_, first) = place.context("the first record after the cut was not taken")?;
    world.crash_agent(BOX).await?;
    let at = flip_in_a_batch(&world.disk(BOX)?.join("outbox/outbox.db"), first, &mut choice)?;
    world.cut(BOX, false);
    world.start_agent(BOX).await?;
    world.produce(BOX, "scans", 50, 10).await?;
    let outcome = world.until_counted("all but the damaged batch arrived", HEALED).await?;
    ensure!((1..=1_000).contains(&outcome.in_gaps), "one batch was to be lost, not {} records", outcome.in_gaps);
    let gaps = world.hub()?.streams().sink().gaps(None, None, 1000).await?;
    ensure!(gaps.iter().all(|gap| gap.reason == GapReason::Damaged), "{gaps:?}");
    Ok(vec![format!("bit flipped at {at}; {outcome:?}")])
}

/// Fault 11.
pub(super) async fn hub_restored(world: &mut World) -> anyhow::Result<Vec<String>> {
    begin(world, &BOXES, "").await?;
    world.crash_hub().await;
    let backup = world.hub_disk().with_extension("backup");
    copy_folder(&world.hub_disk(), &backup)?;
    world.start_hub().await?;
    for name in BOXES {
        world.produce(name, "scans", 300, 20).await?;
    }
    let before = world.until_counted("scans after the backup arrive", HEALED).await?;
    sleep(Duration::from_secs(5)).await; // agents delete what was acknowledged
    world.crash_hub().await;
    fs::remove_dir_all(world.hub_disk())?;
    copy_folder(&backup, &world.hub_disk())?;
    for name in BOXES {
        world.produce(name, "scans", 100, 20).await?;
    }
    world.pass_days(7);
    world.start_hub().await?;
    let outcome = world.until_counted("what the hub lost is a gap, the rest is there", HEALED).await?;
    ensure!(outcome.in_gaps == 600, "600 records were lost with the hub, {} stand in gaps", outcome.in_gaps);
    ensure!(outcome.stored == before.stored - 600 + 200, "{outcome:?}");
    Ok(vec![format!("{before:?}, then {outcome:?}")])
}

/// Fault 12.
pub(super) async fn outbox_lost(world: &mut World) -> anyhow::Result<Vec<String>> {
    begin(world, &BOXES, "").await?;
    // One box keeps a copy of its outbox, as an image of its disk would.
    world.crash_agent(BOXES[1]).await?;
    let outbox = world.disk(BOXES[1])?.join("outbox");
    let older = outbox.with_extension("older");
    copy_folder(&outbox, &older)?;
    world.start_agent(BOXES[1]).await?;
    world.produce(BOXES[1], "scans", 40, 4).await?;
    world.until_counted("scans of both arrive", HEALED).await?;
    for name in BOXES {
        world.cut(name, true);
        world.produce(name, "scans", 30, 3).await?;
        sleep(Duration::from_secs(10)).await; // the line is noticed
        world.crash_agent(name).await?;
    }
    fs::remove_dir_all(world.disk(BOXES[0])?.join("outbox"))?;
    fs::remove_dir_all(&outbox)?;
    copy_folder(&older, &outbox)?;
    world.outbox_put_back(BOXES[1])?;
    world.cut(BOXES[0], false);
    world.start_agent(BOXES[0]).await?;
    world.produce(BOXES[0], "scans", 25, 5).await?;
    // The older copy gives the same sequences once more, beyond what the hub has, before they meet.
    world.start_agent(BOXES[1]).await?;
    world.produce(BOXES[1], "scans", 100, 5).await?;
    world.cut(BOXES[1], false);
    let outcome = world.until_counted("new scans arrive, and the lost ones stand in gaps", HEALED).await?;
    ensure!(outcome.in_gaps == 60, "30 records of each box were lost, {} stand in gaps", outcome.in_gaps);
    Ok(vec![format!("{outcome:?}")])
}

/// Fault 13. The wall clocks jump; what passes of monotonic time is hours.
pub(super) async fn thirty_days_offline(world: &mut World) -> anyhow::Result<Vec<String>> {
    begin(world, &[BOX], "").await?;
    world.cut(BOX, true);
    for _ in 0..20 {
        world.produce(BOX, "scans", 2_000, 500).await?;
    }
    world.narrow(BOX, 16_000); // 128 kbit/s
    sleep(Duration::from_secs(3600)).await; // the agent goes on trying
    world.pass_days(30);
    world.cut(BOX, false);
    let begun = Instant::now();
    // It is Ready a while later: by then the backlog may be gone.
    let all = world.waiting()?;
    while world.waiting()? == all {
        ensure!(begun.elapsed() < Duration::from_secs(120), "the backlog does not begin to drain");
        sleep(Duration::from_millis(20)).await;
    }
    let mut slowest = Duration::ZERO;
    let mut while_draining = 0;
    loop {
        let left = world.waiting()?;
        if left == 0 {
            break;
        }
        let number = world.handed_in(BOX, "scans")?;
        world.produce(BOX, "scans", 1, 1).await?;
        let handed_in = Instant::now();
        while !world.is_durable(BOX, "scans", number)? {
            ensure!(handed_in.elapsed() < Duration::from_secs(60), "a fresh scan waits behind {left} old ones");
            sleep(Duration::from_millis(20)).await;
        }
        slowest = slowest.max(handed_in.elapsed());
        while_draining += 1;
        sleep(Duration::from_secs(1)).await; // the next scan
        ensure!(begun.elapsed() < Duration::from_secs(900), "the backlog does not drain: {left} are left");
    }
    let back = |node: &Node| node.status.phase == NodePhase::Ready;
    world.until_nodes(Duration::from_secs(120), "the node is back", |nodes| nodes.values().all(back)).await?;
    let outcome = world.until_counted("the backlog has drained", HEALED).await?;
    ensure!(outcome.in_gaps == 0, "{outcome:?}");
    ensure!(while_draining > 1, "the backlog was gone before a fresh scan came: the fault did not fire");
    Ok(vec![format!(
        "40000 records drained in {:.1} s while {while_draining} fresh ones took at most {:.2} s; {outcome:?}",
        begun.elapsed().as_secs_f64(),
        slowest.as_secs_f64()
    )])
}

fn folder_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

pub(super) fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()? {
            kind if kind.is_dir() => copy_folder(&entry.path(), &target)?,
            kind if kind.is_file() => drop(fs::copy(entry.path(), target)?),
            _ => {} // a socket
        }
    }
    Ok(())
}

/// Flips one bit inside a batch that begins at `first` or later, and returns where in the file. Earlier ones may
/// lie there still, acknowledged and not deleted yet.
fn flip_in_a_batch(database: &Path, first: u64, choice: &mut impl rand::Rng) -> anyhow::Result<usize> {
    let connection = rusqlite::Connection::open(database)?;
    // What is in the write-ahead log goes into the file first.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    // The low 44 bits of a row's id are the sequence that it begins with.
    let waiting = "SELECT sealed FROM batches WHERE sealed IS NOT NULL AND id % (1 << 44) >= ?1 ORDER BY id";
    let mut statement = connection.prepare(waiting)?;
    let first = i64::try_from(first)?;
    let waiting: Vec<Vec<u8>> = statement.query_map([first], |row| row.get(0))?.collect::<Result<_, _>>()?;
    drop(statement);
    drop(connection);
    let batch = waiting.get(choice.random_range(0..waiting.len().max(1))).context("the outbox holds no batch")?;
    let mut bytes = fs::read(database)?;
    // The beginning of a batch lies in one piece, whatever its length.
    let head = batch.get(..100).context("the batch is short")?;
    // Pages that were split keep a stale copy of what moved: every copy is hit.
    let copies: Vec<usize> =
        bytes.windows(head.len()).enumerate().filter(|(_, window)| *window == head).map(|(at, _)| at).collect();
    let (offset, bit) = (12 + choice.random_range(0..80), choice.random_range(0..8_u32));
    for at in &copies {
        *bytes.get_mut(at + offset).context("the batch is cut short")? ^= 1 << bit;
    }
    fs::write(database, bytes)?;
    Ok(copies.first().context("the batch is not in the file")? + offset)
}
