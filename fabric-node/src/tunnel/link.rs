//! The seam between the data plane and a QUIC engine.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fabric_core::{counters::Tally, offload::Offload, record::RecordError};
use quinn_proto::Transmit;

use super::framing::RecordAssembler;

/// One authenticated connection to a peer, as the worker's loop drives it. No method blocks, none
/// does I/O, none asks the time.
pub trait PeerLink {
    /// Largest record that a datagram takes at the path's present MTU (bytes); 0 if none does.
    fn datagram_room(&mut self) -> usize;

    /// Queues a record that keeps its loss semantics. It must fit [`Self::datagram_room`].
    ///
    /// `account` is the length of the packet that this record completes; `None` for all but the
    /// last piece of a packet, and for packets that the node itself made.
    ///
    /// # Errors
    ///
    /// The queue is full; the record is handed back by being dropped, and the caller counts it.
    fn send_datagram(&mut self, record: Bytes, account: Option<u32>) -> Result<(), QueueFull>;

    /// Queues a record of any size on the stream that `flow` hashes to, in order within the flow.
    ///
    /// # Errors
    ///
    /// As [`Self::send_datagram`].
    fn send_stream(
        &mut self,
        flow: u32,
        record: Bytes,
        account: Option<u32>,
    ) -> Result<(), QueueFull>;

    /// Datagrams that can still be queued.
    fn datagram_slots(&self) -> usize;

    /// Moves queued records into the engine as far as it takes them.
    fn flush(&mut self);

    /// Hands every complete record that has arrived to `sink`.
    ///
    /// # Errors
    ///
    /// The peer broke the framing: close the connection.
    fn receive(&mut self, sink: &mut dyn FnMut(Received<'_>)) -> Result<(), RecordError>;

    /// The next batch of up to `segments_max` UDP payloads of equal size, written to `buffer`.
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

    /// Packets handed to the engine since the last call.
    fn take_handed(&mut self) -> Tally;

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

/// The queue in front of a connection takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

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
