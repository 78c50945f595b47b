//! Round-trip times between two programs, one packet at a time: an echo over UDP where the other end
//! has one, else the time that a TCP connection takes to be accepted or refused. No raw sockets.
//!
//! Called on a thread inside the client's network namespace.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::Serialize;

use super::{LOOK, Watch};

/// How long an answer may take; then it counts as lost.
pub const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Most round trips of one measurement: an hour of those over UDP, and 29 MB.
pub const SAMPLES_MAX: usize = 1_800_000;

/// Time from one echo over UDP to the next: long enough that everything in between goes back to
/// sleep.
const UDP_INTERVAL: Duration = Duration::from_millis(2);
/// Time from one TCP connection to the next.
const TCP_INTERVAL: Duration = Duration::from_millis(10);

/// First bytes of what an echo answers.
pub(super) const REQUEST: &[u8; 8] = b"rttquery";
/// First bytes of an answer. They differ, so that two echoes cannot answer each other for ever.
pub(super) const ANSWER: &[u8; 8] = b"rttreply";
/// Bytes of a request and of its answer: the word and a number, padded to what ping sends.
pub(super) const BYTES: usize = 56;

/// How round trips are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Datagrams of 56 bytes and their echo.
    UdpEcho,
    /// A TCP connection until it is accepted or refused.
    TcpConnect,
}

impl Method {
    /// As people say it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::UdpEcho => "UDP echo",
            Self::TcpConnect => "TCP connection",
        }
    }
}

/// Round trips, in the order in which they were begun.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    /// How they were measured.
    pub method: Method,
    /// How many were begun.
    pub sent: usize,
    /// Those that came to an end: seconds from the begin of the measurement, and milliseconds.
    pub times: Vec<(f64, f64)>,
}

/// Samples in a few numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How they were measured.
    pub method: Method,
    /// How many were begun.
    pub sent: usize,
    /// How many came to an end.
    pub answered: usize,
    /// The shortest (ms).
    pub min_ms: f64,
    /// Half of them were no longer (ms).
    pub p50_ms: f64,
    /// 90 % of them were no longer (ms).
    pub p90_ms: f64,
    /// 99 % of them were no longer (ms).
    pub p99_ms: f64,
    /// The longest (ms).
    pub max_ms: f64,
}

impl Samples {
    /// The numbers; none without an answer.
    #[must_use]
    pub fn summary(&self) -> Option<Summary> {
        let mut times: Vec<f64> = self.times.iter().map(|(_, ms)| *ms).collect();
        times.sort_by(f64::total_cmp);
        Some(Summary {
            method: self.method,
            sent: self.sent,
            answered: times.len(),
            min_ms: *times.first()?,
            p50_ms: percentile(&times, 50)?,
            p90_ms: percentile(&times, 90)?,
            p99_ms: percentile(&times, 99)?,
            max_ms: *times.last()?,
        })
    }
}

/// The smallest value that `percent` of the sorted values do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Measures to `target` until `done`.
///
/// # Errors
///
/// There is no socket; `watch` stopped it.
pub fn measure(
    target: SocketAddr,
    method: Method,
    done: &dyn Fn() -> bool,
    watch: &dyn Watch,
) -> anyhow::Result<Samples> {
    let interval = match method {
        Method::UdpEcho => UDP_INTERVAL,
        Method::TcpConnect => TCP_INTERVAL,
    };
    let mut echo = match method {
        Method::UdpEcho => Some(Echo::connect(target)?),
        Method::TcpConnect => None,
    };
    let mut samples = Samples {
        method,
        sent: 0,
        times: Vec::new(),
    };
    let begin = Instant::now();
    let mut next = begin;
    while !done() && samples.sent < SAMPLES_MAX {
        watch.check()?;
        samples.sent += 1;
        let at = Instant::now();
        let answered = match &mut echo {
            Some(echo) => echo.round_trip(watch)?,
            None => connect(target),
        };
        if answered {
            let ms = at.elapsed().as_secs_f64() * 1000.0;
            samples.times.push(((at - begin).as_secs_f64(), ms));
        }
        next = (next + interval).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(samples)
}

/// The client of an echo.
struct Echo {
    socket: UdpSocket,
    number: u64,
}

impl Echo {
    fn connect(target: SocketAddr) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind(SocketAddr::new(any(target.ip()), 0))?;
        socket
            .connect(target)
            .with_context(|| format!("no way to {target}"))?;
        socket.set_read_timeout(Some(LOOK))?;
        Ok(Self { socket, number: 0 })
    }

    /// Whether the answer to a new request came in time.
    fn round_trip(&mut self, watch: &dyn Watch) -> anyhow::Result<bool> {
        self.number += 1;
        let deadline = Instant::now() + ANSWER_MAX;
        let request = message(REQUEST, self.number);
        if let Err(error) = self.socket.send(&request) {
            return lost(error);
        }
        let expected = message(ANSWER, self.number);
        let mut answer = [0; BYTES];
        loop {
            match self.socket.recv(&mut answer) {
                // A late answer to an earlier request is none to this one.
                Ok(BYTES) if answer == expected => return Ok(true),
                Ok(_) => {}
                Err(error) if is_timeout(&error) => watch.check()?,
                Err(error) => return lost(error),
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
        }
    }
}

/// A datagram that the way refuses is one that does not arrive.
fn lost(error: io::Error) -> anyhow::Result<bool> {
    match error.raw_os_error() {
        Some(
            libc::ECONNREFUSED
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::ENOBUFS
            | libc::EAGAIN,
        ) => Ok(false),
        _ => Err(error).context("the echo's socket"),
    }
}

/// Whether a connection was accepted or refused in time: either takes one round trip.
fn connect(target: SocketAddr) -> bool {
    match TcpStream::connect_timeout(&target, ANSWER_MAX) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    }
}

