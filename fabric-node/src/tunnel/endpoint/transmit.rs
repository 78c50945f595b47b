//! What the connections have to say, handed to the sockets in large batches.

use std::time::Instant;

use quinn_proto::Transmit;

use super::{Endpoint, SEGMENTS_MAX, SEND_BYTES_MAX, SENDS_MAX, Slot};
use crate::tunnel::{
    link::PeerLink,
    report::UnderlayLosses,
    segmentation::Segmentation,
    socket::{Sent, SocketOffloads, UnderlaySocket},
};

impl Endpoint {
    /// Offloads of the sockets, which are all of one kind; none without a socket.
    #[must_use]
    pub fn socket_offloads(&self) -> Option<SocketOffloads> {
        self.sockets.first().map(UnderlaySocket::offloads)
    }

    /// What was lost at the sockets since they were bound.
    #[must_use]
    pub fn underlay_losses(&self) -> UnderlayLosses {
        let mut sum = UnderlayLosses::default();
        for socket in &self.sockets {
            sum.add(socket.losses());
        }
        sum
    }

    /// Whether the batches of one connection leave whole.
    pub(super) fn segmentation(&self, slot: &Slot) -> Segmentation {
        let socket = self.sockets.get(slot.socket);
        socket.map_or(Segmentation::On, |socket| {
            socket.segmentation(slot.link.remote().ip())
        })
    }

    /// Sends what one connection has; true if there is more than a turn allows.
    pub(super) fn transmit_link(&mut self, index: usize, now: Instant) -> bool {
        let Some(slot) = self.links.get_mut(index).and_then(Option::as_deref_mut) else {
            return false;
        };
        let mut sends = 0;
        loop {
            let round = sends;
            slot.link.flush();
            loop {
                let Some(socket) = self.sockets.get_mut(slot.socket) else {
                    return false;
                };
                if socket.is_held() {
                    return true;
                }
                let mtu = usize::from(slot.link.path_mtu()).max(1200);
                // As many where the payloads must leave one by one: sealing many at once is a third
                // of the work of sealing each alone.
                let segments = (SEND_BYTES_MAX / mtu).clamp(1, SEGMENTS_MAX);
                self.scratch.clear();
                let Some(transmit) = slot.link.poll_transmit(now, segments, &mut self.scratch)
                else {
                    break;
                };
                let contents = self.scratch.get(..transmit.size).unwrap_or_default();
                if socket.send(transmit, contents, now) == Sent::Held {
                    return true;
                }
                sends += 1;
                if sends >= SENDS_MAX {
                    return true;
                }
            }
            if sends == round {
                break;
            }
        }
        self.exchange_endpoint_events(index, now);
        false
    }

    pub(super) fn respond(&mut self, socket: usize, transmit: Transmit) {
        let contents = self
            .scratch
            .get(..transmit.size)
            .unwrap_or_default()
            .to_vec();
        self.responses.push((socket, transmit, contents));
    }

    pub(super) fn send_responses(&mut self, now: Instant) {
        for (socket, transmit, contents) in self.responses.drain(..) {
            // A full socket keeps a batch of a connection; an answer to a stranger can be asked for
            // again and does not take its place.
            if let Some(socket) = self.sockets.get_mut(socket)
                && !socket.is_held()
            {
                socket.send(transmit, &contents, now);
            }
        }
    }
}
