//! The daemon's documents for people: NAME first, AGE last, further columns of `-o wide` after it.

use std::fmt::Write;

use fabric_proto::admin::{
    AttachTimes, DropList, PacketAccount, PeerList, PodList, RouteList, Status, Tally,
    UnderlayLosses,
};

use crate::terminal::output::{NONE, Show, age, list, or_none, printable, table};

/// How much of a container id is shown (characters), as container tools do.
const CONTAINER_ID_CHARS: usize = 13;

impl Show for Status {
    fn show(&self, wide: bool) -> String {
        let device = &self.host_device;
        let mut lines = vec![
            ("Node", self.node.clone()),
            ("State", self.state.clone()),
            ("Version", self.version.clone()),
            ("Uptime", age(self.uptime_seconds)),
            (
                "Peers",
                format!("{} of {} connected", self.peers_connected, self.peers_total),
            ),
            ("Pods", self.pods.to_string()),
            ("Attach", attach_times(self.attach)),
            (
                "Host-Device",
                format!(
                    "{} {} ({})",
                    or_none(&device.name),
                    list(&device.addresses),
                    list(&device.offloads)
                ),
            ),
            ("Underlay", list(&self.underlay_offloads)),
            ("Offloads-Off", offloads_off(self)),
            ("Packets", account(&self.packets)),
        ];
        if wide {
            lines.push(("Pid", self.pid.to_string()));
            lines.push(("Generation", self.generation.to_string()));
            lines.push(("Workers", self.workers.to_string()));
            let packets = &self.packets;
            for (name, tally) in [
                ("Received-Pods", packets.received_pods),
                ("Received-Host", packets.received_host),
                ("Received-Peers", packets.received_peers),
                ("Delivered-Pods", packets.delivered_pods),
                ("Delivered-Host", packets.delivered_host),
                ("Delivered-Peers", packets.delivered_peers),
            ] {
                lines.push((
                    name,
                    format!("{} packets, {} bytes", tally.packets, tally.bytes),
                ));
            }
            lines.push(("Marked-Peers", format!("{} packets", packets.marked)));
            lines.push(("Underlay-Lost", underlay_losses(self.underlay_losses)));
        }
        let mut text = String::new();
        for (name, value) in lines {
            let _ = writeln!(text, "{:<17}{}", format!("{name}:"), printable(&value));
        }
        if !self.reasons.is_empty() {
            text.push_str("Reasons:\n");
            for reason in &self.reasons {
                let _ = writeln!(text, "  - {}", printable(reason));
            }
        }
        text
    }
}

fn attach_times(times: AttachTimes) -> String {
    if times.adds == 0 {
        return NONE.to_owned();
    }
    format!(
        "{} ADDs, p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        times.adds, times.p50_ms, times.p99_ms, times.max_ms
    )
}

fn offloads_off(status: &Status) -> String {
    let off = status.offloads_off.iter();
    let off: Vec<String> = off
        .map(|it| format!("{} ({})", it.name, it.reason))
        .collect();
    or_none(&off.join(", "))
}

fn underlay_losses(losses: UnderlayLosses) -> String {
    format!(
        "{} overrun, {} cut, {} refused, {} too large",
        losses.overrun, losses.cut, losses.refused, losses.too_large
    )
}

fn account(packets: &PacketAccount) -> String {
    let sum = |tallies: [Tally; 3]| {
        tallies
            .iter()
            .fold(0_u64, |n, t| n.saturating_add(t.packets))
    };
    let received = sum([
        packets.received_pods,
        packets.received_host,
        packets.received_peers,
    ]);
    let delivered = sum([
        packets.delivered_pods,
        packets.delivered_host,
        packets.delivered_peers,
    ]);
    format!(
        "{received} received = {delivered} delivered + {} answered + {} dropped + {} queued ({})",
        packets.answered,
        packets.dropped,
        packets.queued,
        if packets.conserved {
            "conserved"
        } else {
            "NOT conserved"
        }
    )
}

