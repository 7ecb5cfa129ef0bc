//! What the hub serves, and what it refuses to.

use super::*;
use crate::hub::fixture::Fixture;

#[tokio::test]
async fn a_release_is_served_when_all_of_it_is_here() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let publication = fixture.signed("scan", "1.0", b"content");
    let before = hub.trust().reply(&MetadataRequest::default());
    let error = hub.trust().publish(publication.reply.clone()).await.unwrap_err();
    assert!(matches!(error, TrustError::Missing { .. }), "{error}");
    assert_eq!(hub.trust().reply(&MetadataRequest::default()), before);
    assert!(hub.store().get::<ReleaseSpec>("scan.1.0").await.unwrap().is_none());

    // The manifest alone is not enough either.
    let file = Digest::of(b"content");
    let manifest = publication.blobs.iter().filter(|(digest, _)| **digest != file);
    for (digest, path) in manifest {
        hub.blobs().put(*digest, std::fs::read(path).unwrap().as_slice()).await.unwrap();
    }
    let error = hub.trust().publish(publication.reply.clone()).await.unwrap_err();
    assert!(error.to_string().contains(&file.to_string()), "{error}");

    fixture.upload(&publication).await;
    hub.trust().publish(publication.reply.clone()).await.unwrap();
    let release = hub.store().get::<ReleaseSpec>("scan.1.0").await.unwrap().unwrap();
    assert_eq!((release.spec.files, release.spec.total_bytes), (1, 7));
    // Once more changes nothing.
    hub.trust().publish(publication.reply).await.unwrap();
    let again = hub.store().get::<ReleaseSpec>("scan.1.0").await.unwrap().unwrap();
    assert_eq!(again.metadata.resource_version, release.metadata.resource_version);
}

#[tokio::test]
async fn what_does_not_verify_is_refused_and_the_old_is_served_on() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let old = fixture.repository.publication().unwrap().reply;
    fixture.release("scan", "1.0", b"content").await;
    let before = hub.trust().reply(&MetadataRequest::default());

    let new = fixture.signed("scan", "2.0", b"more");
    fixture.upload(&new).await;
    let mut tampered = new.reply.clone();
    tampered.targets = tampered.targets.map(|t| t.replacen("2.0", "2.1", 1));
    let mut foreign = new.reply.clone();
    let mut root: serde_json::Value = serde_json::from_str(&foreign.roots[0]).unwrap();
    root["signed"]["version"] = 2.into();
    foreign.roots.push(root.to_string());
    let mut torn = new.reply.clone();
    torn.timestamp = torn.timestamp.map(|t| t[..t.len() / 2].to_owned());
    for bad in [tampered, foreign, torn, old] {
        let error = hub.trust().publish(bad).await.unwrap_err();
        assert!(matches!(error, TrustError::Refused(_)), "{error}");
        assert_eq!(hub.trust().reply(&MetadataRequest::default()), before);
    }
    hub.trust().publish(new.reply).await.unwrap();
}

#[tokio::test]
async fn a_restart_knows_what_was_published_and_damage_is_never_taken_for_nothing() {
    let mut fixture = Fixture::start().await;
    fixture.stop().await;
    let hub = &fixture.hub;
    let record = hub.config().data_dir.join("trust.record");
    let reply = hub.trust().reply(&MetadataRequest::default());
    hub.store().delete::<ReleaseSpec>("app.1").await.unwrap(); // as if a crash came before it was made
    let open = || Trust::open(&record, hub.env(), hub.blobs(), hub.store());
    assert_eq!(open().await.unwrap().reply(&MetadataRequest::default()), reply);
    assert!(hub.store().get::<ReleaseSpec>("app.1").await.unwrap().is_some());

    std::fs::write(&record, "torn").unwrap();
    let _ = std::fs::remove_file(record.with_extension("record.bak"));
    assert!(matches!(open().await, Err(TrustError::Lost(_))));
}

#[tokio::test]
async fn the_name_of_a_withdrawn_release_stays_taken() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let (repository, now) = (&fixture.repository, hub.env().wall.now());
    fixture.release("scan", "1.0", b"content").await;
    repository.remove(&"scan@1.0".parse().unwrap(), now).unwrap();
    repository.sign(&fixture.keys[1..2]).unwrap();
    hub.trust().publish(repository.finish(&fixture.keys[2], now).unwrap().reply).await.unwrap();
    assert!(hub.store().get::<ReleaseSpec>("scan.1.0").await.unwrap().is_none());
    // The repository would refuse it too, if it still had what it published.
    for old in 1..=2 {
        std::fs::remove_file(repository.dir().join(format!("metadata/{old}.targets.json"))).ok();
    }
    let reused = fixture.signed("scan", "1.0", b"other");
    fixture.upload(&reused).await;
    let error = hub.trust().publish(reused.reply.clone()).await.unwrap_err();
    assert!(matches!(error, TrustError::Changed { .. }), "{error}");
    // Also after a restart.
    let record = hub.config().data_dir.join("trust.record");
    let opened = Trust::open(&record, hub.env(), hub.blobs(), hub.store()).await.unwrap();
    assert!(matches!(opened.publish(reused.reply).await, Err(TrustError::Changed { .. })));
}

#[test]
fn only_manifests_of_releases_are_targets() {
    assert_eq!(release_of("scan/1.0.json").unwrap().to_string(), "scan@1.0");
    for bad in ["", "scan", "scan/1.0", "scan/../1.json", "a/b/1.json", "../x/1.json", "Scan/1.json", "/scan/1.json"] {
        assert!(release_of(bad).is_err(), "{bad}");
    }
}
