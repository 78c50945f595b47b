//! One worker's loop: read a batch, decide, write; then send, then sleep.
//!
//! Per packet there is no lock, no log and no wait. The snapshot is loaded once per turn, the
//! account is published once per turn.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Cache};
use fabric_core::{
    counters::{Side, Tally},
    ids::{Generation, PortId},
    verdict::DropReason,
};

use super::{
    WorkerReport,
    epoll::Epoll,
    mailbox::{Command, Inbox, Waker},
    path::Path,
    polling::{Polling, Way},
    port::{Port, Read},
    published::Published,
};
use crate::{sys::tun::Tun, tunnel::endpoint::Endpoint};

/// What is read from all ports together in one turn: 4 super-packets, 0.3 ms at 7 Gbit/s. A turn is
/// what a packet that has just come waits for, on both nodes and twice on its way and back.
const TURN_READ_MAX: Budget = Budget {
    packets: 128,
    bytes: 256 * 1024,
};
/// What is read from one port before the next one has its turn: a super-packet.
const PORT_READ_MAX: Budget = Budget {
    packets: 32,
    bytes: 64 * 1024,
};
/// How often the view of the peers is refreshed for the operator.
const PEER_REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// Numbers of descriptors in epoll; ports come after.
const INBOX: u64 = 0;
const SOCKETS: u64 = 1;
const PORTS: u64 = 1 << 32;

/// What may still be read.
#[derive(Clone, Copy)]
struct Budget {
    packets: usize,
    bytes: usize,
}

impl Budget {
    fn use_up(&mut self, bytes: usize) {
        self.packets = self.packets.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn is_used_up(&self) -> bool {
        self.packets == 0 || self.bytes == 0
    }
}

pub(super) struct Worker {
    endpoint: Endpoint,
    published: Cache<Arc<ArcSwap<Published>>, Arc<Published>>,
    generation: Option<Generation>,
    inbox: Inbox,
    /// Whether the last sleep was ended by a wake.
    woken: bool,
    wakers: Arc<[Waker]>,
    epoll: Epoll,
    /// Whether the end of a sleep is asked of each socket's becoming writable.
    waiting_to_write: Vec<bool>,
    ports: Vec<Port>,
    /// The port that was read first in the last turn.
    first_port: usize,
    gone: Vec<PortId>,
    underlay_ready: bool,
    path: Path,
    polling: Polling,
    report: Arc<Mutex<WorkerReport>>,
    reported: Instant,
    running: bool,
}

impl Worker {
    pub(super) fn new(
        endpoint: Endpoint,
        published: Arc<ArcSwap<Published>>,
        inbox: Inbox,
        report: Arc<Mutex<WorkerReport>>,
        wakers: Arc<[Waker]>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(&inbox, INBOX)?;
        let mut waiting_to_write = Vec::new();
        for descriptor in endpoint.descriptors() {
            epoll.add(descriptor, SOCKETS)?;
            waiting_to_write.push(false);
        }
        Ok(Self {
            endpoint,
            published: Cache::new(published),
            generation: None,
            inbox,
            woken: true,
            wakers,
            epoll,
            waiting_to_write,
            ports: Vec::new(),
            first_port: 0,
            gone: Vec::new(),
            underlay_ready: true,
            path: Path::default(),
            polling: Polling::default(),
            report,
            reported: Instant::now(),
            running: true,
        })
    }

    pub(super) fn run(mut self) {
        while self.running {
            let now = Instant::now();
            // Wakes are taken back before the state is looked at: one for a state that comes after
            // this look stays, and ends the next sleep.
            let woken = std::mem::take(&mut self.woken) && self.inbox.clear();
            let published = Arc::clone(self.published.load());
            self.follow(&published, woken, now);
            let before = self.received();
            self.turn(&published, now);
            self.note_work(before, now);
            self.publish_report(now);
            if self.running {
                self.sleep();
            }
        }
        self.endpoint.shut_down(Instant::now());
    }

    /// What has been received from ports, and from peers.
    fn received(&self) -> [Tally; 2] {
        let counters = &self.path.counters;
        let mut ports = counters.received_pods;
        ports.packets += counters.received_host.packets;
        ports.bytes += counters.received_host.bytes;
        [ports, counters.received_peers]
    }

