//! The engine: one quinn-proto connection, driven by hand.
//!
//! TCP super-packets ride on unidirectional streams, [`STREAM_BUCKETS`] of them; a flow keeps to one.
//! Everything that fits rides in datagrams, except behind larger packets of its flow. The one
//! bidirectional stream carries the hello. Records wait in the queue, not in the engine: it is given
//! more when it has sent what it has.

use std::{net::SocketAddr, time::Instant};

use bytes::{Buf, Bytes, BytesMut};
use fabric_core::record::{self, DATAGRAM_HEADER_LEN, RecordError, StreamHeader};
use fabric_proto::hello::{HELLO_BYTES_MAX, Hello};
use prost::Message;
use quinn_proto::{Connection, Dir, ReadableError, StreamId, Transmit, VarInt, WriteError};

use super::{
    congestion::WindowWatch,
    framing::{RecordAssembler, join_excess},
    link::{Label, PathReport, PeerLink, Received},
    queue::{
        Ahead, Engine, Lane, Pending, Portion, QueueAccounts, STREAM_BUCKETS, SendQueue, Written,
    },
};

/// Application error codes of a closed connection.
pub mod close {
    /// The daemon stops.
    pub const SHUTDOWN: u32 = 0;
    /// A newer connection took this one's place.
    pub const REPLACED: u32 = 1;
    /// A record or hello could not be decoded.
    pub const MALFORMED: u32 = 2;
    /// The node is not part of the fabric.
    pub const UNKNOWN_NODE: u32 = 3;
    /// The attempt took too long.
    pub const TOO_SLOW: u32 = 4;
    /// A certificate has expired, or what the node showed is no longer accepted.
    pub const NO_LONGER_VALID: u32 = 5;
}

/// A connection and what waits for it.
pub struct QuicLink {
    connection: Connection,
    queue: SendQueue,
    ahead: Ahead,
    window: WindowWatch,
    /// What the queue is to be told of once it has arrived.
    epoch: Option<Epoch>,
    /// What the engine says of its room for datagrams when it has none.
    datagrams_unused: usize,
    outbound: [Option<StreamId>; STREAM_BUCKETS],
    inbound: Vec<Inbound>,
    datagrams_waiting: bool,
    control: Option<StreamId>,
    control_in: BytesMut,
    control_out: Bytes,
    greeted: bool,
}

/// An epoch of the streams that has ended, with all of it sent at least once.
#[derive(Clone, Copy, Debug)]
struct Epoch {
    number: u64,
    ended: Instant,
    /// Packets declared lost by then; one more, and something of it may be sent again.
    lost_packets: u64,
}

/// A peer opened a control stream beside the one there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondControlStream;

struct Inbound {
    id: StreamId,
    assembler: RecordAssembler,
    readable: bool,
    finished: bool,
}

impl QuicLink {
    /// Takes over a connection that has just been made.
    #[must_use]
    pub fn new(mut connection: Connection) -> Self {
        Self {
            window: WindowWatch::of(connection.congestion_state()),
            epoch: None,
            datagrams_unused: connection.datagrams().send_buffer_space(),
            connection,
            queue: SendQueue::default(),
            ahead: Ahead::default(),
            outbound: [None; STREAM_BUCKETS],
            inbound: Vec::new(),
            datagrams_waiting: false,
            control: None,
            control_in: BytesMut::new(),
            control_out: Bytes::new(),
            greeted: false,
        }
    }

    /// The state machine, for the endpoint that routes its events.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Address of the other side.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// UDP payload bytes that fit the path at present.
    #[must_use]
    pub fn path_mtu(&self) -> u16 {
        self.connection.current_mtu()
    }

