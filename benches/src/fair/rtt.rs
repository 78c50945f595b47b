//! Round-trip times one by one, while something else goes on.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_node::sys::netns::Netns;
use serde::Serialize;

use crate::{
    ping::{Pings, answered_ms},
    statistics::percentile,
};

/// Pause between two packets (ms).
pub const INTERVAL_MS: u32 = 10;
/// How long an answer is waited for (ms): a packet without one counts as this slow, or losing the
/// slowest would make the others look good.
const ANSWER_MS_MAX: f64 = 1_000.0;
/// Where the times of one run lie (ms).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rtt {
    /// Packets sent.
    pub sent: usize,
    /// Of these, those that were answered.
    pub answered: usize,
    /// Half were faster; one without an answer took a second.
    pub p50_ms: f64,
    /// 99 of 100 were.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

/// Pings `address` from inside `netns` for `time`.
///
/// # Errors
///
/// The socket needs root, or none of its packets was answered.
pub fn measure(netns: &Netns, address: IpAddr, time: Duration) -> anyhow::Result<Rtt> {
    let sent = (time.as_millis() / u128::from(INTERVAL_MS)) as u16;
    let pings = Pings {
        count: sent,
        interval_ms: INTERVAL_MS,
    };
    let sent = usize::from(sent);
    let times = answered_ms(netns, address, pings)?;
    ensure!(
        !times.is_empty() && times.len() <= sent,
        "{} of {sent} pings to {address} were answered",
        times.len(),
    );
    summed_up(sent, times).context("nothing was sent")
}

fn summed_up(sent: usize, mut times: Vec<f64>) -> Option<Rtt> {
    let answered = times.len();
    times.resize(sent, ANSWER_MS_MAX);
    Some(Rtt {
        sent,
        answered,
        p50_ms: percentile(&times, 50)?,
        p99_ms: percentile(&times, 99)?,
        max_ms: percentile(&times, 100)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a hundred times the 99th is the 99th percentile, of fewer the last; a packet without an
    /// answer is slower than all others; of nothing there is none.
    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times = |count: u32| (1..=count).rev().map(f64::from).collect::<Vec<_>>();
        let expected = Rtt {
            sent: 100,
            answered: 100,
            p50_ms: 50.0,
            p99_ms: 99.0,
            max_ms: 100.0,
        };
        assert_eq!(summed_up(100, times(100)), Some(expected));
        assert_eq!(summed_up(3, times(3)).map(|rtt| rtt.p99_ms), Some(3.0));
        let lossy = Rtt {
            answered: 98,
            p99_ms: 1_000.0,
            max_ms: 1_000.0,
            ..expected
        };
        assert_eq!(summed_up(100, times(98)), Some(lossy));
        assert_eq!(summed_up(0, Vec::new()), None);
    }
}
