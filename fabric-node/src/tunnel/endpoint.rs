//! All connections of one worker: dials, accepts, authenticates, reconnects.
//!
//! Comes in: UDP datagrams, the set of peers, the time. Goes out: [`QuicLink`]s that carry records,
//! UDP datagrams. A connection carries packets only once the other side's certificate names a node
//! of the fabric; from then on it is known by that node's [`PeerId`]. What happens to one connection
//! from its handshake to its end is in [`lifecycle`], who dials and when in [`dialling`], and the way
//! out in [`transmit`].

mod budget;
mod dialling;
mod lifecycle;
mod renewal;
mod timers;
mod transmit;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use fabric_core::ids::PeerId;
use quinn_proto::{
    ConnectionEvent, ConnectionHandle, DatagramEvent, EcnCodepoint, Incoming, ServerConfig,
    Transmit,
};

use self::{
    budget::Budget,
    lifecycle::payload_max,
    renewal::{Terms, server_configs, unix_millis},
    timers::Timers,
};
use super::{
    buffers::BufferPool,
    dialer::ATTEMPT_MAX,
    link::{PeerLink, Received},
    membership::{Peer, PeerEntry},
    queue::QueueAccounts,
    quic::{QuicLink, close},
    report::{LinkReport, PeerReport, PeerState, Throttle},
    secrets::Secrets,
    socket::UnderlaySocket,
    transport::{TunnelSettings, endpoint_config},
};
use crate::{
    node_id::NodeId,
    pki::{LiveIdentity, NodeIdentity},
    sys::udp,
};

/// Payloads handed to the kernel in one send; 44 of 1452 bytes fill 64 KiB.
const SEGMENTS_MAX: usize = 44;
/// Bytes of one send: the largest UDP payload, less some room for headers.
const SEND_BYTES_MAX: usize = 65_000;
/// Sends per turn and connection, so that receiving gets its turn. 4 x 64 KiB = 256 KiB; what comes
/// in with one receive is up to 512 KiB.
const SENDS_MAX: usize = 4;
/// Handshakes in progress from unproven addresses beyond which a new one must prove its address
/// first (RFC 9000 8.1.2).
const UNPROVEN_HANDSHAKES_MAX: usize = 64;
/// Handshakes in progress from one proven address: as many as a node may have workers. More are
/// ignored, so that whoever has an address of one node does not crowd out the others.
const HANDSHAKES_PER_ADDRESS_MAX: usize = 64;

/// What a peer is told of the end of a connection that another has replaced.
const REPLACED: &str = "replaced by a newer connection";
/// How long a connection whose place another has taken goes on, for what is on its way.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// Who this endpoint is.
#[derive(Clone)]
pub struct EndpointContext {
    /// This node.
    pub node: NodeId,
    /// Its certificate and key, which may be replaced at any time.
    pub identity: Arc<LiveIdentity>,
    /// Index of this worker.
    pub worker: u32,
    /// Workers of this node.
    pub workers: u32,
    /// Changes with every start.
    pub boot_id: u64,
    /// Largest IP packet that the underlay interface takes (bytes).
    pub underlay_mtu: u16,
    /// Settings.
    pub settings: TunnelSettings,
    /// Keys that outlive the daemon.
    pub secrets: Secrets,
}

/// What became of packets in front of connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accounts {
    /// Taken by the engine, dropped or marked on the way there.
    pub queues: QueueAccounts,
    /// Lost because their connection ended while they waited.
    pub lost: u64,
    /// Records from peers that did not decode.
    pub bad_records: u64,
}