/// The answer to a datagram, if it is a request.
pub(super) fn answer(datagram: &[u8]) -> Option<[u8; BYTES]> {
    let mut answer: [u8; BYTES] = datagram.try_into().ok()?;
    let (word, _) = answer.split_first_chunk_mut()?;
    if word != REQUEST {
        return None;
    }
    *word = *ANSWER;
    Some(answer)
}

fn message(word: &[u8; 8], number: u64) -> [u8; BYTES] {
    let mut message = [0; BYTES];
    for (place, byte) in message
        .iter_mut()
        .zip(word.iter().copied().chain(number.to_be_bytes()))
    {
        *place = byte;
    }
    message
}

/// The address of all interfaces, of the family of `address`.
pub(super) fn any(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Whether a socket with a time limit had nothing to read, or no room.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;

    use super::*;
    use crate::lab::interrupt::Interrupt;

    fn samples(ms: impl IntoIterator<Item = f64>) -> Samples {
        let times: Vec<_> = ms.into_iter().map(|ms| (0.0, ms)).collect();
        Samples {
            method: Method::UdpEcho,
            sent: times.len() + 1,
            times,
        }
    }

    /// Percentiles are values that were measured: of 1 to 200 in any order, p50 is 100 and p99 is 198.
    #[test]
    fn percentiles_are_measured_values() {
        let summary = samples((1..=200).rev().map(f64::from)).summary().unwrap();
        assert_eq!((summary.min_ms, summary.p50_ms), (1.0, 100.0));
        assert_eq!((summary.p90_ms, summary.p99_ms), (180.0, 198.0));
        assert_eq!(
            (summary.max_ms, summary.sent, summary.answered),
            (200.0, 201, 200)
        );
        assert_eq!(samples([7.0]).summary().unwrap().p99_ms, 7.0);
        assert_eq!(samples([]).summary(), None);
    }

    /// A request is answered with its own number; an answer and anything else are not answered.
    #[test]
    fn only_requests_are_answered() {
        let request = message(REQUEST, 7);
        assert_eq!(answer(&request), Some(message(ANSWER, 7)));
        assert_eq!(answer(&message(ANSWER, 7)), None);
        assert_eq!(answer(&request[1..]), None);
        assert_eq!(answer(&[]), None);
    }

    /// A port that refuses and one that accepts both give times.
    #[test]
    fn refused_and_accepted_connections_give_times() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        let closed = {
            let closing = TcpListener::bind("127.0.0.1:0").unwrap();
            closing.local_addr().unwrap()
        };
        for target in [open, closed] {
            let count = std::cell::Cell::new(0);
            let done = || {
                count.set(count.get() + 1);
                count.get() > 3
            };
            let found = measure(target, Method::TcpConnect, &done, &Interrupt::never()).unwrap();
            assert_eq!((found.sent, found.times.len()), (3, 3));
        }
    }

    /// An echo that is not there loses every request, without an error.
    #[test]
    fn no_echo_no_times() {
        let closed = {
            let closing = UdpSocket::bind("127.0.0.1:0").unwrap();
            closing.local_addr().unwrap()
        };
        let count = std::cell::Cell::new(0);
        let done = || {
            count.set(count.get() + 1);
            count.get() > 3
        };
        let found = measure(closed, Method::UdpEcho, &done, &Interrupt::never()).unwrap();
        assert_eq!((found.sent, found.times.len()), (3, 0));
        assert_eq!(found.summary(), None);
    }
}
