//! Many TCP streams at once between pods, each byte of which is checked.
//!
//! Comes in: who sends to whom, and how much. Goes out: what each stream received, and the first wrong
//! byte if there is one. Two threads for each stream; the sockets are made inside of the pods.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::lab::Pod;
use rustix::net::sockopt;

use super::content::Content;
use crate::traffic::{address, tcp};

/// Bytes made, sent and checked at once: they stay in the cache next to the processor.
const BLOCK_BYTES: usize = 128 * 1024;
/// How long a stream may stand still: beyond it, it is stuck, whatever is lost below it.
const STILL_MAX: Duration = Duration::from_secs(30);

/// Is told every second how many bytes have arrived in all; its error ends the waiting.
pub type Watch<'a> = dyn FnMut(u64) -> anyhow::Result<()> + 'a;
/// Time between two words to it.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two looks whether all have ended.
const END_INTERVAL: Duration = Duration::from_millis(20);

/// One stream.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Says what it carries.
    pub number: u64,
    /// Who sends.
    pub from: Pod,
    /// Who receives.
    pub to: Pod,
    /// Over IPv6.
    pub ipv6: bool,
    /// How much it carries; without an end until it is told to stop.
    pub bytes: Option<u64>,
    /// Congestion control of the sender; the machine's default if `None`.
    pub congestion: Option<String>,
}

/// `count` streams between two pods of one worker and two of another: every second one goes the other
/// way, every second pair is over IPv6, and all pods send and receive.
///
/// # Errors
///
/// There are not four pods.
pub fn criss_cross(pods: &[Pod], count: u64, bytes: Option<u64>) -> anyhow::Result<Vec<Plan>> {
    let [a1, a2, b1, b2] = pods else {
        bail!("there are four pods in this, not {}", pods.len());
    };
    let plan = |number: u64| {
        let bit = |place: u32| number >> place & 1 == 1;
        let (a, b) = (if bit(2) { a2 } else { a1 }, if bit(3) { b2 } else { b1 });
        let (from, to) = if bit(0) { (b, a) } else { (a, b) };
        Plan {
            number,
            from: from.clone(),
            to: to.clone(),
            ipv6: bit(1),
            bytes,
            congestion: None,
        }
    };
    Ok((0..count).map(plan).collect())
}

/// Streams under way. When this value goes, they end.
#[derive(Debug)]
pub struct Streams {
    stop: Arc<AtomicBool>,
    running: Vec<Running>,
}

/// What a stream carried.
#[derive(Clone, Copy, Debug)]
pub struct Carried {
    /// Bytes that arrived and were right.
    pub bytes: u64,
    /// From the first byte to the last.
    pub took: Duration,
}

#[derive(Debug)]
struct Running {
    what: String,
    received: Arc<AtomicU64>,
    /// The client's and the server's, for those who do not want to wait.
    ends: [TcpStream; 2],
    sender: JoinHandle<anyhow::Result<u64>>,
    receiver: JoinHandle<anyhow::Result<Carried>>,
}

impl Streams {
    /// Connects all, then begins with all.
    ///
    /// # Errors
    ///
    /// One cannot be connected, or the congestion control is unknown.
    pub fn start(plans: &[Plan]) -> anyhow::Result<Self> {
        let connected = plans.iter().map(connect).collect::<Result<Vec<_>, _>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let running = plans.iter().zip(connected);
        Ok(Self {
            running: running
                .map(|(plan, ends)| Running::start(plan, ends, &stop))
                .collect::<Result<_, _>>()?,
            stop,
        })
    }

    /// Bytes that each stream has received so far.
    #[must_use]
    pub fn received(&self) -> Vec<u64> {
        let counts = self.running.iter();
        counts
            .map(|running| running.received.load(Ordering::Relaxed))
            .collect()
    }

