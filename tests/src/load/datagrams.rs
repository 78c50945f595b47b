//! UDP beside other loads: as much as one thread can send, or so many a second; each datagram is
//! numbered, and checked where it arrives.
//!
//! Comes in: who sends to whom, how large, how many. Goes out: how many arrived, and whether one came
//! twice or with other bytes, and how many were overtaken. Loss is no error here: UDP may lose.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use super::content::Content;
use crate::traffic::{any, udp};

/// Bytes of a datagram's number.
const NUMBER_BYTES: usize = 8;
/// A receiver without news looks this often whether it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Pause of a sender whose packets are not taken (the kernel's queue is full).
const FULL_PAUSE: Duration = Duration::from_micros(50);
/// More than one run can send.
const NUMBER_MAX: u64 = 1 << 36;
/// Largest datagram (bytes).
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// What to send.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// Says what it carries.
    pub number: u64,
    /// Namespace of the sender.
    pub from: &'a Path,
    /// Namespace of the receiver; `None` where nobody listens.
    pub to: Option<&'a Path>,
    /// Where to.
    pub target: IpAddr,
    /// Payload of each datagram (bytes), 8 at least.
    pub size: usize,
    /// Datagrams per second; as many as possible if `None`.
    pub rate: Option<u32>,
}

/// A flood under way. When this value goes, it ends.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    drained: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: Option<JoinHandle<anyhow::Result<u64>>>,
    receiver: Option<JoinHandle<anyhow::Result<Tracker>>>,
}

/// What became of it.
#[derive(Clone, Copy, Debug)]
pub struct Flooded {
    /// Datagrams that the sender's kernel took.
    pub sent: u64,
    /// Different ones that arrived.
    pub received: u64,
    /// Of these, those that came behind a later one.
    pub overtaken: u64,
}

impl Flood {
    /// Begins.
    ///
    /// # Errors
    ///
    /// No socket, or the receiver's port is not to be had.
    pub fn start(plan: &Plan<'_>) -> anyhow::Result<Self> {
        ensure!(
            plan.size >= NUMBER_BYTES,
            "a datagram has a number of 8 bytes"
        );
        let server = plan.to.map(|to| udp(to, plan.target)).transpose()?;
        let port = match &server {
            Some(server) => server.local_addr()?.port(),
            // The discard service (RFC 863), which nobody has.
            None => 9,
        };
        let client = udp(plan.from, any(plan.target))?;
        client.connect(SocketAddr::new(plan.target, port))?;
        let [stop, drained] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let received = Arc::new(AtomicU64::new(0));
        let content = Content::of_stream(plan.number);
        let sender = {
            let (stop, size, rate) = (Arc::clone(&stop), plan.size, plan.rate);
            thread::spawn(move || send(&client, content, size, rate, &stop))
        };
        let receiver = server.map(|server| {
            let (drained, received) = (Arc::clone(&drained), Arc::clone(&received));
            thread::spawn(move || receive(&server, content, &received, &drained))
        });
        Ok(Self {
            stop,
            drained,
            received,
            sender: Some(sender),
            receiver,
        })
    }

    /// Different datagrams that have arrived so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends it; what became of it.
    ///
    /// # Errors
    ///
    /// A datagram arrived twice, or with wrong bytes, or one that was not sent; a socket failed.
    pub fn stop(mut self) -> anyhow::Result<Flooded> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<Flooded> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow::anyhow!("a thread panicked");
        let sent = match self.sender.take() {
            Some(sender) => sender.join().map_err(panicked)??,
            None => 0,
        };
        self.drained.store(true, Ordering::Relaxed);
        let tracker = match self.receiver.take() {
            Some(receiver) => receiver.join().map_err(panicked)??,
            None => Tracker::default(),
        };
        ensure!(
            tracker.beyond <= sent,
            "datagram {} arrived, but only {sent} were sent",
            tracker.beyond
        );
        Ok(Flooded {
            sent,
            received: tracker.count,
            overtaken: tracker.overtaken,
        })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        // Whoever lets go of it has another error to tell.
        let _ = self.end();
    }
}

