//! What is killed in which round, and when: drawn from a seed, one random stream a purpose. No I/O.

use std::time::Duration;

use proto::env::Seed;
use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;

/// Latest moment of a round at which something is killed.
const LATEST: Duration = Duration::from_millis(250);
/// Most records that are acknowledged by the others before what was killed is started again.
const MOST_MEANWHILE: u64 = 200;
/// Share of the rounds in which two are killed at once.
const TWO_AT_ONCE: f64 = 0.3;

/// What is killed or cut. A number is that of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// `kill -9` of its agent.
    Agent(usize),
    /// `kill -9` of the hub.
    Hub,
    /// `kill -9` of all processes of Postgres.
    Postgres,
    /// Its line holds everything until it is healed, and delivers it late.
    Cut(usize),
    /// Its line loses everything until it is mended, and comes back from another address.
    Broken(usize),
}

/// The kinds that are counted.
pub const KINDS: [&str; 5] = ["agent", "hub", "postgres", "line cut", "line broken"];

impl Victim {
    /// Which kind.
    pub fn kind(self) -> &'static str {
        match self {
            Victim::Agent(_) => KINDS[0],
            Victim::Hub => KINDS[1],
            Victim::Postgres => KINDS[2],
            Victim::Cut(_) => KINDS[3],
            Victim::Broken(_) => KINDS[4],
        }
    }

    /// Whether both touch the same thing.
    fn is_beside(self, other: Victim) -> bool {
        let line = |victim| match victim {
            Victim::Cut(of) | Victim::Broken(of) => Some(of),
            _ => None,
        };
        self.kind() == other.kind() || line(self).is_some_and(|of| line(other) == Some(of))
    }
}

/// One round.
#[derive(Debug, Clone)]
pub struct Round {
    /// What is killed, in this order.
    pub victims: Vec<Victim>,
    /// When, counted from the moment at which everything flows.
    pub moment: Duration,
    /// Records that others take before anything is started again.
    pub meanwhile: u64,
    /// Whether what was killed last is started first.
    pub last_first: bool,
}

/// Draws rounds.
#[derive(Debug)]
pub struct Plan {
    boxes: usize,
    victims: ChaCha12Rng,
    moments: ChaCha12Rng,
    returns: ChaCha12Rng,
}

impl Plan {
    /// Of a seed, for so many boxes.
    pub fn new(seed: u64, boxes: usize) -> Plan {
        let seed = Seed::from_u64(seed);
        Plan {
            boxes,
            victims: seed.stream("victims"),
            moments: seed.stream("moments"),
            returns: seed.stream("returns"),
        }
    }

    /// The next round.
    pub fn draw(&mut self) -> Round {
        let mut victims = vec![self.victim()];
        while victims.len() < 2 && self.victims.random_bool(TWO_AT_ONCE) {
            let second = self.victim();
            victims.extend((!second.is_beside(victims[0])).then_some(second));
        }
        Round {
            victims,
            moment: LATEST.mul_f64(self.moments.random_range(0.0..=1.0)),
            meanwhile: self.returns.random_range(0..=MOST_MEANWHILE),
            last_first: self.returns.random_bool(0.5),
        }
    }

    fn victim(&mut self) -> Victim {
        let of = self.victims.random_range(0..self.boxes);
        match self.victims.random_range(0..8) {
            0 | 1 => Victim::Agent(of),
            2 | 3 => Victim::Hub,
            4 | 5 => Victim::Postgres,
            6 => Victim::Cut(of),
            _ => Victim::Broken(of),
        }
    }
}

#[test]
fn a_seed_repeats_and_every_kind_comes() {
    let rounds = |seed| {
        let mut plan = Plan::new(seed, 2);
        (0..200).map(|_| plan.draw()).collect::<Vec<_>>()
    };
    assert_eq!(format!("{:?}", rounds(1)), format!("{:?}", rounds(1)));
    assert_ne!(format!("{:?}", rounds(1)), format!("{:?}", rounds(2)));
    for seed in 0..100 {
        let rounds = rounds(seed);
        for kind in KINDS {
            assert!(rounds.iter().any(|r| r.victims.iter().any(|v| v.kind() == kind)), "{kind} with {seed}");
        }
        assert!(rounds.iter().any(|r| r.victims.len() == 2));
        assert!(rounds.iter().all(|r| r.victims.len() == 1 || !r.victims[0].is_beside(r.victims[1])));
    }
}
