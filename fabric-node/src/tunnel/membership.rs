//! What an endpoint knows of each peer node: its connections, and whose turn it is to dial.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use fabric_core::ids::PeerId;

use super::{
    dialer::{Dialer, Renewal},
    report::{EndedLinks, Throttle},
};
use crate::{node_id::NodeId, pki::key::KeyHash};

/// Worker counts beyond this are not believed: a peer cannot make us dial without bound.
const PEER_WORKERS_MAX: u32 = 64;

/// Lines about one peer that comes and goes: two restarts in a second are seen, a peer that does
/// nothing else does not fill the log.
const LOG_LINES_PER_SECOND_MAX: u32 = 4;

/// A peer to hold connections with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTarget {
    /// Its number in snapshots, the same for the life of the daemon.
    pub id: PeerId,
    /// Its name, which its certificate must bear.
    pub node: NodeId,
    /// Where its workers listen, worker i at port + i.
    pub underlay: Vec<SocketAddr>,
    /// The only keys that it may show, usually one, two while it changes; any if there are none.
    pub keys: Vec<KeyHash>,
}

impl PeerTarget {
    /// Whether the node may show this key.
    #[must_use]
    pub fn accepts(&self, key: KeyHash) -> bool {
        self.keys.is_empty() || self.keys.contains(&key)
    }
}

/// A peer as the control plane hands it to every worker.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Who and where.
    pub target: PeerTarget,
    /// What the workers tell each other about it.
    pub shared: Arc<PeerShared>,
}

/// Learned by one worker from the peer's hello, used by all.
#[derive(Debug, Default)]
pub struct PeerShared {
    workers: AtomicU32,
}

impl PeerShared {
    /// The peer's workers, once a hello has told.
    #[must_use]
    pub fn workers(&self) -> Option<u32> {
        Some(self.workers.load(Ordering::Relaxed)).filter(|workers| *workers > 0)
    }

    /// Notes a hello; true if it says something new.
    pub fn learn_workers(&self, workers: u32) -> bool {
        let workers = workers.clamp(1, PEER_WORKERS_MAX);
        self.workers.swap(workers, Ordering::Relaxed) != workers
    }
}

/// One worker's view of a peer.
#[derive(Debug)]
pub(super) struct PeerEntry {
    pub(super) peer: Peer,
    /// Links that carry packets, by their index in the endpoint.
    pub(super) live: Vec<usize>,
    /// Connections that this worker dials: their numbers, dialling state and present link.
    pub(super) dialled: BTreeMap<u32, Dialled>,
    pub(super) since: Instant,
    pub(super) last_error: String,
    pub(super) ended: EndedLinks,
    /// Whether its keys changed last by one that came beside another: it was it that changed them.
    pub(super) rotates: bool,
    /// Its comings and goings in the log.
    pub(super) log: Throttle,
}

#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) dialer: Dialer,
    pub(super) link: Option<usize>,
    pub(super) renewal: Renewal,
}

impl Dialled {
    /// When the next attempt is due: at a connection while there is none, or at one to take its place.
    pub(super) fn due(&self) -> Option<Instant> {
        match (self.link, self.renewal.link) {
            (None, _) => Some(self.dialer.due()),
            (Some(_), None) => self.renewal.due,
            (Some(_), Some(_)) => None,
        }
    }
}

impl PeerEntry {
    pub(super) fn new(peer: Peer, now: Instant) -> Self {
        Self {
            peer,
            live: Vec::new(),
            dialled: BTreeMap::new(),
            since: now,
            last_error: String::new(),
            ended: EndedLinks::default(),
            rotates: false,
            log: Throttle::new(LOG_LINES_PER_SECOND_MAX),
        }
    }

    /// Takes over what is known of the peer now.
    pub(super) fn follow(&mut self, peer: &Peer) {
        let (before, keys) = (&self.peer.target.keys, &peer.target.keys);
        if before != keys {
            self.rotates = keys.iter().any(|key| before.contains(key));
        }
        self.peer = peer.clone();
    }

    pub(super) fn id(&self) -> PeerId {
        self.peer.target.id
    }

    pub(super) fn node(&self) -> &NodeId {
        &self.peer.target.node
    }

    pub(super) fn has_address(&self, ip: IpAddr) -> bool {
        self.peer
            .target
            .underlay
            .iter()
            .any(|address| address.ip() == ip)
    }

