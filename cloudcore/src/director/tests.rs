//! The director over its life: made once, restarted, its keys rotated by the hub alone and by people.

use super::*;

struct World {
    folder: tempfile::TempDir,
    env: Env,
}

impl World {
    fn new() -> World {
        World { folder: tempfile::tempdir().unwrap(), env: Env::real().unwrap() }
    }

    fn open(&self) -> Director {
        Director::open(self.folder.path(), &self.env).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("director").join(name)
    }

    /// What an agent that trusts `set` makes of an order.
    fn take(&self, director: &Director, set: &TrustedSet, generation: u64) -> Result<TrustedSet, &'static str> {
        let request = DirectorRequest { nonce: "nonce".into(), have: set.versions() };
        let assignment = Assignment { generation, ..Assignment::default() };
        let node = "n1".parse().unwrap();
        let reply = director.sign(&node, &request, 0, assignment, BTreeMap::new()).unwrap();
        let next = set.update(&reply, self.env.wall.now()).map_err(|e| e.code())?;
        director::admit(&next, &node, "nonce", generation).map_err(|e| e.code())?;
        Ok(next)
    }
}

fn pinned(director: &Director) -> TrustedSet {
    TrustedSet::new(&director.first_root().0).unwrap()
}

#[tokio::test]
async fn it_is_made_once_and_nodes_believe_it_after_a_restart() {
    let world = World::new();
    let director = world.open();
    let set = world.take(&director, &pinned(&director), 1).unwrap();
    let again = world.open();
    assert_eq!(again.first_root(), director.first_root());
    let set = world.take(&again, &set, 2).unwrap();
    assert_eq!(set.versions(), MetadataRequest { root: 1, timestamp: 2, snapshot: 2, targets: 2 });
    for key in ["online.pem", "root.pem"] {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(world.file(key)).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_start_that_was_interrupted_is_finished() {
    let world = World::new();
    world.open();
    let online = fs::read(world.file("online.pem")).unwrap();
    Record::at(world.file("roots")).remove().unwrap();
    let director = world.open();
    assert_eq!(fs::read(world.file("online.pem")).unwrap(), online);
    world.take(&director, &pinned(&director), 1).unwrap();
}

#[tokio::test]
async fn a_stolen_online_key_is_replaced_in_one_step_and_is_worth_nothing_then() {
    let world = World::new();
    let director = world.open();
    let set = world.take(&director, &pinned(&director), 1).unwrap();
    let stolen = read_key(&world.file("online.pem")).unwrap().unwrap();

    let mut changes = director.changes();
    assert_eq!(director.rekey().await.unwrap(), Rekeyed::Done { root: 2 });
    changes.changed().await.unwrap();
    let set = world.take(&director, &set, 2).unwrap();
    assert_eq!(set.versions().root, 2);

    let directive = Directive {
        node: "n1".parse().unwrap(),
        nonce: "nonce".into(),
        issued_at: world.env.wall.now(),
        assignment: Assignment::default(),
    };
    let expires = later(world.env.wall.now(), 1);
    let forged = Issue { directive, targets: BTreeMap::new(), version: 99, expires }.sign(&stolen).unwrap();
    assert_eq!(set.update(&forged, world.env.wall.now()).unwrap_err().code(), "UnknownKey");
    let director = world.open();
    world.take(&director, &set, 3).unwrap();
    world.take(&director, &pinned(&director), 3).unwrap(); // one that was away walks both roots
}

#[tokio::test]
async fn with_the_root_keys_elsewhere_people_sign_and_the_hub_takes_it() {
    let world = World::new();
    let director = world.open();
    let owner = read_key(&world.file("root.pem")).unwrap().unwrap();
    fs::remove_file(world.file("root.pem")).unwrap();
    let Rekeyed::Waits { key } = director.rekey().await.unwrap() else { panic!("the hub cannot sign that") };
    let set = world.take(&director, &pinned(&director), 1).unwrap(); // the old key signs on

    let mut root = set.root().clone();
    root.version = 2;
    root.keys.insert(key.id(), key.clone());
    for role in ["targets", "snapshot", "timestamp"] {
        root.roles.get_mut(role).unwrap().keyids = vec![key.id()];
    }
    let unsigned = Document::new(&root).unwrap().text();
    let refused = director.publish(vec![unsigned]).await.unwrap_err();
    assert!(refused.to_string().contains("under its threshold"), "{refused}");
    let mut document = Document::new(&root).unwrap();
    document.sign(&owner);
    assert_eq!(director.publish(vec![document.text()]).await.unwrap(), 2);
    assert!(matches!(director.publish(vec![document.text()]).await, Err(DirectorError::NotNewer { trusted: 2 })));
    let set = world.take(&director, &set, 2).unwrap();
    world.take(&world.open(), &set, 3).unwrap();

    // A root that lists none of the hub's keys would leave the nodes without orders.
    let stranger = SecretKey::from_seed(&[9; 32]).public();
    root.version = 3;
    root.keys.insert(stranger.id(), stranger.clone());
    root.roles.get_mut("targets").unwrap().keyids = vec![stranger.id()];
    let mut document = Document::new(&root).unwrap();
    document.sign(&owner);
    assert!(matches!(director.publish(vec![document.text()]).await, Err(DirectorError::NoKey { version: 3, .. })));
    world.take(&director, &set, 3).unwrap();
}

#[tokio::test]
async fn the_root_is_renewed_in_time_where_its_key_is_here() {
    let world = World::new();
    let director = world.open();
    director.renew().await.unwrap();
    assert_eq!(director.roots().len(), 1, "it is young");
    let (ends, renews) = director.root_ends();
    assert!(renews);
    let young = director.state();
    let old = RootMeta { expires: later(world.env.wall.now(), 30), version: 2, ..young.set.root().clone() };
    let mut document = Document::new(&old).unwrap();
    document.sign(&read_key(&world.file("root.pem")).unwrap().unwrap());
    director.publish(vec![document.text()]).await.unwrap();
    director.renew().await.unwrap();
    assert_eq!(director.roots().len(), 3);
    assert!(director.root_ends().0 >= ends);
}

#[tokio::test]
async fn damaged_roots_are_told_and_never_made_anew() {
    let world = World::new();
    world.open();
    for copy in ["roots", "roots.bak"] {
        fs::write(world.file(copy), "x").unwrap();
    }
    assert!(matches!(Director::open(world.folder.path(), &world.env), Err(DirectorError::Lost(_))));
    let other = World::new();
    other.open();
    fs::remove_file(other.file("online.pem")).unwrap();
    assert!(matches!(Director::open(other.folder.path(), &other.env), Err(DirectorError::NoKey { version: 1, .. })));
}

#[tokio::test]
async fn versions_that_a_thief_ran_far_ahead_are_recovered_from_by_a_new_key() {
    let world = World::new();
    let director = world.open();
    let set = world.take(&director, &pinned(&director), 1).unwrap();
    let stolen = read_key(&world.file("online.pem")).unwrap().unwrap();
    let directive = Directive {
        node: "n1".parse().unwrap(),
        nonce: "nonce".into(),
        issued_at: world.env.wall.now(),
        assignment: Assignment { generation: 1, ..Assignment::default() },
    };
    let (expires, version) = (later(world.env.wall.now(), 1), i64::MAX as u64);
    let forged = Issue { directive, targets: BTreeMap::new(), version, expires }.sign(&stolen).unwrap();
    let fooled = set.update(&forged, world.env.wall.now()).unwrap();
    let refused = director::admit(&fooled, &"n1".parse().unwrap(), "nonce", 0).unwrap_err();
    assert_eq!(refused.code(), "FastForward", "and an agent keeps nothing of it");
    director.rekey().await.unwrap();
    let recovered = world.take(&director, &fooled, 2).unwrap();
    assert_eq!(recovered.versions(), MetadataRequest { root: 2, timestamp: 1, snapshot: 1, targets: 1 });
}

#[tokio::test]
async fn the_old_key_stays_until_the_root_that_lists_the_new_one_is_on_disk() {
    let world = World::new();
    let director = world.open();
    let old = fs::read(world.file("online.pem")).unwrap();
    fs::create_dir(world.file("roots.bak.tmp")).unwrap();
    assert!(director.rekey().await.is_err());
    assert_eq!(fs::read(world.file("online.pem")).unwrap(), old);
    world.take(&world.open(), &pinned(&director), 1).unwrap();
    fs::remove_dir(world.file("roots.bak.tmp")).unwrap();
    assert_eq!(director.rekey().await.unwrap(), Rekeyed::Done { root: 2 });
}

#[tokio::test]
async fn orders_of_one_session_follow_each_other_across_a_new_key() {
    let world = World::new();
    let director = world.open();
    let mut set = world.take(&director, &pinned(&director), 1).unwrap();
    // What the hub knows of the agent is what it said when the session began.
    let request = DirectorRequest { nonce: "nonce".into(), have: set.versions() };
    let node: Name = "n1".parse().unwrap();
    for (before, generation) in [2, 3, 4, 5].into_iter().enumerate() {
        if generation == 3 {
            director.rekey().await.unwrap();
        }
        let assignment = Assignment { generation, ..Assignment::default() };
        let reply = director.sign(&node, &request, before as u64, assignment, BTreeMap::new()).unwrap();
        set = set.update(&reply, world.env.wall.now()).unwrap();
        let taken = director::admit(&set, &node, "nonce", generation).unwrap();
        assert_eq!(taken.assignment.generation, generation);
    }
}

#[tokio::test]
async fn a_node_that_is_hundreds_of_roots_behind_gets_them_in_parts_before_its_order() {
    let world = World::new();
    let first = world.open();
    let owner = read_key(&world.file("root.pem")).unwrap().unwrap();
    let (mut root, mut roots) = (first.state().set.root().clone(), first.roots());
    while roots.len() < 2 * MAX_ROOTS + 50 {
        root.version += 1;
        let mut document = Document::new(&root).unwrap();
        document.sign(&owner);
        roots.push(document.text());
    }
    Record::at(world.file("roots")).store(&serde_json::to_vec(&Kept { roots }).unwrap()).unwrap();
    let director = world.open();
    let mut set = pinned(&director);
    let request = DirectorRequest { nonce: "nonce".into(), have: set.versions() };
    let parts = director.parts(&request.have);
    assert_eq!(parts.iter().map(|part| part.roots.len()).collect::<Vec<_>>(), [MAX_ROOTS, MAX_ROOTS]);
    for part in parts {
        set = set.walk(&part).unwrap().unwrap();
    }
    // The order is signed for what it had when it came.
    let node = "n1".parse().unwrap();
    let reply = director.sign(&node, &request, 0, Assignment::default(), BTreeMap::new()).unwrap();
    let next = set.update(&reply, world.env.wall.now()).unwrap();
    assert_eq!(next.versions().root, 2 * MAX_ROOTS as u64 + 50);
    director::admit(&next, &node, "nonce", 0).unwrap();
    for near in [next.versions().root, next.versions().root - MAX_ROOTS as u64] {
        assert!(director.parts(&MetadataRequest { root: near, ..next.versions() }).is_empty(), "{near}");
    }
}
