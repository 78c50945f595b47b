//! Round-trip times, by ping, which takes the time of an answer from the kernel: a busy processor
//! that lets ping wait does not count.

use std::{net::IpAddr, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_node::{lab::command, sys::netns::Netns};

use crate::statistics::{median, percentile};

/// How long is waited for an answer; what a lost one counts as, so that loss is not hidden (s).
const WAIT_SECONDS: u32 = 1;
/// How long a measurement may take beyond the time it sends.
const EXTRA_MAX: Duration = Duration::from_secs(15);

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pings {
    /// How many.
    pub count: u32,
    /// Between two of them (ms).
    pub interval_ms: u32,
}

impl Pings {
    /// From the first to the last one.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_millis(u64::from(self.count.saturating_sub(1)) * u64::from(self.interval_ms))
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

/// Pings `address` from inside `netns`.
///
/// # Errors
///
/// ping is missing, or more than half of its packets are not answered.
pub fn measure(netns: &Netns, address: IpAddr, pings: Pings) -> anyhow::Result<RoundTrip> {
    let interval_seconds = f64::from(pings.interval_ms) / 1000.0;
    let mut ping = Command::new(command::find("ping").context("ping is not installed")?);
    ping.env("LC_ALL", "C")
        .args(["-n", "-c", &pings.count.to_string()])
        .args(["-i", &interval_seconds.to_string()])
        .args(["-W", &WAIT_SECONDS.to_string(), &address.to_string()]);
    let limit = pings.duration() + EXTRA_MAX;
    let answer = netns.run(move || command::run(ping, b"", limit))??;
    let times = times_ms(&answer.stdout);
    ensure!(
        times.len() * 2 >= pings.count as usize,
        "{} of {} pings to {address} were answered: {}",
        times.len(),
        pings.count,
        answer.last_line()
    );
    round_trip(times, pings.count).context("no pings")
}

fn round_trip(mut times_ms: Vec<f64>, sent: u32) -> Option<RoundTrip> {
    let lost = f64::from(WAIT_SECONDS * 1000);
    times_ms.resize(times_ms.len().max(sent as usize), lost);
    Some(RoundTrip {
        p50_ms: median(&times_ms)?,
        p99_ms: percentile(&times_ms, 99)?,
    })
}

fn times_ms(output: &str) -> Vec<f64> {
    output
        .lines()
        .filter(|line| !line.ends_with("(DUP!)"))
        .filter_map(|line| {
            let (_, time) = line.split_once(" time=")?;
            time.split_whitespace().next()?.parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Times are taken from the first answer to each ping only.
    #[test]
    fn answers_are_read() {
        let output = "PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.\n\
            64 bytes from 10.0.0.1: icmp_seq=1 ttl=64 time=0.051 ms\n\
            64 bytes from 10.0.0.1: icmp_seq=1 ttl=64 time=3.1 ms (DUP!)\n\
            64 bytes from 10.0.0.1: icmp_seq=2 ttl=64 time=12 ms\n\
            rtt min/avg/max/mdev = 0.051/6.0/12/1 ms\n";
        assert_eq!(times_ms(output), [0.051, 12.0]);
    }

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
}
