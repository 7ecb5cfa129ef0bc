//! What the apps of a box use of each other's files, and how a new release of such files is proved.
//!
//! ```text
//! model: on trial, in place itself --Offer--> its users are asked ----------------(all proved it)--> Confirm
//!                                               |        \---(one failed)--> Fail: it is abandoned
//! user:  active, with the model before --trial of the same release, with the new model--> Answer --> Confirm
//!                                               \--(failed, or no longer offered)--> back to the model before
//! ```
//!
//! Each app tells here what its slot says ([`Word`]) before it acts on it, so all of this can be lost and is told anew by
//! the next agent. What decides is on record in two places only: in the user's slot, with which files each of its
//! instances runs, and in the model's, whether the new ones are good. That the model's trial is confirmed is the one
//! moment from which on no user goes back. A user goes on with new files only when they are the model's active release,
//! or while they are on trial and it is their turn.
//!
//! Of all apps of a box one offers its files at a time: two that waited for the same users could wait for ever.
//! A user whose own update may begin does that first; one that is on trial ends that first, whichever it is. Where that
//! has to be proved by users of its own, or a user cannot run now, the offer is taken back until then. Nobody uses, by
//! way of others, what uses it.
//!
//! Releases whose files somebody's instance has, or goes back to, stay on disk.

use std::collections::{BTreeMap, BTreeSet};

use proto::{digest::Digest, name::Name, object::ReleaseRef, watch};

use super::slot::Slot;

/// The board. Cheap to ask; shared by all apps.
#[derive(Debug)]
pub struct Uses(watch::Sender<Board>);

/// Tells when an answer may be another.
#[derive(Debug)]
pub struct UsesNews(watch::Receiver<Board>);

impl UsesNews {
    /// Something was told. Cancel safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await; // the agent is going away and drops this
        }
    }
}

/// All that was told.
#[derive(Debug, Clone, Default, PartialEq)]
struct Board {
    apps: BTreeMap<Name, Word>,
    /// Apps that are there, and whose slots were not read yet.
    expected: BTreeSet<Name>,
    /// Number of the newest offer.
    offers: u64,
    /// Files of apps that others found damaged.
    damaged: BTreeSet<(Name, Digest)>,
}

/// What an app says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Word {
    /// The release whose files others may use.
    active: Option<ReleaseRef>,
    /// The one on trial.
    trial: Option<ReleaseRef>,
    /// Its number, while it is offered.
    offer: Option<u64>,
    /// That the trial is good is being written: until it is, nobody begins to use either.
    closing: bool,
    /// What its instances have of others, or go back to.
    pins: BTreeMap<Name, BTreeSet<Digest>>,
    /// What they have, when nothing of it is on trial.
    settled: BTreeMap<Name, Digest>,
    /// What it says to an offer.
    answer: Option<Answer>,
    /// It cannot run now, or not again, and so prove nothing.
    stuck: bool,
}

impl Word {
    /// What an app says whose slot this is.
    #[must_use]
    pub fn of(slot: &Slot, offer: Option<u64>, answer: Option<Answer>) -> Word {
        let active = slot.active.as_ref();
        let settled = active.filter(|_| slot.trial.is_none()).into_iter().flat_map(|active| &active.uses);
        Word {
            active: active.map(|active| active.release.clone()),
            trial: slot.trial.as_ref().map(|trial| trial.installed.release.clone()),
            offer: offer.filter(|_| slot.trial.is_some()),
            closing: false,
            pins: BTreeMap::new(),
            settled: settled.map(|(app, release)| (app.clone(), release.digest)).collect(),
            answer,
            stuck: false,
        }
        .with_pins(slot.pins())
    }

    /// The same of an app that cannot run now, or can.
    #[must_use]
    pub fn with_stuck(self, stuck: bool) -> Word {
        Word { stuck, ..self }
    }

    /// The release on trial, unless the trial is of files of others.
    fn own_trial(&self) -> Option<&ReleaseRef> {
        self.trial.as_ref().filter(|trial| self.active.as_ref().is_none_or(|active| active.digest != trial.digest))
    }

    /// The same of an app that needs these files, too.
    #[must_use]
    pub fn with_pins<'a>(mut self, pins: impl IntoIterator<Item = (&'a Name, &'a ReleaseRef)>) -> Word {
        for (app, release) in pins {
            self.pins.entry(app.clone()).or_default().insert(release.digest);
        }
        self
    }

    /// The files that it offers, and their number.
    fn offers(&self) -> Option<(&ReleaseRef, u64)> {
        Some((self.trial.as_ref()?, self.offer?))
    }
}

/// A new release of files that others use, for them to prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Whose.
    pub of: Name,
    /// Which.
    pub release: ReleaseRef,
    /// No two offers of an agent's life have the same.
    pub number: u64,
}

/// What a user says to an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// To which offer.
    pub number: u64,
    /// That it proved it, or why not.
    pub result: Result<(), String>,
}