    /// Bytes of QUIC packets that were sent and of which nobody knows what became of them.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.window.in_flight()
    }

    /// Memory that what waits keeps in use (bytes).
    #[must_use]
    pub fn queue_bytes(&self) -> usize {
        self.queue.bytes()
    }

    /// Leaves so much memory to what waits (bytes).
    pub fn set_queue_room(&mut self, bytes: usize) {
        self.queue.set_room(bytes);
    }

    /// Drops what waits; returns how many counted packets that were.
    pub fn discard_queue(&mut self) -> u64 {
        std::mem::take(&mut self.queue).queued()
    }

    /// Takes what waits in front of `older`, whose place this one takes; unless something waits here, or a
    /// record was begun there, whose rest belongs on the same stream.
    pub fn take_queue(&mut self, older: &mut Self) {
        if self.queue.is_empty() && !older.queue.is_midway() {
            std::mem::swap(&mut self.queue, &mut older.queue);
        }
    }

    /// Says hello on a control stream of our own (the dialler does).
    pub fn open_control(&mut self, hello: &Hello) {
        self.control = self.connection.streams().open(Dir::Bi);
        self.say_hello(hello);
    }

    /// Says hello on the control stream, once there is one.
    pub fn say_hello(&mut self, hello: &Hello) {
        let body = hello.encode_to_vec();
        let mut message = BytesMut::with_capacity(4 + body.len());
        message.extend_from_slice(&(body.len() as u32).to_be_bytes());
        message.extend_from_slice(&body);
        self.control_out = message.freeze();
        self.flush_control();
    }

    /// Takes the streams that the peer has opened; true if the control stream is among them.
    ///
    /// # Errors
    ///
    /// There is a control stream already.
    pub fn accept_streams(&mut self, dir: Dir) -> Result<bool, SecondControlStream> {
        let mut control = false;
        while let Some(id) = self.connection.streams().accept(dir) {
            if dir == Dir::Uni {
                self.inbound.push(Inbound {
                    id,
                    assembler: RecordAssembler::default(),
                    readable: true,
                    finished: false,
                });
            } else if self.control.is_some() {
                return Err(SecondControlStream);
            } else {
                self.control = Some(id);
                control = true;
            }
        }
        Ok(control)
    }

    /// A stream has bytes to read.
    pub fn mark_readable(&mut self, id: StreamId) {
        if let Some(inbound) = self.inbound.iter_mut().find(|inbound| inbound.id == id) {
            inbound.readable = true;
        }
    }

    /// Datagrams have arrived.
    pub fn mark_datagrams(&mut self) {
        self.datagrams_waiting = true;
    }

    /// Reads the control stream; returns the peer's hello once it is complete.
    ///
    /// # Errors
    ///
    /// One line saying what is wrong with it.
    pub fn read_hello(&mut self) -> Result<Option<Hello>, String> {
        let Some(id) = self.control else {
            return Ok(None);
        };
        let mut stream = self.connection.recv_stream(id);
        if let Ok(mut chunks) = stream.read(true) {
            while let Ok(Some(chunk)) = chunks.next(HELLO_BYTES_MAX) {
                self.control_in.extend_from_slice(&chunk.bytes);
                if self.control_in.len() > HELLO_BYTES_MAX + 4 {
                    return Err("the hello is too long".to_owned());
                }
            }
            let _ = chunks.finalize();
        }
        if self.greeted && !self.control_in.is_empty() {
            return Err("it said more than one hello".to_owned());
        }
        let Some(length) = self.control_in.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > HELLO_BYTES_MAX {
            return Err(format!("a hello of {length} bytes"));
        }
        let Some(body) = self.control_in.get(4..4 + length) else {
            return Ok(None);
        };
        let hello = Hello::decode(body).map_err(|error| format!("the hello: {error}"))?;
        self.control_in.advance(4 + length);
        self.greeted = true;
        if self.control_in.is_empty() {
            Ok(Some(hello))
        } else {
            Err("it said more than one hello".to_owned())
        }
    }

    /// Ends the connection; what waits in the queue is lost and counted by the caller.
    pub fn close(&mut self, now: Instant, code: u32, reason: &'static str) {
        self.connection.close(
            now,
            VarInt::from_u32(code),
            Bytes::from_static(reason.as_bytes()),
        );
    }

    fn flush_control(&mut self) {
        let Some(id) = self.control else { return };
        if !self.control_out.is_empty() {
            // Nothing else uses this stream: what does not fit its window goes with the next flush.
            let _ = self
                .connection
                .send_stream(id)
                .write_chunks(std::slice::from_mut(&mut self.control_out));
        }
    }

    /// Gives the engine up to `bytes` of what is queued; returns how many it took.
    fn feed(&mut self, bytes: usize, piece: usize, now: Instant) -> usize {
        let mut inside = Inside {
            connection: &mut self.connection,
            streams: &mut self.outbound,
            datagrams_unused: self.datagrams_unused,
        };
        let given = self.queue.serve(now, bytes, piece, &mut inside);
        self.ahead.gave(given);
        given
    }

    /// The engine has sent all that it was given, and once more what was lost: notes that, for flows
    /// that are on streams.
    fn end_epoch(&mut self, now: Instant) {
        if self.epoch.is_none()
            && let Some(number) = self.queue.end_epoch()
        {
            self.epoch = Some(Epoch {
                number,
                ended: now,
                lost_packets: self.connection.stats().path.lost_packets,
            });
        }
    }

    /// Tells the queue if all that was sent by the end of an epoch has arrived. If some was lost, it is
    /// for the next epoch to see whether that came.
    fn settle_epoch(&mut self) {
        let Some(epoch) = self.epoch else { return };
        let is_known = |known| known >= epoch.ended;
        if !self.window.known_until().is_some_and(is_known) {
            return;
        }
        self.epoch = None;
        if self.connection.stats().path.lost_packets == epoch.lost_packets {
            self.queue.settle(epoch.number);
        }
    }

    fn receive_datagrams(&mut self, sink: &mut dyn FnMut(Received<'_>)) -> Result<(), RecordError> {
        if !std::mem::take(&mut self.datagrams_waiting) {
            return Ok(());
        }
        while let Some(datagram) = self.connection.datagrams().recv() {
            let (offload, packet) = record::decode_datagram(&datagram)?;
            sink(Received::Datagram { offload, packet });
        }
        Ok(())
    }

    fn receive_streams(&mut self, sink: &mut dyn FnMut(Received<'_>)) -> Result<(), RecordError> {
        for inbound in self.inbound.iter_mut().filter(|inbound| inbound.readable) {
            inbound.readable = false;
            match self.connection.recv_stream(inbound.id).read(true) {
                Ok(mut chunks) => {
                    loop {
                        match chunks.next(usize::MAX) {
                            Ok(Some(chunk)) => inbound.assembler.push(chunk.bytes),
                            Ok(None) => {
                                inbound.finished = true;
                                break;
                            }
                            Err(quinn_proto::ReadError::Blocked) => break,
                            Err(quinn_proto::ReadError::Reset(_)) => {
                                inbound.finished = true;
                                break;
                            }
                        }
                    }
                    // Credits go out with the next transmit, which follows every receive.
                    let _ = chunks.finalize();
                }
                Err(ReadableError::ClosedStream) => inbound.finished = true,
                Err(ReadableError::IllegalOrderedRead) => {}
            }
            while let Some(StreamHeader {
                packet_len,
                offload,
            }) = inbound.assembler.next_record()?
            {
                sink(Received::Stream {
                    offload,
                    packet_len: packet_len as usize,
                    pieces: &inbound.assembler,
                });
                inbound.assembler.consume();
            }
        }
        self.inbound.retain(|inbound| !inbound.finished);
        join_excess(&mut self.inbound, |inbound| &mut inbound.assembler);
        Ok(())
    }
}

impl PeerLink for QuicLink {
    fn datagram_room(&mut self, flow: u32) -> usize {
        if self.queue.wants_stream(flow) {
            return 0;
        }
        self.connection.datagrams().max_size().unwrap_or(0)
    }

    fn send_datagram(&mut self, label: Label, pending: Pending, now: Instant) {
        self.queue.push(Lane::Datagram, label, pending, now);
    }

    fn send_stream(&mut self, label: Label, pending: Pending, now: Instant) {
        self.queue.push(Lane::Stream, label, pending, now);
    }

    fn is_backlogged(&self) -> bool {
        self.queue.pinned() > self.queue.stream_bytes_max() / 8
    }

    fn flush(&mut self) {
        self.flush_control();
    }

    fn receive(&mut self, sink: &mut dyn FnMut(Received<'_>)) -> Result<(), RecordError> {
        self.receive_datagrams(sink)?;
        self.receive_streams(sink)
    }

    fn poll_transmit(
        &mut self,
        now: Instant,
        segments_max: usize,
        buffer: &mut Vec<u8>,
    ) -> Option<Transmit> {
        self.settle_epoch();
        let mtu = usize::from(self.connection.current_mtu());
        let batch = segments_max * mtu;
        let (window, rtt) = (
            self.connection.congestion_state().window(),
            self.connection.rtt(),
        );
        let Portion { bytes, piece } = Portion::of(window, rtt, batch);
        if !self.queue.is_empty() {
            let wanted = self.ahead.wanted(bytes, mtu);
            self.feed(wanted, piece, now);
        }
        loop {
            self.window.reset();
            if let Some(transmit) = self.connection.poll_transmit(now, segments_max, buffer) {
                self.ahead.sent(transmit.size, mtu, batch);
                return Some(transmit);
            }
            if self.window.was_asked() {
                self.ahead.was_held();
                return None;
            }
            self.ahead.ran_dry();
            self.end_epoch(now);
            if self.feed(bytes, piece, now) == 0 {
                return None;
            }
        }
    }

    fn poll_timeout(&mut self) -> Option<Instant> {
        self.connection.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.connection.handle_timeout(now);
    }

    fn queued(&self) -> u64 {
        self.queue.queued()
    }

    fn take_accounts(&mut self) -> QueueAccounts {
        self.queue.take_accounts()
    }

    fn path(&self) -> PathReport {
        let path = self.connection.stats().path;
        PathReport {
            rtt: path.rtt,
            mtu: path.current_mtu,
            lost_packets: path.lost_packets,
        }
    }
}

/// The connection as the queue sees it.
struct Inside<'a> {
    connection: &'a mut Connection,
    streams: &'a mut [Option<StreamId>; STREAM_BUCKETS],
    datagrams_unused: usize,
}

impl Engine for Inside<'_> {
    fn datagram_room(&mut self) -> usize {
        self.connection.datagrams().max_size().unwrap_or(0)
    }

    fn take_datagram(&mut self, record: &Bytes) -> bool {
        self.connection
            .datagrams()
            .send(record.clone(), false)
            .is_ok()
    }

    fn datagrams_unsent(&mut self) -> usize {
        let unused = self.connection.datagrams().send_buffer_space();
        self.datagrams_unused.saturating_sub(unused)
    }

    fn take_stream(&mut self, bucket: usize, piece: &mut Bytes) -> Written {
        let id = match self.streams[bucket] {
            Some(id) => id,
            None => match self.connection.streams().open(Dir::Uni) {
                Some(id) => *self.streams[bucket].insert(id),
                None => return Written::Bytes(0),
            },
        };
        let written = self
            .connection
            .send_stream(id)
            .write_chunks(std::slice::from_mut(piece));
        match written {
            Ok(written) => Written::Bytes(written.bytes),
            Err(WriteError::Blocked) => Written::Bytes(0),
            Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                self.streams[bucket] = None;
                Written::Ended
            }
        }
    }

    fn as_stream_record(&mut self, record: &Bytes) -> Bytes {
        datagram_as_stream_record(record)
    }
}

/// A datagram record rewritten as a stream record: while it waited the path's MTU fell, or its flow
/// went over to a stream.
fn datagram_as_stream_record(datagram: &[u8]) -> Bytes {
    let packet = datagram.get(DATAGRAM_HEADER_LEN..).unwrap_or_default();
    let offload = record::decode_datagram(datagram)
        .map(|(offload, _)| offload)
        .unwrap_or_default();
    let header = StreamHeader {
        packet_len: packet.len() as u32,
        offload,
    };
    let mut bytes = BytesMut::with_capacity(record::STREAM_HEADER_LEN + packet.len());
    bytes.extend_from_slice(&header.encode());
    bytes.extend_from_slice(packet);
    bytes.freeze()
}
