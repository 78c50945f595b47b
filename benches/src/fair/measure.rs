//! One lab, and one run of each case in it.

use std::{net::IpAddr, path::Path, thread, time::Duration};

use anyhow::{Context as _, bail, ensure};
use fabric_node::{
    lab::{Families, Interrupt, Lab, LabName, LabOptions, Pod, Progress},
    sys::netns::Netns,
};

use super::{
    flood,
    rtt::{self, Rtt},
};
use crate::{
    iperf::{self, Direction, Ends, TcpLoad},
    statistics::median,
};

/// Pods that send at once.
pub const SENDERS: usize = 4;
/// Pods of each worker: one more for the ping.
const PODS: usize = SENDERS + 1;
/// The ping begins a little after the load and ends a little before it (ms, both together).
const MARGIN_MS: u64 = 1_000;

/// Pairs of pods on two workers: the last pair for the ping, the others send and receive.
#[derive(Debug)]
pub struct Pairs {
    senders: Vec<Netns>,
    receivers: Vec<(Netns, IpAddr)>,
    _lab: Lab,
}

/// One run of several pods that send at once.
#[derive(Clone, Debug)]
pub struct Run {
    /// What each pod got (Gbit/s). In a run with a flood the first is the flood.
    pub rates: Vec<f64>,
    /// The ping beside them.
    pub rtt: Rtt,
}

impl Run {
    /// The smallest rate, in parts of a fair share.
    #[must_use]
    pub fn least_share(&self) -> f64 {
        let fair = self.sum() / self.rates.len() as f64;
        self.rates.iter().copied().fold(f64::INFINITY, f64::min) / fair
    }

    /// All rates together (Gbit/s).
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.rates.iter().sum()
    }
}

impl Pairs {
    /// Builds the lab.
    ///
    /// # Errors
    ///
    /// It cannot be built.
    pub fn up(
        name: LabName,
        bin_dir: &Path,
        progress: &Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        let options = LabOptions {
            families: Families::Ipv4,
            ..LabOptions::new(name, 2, PODS, bin_dir.to_owned())
        };
        let lab = Lab::up_with(&options, progress, interrupt)?;
        let (one, other) = lab.pods().split_at_checked(PODS).context("too few pods")?;
        let netns = |pod: &Pod| anyhow::Ok(Netns::open(&pod.netns)?);
        let receiver = |pod: &Pod| {
            let address = pod.addresses.first().copied();
            anyhow::Ok((netns(pod)?, address.context("a pod without an address")?))
        };
        Ok(Self {
            senders: one.iter().map(netns).collect::<anyhow::Result<_>>()?,
            receivers: other.iter().map(receiver).collect::<anyhow::Result<_>>()?,
            _lab: lab,
        })
    }

    /// All senders send TCP, a ping beside them.
    ///
    /// # Errors
    ///
    /// iperf3 or ping fails.
    pub fn tcp(&self, seconds: u32, congestion: Option<&str>) -> anyhow::Result<Run> {
        let (rates, rtt) = self.streams(0, seconds, congestion)?;
        Ok(Run { rates, rtt })
    }

    /// The first sender floods the fabric with UDP, the others send TCP, a ping beside them.
    ///
    /// # Errors
    ///
    /// As [`Self::tcp`].
    pub fn flood(&self, seconds: u32, congestion: Option<&str>) -> anyhow::Result<Run> {
        let ((mut rates, rtt), flood) =
            flood::beside(self.ends(0)?, || self.streams(1, seconds, congestion))?;
        rates.insert(0, flood);
        Ok(Run { rates, rtt })
    }

    /// The ping alone.
    ///
    /// # Errors
    ///
    /// As [`Self::tcp`].
    pub fn idle(&self, seconds: u32) -> anyhow::Result<Rtt> {
        let ping = self.ends(SENDERS)?;
        rtt::measure(
            ping.client,
            ping.address,
            Duration::from_secs(seconds.into()),
        )
    }

    fn ends(&self, pair: usize) -> anyhow::Result<Ends<'_>> {
        let (Some(client), Some((server, address))) =
            (self.senders.get(pair), self.receivers.get(pair))
        else {
            bail!("there is no pair {pair}");
        };
        Ok(Ends {
            client,
            server,
            address: *address,
        })
    }

    /// TCP from the senders from number `first` on.
    fn streams(
        &self,
        first: usize,
        seconds: u32,
        congestion: Option<&str>,
    ) -> anyhow::Result<(Vec<f64>, Rtt)> {
        let load = TcpLoad {
            streams: 1,
            direction: Direction::Forth,
            seconds,
            congestion,
        };
        let ping_time = Duration::from_secs(seconds.into())
            .checked_sub(Duration::from_millis(MARGIN_MS))
            .filter(|time| !time.is_zero())
            .context("a run takes two seconds at least")?;
        let ping = self.ends(SENDERS)?;
        let ends = (first..SENDERS)
            .map(|pair| self.ends(pair))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let panicked = |_| anyhow::anyhow!("a thread panicked");
        thread::scope(|scope| {
            let streams: Vec<_> = ends
                .into_iter()
                .map(|ends| scope.spawn(move || iperf::tcp(ends, load)))
                .collect();
            thread::sleep(Duration::from_millis(MARGIN_MS / 2));
            let rtt = rtt::measure(ping.client, ping.address, ping_time)?;
            let mut rates = Vec::new();
            for stream in streams {
                rates.push(stream.join().map_err(panicked)??.gbit_per_second);
            }
            Ok((rates, rtt))
        })
    }
}

/// The median of what `value` says of each run.
///
/// # Errors
///
/// There are no runs.
pub fn median_of<T>(runs: &[T], value: impl Fn(&T) -> f64) -> anyhow::Result<f64> {
    ensure!(!runs.is_empty(), "nothing was measured");
    let values: Vec<f64> = runs.iter().map(value).collect();
    median(&values).context("nothing was measured")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least share is 1 where all get the same, and what the poorest gets of a quarter else.
    #[test]
    fn shares_are_parts_of_a_fair_one() {
        let rtt = Rtt {
            sent: 1,
            answered: 1,
            p50_ms: 1.0,
            p99_ms: 1.0,
            max_ms: 1.0,
        };
        let run = |rates: [f64; 4]| Run {
            rates: rates.to_vec(),
            rtt,
        };
        assert!((run([2.0; 4]).least_share() - 1.0).abs() < 1e-9);
        assert!((run([3.0, 3.0, 1.0, 1.0]).least_share() - 0.5).abs() < 1e-9);
        assert!((run([4.0, 0.0, 0.0, 0.0]).least_share()).abs() < 1e-9);
    }
}
