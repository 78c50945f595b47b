//! Round-trip times: comes in an address and how often to ask it, goes out middle and tail of the
//! times. The other end's kernel answers; [`echo`] sends and receives.
//!
//! Sent by a clock, not by the program ping: on a kernel of 100 ticks a second that one takes twice to
//! three times as long as it is told to for pauses of 10 ms, and longer still beside a load.

mod echo;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::sys::netns::Netns;

use self::echo::EchoSocket;
use crate::statistics::{median, percentile};

/// How long is waited for the last answers; what a lost one counts as, so that loss is not hidden.
const WAIT: Duration = Duration::from_secs(1);

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pings {
    /// How many.
    pub count: u16,
    /// Between two of them (ms).
    pub interval_ms: u32,
}

impl Pings {
    /// From the first to the last one.
    #[must_use]
    pub fn duration(self) -> Duration {
        self.due(self.count.saturating_sub(1))
    }

    /// From the first one to the one with this number.
    fn due(self, number: u16) -> Duration {
        Duration::from_millis(u64::from(number) * u64::from(self.interval_ms))
    }
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundTrip {
    /// Half took no longer (ms).
    pub p50_ms: f64,
    /// 99 of 100 took no longer (ms).
    pub p99_ms: f64,
}

/// Pings `address`, an IPv4 one, from inside `netns`.
///
/// # Errors
///
/// The socket needs root; and more than half of the pings are not answered.
pub fn measure(netns: &Netns, address: IpAddr, pings: Pings) -> anyhow::Result<RoundTrip> {
    let times = answered_ms(netns, address, pings)?;
    ensure!(
        times.len() * 2 >= usize::from(pings.count),
        "{} of {} pings to {address} were answered",
        times.len(),
        pings.count,
    );
    round_trip(times, pings.count).context("no pings")
}

/// The times (ms) of those pings to `address`, an IPv4 one, from inside `netns` that were answered.
///
/// # Errors
///
/// The socket needs root.
pub fn answered_ms(netns: &Netns, address: IpAddr, pings: Pings) -> anyhow::Result<Vec<f64>> {
    let IpAddr::V4(address) = address else {
        bail!("{address} is pinged over IPv4 only");
    };
    netns.run(move || times_ms(&mut EchoSocket::open(address)?, pings))?
}

fn times_ms(socket: &mut EchoSocket, pings: Pings) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::with_capacity(pings.count.into());
    let mut keep = |time: Duration| times.push(time.as_secs_f64() * 1000.0);
    let start = Instant::now();
    for number in 0..pings.count {
        while socket.receive(start + pings.due(number), &mut keep)? {}
        socket.send()?;
    }
    let end = Instant::now() + WAIT;
    while !socket.is_complete() && socket.receive(end, &mut keep)? {}
    Ok(times)
}

fn round_trip(mut times_ms: Vec<f64>, sent: u16) -> Option<RoundTrip> {
    let lost = WAIT.as_secs_f64() * 1000.0;
    times_ms.resize(times_ms.len().max(sent.into()), lost);
    Some(RoundTrip {
        p50_ms: median(&times_ms)?,
        p99_ms: percentile(&times_ms, 99)?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::Ipv4Addr;

    use fabric_node::sys::netlink::Netlink;

    use super::*;

    /// Two lost ones of 200 are beyond the 99th percentile, the third is it.
    #[test]
    fn lost_pings_count_as_slow_ones() {
        let trip = |answered: usize| round_trip(vec![0.5; answered], 200).unwrap();
        assert_eq!((trip(198).p50_ms, trip(198).p99_ms), (0.5, 0.5));
        assert_eq!((trip(197).p50_ms, trip(197).p99_ms), (0.5, 1000.0));
    }

    /// Pauses are between pings, not behind the last one.
    #[test]
    fn the_duration_is_that_of_the_pauses() {
        let pings = |count| Pings {
            count,
            interval_ms: 10,
        };
        assert_eq!(pings(200).duration(), Duration::from_millis(1990));
        assert_eq!(pings(0).duration(), Duration::ZERO);
    }

    /// Every ping to an address of one's own is answered, within the time between the first being
    /// sent and the end; none takes longer than that.
    #[test]
    fn own_addresses_answer() {
        let netns = Netns::create().expect("this needs root");
        netns
            .run(|| Netlink::connect().unwrap().set_loopback_up().unwrap())
            .unwrap();
        let pings = Pings {
            count: 20,
            interval_ms: 2,
        };
        let start = Instant::now();
        let times = netns.run(|| times_ms(&mut EchoSocket::open(Ipv4Addr::LOCALHOST)?, pings));
        let (times, elapsed) = (times.unwrap().unwrap(), start.elapsed());
        assert_eq!(times.len(), 20);
        assert!(elapsed >= pings.duration());
        let limit = elapsed.as_secs_f64() * 1000.0;
        assert!(times.iter().all(|time| *time > 0.0 && *time < limit));
    }

    /// Where nobody answers, that is an error.
    #[test]
    fn silence_is_an_error() {
        let netns = Netns::create().expect("this needs root");
        let pings = Pings {
            count: 2,
            interval_ms: 1,
        };
        // No interface is up: there is no route even to itself.
        let error = measure(&netns, Ipv4Addr::LOCALHOST.into(), pings).unwrap_err();
        assert!(format!("{error:#}").contains("127.0.0.1"), "{error:#}");
    }
}
