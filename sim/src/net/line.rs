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

use super::profile::Profile;

/// Chance in a burst that a datagram is lost.
const BURST_LOSS_PPM: u32 = 600_000;

/// Why a datagram does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// The line is cut.
    Cut,
    /// A firewall lets no UDP through.
    Blocked,
    /// It is larger than the line carries.
    Mtu,
    /// It is addressed to where the NAT in front of a box has nothing any more.
    Nat,
    /// The queue in front of the line is full.
    Queue,
    /// By chance.
    Chance,
    /// The line is down by itself, as one that flaps is.
    Flap,
}

impl Loss {
    /// The word for it in a trace.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Loss::Cut => "cut",
            Loss::Blocked => "blocked",
            Loss::Mtu => "mtu",
            Loss::Nat => "nat",
            Loss::Queue => "queue",
            Loss::Chance => "loss",
            Loss::Flap => "flap",
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
    /// Of these, those lost to a cut; not those that a line lost that was down by itself.
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
    burst_until: Option<Instant>,
    /// When it goes up or down next, and whether it is down until then.
    flap: Option<(Instant, bool)>,
    /// When the last byte that was accepted has left the sender's end.
    free_at: Option<Instant>,
    /// No datagram overtakes another unless the profile says so.
    last_arrival: Option<Instant>,
    jitter: ChaCha12Rng,
    loss: ChaCha12Rng,
    duplicate: ChaCha12Rng,
    reorder: ChaCha12Rng,
    burst: ChaCha12Rng,
    flapping: ChaCha12Rng,
    pub(super) counters: Counters,
}

impl Line {
    /// A line with its random streams, which `seed` should give to no other; but that of `flaps`, which the
    /// other direction has as well.
    #[must_use]
    pub fn new(profile: Profile, seed: &Seed, flaps: &Seed) -> Line {
        Line {
            profile,
            cut: false,
            blocked: false,
            burst_until: None,
            flap: None,
            free_at: None,
            last_arrival: None,
            jitter: seed.stream("jitter"),
            loss: seed.stream("loss"),
            duplicate: seed.stream("duplicate"),
            reorder: seed.stream("reorder"),
            burst: seed.stream("burst"),
            flapping: flaps.stream("flapping"),
            counters: Counters::default(),
        }
    }

    /// Changes how it behaves from now on. One that flaps goes down first after a while.
    pub fn set_profile(&mut self, profile: Profile, now: Instant) {
        if self.profile.flaps != profile.flaps {
            self.flap = profile.flaps.map(|(up, _)| (now + about(&mut self.flapping, up), false));
        }
        self.profile = profile;
    }

    /// Whether it is down now, as a line that flaps is.
    fn is_down(&mut self, now: Instant) -> bool {
        let (Some((up, down)), Some((mut next, mut is_down))) = (self.profile.flaps, self.flap) else { return false };
        while next <= now {
            is_down = !is_down;
            next += about(&mut self.flapping, if is_down { down } else { up });
        }
        self.flap = Some((next, is_down));
        is_down
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

    /// Whether it is cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// When a piece of a TCP stream has arrived whole; `None` while nothing passes. What is lost by chance comes
    /// `again` later, and a firewall against UDP lets it through.
    pub fn carry(&mut self, now: Instant, bytes: usize, again: Duration) -> Option<Instant> {
        let length = u64::try_from(bytes).unwrap_or(u64::MAX);
        let jitter_us = u64::try_from(self.profile.jitter.as_micros()).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(self.jitter.random_range(0..=jitter_us));
        let lost = chance(&mut self.loss, self.profile.loss_ppm);
        self.counters.sent += 1;
        self.counters.sent_bytes += length;
        if self.cut || self.is_down(now) {
            self.counters.lost += 1;
            self.counters.lost_cut += u64::from(self.cut);
            return None;
        }
        let begin = self.free_at.map_or(now, |free| free.max(now));
        let left = self.profile.bytes_per_s.map_or(now, |rate| begin + duration_of(length, rate));
        self.free_at = Some(left);
        let at = left + self.profile.latency + jitter + if lost { again } else { Duration::ZERO };
        let at = self.last_arrival.map_or(at, |last| at.max(last));
        self.last_arrival = Some(at);
        self.counters.arrived += 1;
        self.counters.arrived_bytes += length;
        Some(at)
    }

    fn decide(&mut self, now: Instant, bytes: usize, length: u64) -> Fate {
        let jitter_us = u64::try_from(self.profile.jitter.as_micros()).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(self.jitter.random_range(0..=jitter_us));
        let lost = chance(&mut self.loss, self.profile.loss_ppm);
        let twice = chance(&mut self.duplicate, self.profile.duplicate_ppm);
        let held_back = chance(&mut self.reorder, self.profile.reorder_ppm);
        let burst_begins = chance(&mut self.burst, self.profile.burst_ppm);
        let lost_in_burst = chance(&mut self.burst, BURST_LOSS_PPM);
        if burst_begins {
            self.burst_until = Some(now + self.profile.burst);
        }
        let lost = lost || (lost_in_burst && self.burst_until.is_some_and(|until| now < until));
        if self.cut {
            return Fate::Lost(Loss::Cut);
        }
        if self.is_down(now) {
            return Fate::Lost(Loss::Flap);
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

/// From half of it to one and a half times it; never nothing.
fn about(stream: &mut ChaCha12Rng, time: Duration) -> Duration {
    let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 2).max(2);
    Duration::from_micros(stream.random_range(us / 2..us.saturating_add(us / 2)))
}

pub(super) fn chance(stream: &mut ChaCha12Rng, ppm: u32) -> bool {
    stream.random_range(0..1_000_000) < ppm
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(change: impl FnOnce(&mut Profile)) -> Line {
        let mut profile = Profile::local();
        change(&mut profile);
        Line::new(profile, &Seed::from_u64(1), &Seed::from_u64(2))
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

    #[tokio::test(start_paused = true)]
    async fn a_line_flaps_both_ways_at_once_and_loses_in_bursts() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let flapping = Profile { flaps: Some((second * 60, second * 20)), ..Profile::local() };
        let mut lines = [1, 2].map(|seed| Line::new(Profile::local(), &Seed::from_u64(seed), &Seed::from_u64(3)));
        lines.iter_mut().for_each(|line| line.set_profile(flapping.clone(), start));
        let mut down = 0;
        for step in 0..10_000 {
            let fates = lines.each_mut().map(|line| line.send(start + second * step, 100));
            assert_eq!(fates[0], fates[1]);
            down += u32::from(fates[0] == Fate::Lost(Loss::Flap));
        }
        assert!((2_000..3_000).contains(&down), "{down} of 10,000 s");
        assert_eq!(lines[0].counters.lost_cut, 0, "what a line does by itself is no cut");

        let mut line = line(|p| (p.burst_ppm, p.burst) = (1_000, second));
        let ms = Duration::from_millis(10);
        let lost: Vec<bool> =
            (0..100_000).map(|i| line.send(start + ms * i, 100) == Fate::Lost(Loss::Chance)).collect();
        let pairs = lost.windows(2).filter(|pair| pair[0] && pair[1]).count();
        let count = lost.iter().filter(|lost| **lost).count();
        assert!(count > 3_000 && pairs * 3 > count, "{count} lost, {pairs} after another");
    }
}
