//! The questions that a system can be asked, and the figures that answer them.

use clap::ValueEnum;
use serde::Serialize;

use crate::{iperf::Direction, ping::Pings};

/// A question asked of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Measure {
    /// One TCP stream from worker a to worker b.
    TcpAcross,
    /// One TCP stream from worker b to worker a.
    TcpAcrossReverse,
    /// One TCP stream each way at once; the sum of both.
    TcpAcrossBothWays,
    /// Four TCP streams from worker a to worker b.
    #[value(name = "tcp-across-4")]
    TcpAcross4,
    /// Sixteen TCP streams from worker a to worker b.
    #[value(name = "tcp-across-16")]
    TcpAcross16,
    /// UDP of 64 bytes from worker a to worker b, as fast as the sender can.
    #[value(name = "udp-64")]
    Udp64,
    /// UDP of 1200 bytes from worker a to worker b, as fast as the sender can.
    #[value(name = "udp-1200")]
    Udp1200,
    /// Round-trip time across workers without load.
    RttIdle,
    /// The same with a second between two packets, in which everything falls asleep.
    RttIdleSparse,
    /// Round-trip time across workers while one TCP stream takes what it can get.
    RttBesideTcp,
    /// Round-trip time across workers while four TCP streams take what they can get.
    #[value(name = "rtt-beside-tcp-4")]
    RttBesideTcp4,
    /// One TCP stream within a worker.
    TcpSameNode,
    /// Round-trip time within a worker without load.
    RttSameNode,
}

/// How a measure is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// TCP streams that send all they can.
    Tcp {
        /// In parallel, in each direction.
        streams: u32,
        /// Who sends.
        direction: Direction,
    },
    /// One UDP sender that sends all it can.
    Udp {
        /// Of one packet, without IP and UDP headers.
        payload_bytes: u32,
    },
    /// Pings.
    Rtt {
        /// How many and how often.
        pings: Pings,
        /// TCP streams that run meanwhile between the same ends.
        beside_streams: u32,
    },
}

/// One number of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Figure {
    /// Payload that the receiver got (1e9 bits per second).
    GbitPerSecond,
    /// Packets that the receiver got (1000 per second).
    DeliveredKpps,
    /// Packets that the sender sent (1000 per second).
    OfferedKpps,
    /// Part of the packets sent that the receiver did not get (percent).
    LostPercent,
    /// Median of the round-trip times of a sample (ms).
    RttP50Ms,
    /// 99th percentile of the round-trip times of a sample (ms).
    RttP99Ms,
    /// What the TCP streams beside the pings got (1e9 bits per second).
    BesideGbitPerSecond,
    /// CPU time of the system's processes, both ends together, per 1e9 bytes that arrived.
    CpuSecondsPerGb,
    /// Peak of the resident memory of the larger process during the sample (MiB).
    PeakRssMib,
}

/// Enough that two lost ones do not decide the 99th percentile.
const PINGS: Pings = Pings {
    count: 200,
    interval_ms: 10,
};
/// With pauses in which everything falls asleep.
const SPARSE_PINGS: Pings = Pings {
    count: 4,
    interval_ms: 1000,
};

impl Measure {
    /// As on the command line and in names of files.
    #[must_use]
    pub fn id(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    /// For a person.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::TcpAcross => "TCP across, 1 stream",
            Self::TcpAcrossReverse => "TCP across, reverse",
            Self::TcpAcrossBothWays => "TCP across, both ways, sum",
            Self::TcpAcross4 => "TCP across, 4 streams",
            Self::TcpAcross16 => "TCP across, 16 streams",
            Self::Udp64 => "UDP 64 B",
            Self::Udp1200 => "UDP 1200 B",
            Self::RttIdle => "RTT idle",
            Self::RttIdleSparse => "RTT idle, 1 s apart",
            Self::RttBesideTcp => "RTT beside 1 TCP stream",
            Self::RttBesideTcp4 => "RTT beside 4 TCP streams",
            Self::TcpSameNode => "TCP same node",
            Self::RttSameNode => "RTT same node",
        }
    }

    /// How it is taken.
    #[must_use]
    pub fn probe(self) -> Probe {
        let tcp = |streams, direction| Probe::Tcp { streams, direction };
        let rtt = |beside_streams| Probe::Rtt {
            pings: PINGS,
            beside_streams,
        };
        match self {
            Self::TcpAcross | Self::TcpSameNode => tcp(1, Direction::Forth),
            Self::TcpAcrossReverse => tcp(1, Direction::Back),
            Self::TcpAcrossBothWays => tcp(1, Direction::Both),
            Self::TcpAcross4 => tcp(4, Direction::Forth),
            Self::TcpAcross16 => tcp(16, Direction::Forth),
            Self::Udp64 => Probe::Udp { payload_bytes: 64 },
            Self::Udp1200 => Probe::Udp {
                payload_bytes: 1200,
            },
            Self::RttIdle | Self::RttSameNode => rtt(0),
            Self::RttBesideTcp => rtt(1),
            Self::RttBesideTcp4 => rtt(4),
            Self::RttIdleSparse => Probe::Rtt {
                pings: SPARSE_PINGS,
                beside_streams: 0,
            },
        }
    }

    /// Whether both ends are on one worker.
    #[must_use]
    pub fn is_same_node(self) -> bool {
        matches!(self, Self::TcpSameNode | Self::RttSameNode)
    }

    /// The figures by which systems are compared, the most telling one first. Each is a row of the
    /// report and a chart.
    #[must_use]
    pub fn figures(self) -> &'static [Figure] {
        match self.probe() {
            Probe::Tcp { .. } => &[Figure::GbitPerSecond, Figure::CpuSecondsPerGb],
            Probe::Udp { .. } => &[Figure::DeliveredKpps],
            Probe::Rtt { beside_streams, .. } if beside_streams > 0 => {
                &[Figure::RttP99Ms, Figure::RttP50Ms]
            }
            // A handful of pings has no 99th percentile.
            Probe::Rtt { pings, .. } if pings == SPARSE_PINGS => &[Figure::RttP50Ms],
            Probe::Rtt { .. } => &[Figure::RttP50Ms, Figure::RttP99Ms],
        }
    }

    /// The figure that answers the question best.
    #[must_use]
    pub fn main_figure(self) -> Figure {
        self.figures().first().copied().unwrap_or(Figure::RttP50Ms)
    }
}