/// How files stand of which a user is on trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// They are on trial and will be offered.
    Pending,
    /// They are offered, by this number.
    Offered(u64),
    /// They are proved: nobody goes back.
    Active,
    /// Neither.
    Gone,
}

/// How the users of files stand that are on trial.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Users {
    /// There are none, or they all have them.
    #[default]
    None,
    /// They are to be asked.
    ToAsk,
    /// Files of this app are being proved first.
    Later(Name),
    /// This one cannot run now.
    Stuck(Name),
    /// These were asked and have not answered.
    Asked(Vec<Name>),
    /// One did not prove it, and why.
    Failed(Name, String),
}

/// An app's files cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It is not there.
    #[error("it uses the files of {0}, which is not on this box; roll that out first")]
    Missing(Name),
    /// It uses, itself or by way of others, the files of who would use it.
    #[error("it uses the files of {0}, which uses its own: neither could be proved; publish one of them without")]
    Circle(Name),
}

impl Unusable {
    /// One word for programs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Unusable::Missing(_) => "FilesMissing",
            Unusable::Circle(_) => "FilesCircle",
        }
    }
}

impl Default for Uses {
    fn default() -> Uses {
        Uses(watch::channel(Board::default()).0)
    }
}

impl Uses {
    /// Tells when an answer may be another.
    #[must_use]
    pub fn news(&self) -> UsesNews {
        UsesNews(self.0.subscribe())
    }

    /// These apps are on the box: before all of them told their word, or that there is none, nobody decides.
    pub fn expect(&self, apps: impl IntoIterator<Item = Name>) {
        self.0.send_modify(|board| board.expected.extend(apps));
    }

    /// Waits for those. Cancel safe.
    pub async fn all_told(&self) {
        // The sender is here: it is never closed.
        self.0.subscribe().wait_for(|board| board.expected.is_empty()).await.ok();
    }

    /// An app tells its word.
    pub fn tell(&self, app: &Name, word: Word) {
        self.0.send_if_modified(|board| {
            let was_expected = board.expected.remove(app);
            let closes = |before: &Word| before.closing && before.trial == word.trial;
            let closing = board.apps.get(app).is_some_and(closes);
            let before = board.apps.insert(app.clone(), Word { closing, ..word });
            was_expected || before.as_ref() != board.apps.get(app)
        });
    }

    /// An app has no word: it is gone, or what is known of it is lost.
    pub fn forget(&self, app: &Name) {
        self.0.send_if_modified(|board| {
            let was_expected = board.expected.remove(app);
            board.apps.remove(app).is_some() || was_expected
        });
    }

