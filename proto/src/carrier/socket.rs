//! One QUIC socket over several carriers: UDP, and the brokers' [`Pipe`]s.
//!
//! A [`Route`] says where a destination lies and what an arrival is called; the rest is the same at both ends.
//! quinn asks whether a socket is writable before it says where to: so a poller says yes until a carrier
//! refused, and then waits for that carrier alone. One that is full does not stall another.

use std::{
    cell::Cell,
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::{
    frame::MAX_SEGMENTS,
    pipe::{Arrival, Pipe},
};

/// Where a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// Over UDP, to an address of the net.
    Udp(SocketAddr),
    /// Through a broker.
    Pipe {
        /// Index among the socket's pipes.
        pipe: usize,
        /// The peer there.
        peer: u64,
    },
    /// Nowhere at present: it is dropped.
    Nowhere,
}

/// What is different between hub and agent.
pub trait Route: Send + Sync + fmt::Debug + 'static {
    /// Where a destination lies.
    fn to(&self, destination: SocketAddr) -> To;
    /// Datagrams came over UDP: `contents` of `meta.stride` bytes each. May call their sender something else.
    fn arrived(&self, meta: &mut RecvMeta, contents: &[u8]);
    /// The address of a peer behind a pipe.
    fn address_of(&self, pipe: usize, peer: u64) -> SocketAddr;
}

/// The socket.
#[derive(Debug)]
pub struct CarrierSocket<R> {
    udp: Option<Arc<dyn AsyncUdpSocket>>,
    pipes: Vec<Arc<Pipe>>,
    route: Arc<R>,
    local: SocketAddr,
    /// Who is read first: each in turn.
    turn: AtomicUsize,
}

#[derive(Debug, Clone, Copy)]
enum Blocked {
    Udp,
    Pipe { pipe: usize, peer: u64 },
}

thread_local! {
    /// What refused the last datagram of the task that runs on this thread. quinn's tasks send and, when that is
    /// refused, ask their poller in the same poll: so what stands here is theirs, or was never asked for.
    static REFUSED: Cell<Option<Blocked>> = const { Cell::new(None) };
}

impl<R: Route> CarrierSocket<R> {
    /// A socket over `udp`, if there is one, and `pipes`. It calls itself `local`.
    #[must_use]
    pub fn new(
        udp: Option<Arc<dyn AsyncUdpSocket>>,
        pipes: Vec<Arc<Pipe>>,
        route: Arc<R>,
        local: SocketAddr,
    ) -> CarrierSocket<R> {
        CarrierSocket { udp, pipes, route, local, turn: AtomicUsize::new(0) }
    }

    fn send_udp(&self, address: SocketAddr, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(udp) = &self.udp else { return Ok(()) };
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let most = segment.saturating_mul(udp.max_transmit_segments().max(1));
        for part in transmit.contents.chunks(most) {
            udp.try_send(&Transmit {
                destination: address,
                ecn: transmit.ecn,
                contents: part,
                segment_size: transmit.segment_size.filter(|size| *size < part.len()),
                src_ip: transmit.src_ip,
            })?;
        }
        Ok(())
    }

    fn receive_udp(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Some(udp) = &self.udp else { return Poll::Pending };
        let received = udp.poll_recv(cx, bufs, metas);
        if let Poll::Ready(Ok(count)) = received {
            for (meta, buf) in metas.iter_mut().zip(bufs.iter()).take(count) {
                let length = meta.len.min(buf.len());
                self.route.arrived(meta, buf.get(..length).unwrap_or_default());
            }
        }
        received
    }

    fn receive_pipe(&self, index: usize, cx: &Context<'_>, buf: &mut [u8], meta: &mut RecvMeta) -> Poll<()> {
        let Some(pipe) = self.pipes.get(index) else { return Poll::Pending };
        loop {
            let Poll::Ready(Arrival { peer, segment, contents }) = pipe.poll_receive(cx) else { return Poll::Pending };
            let Some(space) = buf.get_mut(..contents.len()) else { continue }; // more than quinn made room for
            space.copy_from_slice(&contents);
            *meta = RecvMeta {
                addr: self.route.address_of(index, peer),
                len: contents.len(),
                stride: segment,
                ecn: None,
                dst_ip: None,
            };
            return Poll::Ready(());
        }
    }
}

impl<R: Route> AsyncUdpSocket for CarrierSocket<R> {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let udp = self.udp.clone().map(AsyncUdpSocket::create_io_poller);
        Box::pin(Poller { udp, pipes: self.pipes.clone(), waits: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let (sent, by) = match self.route.to(transmit.destination) {
            To::Udp(address) => (self.send_udp(address, transmit), Blocked::Udp),
            To::Pipe { pipe, peer } => {
                let Some(to) = self.pipes.get(pipe) else { return Ok(()) };
                let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
                (to.send(peer, segment, transmit.contents), Blocked::Pipe { pipe, peer })
            }
            To::Nowhere => return Ok(()),
        };
        let refused = sent.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
        REFUSED.set(refused.then_some(by));
        // Anything else would end the connection: to QUIC it is one more datagram that was lost.
        if refused { sent } else { Ok(()) }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let sources = self.pipes.len() + 1;
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut count = 0;
        for step in 0..sources {
            let source = first.wrapping_add(step) % sources;
            let (Some(bufs), Some(metas)) = (bufs.get_mut(count..), meta.get_mut(count..)) else { break };
            if bufs.is_empty() || metas.is_empty() {
                break; // the others' turn comes with the next call
            }
            if let Some(index) = source.checked_sub(1) {
                for (buf, meta) in bufs.iter_mut().zip(metas) {
                    if self.receive_pipe(index, cx, buf, meta).is_pending() {
                        break;
                    }
                    count += 1;
                }
            } else {
                match self.receive_udp(cx, bufs, metas) {
                    Poll::Ready(Ok(more)) => count += more,
                    Poll::Ready(Err(error)) if count == 0 => return Poll::Ready(Err(error)),
                    Poll::Ready(Err(_)) => break, // told with the next call, if it stays
                    Poll::Pending => {}
                }
            }
        }
        if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_transmit_segments(&self) -> usize {
        MAX_SEGMENTS
    }

    fn max_receive_segments(&self) -> usize {
        self.udp.as_ref().map_or(1, |udp| udp.max_receive_segments()).max(MAX_SEGMENTS)
    }

    fn may_fragment(&self) -> bool {
        self.udp.as_ref().is_some_and(|udp| udp.may_fragment())
    }
}

/// Waits for the carrier that refused.
#[derive(Debug)]
struct Poller {
    udp: Option<Pin<Box<dyn UdpPoller>>>,
    pipes: Vec<Arc<Pipe>>,
    waits: Option<Blocked>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(refused) = REFUSED.take() {
            self.waits = Some(refused);
        }
        let ready = match self.waits {
            None => return Poll::Ready(Ok(())),
            Some(Blocked::Pipe { pipe, peer }) => self.pipes.get(pipe).map(|pipe| pipe.poll_room(peer, cx)),
            Some(Blocked::Udp) => self.udp.as_mut().map(|udp| udp.as_mut().poll_writable(cx).map(drop)),
        };
        if ready.is_some_and(|ready| ready.is_pending()) {
            return Poll::Pending;
        }
        self.waits = None;
        Poll::Ready(Ok(()))
    }
}