    /// Waits until all have come to their end, with a word to `watch` every second.
    ///
    /// # Errors
    ///
    /// That of `watch`.
    pub fn watch(&self, watch: &mut Watch<'_>) -> anyhow::Result<()> {
        let mut next = Instant::now() + WATCH_INTERVAL;
        while !self.is_finished() {
            thread::sleep(END_INTERVAL);
            if Instant::now() >= next {
                next += WATCH_INTERVAL;
                watch(self.received().iter().sum())?;
            }
        }
        Ok(())
    }

    /// Whether all have come to their end.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let mut running = self.running.iter();
        running.all(|running| running.receiver.is_finished())
    }

    /// Tells those without an end to stop, waits for all; what each carried.
    ///
    /// # Errors
    ///
    /// A stream got stuck or broke, or a byte of it is wrong or missing: all such streams.
    pub fn stop(mut self) -> anyhow::Result<Vec<Carried>> {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Cuts all off where they are, for who asks nothing about their end: a sender that has lost much may
    /// take minutes to bring the rest of its buffer across. How many bytes have arrived.
    ///
    /// # Errors
    ///
    /// A byte of what has arrived is wrong, or a stream broke before.
    pub fn cut(mut self) -> anyhow::Result<u64> {
        let broken = self.running.iter().filter(|it| it.receiver.is_finished());
        let broken: Vec<_> = broken.map(|running| running.what.clone()).collect();
        self.reset()?;
        let mut bytes = 0;
        let mut failures = Vec::new();
        for running in self.running.drain(..) {
            let Running { what, receiver, .. } = running;
            match receiver.join() {
                Ok(Ok(carried)) if !broken.contains(&what) => bytes += carried.bytes,
                Ok(Ok(_)) => failures.push(format!("{what} ended by itself")),
                Ok(Err(error)) => failures.push(format!("{what}: {error:#}")),
                Err(_) => failures.push(format!("{what}: a thread panicked")),
            }
        }
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        Ok(bytes)
    }

    /// Both ends of all streams are told at once; what a sender has not brought across is forgotten.
    fn reset(&self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for running in &self.running {
            let [client, server] = &running.ends;
            sockopt::set_socket_linger(client, Some(Duration::ZERO))?;
            for (end, how) in [(server, Shutdown::Read), (client, Shutdown::Both)] {
                match end.shutdown(how) {
                    // It has ended already.
                    Err(error) if error.kind() == ErrorKind::NotConnected => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }

    /// Waits until all have come to their end; as [`Self::stop`] for streams that have one.
    ///
    /// # Errors
    ///
    /// As [`Self::stop`].
    pub fn finish(mut self) -> anyhow::Result<Vec<Carried>> {
        self.join()
    }

    fn join(&mut self) -> anyhow::Result<Vec<Carried>> {
        let mut carried = Vec::new();
        let mut failures = Vec::new();
        for running in self.running.drain(..) {
            let what = running.what.clone();
            match running.join() {
                Ok(found) => carried.push(found),
                Err(error) => failures.push(format!("{what}: {error:#}")),
            }
        }
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        Ok(carried)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // Whoever lets go of them has another error to tell.
        let _ = self.reset();
        let _ = self.join();
    }
}

impl Running {
    fn start(
        plan: &Plan,
        (client, server): (TcpStream, TcpStream),
        stop: &Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let ends = [client.try_clone()?, server.try_clone()?];
        let received = Arc::new(AtomicU64::new(0));
        let content = Content::of_stream(plan.number);
        let (stop, bytes) = (Arc::clone(stop), plan.bytes);
        let counter = Arc::clone(&received);
        Ok(Self {
            what: format!(
                "stream {} from {} to {}",
                plan.number, plan.from.name, plan.to.name
            ),
            received,
            ends,
            sender: thread::spawn(move || send(client, content, bytes, &stop)),
            receiver: thread::spawn(move || receive(server, content, &counter)),
        })
    }

    fn join(self) -> anyhow::Result<Carried> {
        let ended = |_| anyhow::anyhow!("a thread panicked");
        // The receiver's word first: a sender whose receiver has given up fails as well.
        let receiver = self.receiver.join().map_err(ended)?;
        let sender = self.sender.join().map_err(ended)?;
        let carried = receiver.context("the receiver")?;
        let sent = sender.context("the sender")?;
        ensure!(
            carried.bytes == sent,
            "{sent} bytes were sent, {} arrived",
            carried.bytes
        );
        Ok(carried)
    }
}

fn connect(plan: &Plan) -> anyhow::Result<(TcpStream, TcpStream)> {
    let ends = tcp(
        &plan.from.netns,
        &plan.to.netns,
        address(&plan.to, plan.ipv6)?,
    )?;
    for stream in [&ends.0, &ends.1] {
        stream.set_read_timeout(Some(STILL_MAX))?;
        stream.set_write_timeout(Some(STILL_MAX))?;
    }
    if let Some(congestion) = &plan.congestion {
        sockopt::set_tcp_congestion(&ends.0, congestion).with_context(|| {
            format!("no congestion control {congestion}: `modprobe tcp_{congestion}`")
        })?;
    }
    Ok(ends)
}

fn send(
    mut client: TcpStream,
    content: Content,
    bytes: Option<u64>,
    stop: &AtomicBool,
) -> anyhow::Result<u64> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut sent = 0;
    let end = bytes.unwrap_or(u64::MAX);
    while sent < end && !stop.load(Ordering::Relaxed) {
        let len = usize::try_from(end - sent).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES));
        let block = &mut block[..len];
        content.fill(sent, block);
        client
            .write_all(block)
            .with_context(|| format!("behind {sent} bytes"))?;
        sent += len as u64;
    }
    client.shutdown(Shutdown::Write)?;
    Ok(sent)
}

