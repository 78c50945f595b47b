//! A flow of packets of any sizes, through two real endpoints.

use std::net::IpAddr;

use fabric_core::{
    offload::Offload,
    packet::parse,
    testing::packets::{Ip, udp},
};

use super::*;
use crate::dataplane::outbound::{self, HEADROOM, Origin};

/// Sizes of UDP payloads: some fit a datagram of this path and some do not.
const SIZES: [usize; 7] = [64, 1472, 64, 64, 1350, 1440, 200];
/// Before the payloads: IPv4 and UDP.
const HEADERS: usize = 28;
/// Ports of the flow of all sizes, of one of small packets, of one of large packets.
pub(super) const MIXED: u16 = 1000;
pub(super) const SMALL: u16 = MIXED + 1;
pub(super) const LARGE: u16 = MIXED + 2;
/// Length of a packet of a TCP-like load.
const BULK_BYTES: usize = 60_000;

/// What sends as a worker does.
pub(super) struct Sender {
    pool: BufferPool,
    scratch: Vec<u8>,
    numbers: [u32; 3],
}

impl Sender {
    pub(super) fn new() -> Self {
        Self {
            pool: BufferPool::default(),
            scratch: Vec::new(),
            numbers: [0; 3],
        }
    }

    /// Sends the next packet of a flow; its payload begins with its number.
    pub(super) fn send(&mut self, endpoint: &mut Endpoint, port: u16, len: usize, now: Instant) {
        let number = &mut self.numbers[usize::from(port - MIXED)];
        let mut payload = vec![0; len];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        *number += 1;
        let [from, to]: [IpAddr; 2] = ["10.1.0.1", "10.2.0.1"].map(|ip| ip.parse().unwrap());
        let packet = udp(&Ip::between(from, to), port, 9, &payload);
        let headers = parse(&packet, packet.len()).unwrap();
        let mut buffer = self.pool.take_full();
        buffer[HEADROOM..HEADROOM + packet.len()].copy_from_slice(&packet);
        let link = endpoint.link(PEER, outbound::flow_hash(&headers)).unwrap();
        let origin = Origin {
            port: PortId(1),
            account: Some(headers.packet_len),
            at: now,
        };
        outbound::send(
            link,
            &mut buffer,
            &mut self.pool,
            &headers,
            Offload::NONE,
            origin,
            &mut self.scratch,
        )
        .unwrap();
    }
}

/// What has arrived of each flow: numbers, and whether each came in a datagram.
#[derive(Default)]
pub(super) struct Arrived(pub(super) [Vec<(u32, bool)>; 3]);

impl Arrived {
    pub(super) fn take(&mut self, endpoint: &mut Endpoint, now: Instant) {
        let mut copy = Vec::new();
        endpoint.receive(now);
        if endpoint.next_timeout().is_some_and(|due| due <= now) {
            endpoint.handle_timeouts(now);
        }
        endpoint.take_records(now, |_, record| {
            let (packet, by_datagram) = match &record {
                Received::Datagram { packet, .. } => (*packet, true),
                Received::Stream {
                    packet_len, pieces, ..
                } => {
                    copy.clear();
                    pieces.append_to(*packet_len, &mut copy);
                    (&copy[..], false)
                }
            };
            if packet.len() == BULK_BYTES {
                return;
            }
            let port = u16::from_be_bytes(packet[20..22].try_into().unwrap());
            let number = u32::from_be_bytes(packet[HEADERS..HEADERS + 4].try_into().unwrap());
            self.0[usize::from(port - MIXED)].push((number, by_datagram));
        });
        endpoint.transmit(now);
    }

    fn check_order(&self) {
        for flow in &self.0 {
            for pair in flow.windows(2) {
                assert!(
                    pair[0].0 < pair[1].0,
                    "{} came after {}",
                    pair[1].0,
                    pair[0].0
                );
            }
        }
    }

    fn by_datagram(&self, port: u16) -> usize {
        let flow = &self.0[usize::from(port - MIXED)];
        flow.iter().filter(|(_, by_datagram)| *by_datagram).count()
    }
}

/// Loses what has come and was not taken yet.
fn lose(endpoint: &mut Endpoint, now: Instant) {
    for socket in &mut endpoint.sockets {
        let _ = socket.receive(&mut endpoint.pool, now, |_, _| {});
    }
}

/// Beside a load that fills the windows, on a path that loses packets again and again, a flow of small
/// and large packets arrives in its order, and one of small ones stays in datagrams. The first one is
/// back in datagrams once its large packets have arrived.
#[test]
fn a_flow_of_any_sizes_keeps_its_order() {
    let mut pair = Pair::connected();
    let (mut sender, mut arrived) = (Sender::new(), Arrived::default());
    for round in 0..6_000_usize {
        if pair.a.queued() < 10 {
            (0..4).for_each(|_| queueing::send_large(&mut pair.a, pair.now));
        }
        for n in 0..3 {
            let size = SIZES[(3 * round + n) % SIZES.len()];
            // Pauses, so that the flow changes its lane often.
            if round % 300 < 150 {
                sender.send(&mut pair.a, MIXED, size, pair.now);
            } else if round % 300 > 230 {
                sender.send(&mut pair.a, MIXED, 64, pair.now);
            }
        }
        sender.send(&mut pair.a, SMALL, 64, pair.now);
        sender.send(&mut pair.a, LARGE, 1472, pair.now);
        turn(&mut pair.a, pair.now);
        if round % 200 == 7 {
            lose(&mut pair.b, pair.now);
        }
        arrived.take(&mut pair.b, pair.now);
        pair.now += Duration::from_micros(200);
    }
    for _ in 0..3_000 {
        turn(&mut pair.a, pair.now);
        arrived.take(&mut pair.b, pair.now);
        pair.now += STEP;
    }
    arrived.check_order();
    let lost = pair.a.reports()[0].links[0].path.lost_packets;
    let [mixed, small, large] = [0, 1, 2].map(|flow| arrived.0[flow].len());
    let changes = arrived.0[0]
        .windows(2)
        .filter(|pair| pair[0].1 != pair[1].1);
    let changes = changes.count();
    let told = format!("{mixed} {small} {large} arrived, {changes} changes, {lost} lost");
    assert!(lost > 100 && changes > 10, "{told}");
    assert!(mixed > 8_000 && small > 3_000 && large > 3_000, "{told}");
    assert_eq!(
        (arrived.by_datagram(SMALL), arrived.by_datagram(LARGE)),
        (small, 0)
    );
    // The path is quiet; what it carries is known of within a few packets.
    for _ in 0..10 {
        sender.send(&mut pair.a, MIXED, 64, pair.now);
        for _ in 0..20 {
            turn(&mut pair.a, pair.now);
            arrived.take(&mut pair.b, pair.now);
            pair.now += STEP;
        }
    }
    assert!(
        arrived.0[0]
            .iter()
            .rev()
            .take(5)
            .all(|(_, by_datagram)| *by_datagram)
    );
    arrived.check_order();
}
