//! What was measured, as programs read it; `show` is for people. The document of one pair has
//! iperf3's own fields `start`, `intervals` and `end` for TCP; what else was measured stands beside
//! them.

use std::{fmt::Write as _, net::IpAddr};

use serde::Serialize;

use super::{kernel::KernelDrops, nodes::Drops, pods::PodAt};
use crate::measure::{
    Measurement,
    rtt::{Samples, Summary},
};

/// One pair: `kind: Bench`.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// The first pod.
    pub(super) from: Member,
    /// The second.
    pub(super) to: Member,
    /// Whether a tunnel is between them.
    pub(super) path: Path,
    /// `iperf3` or `builtin`; empty if it did not come to that.
    pub(super) meter: &'static str,
    /// TCP, as iperf3 tells it.
    #[serde(flatten)]
    pub(super) tcp: Measurement,
    /// UDP, one for each size.
    pub(super) udp: Vec<Datagrams>,
    /// Round trips.
    pub(super) rtt: Rtt,
    /// What daemons dropped during the loads.
    pub(super) drops: Vec<Drops>,
    /// Nodes of which that is not known.
    pub(super) drops_unknown: Vec<String>,
    /// What the kernel dropped inside of the pods that are known here.
    pub(super) kernel_drops: Vec<KernelDrops>,
}

/// An end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Member {
    pub(super) namespace: String,
    /// Empty for a server that is known by its address alone.
    pub(super) name: String,
    pub(super) container_id: String,
    /// Empty if not known.
    pub(super) node: String,
    pub(super) address: String,
    #[serde(skip)]
    label: String,
}

impl Member {
    /// A pod that is known here.
    pub(super) fn of(pod: &PodAt, address: Option<IpAddr>) -> Self {
        Self {
            namespace: pod.pod.namespace.clone(),
            name: pod.pod.name.clone(),
            container_id: pod.pod.container_id.clone(),
            node: pod.node.clone(),
            address: address.map(|it| it.to_string()).unwrap_or_default(),
            label: pod.label(),
        }
    }

    /// A server elsewhere.
    pub(super) fn server(address: IpAddr) -> Self {
        Self {
            address: address.to_string(),
            label: address.to_string(),
            ..Self::default()
        }
    }

    /// `namespace/name`, the begin of the container's id, or the address.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// The last part of the label.
    pub(super) fn short(&self) -> &str {
        self.label.rsplit('/').next().unwrap_or_default()
    }

    pub(super) fn described(&self) -> String {
        let mut text = self.label.clone();
        if self.label != self.address && !self.address.is_empty() {
            let _ = write!(text, " ({})", self.address);
        }
        if !self.node.is_empty() {
            let _ = write!(text, " on {}", self.node);
        }
        text
    }
}

/// Whether a tunnel is between two pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Path {
    /// One daemon holds both.
    SameNode,
    /// From node to node.
    Across,
    /// It did not come to that.
    #[default]
    Unknown,
}

impl Path {
    pub(super) fn cell(self) -> &'static str {
        match self {
            Self::SameNode => "same-node",
            Self::Across => "across",
            Self::Unknown => "unknown",
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::SameNode => "on one node",
            Self::Across => "across nodes",
            Self::Unknown => "unknown",
        }
    }
}

/// UDP with datagrams of one size.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Datagrams {
    /// Payload (bytes).
    pub(super) size: u32,
    /// Sent per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_per_second: Option<f64>,
    /// Arrived per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    received_per_second: Option<f64>,
    /// Those of the sent ones that did not arrive, the very last ones included (percent).
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_percent: Option<f64>,
    /// As iperf3 tells it.
    #[serde(flatten)]
    pub(super) measurement: Measurement,
}

impl Datagrams {
    /// A measurement, or why there is none.
    pub(super) fn new(size: u32, measured: anyhow::Result<Measurement>) -> Self {
        let measurement = measured.unwrap_or_else(|error| Measurement::failed(&error));
        let rate = measurement.packet_rate();
        Self {
            size,
            sent_per_second: rate.map(|rate| rate.sent_per_second),
            received_per_second: rate.map(|rate| rate.received_per_second),
            lost_percent: rate.map(|rate| rate.lost_percent),
            measurement,
        }
    }
}

/// Round trips without and beside a load.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Rtt {
    /// While nothing else was sent.
    pub(super) idle: RoundTrips,
    /// Beside TCP.
    pub(super) loaded: RoundTrips,
}

/// Round trips, or why there are none.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct RoundTrips {
    #[serde(flatten)]
    pub(super) summary: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// For the picture.
    #[serde(skip)]
    pub(super) times: Vec<(f64, f64)>,
}

impl RoundTrips {
    /// What was measured, or why not.
    pub(super) fn new(measured: anyhow::Result<Samples>) -> Self {
        match measured {
            Ok(samples) => {
                let summary = samples.summary();
                let error = summary
                    .is_none()
                    .then(|| format!("none of {} was answered", samples.sent));
                Self {
                    summary,
                    error,
                    times: samples.times,
                }
            }
            Err(error) => Self {
                error: Some(format!("{error:#}")),
                ..Self::default()
            },
        }
    }
}

