//! Moves packets: worker threads that own ports and connections, and run each packet to completion.
//!
//! Comes in: TUN devices, snapshots, peers. Goes out: packets on TUN devices and on the underlay,
//! exact accounts of both. Never done here: configuration, files, tokio.
//!
//! In the order a packet meets them: [`worker`] runs the loop, [`port`] reads a packet, [`path`] takes
//! it through the decision ([`fabric_core::forward`]), [`deliver`] writes it to a TUN, with others
//! where [`joining`] can join them, [`outbound`] makes it a record for a peer. [`polling`] says whether
//! to look on before sleeping. [`published`] is what all workers read, [`mailbox`] how they are told.
//!
//! A port is read by one worker only (its number modulo the workers) and each connection belongs to
//! one worker; any worker writes to any TUN. So workers never reorder a flow, and neither does the
//! tunnel, whatever the sizes of its packets (`tunnel::queue`).

pub mod deliver;
mod epoll;
mod joining;
pub mod mailbox;
pub mod outbound;
mod path;
mod polling;
mod port;
pub mod published;
mod worker;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use fabric_core::{counters::Counters, ids::PortId};

use self::{
    mailbox::{Command, Mailbox, Waker},
    published::Published,
    worker::Worker,
};
use crate::{
    sys::{sched::ask_for_short_slices, tun::Tun},
    tunnel::{
        endpoint::{Endpoint, EndpointContext},
        report::{PeerReport, UnderlayLosses},
        socket::SocketOffloads,
    },
};

/// A worker that does not answer a command within this time is stuck.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Handle of the running workers. Cheap to share; all methods may be called from any thread.
pub struct Dataplane {
    published: Arc<ArcSwap<Published>>,
    workers: Vec<Running>,
    offloads: SocketOffloads,
}

struct Running {
    mailbox: Mailbox,
    report: Arc<Mutex<WorkerReport>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What a worker tells of itself, consistent in itself.
#[derive(Clone, Debug, Default)]
pub struct WorkerReport {
    /// Its packet account.
    pub counters: Counters,
    /// Its view of the peers; refreshed at least twice a second.
    pub peers: Vec<PeerReport>,
    /// Ports whose device has vanished: the pod deleted it.
    pub gone: Vec<PortId>,
    /// What was lost at its sockets.
    pub underlay_losses: UnderlayLosses,
}

impl Dataplane {
    /// Binds the underlay and starts `context.workers` workers; worker i listens on port + i.
    ///
    /// # Errors
    ///
    /// An underlay address cannot be bound, or a thread cannot be started.
    pub fn start(context: &EndpointContext, underlay: &[SocketAddr]) -> anyhow::Result<Self> {
        let published = Arc::new(ArcSwap::from_pointee(Published::default()));
        let mut prepared = Vec::new();
        for index in 0..context.workers {
            let locals = worker_addresses(underlay, index)?;
            let context = EndpointContext {
                worker: index,
                ..context.clone()
            };
            prepared.push((index, Endpoint::bind(context, &locals)?, mailbox::pair()?));
        }
        let offloads = prepared
            .first()
            .and_then(|(_, endpoint, _)| endpoint.socket_offloads())
            .context("there is no underlay address")?;
        let wakers: Arc<[Waker]> = prepared
            .iter()
            .map(|(_, _, (mailbox, _))| mailbox.waker())
            .collect();
        let mut workers = Vec::new();
        for (index, endpoint, (mailbox, inbox)) in prepared {
            let report = Arc::new(Mutex::new(WorkerReport::default()));
            let worker = Worker::new(
                endpoint,
                published.clone(),
                inbox,
                report.clone(),
                wakers.clone(),
            )
            .with_context(|| format!("worker {index}"))?;
            let thread = std::thread::Builder::new()
                .name(format!("fabric-data-{index}"))
                .spawn(move || {
                    if let Err(error) = ask_for_short_slices() {
                        tracing::debug!(%error, "a data-plane thread is scheduled like any other");
                    }
                    worker.run();
                })
                .with_context(|| format!("cannot start the thread of worker {index}"))?;
            workers.push(Running {
                mailbox,
                report,
                thread: Mutex::new(Some(thread)),
            });
        }
        Ok(Self {
            published,
            workers,
            offloads,
        })
    }

