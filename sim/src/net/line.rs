//! One direction of a line between two hosts: what becomes of a datagram that is sent down it.
//!
//! A pure machine with `now` as an argument. [`super::Net`] owns one a direction and asks it for the
//! [`Fate`] of each datagram. Each kind of fault draws from a random stream of its own, once a datagram
//! whether it is switched on or not, so that turning one knob leaves all other draws as they were.

use std::time::Duration;

use proto::env::Seed;
use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;
use tokio::time::Instant;

/// How a line behaves. Chances are in parts per million of datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Time from end to end, of an empty line.
    pub latency: Duration,
    /// Most that is added to it by chance.
    pub jitter: Duration,
    /// Chance that a datagram is lost.
    pub loss_ppm: u32,
    /// Chance that it arrives twice.
    pub duplicate_ppm: u32,
    /// Chance that it is held back and later ones overtake it.
    pub reorder_ppm: u32,
    /// How long it is held back.
    pub reorder_delay: Duration,
    /// Bytes a second; absent is unlimited.
    pub bytes_per_s: Option<u64>,
    /// Bytes that wait in front of a full line; what comes beyond is dropped.
    pub queue_bytes: u64,
    /// Largest datagram in bytes; a larger one is dropped.
    pub mtu_bytes: usize,
    /// How the other direction is, from the hub to the box, where it is not the same.
    pub back: Option<Box<Profile>>,
}

impl Profile {
    /// A line inside a building: 1 ms and nothing wrong.
    #[must_use]
    pub fn local() -> Profile {
        Profile {
            latency: Duration::from_millis(1),
            jitter: Duration::ZERO,
            loss_ppm: 0,
            duplicate_ppm: 0,
            reorder_ppm: 0,
            reorder_delay: Duration::ZERO,
            bytes_per_s: None,
            queue_bytes: 1 << 20,
            mtu_bytes: 1472,
            back: None,
        }
    }

    /// A line to a transfer center: 20 Mbit/s, 25 ms each way, and a little of everything that goes wrong.
    #[must_use]
    pub fn edge() -> Profile {
        Profile {
            latency: Duration::from_millis(25),
            jitter: Duration::from_millis(5),
            loss_ppm: 2_000,
            duplicate_ppm: 500,
            reorder_ppm: 1_000,
            reorder_delay: Duration::from_millis(20),
            bytes_per_s: Some(2_500_000),
            queue_bytes: 256 << 10,
            mtu_bytes: 1472,
            back: None,
        }
    }
}

impl Profile {
    /// The direction from a box to the hub alone.
    #[must_use]
    pub fn up(&self) -> Profile {
        Profile { back: None, ..self.clone() }
    }

    /// The direction from the hub to a box alone.
    #[must_use]
    pub fn down(&self) -> Profile {
        self.back.as_ref().map_or_else(|| self.up(), |back| back.up())
    }
}

/// Why a datagram does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// The line is cut.
    Cut,
    /// A firewall lets no UDP through.
    Blocked,
    /// It is larger than the line carries.
    Mtu,
    /// The queue in front of the line is full.
    Queue,
    /// By chance.
    Chance,
}

impl Loss {
    /// The word for it in a trace.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Loss::Cut => "cut",
            Loss::Blocked => "blocked",
            Loss::Mtu => "mtu",
            Loss::Queue => "queue",
            Loss::Chance => "loss",
        }
    }
}

/// What becomes of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives then.
    Arrives(Instant),
    /// It arrives at both times.
    ArrivesTwice(Instant, Instant),
    /// It does not arrive, for this reason.
    Lost(Loss),
}

/// What went down a line so far. Bytes are those of datagrams, without IP and UDP headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that were sent.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Datagrams that arrived, duplicates included.
    pub arrived: u64,
    /// Their bytes.
    pub arrived_bytes: u64,
    /// Datagrams that were lost, for whatever reason.
    pub lost: u64,
    /// Of these, those lost to a cut.
    pub lost_cut: u64,
    /// Of these, those that a firewall held back.
    pub lost_blocked: u64,
}

/// One direction of a line.
#[derive(Debug)]
pub struct Line {
    profile: Profile,
    cut: bool,
    blocked: bool,
    /// When the last byte that was accepted has left the sender's end.
    free_at: Option<Instant>,
    /// No datagram overtakes another unless the profile says so.
    last_arrival: Option<Instant>,
    jitter: ChaCha12Rng,
    loss: ChaCha12Rng,
    duplicate: ChaCha12Rng,
    reorder: ChaCha12Rng,
    pub(super) counters: Counters,
}

impl Line {
    /// A line with its random streams, which `seed` should give to no other.
    #[must_use]
    pub fn new(profile: Profile, seed: &Seed) -> Line {
        Line {
            profile,
            cut: false,
            blocked: false,
            free_at: None,
            last_arrival: None,
            jitter: seed.stream("jitter"),
            loss: seed.stream("loss"),
            duplicate: seed.stream("duplicate"),
            reorder: seed.stream("reorder"),
            counters: Counters::default(),
        }
    }

    /// Changes how it behaves from now on.
    pub fn set_profile(&mut self, profile: Profile) {
        self.profile = profile;
    }

    /// Cuts it, or mends it. What is on the way still arrives. Returns whether that changes it.
    pub fn set_cut(&mut self, cut: bool) -> bool {
        std::mem::replace(&mut self.cut, cut) != cut
    }

