//! The node's state as the admin API shows it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use fabric_core::{
    counters::{Counters, Tally},
    ids::PortId,
    verdict::{DropReason, NextHop},
};
use fabric_proto::admin::{
    self, Device, DropCount, DropList, OffloadOff, PacketAccount, Peer, PeerList, Pod, PodList,
    Route, RouteList, Status,
};

use super::{STATE_DEGRADED, STATE_READY, View, Vitals};
use crate::{
    cni::{attach::Fabric as _, clock::Moment, times::AddTimes},
    control::in_force::{Attached, InForce},
    offloads,
    sys::tun::TunOffloads,
    tunnel::{
        report::{PeerReport, PeerState, UnderlayLosses},
        segmentation::Segmentation,
    },
};

/// Shows the state in force.
pub struct NodeView {
    in_force: Arc<InForce>,
    wanted: TunOffloads,
    add_times: Arc<AddTimes>,
    contact: Arc<SourceContact>,
}

/// When the state source last said what the state is, whether it had changed or not.
#[derive(Debug, Default)]
pub struct SourceContact {
    /// Seconds since 1970; 0 before the first time.
    at: AtomicI64,
}

impl SourceContact {
    /// The source has confirmed the state in force at `now`.
    pub fn confirm(&self, now: SystemTime) {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        self.at.store(seconds, Ordering::Relaxed);
    }

    fn last(&self) -> Option<i64> {
        Some(self.at.load(Ordering::Relaxed)).filter(|seconds| *seconds > 0)
    }
}

impl NodeView {
    /// A view of `in_force`, whose devices were asked for the offloads `wanted`, and of how long ADDs
    /// take.
    #[must_use]
    pub fn new(in_force: Arc<InForce>, wanted: TunOffloads, add_times: Arc<AddTimes>) -> Self {
        Self {
            in_force,
            wanted,
            add_times,
            contact: Arc::default(),
        }
    }

    /// Shows when the state source was last heard of, too.
    #[must_use]
    pub fn with_contact(self, contact: Arc<SourceContact>) -> Self {
        Self { contact, ..self }
    }

    fn offloads_off(&self) -> Vec<OffloadOff> {
        let tun = self.in_force.host_tun();
        let device = (tun.offloads(), tun.refused_offloads());
        let sockets = self.in_force.dataplane().offloads();
        offloads::lacking(self.wanted, device, sockets)
            .into_iter()
            .map(|lacking| OffloadOff {
                name: lacking.name.to_owned(),
                reason: lacking.reason,
            })
            .collect()
    }

    /// One report per peer: the workers' views taken together, connected if any worker is.
    fn peer_reports(&self) -> Vec<PeerReport> {
        let mut merged: Vec<PeerReport> = Vec::new();
        for report in self
            .in_force
            .dataplane()
            .reports()
            .into_iter()
            .flat_map(|r| r.peers)
        {
            let Some(known) = merged.iter_mut().find(|known| known.id == report.id) else {
                merged.push(report);
                continue;
            };
            if report.state == PeerState::Connected {
                known.state = PeerState::Connected;
            }
            known.since = known.since.max(report.since);
            known.links.extend(report.links);
            known.ended.add(report.ended);
            if known.last_error.is_empty() {
                known.last_error = report.last_error;
            }
        }
        merged.sort_by(|a, b| a.node.cmp(&b.node));
        merged
    }
}

impl View for NodeView {
    fn status(&self) -> Status {
        let in_force = &self.in_force;
        let reasons = in_force.problems();
        let peers = self.peer_reports();
        let connected = peers
            .iter()
            .filter(|peer| peer.state == PeerState::Connected)
            .count();
        Status {
            node: in_force.local().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: in_force.started().elapsed().as_secs(),
            state: if reasons.is_empty() {
                STATE_READY
            } else {
                STATE_DEGRADED
            }
            .to_owned(),
            reasons,
            generation: in_force.generation().0,
            workers: count(in_force.dataplane().workers()),
            peers_connected: count(connected),
            peers_total: count(peers.len()),
            pods: count(in_force.attached().len()),
            host_device: Device {
                name: in_force.host_tun().name().to_owned(),
                addresses: in_force
                    .gateways()
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                offloads: owned(&offloads::device_names(in_force.host_tun().offloads())),
            },
            underlay_offloads: owned(&offloads::socket_names(in_force.dataplane().offloads())),
            offloads_off: self.offloads_off(),
            packets: account(&in_force.dataplane().counters()),
            underlay_losses: underlay_losses(in_force.dataplane().underlay_losses()),
            attach: self.add_times.figures(),
        }
    }

    fn peers(&self) -> PeerList {
        let desired = self.in_force.desired();
        let now = Instant::now();
        let items = self
            .peer_reports()
            .into_iter()
            .map(|report| {
                let spec = desired.nodes.get(&report.node);
                let ranges = spec
                    .map(|spec| spec.pod_cidrs.as_slice())
                    .unwrap_or_default();
                peer(
                    &report,
                    ranges.iter().map(ToString::to_string).collect(),
                    now,
                )
            })
            .collect();
        PeerList { items }
    }