fn receive(
    mut server: TcpStream,
    content: Content,
    received: &AtomicU64,
) -> anyhow::Result<Carried> {
    let (mut block, mut scratch) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    let begin = Instant::now();
    let mut offset = 0;
    loop {
        let len = match server.read(&mut block) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("nothing arrived behind {offset} bytes for {STILL_MAX:?}")
            }
            Err(error) => return Err(error).with_context(|| format!("behind {offset} bytes")),
        };
        content.check(offset, &block[..len], &mut scratch)?;
        offset += len as u64;
        received.store(offset, Ordering::Relaxed);
    }
    Ok(Carried {
        bytes: offset,
        took: begin.elapsed(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;

    use super::*;

    /// What a receiver says of `bytes` that somebody else sends it as stream 1.
    fn judged(bytes: &[u8]) -> anyhow::Result<u64> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        thread::scope(|scope| {
            scope.spawn(move || {
                // The receiver hangs up at the first wrong byte.
                let _ = client.write_all(bytes);
            });
            receive(server, Content::of_stream(1), &AtomicU64::new(0)).map(|carried| carried.bytes)
        })
    }

    /// Right bytes are counted; one wrong byte is an error that names its offset, however far behind
    /// it is; a piece left out is noticed where it is missing.
    #[test]
    fn a_wrong_byte_is_an_error() {
        let mut bytes = vec![0; 3 * BLOCK_BYTES + 5];
        Content::of_stream(1).fill(0, &mut bytes);
        assert_eq!(judged(&bytes).unwrap(), bytes.len() as u64);
        let at = 2 * BLOCK_BYTES + 77;
        bytes[at] ^= 0x10;
        let error = format!("{:#}", judged(&bytes).unwrap_err());
        assert!(error.contains(&format!("offset {at}")), "{error}");
        bytes[at] ^= 0x10;
        bytes.drain(1_000..1_008);
        let error = format!("{:#}", judged(&bytes).unwrap_err());
        assert!(error.contains("offset 100"), "{error}");
    }
}
