//! What was measured, for people and for programs. The document of one pair has iperf3's own fields
//! `start`, `intervals` and `end` for TCP; what else was measured stands beside them.

use std::{fmt::Write as _, net::IpAddr};

use serde::Serialize;

use super::{nodes::Drops, pods::PodAt};
use crate::{
    measure::{
        Measurement,
        result::PacketRate,
        rtt::{Samples, Summary},
    },
    terminal::output::{NONE, Show, printable, table},
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

    fn described(&self) -> String {
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
    /// The daemon has no route to the address.
    #[default]
    Unknown,
}

impl Path {
    fn cell(self) -> &'static str {
        match self {
            Self::SameNode => "same-node",
            Self::Across => "across",
            Self::Unknown => "unknown",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::SameNode => "on one node",
            Self::Across => "across nodes",
            Self::Unknown => "unknown: the daemon has no route to the address",
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

    fn meter_words(&self) -> String {
        let test = &self.tcp.start.test_start;
        if test.duration == 0 {
            return if self.meter.is_empty() {
                NONE
            } else {
                self.meter
            }
            .to_owned();
        }
        let streams = if test.num_streams == 1 {
            "stream"
        } else {
            "streams"
        };
        let way = match (test.reverse, &self.tcp.end.sum_sent_bidir_reverse) {
            (1, _) => ", reverse",
            (_, Some(_)) => " each way",
            _ => "",
        };
        let builtin = if self.meter == "builtin" {
            " built-in meter"
        } else {
            ""
        };
        format!(
            "{}{builtin}, {} {streams}{way}, {} s",
            self.tcp.start.version, test.num_streams, test.duration
        )
    }

    fn lines(&self, wide: bool) -> Vec<(String, String)> {
        let mut lines = vec![
            ("From".to_owned(), self.from.described()),
            ("To".to_owned(), self.to.described()),
            ("Path".to_owned(), self.path.words().to_owned()),
            ("Meter".to_owned(), self.meter_words()),
            ("TCP".to_owned(), tcp_words(&self.tcp)),
        ];
        if let Some(bits) = self.tcp.received_reverse_bits_per_second() {
            lines.push(("TCP-Back".to_owned(), rate(bits)));
        }
        for udp in &self.udp {
            let failed = failed(&udp.measurement);
            let words = udp
                .measurement
                .packet_rate()
                .map_or(failed, |it| packets_words(&it, wide));
            lines.push((format!("UDP-{}", udp.size), words));
            if let Some(back) = udp.measurement.packet_rate_reverse() {
                lines.push((format!("UDP-{}-Back", udp.size), packets_words(&back, wide)));
            }
        }
        lines.push(("RTT-Idle".to_owned(), rtt_words(&self.rtt.idle, wide)));
        lines.push(("RTT-Loaded".to_owned(), rtt_words(&self.rtt.loaded, wide)));
        lines.push(("Drops".to_owned(), self.drop_words()));
        if wide {
            if let Some(cpu) = &self.tcp.end.cpu_utilization_percent {
                let words = format!(
                    "client {:.0} %, server {:.0} %",
                    cpu.host_total, cpu.remote_total
                );
                lines.push(("CPU".to_owned(), words));
            }
            if let Some(congestion) = &self.tcp.end.sender_tcp_congestion {
                lines.push(("Congestion".to_owned(), congestion.clone()));
            }
            for interval in &self.tcp.intervals {
                let sum = &interval.sum;
                let name = format!("{:.1}-{:.1}s", sum.start, sum.end);
                lines.push((name, rate(sum.bits_per_second)));
            }
        }
        lines
    }

    fn drop_words(&self) -> String {
        let mut words: Vec<String> = self
            .drops
            .iter()
            .map(|it| {
                format!(
                    "{} {} on {} ({})",
                    it.packets, it.reason, it.node, it.during
                )
            })
            .collect();
        words.extend(
            self.drops_unknown
                .iter()
                .map(|node| format!("not known of {node}")),
        );
        if words.is_empty() {
            "0".to_owned()
        } else {
            words.join(", ")
        }
    }
}

impl Show for Report {
    fn show(&self, wide: bool) -> String {
        let mut text = String::new();
        for (name, value) in self.lines(wide) {
            let _ = writeln!(text, "{:<17}{}", format!("{name}:"), printable(&value));
        }
        text
    }
}

/// All pairs: `kind: BenchList`.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct ReportList {
    /// In the order in which they were measured.
    pub(super) items: Vec<Report>,
}

impl Show for ReportList {
    fn show(&self, wide: bool) -> String {
        let mut sizes: Vec<u32> = Vec::new();
        for udp in self.items.iter().flat_map(|report| &report.udp) {
            if !sizes.contains(&udp.size) {
                sizes.push(udp.size);
            }
        }
        if !wide {
            sizes.truncate(1);
        }
        let mut header: Vec<String> = ["FROM", "TO", "PATH", "TCP-GBIT/S", "RTT-MS", "LOADED-MS"]
            .map(str::to_owned)
            .into();
        for size in &sizes {
            header.push(format!("UDP-{size}/S"));
            header.push("LOST".to_owned());
        }
        if wide {
            let more = ["RETRANSMITS", "RTT-P99", "LOADED-P99", "DROPS", "METER"];
            header.extend(more.map(str::to_owned));
        }
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        table(
            &header,
            self.items.iter().map(|report| row(report, &sizes, wide)),
        )
    }
}

fn row(report: &Report, sizes: &[u32], wide: bool) -> Vec<String> {
    let cell = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
    let ms = |trips: &RoundTrips, of: fn(&Summary) -> f64| {
        cell(
            trips
                .summary
                .as_ref()
                .map(|summary| format!("{:.3}", of(summary))),
        )
    };
    let name = |member: &Member| if wide { member.label() } else { member.short() }.to_owned();
    let mut row = vec![
        name(&report.from),
        name(&report.to),
        report.path.cell().to_owned(),
        cell(
            report
                .tcp
                .received_bits_per_second()
                .map(|bits| format!("{:.2}", bits / 1e9)),
        ),
        ms(&report.rtt.idle, |it| it.p50_ms),
        ms(&report.rtt.loaded, |it| it.p50_ms),
    ];
    for size in sizes {
        let udp = report.udp.iter().find(|udp| udp.size == *size);
        let rate = udp.and_then(|udp| udp.measurement.packet_rate());
        row.push(cell(
            rate.map(|rate| format!("{:.0}", rate.received_per_second)),
        ));
        row.push(cell(rate.map(|rate| format!("{:.1}%", rate.lost_percent))));
    }
    if wide {
        row.push(cell(
            report.tcp.retransmits().map(|count| count.to_string()),
        ));
        row.push(ms(&report.rtt.idle, |it| it.p99_ms));
        row.push(ms(&report.rtt.loaded, |it| it.p99_ms));
        let drops: u64 = report.drops.iter().map(|drop| drop.packets).sum();
        row.push(cell(
            report.drops_unknown.is_empty().then(|| drops.to_string()),
        ));
        row.push(report.meter.to_owned());
    }
    row
}

fn failed(measurement: &Measurement) -> String {
    format!(
        "{NONE} ({})",
        measurement
            .error
            .as_deref()
            .unwrap_or("nothing was counted")
    )
}

fn tcp_words(tcp: &Measurement) -> String {
    let Some(bits) = tcp.received_bits_per_second() else {
        return failed(tcp);
    };
    match tcp.retransmits() {
        Some(1) => format!("{}, 1 retransmit", rate(bits)),
        Some(count) => format!("{}, {count} retransmits", rate(bits)),
        None => rate(bits),
    }
}

fn packets_words(it: &PacketRate, wide: bool) -> String {
    let mut words = format!(
        "{:.0} packets/s, {:.2} % lost",
        it.received_per_second, it.lost_percent
    );
    if wide {
        let _ = write!(
            words,
            " of {:.0} packets/s, jitter {:.3} ms",
            it.sent_per_second, it.jitter_ms
        );
    }
    words
}

fn rtt_words(trips: &RoundTrips, wide: bool) -> String {
    let Some(it) = &trips.summary else {
        return format!(
            "{NONE} ({})",
            trips.error.as_deref().unwrap_or("not measured")
        );
    };
    let mut words = format!("p50 {:.3} ms, p99 {:.3} ms", it.p50_ms, it.p99_ms);
    if wide {
        let _ = write!(
            words,
            ", min {:.3} ms, p90 {:.3} ms, max {:.3} ms",
            it.min_ms, it.p90_ms, it.max_ms
        );
    }
    let _ = write!(
        words,
        " ({} of {} answered, {})",
        it.answered,
        it.sent,
        it.method.title()
    );
    words
}

/// A rate as people read it.
pub(super) fn rate(bits_per_second: f64) -> String {
    match bits_per_second {
        bits if bits >= 1e8 => format!("{:.2} Gbit/s", bits / 1e9),
        bits if bits >= 1e5 => format!("{:.2} Mbit/s", bits / 1e6),
        bits => format!("{:.2} kbit/s", bits / 1e3),
    }
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
        }
    }

    /// People read who, how fast, how many, how long, and what was lost where; a part that failed is
    /// missing with its reason.
    #[test]
    fn one_pair_for_people() {
        let expected = "\
From:            default/web (10.1.0.5) on worker-a
To:              default/db (10.1.1.7) on worker-b
Path:            across nodes
Meter:           iperf 3.12, 1 stream, 5 s
TCP:             6.80 Gbit/s, 12 retransmits
UDP-64:          485 packets/s, 3.00 % lost
UDP-1200:        <none> (the server is busy)
RTT-Idle:        p50 0.200 ms, p99 0.400 ms (2 of 3 answered, UDP echo)
RTT-Loaded:      p50 1.500 ms, p99 3.000 ms (2 of 3 answered, UDP echo)
Drops:           30 PEER_QUEUE_FULL on worker-a (udp-64)
";
        assert_eq!(sample().show(false), expected);
        let wide = sample().show(true);
        assert!(wide.contains("0.5-1.0s:        6.00 Gbit/s\n"), "{wide}");
        assert_eq!(sample().failures(), ["UDP 1200: the server is busy"]);
    }

    /// All pairs are a table without holes, also where a pair failed as a whole.
    #[test]
    fn all_pairs_for_people() {
        let dead = Report {
            tcp: Measurement::failed(&anyhow::anyhow!("gone")),
            udp: vec![],
            rtt: Rtt::default(),
            ..sample()
        };
        let list = ReportList {
            items: vec![sample(), dead],
        };
        let expected = "\
FROM   TO   PATH     TCP-GBIT/S   RTT-MS   LOADED-MS   UDP-64/S   LOST
web    db   across   6.80         0.200    1.500       485        3.0%
web    db   across   <none>       <none>   <none>      <none>     <none>
";
        assert_eq!(list.show(false), expected);
        let wide = list.show(true);
        let counts: Vec<_> = wide
            .lines()
            .map(|line| line.split_whitespace().count())
            .collect();
        assert_eq!(counts, [15, 15, 15], "{wide}");
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
        assert!(json.get("error").is_none());
        let yaml = render(&document, Format::Yaml).unwrap();
        assert!(
            yaml.starts_with("apiVersion: fabric/v1\nkind: Bench\n"),
            "{yaml}"
        );
    }

    /// Rates have the unit in which they are short.
    #[test]
    fn rates_are_short() {
        for (bits, text) in [
            (6.8e9, "6.80 Gbit/s"),
            (1e8, "0.10 Gbit/s"),
            (9.9e7, "99.00 Mbit/s"),
            (1e4, "10.00 kbit/s"),
            (0.0, "0.00 kbit/s"),
        ] {
            assert_eq!(rate(bits), text);
        }
    }
}
