//! A congestion window that keeps the line's queue short, so that what is urgent has little before it.
//!
//! A controller that goes by loss alone fills whatever buffer the line has: seconds of it on a thin one,
//! and a fresh scan waits behind them, whatever its priority here. Around such a controller this puts a
//! cap that goes by delay (as LEDBAT, RFC 6817): while round trips take longer than the shortest one known
//! by more than [`TARGET`] it shrinks, otherwise it grows. It never lets more through than the controller
//! within, and never less than [`FLOOR_PACKETS`], so that others who fill the queue do not starve us.
//!
//! The agent sends so always. The hub does through a broker: TCP hides there what the line loses, so that nothing
//! but the round trip tells of a full queue.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

/// Time in the line's queue that is aimed at.
const TARGET: Duration = Duration::from_millis(100);
/// Packets that may always be on their way.
const FLOOR_PACKETS: u64 = 4;
/// Round trips of which the shortest counts: one that was held up by chance says nothing.
const RECENT: usize = 4;
/// The shortest round trip is remembered for so long, at most twice as long: a route may become longer.
const REMEMBER: Duration = Duration::from_secs(300);

/// Makes controllers with a cap around those that another makes.
#[derive(Debug)]
pub struct ShallowConfig<F> {
    inner: Arc<F>,
    on: Arc<AtomicBool>,
}

impl<F> ShallowConfig<F> {
    /// Around what `inner` makes; the cap holds while `on` says so.
    #[must_use]
    pub fn new(inner: F, on: Arc<AtomicBool>) -> ShallowConfig<F> {
        ShallowConfig { inner: Arc::new(inner), on }
    }
}

impl<F: ControllerFactory + Send + Sync + 'static> ControllerFactory for ShallowConfig<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = Arc::clone(&self.inner).build(now, current_mtu);
        Box::new(Shallow { inner, on: Arc::clone(&self.on), cap: Cap::new(now, current_mtu) })
    }
}

/// A controller and its cap.
struct Shallow {
    inner: Box<dyn Controller>,
    on: Arc<AtomicBool>,
    cap: Cap,
}

impl Shallow {
    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// A packet arrived that was sent at `sent`.
    fn learn(&mut self, now: Instant, sent: Instant) {
        self.cap.acked(now, sent, self.inner.window());
        if !self.is_on() {
            self.cap.bytes = u64::MAX; // what is known of the line stays
        }
    }

    /// Whether it is the cap that rules.
    fn is_capped(&self) -> bool {
        self.is_on() && self.cap.bytes < self.inner.window()
    }
}

impl Controller for Shallow {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        // A window that is not used up does not prove itself: it must not grow.
        let capped = self.is_capped();
        self.inner.on_ack(now, sent, bytes, app_limited || capped, rtt);
        self.learn(now, sent);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        let capped = self.is_capped();
        self.inner.on_end_acks(now, in_flight, app_limited || capped, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        if self.is_capped() {
            self.cap.lost(now, sent);
        }
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
        self.cap.mtu = new_mtu.into();
    }

    fn window(&self) -> u64 {
        let window = self.inner.window();
        if self.is_on() { window.min(self.cap.bytes) } else { window }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Shallow { inner: self.inner.clone_box(), on: Arc::clone(&self.on), cap: self.cap.clone() })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// The cap.
#[derive(Debug, Clone)]
struct Cap {
    /// `u64::MAX`: none.
    bytes: u64,
    mtu: u64,
    /// What was sent after it tells what its last change did.
    changed: Instant,
    recent: [Duration; RECENT],
    /// The shortest round trip: of the while before, of this one, and when this one began.
    shortest: (Duration, Duration, Instant),
}

impl Cap {
    fn new(now: Instant, mtu: u16) -> Cap {
        let never = Duration::MAX;
        Cap {
            bytes: u64::MAX,
            mtu: mtu.into(),
            changed: now,
            recent: [Duration::ZERO; RECENT],
            shortest: (never, never, now),
        }
    }

    /// A packet arrived that was sent at `sent`; the controller within allows `window`.
    fn acked(&mut self, now: Instant, sent: Instant, window: u64) {
        let took = now.saturating_duration_since(sent);
        self.recent.rotate_left(1);
        if let Some(last) = self.recent.last_mut() {
            *last = took;
        }
        let (before, shortest, since) = &mut self.shortest;
        if now.saturating_duration_since(*since) > REMEMBER {
            (*before, *shortest, *since) = (*shortest, took, now);
        }
        *shortest = took.min(*shortest);
        let shortest = (*shortest).min(*before);
        if sent < self.changed {
            return;
        }
        self.changed = now;
        let took = self.recent.iter().min().copied().unwrap_or_default();
        let window = window.min(self.bytes);
        if took > shortest + TARGET {
            let fits = window as f64 * (shortest + TARGET).as_secs_f64() / took.as_secs_f64();
            self.bytes = (fits as u64).max(window / 2).max(FLOOR_PACKETS * self.mtu);
        } else if self.bytes < u64::MAX {
            self.bytes = self.bytes.saturating_add((self.bytes / 8).max(self.mtu));
        }
    }

