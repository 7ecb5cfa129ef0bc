//! Whose key is believed, what a build takes, and what a signer reads.

use std::collections::BTreeSet;

use proto::{
    name::Name,
    secret::{Recipient, SealingKey, seal},
};

use super::*;
use crate::release::{Built, Setup, build};

fn key(n: u8) -> Recipient {
    SealingKey::from_bytes(&[n; 32]).unwrap().public()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn to(node: &str, n: u8) -> SealedTo {
    SealedTo { node: Some(node.into()), key: key(n).to_string() }
}

fn told(nodes: &[(&str, Option<u8>)]) -> Told {
    nodes.iter().map(|(node, n)| (name(node), n.map(key))).collect()
}

fn pins(nodes: &[(&str, u8)]) -> Pins {
    let mut pins = Pins::default();
    pins.nodes.extend(nodes.iter().map(|(node, n)| (name(node), key(*n))));
    pins
}

fn accept(nodes: &[&str]) -> Wish {
    Wish { accept: nodes.iter().map(|node| name(node)).collect(), ..Wish::default() }
}

#[test]
fn a_key_is_believed_once_and_another_only_on_a_persons_word() {
    // pinned, told, accepted: sealed to, pinned after, or the refusal.
    type Row = (&'static [(&'static str, u8)], &'static [(&'static str, Option<u8>)], &'static [&'static str]);
    let good: [(Row, &[(&str, u8)]); 5] = [
        ((&[], &[("a", Some(1)), ("b", Some(2))], &[]), &[("a", 1), ("b", 2)]),
        ((&[("a", 1)], &[("a", Some(1)), ("b", Some(2))], &[]), &[("a", 1), ("b", 2)]),
        ((&[("a", 1)], &[("a", Some(9))], &["a"]), &[("a", 9)]),
        ((&[("a", 1)], &[("a", Some(1))], &["a"]), &[("a", 1)]),
        // A hub that withholds a key that is known leaves nobody out.
        ((&[("a", 1)], &[("a", None)], &[]), &[("a", 1)]),
    ];
    for ((pinned, seen, accepted), expected) in good {
        let decided = pins(pinned).decide(&told(seen), &[], &accept(accepted)).unwrap();
        let expected: Vec<SealedTo> = expected.iter().map(|(node, n)| to(node, *n)).collect();
        assert_eq!(decided.to, expected, "{seen:?}");
        assert!(decided.pins.nodes.iter().all(|(node, key)| {
            expected.iter().any(|to| to.node.as_deref() == Some(node.as_str()) && to.key == key.to_string())
        }));
        let again = decided.pins.decide(&told(seen), &[], &Wish::default()).unwrap();
        assert!(again.first.is_empty() && again.replaced.is_empty(), "pinned is pinned");
    }
    let refuse = |pinned, seen: &[_], wish: &Wish| pins(pinned).decide(&told(seen), &[], wish).unwrap_err();
    let swapped = [("a", Some(9)), ("b", Some(8)), ("c", Some(3))];
    let error = refuse(&[("a", 1), ("b", 2), ("c", 3)], &swapped, &Wish::default());
    let PinError::Changed(nodes) = &error else { panic!("{error}") };
    assert_eq!(nodes.keys().map(Name::as_str).collect::<Vec<_>>(), ["a", "b"], "all of them at once");
    let text = error.to_string();
    assert!(text.contains("--accept-new-key a --accept-new-key b") && text.contains("edgecore status"), "{text}");
    // Who accepts one accepts no other.
    let error = refuse(&[("a", 1), ("b", 2)], &swapped[..2], &accept(&["a"]));
    assert!(matches!(error, PinError::Changed(nodes) if nodes.len() == 1));
    let error = refuse(&[], &[("a", Some(1))], &accept(&["typo"]));
    assert_eq!(error, PinError::NotNamed(vec![name("typo")]));
}

#[test]
fn nodes_without_a_key_are_named_or_left_out() {
    let seen = told(&[("old", None), ("new", Some(1))]);
    let error = Pins::default().decide(&seen, &[], &Wish::default()).unwrap_err();
    assert_eq!(error, PinError::WithoutKey(vec![name("old")]));
    let skip = Wish { skip_without: true, ..Wish::default() };
    let decided = Pins::default().decide(&seen, &[key(7), key(1)], &skip).unwrap();
    assert_eq!(decided.to, [to("new", 1), SealedTo { node: None, key: key(7).to_string() }]);
    assert_eq!(decided.skipped, [name("old")]);
    assert_eq!(Pins::default().decide(&told(&[("old", None)]), &[], &skip), Err(PinError::Nobody));
    let many: Told = (0..=proto::secret::MAX_RECIPIENTS).map(|n| (name(&format!("n{n}")), Some(key(1)))).collect();
    assert!(matches!(Pins::default().decide(&many, &[], &skip), Err(PinError::TooMany(_))));
}

#[test]
fn pins_are_kept_and_damage_is_not_taken_for_none() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Pins::load(folder.path()).unwrap(), Pins::default());
    let kept = pins(&[("box-1", 1), ("box-2", 2)]);
    kept.store(folder.path()).unwrap();
    assert_eq!(Pins::load(folder.path()).unwrap(), kept);
    let path = folder.path().join(PINS_FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    for bad in ["", "{}", &text.replace("\"version\": 1", "\"version\": 2"), &text.replacen("age1", "age2", 1)] {
        std::fs::write(&path, bad).unwrap();
        assert!(Pins::load(folder.path()).is_err(), "{bad}");
    }
}

