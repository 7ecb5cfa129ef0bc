//! The attack table: whoever has stolen what, alone and in pairs, and what each attack comes to on a node.
//!
//! The node is the agent's own code: [`Assignments`] takes what the hub says, [`Trust`] decides what may run. The
//! attacker makes the best documents that the stolen keys can sign and holds the line. Each row names what the node
//! answers; `golden/attacks.md` is the table for people, written anew with `CROSSDOCK_WRITE_GOLDEN=1`.
//!
//! The fleet: 2 of 3 keys sign releases and 2 of 3 the root of each repository; the pipeline's key signs snapshot and
//! timestamp; the hub holds the director's online key.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // all of it is a test

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf, sync::Mutex};

use edgecore::{
    fetch::{Reader, Source, SourceError},
    link::assignment::{self, AssignmentError, Assignments, Place},
    trust::{self, Trust, clock::TrustedClock},
};
use jiff::Timestamp;
use proto::{
    digest::Digest,
    director::{Directive, Issue},
    durable::Record,
    env::{Blocking, BoxFuture, Env, Seed, WallClock},
    link::message::{Assignment, BlobRequest, MetadataReply, MetadataRequest, Report},
    object::ReleaseRef,
    tuf::{
        SecretKey, Target, TargetCustom,
        schema::{
            MetaFile, Role, RoleKeys, RootMeta, SPEC_VERSION, SnapshotMeta, TargetFile, TargetsMeta, TimestampMeta,
        },
        sign::Document,
    },
    watch,
};
use tempfile::TempDir;

/// What can be stolen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Loot {
    /// One of three root keys of the release repository.
    ReleaseRoot,
    /// One of three keys that sign releases.
    Targets,
    /// Two of them: the threshold.
    TargetsTwice,
    /// The pipeline's key.
    Pipeline,
    /// One of three root keys of the director.
    DirectorRoot,
    /// The hub: its online key, its link, every old document.
    Hub,
    /// The MQTT broker or any other place on the line.
    Line,
    /// Another node, with its key and its directives.
    OtherNode,
}

use Loot::{DirectorRoot, Hub, Line, OtherNode, Pipeline, ReleaseRoot, Targets, TargetsTwice};

const ALL: [Loot; 8] = [ReleaseRoot, Targets, TargetsTwice, Pipeline, DirectorRoot, Hub, Line, OtherNode];

impl Loot {
    fn words(self) -> &'static str {
        match self {
            ReleaseRoot => "one release root key",
            Targets => "one targets key",
            TargetsTwice => "two targets keys",
            Pipeline => "the pipeline's key",
            DirectorRoot => "one director root key",
            Hub => "the hub with its online key",
            Line => "the line or the broker",
            OtherNode => "another node",
        }
    }

    fn keys(self) -> Vec<u8> {
        match self {
            ReleaseRoot => vec![1],
            Targets => vec![4],
            TargetsTwice => vec![4, 5],
            Pipeline => vec![PIPELINE],
            DirectorRoot => vec![11],
            Hub => vec![ONLINE],
            Line | OtherNode => vec![],
        }
    }
}

const PIPELINE: u8 = 7;
const ONLINE: u8 = 14;
const STRANGER: u8 = 99;
const NOW: &str = "2030-06-01T00:00:00Z";
const ISSUED: &str = "2030-05-01T00:00:00Z";
const LATER: &str = "2031-01-01T00:00:00Z";
const PAST: &str = "2030-05-31T00:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn signed<T: Role>(content: &T, keys: &[u8]) -> String {
    let mut document = Document::new(content).unwrap();
    keys.iter().for_each(|n| document.sign(&key(*n)));
    document.text()
}

fn role(keys: &[u8], threshold: u32) -> RoleKeys {
    RoleKeys { keyids: keys.iter().map(|n| key(*n).id()).collect(), threshold, other: BTreeMap::new() }
}

