//! The time that metadata is judged by.
//!
//! The latest of the clock, [`BUILT`], and the newest issue time that a release was signed with here. Only what is
//! signed offline raises it: a clock that was ahead, or a hub that lies, locks nobody out. So a clock that fell back
//! makes metadata fresh again that expired after that time, and none that expired before it.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::Timestamp;
use proto::env::WallClock;

/// 2026-01-01: this program is no older. Raised with each version; a build script that asked the clock would
/// make two builds of one source differ.
pub const BUILT: Timestamp = Timestamp::constant(1_767_225_600, 0);

/// The clock with its floor. Clones share the floor.
#[derive(Debug, Clone)]
pub struct TrustedClock {
    wall: Arc<dyn WallClock>,
    floor_s: Arc<AtomicI64>,
}

impl TrustedClock {
    /// With nothing signed seen yet.
    #[must_use]
    pub fn new(wall: Arc<dyn WallClock>) -> TrustedClock {
        TrustedClock { wall, floor_s: Arc::new(AtomicI64::new(BUILT.as_second())) }
    }

    /// The trusted time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.wall.now().max(self.floor())
    }

    /// The lowest that it may be.
    #[must_use]
    pub fn floor(&self) -> Timestamp {
        Timestamp::from_second(self.floor_s.load(Ordering::Relaxed)).unwrap_or(BUILT)
    }

    /// Raises the floor to a time that was signed offline.
    pub fn raise(&self, signed: Timestamp) {
        self.floor_s.fetch_max(signed.as_second(), Ordering::Relaxed);
    }
}
