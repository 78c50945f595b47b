//! One connection from its handshake to its end.
//!
//! Dialled: dial -> handshake (the server's certificate must name the node we meant) -> our hello ->
//! its hello: live. Accepted: handshake (the client's certificate must name a node of the fabric):
//! live -> its hello, ours. A hello with the number of a connection that is already there, or from a
//! later start of the node, takes that connection's place. How long one may last is in [`super::renewal`].

use std::{net::SocketAddr, time::Instant};

use fabric_core::{ids::PeerId, record::RecordError};
use fabric_proto::hello::{Hello, PROTOCOL_VERSION};
use quinn_proto::{ConnectionError, ConnectionHandle, Dir, Event, StreamEvent};
use rustls_pki_types::CertificateDer;

use super::{Endpoint, EndpointContext, REPLACED, Slot, Stage, renewal::Terms};
use crate::{
    node_id::NodeId,
    tunnel::{
        dialer::Renewal,
        link::PeerLink,
        quic::{QuicLink, SecondControlStream, close},
        report::printable,
    },
};

impl Endpoint {
    /// Runs a connection's events until there are none.
    pub(super) fn drive(&mut self, index: usize, now: Instant) {
        loop {
            if !self.exchange_endpoint_events(index, now) {
                return;
            }
            let Some(slot) = self.slot(index) else { return };
            let Some(event) = slot.link.connection().poll() else {
                return;
            };
            self.on_event(index, event, now);
        }
    }

    /// Passes events between a connection and the engine; false once the connection is gone.
    pub(super) fn exchange_endpoint_events(&mut self, index: usize, now: Instant) -> bool {
        let Some(slot) = self.links.get_mut(index).and_then(Option::as_deref_mut) else {
            return false;
        };
        while let Some(event) = slot.link.connection().poll_endpoint_events() {
            let drained = event.is_drained();
            if let Some(event) = self.engine.handle_event(slot.handle, event) {
                slot.link.connection().handle_event(event);
            }
            if drained {
                self.forget(index, now);
                return false;
            }
        }
        true
    }

    fn on_event(&mut self, index: usize, event: Event, now: Instant) {
        self.mark(index);
        let is_closing = |slot: &mut Slot| slot.stage == Stage::Closing;
        if self.slot(index).is_none_or(is_closing) {
            return;
        }
        match event {
            Event::HandshakeDataReady | Event::DatagramsUnblocked => {}
            Event::Connected => self.on_connected(index, now),
            Event::ConnectionLost { reason } => self.on_lost(index, &reason, now),
            Event::DatagramReceived => {
                if let Some(slot) = self.slot(index) {
                    slot.link.mark_datagrams();
                }
            }
            Event::Stream(StreamEvent::Opened { dir }) => self.on_opened(index, dir, now),
            Event::Stream(StreamEvent::Readable { id }) => {
                if id.dir() == Dir::Bi {
                    self.on_control(index, now);
                } else if let Some(slot) = self.slot(index) {
                    slot.link.mark_readable(id);
                }
            }
            // No node stops a stream. One that did would have us open another each time, and each
            // would go on in the middle of a record.
            Event::Stream(StreamEvent::Stopped { .. }) => {
                self.refuse(index, "it stopped a stream", "stopped stream", now);
            }
            Event::Stream(
                StreamEvent::Writable { .. }
                | StreamEvent::Finished { .. }
                | StreamEvent::Available { .. },
            ) => {}
        }
    }

    /// TLS is done and both certificates are of our CA: does the other one name a node we know?
    fn on_connected(&mut self, index: usize, now: Instant) {
        let Some(slot) = self.slot(index) else { return };
        let remote = slot.link.remote();
        let dialled = slot.dialled;
        let certificates = slot
            .link
            .connection()
            .crypto_session()
            .peer_identity()
            .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
        let node = match certificates.as_deref() {
            None => Err("it showed no certificate".to_owned()),
            Some(chain) => self
                .identity
                .peer_node_id(chain)
                .map_err(|error| error.to_string()),
        };
        let terms = certificates.and_then(|chain| Terms::of(*chain));
        let key = terms.as_ref().map(|terms| terms.key);
        let known = node.and_then(|node| match self.peer_of(&node) {
            Some(peer) if !self.is_at(peer, remote) => {
                Err(format!("{node} calls from an address that is not its own"))
            }
            Some(peer) if !key.is_some_and(|key| self.accepts(peer, key)) => Err(format!(
                "{node} shows a valid certificate with another key than the state source names for it"
            )),
            Some(peer) => Ok((node, peer)),
            None => Err(format!(
                "{node} has a valid certificate but is not a node of this fabric"
            )),
        });
        let (node, peer) = match known {
            Ok(known) => known,
            Err(reason) => {
                self.end(index, close::UNKNOWN_NODE, "not a node of this fabric", now);
                // Afterwards, so that the operator reads this and not the few words for the peer.
                self.note_refusal(remote, &reason);
                return;
            }
        };
        let hello = self.hello(index);
        let Some(slot) = self.slot(index) else { return };
        slot.peer = Some(peer);
        slot.terms = terms;
        if dialled {
            slot.link.open_control(&hello);
        } else {
            tracing::debug!(%node, %remote, "accepted");
            self.go_live(index, peer, now);
            self.bound_accepted(peer, now);
        }
    }

