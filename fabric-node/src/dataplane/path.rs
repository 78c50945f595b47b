//! The way of one packet: read this beside [`fabric_core::forward`].
//!
//! Comes in: a packet that a port gave, or a record that a peer sent. Goes out: a write to a TUN, a
//! record on a connection, an ICMP error, or a drop; each counted once. Never done here: waiting.

use std::time::Instant;

use bytes::BytesMut;
use fabric_core::{
    counters::{Counters, Side},
    forward::Forwarder,
    ids::{PeerId, PortId},
    offload::{Offload, VnetHeader},
    packet::{Headers, fragment, parse, parse::HEADER_PREFIX_LEN},
    snapshot::POD_MTU,
    verdict::{DropReason, NextHop, Verdict},
};

use super::{
    deliver::{Content, DeliverScratch, deliver},
    joining::{Joining, Outlet},
    outbound::{self, HEADROOM, Origin},
    port::Port,
    published::Published,
};
use crate::{
    sys::tun::Tun,
    tunnel::{
        buffers::BufferPool,
        endpoint::Endpoint,
        link::{OWN_PORT, Received},
    },
};

/// What a packet passes through: everything but the endpoint, so that records can be taken from the
/// endpoint while packets are written.
pub(super) struct Path {
    forwarder: Forwarder,
    pub(super) counters: Counters,
    pub(super) buffer: BytesMut,
    pool: BufferPool,
    reply: Vec<u8>,
    segments: Vec<u8>,
    deliver: DeliverScratch,
    joining: Joining,
    /// The port that a peer's packet was last written to.
    written: Option<PortId>,
    /// Answers to packets of peers, sent when the endpoint is free again.
    answers: Vec<(PeerId, Vec<u8>, Instant)>,
}

impl Default for Path {
    fn default() -> Self {
        let mut pool = BufferPool::default();
        Self {
            forwarder: Forwarder::default(),
            counters: Counters::default(),
            buffer: pool.take_full(),
            pool,
            reply: Vec::with_capacity(1280),
            segments: Vec::with_capacity(2048),
            deliver: DeliverScratch::default(),
            joining: Joining::default(),
            written: None,
            answers: Vec::new(),
        }
    }
}

impl Path {
    /// A packet from a port of this worker, at `HEADROOM..` of the buffer.
    pub(super) fn egress(
        &mut self,
        published: &Published,
        endpoint: &mut Endpoint,
        from: &Port,
        vnet: VnetHeader,
        len: usize,
        now: Instant,
    ) {
        self.counters.record_received(Side::from(from.id), len);
        if let Err(reason) = self.try_egress(published, endpoint, from, vnet, len, now) {
            self.counters.record_dropped(reason);
        }
    }

    fn try_egress(
        &mut self,
        published: &Published,
        endpoint: &mut Endpoint,
        from: &Port,
        vnet: VnetHeader,
        len: usize,
        now: Instant,
    ) -> Result<(), DropReason> {
        let packet = self
            .buffer
            .get_mut(HEADROOM..HEADROOM + len)
            .ok_or(DropReason::BadTotalLength)?;
        let headers = parse(packet, len)?;
        let offload = vnet.offload_of_local(packet, &headers)?;
        let verdict = self.forwarder.egress(
            &published.snapshot,
            from.id,
            packet,
            &headers,
            offload,
            now,
            &mut self.reply,
        );
        let origin = Origin {
            port: from.id,
            account: Some(headers.packet_len),
            at: now,
        };
        match verdict {
            Verdict::Deliver(to) => {
                let packet = self.buffer.get(HEADROOM..).unwrap_or_default();
                let content = Content::Whole(packet);
                deliver_to(published, to, &headers, offload, content, &mut self.deliver)?;
                self.counters.record_delivered(Side::from(to), len);
                Ok(())
            }
            Verdict::Send(peer) => self.send(endpoint, peer, &headers, offload, origin),
            Verdict::Fragment(next_hop) => {
                self.send_fragments(published, endpoint, next_hop, &headers, offload, origin)
            }
            Verdict::Answer => {
                self.counters.record_answered();
                // An answer that cannot be written changes nothing about the packet's account.
                let _ = write_own(&from.tun, &self.reply, &mut self.deliver);
                Ok(())
            }
            Verdict::Drop(reason) => Err(reason),
        }
    }