fn root_of(version: u64, roles: [(&[u8], u32); 4]) -> RootMeta {
    let [root, targets, snapshot, timestamp] = roles;
    let named = [("root", root), ("targets", targets), ("snapshot", snapshot), ("timestamp", timestamp)];
    RootMeta {
        kind: "root".into(),
        spec_version: SPEC_VERSION.into(),
        version,
        expires: at(LATER),
        consistent_snapshot: true,
        keys: named.iter().flat_map(|(_, (keys, _))| keys.iter().map(|n| (key(*n).id(), key(*n).public()))).collect(),
        roles: named.iter().map(|(name, (keys, threshold))| ((*name).to_owned(), role(keys, *threshold))).collect(),
        other: BTreeMap::new(),
    }
}

fn release_root() -> RootMeta {
    root_of(1, [(&[1, 2, 3], 2), (&[4, 5, 6], 2), (&[PIPELINE], 1), (&[PIPELINE], 1)])
}

fn director_root() -> RootMeta {
    root_of(1, [(&[11, 12, 13], 2), (&[ONLINE], 1), (&[ONLINE], 1), (&[ONLINE], 1)])
}

/// A release of the app `web`: its counter is its version.
fn target(version: u64, content: &str) -> TargetFile {
    let custom = TargetCustom {
        app: "web".parse().unwrap(),
        version: version.to_string().parse().unwrap(),
        release_counter: version,
        hardware: ["x86_64".to_owned()].into(),
        issued_at: Some(at(ISSUED)),
    };
    Target { length: 3, digest: Digest::of(content.as_bytes()), custom }.to_file().unwrap()
}

