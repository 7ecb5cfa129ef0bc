//! What is taken, kept and refused, and what damage to the record does.

use jiff::Timestamp;
use proto::{
    digest::Digest,
    director::{Directive, Issue},
    object::ReleaseRef,
    tuf::{SecretKey, sign::Document},
};
use tempfile::TempDir;

use super::*;

struct World {
    folder: TempDir,
    board: watch::Sender<Report>,
}

fn online() -> SecretKey {
    SecretKey::from_seed(&[22; 32])
}

/// The second root: another online key in the place of the stolen one.
fn rotated() -> String {
    let owner = SecretKey::from_seed(&[21; 32]);
    let key = SecretKey::from_seed(&[23; 32]).public();
    let expires = "2100-01-01T00:00:00Z".parse().unwrap();
    let root = proto::tuf::schema::RootMeta { version: 2, ..director::root(&[owner.public()], 1, &key, expires) };
    let mut document = Document::new(&root).unwrap();
    document.sign(&owner);
    document.text()
}

fn root() -> String {
    let owner = SecretKey::from_seed(&[21; 32]);
    let root = director::root(&[owner.public()], 1, &online().public(), Timestamp::MAX);
    let root = proto::tuf::schema::RootMeta { expires: "2100-01-01T00:00:00Z".parse().unwrap(), ..root };
    let mut document = Document::new(&root).unwrap();
    document.sign(&owner);
    document.text()
}

impl World {
    fn new() -> World {
        World { folder: tempfile::tempdir().unwrap(), board: watch::channel(Report::default()).0 }
    }

    /// A box whose token pinned the director.
    fn directed() -> World {
        let world = World::new();
        begin(&world.place(), &root()).unwrap();
        world
    }

    fn place(&self) -> Place {
        let (record, first_root) = (self.folder.path().join("assignment"), self.folder.path().join("director.json"));
        Place { record: Record::at(record), first_root, node: "n1".parse().unwrap() }
    }

    fn open(&self) -> Assignments {
        let env = crate::fetch::tests::env();
        let clock = TrustedClock::new(env.wall.clone());
        Assignments::open(self.place(), env, clock).unwrap()
    }

    async fn accept(&self, to: &Assignments, offered: Assignment) -> Result<(), AssignmentError> {
        to.accept(offered, &self.board).await
    }

    /// What a hub answers to `request`.
    fn directive(request: &DirectorRequest, node: &str, assignment: Assignment) -> MetadataReply {
        let issue = Issue {
            directive: Directive {
                node: node.parse().unwrap(),
                nonce: request.nonce.clone(),
                issued_at: "2030-01-01T00:00:00Z".parse().unwrap(),
                assignment,
            },
            targets: Default::default(),
            version: request.have.targets + 1,
            expires: "2099-01-01T00:00:00Z".parse().unwrap(),
        };
        MetadataReply { roots: vec![root()], ..issue.sign(&online()).unwrap() }
    }

    async fn direct(&self, to: &Assignments, node: &str, assignment: Assignment) -> Result<(), &'static str> {
        let request = to.request();
        let reply = World::directive(&request, node, assignment);
        self.direct_with(to, &reply, &request.nonce).await
    }

    async fn direct_with(&self, to: &Assignments, reply: &MetadataReply, nonce: &str) -> Result<(), &'static str> {
        to.direct(reply, nonce, &self.board).await.map_err(|error| match error {
            AssignmentError::Refused(error) => error.code(),
            AssignmentError::NotKept(_) => "NotKept",
        })
    }
}

fn at(generation: u64) -> Assignment {
    Assignment { generation, ..Assignment::default() }
}

#[tokio::test]
async fn an_older_assignment_is_ignored_and_the_newest_survives() {
    let world = World::new();
    assert_eq!(*world.open().subscribe().borrow(), None);
    world.accept(&world.open(), at(5)).await.unwrap();
    world.accept(&world.open(), at(4)).await.unwrap();
    assert_eq!(*world.open().subscribe().borrow(), Some(at(5)));
    assert_eq!(world.board.borrow().observed_generation, 5);

    // It is not acted on before it is on disk.
    let kept = world.open();
    std::fs::create_dir(world.folder.path().join("assignment.bak.tmp")).unwrap();
    assert!(world.accept(&kept, at(6)).await.is_err());
    assert_eq!((kept.generation(), world.board.borrow().observed_generation), (5, 5));

    std::fs::write(world.place().record.path(), "x").unwrap();
    assert_eq!(*world.open().subscribe().borrow(), None, "lost is never seen");
}