    fn send(
        &mut self,
        endpoint: &mut Endpoint,
        peer: PeerId,
        headers: &Headers,
        offload: Offload,
        origin: Origin,
    ) -> Result<(), DropReason> {
        let link = endpoint
            .link(peer, outbound::flow_hash(headers))
            .ok_or(DropReason::PeerUnreachable)?;
        let (buffer, pool) = (&mut self.buffer, &mut self.pool);
        outbound::send(
            link,
            buffer,
            pool,
            headers,
            offload,
            origin,
            &mut self.segments,
        )
    }

    /// An IPv4 packet larger than the link that may be cut: a pod has raised its own MTU.
    fn send_fragments(
        &mut self,
        published: &Published,
        endpoint: &mut Endpoint,
        next_hop: NextHop,
        headers: &Headers,
        offload: Offload,
        origin: Origin,
    ) -> Result<(), DropReason> {
        let len = headers.packet_len as usize;
        let mut whole = self
            .buffer
            .get(HEADROOM..HEADROOM + len)
            .unwrap_or_default()
            .to_vec();
        if offload.needs_checksum {
            fabric_core::packet::checksum::complete_checksum(&mut whole, headers)?;
        }
        let mut fragments: Vec<Vec<u8>> = Vec::new();
        fragment::split(
            &whole,
            headers,
            POD_MTU as usize,
            &mut self.segments,
            |fragment| {
                fragments.push(fragment.to_vec());
            },
        )?;
        let count = fragments.len();
        for (index, bytes) in fragments.into_iter().enumerate() {
            let headers = parse(&bytes, bytes.len())?;
            let is_last = index + 1 == count;
            match next_hop {
                NextHop::Local(to) => {
                    let content = Content::Whole(&bytes);
                    deliver_to(
                        published,
                        to,
                        &headers,
                        Offload::NONE,
                        content,
                        &mut self.deliver,
                    )?;
                    if is_last {
                        self.counters.record_delivered(Side::from(to), len);
                    }
                }
                NextHop::Peer(peer) => {
                    let origin = Origin {
                        account: origin.account.filter(|_| is_last),
                        ..origin
                    };
                    self.send_bytes(endpoint, peer, &bytes, &headers, origin)?;
                }
                NextHop::Unassigned => return Err(DropReason::NoSuchPod),
            }
        }
        Ok(())
    }

    /// A packet from a peer.
    pub(super) fn ingress(
        &mut self,
        published: &Published,
        peer: PeerId,
        record: Received<'_>,
        now: Instant,
    ) {
        let (offload, len) = match &record {
            Received::Datagram { offload, packet } => (*offload, packet.len()),
            Received::Stream {
                offload,
                packet_len,
                ..
            } => (*offload, *packet_len),
        };
        self.counters.record_received(Side::Peer, len);
        if let Err(reason) = self.try_ingress(published, peer, &record, offload, len, now) {
            self.counters.record_dropped(reason);
        }
    }

