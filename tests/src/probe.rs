//! A steady UDP echo between two pods that notes when answers stopped and when they came again.

use std::{
    net::UdpSocket,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use fabric_node::lab::Pod;

use crate::{
    eventually::eventually,
    traffic::{address, any, udp},
};

/// Time between two requests.
const INTERVAL: Duration = Duration::from_millis(10);
/// How long the echoing side waits before it looks whether it should end.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Sends a numbered datagram every [`INTERVAL`] and notes the answers. Ends when dropped.
#[derive(Debug)]
pub struct Probe {
    name: String,
    answers: Arc<Mutex<Vec<Instant>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Probe {
    /// Begins to send from one pod to another, and back.
    ///
    /// # Errors
    ///
    /// The sockets cannot be made.
    pub fn start(from: &Pod, to: &Pod, ipv6: bool) -> anyhow::Result<Self> {
        let target = address(to, ipv6)?;
        let name = format!("{} -> {} ({target})", from.name, to.name);
        let client = udp(&from.netns, any(target))?;
        Self::between(name, client, udp(&to.netns, target)?)
    }

    fn between(name: String, client: UdpSocket, server: UdpSocket) -> anyhow::Result<Self> {
        let target = server.local_addr()?;
        server.set_read_timeout(Some(LOOK_INTERVAL))?;
        client.set_read_timeout(Some(LOOK_INTERVAL))?;
        let receiver = client.try_clone()?;
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(Mutex::new(Vec::new()));
        let mut threads = Vec::new();
        let mut run = |mut turn: Box<dyn FnMut() + Send>| {
            let stop = stop.clone();
            threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    turn();
                }
            }));
        };
        let mut buffer = [0; 64];
        run(Box::new(move || {
            if let Ok((len, peer)) = server.recv_from(&mut buffer) {
                // An answer that cannot be sent is one that does not come: the client sees that.
                let _ = server.send_to(buffer.get(..len).unwrap_or_default(), peer);
            }
        }));
        let noted = answers.clone();
        run(Box::new(move || {
            if receiver.recv_from(&mut buffer).is_ok() {
                noted
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(Instant::now());
            }
        }));
        let mut number = 0u64;
        run(Box::new(move || {
            number += 1;
            // While the way is cut the kernel may refuse to send.
            let _ = client.send_to(&number.to_be_bytes(), target);
            thread::sleep(INTERVAL);
        }));
        Ok(Self {
            name,
            answers,
            stop,
            threads,
        })
    }

    /// Waits until an answer has come that was received at or after `since`; how long after.
    ///
    /// # Errors
    ///
    /// None came within `limit` after `since`.
    pub fn answered_after(&self, since: Instant, limit: Duration) -> anyhow::Result<Duration> {
        let left = (since + limit).saturating_duration_since(Instant::now());
        eventually(&self.name, left, || {
            self.first_after(since).context("no answer")
        })
        .map(|(at, _)| at - since)
    }

    /// Answers received since `since`.
    #[must_use]
    pub fn count_after(&self, since: Instant) -> usize {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.iter().filter(|at| **at >= since).count()
    }

    /// The longest time without an answer from `since` on.
    #[must_use]
    pub fn longest_gap(&self, since: Instant) -> Duration {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = since;
        let mut longest = Duration::ZERO;
        for at in answers.iter().filter(|at| **at >= since) {
            longest = longest.max(*at - last);
            last = *at;
        }
        longest.max(last.elapsed())
    }

    fn first_after(&self, since: Instant) -> Option<Instant> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.iter().copied().find(|at| *at >= since)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}
