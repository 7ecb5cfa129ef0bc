//! Time and tasks of one simulated host: quinn's runtime, a wall clock, and the tasks that die with it.
//!
//! All hosts share one paused tokio runtime: when everybody waits, time jumps to the next timer.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    task::{Context, Poll},
};

use jiff::{SignedDuration, Timestamp};
use proto::env::WallClock;
use tokio::{
    task::JoinHandle,
    time::{Instant, Sleep, sleep_until},
};

/// Calendar time at which every simulation starts: 2026-01-01T00:00:00Z.
pub const EPOCH_S: i64 = 1_767_225_600;

/// Wall clock of one host: virtual time plus how far this host is off.
#[derive(Clone)]
pub struct HostClock {
    start: Instant,
    offset_ms: Arc<AtomicI64>,
    wrong_ms: Arc<AtomicI64>,
}

impl HostClock {
    /// A clock that is right. `start` is the instant at which the simulation began.
    #[must_use]
    pub fn new(start: Instant) -> HostClock {
        HostClock { start, offset_ms: Arc::default(), wrong_ms: Arc::default() }
    }

    /// Sets how far the clock is off, in milliseconds; positive runs ahead.
    pub fn set_offset_ms(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }
}

impl HostClock {
    /// Sets how far a fault puts the clock off, beside [`HostClock::set_offset_ms`].
    pub fn set_wrong_ms(&self, wrong_ms: i64) {
        self.wrong_ms.store(wrong_ms, Ordering::Relaxed);
    }

    /// The same clock without what a fault puts it off: that of a person elsewhere.
    #[must_use]
    pub fn right(&self) -> HostClock {
        HostClock { wrong_ms: Arc::default(), ..self.clone() }
    }

    fn off_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Relaxed).saturating_add(self.wrong_ms.load(Ordering::Relaxed))
    }
}

impl WallClock for HostClock {
    fn now(&self) -> Timestamp {
        let passed = Instant::now().saturating_duration_since(self.start);
        let passed_ms = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
        let since_epoch = SignedDuration::from_millis(passed_ms.saturating_add(self.off_ms()));
        let epoch = Timestamp::constant(EPOCH_S, 0);
        epoch.checked_add(since_epoch).unwrap_or(epoch)
    }
}

impl fmt::Debug for HostClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostClock(off by {} ms)", self.off_ms())
    }
}

/// The tasks of one host between its start and its crash.
#[derive(Debug, Clone, Default)]
pub struct Tasks(Arc<Mutex<Vec<JoinHandle<()>>>>);

impl Tasks {
    /// Starts a task of the host.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(tokio::spawn(future));
    }

    /// Whether none of them goes on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().all(JoinHandle::is_finished)
    }

    /// Ends all of them where they stand, and returns when nothing of them is left.
    pub async fn kill(&self) {
        loop {
            let tasks = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
            if tasks.is_empty() {
                return;
            }
            tasks.iter().for_each(JoinHandle::abort);
            for task in tasks {
                let _ = task.await; // cancelled, or it was done
            }
        }
    }
}

/// quinn's runtime for one host.
#[derive(Debug, Clone)]
pub struct SimRuntime {
    tasks: Tasks,
}

impl SimRuntime {
    /// A runtime whose tasks belong to the host.
    #[must_use]
    pub fn new(tasks: Tasks) -> SimRuntime {
        SimRuntime { tasks }
    }
}

impl quinn::Runtime for SimRuntime {
    fn new_timer(&self, at: std::time::Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        Box::pin(SimTimer(Box::pin(sleep_until(at.into()))))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.tasks.spawn(future);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a simulated host has no socket of the operating system"))
    }

    /// The default is the standard library's clock, which does not stand still.
    fn now(&self) -> std::time::Instant {
        Instant::now().into_std()
    }
}

#[derive(Debug)]
struct SimTimer(Pin<Box<Sleep>>);

impl quinn::AsyncTimer for SimTimer {
    fn reset(mut self: Pin<&mut Self>, at: std::time::Instant) {
        self.0.as_mut().reset(at.into());
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.0.as_mut(), cx)
    }
}