    fn try_ingress(
        &mut self,
        published: &Published,
        peer: PeerId,
        record: &Received<'_>,
        offload: Offload,
        len: usize,
        now: Instant,
    ) -> Result<(), DropReason> {
        let mut copied = [0; HEADER_PREFIX_LEN];
        let prefix = match record {
            Received::Datagram { packet, .. } => packet,
            Received::Stream { pieces, .. } => {
                let wanted = len.min(HEADER_PREFIX_LEN);
                match pieces.contiguous_prefix(wanted) {
                    Some(prefix) => prefix,
                    None => {
                        let filled = pieces.copy_prefix(len, &mut copied);
                        copied.get(..filled).unwrap_or_default()
                    }
                }
            }
        };
        let headers = parse(prefix, len)?;
        let verdict = self.forwarder.ingress(
            &published.snapshot,
            peer,
            prefix,
            &headers,
            now,
            &mut self.reply,
        );
        match verdict {
            Verdict::Deliver(to) => {
                let joins = Joining::takes(published, to, &headers);
                if let Received::Datagram { packet, .. } = record
                    && joins
                {
                    let mut outlet = Outlet {
                        published,
                        counters: &mut self.counters,
                        scratch: &mut self.deliver,
                    };
                    self.joining
                        .push(to, packet, &headers, offload, &mut outlet);
                    return Ok(());
                }
                if joins {
                    // From a stream: it must not overtake what waits of its flow.
                    self.flush(published);
                }
                let content = match record {
                    Received::Datagram { packet, .. } => Content::Whole(packet),
                    Received::Stream { pieces, .. } => Content::Pieces(pieces),
                };
                deliver_to(published, to, &headers, offload, content, &mut self.deliver)?;
                self.counters.record_delivered(Side::from(to), len);
                self.written = Some(to);
                Ok(())
            }
            Verdict::Answer => {
                self.counters.record_answered();
                self.answers.push((peer, self.reply.clone(), now));
                Ok(())
            }
            Verdict::Drop(reason) => Err(reason),
            // Never tunnel to tunnel.
            Verdict::Send(_) | Verdict::Fragment(_) => Err(DropReason::DestinationNotLocal),
        }
    }

    /// Writes what was held back to be joined. To be called after the last record of a turn.
    pub(super) fn flush(&mut self, published: &Published) {
        self.joining.flush(&mut Outlet {
            published,
            counters: &mut self.counters,
            scratch: &mut self.deliver,
        });
    }

    /// The port that was last written to since this was last asked. The kernel answers much within the
    /// write already: an echo, an acknowledgement, a refused connection.
    pub(super) fn take_written(&mut self) -> Option<PortId> {
        self.written.take()
    }

    /// Sends the ICMP errors that packets of peers have earned.
    pub(super) fn send_answers(&mut self, endpoint: &mut Endpoint) {
        for (peer, answer, at) in std::mem::take(&mut self.answers) {
            if let Ok(headers) = parse(&answer, answer.len()) {
                // An answer that finds no way changes nothing about the packet's account.
                let origin = Origin {
                    port: OWN_PORT,
                    account: None,
                    at,
                };
                let _ = self.send_bytes(endpoint, peer, &answer, &headers, origin);
            }
        }
    }

    fn send_bytes(
        &mut self,
        endpoint: &mut Endpoint,
        peer: PeerId,
        bytes: &[u8],
        headers: &Headers,
        origin: Origin,
    ) -> Result<(), DropReason> {
        let link = endpoint
            .link(peer, outbound::flow_hash(headers))
            .ok_or(DropReason::PeerUnreachable)?;
        let (buffer, pool) = (&mut self.buffer, &mut self.pool);
        let place = buffer
            .get_mut(HEADROOM..HEADROOM + bytes.len())
            .ok_or(DropReason::BadTotalLength)?;
        place.copy_from_slice(bytes);
        outbound::send(
            link,
            buffer,
            pool,
            headers,
            Offload::NONE,
            origin,
            &mut self.segments,
        )
    }
}

fn deliver_to(
    published: &Published,
    to: PortId,
    headers: &Headers,
    offload: Offload,
    content: Content<'_>,
    scratch: &mut DeliverScratch,
) -> Result<(), DropReason> {
    let tun = published.ports.get(&to).ok_or(DropReason::PortGone)?;
    deliver(tun, headers, offload, content, scratch)
}

/// Writes a packet that this node made itself.
fn write_own(tun: &Tun, packet: &[u8], scratch: &mut DeliverScratch) -> Result<(), DropReason> {
    let headers = parse(packet, packet.len())?;
    deliver(
        tun,
        &headers,
        Offload::NONE,
        Content::Whole(packet),
        scratch,
    )
}

#[cfg(test)]
mod allocation_tests;
#[cfg(test)]
mod order_tests;