    fn note_work(&mut self, before: [Tally; 2], began: Instant) {
        let after = self.received();
        // Ports are read after the peers' records.
        let way = if after[0].packets > before[0].packets {
            Way::Egress
        } else if after[1].packets > before[1].packets {
            Way::Ingress
        } else {
            return;
        };
        let bytes = |tallies: [Tally; 2]| tallies[0].bytes + tallies[1].bytes;
        let bytes = bytes(after) - bytes(before);
        self.polling.worked(way, bytes, began, Instant::now());
    }

    /// One pass over everything that may be ready.
    fn turn(&mut self, published: &Published, now: Instant) {
        if std::mem::take(&mut self.underlay_ready) {
            self.endpoint.receive(now);
        }
        if self.endpoint.next_timeout().is_some_and(|due| due <= now) {
            self.endpoint.handle_timeouts(now);
        }
        let path = &mut self.path;
        self.endpoint.take_records(now, |peer, record| {
            path.ingress(published, peer, record, now)
        });
        self.path.flush(published);
        self.path.send_answers(&mut self.endpoint);
        self.expect_answer(now);
        self.read_ports(published, now);
        self.endpoint.transmit(now);
        if self.endpoint.take_workers_learned() {
            // This one too: its next turn dials what is missing.
            self.wakers.iter().for_each(Waker::wake);
        }
    }

    /// Beside single packets, reads the port just written to without being told that it has something:
    /// an answer of the kernel goes out in the turn of what it answers. Beside bulk the answers are
    /// better taken together.
    fn expect_answer(&mut self, now: Instant) {
        if let Some(written) = self.path.take_written()
            && !self.polling.in_bulk(now)
            && let Some(port) = self.ports.iter_mut().find(|port| port.id == written)
        {
            port.ready = true;
        }
    }

    /// Reads the ready ports in turns, a quantum each, until the budget of a turn is used up. Each
    /// turn begins with another port, so that none is always the last.
    fn read_ports(&mut self, published: &Published, now: Instant) {
        let count = self.ports.len();
        self.first_port = (self.first_port + 1) % count.max(1);
        let mut gone = Vec::new();
        let mut left = TURN_READ_MAX;
        let mut any = true;
        while std::mem::take(&mut any) {
            for position in 0..count {
                let index = (self.first_port + position) % count;
                let ready = self.ports.get(index).is_some_and(|port| port.ready);
                if ready && !left.is_used_up() {
                    any = true;
                    gone.extend(self.read_port(index, &mut left, published, now));
                }
            }
        }
        for id in gone {
            self.close_port(id);
            self.gone.push(id);
        }
    }

    /// Reads one port up to its quantum; its id if the device is gone.
    fn read_port(
        &mut self,
        index: usize,
        left: &mut Budget,
        published: &Published,
        now: Instant,
    ) -> Option<PortId> {
        let port = self.ports.get_mut(index)?;
        let mut quantum = PORT_READ_MAX;
        while !quantum.is_used_up() && !left.is_used_up() {
            match port.read(&mut self.path.buffer) {
                Read::Packet(vnet, len) => {
                    quantum.use_up(len);
                    left.use_up(len);
                    self.path
                        .egress(published, &mut self.endpoint, port, vnet, len, now);
                }
                Read::Lost(error) => {
                    left.use_up(0);
                    tracing::debug!(port = port.id.0, %error, "the kernel lost a packet");
                    self.path.counters.record_received(Side::from(port.id), 0);
                    self.path.counters.record_dropped(DropReason::BadOffload);
                }
                Read::Empty => break,
                Read::Gone(error) => {
                    tracing::warn!(port = port.id.0, device = port.tun.name(), %error, "the device is gone");
                    port.ready = false;
                    return Some(port.id);
                }
            }
        }
        None
    }

    /// Applies a changed state and the commands that came with it.
    fn follow(&mut self, published: &Published, woken: bool, now: Instant) {
        if self.generation != Some(published.snapshot.generation()) {
            self.generation = Some(published.snapshot.generation());
            self.endpoint.set_peers(&published.peers, now);
        } else if woken {
            // Another worker may have learned how many workers a peer has.
            self.endpoint.dial(now);
        }
        while let Some(command) = self.inbox.next() {
            match command {
                Command::OpenPort { id, tun, done } => {
                    let result = self.open_port(id, tun);
                    let _ = done.send(result);
                }
                Command::ClosePort { id, done } => {
                    self.close_port(id);
                    self.gone.retain(|gone| *gone != id);
                    let _ = done.send(Ok(()));
                }
                Command::ShutDown => self.running = false,
            }
        }
    }

