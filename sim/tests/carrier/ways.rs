//! The other ways to a broker, and what is wrong on them: proxy, WebSocket, refusals, limits.

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use cloudcore::stage::free_port;
use futures_util::future::try_join_all;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::sleep,
};

use super::house::{House, NODE, block_udp, goes_over, in_own_network};

/// A proxy that lets CONNECT through to these ports alone.
async fn tinyproxy(house: &House, ports: &[u16]) -> anyhow::Result<(Child, u16)> {
    let port = free_port().context("a free port")?;
    let allowed: String = ports.iter().map(|p| format!("ConnectPort {p}\n")).collect();
    let file = house.file(&format!("tinyproxy-{port}.conf"));
    fs::write(&file, format!("Port {port}\nListen 127.0.0.1\nTimeout 600\nAllow 127.0.0.1\n{allowed}"))?;
    let mut command = Command::new("tinyproxy");
    command.arg("-d").arg("-c").arg(&file).kill_on_drop(true).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().context("install tinyproxy (.ci/test names the package)")?;
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        sleep(Duration::from_millis(10)).await;
    }
    Ok((child, port))
}

/// The box joins by its settings, and a first release runs there.
async fn join_and_run(house: &mut House, ballast: usize) -> anyhow::Result<()> {
    let (code, said) = house.join().await?;
    ensure!(code == 0, "{said}");
    house.stage.start_agent(NODE)?;
    house.publish(1, ballast).await?;
    house.roll_out(1).await?;
    house.wait_running(1).await
}

#[tokio::test]
async fn a_proxy_carries_and_what_is_wrong_is_named() -> anyhow::Result<()> {
    if !in_own_network("ways::a_proxy_carries_and_what_is_wrong_is_named") {
        return Ok(());
    }
    let mut house = House::open("").await?;
    block_udp();
    let (tls, web) = (house.tls, house.web);
    let mqtts = format!("mqtts://127.0.0.1:{tls}");
    let (_proxy, proxy) = tinyproxy(&house, &[tls, web]).await?;
    let (_strict, strict) = tinyproxy(&house, &[443]).await?;
    let through = |port: u16| format!("proxy = \"http://127.0.0.1:{port}\"\n");

    // Joining names what is wrong on each way, with the mend.
    let other = house.file("other.pem");
    let key = rcgen::KeyPair::generate()?;
    fs::write(&other, rcgen::CertificateParams::new(vec!["127.0.0.1".into()])?.self_signed(&key)?.pem())?;
    let unknown_ca = house.link(&mqtts, "").replace("broker.pem", "other.pem");
    let wrong_user = house.link(&mqtts, "").replace("user = \"box-1\"", "user = \"box-9\"");
    let anothers =
        house.link(&mqtts, "").replace("user = \"box-1\"", "user = \"box-2\"").replace("/box-1\"", "/box-2\"");
    let wrong = [
        (unknown_ca, "no TLS with broker", "check that ca"),
        (wrong_user, "does not let user box-9 in", "check user and password file"),
        (anothers, "no hub answers through it", "allows this node to write crossdock/v1/demo/box-1/up"),
        (house.link(&mqtts, &through(strict)), "does not connect to", "allow CONNECT"),
        (house.link(&format!("ws://127.0.0.1:{tls}"), ""), "speaks no WebSocket", "listener"),
        (house.link(&format!("mqtt://127.0.0.1:{tls}"), ""), "127.0.0.1", "TLS"),
    ];
    // None of them comes to anything, so they need not wait for each other.
    let joins = wrong.iter().enumerate().map(async |(number, (link, word, mend))| {
        let (code, said) = house.join_by(&format!("wrong-{number}"), link).await?;
        ensure!(code == 7 && said.contains(word) && said.contains(mend), "wanted {word:?}, {mend:?}: {said}");
        anyhow::Ok(())
    });
    try_join_all(joins).await?;

    // TLS through the proxy: all of the link, from joining on.
    house.write_settings(&house.link(&mqtts, &through(proxy)))?;
    join_and_run(&mut house, 4 << 20).await?;
    house.post(20);
    house.check_records().await?;
    house.wait("over MQTT", |node| goes_over(node, "mqtt")).await?;

    // The first broker is not there: the second is taken. MQTT over TLS through the proxy.
    house.stage.kill_agent(NODE).await?;
    let nobody = free_port().context("a free port")?;
    let both = house.link(&format!("mqtts://127.0.0.1:{nobody}"), "") + &house.link(&mqtts, &through(proxy));
    house.write_settings(&both)?;
    house.stage.start_agent(NODE)?;
    house.wait_status(&format!("{mqtts} in use")).await?;
    house.publish(2, 4 << 20).await?;
    house.roll_out(2).await?;
    house.wait_running(2).await?;
    house.stage.close().await
}

