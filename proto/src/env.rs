//! The doors to the outside: wall clock, randomness, blocking work, network.
//!
//! Hub and agent get an [`Env`] when they start and reach the outside through nothing else. The real
//! one is [`Env::real`]; the simulator hands in its own, so the code that ships is the code that is
//! simulated. Monotonic time is tokio's clock, which the simulator pauses.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use rand::{Rng, SeedableRng, TryRng};
use rand_chacha::ChaCha12Rng;
use sha2::{Digest as _, Sha256};

use crate::carrier::{
    client::{Client, Trouble},
    pipe::Pipe,
};

/// Tells calendar time. It can be wrong: a box may boot in 1970. Never measure spans with it.
pub trait WallClock: Send + Sync + fmt::Debug {
    /// The time of day as this machine believes it.
    fn now(&self) -> Timestamp;
}

/// The operating system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl WallClock for SystemClock {
    #[allow(clippy::disallowed_methods)] // the one door through which the real clock enters
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// Root of all randomness of one process. Each purpose draws from a stream of its own, so that a new
/// draw in one place disturbs no other.
#[derive(Clone)]
pub struct Seed([u8; 32]);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)") // keys may be derived from it
    }
}

impl Seed {
    /// A seed from the operating system.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn from_os() -> io::Result<Seed> {
        let mut bytes = [0; 32];
        rand::rngs::SysRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
        Ok(Seed(bytes))
    }

    /// A seed that repeats, for the simulator and for tests.
    #[must_use]
    pub fn from_u64(number: u64) -> Seed {
        Seed(Sha256::digest(number.to_be_bytes()).into())
    }

    /// A seed for a part, such as one simulated node.
    #[must_use]
    pub fn child(&self, name: &str) -> Seed {
        Seed(Sha256::new().chain_update(self.0).chain_update(b"child:").chain_update(name).finalize().into())
    }

    /// The random stream of one purpose. Asked twice, it is the same stream from its start.
    #[must_use]
    pub fn stream(&self, purpose: &str) -> ChaCha12Rng {
        let key: [u8; 32] =
            Sha256::new().chain_update(self.0).chain_update(b"stream:").chain_update(purpose).finalize().into();
        ChaCha12Rng::from_seed(key)
    }

    /// Bytes of one purpose.
    #[must_use]
    pub fn bytes<const N: usize>(&self, purpose: &str) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream(purpose).fill_bytes(&mut bytes);
        bytes
    }
}

/// Where work that blocks (SQLite, hashing, file trees) is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocking {
    /// On tokio's blocking pool.
    Pool,
    /// On the spot: a pool would finish in any order and the simulator must repeat itself.
    Inline,
}

impl Blocking {
    /// Runs `work` and waits for it. A panic inside it goes on in the caller.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Blocking::Inline => work(),
            Blocking::Pool => {
                let result = Arc::new(Mutex::new(None));
                let slot = result.clone();
                pooled(Box::new(move || *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(work()))).await;
                let value = result.lock().unwrap_or_else(PoisonError::into_inner).take();
                match value {
                    Some(value) => value,
                    None => std::future::pending().await, // it never ran: as `pooled` has it
                }
            }
        }
    }
}

/// Runs work of whatever kind: a task for each kind would be a tenth of a megabyte of every agent.
async fn pooled(work: Box<dyn FnOnce() + Send>) {
    #[allow(clippy::disallowed_methods)] // the one door to the pool
    let task = tokio::task::spawn_blocking(work);
    match task.await {
        Ok(()) => {}
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        // The runtime is going away and with it every task that could wait here.
        Err(_) => std::future::pending().await,
    }
}

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where datagrams go: the kernel's UDP or a broker, or the simulator's lines.
pub trait Network: Send + Sync + fmt::Debug {
    /// Binds a socket for quinn.
    ///
    /// # Errors
    /// As `bind(2)`: the address is taken or not ours.
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>>;

    /// The runtime that drives quinn.
    fn runtime(&self) -> Arc<dyn quinn::Runtime>;

    /// Resolves `host:port`.
    ///
    /// # Errors
    /// When the name is malformed or unknown.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;

    /// Connects with a broker and carries what `pipe` holds until that ends; says why it did.
    fn broker<'a>(&'a self, client: &'a Client, pipe: &'a Pipe) -> BoxFuture<'a, Trouble>;
}

/// UDP and TCP of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Udp;

impl Network for Udp {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        self.runtime().wrap_udp_socket(std::net::UdpSocket::bind(address)?)
    }

    fn runtime(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(quinn::TokioRuntime)
    }

    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host(host).await?.collect()) })
    }

    fn broker<'a>(&'a self, client: &'a Client, pipe: &'a Pipe) -> BoxFuture<'a, Trouble> {
        Box::pin(client.run(pipe))
    }
}

/// Everything from outside that a hub or an agent uses.
#[derive(Debug, Clone)]
pub struct Env {
    /// Calendar time.
    pub wall: Arc<dyn WallClock>,
    /// Randomness.
    pub seed: Seed,
    /// Blocking work.
    pub blocking: Blocking,
    /// Datagrams.
    pub network: Arc<dyn Network>,
}

impl Env {
    /// The real world.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn real() -> io::Result<Env> {
        Ok(Env {
            wall: Arc::new(SystemClock),
            seed: Seed::from_os()?,
            blocking: Blocking::Pool,
            network: Arc::new(Udp),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ_by_purpose() {
        let seed = Seed::from_u64(7);
        assert_eq!(seed.bytes::<16>("jitter"), Seed::from_u64(7).bytes::<16>("jitter"));
        assert_ne!(seed.bytes::<16>("jitter"), seed.bytes::<16>("keys"));
        assert_ne!(seed.bytes::<16>("jitter"), seed.child("a").bytes::<16>("jitter"));
    }
}