impl Figure {
    /// As in names of files.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::GbitPerSecond => "rate",
            Self::DeliveredKpps => "delivered",
            Self::OfferedKpps => "offered",
            Self::LostPercent => "lost",
            Self::RttP50Ms => "p50",
            Self::RttP99Ms => "p99",
            Self::BesideGbitPerSecond => "beside",
            Self::CpuSecondsPerGb => "cpu",
            Self::PeakRssMib => "rss",
        }
    }

    /// What stands behind the title of a measure to name this figure of it; empty for a measure's
    /// natural one.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::GbitPerSecond | Self::DeliveredKpps => "",
            Self::OfferedKpps => ", offered",
            Self::LostPercent => ", lost",
            Self::RttP50Ms => ", p50",
            Self::RttP99Ms => ", p99",
            Self::BesideGbitPerSecond => ", the streams",
            Self::CpuSecondsPerGb => ", CPU of both ends",
            Self::PeakRssMib => ", resident memory",
        }
    }

    /// What it counts.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::GbitPerSecond | Self::BesideGbitPerSecond => "Gbit/s",
            Self::DeliveredKpps | Self::OfferedKpps => "kpps",
            Self::LostPercent => "%",
            Self::RttP50Ms | Self::RttP99Ms => "ms",
            Self::CpuSecondsPerGb => "cpu-s/GB",
            Self::PeakRssMib => "MiB",
        }
    }

    /// Digits behind the point that mean something.
    #[must_use]
    pub fn digits(self) -> usize {
        match self {
            Self::RttP50Ms | Self::RttP99Ms => 3,
            Self::GbitPerSecond | Self::BesideGbitPerSecond | Self::CpuSecondsPerGb => 2,
            Self::DeliveredKpps | Self::OfferedKpps | Self::LostPercent => 1,
            Self::PeakRssMib => 0,
        }
    }

    /// Whether more is worse.
    #[must_use]
    pub fn less_is_better(self) -> bool {
        matches!(
            self,
            Self::LostPercent
                | Self::RttP50Ms
                | Self::RttP99Ms
                | Self::CpuSecondsPerGb
                | Self::PeakRssMib
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every measure has a name of its own for the command line, and a title of its own.
    #[test]
    fn names_are_distinct() {
        let all = Measure::value_variants();
        let ids: BTreeSet<String> = all.iter().map(|measure| measure.id()).collect();
        let titles: BTreeSet<&str> = all.iter().map(|measure| measure.title()).collect();
        assert_eq!((ids.len(), titles.len()), (all.len(), all.len()));
        assert!(ids.contains("tcp-across-16") && ids.contains("rtt-beside-tcp-4"));
    }

    /// Under load the tail of the round-trip times counts first, without it the middle; where only a
    /// handful of pings is sent there is no tail.
    #[test]
    fn the_most_telling_figure_is_first() {
        assert_eq!(Measure::TcpAcross.main_figure(), Figure::GbitPerSecond);
        assert_eq!(Measure::Udp64.main_figure(), Figure::DeliveredKpps);
        assert_eq!(Measure::RttIdle.main_figure(), Figure::RttP50Ms);
        assert_eq!(Measure::RttBesideTcp.main_figure(), Figure::RttP99Ms);
        assert_eq!(Measure::RttIdleSparse.figures(), [Figure::RttP50Ms]);
    }
}