/// A publication: who signs what, and until when it is good.
struct Publication {
    version: u64,
    /// Of snapshot and timestamp.
    pipeline_version: u64,
    targets: Vec<(u64, &'static str)>,
    targets_keys: Vec<u8>,
    pipeline_keys: Vec<u8>,
    expires: &'static str,
    roots: Vec<String>,
}

impl Publication {
    fn genuine(version: u64, targets: &[(u64, &'static str)]) -> Publication {
        Publication {
            version,
            pipeline_version: version,
            targets: targets.to_vec(),
            targets_keys: vec![4, 5],
            pipeline_keys: vec![PIPELINE],
            expires: LATER,
            roots: vec![],
        }
    }

    fn reply(&self) -> MetadataReply {
        let expires = at(self.expires);
        let (version, spec) = (self.version, SPEC_VERSION.to_owned());
        let targets = self.targets.iter().map(|(v, content)| (format!("web/{v}.json"), target(*v, content))).collect();
        let targets = signed(
            &TargetsMeta {
                kind: "targets".into(),
                spec_version: spec.clone(),
                version,
                expires,
                targets,
                other: BTreeMap::new(),
            },
            &self.targets_keys,
        );
        let meta = [("targets.json".to_owned(), MetaFile::of(version, &targets))].into();
        let version = self.pipeline_version;
        let snapshot = signed(
            &SnapshotMeta {
                kind: "snapshot".into(),
                spec_version: spec.clone(),
                version,
                expires,
                meta,
                other: BTreeMap::new(),
            },
            &self.pipeline_keys,
        );
        let meta = [("snapshot.json".to_owned(), MetaFile::of(version, &snapshot))].into();
        let timestamp = signed(
            &TimestampMeta {
                kind: "timestamp".into(),
                spec_version: spec,
                version,
                expires,
                meta,
                other: BTreeMap::new(),
            },
            &self.pipeline_keys,
        );
        MetadataReply {
            roots: self.roots.clone(),
            timestamp: Some(timestamp),
            snapshot: Some(snapshot),
            targets: Some(targets),
        }
    }
}

/// An order for a node.
struct Order {
    node: &'static str,
    nonce: String,
    generation: u64,
    release: (u64, &'static str),
    keys: Vec<u8>,
    version: u64,
    expires: &'static str,
    roots: Vec<String>,
}

impl Order {
    fn reply(&self) -> MetadataReply {
        let (version, content) = self.release;
        let digest = Digest::of(content.as_bytes());
        let release = ReleaseRef { version: version.to_string().parse().unwrap(), digest };
        let apps = [("web".parse().unwrap(), release.into())].into();
        let directive = Directive {
            node: self.node.parse().unwrap(),
            nonce: self.nonce.clone(),
            issued_at: at(NOW),
            assignment: Assignment { generation: self.generation, apps, ..Assignment::default() },
        };
        let targets = [(format!("web/{version}.json"), target(version, content))].into();
        let issue = Issue { directive, targets, version: self.version, expires: at(self.expires) };
        let by = self.keys.first().copied().unwrap_or(STRANGER);
        MetadataReply { roots: self.roots.clone(), ..issue.sign(&key(by)).unwrap() }
    }
}

#[derive(Debug)]
struct Clock;

impl WallClock for Clock {
    fn now(&self) -> Timestamp {
        at(NOW)
    }
}

#[derive(Debug)]
struct Held(Mutex<MetadataReply>);

impl Source for Held {
    fn metadata(&self, have: MetadataRequest) -> BoxFuture<'_, Result<MetadataReply, SourceError>> {
        let reply = self.0.lock().unwrap().clone();
        let nothing = reply.timestamp.is_none() || have.timestamp == 0 && reply.targets.is_none();
        Box::pin(async move { if nothing { Err(SourceError::Offline) } else { Ok(reply) } })
    }
    fn blob(&self, _: BlobRequest) -> BoxFuture<'_, Result<Reader, SourceError>> {
        Box::pin(async { Err(SourceError::Offline) })
    }
}

/// A node that runs release 2 by a genuine order, generation 5; release 1 was there before.
struct Node {
    _folder: TempDir,
    assignments: Assignments,
    trust: Trust,
    nonce: String,
    have: MetadataRequest,
    board: watch::Sender<Report>,
    served: Held,
}

const GENUINE: &[(u64, &str)] = &[(1, "one"), (2, "two")];

impl Node {
    async fn new() -> Node {
        let folder = tempfile::tempdir().unwrap();
        let env = Env {
            wall: std::sync::Arc::new(Clock),
            blocking: Blocking::Inline,
            seed: Seed::from_u64(1),
            ..Env::real().unwrap()
        };
        let clock = TrustedClock::new(env.wall.clone());
        let (assignment, first_root): (PathBuf, PathBuf) =
            (folder.path().join("assignment"), folder.path().join("director.json"));
        let place = Place { record: Record::at(assignment), first_root, node: "n1".parse().unwrap() };
        assignment::begin(&place, &signed(&director_root(), &[11, 12])).unwrap();
        let record = Record::at(folder.path().join("trust"));
        trust::begin(&record, &signed(&release_root(), &[1, 2])).unwrap();
        let assignments = Assignments::open(place, env.clone(), clock.clone()).unwrap();
        let trust = Trust::open(record, env, clock, assignments.directed()).unwrap();
        let board = watch::channel(Report::default()).0;
        let served = Held(Mutex::new(Publication::genuine(5, GENUINE).reply()));
        let mut node = Node {
            _folder: folder,
            assignments,
            trust,
            nonce: String::new(),
            have: MetadataRequest::default(),
            board,
            served,
        };
        node.session();
        let genuine = Order { release: (2, "two"), keys: vec![ONLINE], ..node.order() };
        assert_eq!(node.offer(&genuine.reply()).await, Ok(()));
        assert_eq!(node.run(2, "two", 2).await, Ok(2));
        node.session();
        node
    }

    /// A new session begins, which the attacker sees.
    fn session(&mut self) {
        let request = self.assignments.request();
        (self.nonce, self.have) = (request.nonce, request.have);
    }

