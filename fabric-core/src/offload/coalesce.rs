//! Joining adjacent segments of one flow into a super-packet, so that the kernel walks its stack once
//! for many.
//!
//! Comes in: packets in the order they arrived. Goes out: the same bytes in the same order within
//! each flow, in fewer packets. Never done here: reordering, and mending. A packet joins others only
//! if its checksum proves it intact, because the checksum of a super-packet is made anew further on;
//! every other packet goes out as it came in.
//!
//! Two packets join if cutting the result ([`super::segment`]) gives both back: same headers but for
//! what a cut writes itself. The one liberty is the IPv4 identification of packets with DF set, which
//! carries no meaning (RFC 6864 4.1).

mod run;

use run::{Candidate, Run};

use super::Offload;
use crate::packet::{Fragment, Headers};

/// Flows that are held at once; one more, and the oldest goes out.
pub const FLOWS_MAX: usize = 8;
/// Packets in one super-packet (Linux: UDP_MAX_SEGMENTS, and the receiver's UDP_GRO limit).
pub const SEGMENTS_MAX: usize = 64;
/// Bytes of one super-packet, IP header included: the largest IPv4 total length.
pub const SUPER_PACKET_BYTES_MAX: usize = 65_535;

/// Collects segments of a few flows until they cannot grow, or until [`Coalescer::flush`].
///
/// Holds at most [`FLOWS_MAX`] buffers of [`SUPER_PACKET_BYTES_MAX`] bytes and one more for packets
/// that pass through; they are allocated as traffic first needs them and then used again.
#[derive(Debug, Default)]
pub struct Coalescer {
    /// Oldest first.
    runs: Vec<Run>,
    spare: Vec<Vec<u8>>,
    passing: Vec<u8>,
}

impl Coalescer {
    /// Takes one complete packet; hands on, by `emit`, what cannot wait any longer. Everything that
    /// is pushed comes out once, by the next [`Coalescer::flush`] at the latest.
    ///
    /// `headers` are those of `packet`. Bytes beyond the packet's own length are cut off.
    pub fn push(
        &mut self,
        packet: &[u8],
        headers: &Headers,
        emit: &mut impl FnMut(&mut [u8], Offload),
    ) {
        self.push_offload(packet, headers, Offload::NONE, emit);
    }

    /// As [`Coalescer::push`], for a packet with work left to be done to it. A partial checksum joins
    /// others if its seed is right; a super-packet passes through.
    pub fn push_offload(
        &mut self,
        packet: &[u8],
        headers: &Headers,
        offload: Offload,
        emit: &mut impl FnMut(&mut [u8], Offload),
    ) {
        let packet = usize::try_from(headers.packet_len)
            .ok()
            .and_then(|len| packet.get(..len))
            .unwrap_or(packet);
        if headers.fragment != Fragment::Whole {
            // A later fragment does not tell its flow: it must not overtake any that it may be of.
            self.flush_where(|run| run.same_hosts(headers), emit);
            return self.pass(packet, offload, emit);
        }
        let held = self.runs.iter().position(|run| run.same_flow(headers));
        let Some(candidate) = Candidate::of(packet, headers, offload) else {
            self.flush_at(held, emit);
            return self.pass(packet, offload, emit);
        };
        if let Some(run) = held.and_then(|at| self.runs.get_mut(at))
            && run.join(&candidate)
        {
            if run.is_complete() {
                self.flush_at(held, emit);
            }
            return;
        }
        self.flush_at(held, emit);
        if candidate.ends_run() {
            return self.pass(packet, offload, emit);
        }
        if self.runs.len() >= FLOWS_MAX {
            self.flush_at(Some(0), emit);
        }
        let buffer = self.spare.pop().unwrap_or_default();
        self.runs.push(Run::begin(&candidate, buffer));
    }

    /// Hands on everything that is held, the flow that has waited longest first.
    pub fn flush(&mut self, emit: &mut impl FnMut(&mut [u8], Offload)) {
        self.flush_where(|_| true, emit);
    }

    fn flush_where(
        &mut self,
        chosen: impl Fn(&Run) -> bool,
        emit: &mut impl FnMut(&mut [u8], Offload),
    ) {
        for run in self.runs.extract_if(.., |run| chosen(run)) {
            self.spare.push(run.finish(emit));
        }
    }

    fn flush_at(&mut self, at: Option<usize>, emit: &mut impl FnMut(&mut [u8], Offload)) {
        if let Some(at) = at.filter(|at| *at < self.runs.len()) {
            let run = self.runs.remove(at);
            self.spare.push(run.finish(emit));
        }
    }

    fn pass(&mut self, packet: &[u8], offload: Offload, emit: &mut impl FnMut(&mut [u8], Offload)) {
        self.passing.clear();
        self.passing.extend_from_slice(packet);
        emit(&mut self.passing, offload);
    }
}

#[cfg(test)]
mod tests;
