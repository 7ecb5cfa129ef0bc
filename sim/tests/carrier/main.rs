//! The link through a real Mosquitto, with UDP dropped by a packet filter: joining, releases, streams, logs; the
//! broker killed in the middle of a download; UDP that opens and closes. Real hub, real agent, real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod bus;
mod house;
mod malice;
mod ways;

use anyhow::ensure;

use self::house::{House, NODE, block_udp, fetched, goes_over, in_own_network, open_udp, runs};

const BALLAST: usize = 24 << 20;

#[tokio::test]
async fn everything_works_through_a_broker_and_moves_to_udp_and_back() -> anyhow::Result<()> {
    if !in_own_network("everything_works_through_a_broker_and_moves_to_udp_and_back") {
        return Ok(());
    }
    let mut house = House::open("").await?;
    block_udp();
    let link = house.link(&format!("mqtts://127.0.0.1:{}", house.tls), "");
    house.write_settings(&link)?;
    let (code, said) = house.join().await?;
    ensure!(code == 0 && said.contains("joined"), "{said}");
    house.stage.start_agent(NODE)?;

    // A release, an upgrade, streams and logs.
    house.publish(1, 1 << 20).await?;
    house.roll_out(1).await?;
    house.wait_running(1).await?;
    house.publish(2, 1 << 20).await?;
    house.roll_out(2).await?;
    house.wait_running(2).await?;
    house.post(50);
    house.check_records().await?;
    let logs = house.stage.crossdock(&["logs", "box-1/witness"]).await?;
    ensure!(logs.contains("version 2"), "{logs}");
    let status = house.wait_status("mqtt mqtts://127.0.0.1").await?;
    ensure!(
        status.contains("in use") && status.contains("carrier udp") && status.contains("NOT reachable"),
        "{status}"
    );
    ensure!(status.contains("no answer over UDP") && !status.contains("WARNING"), "{status}");
    house.wait("the hub shows the carriers", |node| goes_over(node, "mqtt")).await?;
    let wide = house.stage.crossdock(&["get", "nodes", "-o", "wide"]).await?;
    ensure!(wide.contains("udp:unreachable mqtt:in-use") && wide.contains("mqtts://127.0.0.1"), "{wide}");

    // The broker dies in the middle of a download, and comes back.
    house.publish(3, BALLAST).await?;
    let before = house.bytes_down();
    house.roll_out(3).await?;
    house.wait("a part is fetched", |node| fetched(node, 4 << 20)).await?;
    house.post(50);
    house.kill_broker().await?;
    house.wait_status("last error").await?;
    house.post(50);
    house.start_broker().await?;
    house.wait_running(3).await?;
    house.check_records().await?;
    let fetched_bytes = house.bytes_down() - before;
    ensure!(fetched_bytes < BALLAST as u64 * 115 / 100, "{fetched_bytes} bytes came for {BALLAST}");

    // UDP opens in the middle of a download, and closes in the middle of the next.
    house.publish(4, BALLAST).await?;
    let before = house.bytes_down();
    house.roll_out(4).await?;
    house.wait("a part is fetched", |node| fetched(node, 4 << 20)).await?;
    open_udp();
    house.post(50);
    house.wait("the link is back on UDP", |node| goes_over(node, "udp")).await?;
    house.wait_running(4).await?;
    let over_both = house.bytes_down() - before;
    ensure!(over_both < BALLAST as u64 * 115 / 100, "{over_both} bytes came for {BALLAST}");

    house.publish(5, BALLAST).await?;
    let before = house.bytes_down();
    house.roll_out(5).await?;
    house.wait("a part is fetched", |node| fetched(node, 4 << 20) || runs(node, 5)).await?;
    block_udp();
    let gap = house.longest_gap(before + BALLAST as u64 * 9 / 10).await;
    ensure!(gap < std::time::Duration::from_secs(4), "nothing came for {gap:?} when UDP closed");
    house.post(50);
    house.wait_running(5).await?;
    house.wait("the link fell back", |node| goes_over(node, "mqtt")).await?;
    let over_both = house.bytes_down() - before;
    ensure!(over_both < BALLAST as u64 * 115 / 100, "{over_both} bytes came for {BALLAST}");
    house.check_records().await?;
    let events = house.stage.crossdock(&["get", "events"]).await?;
    ensure!(!events.contains("BrokerOpen") && !events.contains("RolledBack"), "{events}");
    println!(
        "{fetched_bytes} bytes came for {BALLAST} with the broker killed, {over_both} with a change of carrier and a gap of {gap:?}"
    );
    house.stage.close().await
}
