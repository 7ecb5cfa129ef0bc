//! The door of the API: how many connections there are at once, and how long one may say nothing.
//!
//! One address gets a part of the seats. Wraps the TLS acceptor in `api::server`. A seat is taken before the handshake and given back when the
//! connection is dropped. hyper bounds how long the head of a request may take, but only once it knows
//! which HTTP it speaks with; until then [`Guarded`] watches the clock. Answers without end are not
//! touched: what spoke once has no deadline of ours, but for what it does not take of an answer.

use std::{
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum_server::accept::Accept;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};

use super::limits::{self, Seat, Seats};

/// Bytes by which hyper knows which HTTP it is: the length of HTTP/2's preface.
const PREFACE_BYTES: usize = 24;
/// How long a client may take nothing of what is there for it.
const STALL: Duration = Duration::from_secs(60);

/// The other end of a connection.
pub(crate) trait Peer {
    /// Its address; `None` when it has gone already.
    fn address(&self) -> Option<IpAddr>;
}

impl Peer for TcpStream {
    fn address(&self) -> Option<IpAddr> {
        self.peer_addr().ok().map(limits::source)
    }
}

/// An acceptor with a bound.
#[derive(Debug, Clone)]
pub(crate) struct Door<A> {
    inner: A,
    seats: Arc<Semaphore>,
    sources: Seats<IpAddr>,
    of_source: usize,
    silence: Duration,
}

impl<A> Door<A> {
    /// At most `connections` at once, `of_source` of them from one address, each of which speaks within `silence` after its handshake.
    pub(crate) fn new(inner: A, connections: usize, of_source: usize, silence: Duration) -> Door<A> {
        let seats = Arc::new(Semaphore::new(connections));
        Door { inner, seats, sources: Seats::default(), of_source, silence }
    }
}

type Accepted<I, S> = Pin<Box<dyn Future<Output = io::Result<(Guarded<I>, S)>> + Send>>;

impl<A, I, S> Accept<I, S> for Door<A>
where
    A: Accept<I, S>,
    I: Peer,
    A::Future: Send + 'static,
    A::Stream: Send + 'static,
    A::Service: Send + 'static,
{
    type Stream = Guarded<A::Stream>;
    type Service = A::Service;
    type Future = Accepted<A::Stream, A::Service>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let Ok(seat) = Arc::clone(&self.seats).try_acquire_owned() else {
            tracing::debug!("an API connection was refused: all seats are taken");
            return Box::pin(std::future::ready(Err(io::Error::other("too many connections"))));
        };
        let source = stream.address().map(|source| self.sources.take(source, self.of_source));
        let Some(Some(counted)) = source else {
            tracing::debug!("an API connection was refused: its address has its part of the seats");
            return Box::pin(std::future::ready(Err(io::Error::other("too many connections from this address"))));
        };
        let (inner, silence) = (self.inner.accept(stream, service), self.silence);
        Box::pin(async move {
            let (inner, service) = inner.await?;
            let deadline = Some(Box::pin(tokio::time::sleep(silence)));
            Ok((Guarded { inner, deadline, stall: None, read_bytes: 0, _seat: seat, _counted: counted }, service))
        })
    }
}

/// A connection that holds a seat.
#[derive(Debug)]
pub(crate) struct Guarded<I> {
    inner: I,
    /// Until the client has spoken.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Since it takes nothing.
    stall: Option<Pin<Box<Sleep>>>,
    read_bytes: usize,
    _seat: OwnedSemaphorePermit,
    _counted: Seat<IpAddr>,
}

impl<I> Guarded<I> {
    /// Ends a write that waits for too long.
    fn or_stalled<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL)));
        match stall.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if read.is_ready() {
            self.read_bytes = self.read_bytes.saturating_add(buf.filled().len().saturating_sub(before));
            if self.read_bytes >= PREFACE_BYTES {
                self.deadline = None;
            }
            return read;
        }
        match self.deadline.as_mut().map(|deadline| deadline.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            _ => Poll::Pending,
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Guarded<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.deadline = None; // it asked for something, however short
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.or_stalled(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.deadline = None;
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.or_stalled(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.or_stalled(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use axum_server::accept::DefaultAcceptor;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const SILENCE: Duration = Duration::from_secs(10);

    impl Peer for tokio::io::DuplexStream {
        fn address(&self) -> Option<IpAddr> {
            Some(IpAddr::from([192, 0, 2, 1]))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn seats_are_bounded_and_given_back() {
        let door = Door::new(DefaultAcceptor, 1, 9, SILENCE);
        let (_client, server) = tokio::io::duplex(64);
        let (first, ()) = door.accept(server, ()).await.unwrap();
        let (_other, server) = tokio::io::duplex(64);
        assert!(door.accept(server, ()).await.is_err());
        drop(first);
        let (_other, server) = tokio::io::duplex(64);
        assert!(door.accept(server, ()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_source_gets_its_part_and_who_takes_nothing_goes() {
        let door = Door::new(DefaultAcceptor, 9, 1, SILENCE);
        let (_client, server) = tokio::io::duplex(64);
        let (mut first, ()) = door.accept(server, ()).await.unwrap();
        let (_other, server) = tokio::io::duplex(64);
        assert!(door.accept(server, ()).await.is_err());
        let began = tokio::time::Instant::now();
        let error = first.write_all(&[0; 65]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, STALL));
        drop(first);
        assert!(door.sources.is_empty());
        let (_other, server) = tokio::io::duplex(64);
        assert!(door.accept(server, ()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_and_a_quiet_watch_does_not() {
        let door = Door::new(DefaultAcceptor, 9, 9, SILENCE);
        let mut buf = [0; 64];
        // Nothing, or the beginning of something.
        for said in [&b""[..], b"PRI"] {
            let (mut client, server) = tokio::io::duplex(64);
            let (mut guarded, ()) = door.accept(server, ()).await.unwrap();
            client.write_all(said).await.unwrap();
            guarded.read_exact(&mut buf[..said.len()]).await.unwrap();
            let began = tokio::time::Instant::now();
            let error = guarded.read(&mut buf).await.unwrap_err();
            assert_eq!((error.kind(), began.elapsed().as_secs()), (io::ErrorKind::TimedOut, 10));
        }
        let (mut client, server) = tokio::io::duplex(64);
        let (mut guarded, ()) = door.accept(server, ()).await.unwrap();
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        guarded.read_exact(&mut buf[..PREFACE_BYTES]).await.unwrap();
        assert!(tokio::time::timeout(SILENCE * 100, guarded.read(&mut buf)).await.is_err());
    }
}
