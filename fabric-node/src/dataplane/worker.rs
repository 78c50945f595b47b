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
    counters::Side,
    ids::{Generation, PortId},
    verdict::DropReason,
};

use super::{
    WorkerReport,
    epoll::Epoll,
    mailbox::{Command, Inbox, Waker},
    path::Path,
    port::{Port, Read},
    published::Published,
};
use crate::{sys::tun::Tun, tunnel::endpoint::Endpoint};

/// Packets read from one port before the next one has its turn. 16 super-packets are 1 MiB.
const READS_PER_PORT_MAX: usize = 16;
/// How often the view of the peers is refreshed for the operator.
const PEER_REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// Numbers of descriptors in epoll; ports come after.
const INBOX: u64 = 0;
const SOCKETS: u64 = 1;
const PORTS: u64 = 1 << 32;

pub(super) struct Worker {
    endpoint: Endpoint,
    published: Cache<Arc<ArcSwap<Published>>, Arc<Published>>,
    generation: Option<Generation>,
    inbox: Inbox,
    wakers: Arc<[Waker]>,
    epoll: Epoll,
    /// Whether the end of a sleep is asked of each socket's becoming writable.
    waiting_to_write: Vec<bool>,
    ports: Vec<Port>,
    gone: Vec<PortId>,
    underlay_ready: bool,
    path: Path,
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
            wakers,
            epoll,
            waiting_to_write,
            ports: Vec::new(),
            gone: Vec::new(),
            underlay_ready: true,
            path: Path::default(),
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
            let woken = self.inbox.clear();
            let published = Arc::clone(self.published.load());
            self.follow(&published, woken, now);
            self.turn(&published, now);
            self.publish_report(now);
            if self.running {
                self.sleep();
            }
        }
        self.endpoint.shut_down(Instant::now());
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
        self.path.send_answers(&mut self.endpoint);
        self.read_ports(published, now);
        self.endpoint.transmit(now);
        if self.endpoint.take_workers_learned() {
            // This one too: its next turn dials what is missing.
            self.wakers.iter().for_each(Waker::wake);
        }
    }

    fn read_ports(&mut self, published: &Published, now: Instant) {
        let mut gone = Vec::new();
        for port in self.ports.iter_mut().filter(|port| port.ready) {
            for _ in 0..READS_PER_PORT_MAX {
                match port.read(&mut self.path.buffer) {
                    Read::Packet(vnet, len) => {
                        self.path
                            .egress(published, &mut self.endpoint, port, vnet, len, now);
                    }
                    Read::Lost(error) => {
                        tracing::debug!(port = port.id.0, %error, "the kernel lost a packet");
                        self.path.counters.record_received(Side::from(port.id), 0);
                        self.path.counters.record_dropped(DropReason::BadOffload);
                    }
                    Read::Empty => break,
                    Read::Gone(error) => {
                        tracing::warn!(port = port.id.0, device = port.tun.name(), %error, "the device is gone");
                        gone.push(port.id);
                        break;
                    }
                }
            }
        }
        for id in gone {
            self.close_port(id);
            self.gone.push(id);
        }
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
            due.map(|due| due.saturating_duration_since(Instant::now()))
        };
        let (ports, underlay_ready) = (&mut self.ports, &mut self.underlay_ready);
        let waited = self.epoll.wait(timeout, |number| match number {
            INBOX => {}
            SOCKETS => *underlay_ready = true,
            number => {
                if let Some(port) = ports
                    .iter_mut()
                    .find(|port| PORTS | u64::from(port.id.0) == number)
                {
                    port.ready = true;
                }
            }
        });
        if let Err(error) = waited {
            tracing::error!(%error, "waiting for packets failed: the worker stops");
            self.running = false;
        }
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
        for _ in 0..accounts.lost {
            counters.record_dropped(DropReason::PeerDisconnected);
        }
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
        if let Some(peers) = peers {
            report.peers = peers;
            self.reported = now;
        }
    }
}
