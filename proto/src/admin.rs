//! The admin API: HTTP/1.1 with JSON on a unix socket; each document carries `apiVersion` and `kind`.
//!
//! `GET /v1/status`, `/v1/peers`, `/v1/pods`, `/v1/routes`, `/v1/drops`; `/healthz`, `/readyz`.

use serde::{Deserialize, Serialize};

/// `apiVersion` of all documents here.
pub const API_VERSION: &str = "fabric/v1";

/// Envelope of every answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<T> {
    /// [`API_VERSION`].
    pub api_version: String,
    /// `Status`, `PeerList`, `PodList`, `RouteList`, `DropList`.
    pub kind: String,
    /// The content.
    #[serde(flatten)]
    pub content: T,
}

/// `kind: Status`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// This node's id.
    pub node: String,
    /// Version of the daemon.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_seconds: u64,
    /// `Ready` or `Degraded`.
    pub state: String,
    /// Why it is degraded; empty when ready.
    pub reasons: Vec<String>,
    /// Generation of the snapshot in force.
    pub generation: u64,
    /// Data-plane workers.
    pub workers: u32,
    /// Peers connected.
    pub peers_connected: u32,
    /// Peers known.
    pub peers_total: u32,
    /// Pods attached.
    pub pods: u32,
    /// Device of the host side and its offloads.
    pub host_device: Device,
    /// Offloads of the underlay's sockets in use: `udp-gso`, `udp-gro`.
    #[serde(default)]
    pub underlay_offloads: Vec<String>,
    /// Offloads that are not in use, on the host's device or on the underlay.
    #[serde(default)]
    pub offloads_off: Vec<OffloadOff>,
    /// The packet account, summed over all workers.
    pub packets: PacketAccount,
    /// QUIC packets that were lost at this node's underlay sockets.
    #[serde(default)]
    pub underlay_losses: UnderlayLosses,
    /// How long pods took to attach.
    #[serde(default)]
    pub attach: AttachTimes,
}

/// How long the ADDs took that succeeded since the daemon's start: from the request to the answer
/// that the plugin was sent, waiting for a free place included, without the plugin's own start and
/// end. Zero before the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AttachTimes {
    /// How many there were.
    pub adds: u64,
    /// Half took no longer (milliseconds, at most 1/16 too high).
    pub p50_ms: f64,
    /// 99 of 100 took no longer (milliseconds, at most 1/16 too high).
    pub p99_ms: f64,
    /// The slowest one (milliseconds).
    pub max_ms: f64,
}

/// QUIC packets that were lost at a node's underlay sockets since the daemon's start. No part of the
/// packet account: QUIC sends again what was on streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UnderlayLosses {
    /// Received messages that found no room in a socket's buffer, or had a wrong checksum, as the kernel
    /// counts them.
    pub overrun: u64,
    /// Received messages that were not whole.
    pub cut: u64,
    /// Packets that the kernel refused to send, but for those that were too large.
    pub refused: u64,
    /// Packets larger than the interface takes, probes of the path's MTU among them.
    pub too_large: u64,
}

/// An offload that is not in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffloadOff {
    /// Its name.
    pub name: String,
    /// Why: turned off, or what the kernel said.
    pub reason: String,
}

/// A TUN device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Interface name.
    pub name: String,
    /// Addresses on it.
    pub addresses: Vec<String>,
    /// Offloads in use: `checksum`, `tso4`, `tso6`, `uso4`, `uso6`.
    pub offloads: Vec<String>,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Packets; a super-packet counts once.
    pub packets: u64,
    /// Bytes of IP packets.
    pub bytes: u64,
}

/// received == delivered + answered + dropped + queued, exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketAccount {
    /// Read from pods.
    pub received_pods: Tally,
    /// Read from the host.
    pub received_host: Tally,
    /// Received from peers.
    pub received_peers: Tally,
    /// Written to pods.
    pub delivered_pods: Tally,
    /// Written to the host.
    pub delivered_host: Tally,
    /// Handed to peer connections.
    pub delivered_peers: Tally,
    /// Answered with an ICMP error.
    pub answered: u64,
    /// Waiting in a queue towards a peer.
    pub queued: u64,
    /// Marked as having met congestion (ECN) in a queue towards a peer. No part of the equation: each
    /// is counted where it ended, too.
    #[serde(default)]
    pub marked: u64,
    /// Dropped, all reasons.
    pub dropped: u64,
    /// Whether the equation holds.
    pub conserved: bool,
}

/// `kind: PeerList`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerList {
    /// One entry per peer node, by name.
    pub items: Vec<Peer>,
}

/// One peer node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Node id.
    pub name: String,
    /// `Connected`, `Connecting`, `Waiting` (the other side dials).
    pub state: String,
    /// Underlay address in use, or the first configured.
    pub address: String,
    /// Pod ranges it owns.
    pub pod_cidrs: Vec<String>,
    /// Live connections.
    pub connections: u32,
    /// Smoothed round-trip time in microseconds, of the first connection.
    pub rtt_us: u64,
    /// Path MTU found by QUIC (bytes of UDP payload).
    pub path_mtu: u32,
    /// Underlay packets lost, as QUIC counts them, by all connections since the daemon's start.
    pub lost_packets: u64,
    /// Connections that carried packets and have ended.
    #[serde(default)]
    pub ended_connections: u64,
    /// Underlay packets that were in flight when these ended (bytes): whether they arrived is not
    /// known, and neither is it of what was ready to be sent.
    #[serde(default)]
    pub ended_in_flight_bytes: u64,
    /// Whether the kernel cuts batches of packets on the way to this peer: `on`, or `off` with the
    /// reason in parentheses (`configured`, `kernel`, or the error that it answered with); empty
    /// without a connection.
    #[serde(default)]
    pub gso: String,
    /// Seconds since the state last changed.
    pub since_seconds: u64,
    /// The last reason a connection was refused or lost; empty if none.
    pub last_error: String,
}

/// `kind: PodList`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodList {
    /// One entry per attachment.
    pub items: Vec<Pod>,
}

/// One attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Kubernetes namespace, or empty.
    pub namespace: String,
    /// Kubernetes pod name, or empty.
    pub name: String,
    /// Container id.
    pub container_id: String,
    /// Interface name.
    pub ifname: String,
    /// Network namespace path.
    pub netns: String,
    /// Addresses, IPv4 first.
    pub addresses: Vec<String>,
    /// `Ready`, or `Detached` when the device or the namespace is gone.
    pub state: String,
    /// Offloads in use.
    pub offloads: Vec<String>,
    /// Seconds since it was attached.
    pub age_seconds: u64,
}

/// `kind: RouteList`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteList {
    /// All routes.
    pub items: Vec<Route>,
}

/// One route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Destination prefix.
    pub prefix: String,
    /// `pod`, `host`, `peer` or `unassigned`.
    pub kind: String,
    /// Pod or peer name; empty otherwise.
    pub target: String,
}

/// `kind: DropList`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropList {
    /// Every reason, also those at zero.
    pub items: Vec<DropCount>,
}

/// One drop reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropCount {
    /// UPPER_SNAKE name.
    pub reason: String,
    /// Packets dropped for it.
    pub packets: u64,
}
