//! A socket of a simulated host, as quinn wants it.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::udp::{RecvMeta, Transmit};

use super::Net;

/// A bound socket. Once its host crashed, it swallows what is sent and never receives again.
#[derive(Debug)]
pub(super) struct SimSocket {
    net: Net,
    address: SocketAddr,
    id: u64,
}

impl SimSocket {
    pub(super) fn new(net: Net, address: SocketAddr, id: u64) -> SimSocket {
        SimSocket { net, address, id }
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let mut state = self.net.lock();
        let ours = state.sockets.get(&self.address).is_some_and(|socket| socket.id == self.id);
        let socket = if ours { state.sockets.remove(&self.address) } else { None };
        drop(state);
        drop(socket); // after the lock is free: its waker may be the last to hold a task
    }
}

impl quinn::AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn quinn::UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let to = SocketAddr::new(transmit.destination.ip().to_canonical(), transmit.destination.port());
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(segment) {
            self.net.send(self.id, self.address, to, datagram);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.net.lock();
        let Some(socket) = state.sockets.get_mut(&self.address).filter(|socket| socket.id == self.id) else {
            return Poll::Pending; // crashed: nobody will wake this task, only end it
        };
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some(datagram) = socket.queue.pop_front() else { break };
            let length = datagram.contents.len().min(buf.len());
            if let (Some(space), Some(contents)) = (buf.get_mut(..length), datagram.contents.get(..length)) {
                space.copy_from_slice(contents);
            }
            let dst_ip: Option<IpAddr> = Some(self.address.ip());
            *meta = RecvMeta { addr: datagram.from, len: length, stride: length, ecn: None, dst_ip };
            count += 1;
        }
        if count == 0 {
            socket.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// The lines decide what is lost; the socket itself always takes more.
#[derive(Debug)]
struct AlwaysWritable;

impl quinn::UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