/// The connections of one worker.
pub struct Endpoint {
    context: EndpointContext,
    engine: quinn_proto::Endpoint,
    /// The identity that new connections begin with, as of the last look at the context's.
    identity: Arc<NodeIdentity>,
    server_configs: [Arc<ServerConfig>; 2],
    /// When it is to be looked again at how long each connection may last.
    review_due: Instant,
    /// The system's clock at a time (ms since 1970).
    wall_ms: fn(Instant) -> i64,
    sockets: Vec<UnderlaySocket>,
    pool: BufferPool,
    links: Vec<Option<Box<Slot>>>,
    timers: Timers,
    peers: BTreeMap<PeerId, PeerEntry>,
    /// When the first attempt to connect is due.
    dial_due: Option<Instant>,
    /// Connections that were touched since they were last asked what they have to say.
    dirty: Vec<usize>,
    /// Empty between calls: the room of the list that was gone through last.
    asked: Vec<usize>,
    scratch: Vec<u8>,
    budget: Budget,
    queues: QueueAccounts,
    queued: u64,
    lost: u64,
    bad_records: u64,
    workers_learned: bool,
    changed: bool,
    strangers: Throttle,
    refusals: Throttle,
    /// Answers that belong to no connection, and the socket each leaves by.
    responses: Vec<(usize, Transmit, Vec<u8>)>,
}

struct Slot {
    link: QuicLink,
    handle: ConnectionHandle,
    /// The socket it came in by or is dialled from. Another would give it another address or port,
    /// and the other side drops what comes from there.
    socket: usize,
    peer: Option<PeerId>,
    /// Number of the connection between the two nodes; known from the start to the dialler, from
    /// the hello to the other side.
    connection: Option<u32>,
    dialled: bool,
    /// Whether the other side had proven its address when this connection began.
    proven: bool,
    boot_id: Option<u64>,
    /// What it began with on this side.
    identity: Arc<NodeIdentity>,
    /// How long it may last; known once the other side has shown who it is.
    terms: Option<Terms>,
    stage: Stage,
    since: Instant,
    /// When the last datagram of this connection came.
    heard: Instant,
    dirty: bool,
    /// Packets that waited in its queue when the endpoint last looked.
    queued: u64,
    /// Memory that its queue kept in use when the endpoint last looked (bytes).
    queue_bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Handshaking,
    Live,
    /// Another took its place: it sends what it was given, takes what comes, and ends soon.
    Draining,
    Closing,
}

impl Slot {
    /// When the connection is given up unless it gets further, or unless the peer is heard.
    ///
    /// QUIC itself waits for three probe timeouts where that is longer (RFC 9000 section 10.1). One
    /// packet that waited seconds for a neighbour's address makes them that long, and the two sides
    /// would then wait differently.
    fn deadline(&self, idle_timeout: Duration) -> Option<Instant> {
        match self.stage {
            Stage::Handshaking => Some(self.since + ATTEMPT_MAX),
            Stage::Live => Some(self.heard + idle_timeout),
            Stage::Draining => Some(self.since + DRAIN_MAX),
            Stage::Closing => None,
        }
    }
}

