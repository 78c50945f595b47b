//! A fabric in memory: the real packet decision and the real records, pods made of a userspace
//! TCP/IP stack, and a clock that moves only when told to. One seed is one run, bit for bit.
//!
//! Super-packets are made as a kernel would make them: what a pod sends at once is joined, crosses
//! the wire whole, and is cut again in front of the receiver.

mod pod;
mod wire;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use fabric_core::{
    counters::{Counters, Side},
    forward::Forwarder,
    ids::{Generation, PeerId, PortId},
    offload::{Offload, coalesce::Coalescer, segment::segment},
    packet::{Headers, parse},
    record::{STREAM_HEADER_LEN, StreamHeader, decode_datagram, encode_datagram},
    snapshot::{Snapshot, SnapshotBuilder},
    testing::packets::Generator,
    verdict::{DropReason, Verdict},
};

pub use self::pod::{Pod, Seen};
use self::wire::Wire;

/// How the simulated underlay behaves.
#[derive(Clone, Copy, Debug)]
pub struct Underlay {
    /// One way.
    pub delay: Duration,
    /// One record in so many is lost; 0: none. Stands for datagrams, whose loss pods see.
    pub loss_one_in: usize,
}

/// A node: the decision, its account, and its pods by port.
struct Node {
    snapshot: Snapshot,
    forwarder: Forwarder,
    counters: Counters,
    pods: Vec<(PortId, usize)>,
}

/// The whole fabric.
pub struct Sim {
    start: Instant,
    now: Duration,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    wire: Wire,
    coalescer: Coalescer,
    /// Records that the underlay lost.
    pub lost: u64,
    /// Super-packets that crossed between nodes.
    pub super_packets: u64,
}

impl Sim {
    /// `nodes` nodes with `pods` pods each; addresses as in [`address`].
    #[must_use]
    pub fn new(seed: u64, nodes: usize, pods: usize, underlay: Underlay) -> Self {
        let mut all = Vec::new();
        let nodes = (0..nodes)
            .map(|node| {
                let range = |node: usize| {
                    [
                        format!("10.244.{node}.0/24"),
                        format!("fd44:0:0:{node}::/64"),
                    ]
                    .map(|range| range.parse().expect("a range"))
                    .to_vec()
                };
                let local: Vec<(PortId, usize)> = (0..pods)
                    .map(|pod| {
                        all.push(Pod::new([
                            address(node, pod, true),
                            address(node, pod, false),
                        ]));
                        (
                            PortId(u32::try_from(pod).expect("few pods") + 1),
                            all.len() - 1,
                        )
                    })
                    .collect();
                let builder = SnapshotBuilder {
                    generation: Generation(1),
                    gateway_v4: Some(format!("10.244.{node}.1").parse().expect("an address")),
                    gateway_v6: Some(format!("fd44:0:0:{node}::1").parse().expect("an address")),
                    local_ranges: range(node),
                    host_addresses: Vec::new(),
                    pods: local
                        .iter()
                        .map(|(port, pod)| (*port, all[*pod].addresses().to_vec()))
                        .collect(),
                    peers: (0..nodes)
                        .filter(|peer| *peer != node)
                        .map(|peer| (peer_id(peer), range(peer)))
                        .collect(),
                    ..SnapshotBuilder::default()
                };
                Node {
                    snapshot: builder.build().expect("a state without contradictions"),
                    forwarder: Forwarder::default(),
                    counters: Counters::default(),
                    pods: local,
                }
            })
            .collect();
        Self {
            start: Instant::now(),
            now: Duration::ZERO,
            nodes,
            pods: all,
            wire: Wire::new(underlay, Generator::new(seed)),
            coalescer: Coalescer::default(),
            lost: 0,
            super_packets: 0,
        }
    }

    /// Pod `pod` of node `node`.
    pub fn pod(&mut self, node: usize, pod: usize) -> &mut Pod {
        let index = self.nodes[node].pods[pod].1;
        &mut self.pods[index]
    }

    /// The account of a node.
    #[must_use]
    pub fn counters(&self, node: usize) -> &Counters {
        &self.nodes[node].counters
    }

