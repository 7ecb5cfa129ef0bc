//! Several signers, each with a copy of their own: what travels between them, and what is refused.

use super::*;
use crate::release::bundle::{Bundle, Imported};

/// A bundle as a file carries it.
fn carried(desk: &Desk, repository: &Repository) -> Bundle {
    let path = desk.path("change.json");
    repository.export().unwrap().write(&path).unwrap();
    Bundle::read(&path).unwrap()
}

#[test]
fn two_signers_sign_on_their_own_machines_from_the_first_root_on() {
    let desk = Desk::new();
    let hub = desk.repository();
    hub.add(&desk.build().unwrap(), now()).unwrap();
    // Nobody has a published root yet: the ceremony of the first one goes the same way.
    let (ann, began) = Repository::begin(&desk.path("ann"), &carried(&desk, &hub)).unwrap();
    assert_eq!((began.began_with, began.staged, began.signatures), (None, 2, 0));
    let lines = describe::targets(&ann, None, &ann.staged().unwrap().targets.unwrap().signed).join("\n");
    assert!(lines.contains("adds     scan@1.0.0") && lines.contains("runs \"bin/run\""), "{lines}");
    ann.sign(&[key(1), key(4)]).unwrap();
    let (bob, _) = Repository::begin(&desk.path("bob"), &carried(&desk, &hub)).unwrap();
    bob.sign(&[key(5)]).unwrap();
    for copy in [&ann, &bob] {
        hub.import(&carried(&desk, copy)).unwrap();
    }
    let again = hub.import(&carried(&desk, &ann)).unwrap();
    assert_eq!(again, Imported::default(), "what is known changes nothing");
    let first = client(&hub.finish(&key(7), now()).unwrap());

    // The next release: ann's copy catches up by the file alone, and a newcomer begins with the first root.
    desk.yaml("1.1.0", "command: bin/run");
    hub.add(&desk.build().unwrap(), now()).unwrap();
    let file = carried(&desk, &hub);
    let taken = ann.import(&file).unwrap();
    assert_eq!((taken.caught_up, taken.staged, taken.began_with), (true, 1, None));
    let set = ann.published().unwrap().unwrap();
    let staged = ann.staged().unwrap().targets.unwrap().signed;
    let lines = describe::targets(&ann, set.targets_meta(), &staged).join("\n");
    assert!(lines.contains("against 1.0.0"), "{lines}");
    let (carl, began) = Repository::begin(&desk.path("carl"), &file).unwrap();
    assert_eq!(began.began_with, Some(Digest::of(hub.roots().unwrap()[0].as_bytes())));
    ann.sign(&[key(4)]).unwrap();
    carl.sign(&[key(6)]).unwrap();
    assert_eq!(carl.import(&carried(&desk, &ann)).unwrap().signatures, 1);
    assert_eq!(hub.import(&carried(&desk, &carl)).unwrap().signatures, 2);
    first.update(&hub.finish(&key(7), now()).unwrap().reply, now()).unwrap();
}

