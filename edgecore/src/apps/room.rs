//! What the apps of this box ask of its memory and processors, and whether one more release fits: the last line of
//! defence, for the agent knows what really runs. The rule is [`proto::object::Room`]'s, which the hub asks, too.
//!
//! An app asks the most of its releases that may run: what is active, on trial, or staged and about to be. What runs is
//! never refused; only a staged release is, before anything stops for it. Nothing is on record: at the start of the
//! agent [`Rooms::hold`] is told of what is installed before any app is looked at.
//!
//! Replicas that run besides those that always do are in nobody's way: they count against each other alone, and make way
//! for whatever an app claims ([`Rooms::spare`]).

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    digest::Digest,
    name::Name,
    object::{Allocation, NodeInfo, Resources, Room, capacity::Short},
    watch,
};

/// How a refusal calls the box.
const HERE: &str = "this box";

/// Who asks for how much. Cheap to ask; shared by all apps.
#[derive(Debug)]
pub struct Rooms {
    info: NodeInfo,
    asked: watch::Sender<Asked>,
}

/// What is asked for, and how much of the box may be.
#[derive(Debug, Clone, Default, PartialEq)]
struct Asked {
    /// As the hub said it; without it nobody is refused.
    allocation: Option<Allocation>,
    apps: BTreeMap<Name, BTreeMap<Digest, Resources>>,
    /// Of replicas above what an app asks for.
    spare: BTreeMap<Name, Resources>,
}

/// Tells when an answer may be another.
#[derive(Debug)]
pub struct RoomNews(watch::Receiver<Asked>);

impl RoomNews {
    /// Something is asked for, or no longer. Cancel safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await; // the agent is going away and drops this
        }
    }
}

impl Asked {
    /// What each app asks for; of `but` without that release.
    fn by_app(&self, but: Option<(&Name, Digest)>) -> BTreeMap<&Name, Resources> {
        let of = |(app, releases): (_, &BTreeMap<Digest, Resources>)| {
            let counted = releases.iter().filter(|(digest, _)| Some((app, **digest)) != but);
            (app, counted.fold(Resources::default(), |most, (_, asks)| most.max(*asks)))
        };
        self.apps.iter().map(of).collect()
    }
}

impl Rooms {
    /// Of a box that has this.
    #[must_use]
    pub fn new(info: NodeInfo) -> Rooms {
        Rooms { info, asked: watch::channel(Asked::default()).0 }
    }

    /// Tells when an answer may be another.
    #[must_use]
    pub fn news(&self) -> RoomNews {
        RoomNews(self.asked.subscribe())
    }

    /// How much of the box apps may ask for, as the hub says it.
    pub fn allot(&self, allocation: Option<Allocation>) {
        self.asked.send_if_modified(|asked| std::mem::replace(&mut asked.allocation, allocation) != allocation);
    }

    /// A release runs, or may at any time.
    pub fn hold(&self, app: &Name, release: Digest, asks: Resources) {
        self.asked.send_if_modified(|asked| {
            let before = asked.apps.entry(app.clone()).or_default().insert(release, asks);
            before != Some(asks)
        });
    }

    /// Keeps room for a release that is about to run in the place of what its app runs, if there is any.
    ///
    /// # Errors
    /// Why there is not.
    pub fn claim(&self, app: &Name, release: Digest, asks: Resources) -> Result<(), Short> {
        let mut answer = Ok(());
        self.asked.send_if_modified(|asked| {
            let mut others = asked.by_app(Some((app, release)));
            let own = others.remove(app).unwrap_or_default();
            let others: Vec<(&Name, Resources)> = others.into_iter().collect();
            if let Some(allocation) = asked.allocation {
                let room = Room::new(&self.info, &allocation);
                answer = room.fit(HERE, asks, own, &others).map(drop);
            }
            let releases = asked.apps.entry(app.clone()).or_default();
            match &answer {
                Ok(()) => releases.insert(release, asks) != Some(asks),
                Err(_) => releases.remove(&release).is_some(),
            }
        });
        answer
    }

    /// How many more replicas of an app, each of which asks for this, run beside what all apps ask for: at most
    /// `wanted`. They take that room until this is asked again. With fewer comes why.
    pub fn spare(&self, app: &Name, each: Resources, wanted: u8) -> (u8, Option<Short>) {
        let mut answer = (wanted, None);
        self.asked.send_if_modified(|asked| {
            if let Some(allocation) = asked.allocation {
                let room = Room::new(&self.info, &allocation);
                let mut holders = asked.by_app(None);
                for (other, spare) in asked.spare.iter().filter(|(other, _)| *other != app) {
                    let held = holders.entry(other).or_default();
                    *held = held.plus(*spare);
                }
                for fits in 0..wanted {
                    let others: Vec<(&Name, Resources)> = holders.iter().map(|(app, held)| (*app, *held)).collect();
                    if let Err(short) = room.fit(HERE, each, Resources::default(), &others) {
                        answer = (fits, Some(short));
                        break;
                    }
                    let own = holders.entry(app).or_default();
                    *own = own.plus(each);
                }
            }
            let taken = each.times(answer.0);
            let before = if answer.0 == 0 { asked.spare.remove(app) } else { asked.spare.insert(app.clone(), taken) };
            before.unwrap_or_default() != if answer.0 == 0 { Resources::default() } else { taken }
        });
        answer
    }

