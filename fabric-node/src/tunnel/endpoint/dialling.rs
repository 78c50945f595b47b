//! Beginning connections, and ending those of peers that changed.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use fabric_core::ids::PeerId;
use quinn_proto::{ClientConfig, crypto::rustls::QuicClientConfig};

use super::{Endpoint, Slot, lifecycle::payload_max_for};
use crate::{
    node_id::NodeId,
    pki::identity::SERVER_NAME,
    tunnel::{
        membership::Dialled,
        quic::{QuicLink, close},
        socket::UnderlaySocket,
        transport::transport_config,
    },
};

impl Endpoint {
    /// Begins every attempt that is due.
    pub fn dial(&mut self, now: Instant) {
        self.follow_identity(now);
        let context = &self.context;
        let locals: Vec<SocketAddr> = self.sockets.iter().map(UnderlaySocket::local).collect();
        let mut due = Vec::new();
        for (id, entry) in &mut self.peers {
            entry.plan(
                &context.node,
                context.worker,
                context.workers,
                now,
                context.settings.reconnect_max,
            );
            for (connection, dialled) in &entry.dialled {
                if dialled.due().is_some_and(|due| due <= now) {
                    let way = entry.way(*connection, &dialled.dialer, &locals);
                    due.push((*id, *connection, entry.node().clone(), way));
                }
            }
        }
        for (peer, connection, node, way) in due {
            let dialled = match way {
                Some(way) => self.dial_one(peer, connection, &node, way, now),
                None => Err(format!(
                    "it has no address of a family that this node has one of, with a UDP port left for its worker of connection {connection}"
                )),
            };
            let error = dialled.err();
            let spread = self.context.boot_id.rotate_left(connection % 64) ^ u64::from(peer.0);
            let Some(entry) = self.peers.get_mut(&peer) else {
                continue;
            };
            if let (Some(error), Some(dialled)) = (error, entry.dialled.get_mut(&connection)) {
                tracing::debug!(peer = %node, ?way, %error, "cannot dial");
                entry.last_error = error;
                if dialled.link.is_none() {
                    dialled.dialer.failed(now, spread);
                } else {
                    dialled.renewal.failed();
                    self.review_due = now;
                }
            }
        }
        let dialled = self.peers.values().flat_map(|entry| entry.dialled.values());
        self.dial_due = dialled.filter_map(Dialled::due).min();
    }

    fn dial_one(
        &mut self,
        peer: PeerId,
        connection: u32,
        node: &NodeId,
        (socket, address): (usize, SocketAddr),
        now: Instant,
    ) -> Result<(), String> {
        let tls = self.identity.client_config(node.clone());
        let crypto = QuicClientConfig::try_from(tls).map_err(|e| e.to_string())?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        let payload_max = payload_max_for(&self.context, address.is_ipv6());
        config.transport_config(transport_config(&self.context.settings, payload_max));
        let (handle, quic) = self
            .engine
            .connect(now, config, address, SERVER_NAME)
            .map_err(|e| e.to_string())?;
        let link = QuicLink::new(quic);
        self.insert(handle, link, socket, Some((peer, connection)), now);
        if let Some(dialled) = self
            .peers
            .get_mut(&peer)
            .and_then(|entry| entry.dialled.get_mut(&connection))
        {
            // Beside one that carries packets it is there to take its place.
            if dialled.link.is_none() {
                dialled.link = Some(handle.0);
            } else {
                dialled.renewal.link = Some(handle.0);
                dialled.renewal.due = None;
            }
        }
        Ok(())
    }

    pub(super) fn drop_peer(&mut self, id: PeerId, now: Instant) {
        for index in self.links_of(id) {
            self.end(
                index,
                close::UNKNOWN_NODE,
                "no longer a node of this fabric",
                now,
            );
        }
        if let Some(entry) = self.peers.remove(&id) {
            tracing::info!(peer = %entry.node(), "peer removed");
        }
    }

    /// Closes connections to addresses that their node no longer has.
    pub(super) fn cut_moved(&mut self, now: Instant) {
        let moved: Vec<usize> = self
            .links
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| {
                let slot = slot.as_deref()?;
                let entry = self.peers.get(&slot.peer?)?;
                (!entry.has_address(slot.link.remote().ip())).then_some(index)
            })
            .collect();
        for index in moved {
            self.end(index, close::REPLACED, "the node's address changed", now);
        }
    }

    fn links_of(&self, peer: PeerId) -> Vec<usize> {
        let of_peer =
            |slot: &Option<Box<Slot>>| slot.as_deref().is_some_and(|s| s.peer == Some(peer));
        (0..self.links.len())
            .filter(|index| self.links.get(*index).is_some_and(of_peer))
            .collect()
    }
}