    /// What the attacker fills in; the key is a stranger's.
    fn order(&self) -> Order {
        Order {
            node: "n1",
            nonce: self.nonce.clone(),
            generation: 5,
            release: (3, "evil"),
            keys: vec![],
            version: self.have.targets + 1,
            expires: LATER,
            roots: vec![],
        }
    }

    async fn offer(&self, reply: &MetadataReply) -> Result<(), &'static str> {
        self.assignments.direct(reply, &self.nonce, &self.board).await.map_err(code)
    }

    fn serve(&self, reply: MetadataReply) {
        *self.served.0.lock().unwrap() = reply;
    }

    /// Whether the node would install a release; its counter then.
    async fn run(&self, version: u64, content: &str, floor: u64) -> Result<u64, &'static str> {
        let digest = Digest::of(content.as_bytes());
        let release = ReleaseRef { version: version.to_string().parse().unwrap(), digest };
        let app = "web".parse().unwrap();
        let accepted = self.trust.accept(&self.served, &app, &release, floor, &["x86_64".into()]).await;
        accepted.map(|accepted| accepted.counter).map_err(|refusal| refusal.reason())
    }
}

fn code(error: AssignmentError) -> &'static str {
    match error {
        AssignmentError::Refused(error) => error.code(),
        AssignmentError::NotKept(_) => "NotKept",
    }
}

/// The ends that an attacker pursues, and the best that the loot allows.
const GOALS: [&str; 5] = ["run own code", "step back", "order for another node", "old order again", "own root"];

/// What the director's part and the release repository's part of the node answer: both must say yes.
fn both(ordered: Result<(), &'static str>, run: Result<u64, &'static str>) -> Result<(), String> {
    match (ordered, run) {
        (Ok(()), Ok(_)) => Ok(()),
        (ordered, run) => Err(format!("{} / {}", ordered.err().unwrap_or("taken"), run.err().unwrap_or("accepted"))),
    }
}

