//! What the apps of this box ask of its memory and processors, and whether one more release fits: the last line of
//! defence, for the agent knows what really runs. The rule is [`proto::object::Room`]'s, which the hub asks, too.
//!
//! An app asks the most of its releases that may run: what is active, on trial, or staged and about to be. What runs is
//! never refused; only a staged release is, before anything stops for it. Nothing is on record: at the start of the
//! agent [`Rooms::hold`] is told of what is installed before any app is looked at.

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
    fn by_app(&self, but: (&Name, Digest)) -> BTreeMap<&Name, Resources> {
        let of = |(app, releases): (_, &BTreeMap<Digest, Resources>)| {
            let counted = releases.iter().filter(|(digest, _)| (app, **digest) != but);
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
            let mut others = asked.by_app((app, release));
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

    /// An app asks for no other releases than these.
    pub fn keep_only(&self, app: &Name, releases: &BTreeSet<Digest>) {
        self.asked.send_if_modified(|asked| {
            let Some(own) = asked.apps.get_mut(app) else { return false };
            let before = own.len();
            own.retain(|digest, _| releases.contains(digest));
            let changed = own.len() != before;
            if own.is_empty() {
                asked.apps.remove(app);
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
}