fn send(
    client: &UdpSocket,
    content: Content,
    size: usize,
    rate: Option<u32>,
    stop: &AtomicBool,
) -> anyhow::Result<u64> {
    let mut datagram = vec![0; size];
    let begin = Instant::now();
    let mut sent = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64(sent as f64 / f64::from(rate));
            thread::sleep(due.saturating_sub(begin.elapsed()));
        }
        write(content, sent, &mut datagram);
        match client.send(&datagram) {
            Ok(_) => sent += 1,
            // An ICMP error of an earlier one is told at the next.
            Err(error) if is_of_an_earlier_one(error.kind()) => {}
            Err(error) if is_full(&error) => thread::sleep(FULL_PAUSE),
            Err(error) => return Err(error).context("cannot send a datagram"),
        }
    }
    Ok(sent)
}

fn receive(
    server: &UdpSocket,
    content: Content,
    received: &AtomicU64,
    drained: &AtomicBool,
) -> anyhow::Result<Tracker> {
    server.set_read_timeout(Some(LOOK_INTERVAL))?;
    let (mut datagram, mut scratch) = (vec![0; DATAGRAM_BYTES_MAX], vec![0; DATAGRAM_BYTES_MAX]);
    let mut tracker = Tracker::default();
    loop {
        let len = match server.recv(&mut datagram) {
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Silence behind the last one: what has not arrived is lost.
                if drained.load(Ordering::Relaxed) {
                    return Ok(tracker);
                }
                continue;
            }
            Err(error) => return Err(error).context("cannot receive a datagram"),
        };
        let (number, rest) = datagram
            .get(..len)
            .and_then(|datagram| datagram.split_first_chunk::<NUMBER_BYTES>())
            .context("a datagram without a number arrived")?;
        let number = u64::from_le_bytes(*number);
        // Room for a bit each, whatever strays in here.
        ensure!(number < NUMBER_MAX, "datagram {number} was never sent");
        content
            .check(offset(number), rest, &mut scratch)
            .with_context(|| format!("datagram {number}"))?;
        ensure!(tracker.is_new(number), "datagram {number} arrived twice");
        received.store(tracker.count, Ordering::Relaxed);
    }
}

/// The number, then bytes that no other datagram has.
fn write(content: Content, number: u64, datagram: &mut [u8]) {
    let (head, rest) = datagram.split_at_mut(NUMBER_BYTES);
    head.copy_from_slice(&number.to_le_bytes());
    content.fill(offset(number), rest);
}

fn offset(number: u64) -> u64 {
    number.wrapping_mul(DATAGRAM_BYTES_MAX as u64)
}

fn is_full(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
        || rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::NOBUFS)
}

fn is_of_an_earlier_one(kind: ErrorKind) -> bool {
    [
        ErrorKind::ConnectionRefused,
        ErrorKind::HostUnreachable,
        ErrorKind::NetworkUnreachable,
    ]
    .contains(&kind)
}

/// Which datagrams have arrived: one bit each.
#[derive(Clone, Debug, Default)]
struct Tracker {
    seen: Vec<u64>,
    count: u64,
    /// One more than the largest number.
    beyond: u64,
    /// New ones with smaller numbers than one before them.
    overtaken: u64,
}

impl Tracker {
    fn is_new(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        let is_new = self.seen.get(word).is_some_and(|word| word & bit == 0);
        if let Some(word) = self.seen.get_mut(word) {
            *word |= bit;
        }
        self.count += u64::from(is_new);
        self.overtaken += u64::from(is_new && number + 1 < self.beyond);
        self.beyond = self.beyond.max(number + 1);
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number is new once, in whatever order they come; new ones behind later ones were overtaken.
    #[test]
    fn doubles_are_noticed() {
        let mut tracker = Tracker::default();
        let numbers = [5, 0, 64, 63, 1_000, 1];
        assert!(numbers.iter().all(|&number| tracker.is_new(number)));
        assert!(!numbers.iter().any(|&number| tracker.is_new(number)));
        assert_eq!((tracker.count, tracker.beyond), (6, 1_001));
        // 0, 63 and 1.
        assert_eq!(tracker.overtaken, 3);
    }
}
