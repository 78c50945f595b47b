//! UDP packets from peers, joined into super-packets before they are written.
//!
//! Comes in: packets with the port they go to. Goes out: one write for up to 64 packets of a flow, each
//! packet counted. Never done here: holding a packet beyond the turn it came in, or behind one that came
//! later by a stream.
//!
//! A peer packs many small packets into few large ones, so they arrive together; a write for each of
//! them would make the kernel walk its stack as often.

use std::net::IpAddr;

use fabric_core::{
    counters::{Counters, Side},
    ids::PortId,
    offload::{Offload, coalesce::Coalescer, segment::segment_count},
    packet::{Headers, parse},
    verdict::DropReason,
};

use super::{
    deliver::{Content, DeliverScratch, deliver},
    published::Published,
};

/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// What waits for the end of the turn.
#[derive(Debug, Default)]
pub(super) struct Joining {
    coalescer: Coalescer,
    /// Where the destinations of this turn are.
    ports: Vec<(IpAddr, PortId)>,
}

/// What a packet needs to be written and counted.
pub(super) struct Outlet<'a> {
    pub(super) published: &'a Published,
    pub(super) counters: &'a mut Counters,
    pub(super) scratch: &'a mut DeliverScratch,
}

impl Joining {
    /// Whether packets like this one are joined on their way to `port`.
    pub(super) fn takes(published: &Published, port: PortId, headers: &Headers) -> bool {
        let joins = |offloads: crate::sys::tun::TunOffloads| match headers.is_ipv6() {
            true => offloads.uso6,
            false => offloads.uso4,
        };
        headers.protocol == UDP
            && published
                .ports
                .get(&port)
                .is_some_and(|tun| joins(tun.offloads()))
    }

    /// Takes a packet for `port`; writes what cannot wait any longer.
    pub(super) fn push(
        &mut self,
        port: PortId,
        packet: &[u8],
        headers: &Headers,
        offload: Offload,
        outlet: &mut Outlet<'_>,
    ) {
        if !self
            .ports
            .iter()
            .any(|(address, _)| *address == headers.destination)
        {
            self.ports.push((headers.destination, port));
        }
        let ports = &self.ports;
        self.coalescer
            .push_offload(packet, headers, offload, &mut |bytes, offload| {
                outlet.write(ports, bytes, offload);
            });
    }

    /// Writes all that waits.
    pub(super) fn flush(&mut self, outlet: &mut Outlet<'_>) {
        if self.ports.is_empty() {
            return;
        }
        let ports = &self.ports;
        self.coalescer
            .flush(&mut |bytes, offload| outlet.write(ports, bytes, offload));
        self.ports.clear();
    }
}

impl Outlet<'_> {
    fn write(&mut self, ports: &[(IpAddr, PortId)], bytes: &[u8], offload: Offload) {
        let Ok(headers) = parse(bytes, bytes.len()) else {
            // It was parsed before it was taken, and joining keeps it a packet.
            return self.counters.record_dropped(DropReason::BadOffload);
        };
        let packets = offload.gso.map_or(1, |gso| segment_count(&headers, gso));
        match self.try_write(ports, bytes, &headers, offload) {
            Ok(port) => {
                // All were as long as the segments but the last, and each had headers of its own.
                let size = offload.gso.map_or(0, |gso| usize::from(gso.size.get()));
                let own = usize::from(headers.payload_offset().unwrap_or(0));
                for _ in 1..packets {
                    self.counters.record_delivered(Side::from(port), own + size);
                }
                let last = bytes.len().saturating_sub(packets.saturating_sub(1) * size);
                self.counters.record_delivered(Side::from(port), last);
            }
            Err(reason) => self.counters.record_dropped_many(reason, packets as u64),
        }
    }

    fn try_write(
        &mut self,
        ports: &[(IpAddr, PortId)],
        bytes: &[u8],
        headers: &Headers,
        offload: Offload,
    ) -> Result<PortId, DropReason> {
        let port = ports
            .iter()
            .find(|(address, _)| *address == headers.destination)
            .map(|(_, port)| *port)
            .ok_or(DropReason::PortGone)?;
        let tun = self
            .published
            .ports
            .get(&port)
            .ok_or(DropReason::PortGone)?;
        deliver(tun, headers, offload, Content::Whole(bytes), self.scratch)?;
        Ok(port)
    }
}