    /// A peer has no use for more connections than workers: the oldest makes way.
    fn bound_accepted(&mut self, peer: PeerId, now: Instant) {
        let Some(entry) = self.peers.get(&peer) else {
            return;
        };
        let accepted = |index: &usize| {
            let slot = self.links.get(*index).and_then(Option::as_deref);
            slot.is_some_and(|slot| !slot.dialled)
        };
        let accepted: Vec<usize> = entry.live.iter().copied().filter(accepted).collect();
        let excess = accepted
            .len()
            .saturating_sub(entry.accepted_max(self.context.workers));
        for index in accepted.into_iter().take(excess) {
            self.end(index, close::REPLACED, "too many connections", now);
        }
    }

    fn on_opened(&mut self, index: usize, dir: Dir, now: Instant) {
        let hello = self.hello(index);
        let Some(slot) = self.slot(index) else { return };
        match slot.link.accept_streams(dir) {
            Ok(false) => {}
            Ok(true) => {
                slot.link.say_hello(&hello);
                self.on_control(index, now);
            }
            Err(SecondControlStream) => {
                let reason = "it opened a second control stream";
                self.refuse(index, reason, "second control stream", now);
            }
        }
    }

    /// Ends the connection of a peer that does not keep to the protocol.
    fn refuse(&mut self, index: usize, reason: &str, told: &'static str, now: Instant) {
        let Some(slot) = self.slot(index) else { return };
        let remote = slot.link.remote();
        self.end(index, close::MALFORMED, told, now);
        // Afterwards, so that the operator reads this and not the few words for the peer.
        self.note_refusal(remote, reason);
    }

    fn on_control(&mut self, index: usize, now: Instant) {
        let Some(slot) = self.slot(index) else { return };
        let Some(peer) = slot.peer else { return };
        match slot.link.read_hello() {
            Ok(None) => {}
            Ok(Some(hello)) if hello.protocol_version >= PROTOCOL_VERSION => {
                self.on_hello(index, peer, &hello, now);
            }
            Ok(Some(hello)) => {
                let reason = format!("it speaks protocol version {}", hello.protocol_version);
                self.refuse(index, &reason, "protocol version", now);
            }
            Err(reason) => self.refuse(index, &reason, "malformed hello", now),
        }
    }

    fn on_hello(&mut self, index: usize, peer: PeerId, hello: &Hello, now: Instant) {
        let Some(slot) = self.slot(index) else { return };
        slot.boot_id = Some(hello.boot_id);
        let connection = *slot.connection.get_or_insert(hello.connection);
        let (dialled, handshaking) = (slot.dialled, slot.stage == Stage::Handshaking);
        if let Some(entry) = self.peers.get_mut(&peer) {
            self.workers_learned |= entry.peer.shared.learn_workers(hello.workers);
            if let Some(dialled) = entry.dialled.get_mut(&connection).filter(|_| dialled) {
                dialled.dialer.succeeded();
            }
        }
        if handshaking {
            self.go_live(index, peer, now);
        }
        self.supersede(index, peer, connection, hello.boot_id, now);
    }