    /// Makes the set of dialled connections what it should be: the node with the smaller name
    /// dials, one connection for each of the larger number of workers, spread over both sides'.
    pub(super) fn plan(
        &mut self,
        local: &NodeId,
        worker: u32,
        workers: u32,
        now: Instant,
        backoff_max: Duration,
    ) {
        if local >= self.node() {
            return;
        }
        let total = self.total(workers);
        for connection in (0..total).filter(|connection| connection % workers == worker) {
            self.dialled.entry(connection).or_insert_with(|| Dialled {
                dialer: Dialer::new(now, backoff_max),
                link: None,
                renewal: Renewal::default(),
            });
        }
        // What waits after a failure is remembered: else a peer that tells now of many workers, now of
        // few, would have all those attempts begin at once each time.
        self.dialled.retain(|connection, dialled| {
            *connection < total || dialled.link.is_some() || dialled.dialer.due() > now
        });
    }

    /// Connections accepted from this peer at once, at most: those of one start of the peer's daemon
    /// and of the one before, whose end may not be known yet.
    pub(super) fn accepted_max(&self, workers: u32) -> usize {
        let per_worker = self.total(workers).div_ceil(workers.max(1));
        2 * per_worker as usize + 2
    }

    /// Until the peer has told how many workers it has, one connection does.
    fn total(&self, workers: u32) -> u32 {
        let theirs = self.peer.shared.workers();
        theirs.map_or(1, |theirs| theirs.max(workers))
    }

    /// Where `connection` leads at its next attempt, the peer's worker that it belongs to, and by
    /// which of this worker's sockets: each address of the peer from the first socket of its family,
    /// then from the second, and so on. An address of another family is passed over.
    pub(super) fn way(
        &self,
        connection: u32,
        attempt: &Dialer,
        locals: &[SocketAddr],
    ) -> Option<(usize, SocketAddr)> {
        let mut ways: Vec<(usize, usize, SocketAddr)> = Vec::new();
        for remote in &self.peer.target.underlay {
            let of_family = |(_, local): &(usize, &SocketAddr)| local.is_ipv4() == remote.is_ipv4();
            let sockets = locals.iter().enumerate().filter(of_family);
            let ranked = sockets.enumerate();
            ways.extend(ranked.map(|(rank, (socket, _))| (rank, socket, *remote)));
        }
        ways.sort_by_key(|(rank, ..)| *rank);
        let (_, socket, mut address) = *ways.get(attempt.address_index(ways.len()))?;
        let workers = self.peer.shared.workers().unwrap_or(1);
        let offset = u16::try_from(connection % workers).ok()?;
        address.set_port(address.port().checked_add(offset)?);
        Some((socket, address))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const BACKOFF_MAX: Duration = Duration::from_secs(1);

    fn entry(port: u16, now: Instant) -> PeerEntry {
        let target = PeerTarget {
            id: PeerId(1),
            node: NodeId::new("worker-b").unwrap(),
            underlay: vec![SocketAddr::new([10, 90, 0, 2].into(), port)],
            keys: Vec::new(),
        };
        let shared = Arc::default();
        PeerEntry::new(Peer { target, shared }, now)
    }

    fn plan(entry: &mut PeerEntry, now: Instant) {
        entry.plan(&NodeId::new("worker-a").unwrap(), 0, 1, now, BACKOFF_MAX);
    }

    /// A peer that tells now of many workers, now of few, does not make waiting attempts due.
    #[test]
    fn changing_worker_counts_do_not_reset_the_backoff() {
        let now = Instant::now();
        let mut entry = entry(7946, now);
        entry.peer.shared.learn_workers(64);
        plan(&mut entry, now);
        assert_eq!(entry.dialled.len(), 64);
        for dialled in entry.dialled.values_mut() {
            dialled.dialer.failed(now, 0);
        }
        for workers in [1, 64, 1, 64] {
            entry.peer.shared.learn_workers(workers);
            plan(&mut entry, now);
            assert!(entry.dialled.values().all(|d| d.dialer.due() > now));
        }
        entry.peer.shared.learn_workers(1);
        plan(&mut entry, now + BACKOFF_MAX);
        assert_eq!(entry.dialled.len(), 1);
    }

    /// A worker whose UDP port would be beyond the last has no address.
    #[test]
    fn ports_beyond_the_last_are_no_address() {
        let now = Instant::now();
        let entry = entry(65_530, now);
        entry.peer.shared.learn_workers(u32::MAX);
        let dialer = Dialer::new(now, BACKOFF_MAX);
        let locals = [
            "192.0.2.9:7946".parse().unwrap(),
            "[2001:db8::9]:7946".parse().unwrap(),
        ];
        assert_eq!(entry.way(5, &dialer, &locals).unwrap().1.port(), 65_535);
        assert_eq!(entry.way(6, &dialer, &locals), None);
        assert_eq!(entry.way(u32::MAX, &dialer, &locals), None);
    }
}