impl Report {
    /// What failed, with the part it was.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut add = |what: &str, error: &Option<String>| {
            failures.extend(error.iter().map(|error| format!("{what}: {error}")));
        };
        add("TCP", &self.tcp.error);
        for udp in &self.udp {
            add(&format!("UDP {}", udp.size), &udp.measurement.error);
        }
        add("RTT idle", &self.rtt.idle.error);
        add("RTT loaded", &self.rtt.loaded.error);
        failures
    }
}

/// All pairs: `kind: BenchList`.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct ReportList {
    /// In the order in which they were measured.
    pub(super) items: Vec<Report>,
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::{
        measure::rtt::Method,
        terminal::output::{Format, render},
    };

    /// A report as a run across two workers gives it.
    pub(in crate::cli::bench) fn sample() -> Report {
        let member = |name: &str, node: &str, address: &str| Member {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            address: address.to_owned(),
            label: format!("default/{name}"),
            ..Member::default()
        };
        let tcp = json!({
            "start": {"version": "iperf 3.12", "test_start": {"protocol": "TCP", "num_streams": 1, "duration": 5}},
            "intervals": [{"sum": {"start": 0, "end": 0.5, "seconds": 0.5, "bytes": 4, "bits_per_second": 7e9}},
                          {"sum": {"start": 0.5, "end": 1, "seconds": 0.5, "bytes": 4, "bits_per_second": 6e9}}],
            "end": {"sum_sent": {"retransmits": 12, "bits_per_second": 6.9e9, "seconds": 5},
                    "sum_received": {"bits_per_second": 6.8e9, "seconds": 5, "bytes": 8}}});
        let udp = json!({
            "start": {"test_start": {"protocol": "UDP", "blksize": 64}},
            "end": {"sum": {"packets": 1000, "seconds": 2, "jitter_ms": 0.01},
                    "sum_sent": {"packets": 1000, "seconds": 2},
                    "sum_received": {"packets": 1000, "seconds": 2, "bytes": 62080, "jitter_ms": 0.01}}});
        let trips = |ms: f64| {
            RoundTrips::new(Ok(Samples {
                method: Method::UdpEcho,
                sent: 3,
                times: vec![(0.0, ms), (0.1, ms * 2.0)],
            }))
        };
        Report {
            from: member("web", "worker-a", "10.1.0.5"),
            to: member("db", "worker-b", "10.1.1.7"),
            path: Path::Across,
            meter: "iperf3",
            tcp: serde_json::from_value(tcp).unwrap(),
            udp: vec![
                Datagrams::new(64, Ok(serde_json::from_value(udp).unwrap())),
                Datagrams::new(1200, Err(anyhow::anyhow!("the server is busy"))),
            ],
            rtt: Rtt {
                idle: trips(0.2),
                loaded: trips(1.5),
            },
            drops: vec![Drops {
                node: "worker-a".to_owned(),
                during: "udp-64".to_owned(),
                reason: "PEER_QUEUE_FULL".to_owned(),
                packets: 30,
            }],
            drops_unknown: vec![],
            kernel_drops: vec![
                KernelDrops {
                    pod: "default/web".to_owned(),
                    during: "udp-64".to_owned(),
                    counter: "tx_dropped",
                    packets: 9,
                },
                KernelDrops {
                    pod: "default/db".to_owned(),
                    during: "udp-1200".to_owned(),
                    counter: "RcvbufErrors",
                    packets: 4,
                },
            ],
        }
    }

    /// Programs that read iperf3 find its fields at their places; the rest stands beside them.
    #[test]
    fn one_pair_for_programs() {
        let document = super::super::document("Bench", sample());
        let json = render(&document, Format::Json).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["apiVersion"], "fabric/v1");
        assert_eq!(json["kind"], "Bench");
        assert_eq!(json["start"]["test_start"]["protocol"], "TCP");
        assert_eq!(json["end"]["sum_received"]["bits_per_second"], 6.8e9);
        assert_eq!(json["end"]["sum_sent"]["retransmits"], 12);
        assert_eq!(json["intervals"][1]["sum"]["end"], 1.0);
        assert_eq!(json["udp"][0]["end"]["sum_received"]["jitter_ms"], 0.01);
        assert_eq!(json["udp"][0]["receivedPerSecond"], 485.0);
        assert_eq!(json["udp"][1]["error"], "the server is busy");
        assert_eq!(json["rtt"]["loaded"]["p50_ms"], 1.5);
        assert_eq!(json["rtt"]["loaded"]["method"], "udp-echo");
        assert_eq!(json["path"], "across");
        assert_eq!(json["drops"][0]["reason"], "PEER_QUEUE_FULL");
        assert_eq!(json["kernelDrops"][0]["counter"], "tx_dropped");
        assert!(json.get("error").is_none());
        let yaml = render(&document, Format::Yaml).unwrap();
        assert!(
            yaml.starts_with("apiVersion: fabric/v1\nkind: Bench\n"),
            "{yaml}"
        );
    }
}
