//! From the exec of a daemon that was killed to the first packets that it forwards.
//!
//! A pod sends all the time, to a pod of its own node and to one of the other; each packet says when it
//! was sent, so that none from before the start is taken for the first.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use fabric_node::lab::{Lab, Pod, underlay::inside};

use super::{
    Stage,
    figures::{Figure, Limit},
};
use crate::statistics::percentile;

/// Restarts.
const RESTARTS: usize = 15;
/// Pods of the worker that is restarted, and of the other.
const PODS: [usize; 2] = [2, 1];
/// Pause between two packets to each receiver.
const SEND_INTERVAL: Duration = Duration::from_millis(1);
/// How long the first packet may take before the measurement is given up.
const FIRST_PACKET_MAX: Duration = Duration::from_secs(15);
/// How often a receiver looks whether it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Most from start to first packet, at the median (ms).
const FIRST_PACKET_MS_MAX: f64 = 300.0;

/// Kills and starts one daemon again and again.
///
/// # Errors
///
/// The lab cannot be built, the daemon does not come back, or no packet arrives.
pub fn measure(stage: &Stage) -> anyhow::Result<Vec<Figure>> {
    let mut lab = Lab::up_with(&stage.lab(&PODS), &stage.progress, &stage.interrupt)?;
    let [from, near, far] = lab.pods() else {
        bail!("the lab has other pods than asked for")
    };
    let worker = from.worker.clone();
    let traffic = Traffic::start(from, [near, far])?;
    let mut times = [Vec::new(), Vec::new()];
    traffic.first_after(Instant::now())?;
    for restart in 1..=RESTARTS {
        stage.interrupt.check()?;
        stage
            .progress
            .step(&format!("restart {restart} of {RESTARTS}"));
        lab.kill_daemon(&worker)?;
        let begin = Instant::now();
        lab.start_daemon(&worker)?;
        let first = traffic.first_after(begin)?;
        for (times, first) in times.iter_mut().zip(first) {
            times.push(first.as_secs_f64() * 1e3);
        }
    }
    drop(traffic);
    lab.down()?;
    let mut figures = Vec::new();
    for (to, times) in ["same node", "other node"].into_iter().zip(&times) {
        for (name, percent, most) in [("p50", 50, Some(FIRST_PACKET_MS_MAX)), ("max", 100, None)] {
            figures.push(Figure {
                limit: Limit::Restart,
                what: format!("start to first packet, {to}, {name} of {RESTARTS}"),
                value: percentile(times, percent).context("no times")?,
                unit: "ms",
                most,
            });
        }
    }
    Ok(figures)
}

/// One sender, two receivers; its end ends them.
struct Traffic {
    stop: Arc<AtomicBool>,
    arrivals: Receiver<Arrival>,
    threads: Vec<JoinHandle<()>>,
}

struct Arrival {
    receiver: usize,
    sent: Instant,
    received: Instant,
}

impl Traffic {
    fn start(from: &Pod, to: [&Pod; 2]) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (arrived, arrivals) = channel();
        let epoch = Instant::now();
        let mut threads = Vec::new();
        let mut targets = Vec::new();
        for (receiver, pod) in to.into_iter().enumerate() {
            let socket = bind(pod)?;
            socket.set_read_timeout(Some(LOOK_INTERVAL))?;
            targets.push(socket.local_addr()?);
            let (stop, arrived) = (stop.clone(), arrived.clone());
            threads.push(thread::spawn(move || {
                receive(receiver, &socket, epoch, &arrived, &stop);
            }));
        }
        let socket = bind(from)?;
        let sender_stop = stop.clone();
        threads.push(thread::spawn(move || {
            send(&socket, &targets, epoch, &sender_stop);
        }));
        Ok(Self {
            stop,
            arrivals,
            threads,
        })
    }

    /// How long after `begin` each receiver has its first packet that was sent after it.
    fn first_after(&self, begin: Instant) -> anyhow::Result<[Duration; 2]> {
        let mut first = [None; 2];
        loop {
            if let [Some(near), Some(far)] = first {
                return Ok([near, far]);
            }
            let arrival = self
                .arrivals
                .recv_timeout(FIRST_PACKET_MAX)
                .context("no packet arrives")?;
            if begin.elapsed() > FIRST_PACKET_MAX {
                bail!(
                    "a receiver has no packet {} s after the start",
                    FIRST_PACKET_MAX.as_secs()
                );
            }
            if arrival.sent >= begin {
                first[arrival.receiver].get_or_insert(arrival.received - begin);
            }
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

fn bind(pod: &Pod) -> anyhow::Result<UdpSocket> {
    let address = *pod.addresses.first().context("a pod without an address")?;
    inside(&pod.netns, || {
        Ok(UdpSocket::bind(SocketAddr::new(address, 0))?)
    })
}

fn send(socket: &UdpSocket, targets: &[SocketAddr], epoch: Instant, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for target in targets {
            let sent = epoch.elapsed().as_nanos() as u64;
            // While there is no daemon the pod's device has no carrier.
            let _ = socket.send_to(&sent.to_ne_bytes(), target);
        }
        thread::sleep(SEND_INTERVAL);
    }
}

fn receive(
    receiver: usize,
    socket: &UdpSocket,
    epoch: Instant,
    arrived: &Sender<Arrival>,
    stop: &AtomicBool,
) {
    let mut bytes = [0; 8];
    while !stop.load(Ordering::Relaxed) {
        if socket.recv(&mut bytes).is_ok_and(|len| len == bytes.len()) {
            let received = Instant::now();
            let sent = epoch + Duration::from_nanos(u64::from_ne_bytes(bytes));
            // Nobody listens any more at the end.
            let _ = arrived.send(Arrival {
                receiver,
                sent,
                received,
            });
        }
    }
}