    /// Lets time pass in steps until `done` or for `limit`; true if it got done.
    pub fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + limit;
        while self.now < end {
            if done(self) {
                return true;
            }
            self.now += Duration::from_micros(500);
            self.step();
        }
        false
    }

    /// True if every node's account is exact.
    #[must_use]
    pub fn is_conserved(&self) -> bool {
        self.nodes.iter().all(|node| node.counters.is_conserved())
    }

    fn step(&mut self) {
        while let Some((to, from, record)) = self.wire.next_due(self.now) {
            self.receive(to, from, &record);
        }
        for node in 0..self.nodes.len() {
            for place in 0..self.nodes[node].pods.len() {
                let (port, pod) = self.nodes[node].pods[place];
                let sent = self.pods[pod].poll(self.now);
                for (packet, offload) in join(&mut self.coalescer, &sent) {
                    self.send(node, port, packet, offload);
                }
            }
        }
    }

    fn send(&mut self, node: usize, port: PortId, mut packet: Vec<u8>, offload: Offload) {
        let now = self.start + self.now;
        let at = &mut self.nodes[node];
        at.counters.record_received(Side::Pod, packet.len());
        let mut reply = Vec::new();
        let headers = match parse(&packet, packet.len()) {
            Ok(headers) => headers,
            Err(reason) => return at.counters.record_dropped(reason),
        };
        let snapshot = &at.snapshot;
        match at.forwarder.egress(
            snapshot,
            port,
            &mut packet,
            &headers,
            offload,
            now,
            &mut reply,
        ) {
            Verdict::Deliver(to) => {
                at.counters.record_delivered(Side::Pod, packet.len());
                self.deliver(node, to, &packet, &headers, offload);
            }
            Verdict::Send(peer) => {
                at.counters.record_delivered(Side::Peer, packet.len());
                self.super_packets += u64::from(offload.gso.is_some());
                let record = encode(&packet, offload);
                let to = usize::try_from(peer.0).expect("few nodes");
                self.lost += u64::from(!self.wire.send(self.now, to, node, record));
            }
            Verdict::Answer => {
                at.counters.record_answered();
                let pod = at
                    .pods
                    .iter()
                    .find(|(id, _)| *id == port)
                    .map(|(_, pod)| *pod);
                self.pods[pod.expect("the sender")].receive(reply);
            }
            Verdict::Drop(reason) => at.counters.record_dropped(reason),
            Verdict::Fragment(_) => unreachable!("pods send no packet above their MTU"),
        }
    }

    fn receive(&mut self, node: usize, from: usize, record: &Record) {
        let now = self.start + self.now;
        let (offload, packet) = decode(record);
        let at = &mut self.nodes[node];
        at.counters.record_received(Side::Peer, packet.len());
        let headers = match parse(packet, packet.len()) {
            Ok(headers) => headers,
            Err(reason) => return at.counters.record_dropped(reason),
        };
        let mut reply = Vec::new();
        let snapshot = &at.snapshot;
        match at
            .forwarder
            .ingress(snapshot, peer_id(from), packet, &headers, now, &mut reply)
        {
            Verdict::Deliver(to) => {
                at.counters.record_delivered(Side::Pod, packet.len());
                let packet = packet.to_vec();
                self.deliver(node, to, &packet, &headers, offload);
            }
            Verdict::Answer => {
                at.counters.record_answered();
                let record = encode(&reply, Offload::NONE);
                self.lost += u64::from(!self.wire.send(self.now, from, node, record));
            }
            Verdict::Drop(reason) => at.counters.record_dropped(reason),
            Verdict::Send(_) | Verdict::Fragment(_) => {
                at.counters.record_dropped(DropReason::DestinationNotLocal);
            }
        }
    }

    /// Gives a pod what its kernel would: the finished segments.
    fn deliver(
        &mut self,
        node: usize,
        to: PortId,
        packet: &[u8],
        headers: &Headers,
        offload: Offload,
    ) {
        let pod = self.nodes[node]
            .pods
            .iter()
            .find(|(id, _)| *id == to)
            .map(|(_, pod)| *pod);
        let pod = &mut self.pods[pod.expect("a port of the snapshot")];
        match offload.gso {
            None => pod.receive(packet.to_vec()),
            Some(gso) => segment(packet, headers, gso, &mut Vec::new(), |segment| {
                pod.receive(segment.to_vec());
            })
            .expect("a super-packet that was joined can be cut"),
        }
    }
}

/// The address of a pod.
#[must_use]
pub fn address(node: usize, pod: usize, ipv4: bool) -> IpAddr {
    let text = if ipv4 {
        format!("10.244.{node}.{}", pod + 2)
    } else {
        format!("fd44:0:0:{node}::{}", pod + 2)
    };
    text.parse().expect("an address")
}

/// Nodes number their peers by index.
fn peer_id(node: usize) -> PeerId {
    PeerId(u32::try_from(node).expect("few nodes"))
}

/// A record as it is on the wire.
enum Record {
    Stream(Vec<u8>),
    Datagram(Vec<u8>),
}

fn encode(packet: &[u8], offload: Offload) -> Record {
    if offload.gso.is_none() {
        let mut bytes = vec![encode_datagram(offload.needs_checksum)];
        bytes.extend_from_slice(packet);
        return Record::Datagram(bytes);
    }
    let header = StreamHeader {
        packet_len: u32::try_from(packet.len()).expect("a packet"),
        offload,
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(packet);
    Record::Stream(bytes)
}

fn decode(record: &Record) -> (Offload, &[u8]) {
    match record {
        Record::Datagram(bytes) => decode_datagram(bytes).expect("our own record"),
        Record::Stream(bytes) => {
            let (header, packet) = bytes
                .split_first_chunk::<STREAM_HEADER_LEN>()
                .expect("a header");
            let header = StreamHeader::decode(*header).expect("our own record");
            assert_eq!(header.packet_len as usize, packet.len());
            (header.offload, packet)
        }
    }
}

/// Joins what a pod sent at once, as segmentation offload does.
fn join(coalescer: &mut Coalescer, sent: &[Vec<u8>]) -> Vec<(Vec<u8>, Offload)> {
    let mut joined = Vec::new();
    let mut emit = |packet: &mut [u8], offload: Offload| joined.push((packet.to_vec(), offload));
    for packet in sent {
        match parse(packet, packet.len()) {
            Ok(headers) => coalescer.push(packet, &headers, &mut emit),
            Err(_) => emit(&mut packet.clone(), Offload::NONE),
        }
    }
    coalescer.flush(&mut emit);
    joined
}