impl Show for PeerList {
    fn show(&self, wide: bool) -> String {
        let mut header = vec![
            "NAME",
            "STATE",
            "ADDRESS",
            "CONNECTIONS",
            "RTT",
            "LOST",
            "AGE",
        ];
        if wide {
            header.extend(["POD-CIDRS", "PATH-MTU", "GSO", "LAST-ERROR"]);
        }
        let rows = self.items.iter().map(|peer| {
            let measured = |text: String| {
                if peer.connections == 0 {
                    NONE.to_owned()
                } else {
                    text
                }
            };
            let mut row = vec![
                peer.name.clone(),
                peer.state.clone(),
                or_none(&peer.address),
                peer.connections.to_string(),
                measured(milliseconds(peer.rtt_us)),
                peer.lost_packets.to_string(),
                age(peer.since_seconds),
            ];
            if wide {
                row.push(list(&peer.pod_cidrs));
                row.push(measured(peer.path_mtu.to_string()));
                row.push(or_none(&peer.gso));
                row.push(or_none(&peer.last_error));
            }
            row
        });
        table(&header, rows)
    }
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:02}ms", microseconds / 1000, microseconds % 1000 / 10)
}

impl Show for PodList {
    fn show(&self, wide: bool) -> String {
        let mut header = vec!["NAME", "NAMESPACE", "STATE", "ADDRESSES", "AGE"];
        if wide {
            header.extend(["CONTAINER", "INTERFACE", "NETNS", "OFFLOADS"]);
        }
        let rows = self.items.iter().map(|pod| {
            let container: String = pod.container_id.chars().take(CONTAINER_ID_CHARS).collect();
            let mut row = vec![
                // Without Kubernetes a pod has no name but its container's.
                if pod.name.is_empty() {
                    container.clone()
                } else {
                    pod.name.clone()
                },
                or_none(&pod.namespace),
                pod.state.clone(),
                list(&pod.addresses),
                age(pod.age_seconds),
            ];
            if wide {
                row.push(or_none(&container));
                row.push(pod.ifname.clone());
                row.push(or_none(&pod.netns));
                row.push(list(&pod.offloads));
            }
            row
        });
        table(&header, rows)
    }
}

impl Show for RouteList {
    fn show(&self, _wide: bool) -> String {
        let rows = self.items.iter().map(|route| {
            vec![
                route.prefix.clone(),
                route.kind.clone(),
                or_none(&route.target),
            ]
        });
        table(&["PREFIX", "KIND", "TARGET"], rows)
    }
}

