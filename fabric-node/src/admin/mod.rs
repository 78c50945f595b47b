//! The windows into the daemon, read-only: HTTP with JSON on a unix socket for the operator, and health
//! and metrics on a TCP port for those who watch many nodes.
//!
//! * [`View`] is what the daemon shows of itself; the app implements it.
//! * [`server`] answers on the socket; only root and the daemon's own user are heard.
//! * [`client`] asks, for the operator CLI.
//! * [`metrics`] answers probes and scrapes.

pub mod client;
pub mod metrics;
pub mod server;
pub mod view;

use fabric_proto::admin::{DropList, PeerList, PodList, RouteList, Status};

use crate::cni::times::Histogram;

/// `state` of a [`Status`] when all is well.
pub const STATE_READY: &str = "Ready";
/// `state` of a [`Status`] when something is not.
pub const STATE_DEGRADED: &str = "Degraded";

/// What the daemon shows of itself. Called on the control runtime: must not block.
pub trait View: Send + Sync + 'static {
    /// The daemon as a whole.
    fn status(&self) -> Status;
    /// All peer nodes, by name.
    fn peers(&self) -> PeerList;
    /// All attachments.
    fn pods(&self) -> PodList;
    /// All routes of the snapshot in force.
    fn routes(&self) -> RouteList;
    /// Every drop reason, also those at zero.
    fn drops(&self) -> DropList;
    /// Whether all data-plane threads are there that should be. Waits for nobody.
    fn dataplane_runs(&self) -> bool {
        true
    }
    /// What keeps pods from being attached, if anything does.
    fn obstacle(&self) -> Option<String> {
        let status = self.status();
        (status.state != STATE_READY).then(|| status.reasons.join("; "))
    }
    /// What only metrics tell.
    fn vitals(&self) -> Vitals {
        Vitals::default()
    }
}

/// What metrics tell beside the documents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vitals {
    /// Last second in which the node's certificate is valid (since 1970), if it is known.
    pub certificate_end: Option<i64>,
    /// When the state source last confirmed the state in force (seconds since 1970), if it has.
    pub state_confirmed: Option<i64>,
    /// How long ADDs took.
    pub attach: Histogram,
}

#[cfg(test)]
pub(crate) mod sample {
    //! One small cluster, seen from worker-a.

    use fabric_proto::admin::{
        AttachTimes, Device, DropCount, OffloadOff, PacketAccount, Peer, Pod, Route, Tally,
        UnderlayLosses,
    };

    use super::*;

    /// The state of a [`Sample`] that has lost a data-plane thread.
    pub(crate) const NO_DATAPLANE: &str = "NoDataplane";

    /// A view that shows the same documents for ever.
    pub(crate) struct Sample {
        pub(crate) state: &'static str,
    }

    impl View for Sample {
        fn status(&self) -> Status {
            let ready = self.state == STATE_READY;
            Status {
                node: "worker-a".to_owned(),
                version: "0.1.0".to_owned(),
                pid: 4242,
                uptime_seconds: 3725,
                state: self.state.to_owned(),
                reasons: if ready {
                    vec![]
                } else {
                    vec!["no peer is connected".to_owned()]
                },
                generation: 7,
                workers: 2,
                peers_connected: 1,
                peers_total: 2,
                pods: 1,
                host_device: Device {
                    name: "fabric0".to_owned(),
                    addresses: vec!["10.0.0.1".to_owned()],
                    offloads: vec!["checksum".to_owned(), "tso4".to_owned()],
                },
                underlay_offloads: vec!["udp-gro".to_owned()],
                offloads_off: vec![OffloadOff {
                    name: "udp-gso".to_owned(),
                    reason: "off in node.toml".to_owned(),
                }],
                packets: PacketAccount {
                    received_pods: Tally {
                        packets: 10,
                        bytes: 15_000,
                    },
                    delivered_peers: Tally {
                        packets: 9,
                        bytes: 13_500,
                    },
                    dropped: 1,
                    conserved: true,
                    ..PacketAccount::default()
                },
                attach: AttachTimes {
                    adds: 12,
                    p50_ms: 3.5,
                    p99_ms: 4.63,
                    max_ms: 4.75,
                },
                underlay_losses: UnderlayLosses {
                    overrun: 5,
                    ..UnderlayLosses::default()
                },
            }
        }

        fn peers(&self) -> PeerList {
            PeerList {
                items: vec![
                    Peer {
                        name: "worker-b".to_owned(),
                        state: "Connected".to_owned(),
                        address: "192.0.2.2:4789".to_owned(),
                        pod_cidrs: vec!["10.1.1.0/24".to_owned(), "fd00:1::/64".to_owned()],
                        connections: 2,
                        rtt_us: 180,
                        path_mtu: 1452,
                        lost_packets: 3,
                        ended_connections: 1,
                        ended_in_flight_bytes: 1_452,
                        gso: "off (configured)".to_owned(),
                        since_seconds: 90,
                        last_error: String::new(),
                    },
                    Peer {
                        name: "worker-c".to_owned(),
                        state: "Connecting".to_owned(),
                        since_seconds: 5,
                        last_error: "timed out".to_owned(),
                        ..Peer::default()
                    },
                ],
            }
        }

        fn pods(&self) -> PodList {
            PodList {
                items: vec![Pod {
                    namespace: "default".to_owned(),
                    name: "web".to_owned(),
                    container_id: "0123456789abcdef0123456789abcdef".to_owned(),
                    ifname: "eth0".to_owned(),
                    netns: "/run/netns/web".to_owned(),
                    addresses: vec!["10.1.0.5".to_owned(), "fd00::5".to_owned()],
                    state: "Ready".to_owned(),
                    offloads: vec!["checksum".to_owned()],
                    age_seconds: 86_400,
                }],
            }
        }

        fn routes(&self) -> RouteList {
            let route = |prefix: &str, kind: &str, target: &str| Route {
                prefix: prefix.to_owned(),
                kind: kind.to_owned(),
                target: target.to_owned(),
            };
            RouteList {
                items: vec![
                    route("10.1.0.5/32", "pod", "web"),
                    route("10.1.1.0/24", "peer", "worker-b"),
                    route("10.1.0.0/24", "unassigned", ""),
                ],
            }
        }

        fn drops(&self) -> DropList {
            let count = |reason: &str, packets| DropCount {
                reason: reason.to_owned(),
                packets,
            };
            DropList {
                items: vec![count("NO_ROUTE", 1), count("TTL_EXPIRED", 0)],
            }
        }

        fn dataplane_runs(&self) -> bool {
            self.state != NO_DATAPLANE
        }

        fn obstacle(&self) -> Option<String> {
            (self.state != STATE_READY).then(|| "no state is in force yet".to_owned())
        }

        fn vitals(&self) -> Vitals {
            Vitals {
                certificate_end: Some(1_800_000_000),
                state_confirmed: Some(1_700_000_000),
                attach: Histogram {
                    sum_seconds: 0.25,
                    count: 12,
                    buckets: vec![(0.001_024, 3), (0.002_048, 8)],
                },
            }
        }
    }
}