/// What came of it: `Ok` when the attacker has won, else what the node answered.
async fn attack(goal: &str, loot: &[Loot]) -> Result<(), String> {
    let mut node = Node::new().await;
    let keys: Vec<u8> = loot.iter().flat_map(|l| l.keys()).collect();
    let of = |listed: &[u8]| keys.iter().copied().filter(|k| listed.contains(k)).collect::<Vec<u8>>();
    let or_stranger = |keys: Vec<u8>| if keys.is_empty() { vec![STRANGER] } else { keys };
    match goal {
        "run own code" => {
            let forged = Publication {
                version: 6,
                targets: vec![(1, "one"), (2, "two"), (3, "evil")],
                targets_keys: or_stranger(of(&[4, 5, 6])),
                pipeline_keys: or_stranger(of(&[PIPELINE])),
                ..Publication::genuine(6, GENUINE)
            };
            node.serve(forged.reply());
            // Who has no online key leaves the order to the hub, which is honest and orders what is published.
            let order = Order { generation: 6, keys: of(&[ONLINE]), ..node.order() };
            let ordered = node.offer(&order.reply()).await;
            let run = node.run(3, "evil", 2).await;
            both(ordered, run)
        }
        "step back" => {
            // An old release, genuine in all its parts, below the floor of what runs.
            let order = Order { generation: 6, release: (1, "one"), keys: of(&[ONLINE]), ..node.order() };
            let ordered = node.offer(&order.reply()).await;
            let run = node.run(1, "one", 2).await;
            both(ordered, run)
        }
        "order for another node" => {
            // A genuine directive that was signed for another node, replayed here.
            let order = Order { node: "n2", generation: 6, release: (1, "one"), keys: vec![ONLINE], ..node.order() };
            node.offer(&order.reply()).await.map_err(str::to_owned)
        }
        "old order again" => {
            // Yesterday's genuine directive for this node; only who holds the online key can sign it anew.
            let old = Order { generation: 4, keys: vec![ONLINE], ..node.order() }.reply();
            node.session();
            let fresh = Order { generation: 4, keys: of(&[ONLINE]), ..node.order() };
            let offered = if loot.contains(&Hub) { fresh.reply() } else { old };
            node.offer(&offered).await.map_err(str::to_owned)
        }
        "own root" => {
            let own = root_of(2, [(&[STRANGER], 1), (&[STRANGER], 1), (&[STRANGER], 1), (&[STRANGER], 1)]);
            let forged = Publication {
                targets: vec![(3, "evil")],
                targets_keys: vec![STRANGER],
                pipeline_keys: vec![STRANGER],
                roots: vec![signed(&own, &[of(&[1, 2, 3]), vec![STRANGER]].concat())],
                ..Publication::genuine(6, GENUINE)
            };
            node.serve(forged.reply());
            let roots = vec![signed(&own, &[of(&[11, 12, 13]), vec![STRANGER]].concat())];
            let order = Order { generation: 6, keys: vec![STRANGER], roots, ..node.order() };
            let ordered = node.offer(&order.reply()).await;
            let run = node.run(3, "evil", 2).await;
            both(ordered, run)
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn no_theft_of_one_or_two_runs_a_byte() {
    let mut table = String::from(
        "What a node answers to whoever has stolen what: what it says to the order, and behind the stroke to the release. Written by `edgecore/tests/attacks.rs`; each cell was tried.\n\n| stolen |",
    );
    GOALS.iter().for_each(|goal| write!(table, " {goal} |").unwrap());
    table.push_str("\n|---|---|---|---|---|---|\n");
    let mut sets: Vec<Vec<Loot>> = vec![vec![]];
    sets.extend(ALL.map(|one| vec![one]));
    for (i, one) in ALL.iter().enumerate() {
        sets.extend(ALL[i + 1..].iter().map(|other| vec![*one, *other]));
    }
    for set in sets {
        let words: Vec<&str> = set.iter().map(|l| l.words()).collect();
        write!(table, "| {} |", if words.is_empty() { "nothing".into() } else { words.join(", ") }).unwrap();
        for goal in GOALS {
            let result = attack(goal, &set).await;
            assert!(result.is_err(), "{set:?} wins: {goal}");
            write!(table, " {} |", result.err().unwrap()).unwrap();
        }
        table.push('\n');
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/attacks.md");
    if std::env::var_os("CROSSDOCK_WRITE_GOLDEN").is_some() {
        fs::write(&path, &table).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap_or_default(), table, "write it anew if that is as it must be");
}

/// So that the table does not lie: with everything that is needed the attack works.
#[tokio::test]
async fn with_the_threshold_the_pipeline_and_the_hub_the_attacker_wins() {
    assert_eq!(attack("run own code", &[TargetsTwice, Pipeline, Hub]).await, Ok(()));
    assert!(attack("run own code", &[TargetsTwice, Pipeline]).await.is_err(), "the hub is needed");
    assert!(attack("run own code", &[Targets, Pipeline, Hub]).await.is_err(), "so is the threshold");
    assert!(attack("run own code", &[TargetsTwice, Hub]).await.is_err(), "and the pipeline");
    assert!(attack("step back", &[TargetsTwice, Pipeline, Hub]).await.is_err(), "the floor stands");
}

/// The attacks of the papers (TUF 1.0 section 1.5.2, Uptane 2.1 section 4.2) by whoever holds the line or the hub.
#[tokio::test]
async fn each_attack_of_the_papers_is_refused_by_its_name() {
    let node = Node::new().await;
    let evil = || vec![(2, "two"), (3, "evil")];
    // A node that knows version 5, and wants release 3: everything is asked for anew.
    let order = Order { generation: 6, release: (3, "three"), keys: vec![ONLINE], ..node.order() };
    node.offer(&order.reply()).await.unwrap();
    let try_it = async |reply: MetadataReply| {
        node.serve(reply);
        node.run(3, "three", 2).await
    };
    let genuine = || Publication::genuine(6, &[(2, "two"), (3, "three")]);
    let of = |publication: Publication| publication.reply();

    assert_eq!(
        try_it(of(Publication { targets: evil(), targets_keys: vec![STRANGER], ..genuine() })).await,
        Err("UnknownKey"),
        "arbitrary software"
    );
    assert_eq!(
        try_it(of(Publication { version: 4, pipeline_version: 4, ..genuine() })).await,
        Err("Rollback"),
        "rollback"
    );
    assert_eq!(try_it(of(Publication { expires: PAST, ..genuine() })).await, Err("Freeze"), "indefinite freeze");
    let mixed = MetadataReply {
        targets: of(Publication { version: 6, targets: evil(), ..genuine() }).targets,
        ..of(genuine())
    };
    assert_eq!(try_it(mixed).await, Err("MixAndMatch"), "mix and match");
    let endless = MetadataReply { targets: Some(" ".repeat(9 << 20)), ..of(genuine()) };
    assert_eq!(try_it(endless).await, Err("EndlessData"), "endless data");
    assert_eq!(
        try_it(of(Publication { targets_keys: vec![4], ..genuine() })).await,
        Err("Threshold"),
        "key compromise"
    );
    let changed = of(genuine());
    let changed = MetadataReply { targets: changed.targets.map(|t| t.replace("x86_64", "x86_65")), ..changed };
    assert_eq!(try_it(changed).await, Err("BadSignature"), "a changed byte");
    assert_eq!(
        try_it(of(Publication { targets: evil(), ..genuine() })).await,
        Err("MixAndMatch"),
        "wrong software: other content under the ordered name"
    );
    // Withheld: nothing is accepted, and what was accepted stays.
    assert_eq!(try_it(MetadataReply::default()).await, Err("HubUnreachable"), "slow retrieval, drop");
    assert_eq!(node.run(3, "three", 2).await, Err("HubUnreachable"));
    node.serve(of(Publication { version: 7, pipeline_version: 7, ..genuine() }));
    assert_eq!(node.run(3, "three", 2).await, Ok(3), "and the genuine one is taken after all of it");

    // Fast forward: a stolen pipeline key signs an absurd version. Rotating the key recovers from it.
    let fast = Publication { version: 7, pipeline_version: 1 << 40, ..genuine() };
    node.serve(of(fast));
    node.trust.refresh(&node.served).await.unwrap();
    node.serve(of(Publication { version: 8, pipeline_version: 8, ..genuine() }));
    assert_eq!(node.trust.refresh(&node.served).await.unwrap_err().reason(), "Rollback", "fast forward");
    let rotated = root_of(2, [(&[1, 2, 3], 2), (&[4, 5, 6], 2), (&[8], 1), (&[8], 1)]);
    let recovered = Publication {
        version: 8,
        pipeline_version: 8,
        pipeline_keys: vec![8],
        roots: vec![signed(&rotated, &[1, 3])],
        ..genuine()
    };
    node.serve(recovered.reply());
    node.trust.refresh(&node.served).await.unwrap();
    assert_eq!(node.trust.state().borrow().versions.timestamp, 8);
}

/// A release that is ordered for hardware that the node is not.
#[tokio::test]
async fn a_release_for_other_hardware_is_refused() {
    let node = Node::new().await;
    let release = ReleaseRef { version: "2".parse().unwrap(), digest: Digest::of(b"two") };
    let app = "web".parse().unwrap();
    let refused = node.trust.accept(&node.served, &app, &release, 2, &["aarch64".into()]).await;
    assert_eq!(refused.unwrap_err().reason(), "WrongHardware");
}

/// Uptane 4.2: a director that orders nothing, or no longer the release that the attacker has.
#[tokio::test]
async fn what_the_director_does_not_order_is_not_installed() {
    let node = Node::new().await;
    node.serve(Publication::genuine(6, &[(2, "two"), (3, "three")]).reply());
    assert_eq!(node.run(3, "three", 2).await, Err("NotDirected"));
}