/// Mosquitto is slow with large messages over WebSocket: ten datagrams in one, and none of these would end in time.
#[tokio::test]
async fn websocket_carries_plain_with_tls_and_through_a_proxy_at_both_ends() -> anyhow::Result<()> {
    if !in_own_network("ways::websocket_carries_plain_with_tls_and_through_a_proxy_at_both_ends") {
        return Ok(());
    }
    const BALLAST: usize = 10 << 20;
    let plain = free_port().context("a free port")?;
    let mut house = House::open(&format!("listener {plain}\nprotocol websockets")).await?;
    block_udp();
    let (ws, wss) = (format!("ws://127.0.0.1:{plain}/mqtt"), format!("wss://127.0.0.1:{}/mqtt", house.web));
    house.write_settings(&house.link(&ws, ""))?;
    join_and_run(&mut house, BALLAST).await?;
    house.wait_status(&format!("{ws} in use")).await?;

    let (_proxy, proxy) = tinyproxy(&house, &[house.web]).await?;
    house.stage.kill_agent(NODE).await?;
    house.write_settings(&house.link(&wss, &format!("proxy = \"http://127.0.0.1:{proxy}\"\n")))?;
    house.stage.start_agent(NODE)?;
    house.wait_status(&format!("{wss} in use")).await?;
    house.publish(2, BALLAST).await?;
    house.roll_out(2).await?;
    house.wait_running(2).await?;

    // The hub too.
    house.stage.kill_hub().await?;
    let yaml = house.stage.path("hub/hub.yaml");
    fs::write(&yaml, fs::read_to_string(&yaml)?.replace(&format!("mqtts://127.0.0.1:{}", house.tls), &wss))?;
    house.stage.start_hub().await?;
    house.publish(3, BALLAST).await?;
    house.roll_out(3).await?;
    house.wait_running(3).await?;
    house.post(2000);
    house.check_records().await?;
    house.stage.close().await
}

/// Files NAME.pem and NAME.key for clients of the broker, signed by the authority in clients.pem.
fn client_certificates(house: &House, names: &[&str]) -> anyhow::Result<()> {
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
    let (ca_key, mut ca) = (key()?, CertificateParams::new(vec![])?);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "clients");
    fs::write(house.file("clients.pem"), ca.self_signed(&ca_key)?.pem())?;
    let issuer = Issuer::new(ca, ca_key);
    for name in names {
        let (key, mut params) = (key()?, CertificateParams::new(vec![])?);
        params.distinguished_name.push(DnType::CommonName, *name);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        fs::write(house.file(&format!("{name}.pem")), params.signed_by(&key, &issuer)?.pem())?;
        fs::write(house.file(&format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

#[tokio::test]
async fn a_broker_that_wants_certificates_gets_them_from_hub_and_agent() -> anyhow::Result<()> {
    if !in_own_network("ways::a_broker_that_wants_certificates_gets_them_from_hub_and_agent") {
        return Ok(());
    }
    let mut house = House::open("").await?;
    client_certificates(&house, &["hub", NODE])?;
    // The documented listener, without passwords.
    let conf = house.file("mosquitto.conf");
    let (tls, clients) = (house.tls, house.file("clients.pem"));
    let wants = format!(
        "listener {tls}\ncafile {}\nrequire_certificate true\nuse_identity_as_username true",
        clients.display()
    );
    fs::write(&conf, fs::read_to_string(&conf)?.replace(&format!("listener {tls}"), &wants))?;
    house.kill_broker().await?;
    house.start_broker().await?;
    block_udp();
    house.stage.kill_hub().await?;
    let (yaml, folder) = (house.stage.path("hub/hub.yaml"), house.file(""));
    let own = |name: &str| folder.join(name).display().to_string();
    let shown = format!("certificate: {}\n    key: {}\n", own("hub.pem"), own("hub.key"));
    let login = format!("user: hub\n    passwordFile: {}\n", own("hub"));
    fs::write(&yaml, fs::read_to_string(&yaml)?.replace(&login, &shown))?;
    house.stage.start_hub().await?;

    let link = format!("[[link.broker]]\nurl = \"mqtts://127.0.0.1:{tls}\"\nca = {:?}\n", own("broker.pem"));
    house.write_settings(&link)?;
    let (code, said) = house.join().await?;
    ensure!(code == 7 && said.contains("check certificate and key"), "{said}");
    let shown = format!("certificate = {:?}\nkey = {:?}\n", own("box-1.pem"), own("box-1.key"));
    house.write_settings(&(link + &shown))?;
    join_and_run(&mut house, 1 << 20).await?;
    house.wait("over MQTT", |node| goes_over(node, "mqtt")).await?;
    house.stage.close().await
}

#[tokio::test]
async fn a_broker_with_a_small_limit_is_adapted_to_and_an_open_one_warned_of() -> anyhow::Result<()> {
    if !in_own_network("ways::a_broker_with_a_small_limit_is_adapted_to_and_an_open_one_warned_of") {
        return Ok(());
    }
    // Of datagrams it drops what is larger; there are no rules for what a user may read.
    let mut house = House::open("message_size_limit 4000").await?;
    let conf = house.file("mosquitto.conf");
    fs::write(&conf, fs::read_to_string(&conf)?.replace("acl_file", "#acl_file"))?;
    house.kill_broker().await?;
    house.start_broker().await?;
    block_udp();
    let mqtts = format!("mqtts://127.0.0.1:{}", house.tls);
    house.write_settings(&house.link(&mqtts, ""))?;
    join_and_run(&mut house, 4 << 20).await?;
    house.wait_status("WARNING: broker").await?;
    let events = house.stage.crossdock(&["get", "events"]).await?;
    ensure!(events.contains("BrokerOpen"), "{events}");

    // The connection is ended over larger packets.
    house.kill_broker().await?;
    fs::write(&conf, fs::read_to_string(&conf)?.replace("message_size_limit 4000", "max_packet_size 8000"))?;
    house.start_broker().await?;
    house.publish(2, 4 << 20).await?;
    house.roll_out(2).await?;
    house.wait_running(2).await?;

    // Not even one datagram fits: named, with the mend.
    house.kill_broker().await?;
    fs::write(&conf, fs::read_to_string(&conf)?.replace("max_packet_size 8000", "message_size_limit 800"))?;
    house.start_broker().await?;
    let status = house.wait_status("takes small messages only").await?;
    ensure!(status.contains("message_size_limit"), "{status}");
    house.stage.close().await
}
