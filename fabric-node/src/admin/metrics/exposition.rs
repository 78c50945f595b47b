//! The metrics of a node, as text.
//!
//! Comes in: a [`View`]. Goes out: OpenMetrics. Totals of the node only: a label for each pod or peer would
//! make as many series as a cluster has pairs of nodes. `docs/metrics.md` explains each metric.

use std::fmt;

use fabric_proto::admin::{DropList, PeerList, Status, Tally};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::Registry,
};

use crate::{
    admin::{STATE_READY, View, Vitals},
    tunnel::report::PeerState,
};

/// What the text is (OpenMetrics 1.0, "Overall Structure").
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Begins the name of every metric.
const PREFIX: &str = "fabric";
/// All states of a peer, so that each has its series from the start.
const PEER_STATES: [PeerState; 3] = [
    PeerState::Connected,
    PeerState::Connecting,
    PeerState::Waiting,
];

/// The metrics of `view`.
///
/// # Errors
///
/// A value does not fit its kind, which none of ours can.
pub fn text(view: &impl View) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Figures {
        status: view.status(),
        peers: view.peers(),
        drops: view.drops(),
        vitals: view.vitals(),
        dataplane_runs: view.dataplane_runs(),
        can_attach: view.obstacle().is_none(),
    }));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Everything at one moment.
#[derive(Debug)]
struct Figures {
    status: Status,
    peers: PeerList,
    drops: DropList,
    vitals: Vitals,
    dataplane_runs: bool,
    can_attach: bool,
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut lines = Lines {
            encoder: &mut encoder,
        };
        self.node(&mut lines)?;
        self.packets(&mut lines)?;
        self.tunnels(&mut lines)?;
        self.attachments(&mut lines)
    }
}

impl Figures {
    /// The daemon, its state and its identity.
    fn node(&self, lines: &mut Lines<'_, '_>) -> fmt::Result {
        let status = &self.status;
        lines.info("build", "The daemon.", &[("version", &status.version)])?;
        let help = "How long the daemon has been running.";
        lines.gauge("uptime_seconds", help, status.uptime_seconds)?;
        let help = "Whether all data-plane threads are there (1), as /healthz says.";
        lines.gauge("healthy", help, u64::from(self.dataplane_runs))?;
        let help = "Whether pods can be attached (1), as /readyz says.";
        lines.gauge("ready", help, u64::from(self.can_attach))?;
        let help = "Whether anything is not in order (1): fabric status says what.";
        lines.gauge("degraded", help, u64::from(status.state != STATE_READY))?;
        lines.gauge("workers", "Data-plane threads.", status.workers)?;
        let help = "Number of the state in force: each change of a node or pod makes a new one.";
        lines.gauge("snapshot_generation", help, status.generation)?;
        if let Some(at) = self.vitals.state_confirmed {
            let help = "When the state source last confirmed the state in force.";
            lines.gauge("state_confirmed_timestamp_seconds", help, at)?;
        }
        if let Some(end) = self.vitals.certificate_end {
            let help = "When the node's certificate expires.";
            lines.gauge("certificate_expiry_timestamp_seconds", help, end)?;
        }
        Ok(())
    }

    /// The packet account.
    fn packets(&self, lines: &mut Lines<'_, '_>) -> fmt::Result {
        let account = &self.status.packets;
        // Seen from the fabric: what it receives from a pod is what the pod sends.
        let sides = [
            ("receive", "pods", account.received_pods),
            ("receive", "host", account.received_host),
            ("receive", "peers", account.received_peers),
            ("transmit", "pods", account.delivered_pods),
            ("transmit", "host", account.delivered_host),
            ("transmit", "peers", account.delivered_peers),
        ];
        let series = |value: fn(Tally) -> u64| {
            sides.map(|(direction, side, tally)| {
                ([("direction", direction), ("side", side)], value(tally))
            })
        };
        let help = "Packets that came in and went out; a super-packet counts once.";
        lines.counters("packets", help, &series(|tally| tally.packets))?;
        let help = "Bytes of the IP packets that came in and went out.";
        lines.counters("packet_bytes", help, &series(|tally| tally.bytes))?;
        let help = "Packets dropped, by reason.";
        let drops = self.drops.items.iter();
        let drops: Vec<_> = drops
            .map(|drop| ([("reason", drop.reason.as_str())], drop.packets))
            .collect();
        lines.counters("dropped_packets", help, &drops)?;
        let help = "Packets answered with an ICMP error.";
        lines.counter("answered_packets", help, account.answered)?;
        let help = "Packets marked as having met congestion in a queue towards a peer.";
        lines.counter("marked_packets", help, account.marked)?;
        let help = "Packets waiting in a queue towards a peer.";
        lines.gauge("queued_packets", help, account.queued)
    }