impl Endpoint {
    /// Binds the underlay addresses and is ready for peers.
    ///
    /// # Errors
    ///
    /// A socket cannot be bound, or the identity does not suit QUIC.
    pub fn bind(context: EndpointContext, locals: &[SocketAddr]) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let mut pool = BufferPool::default();
        let mut sockets = Vec::new();
        for local in locals {
            sockets.push(UnderlaySocket::bind(*local, context.settings.offloads, &mut pool).with_context(|| {
                format!("cannot bind the underlay address {local}/udp: is it an address of this host, and is no other daemon running?")
            })?);
        }
        let payload_max = payload_max(context.underlay_mtu, false);
        let identity = context.identity.current();
        let server_configs = server_configs(&context, &identity)?;
        let now = Instant::now();
        let engine = quinn_proto::Endpoint::new(
            endpoint_config(&context.secrets, payload_max),
            Some(server_configs[0].clone()),
            true,
            None,
        );
        Ok(Self {
            context,
            engine,
            identity,
            server_configs,
            review_due: now,
            wall_ms: unix_millis,
            sockets,
            pool,
            links: Vec::new(),
            timers: Timers::new(now),
            peers: BTreeMap::new(),
            dial_due: None,
            dirty: Vec::new(),
            asked: Vec::new(),
            scratch: Vec::with_capacity(SEND_BYTES_MAX + 2048),
            budget: Budget::default(),
            queues: QueueAccounts::default(),
            queued: 0,
            lost: 0,
            bad_records: 0,
            workers_learned: false,
            changed: true,
            strangers: Throttle::default(),
            refusals: Throttle::default(),
            responses: Vec::new(),
        })
    }

    /// Descriptors to wait on for reading.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }

    /// Whether each socket waits to be writable, in the order of [`Self::descriptors`].
    pub fn held(&self) -> impl Iterator<Item = bool> {
        self.sockets.iter().map(UnderlaySocket::is_held)
    }

    /// Makes `peers` the complete set: new ones are dialled, missing ones cut off.
    pub fn set_peers(&mut self, peers: &[Peer], now: Instant) {
        let wanted: BTreeSet<PeerId> = peers.iter().map(|peer| peer.target.id).collect();
        let is_gone = |id: &&PeerId| !wanted.contains(id);
        let gone: Vec<PeerId> = self.peers.keys().filter(is_gone).copied().collect();
        for id in gone {
            self.drop_peer(id, now);
        }
        for peer in peers {
            let entry = self
                .peers
                .entry(peer.target.id)
                .or_insert_with(|| PeerEntry::new(peer.clone(), now));
            entry.follow(peer);
        }
        self.changed = true;
        self.cut_moved(now);
        self.review(now);
        self.dial(now);
    }

    /// Reads what the underlay has and feeds the connections.
    pub fn receive(&mut self, now: Instant) {
        let mut sockets = std::mem::take(&mut self.sockets);
        let mut pool = std::mem::take(&mut self.pool);
        for (index, socket) in sockets.iter_mut().enumerate() {
            // One call a turn; the wait is level-triggered: what is left, or comes later, ends it.
            let received = socket.receive(&mut pool, now, |meta, data| {
                self.on_message(index, meta, data, now);
            });
            match received {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Errors of earlier sends surface here; the connection's timers decide.
                Err(error) => tracing::debug!(%error, "receiving from the underlay"),
            }
        }
        self.pool = pool;
        self.sockets = sockets;
        self.send_responses(now);
        // What is touched meanwhile was driven by who touched it.
        for position in 0..self.dirty.len() {
            if let Some(&index) = self.dirty.get(position) {
                self.drive(index, now);
            }
        }
    }

    /// Hands every record that has arrived to `sink`, with the peer it came from.
    pub fn take_records(&mut self, now: Instant, mut sink: impl FnMut(PeerId, Received<'_>)) {
        for position in 0..self.dirty.len() {
            let Some(&index) = self.dirty.get(position) else {
                break;
            };
            let Some(slot) = self.slot(index) else {
                continue;
            };
            let (Stage::Live | Stage::Draining, Some(peer)) = (slot.stage, slot.peer) else {
                continue;
            };
            if let Err(error) = slot.link.receive(&mut |record| sink(peer, record)) {
                self.on_bad_record(index, error, now);
            }
        }
    }

    /// A live link to `peer` for a flow, or `None` while there is no connection.
    pub fn link(&mut self, peer: PeerId, flow: u32) -> Option<&mut dyn PeerLink> {
        let live = &self.peers.get(&peer)?.live;
        let index = *live.get(flow as usize % live.len().max(1))?;
        if self.budget.handed_out != Some(index) {
            self.share_memory(index);
        }
        let slot = self.links.get_mut(index)?.as_deref_mut()?;
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(index);
        }
        Some(&mut slot.link)
    }

    /// Sends whatever the connections have to say.
    pub fn transmit(&mut self, now: Instant) {
        for socket in &mut self.sockets {
            socket.send_held(now);
        }
        // Two lists that keep their room take turns.
        let mut touched = std::mem::replace(&mut self.dirty, std::mem::take(&mut self.asked));
        for index in touched.drain(..) {
            let more = self.transmit_link(index, now);
            self.take_stock(index, now);
            if more {
                self.dirty.push(index);
            } else if let Some(slot) = self.slot(index) {
                slot.dirty = false;
            }
        }
        self.asked = touched;
    }

    /// Notes what a connection that was touched has come to: when it wants to be called, what waits
    /// in its queue, what became of packets.
    fn take_stock(&mut self, index: usize, now: Instant) {
        let Some(slot) = self.links.get_mut(index).and_then(Option::as_deref_mut) else {
            return;
        };
        let deadline = slot.deadline(self.context.settings.idle_timeout);
        let due = [slot.link.poll_timeout(), deadline];
        self.timers.set(index, due.into_iter().flatten().min(), now);
        self.queues.add(slot.link.take_accounts());
        let bytes = slot.link.queue_bytes();
        self.budget.note(&mut slot.queue_bytes, bytes);
        self.budget.handed_out = None;
        let before = std::mem::replace(&mut slot.queued, slot.link.queued());
        self.queued = self.queued + slot.queued - before;
    }

    /// Whether a connection has more to send than one turn allows, and its socket takes it.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.dirty.iter().any(|index| {
            let slot = self.links.get(*index).and_then(Option::as_deref);
            let socket = slot.and_then(|slot| self.sockets.get(slot.socket));
            socket.is_some_and(|socket| !socket.is_held())
        })
    }

    /// When [`Self::handle_timeouts`] is due. Connections that were touched count from the next
    /// [`Self::transmit`] on.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let due = [self.timers.next(), self.dial_due, Some(self.review_due)];
        due.into_iter().flatten().min()
    }

    /// Time has passed: retransmissions, dead peers, new attempts. O(places of connections), in a turn
    /// in which something is due.
    pub fn handle_timeouts(&mut self, now: Instant) {
        let idle_timeout = self.context.settings.idle_timeout;
        for index in 0..self.links.len() {
            if !self.timers.is_due(index, now) {
                continue;
            }
            self.mark(index);
            let Some(slot) = self.slot(index) else {
                continue;
            };
            if slot.link.poll_timeout().is_some_and(|due| due <= now) {
                slot.link.handle_timeout(now);
                self.drive(index, now);
            }
            let Some(slot) = self.slot(index) else {
                continue;
            };
            let stage = slot.stage;
            if slot.deadline(idle_timeout).is_some_and(|due| due <= now) {
                let (code, reason) = match stage {
                    Stage::Handshaking => (close::TOO_SLOW, "the handshake took too long"),
                    Stage::Draining => (close::REPLACED, REPLACED),
                    Stage::Live | Stage::Closing => (close::TOO_SLOW, "the peer is silent"),
                };
                self.end(index, code, reason, now);
            }
        }
        if self.review_due <= now {
            self.review(now);
        }
        if self.dial_due.is_some_and(|due| due <= now) {
            self.dial(now);
        }
    }

    /// Closes all connections: the daemon stops.
    pub fn shut_down(&mut self, now: Instant) {
        for index in 0..self.links.len() {
            if let Some(slot) = self.slot(index) {
                slot.link.close(now, close::SHUTDOWN, "the daemon stops");
                self.mark(index);
            }
        }
        self.transmit(now);
    }

    /// What became of packets since the last call, as of the last [`Self::transmit`].
    pub fn take_accounts(&mut self) -> Accounts {
        let queues = std::mem::take(&mut self.queues);
        Accounts {
            lost: std::mem::take(&mut self.lost) + queues.cut,
            queues,
            bad_records: std::mem::take(&mut self.bad_records),
        }
    }

    /// Packets that wait in front of connections, as of the last [`Self::transmit`].
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// True once after a peer told how many workers it has.
    pub fn take_workers_learned(&mut self) -> bool {
        std::mem::take(&mut self.workers_learned)
    }

    /// True once after a peer came, went or changed its state.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The state of every peer. O(peers and their connections), and allocates: for an operator's eyes, a
    /// few times a second at most.
    #[must_use]
    pub fn reports(&self) -> Vec<PeerReport> {
        self.peers
            .values()
            .map(|entry| self.report(entry))
            .collect()
    }

    fn report(&self, entry: &PeerEntry) -> PeerReport {
        let links: Vec<LinkReport> = entry
            .live
            .iter()
            .filter_map(|index| self.links.get(*index)?.as_deref())
            .map(|slot| LinkReport {
                remote: slot.link.remote(),
                path: slot.link.path(),
                segmentation: self.segmentation(slot),
            })
            .collect();
        let state = match (links.is_empty(), self.context.node < *entry.node()) {
            (false, _) => PeerState::Connected,
            (true, true) => PeerState::Connecting,
            (true, false) => PeerState::Waiting,
        };
        PeerReport {
            id: entry.id(),
            node: entry.node().clone(),
            configured: entry.peer.target.underlay.clone(),
            state,
            since: entry.since,
            links,
            ended: entry.ended,
            last_error: entry.last_error.clone(),
        }
    }

    // Datagrams in.

    fn on_message(
        &mut self,
        socket: usize,
        meta: &udp::Received,
        mut data: BytesMut,
        now: Instant,
    ) {
        let ecn = EcnCodepoint::from_bits(meta.ecn);
        while !data.is_empty() {
            let payload = data.split_to(meta.segment_bytes.clamp(1, data.len()));
            self.scratch.clear();
            let event =
                self.engine
                    .handle(now, meta.from, meta.to, ecn, payload, &mut self.scratch);
            match event {
                Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                    self.on_connection_event(handle, event, now);
                }
                Some(DatagramEvent::NewConnection(incoming)) => self.admit(socket, incoming, now),
                Some(DatagramEvent::Response(transmit)) => self.respond(socket, transmit),
                None => {}
            }
        }
    }

    fn on_connection_event(
        &mut self,
        handle: ConnectionHandle,
        event: ConnectionEvent,
        now: Instant,
    ) {
        if let Some(slot) = self.slot(handle.0) {
            slot.heard = now;
            slot.link.connection().handle_event(event);
            self.mark(handle.0);
        }
    }

    /// Accepts a handshake from an address of the fabric, after a proof of address under load.
    fn admit(&mut self, socket: usize, incoming: Incoming, now: Instant) {
        let remote = incoming.remote_address();
        if !self
            .peers
            .values()
            .any(|entry| entry.has_address(remote.ip()))
        {
            self.engine.ignore(incoming);
            if let Some(suppressed) = self.strangers.allow(now) {
                tracing::warn!(%remote, suppressed, "ignored a handshake from an address of no node of the fabric");
            }
            return;
        }
        self.follow_identity(now);
        let proven = incoming.remote_address_validated();
        let accepting = self
            .links
            .iter()
            .flatten()
            .filter(|slot| slot.stage == Stage::Handshaking && !slot.dialled);
        if proven {
            let same =
                accepting.filter(|slot| slot.proven && slot.link.remote().ip() == remote.ip());
            if same.count() >= HANDSHAKES_PER_ADDRESS_MAX {
                self.engine.ignore(incoming);
                self.note_refusal(remote, "too many handshakes at once");
                return;
            }
        } else if accepting.filter(|slot| !slot.proven).count() >= UNPROVEN_HANDSHAKES_MAX
            && incoming.may_retry()
        {
            self.scratch.clear();
            if let Ok(transmit) = self.engine.retry(incoming, &mut self.scratch) {
                self.respond(socket, transmit);
            }
            return;
        }
        let config = self.server_configs[usize::from(remote.is_ipv6())].clone();
        self.scratch.clear();
        match self
            .engine
            .accept(incoming, now, &mut self.scratch, Some(config))
        {
            Ok((handle, connection)) => {
                self.insert(handle, QuicLink::new(connection), socket, None, now);
                if let Some(slot) = self.slot(handle.0) {
                    slot.proven = proven;
                }
            }
            Err(refused) => {
                self.note_refusal(remote, &refused.cause.to_string());
                if let Some(transmit) = refused.response {
                    self.respond(socket, transmit);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