#[test]
fn only_signatures_of_the_same_content_by_listed_keys_are_taken() {
    let desk = Desk::new();
    let repository = desk.published();
    desk.yaml("1.1.0", "command: bin/run");
    repository.add(&desk.build().unwrap(), now()).unwrap();
    let (copy, _) = Repository::begin(&desk.path("copy"), &carried(&desk, &repository)).unwrap();
    let refused = |bundle: &Bundle, why: &str| {
        let before = fs::read(desk.path("repo/staged/targets.json")).unwrap();
        let error = chain(&repository.import(bundle).unwrap_err());
        assert!(error.contains(why), "{why}: {error}");
        assert_eq!(fs::read(desk.path("repo/staged/targets.json")).unwrap(), before);
    };
    copy.sign(&[key(4)]).unwrap();
    let good = carried(&desk, &copy);

    // A wrong signature, one of a stranger, and one that would push out a good one.
    let signed_by = |bundle: &Bundle, from: u8, to: &str| {
        let text = bundle.targets.clone().unwrap().replace(&key(from).id(), to);
        Bundle { targets: Some(text), ..bundle.clone() }
    };
    for id in [key(5).id(), key(9).id()] {
        let imported = repository.import(&signed_by(&good, 4, &id)).unwrap();
        assert_eq!((imported.signatures, imported.ignored), (0, 1));
    }
    repository.sign(&[key(5)]).unwrap();
    assert_eq!(repository.import(&signed_by(&good, 4, &key(5).id())).unwrap().signatures, 0);
    assert_eq!(repository.progress().unwrap()[0].tally.valid, 1);
    assert_eq!(repository.import(&good).unwrap().signatures, 1);
    assert_eq!(repository.progress().unwrap()[0].tally.valid, 2);

    // Other content, another repository, a chain that does not hold, an old file.
    let text = good.targets.clone().unwrap();
    refused(&Bundle { targets: Some(text.replacen("1.1.0", "1.1.1", 1)), ..good.clone() }, "other targets");
    let other = Desk::new();
    let stranger =
        Repository::create(&other.path("repo"), &Setup::small_team(&key(9), &key(9), &key(9)), now()).unwrap();
    stranger.sign(&[key(9)]).unwrap();
    stranger.finish(&key(9), now()).unwrap();
    stranger.renew(RoleName::Targets, now()).unwrap();
    refused(&carried(&other, &stranger), "another repository");
    let mut broken = good.clone();
    broken.published.timestamp =
        broken.published.timestamp.map(|text| text.replacen("\"version\":1", "\"version\":7", 1));
    refused(&broken, "changed after it was signed");
    assert!(Repository::begin(&desk.path("none"), &broken).is_err());
    assert!(!desk.path("none").exists());
    repository.renew(RoleName::Root, now()).unwrap();
    repository.sign(&[key(1), key(4), key(5)]).unwrap();
    repository.finish(&key(7), now()).unwrap();
    repository.renew(RoleName::Targets, now()).unwrap();
    refused(&good, "before the newest root");

    // What is staged here is not thrown away because another copy went on.
    copy.remove(&"scan@1.0.0".parse().unwrap(), now()).unwrap();
    let error = chain(&copy.import(&carried(&desk, &repository)).unwrap_err());
    assert!(error.contains("delete staged/"), "{error}");
    fs::write(desk.path("junk.json"), "{\"kind\": 1}").unwrap();
    assert!(chain(&Bundle::read(&desk.path("junk.json")).unwrap_err()).contains("release export"));
}

#[test]
fn signatures_stay_when_the_published_state_goes_on_between_copies() {
    let desk = Desk::new();
    let here = desk.published();
    // The pipeline's copy renews the timestamp, while a change is staged and half signed elsewhere.
    desk.yaml("1.1.0", "command: bin/run");
    here.add(&desk.build().unwrap(), now()).unwrap();
    here.sign(&[key(4)]).unwrap();
    let old = carried(&desk, &here);
    let (there, _) = Repository::begin(&desk.path("there"), &old).unwrap();
    fs::remove_file(desk.path("there/staged/targets.json")).unwrap();
    for folder in ["blobs"] {
        for entry in fs::read_dir(desk.path("repo").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, desk.path("there").join(folder).join(path.file_name().unwrap())).unwrap();
        }
    }
    there.finish(&key(7), now()).unwrap();
    let ahead = there.published().unwrap().unwrap().versions().timestamp;
    // The copy that is ahead takes the older file's change, and back: nobody loses a signature.
    assert_eq!(there.import(&old).unwrap(), Imported { staged: 1, signatures: 1, ..Imported::default() });
    there.sign(&[key(5)]).unwrap();
    here.sign(&[key(6)]).unwrap();
    let taken = here.import(&carried(&desk, &there)).unwrap();
    assert_eq!((taken.caught_up, taken.staged, taken.signatures), (true, 0, 1));
    assert_eq!(here.progress().unwrap()[0].tally.valid, 3);
    assert_eq!(here.published().unwrap().unwrap().versions().timestamp, ahead);
    // Once it is published, the old file is of no use.
    here.finish(&key(7), now()).unwrap();
    let error = chain(&here.import(&old).unwrap_err());
    assert!(error.contains("targets version 2, and version 2 is published"), "{error}");
}

#[test]
fn roots_alone_travel_too() {
    let desk = Desk::new();
    let setup = Setup {
        root: vec![key(1).public(), key(2).public()],
        root_threshold: 2,
        ..Setup::small_team(&key(1), &key(7), &key(7))
    };
    let here = Repository::create_chain(&desk.path("here"), &setup, now()).unwrap();
    let (there, _) = Repository::begin(&desk.path("there"), &carried(&desk, &here)).unwrap();
    there.sign(&[key(2)]).unwrap();
    here.sign(&[key(1)]).unwrap();
    here.import(&carried(&desk, &there)).unwrap();
    here.finish_root(now()).unwrap();
    here.renew(RoleName::Root, now()).unwrap();
    let taken = there.import(&carried(&desk, &here)).unwrap();
    assert_eq!((taken.caught_up, taken.staged), (true, 1));
    assert_eq!(there.newest_root().unwrap().unwrap().version, 1);
    assert!(!desk.path("there/targets").exists());
}