    /// An app asks for no other releases than these; with none it has no spare replicas either.
    pub fn keep_only(&self, app: &Name, releases: &BTreeSet<Digest>) {
        self.asked.send_if_modified(|asked| {
            let mut changed = false;
            if let Some(own) = asked.apps.get_mut(app) {
                let before = own.len();
                own.retain(|digest, _| releases.contains(digest));
                changed = own.len() != before;
                if own.is_empty() {
                    asked.apps.remove(app);
                }
            }
            if releases.is_empty() {
                changed |= asked.spare.remove(app).is_some();
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms(allocation: &str) -> Rooms {
        let info = serde_json::json!({"agentVersion": "", "bootId": "", "architecture": "", "osImage": "", "kernel": "",
            "cpus": 4, "memoryBytes": 8_u64 << 30, "hostname": ""});
        let rooms = Rooms::new(serde_json::from_value(info).unwrap());
        rooms.allot(serde_json::from_str(allocation).unwrap());
        rooms
    }

    fn memory(gib: u64) -> Resources {
        Resources { memory: Some(proto::units::Bytes::new(gib << 30)), cpu_millis: None }
    }

    #[test]
    fn an_update_takes_the_place_of_what_its_app_asked_for() {
        let rooms = rooms("{}");
        let (a, b): (Name, Name) = ("a".parse().unwrap(), "b".parse().unwrap());
        let release = |text: &str| Digest::of(text.as_bytes());
        rooms.hold(&a, release("a1"), memory(5));
        rooms.claim(&b, release("b1"), memory(3)).unwrap();
        rooms.claim(&b, release("b1"), memory(3)).unwrap();
        let short = rooms.claim(&a, release("a2"), memory(6)).unwrap_err();
        assert!(short.message.contains("this box has 8 GiB, of which b 3 GiB is asked: 5 GiB left"), "{short}");
        // As much as before is no more than before, and both of them never run.
        rooms.claim(&a, release("a2"), memory(5)).unwrap();
        rooms.keep_only(&b, &BTreeSet::new());
        rooms.claim(&a, release("a2"), memory(8)).unwrap();
        rooms.keep_only(&a, &[release("a1")].into());
        rooms.claim(&b, release("b1"), memory(3)).unwrap();
        assert!(rooms.claim(&b, release("b2"), memory(4)).is_err());
        // A hub that says nothing of it refuses nobody.
        rooms.allot(None);
        rooms.claim(&b, release("b2"), memory(400)).unwrap();
    }

    #[test]
    fn spare_replicas_share_what_is_left_and_make_way() {
        let rooms = rooms("{}");
        let (a, b): (Name, Name) = ("a".parse().unwrap(), "b".parse().unwrap());
        rooms.hold(&a, Digest::of(b"a1"), memory(2));
        rooms.hold(&b, Digest::of(b"b1"), memory(1));
        assert_eq!(rooms.spare(&a, memory(2), 1), (1, None));
        let (fits, short) = rooms.spare(&a, memory(2), 3);
        let says = "it needs 2 GiB; this box has 8 GiB, of which a 6 GiB and b 1 GiB are asked: 1 GiB left";
        assert!(fits == 2 && short.unwrap().message.starts_with(says));
        let (fits, short) = rooms.spare(&b, memory(1), 4);
        assert!(fits == 1 && short.unwrap().message.contains("0 bytes left"));
        // An app that needs the room gets it, and the next look says how many are left.
        rooms.claim(&b, Digest::of(b"b2"), memory(4)).unwrap();
        assert_eq!(rooms.spare(&b, memory(1), 4).0, 0);
        assert_eq!(rooms.spare(&a, memory(2), 2).0, 1);
        rooms.keep_only(&b, &BTreeSet::new());
        assert_eq!(rooms.spare(&a, memory(2), 3), (3, None));
        assert_eq!(rooms.spare(&a, memory(2), 0), (0, None));
        assert_eq!(rooms.spare(&b, memory(3), 2), (2, None));
        rooms.allot(None);
        assert_eq!(rooms.spare(&b, memory(300), 15), (15, None));
    }

    #[test]
    fn an_app_that_asks_for_nothing_more_has_no_spare_replicas() {
        let rooms = rooms("{}");
        let (a, b): (Name, Name) = ("a".parse().unwrap(), "b".parse().unwrap());
        rooms.hold(&a, Digest::of(b"a1"), memory(2));
        rooms.hold(&b, Digest::of(b"b1"), memory(2));
        assert_eq!(rooms.spare(&a, memory(2), 2), (2, None));
        rooms.keep_only(&a, &[Digest::of(b"a1")].into());
        assert_eq!(rooms.spare(&b, memory(2), 1).0, 0, "they go on");
        let news = rooms.news();
        rooms.keep_only(&a, &BTreeSet::new());
        assert_eq!(rooms.spare(&b, memory(2), 3), (3, None));
        assert!(news.0.has_changed());
        // Also where nothing else was known of it.
        rooms.spare(&b, memory(2), 0);
        rooms.spare(&a, memory(6), 1);
        rooms.keep_only(&a, &BTreeSet::new());
        assert_eq!(rooms.spare(&b, memory(2), 3), (3, None));
    }
}