    fn open_port(&mut self, id: PortId, tun: Arc<Tun>) -> io::Result<()> {
        self.epoll.add(&*tun, PORTS | u64::from(id.0))?;
        self.ports.push(Port {
            id,
            tun,
            ready: true,
        });
        Ok(())
    }

    fn close_port(&mut self, id: PortId) {
        for port in self.ports.extract_if(.., |port| port.id == id) {
            self.epoll.remove(&*port.tun);
        }
    }

    fn sleep(&mut self) {
        self.watch_writable();
        let busy = self.ports.iter().any(|port| port.ready) || self.endpoint.has_more();
        let timeout = if busy {
            Some(Duration::ZERO)
        } else {
            let due = self.endpoint.next_timeout();
            if let Some(until) = self.polling.until()
                && self.look_on(due.map_or(until, |due| due.min(until)))
            {
                return;
            }
            due.map(|due| due.saturating_duration_since(Instant::now()))
        };
        self.wait(timeout);
    }

    /// Looks for work until then; true if there is some.
    fn look_on(&mut self, until: Instant) -> bool {
        while Instant::now() < until {
            if self.wait(Some(Duration::ZERO)) {
                return true;
            }
            // A thread that has something to do comes first.
            std::thread::yield_now();
        }
        false
    }

    /// Waits for descriptors; true if any was ready.
    fn wait(&mut self, timeout: Option<Duration>) -> bool {
        let mut any = false;
        let (ports, underlay_ready) = (&mut self.ports, &mut self.underlay_ready);
        let woken = &mut self.woken;
        let waited = self.epoll.wait(timeout, |number| {
            any = true;
            match number {
                INBOX => *woken = true,
                SOCKETS => *underlay_ready = true,
                number => {
                    if let Some(port) = ports
                        .iter_mut()
                        .find(|port| PORTS | u64::from(port.id.0) == number)
                    {
                        port.ready = true;
                    }
                }
            }
        });
        if let Err(error) = waited {
            tracing::error!(%error, "waiting for packets failed: the worker stops");
            self.running = false;
            return true;
        }
        any
    }

    /// While a batch waits for room in a socket, its becoming writable ends the sleep.
    fn watch_writable(&mut self) {
        // Only the socket that is full: another one is writable at once and would end every sleep.
        let sockets = self.endpoint.descriptors().zip(self.endpoint.held());
        for ((descriptor, wanted), armed) in sockets.zip(&mut self.waiting_to_write) {
            if wanted != *armed {
                *armed = wanted;
                if let Err(error) = self.epoll.watch_writable(descriptor, SOCKETS, wanted) {
                    tracing::error!(%error, "cannot wait for the underlay to take more");
                }
            }
        }
    }

    fn publish_report(&mut self, now: Instant) {
        let accounts = self.endpoint.take_accounts();
        let counters = &mut self.path.counters;
        let queues = accounts.queues;
        counters.delivered_peers.packets += queues.handed.packets;
        counters.delivered_peers.bytes += queues.handed.bytes;
        counters.marked += queues.marked;
        counters.record_dropped_many(DropReason::PeerQueueFull, queues.full);
        counters.record_dropped_many(DropReason::PeerQueueAqm, queues.managed);
        counters.record_dropped_many(DropReason::PeerDisconnected, accounts.lost);
        for _ in 0..accounts.bad_records {
            counters.record_received(Side::Peer, 0);
            counters.record_dropped(DropReason::BadRecord);
        }
        counters.queued = self.endpoint.queued();
        let peers = (now >= self.reported + PEER_REPORT_INTERVAL || self.endpoint.take_changed())
            .then(|| self.endpoint.reports());
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.counters.clone_from(counters);
        report.gone.clone_from(&self.gone);
        report.underlay_losses = self.endpoint.underlay_losses();
        if let Some(peers) = peers {
            report.peers = peers;
            self.reported = now;
        }
    }
}