    /// Connections to peers and the underlay below them.
    fn tunnels(&self, lines: &mut Lines<'_, '_>) -> fmt::Result {
        let peers = &self.peers.items;
        let help = "Peer nodes, by the state of the connections to them.";
        let states = PEER_STATES.map(|state| {
            let name = state.as_str();
            let count = peers.iter().filter(|peer| peer.state == name).count();
            ([("state", name)], count_u64(count))
        });
        lines.gauges("peers", help, &states)?;
        let connections = peers.iter().map(|peer| u64::from(peer.connections)).sum();
        let help = "Live connections to peers.";
        lines.gauge::<u64>("tunnel_connections", help, connections)?;
        let help = "Connections to peers that carried packets and have ended.";
        let ended = peers.iter().map(|peer| peer.ended_connections).sum();
        lines.counter("tunnel_ended_connections", help, ended)?;
        let help = "QUIC packets that got lost on the way to peers.";
        let lost = peers.iter().map(|peer| peer.lost_packets).sum();
        lines.counter("tunnel_lost_packets", help, lost)?;
        let losses = self.status.underlay_losses;
        let losses = [
            ([("reason", "OVERRUN")], losses.overrun),
            ([("reason", "CUT")], losses.cut),
            ([("reason", "REFUSED")], losses.refused),
            ([("reason", "TOO_LARGE")], losses.too_large),
        ];
        let help = "QUIC packets lost at this node's underlay sockets, by reason.";
        lines.counters("underlay_losses", help, &losses)
    }

    /// Pods.
    fn attachments(&self, lines: &mut Lines<'_, '_>) -> fmt::Result {
        lines.gauge("pods", "Attached pods.", self.status.pods)?;
        let help = "How long ADDs took that succeeded, from the request to the answer.";
        let attach = &self.vitals.attach;
        lines
            .encoder
            .encode_descriptor("attach_duration_seconds", help, None, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(
                attach.sum_seconds,
                attach.count,
                &with_the_rest(&attach.buckets, attach.count),
                None,
            )
    }
}

/// The buckets with one more for what is in none of them.
fn with_the_rest(buckets: &[(f64, u64)], count: u64) -> Vec<(f64, u64)> {
    let within: u64 = buckets.iter().map(|(_, count)| count).sum();
    let rest = (f64::INFINITY, count.saturating_sub(within));
    buckets.iter().copied().chain([rest]).collect()
}

fn count_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Writes metrics without the encoder's many words.
struct Lines<'e, 'a> {
    encoder: &'e mut DescriptorEncoder<'a>,
}

impl Lines<'_, '_> {
    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> fmt::Result {
        self.encoder
            .encode_descriptor(name, help, None, MetricType::Info)?
            .encode_info(&labels)
    }