    /// Whether it is cut, or a firewall lets no UDP through.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.cut || self.blocked
    }

    /// Sets up a firewall that lets no UDP through, or takes it away. What is on the way still arrives.
    pub fn set_blocked(&mut self, blocked: bool) {
        self.blocked = blocked;
    }

    /// Decides about a datagram that is sent now.
    pub fn send(&mut self, now: Instant, bytes: usize) -> Fate {
        let length = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.counters.sent += 1;
        self.counters.sent_bytes += length;
        let fate = self.decide(now, bytes, length);
        if let Fate::Lost(why) = fate {
            self.counters.lost += 1;
            self.counters.lost_cut += u64::from(why == Loss::Cut);
            self.counters.lost_blocked += u64::from(why == Loss::Blocked);
        }
        fate
    }

    fn decide(&mut self, now: Instant, bytes: usize, length: u64) -> Fate {
        let jitter_us = u64::try_from(self.profile.jitter.as_micros()).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(self.jitter.random_range(0..=jitter_us));
        let lost = chance(&mut self.loss, self.profile.loss_ppm);
        let twice = chance(&mut self.duplicate, self.profile.duplicate_ppm);
        let held_back = chance(&mut self.reorder, self.profile.reorder_ppm);
        if self.cut {
            return Fate::Lost(Loss::Cut);
        }
        if self.blocked {
            return Fate::Lost(Loss::Blocked);
        }
        if bytes > self.profile.mtu_bytes {
            return Fate::Lost(Loss::Mtu);
        }
        let Some(left) = self.transmit(now, length) else { return Fate::Lost(Loss::Queue) };
        if lost {
            return Fate::Lost(Loss::Chance);
        }
        let mut at = left + self.profile.latency + jitter;
        if held_back {
            at += self.profile.reorder_delay;
        } else {
            at = self.last_arrival.map_or(at, |last| at.max(last));
            self.last_arrival = Some(at);
        }
        if twice { Fate::ArrivesTwice(at, at + self.profile.latency) } else { Fate::Arrives(at) }
    }

    /// When the datagram's last byte has left, or nothing when the queue has no room for it.
    fn transmit(&mut self, now: Instant, length: u64) -> Option<Instant> {
        let Some(rate) = self.profile.bytes_per_s else { return Some(now) };
        let begin = self.free_at.map_or(now, |free| free.max(now));
        let waiting = begin.saturating_duration_since(now);
        if waiting.as_micros() > duration_of(self.profile.queue_bytes, rate).as_micros() {
            return None;
        }
        let end = begin + duration_of(length, rate);
        self.free_at = Some(end);
        Some(end)
    }
}

fn duration_of(bytes: u64, bytes_per_s: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / bytes_per_s.max(1))
}

fn chance(stream: &mut ChaCha12Rng, ppm: u32) -> bool {
    stream.random_range(0..1_000_000) < ppm
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(change: impl FnOnce(&mut Profile)) -> Line {
        let mut profile = Profile::local();
        change(&mut profile);
        Line::new(profile, &Seed::from_u64(1))
    }

    #[tokio::test(start_paused = true)]
    async fn bandwidth_spreads_datagrams_and_a_full_queue_drops() {
        let now = Instant::now();
        let mut line = line(|p| {
            p.bytes_per_s = Some(100_000);
            p.queue_bytes = 2_500;
        });
        let ms = Duration::from_millis;
        assert_eq!(line.send(now, 1000), Fate::Arrives(now + ms(11)));
        assert_eq!(line.send(now, 1000), Fate::Arrives(now + ms(21)));
        assert_eq!(line.send(now, 1000), Fate::Arrives(now + ms(31)));
        assert_eq!(line.send(now, 1000), Fate::Lost(Loss::Queue));
        assert_eq!(line.send(now + ms(30), 1000), Fate::Arrives(now + ms(41)));
        assert_eq!((line.counters.sent, line.counters.lost), (5, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn faults_come_as_often_as_asked_and_disturb_no_other() {
        let now = Instant::now();
        let fates = |loss_ppm, duplicate_ppm| {
            let mut line = line(|p| (p.loss_ppm, p.duplicate_ppm) = (loss_ppm, duplicate_ppm));
            (0..10_000).map(|_| line.send(now, 100)).collect::<Vec<_>>()
        };
        let lost = |fates: &[Fate]| fates.iter().map(|f| matches!(f, Fate::Lost(_))).collect::<Vec<_>>();
        let (plain, doubled) = (fates(100_000, 0), fates(100_000, 500_000));
        assert_eq!(lost(&plain), lost(&doubled), "duplication changed which datagrams are lost");
        let count = lost(&plain).iter().filter(|l| **l).count();
        assert!((900..1100).contains(&count), "{count} of 10,000 lost at one in ten");
    }

    #[tokio::test(start_paused = true)]
    async fn jitter_alone_reorders_nothing_and_a_cut_line_loses_all() {
        let now = Instant::now();
        let mut line = line(|p| p.jitter = Duration::from_millis(50));
        let mut last = now;
        for _ in 0..1000 {
            let Fate::Arrives(at) = line.send(now, 100) else { panic!("lost") };
            assert!(at >= last);
            last = at;
        }
        line.set_cut(true);
        assert_eq!(line.send(now, 100), Fate::Lost(Loss::Cut));
        line.set_cut(false);
        assert_eq!(line.send(now, 1473), Fate::Lost(Loss::Mtu));
    }
}
