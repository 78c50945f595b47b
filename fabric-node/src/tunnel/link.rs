//! The seam between the data plane and a QUIC engine.

use std::time::{Duration, Instant};

use fabric_core::{ids::PortId, offload::Offload, record::RecordError};
use quinn_proto::Transmit;

use super::{
    framing::RecordAssembler,
    queue::{Class, Pending, QueueAccounts},
};

/// The port of packets that this node itself made: no device has it.
pub const OWN_PORT: PortId = PortId(u32::MAX);

/// Whose record it is: what the queue sorts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// The port that the packet came from, or [`OWN_PORT`]. Ports get equal shares.
    pub port: PortId,
    /// A number that all packets of one flow have. They keep their order, whatever their sizes.
    pub flow: u32,
    /// What the packet wants.
    pub class: Class,
}

/// One authenticated connection to a peer, as the worker's loop drives it. No method blocks, none
/// does I/O, none asks the time.
pub trait PeerLink {
    /// Largest record of a flow that a datagram takes at the path's present MTU (bytes); 0 if none
    /// does, or if larger packets of the flow are on their way on a stream. TCP need not ask.
    fn datagram_room(&mut self, flow: u32) -> usize;

    /// Queues a record that keeps its loss semantics. It must fit [`Self::datagram_room`]. If others
    /// of its flow go on a stream before its turn comes, it follows them there.
    ///
    /// `pending.account` is the length of the packet that the record completes; `None` for all but
    /// the last piece of a packet, and for packets that the node itself made. A record that is
    /// queued may still be dropped: [`Self::take_accounts`] tells.
    fn send_datagram(&mut self, label: Label, pending: Pending, now: Instant);

    /// Queues a record of any size for a stream, in order within the flow. As above.
    fn send_stream(&mut self, label: Label, pending: Pending, now: Instant);

    /// Whether so much waits that a record had better be copied than keep a buffer that is several
    /// times as large.
    fn is_backlogged(&self) -> bool;

    /// Moves into the engine what does not wait for its turn. Records do: [`Self::poll_transmit`]
    /// takes them from the queue as fast as the engine can send.
    fn flush(&mut self);

    /// Hands every complete record that has arrived to `sink`.
    ///
    /// # Errors
    ///
    /// The peer broke the framing: close the connection.
    fn receive(&mut self, sink: &mut dyn FnMut(Received<'_>)) -> Result<(), RecordError>;

    /// The next batch of up to `segments_max` UDP payloads of equal size, written to `buffer`, made
    /// of what is queued.
    fn poll_transmit(
        &mut self,
        now: Instant,
        segments_max: usize,
        buffer: &mut Vec<u8>,
    ) -> Option<Transmit>;

    /// When [`Self::handle_timeout`] is due.
    fn poll_timeout(&mut self) -> Option<Instant>;

    /// Time has passed.
    fn handle_timeout(&mut self, now: Instant);

    /// Packets that wait in front of the engine, by the accounts they were queued with.
    fn queued(&self) -> u64;

    /// What became of packets in the queue since the last call.
    fn take_accounts(&mut self) -> QueueAccounts;

    /// Round-trip time, path MTU, losses.
    fn path(&self) -> PathReport;
}

/// A record that has arrived: contiguous from a datagram, in pieces from a stream.
pub enum Received<'a> {
    /// From a datagram.
    Datagram {
        /// What remains to be done to the packet.
        offload: Offload,
        /// The packet.
        packet: &'a [u8],
    },
    /// From a stream; the record at hand of this assembler.
    Stream {
        /// What remains to be done to the packet.
        offload: Offload,
        /// Length of the packet in bytes.
        packet_len: usize,
        /// Where its pieces are.
        pieces: &'a RecordAssembler,
    },
}

/// What a connection knows of its path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathReport {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// UDP payload bytes that fit the path.
    pub mtu: u16,
    /// Packets declared lost since the connection began.
    pub lost_packets: u64,
}