    /// Ends what the connection `index` takes the place of: at once if it is of another start of the peer,
    /// otherwise when what is on its way has come.
    fn supersede(
        &mut self,
        index: usize,
        peer: PeerId,
        connection: u32,
        boot_id: u64,
        now: Instant,
    ) {
        let mut superseded = Vec::new();
        for (other, slot) in self.links.iter().enumerate() {
            let Some(slot) = slot.as_deref() else {
                continue;
            };
            let carries = matches!(slot.stage, Stage::Live | Stage::Draining);
            if other == index || !carries || slot.peer != Some(peer) {
                continue;
            }
            if slot.boot_id.is_some_and(|other| other != boot_id) {
                superseded.push((other, false));
            } else if slot.connection == Some(connection) {
                // One at a time: what drained before has had its time.
                superseded.push((other, slot.stage == Stage::Live));
            }
        }
        for (other, may_drain) in superseded {
            if may_drain {
                self.drain(other, index, now);
            } else {
                self.end(other, close::REPLACED, REPLACED, now);
            }
        }
    }

    fn go_live(&mut self, index: usize, peer: PeerId, now: Instant) {
        let Some(slot) = self.slot(index) else { return };
        slot.stage = Stage::Live;
        let remote = slot.link.remote();
        let connection = slot.connection.filter(|_| slot.dialled);
        self.review_due = now;
        let Some(entry) = self.peers.get_mut(&peer) else {
            return;
        };
        if entry.live.is_empty() {
            entry.since = now;
            if let Some(suppressed) = entry.log.allow(now) {
                tracing::info!(peer = %entry.node(), %remote, suppressed, "peer connected");
            }
        }
        entry.live.push(index);
        if let Some(dialled) = connection.and_then(|number| entry.dialled.get_mut(&number))
            && dialled.renewal.link == Some(index)
        {
            dialled.link = Some(index);
            dialled.renewal = Renewal::default();
        }
    }

    fn on_lost(&mut self, index: usize, reason: &ConnectionError, now: Instant) {
        let Some(slot) = self.slot(index) else { return };
        let remote = slot.link.remote();
        let stage = slot.stage;
        let text = printable(&reason.to_string());
        self.detach(index, &text, now);
        if stage == Stage::Handshaking && !matches!(reason, ConnectionError::TimedOut) {
            self.note_refusal(remote, &text);
        }
    }

    /// Closes a connection from this side.
    pub(super) fn end(&mut self, index: usize, code: u32, reason: &'static str, now: Instant) {
        let Some(slot) = self.slot(index) else { return };
        if slot.stage != Stage::Closing {
            slot.link.close(now, code, reason);
            self.detach(index, reason, now);
        }
        self.mark(index);
        self.drive(index, now);
    }

    /// Takes a connection out of service: its queue is lost, its dialler waits for the next turn.
    fn detach(&mut self, index: usize, reason: &str, now: Instant) {
        let spread = self.context.boot_id.rotate_left(index as u32 % 64) ^ index as u64;
        let Some(slot) = self.slot(index) else { return };
        let carried = matches!(slot.stage, Stage::Live | Stage::Draining);
        slot.stage = Stage::Closing;
        let accounts = slot.link.take_accounts();
        let lost = slot.link.discard_queue();
        let counted = std::mem::take(&mut slot.queued);
        let mut queue_bytes = std::mem::take(&mut slot.queue_bytes);
        let (path, in_flight) = (slot.link.path(), slot.link.in_flight_bytes());
        let (peer, connection, dialled) = (slot.peer, slot.connection, slot.dialled);
        self.budget.note(&mut queue_bytes, 0);
        self.queues.add(accounts);
        self.lost += lost;
        self.queued -= counted;
        self.changed = true;
        let Some(entry) = peer.and_then(|peer| self.peers.get_mut(&peer)) else {
            return;
        };
        let was_live = entry.live.contains(&index);
        if carried {
            entry.ended.add_link(path, in_flight);
        }
        entry.live.retain(|live| *live != index);
        if carried == was_live {
            entry.last_error = reason.to_owned();
        }
        if was_live && entry.live.is_empty() {
            entry.since = now;
            if let Some(suppressed) = entry.log.allow(now) {
                tracing::warn!(peer = %entry.node(), reason, lost, in_flight, suppressed, "peer disconnected");
            }
        }
        let Some(dialled) = connection
            .filter(|_| dialled)
            .and_then(|connection| entry.dialled.get_mut(&connection))
        else {
            return;
        };
        if dialled.link == Some(index) {
            // One that was to take its place does so sooner.
            dialled.link = std::mem::take(&mut dialled.renewal).link;
            if dialled.link.is_none() {
                dialled.dialer.failed(now, spread);
                let due = dialled.dialer.due();
                self.dial_due = self.dial_due.into_iter().chain([due]).min();
            }
        } else if dialled.renewal.link == Some(index) {
            dialled.renewal.failed();
            self.review_due = now;
        }
    }

