//! Bodies of requests within bounds of size, time and memory.
//!
//! All requests together share [`BUDGET_KIB`]: a body takes its share as it arrives, so that one that
//! only announces itself takes nothing.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

/// Bytes of one body.
pub(super) const MAX_BODY_BYTES: usize = 8 << 20;
/// KiB of all bodies together.
pub(super) const BUDGET_KIB: usize = 16 << 10;
/// Nothing came for this long: the producer is gone or stuck.
const IDLE: Duration = Duration::from_secs(10);
/// A body takes no longer than this.
const WHOLE: Duration = Duration::from_secs(60);
/// What is still read of a refused body, so that its sender gets to read the answer.
const DRAIN: Duration = Duration::from_secs(5);
const MAX_DRAIN_BYTES: usize = 64 << 20;

/// A whole body, and its share of the memory for as long as it is used.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

/// Why there is no whole body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// Over [`MAX_BODY_BYTES`].
    TooLarge,
    /// Over the time that it may take.
    Slow,
    /// The memory of all bodies is used up.
    Crowded,
    /// The connection ended within it.
    Cut,
}

/// Reads a body to its end.
pub(super) async fn read(incoming: &mut Incoming, budget: &Arc<Semaphore>) -> Result<Body, Broken> {
    let announced = incoming.size_hint().lower();
    if announced > MAX_BODY_BYTES as u64 {
        return Err(Broken::TooLarge);
    }
    let until = Instant::now() + WHOLE;
    let (mut first, mut all) = (Bytes::new(), BytesMut::new());
    let mut share: Option<OwnedSemaphorePermit> = None;
    let mut total = 0;
    loop {
        let next = timeout_at(until.min(Instant::now() + IDLE), incoming.frame());
        let data = match next.await {
            Err(_) => return Err(Broken::Slow),
            Ok(None) => break,
            Ok(Some(Err(_))) => return Err(Broken::Cut),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => data,
                Err(_) => continue, // trailers
            },
        };
        total += data.len();
        if total > MAX_BODY_BYTES {
            return Err(Broken::TooLarge);
        }
        let held = share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(total.div_ceil(1024).saturating_sub(held)).unwrap_or(u32::MAX);
        let more = budget.clone().try_acquire_many_owned(more).map_err(|_| Broken::Crowded)?;
        match &mut share {
            Some(share) => share.merge(more),
            None => share = Some(more),
        }
        // Most bodies come in one piece and are not copied.
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            if all.is_empty() {
                // Reserved, not touched: memory is taken as it is written.
                all.reserve(usize::try_from(announced).unwrap_or(0));
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&data);
        }
    }
    let bytes = if all.is_empty() { first } else { all.freeze() };
    Ok(Body { bytes, _share: share })
}

/// Reads what is left of a refused body for a while and forgets it: a connection that is closed with
/// unread bytes in it is reset, and the answer lost with it.
pub(super) async fn drain(mut incoming: Incoming) {
    let mut left = MAX_DRAIN_BYTES;
    let rest = async {
        while let Some(Ok(frame)) = incoming.frame().await {
            match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(less) => left = less,
                None => break,
            }
        }
    };
    timeout(DRAIN, rest).await.ok();
}
