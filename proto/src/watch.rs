//! A value that many may wait on: what `tokio::sync::watch` is, with receivers that wake in the order in
//! which they began to wait.
//!
//! Tokio spreads waiting receivers over eight lists, at random, to spare its locks on many cores. Two
//! receivers of one value then run in an order that differs from run to run, and the simulator could not
//! repeat one. Its random numbers can be seeded only in builds with `--cfg tokio_unstable`. Values here
//! have few receivers, so one list is no loss.

use std::{
    fmt,
    ops::Deref,
    pin::pin,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

/// Every sender is gone: the value will not change any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("whoever told of changes is gone")]
pub struct Closed;

struct Shared<T> {
    value: RwLock<T>,
    /// Rises with each change.
    version: AtomicU64,
    senders: AtomicUsize,
    changed: Notify,
}

impl<T> Shared<T> {
    // A value is replaced or changed in place by closures of ours: a panic there leaves a whole value.
    fn read(&self) -> RwLockReadGuard<'_, T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.value.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    async fn changed(&self, seen: &mut u64) -> Result<(), Closed> {
        loop {
            let mut woken = pin!(self.changed.notified());
            woken.as_mut().enable(); // from here on no change is missed
            let version = self.version();
            if version != *seen {
                *seen = version;
                return Ok(());
            }
            if self.is_closed() {
                return Err(Closed);
            }
            woken.await;
        }
    }

    fn is_closed(&self) -> bool {
        self.senders.load(Ordering::Acquire) == 0
    }
}

/// Changes the value. Clones change the same one.
pub struct Sender<T>(Arc<Shared<T>>);

/// Sees the value, and waits for changes. A clone has seen what the original has.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The value as it is now. Changes wait until this is dropped: never hold it over an `await`.
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Ref<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// A value and who watches it.
#[must_use]
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    /// A value that nobody watches yet.
    #[must_use]
    pub fn new(value: T) -> Sender<T> {
        Sender(Arc::new(Shared {
            value: RwLock::new(value),
            version: AtomicU64::new(0),
            senders: AtomicUsize::new(1),
            changed: Notify::new(),
        }))
    }

    /// Whoever watches from now on. The present value counts as seen.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<T> {
        Receiver { seen: self.0.version(), shared: Arc::clone(&self.0) }
    }

    /// Whether nobody watches now.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        Arc::strong_count(&self.0) <= self.0.senders.load(Ordering::Acquire)
    }

    /// The value.
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0.read())
    }

    /// Another value takes its place; returns the one before. Wakes also when they are equal.
    pub fn send_replace(&self, value: T) -> T {
        let mut value = value;
        self.send_modify(|place| std::mem::swap(place, &mut value));
        value
    }

    /// Changes the value in place, and wakes.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Changes the value in place, and wakes if `change` says that it did. Returns what it said.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let changed = {
            let mut value = self.0.write();
            let changed = change(&mut value);
            if changed {
                self.0.version.fetch_add(1, Ordering::Release);
            }
            changed
        };
        if changed {
            self.0.changed.notify_waiters();
        }
        changed
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.0.senders.fetch_add(1, Ordering::Relaxed);
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Sender<T> {
        Sender::new(T::default())
    }
}

impl<T> Receiver<T> {
    /// The value; whether it was seen stays as it is.
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.read())
    }

    /// The value, which is seen now.
    #[must_use]
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.read();
        self.seen = self.shared.version(); // nobody changes it while `value` is held
        Ref(value)
    }

    /// Whether there is a value that was not seen.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.shared.version() != self.seen
    }

    /// The value counts as not seen, so that the next [`Receiver::changed`] returns at once.
    pub fn mark_changed(&mut self) {
        self.seen = self.seen.wrapping_sub(1);
    }

    /// The value counts as seen.
    pub fn mark_unchanged(&mut self) {
        self.seen = self.shared.version();
    }

    /// Waits until there is a value that was not seen, and counts it as seen. Cancel safe.
    ///
    /// # Errors
    /// When every sender is gone and the last value was seen.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        self.shared.changed(&mut self.seen).await
    }

    /// Waits until the value is as wanted, and counts it as seen. Cancel safe.
    ///
    /// # Errors
    /// When every sender is gone, and the last value is not.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        let Receiver { shared, seen } = self;
        loop {
            {
                let value = shared.read();
                *seen = shared.version(); // nobody changes it while `value` is held
                if wanted(&value) {
                    return Ok(Ref(value));
                }
            }
            shared.changed(seen).await?;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        Receiver { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T: fmt::Debug> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&self.borrow()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&self.borrow()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn receivers_wake_in_the_order_in_which_they_wait() {
        let (sender, receiver) = channel(0_u32);
        let order = Arc::new(Mutex::new(vec![]));
        let mut tasks = JoinSet::new();
        for number in 0..100 {
            let (mut receiver, order) = (receiver.clone(), Arc::clone(&order));
            tasks.spawn(async move {
                for _ in 0..=3 {
                    order.lock().unwrap().push(number);
                    receiver.changed().await.unwrap(); // the same poll: who stands in `order` waits
                }
            });
        }
        for round in 1..=4 {
            while order.lock().unwrap().len() < 100 * round {
                tokio::task::yield_now().await;
            }
            sender.send_replace(0);
        }
        tasks.join_all().await;
        let expected: Vec<i32> = (0..4).flat_map(|_| 0..100).collect();
        assert_eq!(*order.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn a_change_before_the_wait_is_not_missed_and_not_seen_twice() {
        let (sender, mut receiver) = channel(1);
        assert_eq!(sender.send_replace(2), 1);
        assert_eq!(receiver.changed().await, Ok(()));
        assert_eq!(*receiver.borrow(), 2);
        assert!(!sender.send_if_modified(|_| false));
        let mut late = sender.subscribe();
        drop(sender);
        assert_eq!(receiver.changed().await, Err(Closed));
        assert_eq!(late.changed().await, Err(Closed), "what was there when it began to watch is seen");
        receiver.mark_changed();
        assert_eq!(receiver.changed().await, Ok(()));
    }

    #[tokio::test]
    async fn the_last_sender_closes() {
        let (sender, mut receiver) = channel(1);
        let second = sender.clone();
        assert!(!second.is_closed());
        let waiting = tokio::spawn(async move { receiver.wait_for(|value| *value == 9).await.map(|value| *value) });
        drop(sender);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(second);
        assert_eq!(waiting.await.unwrap(), Err(Closed));
        assert!(Sender::new(1).is_closed(), "nobody watches");
        let (sender, mut receiver) = channel(9);
        drop(sender);
        assert_eq!(receiver.wait_for(|value| *value == 9).await.map(|value| *value), Ok(9), "the last value counts");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_change_is_lost_between_threads() {
        let (sender, mut receiver) = channel(0_u64);
        let seen = tokio::spawn(async move { receiver.wait_for(|value| *value == 10_000).await.map(|value| *value) });
        for _ in 0..10_000 {
            sender.send_modify(|value| *value += 1);
            tokio::task::yield_now().await;
        }
        assert_eq!(seen.await.unwrap(), Ok(10_000));
    }
}