    /// Gives up the place of a connection that the engine has finished with.
    ///
    /// A connection that timed out or was reset is finished at once, before it was asked for its
    /// last words: its queue and its dialler must hear of the end all the same.
    fn forget(&mut self, index: usize, now: Instant) {
        while let Some(slot) = self.slot(index).filter(|slot| slot.stage != Stage::Closing) {
            match slot.link.connection().poll() {
                Some(Event::ConnectionLost { reason }) => self.on_lost(index, &reason, now),
                Some(_) => {}
                None => self.detach(index, "the connection ended", now),
            }
        }
        if let Some(slot) = self.links.get_mut(index) {
            *slot = None;
        }
        self.timers.set(index, None, now);
        for entry in self.peers.values_mut() {
            entry.live.retain(|live| *live != index);
        }
    }

    pub(super) fn on_bad_record(&mut self, index: usize, error: RecordError, now: Instant) {
        self.bad_records += 1;
        let reason = format!("malformed record: {error}");
        self.refuse(index, &reason, "malformed record", now);
    }

    pub(super) fn insert(
        &mut self,
        handle: ConnectionHandle,
        link: QuicLink,
        socket: usize,
        dialled: Option<(PeerId, u32)>,
        now: Instant,
    ) {
        if self.links.len() <= handle.0 {
            self.links.resize_with(handle.0 + 1, || None);
        }
        let identity = self.identity.clone();
        if let Some(place) = self.links.get_mut(handle.0) {
            *place = Some(Box::new(Slot {
                link,
                handle,
                socket,
                peer: dialled.map(|(peer, _)| peer),
                connection: dialled.map(|(_, connection)| connection),
                dialled: dialled.is_some(),
                proven: dialled.is_some(),
                boot_id: None,
                identity,
                terms: None,
                stage: Stage::Handshaking,
                since: now,
                heard: now,
                dirty: false,
                queued: 0,
                queue_bytes: 0,
            }));
        }
        self.mark(handle.0);
    }

    fn peer_of(&self, node: &NodeId) -> Option<PeerId> {
        self.peers
            .values()
            .find(|entry| entry.node() == node)
            .map(super::PeerEntry::id)
    }

    fn is_at(&self, peer: PeerId, remote: SocketAddr) -> bool {
        let entry = self.peers.get(&peer);
        entry.is_some_and(|entry| entry.has_address(remote.ip()))
    }

    fn hello(&mut self, index: usize) -> Hello {
        Hello {
            protocol_version: PROTOCOL_VERSION,
            workers: self.context.workers,
            boot_id: self.context.boot_id,
            connection: self
                .slot(index)
                .and_then(|slot| slot.connection)
                .unwrap_or(0),
            software: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// A connection that was not wanted, named in the log once a second and kept for the operator.
    pub(super) fn note_refusal(&mut self, remote: SocketAddr, reason: &str) {
        let now = Instant::now();
        let reason = printable(reason);
        let entry = self
            .peers
            .values_mut()
            .find(|entry| entry.has_address(remote.ip()));
        let node = entry.map(|entry| {
            entry.last_error.clone_from(&reason);
            entry.node().to_string()
        });
        self.changed |= node.is_some();
        if let Some(suppressed) = self.refusals.allow(now) {
            let node = node.as_deref().unwrap_or("<unknown>");
            tracing::warn!(address_of = node, %remote, reason, suppressed, "connection refused");
        }
    }

    pub(super) fn slot(&mut self, index: usize) -> Option<&mut Slot> {
        self.links.get_mut(index).and_then(Option::as_deref_mut)
    }

    /// Puts a connection on the list of those that may have something to send or to read.
    pub(super) fn mark(&mut self, index: usize) {
        if let Some(slot) = self.links.get_mut(index).and_then(Option::as_deref_mut)
            && !slot.dirty
        {
            slot.dirty = true;
            self.dirty.push(index);
        }
    }
}

/// Largest UDP payload of an IP packet of `mtu` bytes: less 20 or 40 bytes of IP and 8 of UDP.
pub(super) fn payload_max(mtu: u16, ipv6: bool) -> u16 {
    mtu.saturating_sub(if ipv6 { 48 } else { 28 })
        .clamp(1200, 65_527)
}

pub(super) fn payload_max_for(context: &EndpointContext, ipv6: bool) -> u16 {
    payload_max(context.underlay_mtu, ipv6)
}