    fn pods(&self) -> PodList {
        let gone: Vec<PortId> = self
            .in_force
            .dataplane()
            .reports()
            .into_iter()
            .flat_map(|report| report.gone)
            .collect();
        let attached = self.in_force.attached();
        PodList {
            items: attached
                .iter()
                .map(|pod| pod_of(pod, gone.contains(&pod.port)))
                .collect(),
        }
    }

    fn routes(&self) -> RouteList {
        let items = self
            .in_force
            .routes()
            .into_iter()
            .map(|(prefix, hop, target)| Route {
                prefix: prefix.to_string(),
                kind: match hop {
                    NextHop::Local(PortId::HOST) => "host",
                    NextHop::Local(_) => "pod",
                    NextHop::Peer(_) => "peer",
                    NextHop::Unassigned => "unassigned",
                }
                .to_owned(),
                target,
            })
            .collect();
        RouteList { items }
    }

    fn drops(&self) -> DropList {
        let counters = self.in_force.dataplane().counters();
        let items = DropReason::ALL
            .iter()
            .map(|reason| DropCount {
                reason: reason.name().to_owned(),
                packets: counters.dropped(*reason),
            })
            .collect();
        DropList { items }
    }

    fn dataplane_runs(&self) -> bool {
        self.in_force.dataplane().is_running()
    }

    fn obstacle(&self) -> Option<String> {
        self.in_force.ready().err()
    }

    fn vitals(&self) -> Vitals {
        Vitals {
            certificate_end: self.in_force.certificate_end(),
            state_confirmed: self.contact.last(),
            attach: self.add_times.histogram(),
        }
    }
}

fn peer(report: &PeerReport, pod_cidrs: Vec<String>, now: Instant) -> Peer {
    let first = report.links.first();
    let address = first
        .map(|link| link.remote)
        .or_else(|| report.configured.first().copied());
    Peer {
        name: report.node.to_string(),
        state: report.state.as_str().to_owned(),
        address: address
            .map(|address| address.to_string())
            .unwrap_or_default(),
        pod_cidrs,
        connections: count(report.links.len()),
        rtt_us: first.map_or(0, |link| {
            link.path.rtt.as_micros().try_into().unwrap_or(u64::MAX)
        }),
        path_mtu: first.map_or(0, |link| link.path.mtu.into()),
        lost_packets: lost_packets(report),
        ended_connections: report.ended.connections,
        ended_in_flight_bytes: report.ended.in_flight_bytes,
        gso: gso(report),
        since_seconds: now.saturating_duration_since(report.since).as_secs(),
        last_error: report.last_error.clone(),
    }
}

/// Of all connections with a peer, those that have ended included: it never counts backwards.
fn lost_packets(report: &PeerReport) -> u64 {
    let live = report.links.iter().map(|link| link.path.lost_packets);
    report.ended.lost_packets + live.sum::<u64>()
}

fn pod_of(attached: &Attached, gone: bool) -> Pod {
    let attachment = &attached.attachment;
    Pod {
        namespace: attachment.pod.namespace.clone().unwrap_or_default(),
        name: attachment.pod.name.clone().unwrap_or_default(),
        container_id: attachment.key.container_id.clone(),
        ifname: attachment.key.ifname.clone(),
        netns: attachment.netns.display().to_string(),
        addresses: attachment
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect(),
        state: if gone { "Detached" } else { "Ready" }.to_owned(),
        offloads: owned(&offloads::device_names(attached.tun.offloads())),
        age_seconds: Moment::now()
            .map(|now| now.seconds_since(&attachment.attached_at))
            .unwrap_or_default(),
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Whether batches to a peer leave whole: on only where they do on every connection.
fn gso(report: &PeerReport) -> String {
    let states = report.links.iter().map(|link| link.segmentation);
    let off = states
        .clone()
        .find(|state| *state != Segmentation::On)
        .or_else(|| states.clone().next());
    off.map(|state| state.to_string()).unwrap_or_default()
}

fn account(counters: &Counters) -> PacketAccount {
    PacketAccount {
        received_pods: tally(counters.received_pods),
        received_host: tally(counters.received_host),
        received_peers: tally(counters.received_peers),
        delivered_pods: tally(counters.delivered_pods),
        delivered_host: tally(counters.delivered_host),
        delivered_peers: tally(counters.delivered_peers),
        answered: counters.answered,
        queued: counters.queued,
        marked: counters.marked,
        dropped: counters.dropped_total(),
        conserved: counters.is_conserved(),
    }
}

fn underlay_losses(losses: UnderlayLosses) -> admin::UnderlayLosses {
    let UnderlayLosses {
        overrun,
        cut,
        refused,
        too_large,
    } = losses;
    admin::UnderlayLosses {
        overrun,
        cut,
        refused,
        too_large,
    }
}

fn tally(tally: Tally) -> admin::Tally {
    admin::Tally {
        packets: tally.packets,
        bytes: tally.bytes,
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