    /// Puts a new state in force. Packets read after this call are decided by it.
    pub fn publish(&self, next: Published) {
        self.published.store(Arc::new(next));
        self.wake();
    }

    /// Makes every worker look around: what it reads by itself, such as this node's identity, has changed.
    pub fn wake(&self) {
        for worker in &self.workers {
            worker.mailbox.waker().wake();
        }
    }

    /// The state in force.
    #[must_use]
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// Begins to read a port whose device and routes have been published.
    ///
    /// # Errors
    ///
    /// The worker cannot wait for the device, or does not answer. After the latter it may still
    /// take the port: close it.
    pub fn open_port(&self, id: PortId, tun: Arc<Tun>) -> anyhow::Result<()> {
        self.ask(id, |done| Command::OpenPort { id, tun, done })
    }

    /// Stops to read a port; when it returns, no worker holds its device for reading.
    ///
    /// # Errors
    ///
    /// The worker does not answer.
    pub fn close_port(&self, id: PortId) -> anyhow::Result<()> {
        self.ask(id, |done| Command::ClosePort { id, done })
    }

    /// The reports of all workers.
    #[must_use]
    pub fn reports(&self) -> Vec<WorkerReport> {
        self.workers
            .iter()
            .map(|worker| {
                worker
                    .report
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone()
            })
            .collect()
    }

    /// Sum of all workers' accounts.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.reports()
            .iter()
            .fold(Counters::default(), |mut sum, report| {
                sum.merge(&report.counters);
                sum
            })
    }

    /// What was lost at the sockets of all workers.
    #[must_use]
    pub fn underlay_losses(&self) -> UnderlayLosses {
        let mut sum = UnderlayLosses::default();
        for report in self.reports() {
            sum.add(report.underlay_losses);
        }
        sum
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Offloads of the underlay's sockets.
    #[must_use]
    pub fn offloads(&self) -> SocketOffloads {
        self.offloads
    }

    /// Closes all connections and ends the threads.
    pub fn shut_down(&self) {
        for worker in &self.workers {
            worker.mailbox.send(Command::ShutDown);
        }
        for worker in &self.workers {
            let thread = worker
                .thread
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if thread.is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a data-plane worker had panicked");
            }
        }
    }

    /// Whether all workers run.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.workers.iter().all(|worker| {
            let thread = worker.thread.lock().unwrap_or_else(PoisonError::into_inner);
            thread.as_ref().is_some_and(|thread| !thread.is_finished())
        })
    }

    fn ask(
        &self,
        id: PortId,
        command: impl FnOnce(SyncSender<io::Result<()>>) -> Command,
    ) -> anyhow::Result<()> {
        let worker = self
            .workers
            .get(id.0 as usize % self.workers.len().max(1))
            .context("there are no workers")?;
        let (done, answered) = sync_channel(1);
        worker.mailbox.send(command(done));
        answered
            .recv_timeout(ANSWER_MAX)
            .with_context(|| format!("the worker of port {} does not answer", id.0))?
            .with_context(|| format!("the worker of port {} cannot wait for its device", id.0))
    }
}

/// The addresses that worker `index` binds: those of the node with its own port.
fn worker_addresses(underlay: &[SocketAddr], index: u32) -> anyhow::Result<Vec<SocketAddr>> {
    underlay
        .iter()
        .map(|address| {
            let port = u16::try_from(index)
                .ok()
                .and_then(|index| address.port().checked_add(index))
                .with_context(|| {
                    format!("no UDP port is left for worker {index} above {address}")
                })?;
            Ok(SocketAddr::new(address.ip(), port))
        })
        .collect()
}