#[tokio::test]
async fn a_stale_copy_takes_no_app_away() {
    for world in [World::new(), World::directed()] {
        let directed = world.place().first_root.exists();
        let release = ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(b"1") };
        let newest = Assignment { apps: [("web".parse().unwrap(), release.into())].into(), ..at(5) };
        let take = async |to: &Assignments, assignment| match directed {
            true => world.direct(to, "n1", assignment).await,
            false => world.accept(to, assignment).await.map_err(|_| "refused"),
        };
        let kept = world.open();
        take(&kept, at(4)).await.unwrap();
        take(&kept, newest.clone()).await.unwrap();
        std::fs::write(world.place().record.path(), "x").unwrap();

        let stale = world.open();
        assert_eq!(*stale.subscribe().borrow(), None, "the copy before lacks the app and is not acted on");
        assert_eq!(stale.generation(), 4);
        assert_eq!(take(&stale, at(3)).await.is_err(), directed, "older than that copy");
        assert_eq!(*stale.subscribe().borrow(), None);
        take(&stale, newest.clone()).await.unwrap();
        assert_eq!(*world.open().subscribe().borrow(), Some(newest));

        world.place().record.store(b"[]").unwrap();
        assert_eq!(*world.open().subscribe().borrow(), None, "whole and no assignment");
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_acted_on_and_told() {
    let world = World::new();
    let there = world.folder.path().join("there");
    let place = Place { record: Record::at(there.join("assignment")), ..world.place() };
    let env = crate::fetch::tests::env();
    let kept = Assignments::open(place, env.clone(), TrustedClock::new(env.wall)).unwrap();
    world.accept(&kept, at(4)).await.unwrap_err();
    assert_eq!((kept.generation(), world.board.borrow().observed_generation), (0, 0));
    assert!(kept.problem().borrow().as_ref().unwrap().message.contains("there/assignment"));
    std::fs::create_dir(&there).unwrap();
    world.accept(&kept, at(4)).await.unwrap();
    assert_eq!((kept.generation(), kept.problem().borrow().clone()), (4, None));
}

#[tokio::test]
async fn only_what_the_director_signed_for_this_node_and_session_is_taken() {
    let world = World::directed();
    let assignments = world.open();
    assert_eq!(world.direct(&assignments, "n1", at(5)).await, Ok(()));
    assert_eq!(assignments.generation(), 5);

    assert_eq!(world.direct(&assignments, "n2", at(6)).await, Err("WrongNode"));
    let (old, new) = (assignments.request(), assignments.request());
    assert_ne!(old.nonce, new.nonce);
    let replayed = World::directive(&old, "n1", at(6));
    assert_eq!(world.direct_with(&assignments, &replayed, &new.nonce).await, Err("Replay"));
    assert_eq!(world.direct(&assignments, "n1", at(4)).await, Err("Rollback"));
    assert!(world.accept(&assignments, at(6)).await.unwrap_err().to_string().contains("unsigned"));
    assert_eq!(assignments.problem().borrow().as_ref().unwrap().reason, "Unsigned");
    assert_eq!((assignments.generation(), world.open().generation()), (5, 5));

    world.direct(&assignments, "n1", at(6)).await.unwrap();
    assert_eq!(*assignments.problem().borrow(), None);
    let kept = world.open();
    assert_eq!(*kept.subscribe().borrow(), Some(at(6)));
    assert_eq!(kept.request().have.root, 1, "what was verified is known after a restart");
}

#[tokio::test]
async fn the_same_order_in_a_new_session_costs_no_write() {
    let world = World::directed();
    let assignments = world.open();
    world.direct(&assignments, "n1", at(5)).await.unwrap();
    let before = std::fs::read(world.place().record.path()).unwrap();
    world.direct(&assignments, "n1", at(5)).await.unwrap();
    assert_eq!(std::fs::read(world.place().record.path()).unwrap(), before);
    assert_eq!(assignments.request().have.targets, 2, "and is known to be fresh");
}

#[tokio::test]
async fn a_director_that_shows_itself_first_is_pinned_from_then_on() {
    let world = World::new();
    let assignments = world.open();
    world.accept(&assignments, at(3)).await.unwrap();
    world.direct(&assignments, "n1", at(4)).await.unwrap();
    assert_eq!(first_root(&world.place()), Some(root()));
    assert!(world.accept(&assignments, at(5)).await.is_err(), "there is no way back to unsigned ones");
    assert!(world.accept(&world.open(), at(5)).await.is_err());
}

#[tokio::test]
async fn a_lost_root_of_the_director_fails_closed_until_the_box_joins_again() {
    let world = World::directed();
    world.direct(&world.open(), "n1", at(5)).await.unwrap();
    let unsigned = serde_json::to_vec(&at(9)).unwrap();
    let damage: [&dyn Fn(); 3] = [
        &|| world.place().record.remove().unwrap(),
        &|| {
            for copy in [world.place().record.path().to_owned(), world.place().record.path().with_extension("bak")] {
                std::fs::write(copy, "x").unwrap();
            }
        },
        &|| world.place().record.store(&unsigned).unwrap(),
    ];
    for damage in damage {
        damage();
        let assignments = world.open();
        assert_eq!(*assignments.subscribe().borrow(), None);
        assert_eq!(assignments.problem().borrow().as_ref().unwrap().reason, "DirectorLost");
        assert_eq!(world.direct(&assignments, "n1", at(6)).await, Err("DirectorLost"));
        assert!(world.accept(&assignments, at(6)).await.is_err());
        assert!(!is_whole(&world.place().record).unwrap());
    }
    begin(&world.place(), &root()).unwrap();
    world.direct(&world.open(), "n1", at(6)).await.unwrap();
}

#[tokio::test]
async fn a_generation_that_a_thief_ran_far_ahead_goes_with_the_thiefs_key() {
    let world = World::directed();
    let assignments = world.open();
    assert_eq!(world.direct(&assignments, "n1", at((1 << 48) + 1)).await, Err("FastForward"));
    world.direct(&assignments, "n1", at(1 << 48)).await.unwrap();
    assert_eq!(world.direct(&assignments, "n1", at(6)).await, Err("Rollback"));

    let request = assignments.request();
    let issue = Issue {
        directive: Directive {
            node: "n1".parse().unwrap(),
            nonce: request.nonce.clone(),
            issued_at: "2030-01-01T00:00:00Z".parse().unwrap(),
            assignment: at(6),
        },
        targets: Default::default(),
        version: 1,
        expires: "2099-01-01T00:00:00Z".parse().unwrap(),
    };
    let signed = issue.sign(&SecretKey::from_seed(&[23; 32])).unwrap();
    let reply = MetadataReply { roots: vec![root(), rotated()], ..signed };
    assert_eq!(world.direct_with(&assignments, &reply, &request.nonce).await, Ok(()));
    assert_eq!((assignments.generation(), world.open().generation()), (6, 6));
}

#[tokio::test]
async fn roots_that_come_in_parts_are_kept_with_the_order_that_follows() {
    let world = World::directed();
    let kept = world.open();
    world.direct(&kept, "n1", at(3)).await.unwrap();
    let request = kept.request();
    let part = MetadataReply { roots: vec![rotated()], ..MetadataReply::default() };
    world.direct_with(&kept, &part, &request.nonce).await.unwrap();
    assert_eq!((world.open().request().have.root, kept.generation()), (1, 3), "nothing vouches for a part alone");
    let order = |request: &DirectorRequest| {
        let issue = Issue {
            directive: Directive {
                node: "n1".parse().unwrap(),
                nonce: request.nonce.clone(),
                issued_at: "2030-01-01T00:00:00Z".parse().unwrap(),
                assignment: at(3),
            },
            targets: Default::default(),
            version: 1,
            expires: "2099-01-01T00:00:00Z".parse().unwrap(),
        };
        issue.sign(&SecretKey::from_seed(&[23; 32])).unwrap()
    };
    world.direct_with(&kept, &order(&request), &request.nonce).await.unwrap();
    let again = world.open();
    assert_eq!((again.request().have.root, again.generation()), (2, 3), "the same order, vouched for anew");
}