    /// A packet was lost that was sent at `sent`, while the cap ruled.
    fn lost(&mut self, now: Instant, sent: Instant) {
        if sent >= self.changed {
            self.changed = now;
            self.bytes = (self.bytes / 10 * 7).max(FLOOR_PACKETS * self.mtu);
        }
    }
}

#[cfg(test)]
mod tests {
    use quinn::congestion::CubicConfig;
    use tokio::time::Instant as Clock;

    use super::*;

    const MTU: u16 = 1452;
    const WIDE: u64 = 10 << 20;
    /// Two steps of an eighth past the target: a round trip that is too long is seen one step late.
    const OVERSHOOT: f64 = 81.0 / 64.0;

    /// A line that is kept full: each round the whole window is sent. Returns the last round trips.
    fn rounds(cap: &mut Cap, now: &mut Instant, count: u32, base: Duration, bytes_per_s: u64) -> Duration {
        let mut took = base;
        for _ in 0..count {
            let sent = *now;
            took = base.max(Duration::from_secs_f64(cap.bytes.min(WIDE) as f64 / bytes_per_s as f64));
            *now += took;
            for _ in 0..RECENT {
                cap.acked(*now, sent, WIDE);
            }
        }
        took
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_of_a_thin_line_stays_short() {
        let mut now = Clock::now().into_std();
        let (mut cap, base) = (Cap::new(now, MTU), Duration::from_millis(300));
        let most = (base + TARGET).mul_f64(OVERSHOOT);
        cap.acked(now + base, now, WIDE);
        now += base;
        let took = rounds(&mut cap, &mut now, 40, base, 100_000);
        assert!(took > base && took <= most, "{took:?} with {cap:?}");
        // What filled the line goes away: the cap gives way.
        let took = rounds(&mut cap, &mut now, 40, base, 10_000_000);
        assert!(cap.bytes > 2_000_000 && took <= most, "{took:?} with {cap:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn others_that_fill_the_queue_leave_the_floor() {
        let mut now = Clock::now().into_std();
        let mut cap = Cap::new(now, MTU);
        cap.acked(now + Duration::from_millis(20), now, WIDE);
        rounds(&mut cap, &mut now, 40, Duration::from_secs(2), 1_000_000);
        assert_eq!(cap.bytes, FLOOR_PACKETS * u64::from(MTU));
        let sent = now;
        cap.lost(now + Duration::from_secs(2), sent);
        assert_eq!(cap.bytes, FLOOR_PACKETS * u64::from(MTU));
    }

    #[tokio::test(start_paused = true)]
    async fn a_route_that_became_longer_is_learned() {
        let mut now = Clock::now().into_std();
        let mut cap = Cap::new(now, MTU);
        cap.acked(now + Duration::from_millis(20), now, WIDE);
        let base = Duration::from_millis(500);
        for _ in 0..2 {
            rounds(&mut cap, &mut now, 700, base, 1_000_000);
        }
        assert!(cap.bytes > 400_000, "{cap:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_holds_while_it_is_on_and_knows_the_line_from_before() {
        let (mut now, on) = (Clock::now().into_std(), Arc::new(AtomicBool::new(false)));
        let inner = Arc::new(CubicConfig::default()).build(now, MTU);
        let mut window = Shallow { inner, on: Arc::clone(&on), cap: Cap::new(now, MTU) };
        let mut round = |window: &mut Shallow, took: Duration| {
            let sent = now;
            now += took;
            (0..RECENT).for_each(|_| window.learn(now, sent));
        };
        round(&mut window, Duration::from_millis(20));
        (0..10).for_each(|_| round(&mut window, Duration::from_secs(1)));
        let alone = window.inner.window();
        assert_eq!(window.window(), alone, "it is off");
        on.store(true, Ordering::Relaxed);
        (0..10).for_each(|_| round(&mut window, Duration::from_secs(1)));
        assert_eq!(window.window(), FLOOR_PACKETS * u64::from(MTU));
        assert_eq!(window.clone_box().window(), window.window());
        on.store(false, Ordering::Relaxed);
        assert_eq!(window.window(), alone);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_without_a_queue_has_no_cap() {
        let mut now = Clock::now().into_std();
        let mut cap = Cap::new(now, MTU);
        rounds(&mut cap, &mut now, 40, Duration::from_millis(20), u64::MAX);
        assert_eq!(cap.bytes, u64::MAX);
    }
}