/// A folder to build in.
struct Desk(tempfile::TempDir);

impl Desk {
    fn build(&self, version: &str, file: &[u8], more: &str) -> Result<Built, ReleaseError> {
        let path = |name: &str| self.0.path().join(name);
        std::fs::create_dir_all(path("files")).unwrap();
        std::fs::write(path("files/db.age"), file).unwrap();
        let secret = format!("{{ name: db, file: db.age{more} }}");
        let yaml = format!(
            "apiVersion: crossdock.io/v1\napp: scan\nversion: {version}\nartifacts: [{{source: files}}]\n\
             workload: {{ command: /bin/true, secrets: [{secret}] }}\n"
        );
        std::fs::write(path("release.yaml"), yaml).unwrap();
        build(&path("release.yaml"))
    }
}

fn sealed(to: &[SealedTo]) -> Vec<u8> {
    seal(b"hunter2", &name("scan"), "db", to).unwrap()
}

#[test]
fn a_release_takes_what_is_sealed_for_it_and_says_to_whom() {
    let desk = Desk(tempfile::tempdir().unwrap());
    let built = desk.build("1", &sealed(&[to("box-1", 1)]), "").unwrap();
    assert_eq!(of(&built.manifest)[0].sealed_to, [to("box-1", 1)]);
    assert!(built.warnings.is_empty(), "{:?}", built.warnings);
    let refused = |file: &[u8], more: &str| {
        let error = desk.build("1", file, more).unwrap_err();
        format!("{error}")
    };
    assert!(refused(b"hunter2", "").contains("no age file"));
    let other = seal(b"x", &name("other"), "db", &[to("box-1", 1)]).unwrap();
    assert!(refused(&other, "").contains("of app other"));
    let by_hand = format!(", sealedTo: [{{ node: box-2, key: {} }}]", key(2));
    assert!(refused(&sealed(&[to("box-1", 1)]), &by_hand).contains("says otherwise"));
    // More recipients than it says: somebody added one to the header's words only.
    let mut liar = sealed(&[to("box-1", 1), to("box-2", 2)]);
    let line = format!("-> crossdock-to box-2 {}\n\n", key(2));
    let at = liar.windows(line.len()).position(|w| w == line.as_bytes()).unwrap();
    liar.drain(at..at + line.len());
    assert!(refused(&liar, "").contains("sealed to 1 keys, and is to 2"));
}

#[test]
fn a_signer_reads_what_changes_and_for_whom() {
    let desk = Desk(tempfile::tempdir().unwrap());
    let version = |n: &str, to: &[SealedTo]| desk.build(n, &sealed(to), "").unwrap().manifest;
    let first = version("1", &[to("box-1", 1), to("box-2", 2)]);
    let pinned = pins(&[("box-1", 1), ("box-2", 2), ("box-3", 3)]);
    let lines = describe(None, &first, Some(&pinned));
    assert_eq!(lines, ["adds secret db, sealed to box-1, box-2"]);
    assert!(describe(Some(&first), &first, Some(&pinned)).is_empty());
    let next = version("2", &[to("box-1", 9), to("box-3", 3), SealedTo { node: None, key: key(7).to_string() }]);
    let lines = describe(Some(&first), &next, Some(&pinned));
    let expected = [
        "secret db is sealed anew, to box-1, box-3, age1",
        "secret db can be read by MORE than before: box-3, age1",
        "secret db is for ANOTHER KEY of box-1",
        "secret db is no longer for box-2",
        "secret db is NOT sealed to the pinned key of box-1",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line} is not {expected}");
    }
    let lines = describe(Some(&next), &version("3", &[to("box-4", 4)]), Some(&Pins::default()));
    assert!(lines.iter().any(|line| line.contains("a key of box-4 that is not pinned here")), "{lines:#?}");
    let without = proto::release::Manifest { workload: None, ..first.clone() };
    assert_eq!(describe(Some(&first), &without, None), ["removes secret db"]);
}

#[test]
fn a_repository_knows_who_reads_what_of_every_release() {
    let desk = Desk(tempfile::tempdir().unwrap());
    let key = |n: u8| proto::tuf::SecretKey::from_seed(&[n; 32]);
    let now = "2030-01-01T00:00:00Z".parse().unwrap();
    let folder = desk.0.path().join("repo");
    let setup = Setup::small_team(&key(1), &key(2), &key(3));
    let repository = Repository::create(&folder, &setup, now).unwrap();
    repository.add(&desk.build("1", &sealed(&[to("box-1", 1)]), "").unwrap(), now).unwrap();
    repository.sign(&[key(1), key(2)]).unwrap();
    repository.finish(&key(3), now).unwrap();
    repository.add(&desk.build("2", &sealed(&[to("box-2", 2)]), "").unwrap(), now).unwrap();
    let listed = listed(&repository).unwrap();
    let of_node = |node: &str| {
        let releases = listed.iter().filter(|(_, secrets)| secrets.iter().any(|s| is_for(&s.sealed_to, node)));
        releases.map(|(release, _)| release.to_string()).collect::<BTreeSet<String>>()
    };
    assert_eq!(of_node("box-1"), BTreeSet::from(["scan@1".to_owned()]));
    assert_eq!(of_node("box-2"), BTreeSet::from(["scan@2".to_owned()]));
    assert!(of_node("box-3").is_empty());
}