impl Show for DropList {
    fn show(&self, _wide: bool) -> String {
        let rows = self
            .items
            .iter()
            .map(|drop| vec![drop.reason.clone(), drop.packets.to_string()]);
        table(&["REASON", "PACKETS"], rows)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use fabric_proto::admin::{API_VERSION, Document};
    use serde::{Serialize, de::DeserializeOwned};

    use super::*;
    use crate::{
        admin::{STATE_DEGRADED, STATE_READY, View, sample::Sample},
        terminal::output::{Format, render},
    };

    const SAMPLE: Sample = Sample { state: STATE_READY };

    fn document<T>(kind: &str, content: T) -> Document<T> {
        Document {
            api_version: API_VERSION.to_owned(),
            kind: kind.to_owned(),
            content,
        }
    }

    /// Status for people names what matters and, when degraded, why.
    #[test]
    fn status_for_people() {
        let expected = "\
Node:            worker-a
State:           Ready
Version:         0.1.0
Uptime:          62m
Peers:           1 of 2 connected
Pods:            1
Attach:          12 ADDs, p50 3.5 ms, p99 4.6 ms, max 4.8 ms
Host-Device:     fabric0 10.0.0.1 (checksum,tso4)
Underlay:        udp-gro
Offloads-Off:    udp-gso (off in node.toml)
Packets:         10 received = 9 delivered + 0 answered + 1 dropped + 0 queued (conserved)
";
        assert_eq!(SAMPLE.status().show(false), expected);
        let wide = SAMPLE.status().show(true);
        assert!(
            wide.contains("Received-Pods:   10 packets, 15000 bytes\n"),
            "{wide}"
        );
        assert!(wide.contains("Marked-Peers:    0 packets\n"), "{wide}");
        assert!(
            wide.contains("Underlay-Lost:   5 overrun, 0 cut, 0 refused, 0 too large\n"),
            "{wide}"
        );
        let degraded = Sample {
            state: STATE_DEGRADED,
        }
        .status()
        .show(false);
        assert!(
            degraded.ends_with("Reasons:\n  - no peer is connected\n"),
            "{degraded}"
        );
    }

    /// Lists for people have the columns in the promised order.
    #[test]
    fn lists_for_people() {
        assert_eq!(
            SAMPLE.peers().show(false),
            "\
NAME       STATE        ADDRESS          CONNECTIONS   RTT      LOST   AGE
worker-b   Connected    192.0.2.2:4789   2             0.18ms   3      90s
worker-c   Connecting   <none>           0             <none>   0      5s
"
        );
        assert_eq!(
            SAMPLE.pods().show(false),
            "\
NAME   NAMESPACE   STATE   ADDRESSES          AGE
web    default     Ready   10.1.0.5,fd00::5   24h
"
        );
        assert_eq!(
            SAMPLE.routes().show(false),
            "\
PREFIX        KIND         TARGET
10.1.0.5/32   pod          web
10.1.1.0/24   peer         worker-b
10.1.0.0/24   unassigned   <none>
"
        );
        assert_eq!(
            SAMPLE.drops().show(false),
            "REASON        PACKETS\nNO_ROUTE      1\nTTL_EXPIRED   0\n"
        );
    }

    /// Wide lists add columns and keep the others in place.
    #[test]
    fn wide_lists() {
        let peers = SAMPLE.peers().show(true);
        assert!(
            peers.lines().next().unwrap().ends_with(
                "AGE   POD-CIDRS                 PATH-MTU   GSO                LAST-ERROR"
            ),
            "{peers}"
        );
        assert!(
            peers.contains("10.1.1.0/24,fd00:1::/64   1452       off (configured)   <none>"),
            "{peers}"
        );
        let pods = SAMPLE.pods().show(true);
        assert!(
            pods.contains("0123456789abc   eth0        /run/netns/web   checksum"),
            "{pods}"
        );
    }

    /// No header and no cell but the last has a space, so that `awk` can read a table.
    #[test]
    fn cells_have_no_spaces() {
        for text in [
            SAMPLE.peers().show(false),
            SAMPLE.pods().show(true),
            SAMPLE.routes().show(false),
        ] {
            let counts: Vec<_> = text
                .lines()
                .map(|line| line.split_whitespace().count())
                .collect();
            assert!(counts.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        }
    }

    /// JSON and YAML carry apiVersion and kind and read back as the same document.
    #[test]
    fn documents_for_programs() {
        fn check<T>(kind: &str, content: T)
        where
            T: Serialize + DeserializeOwned + Show + PartialEq + std::fmt::Debug,
        {
            let document = document(kind, content);
            let json = render(&document, Format::Json).unwrap();
            assert_eq!(
                serde_json::from_str::<Document<T>>(&json).unwrap(),
                document
            );
            let yaml = render(&document, Format::Yaml).unwrap();
            assert!(
                yaml.starts_with(&format!("apiVersion: fabric/v1\nkind: {kind}\n")),
                "{yaml}"
            );
            let value: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
            assert_eq!(value, serde_json::to_value(&document).unwrap());
        }
        check("Status", SAMPLE.status());
        check("PeerList", SAMPLE.peers());
        check("PodList", SAMPLE.pods());
        check("RouteList", SAMPLE.routes());
        check("DropList", SAMPLE.drops());
    }
}