    /// The releases that a workload of `user` gets which uses these apps.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn resolve(&self, user: &Name, used: &BTreeSet<Name>) -> Result<BTreeMap<Name, ReleaseRef>, Unusable> {
        let board = self.0.borrow();
        let active = |app: &Name| {
            if board.is_used_by(user, app) {
                return Err(Unusable::Circle(app.clone()));
            }
            let active = board.apps.get(app).and_then(|word| word.active.clone());
            active.ok_or_else(|| Unusable::Missing(app.clone()))
        };
        used.iter().map(|app| Ok((app.clone(), active(app)?))).collect()
    }

    /// The files that are offered to who has these, and not those.
    #[must_use]
    pub fn offered(&self, has: &BTreeMap<Name, ReleaseRef>) -> Option<Offer> {
        let board = self.0.borrow();
        let (of, (release, number)) = board.apps.iter().find_map(|(of, word)| Some((of, word.offers()?)))?;
        let is_new = has.get(of)?.digest != release.digest;
        is_new.then(|| Offer { of: of.clone(), release: release.clone(), number })
    }

    /// Whether an offer stands.
    #[must_use]
    pub fn is_offered(&self, number: u64) -> bool {
        self.0.borrow().apps.values().any(|word| word.offers().is_some_and(|(_, offered)| offered == number))
    }

    /// An app begins to use these releases, if they are still the ones to use.
    #[must_use]
    pub fn claim(&self, app: &Name, uses: &BTreeMap<Name, ReleaseRef>) -> bool {
        let mut is_so = true;
        self.0.send_if_modified(|board| {
            let good = |(of, release): (&Name, &ReleaseRef)| {
                let is_active = |word: &Word| !word.closing && word.active.as_ref() == Some(release);
                board.apps.get(of).is_some_and(is_active) && !board.is_used_by(app, of)
            };
            is_so = uses.iter().all(good);
            if is_so && !uses.is_empty() {
                let word = board.apps.entry(app.clone()).or_default();
                for (of, release) in uses {
                    word.pins.entry(of.clone()).or_default().insert(release.digest);
                }
            }
            is_so && !uses.is_empty()
        });
        is_so
    }

    /// That a release on trial is good is about to be written; not if anybody who uses its files has not proved it.
    #[must_use]
    pub fn close(&self, of: &Name, release: Digest) -> bool {
        let mut is_so = true;
        self.0.send_if_modified(|board| {
            is_so = board.users(of, release) == Users::None;
            board.apps.get_mut(of).is_some_and(|word| std::mem::replace(&mut word.closing, is_so) != is_so)
        });
        is_so
    }

    /// How files stand that somebody has.
    #[must_use]
    pub fn standing(&self, of: &Name, release: &ReleaseRef) -> Standing {
        let board = self.0.borrow();
        let others_turn = board.apps.iter().any(|(app, word)| app != of && word.offer.is_some());
        match board.apps.get(of) {
            Some(word) if word.active.as_ref().is_some_and(|active| active.digest == release.digest) => {
                Standing::Active
            }
            Some(word) if word.trial.as_ref().is_some_and(|trial| trial.digest == release.digest) => match word.offer {
                Some(number) => Standing::Offered(number),
                None if others_turn => Standing::Gone,
                None => Standing::Pending,
            },
            _ => Standing::Gone,
        }
    }

    /// How those stand that use the files of `of`, of which this release is on trial.
    #[must_use]
    pub fn users(&self, of: &Name, release: Digest) -> Users {
        self.0.borrow().users(of, release)
    }

    /// The number of a new offer; `None` while another app's files are offered.
    #[must_use]
    pub fn offer(&self, app: &Name) -> Option<u64> {
        let mut number = None;
        self.0.send_if_modified(|board| {
            if board.apps.iter().any(|(other, word)| other != app && word.offer.is_some()) {
                return false;
            }
            let Some(word) = board.apps.get_mut(app) else { return false };
            board.offers += 1;
            word.offer = Some(board.offers);
            number = word.offer;
            true
        });
        number
    }

    /// Releases of an app that others' instances have, or go back to, and whose those are.
    #[must_use]
    pub fn held(&self, of: &Name) -> BTreeMap<Digest, Name> {
        let board = self.0.borrow();
        let others = board.apps.iter().filter(|(app, _)| *app != of);
        let pins =
            others.flat_map(|(app, word)| word.pins.get(of).into_iter().flatten().map(move |d| (*d, app.clone())));
        pins.collect()
    }

    /// Files of a release were found damaged by who wanted to use them.
    pub fn found_damaged(&self, of: &Name, release: Digest) {
        self.0.send_if_modified(|board| board.damaged.insert((of.clone(), release)));
    }

    /// Whether that was so, since it was asked last.
    #[must_use]
    pub fn take_damaged(&self, of: &Name, release: Digest) -> bool {
        let key = (of.clone(), release);
        if !self.0.borrow().damaged.contains(&key) {
            return false;
        }
        self.0.send_if_modified(|board| board.damaged.remove(&key))
    }
}

impl Board {
    /// Whether an app's files are used by another one, or by whom that one uses.
    fn is_used_by(&self, app: &Name, user: &Name) -> bool {
        let (mut seen, mut left) = (BTreeSet::new(), vec![user]);
        while let Some(user) = left.pop() {
            if user == app {
                return true;
            }
            if seen.insert(user) {
                left.extend(self.apps.get(user).into_iter().flat_map(|word| word.pins.keys()));
            }
        }
        false
    }

    /// Who has not proved a release whose files it uses; or who did not, and why.
    fn waiting(&self, of: &Name, release: Digest) -> Result<Vec<Name>, (Name, String)> {
        let offer = self.apps.get(of).and_then(|word| word.offer);
        let mut waiting = vec![];
        for (app, word) in self.apps.iter().filter(|(app, word)| *app != of && word.pins.contains_key(of)) {
            let answer = word.answer.as_ref().filter(|answer| offer == Some(answer.number));
            match answer.map(|answer| &answer.result) {
                Some(Err(why)) => return Err((app.clone(), why.clone())),
                Some(Ok(())) => {}
                None if word.settled.get(of) == Some(&release) => {}
                None => waiting.push(app.clone()),
            }
        }
        Ok(waiting)
    }

    fn users(&self, of: &Name, release: Digest) -> Users {
        let waiting = match self.waiting(of, release) {
            Ok(waiting) => waiting,
            Err((user, why)) => return Users::Failed(user, why),
        };
        for user in &waiting {
            let Some(word) = self.apps.get(user) else { continue };
            if word.stuck {
                return Users::Stuck(user.clone());
            }
            // It waits for its own users, and these do for us.
            let own = word.own_trial().map(|own| self.waiting(user, own.digest));
            if own.is_some_and(|waiting| waiting != Ok(vec![])) {
                return Users::Later(user.clone());
            }
        }
        let offer = self.apps.get(of).and_then(|word| word.offer);
        let first = self.apps.iter().find(|(app, word)| *app != of && word.offer.is_some());
        match (waiting.is_empty(), offer, first) {
            (true, ..) => Users::None,
            (false, Some(_), _) => Users::Asked(waiting),
            (false, None, Some((first, _))) => Users::Later(first.clone()),
            (false, None, None) => Users::ToAsk,
        }
    }
}
