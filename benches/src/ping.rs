//! Round-trip times, by ping.

use std::{net::IpAddr, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_node::{lab::command, sys::netns::Netns};

use crate::report::median;

/// Packets of one measurement.
const COUNT: usize = 100;
/// Pause between two packets (seconds): long enough that everything has gone back to sleep.
const INTERVAL_SECONDS: &str = "0.02";
/// How long one measurement may take in all.
const PING_MAX: Duration = Duration::from_secs(20);

/// The median round-trip time to `address` (ms), measured inside `netns`.
///
/// # Errors
///
/// ping is missing or has no answers.
pub fn measure(netns: &Netns, address: IpAddr) -> anyhow::Result<f64> {
    let mut ping = Command::new(command::find("ping").context("ping is not installed")?);
    ping.env("LC_ALL", "C")
        .args(["-n", "-c", &COUNT.to_string(), "-i", INTERVAL_SECONDS])
        .args(["-W", "1", &address.to_string()]);
    let answer = netns.run(move || command::run(ping, b"", PING_MAX))??;
    let times = times_ms(&answer.stdout);
    ensure!(
        times.len() >= COUNT / 2,
        "{} of {COUNT} pings to {address} were answered: {}",
        times.len(),
        answer.last_line()
    );
    median(&times).context("no answers")
}

/// The times (ms) in what ping printed, in the order of the answers.
#[must_use]
pub fn times_ms(output: &str) -> Vec<f64> {
    output
        .lines()
        .filter_map(|line| {
            let (_, time) = line.split_once(" time=")?;
            time.split_whitespace().next()?.parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times are taken from the lines of answers only.
    #[test]
    fn answers_are_read() {
        let output = "PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.\n\
            64 bytes from 10.0.0.1: icmp_seq=1 ttl=64 time=0.051 ms\n\
            64 bytes from 10.0.0.1: icmp_seq=2 ttl=64 time=12 ms\n\
            rtt min/avg/max/mdev = 0.051/6.0/12/1 ms\n";
        assert_eq!(times_ms(output), [0.051, 12.0]);
    }
}