    fn gauge<T: EncodeGaugeValue>(&mut self, name: &str, help: &str, value: T) -> fmt::Result {
        self.encoder
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, u64, u64>(&value, None)
    }

    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: &[([(&str, &str); N], u64)],
    ) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            family.encode_family(labels)?.encode_gauge(value)?;
        }
        Ok(())
    }

    fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: &[([(&str, &str); N], u64)],
    ) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in series {
            let mut one = family.encode_family(labels)?;
            one.encode_counter::<NoLabelSet, u64, u64>(value, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;
    use crate::admin::{STATE_DEGRADED, sample::Sample};

    /// What a node shows is told in OpenMetrics: each metric with its kind and its unit, counters with
    /// `_total`, and the end marked.
    #[test]
    fn a_whole_scrape() {
        let text = text(&Sample { state: STATE_READY }).unwrap();
        for line in [
            "# TYPE fabric_build info",
            "fabric_build_info{version=\"0.1.0\"} 1",
            "fabric_uptime_seconds 3725",
            "fabric_healthy 1",
            "fabric_ready 1",
            "fabric_degraded 0",
            "fabric_certificate_expiry_timestamp_seconds 1800000000",
            "fabric_state_confirmed_timestamp_seconds 1700000000",
            "# TYPE fabric_packets counter",
            "fabric_packets_total{direction=\"receive\",side=\"pods\"} 10",
            "fabric_packet_bytes_total{direction=\"transmit\",side=\"peers\"} 13500",
            "fabric_dropped_packets_total{reason=\"NO_ROUTE\"} 1",
            "fabric_dropped_packets_total{reason=\"TTL_EXPIRED\"} 0",
            "fabric_peers{state=\"Connected\"} 1",
            "fabric_peers{state=\"Connecting\"} 1",
            "fabric_peers{state=\"Waiting\"} 0",
            "fabric_tunnel_connections 2",
            "fabric_tunnel_lost_packets_total 3",
            "fabric_underlay_losses_total{reason=\"OVERRUN\"} 5",
            "fabric_pods 1",
            "# TYPE fabric_attach_duration_seconds histogram",
            "fabric_attach_duration_seconds_sum 0.25",
            "fabric_attach_duration_seconds_count 12",
            "fabric_attach_duration_seconds_bucket{le=\"0.001024\"} 3",
            "fabric_attach_duration_seconds_bucket{le=\"0.002048\"} 11",
            "fabric_attach_duration_seconds_bucket{le=\"+Inf\"} 12",
        ] {
            assert!(
                text.lines().any(|it| it == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
        assert!(
            text.lines()
                .all(|line| line.starts_with("# ") || line.starts_with("fabric_"))
        );
    }

    /// docs/metrics.md lists every metric with its kind and its labels, and none beside.
    #[test]
    fn every_metric_is_documented() {
        let text = text(&Sample { state: STATE_READY }).unwrap();
        let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let told: BTreeSet<(String, String, String)> = kinds
            .map(|line| {
                let (name, kind) = line.split_once(' ').unwrap();
                let name = match kind {
                    "counter" => format!("{name}_total"),
                    "info" => format!("{name}_info"),
                    _ => name.to_owned(),
                };
                (name.clone(), kind.to_owned(), labels_of(&text, &name))
            })
            .collect();
        let rows = include_str!("../../../../docs/metrics.md").lines();
        let listed: BTreeSet<(String, String, String)> = rows
            .filter(|line| line.starts_with("| `fabric_"))
            .filter_map(|line| {
                let cells: Vec<String> = line
                    .split('|')
                    .map(|cell| cell.trim().replace('`', ""))
                    .collect();
                let [_, name, kind, labels, _, _] = &cells[..] else {
                    return None;
                };
                Some((name.clone(), kind.clone(), labels.clone()))
            })
            .collect();
        assert_eq!(told, listed);
        assert!(told.len() > 20);
    }

    /// The names of the labels of the first series of `name`, in their order.
    fn labels_of(text: &str, name: &str) -> String {
        let series = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
        let labels = series
            .map(|rest| rest.split('}').next().unwrap())
            .unwrap_or_default();
        let names = labels
            .split(',')
            .filter_map(|label| label.split('=').next());
        names.collect::<Vec<_>>().join(", ")
    }

    /// A node that is not in order says so.
    #[test]
    fn a_degraded_node() {
        let text = text(&Sample {
            state: STATE_DEGRADED,
        })
        .unwrap();
        assert!(text.contains("\nfabric_ready 0\n"), "{text}");
        assert!(text.contains("\nfabric_degraded 1\n"), "{text}");
    }
}
