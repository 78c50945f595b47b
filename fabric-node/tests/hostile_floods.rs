//! A peer with a valid certificate that sends too much: a million hostile records, connection after
//! connection, lies that make others dial it. The worker lives, every record has one outcome, nothing
//! with a foreign source reaches a pod, memory stays bounded, and other peers notice nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says what it counted"
)]

mod harness;

use std::{
    collections::BTreeMap,
    net::{IpAddr, UdpSocket},
    num::NonZeroU16,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fabric_core::{
    offload::{Gso, GsoKind, Offload},
    packet::parse,
    record::{DATAGRAM_HEADER_LEN, STREAM_HEADER_LEN, StreamHeader},
    testing::packets::Generator,
    verdict::DropReason,
};
use fabric_node::sys::capture::Capture;
use harness::{
    Fabric,
    hostile::Hostile,
    one_rogue::{ROGUE, alone, dial, fabric_with_rogue, quiet, received_from_rogue},
    pod_address,
    rogue::{Rogue, hello},
    traffic::{tcp_echo, tcp_echoes_during},
    underlay,
};
use quinn_proto::{Dir, StreamId};

const RECORDS: u64 = 1_000_000;
/// Records sent where none can be lost.
const RELIABLE_RECORDS: u64 = 20_000;
/// Its memory may not be anybody's problem (bytes).
const GROWTH_MAX: u64 = 64 * 1024 * 1024;
/// Streams that the rogue spreads records over.
const STREAMS: usize = 8;

/// A million mutated records from an authenticated peer: no panic, one outcome each, none with a
/// foreign source reaches the pod, memory stays bounded, and TCP with another peer runs all the while.
/// Every record that QUIC carries reliably is received once, and what counts as delivered to the pod is
/// what the pod's kernel received.
#[test]
fn a_million_hostile_records() {
    let _alone = alone();
    let fabric = fabric_with_rogue("rogue");
    let watch = Watch::begin(&fabric);
    let mut rogue = Rogue::bind(&fabric, ROGUE, None);
    let begin = Instant::now();
    let (sent, echoes) = tcp_echoes_during(&fabric, 0, 1, || flood(&fabric, &mut rogue));
    let taken = begin.elapsed();
    fabric.assert_conserved();
    tcp_echo(&fabric, 1, 0, false, 2000);
    let reliable = reliable_records(&fabric, &mut rogue);
    fabric.wait_for("the pod's kernel has what was delivered", || {
        let counters = fabric.nodes[0].dataplane.counters();
        let (delivered, kernel) = (counters.delivered_pods.packets, received_by_pod(&fabric));
        kernel == delivered
    });
    fabric.assert_conserved();
    let counters = fabric.nodes[0].dataplane.counters();
    let from_rogue = received_from_rogue(&fabric);
    let at_most = sent.datagrams + sent.stream_records + sent.connections + reliable;
    let seen = watch.end();
    let drops: Vec<String> = DropReason::ALL
        .iter()
        .filter(|reason| counters.dropped(**reason) > 0)
        .map(|reason| format!("{} {}", reason.name(), counters.dropped(*reason)))
        .collect();
    println!(
        "{} records from peers ({sent:?}, then {reliable} on streams) in {taken:?}: delivered to pods {}, answered {}, dropped {} ({}); {echoes} honest echoes; the pod saw {seen:?}",
        counters.received_peers.packets,
        counters.delivered_pods.packets,
        counters.answered,
        counters.dropped_total(),
        drops.join(", "),
    );
    assert!(echoes > 0 && sent.connections > 10);
    assert!(from_rogue <= at_most, "{from_rogue} received of {at_most}");
    assert_eq!(counters.dropped(DropReason::BadRecord), sent.connections);
    assert!(sent.memory_grown < GROWTH_MAX, "{}", sent.memory_grown);
    assert!(seen.from_rogue > 1000, "{seen:?}");
    assert_eq!(seen.foreign, BTreeMap::new());
    for reason in [
        DropReason::PeerSourceNotAllowed,
        DropReason::DestinationNotLocal,
        DropReason::BadOffload,
        DropReason::Multicast,
        DropReason::Truncated,
    ] {
        assert!(
            counters.dropped(reason) > 0,
            "{} was not met",
            reason.name()
        );
    }
}

#[derive(Debug, Default)]
struct Sent {
    datagrams: u64,
    stream_records: u64,
    connections: u64,
    memory_grown: u64,
}

/// Sends until a million records have been received, coming back after each malformed one.
fn flood(fabric: &Fabric, rogue: &mut Rogue) -> Sent {
    let own = [false, true].map(|ipv6| pod_address(ROGUE, 2, ipv6));
    let mut hostile = Hostile::new(3, own);
    let mut sent = Sent::default();
    let mut baseline = None;
    let received = || received_from_rogue(fabric);
    loop {
        let so_far = received();
        let now = memory();
        if so_far > RECORDS / 10 {
            let baseline = *baseline.get_or_insert(now);
            sent.memory_grown = sent.memory_grown.max(now.saturating_sub(baseline));
        }
        if so_far >= RECORDS {
            return sent;
        }
        dial(fabric, rogue);
        sent.connections += 1;
        session(&mut hostile, rogue, &mut sent, || received() >= RECORDS);
    }
}

/// Sends hostile packets in well-framed records on streams, which lose nothing, while nobody else
/// sends; each must be received, and none twice. How many there were.
fn reliable_records(fabric: &Fabric, rogue: &mut Rogue) -> u64 {
    let own = [false, true].map(|ipv6| pod_address(ROGUE, 2, ipv6));
    let mut hostile = Hostile::new(4, own);
    dial(fabric, rogue);
    let streams: Vec<StreamId> = (0..STREAMS).filter_map(|_| rogue.open(Dir::Uni)).collect();
    let mut backlog: Vec<Vec<u8>> = vec![Vec::new(); streams.len()];
    let before = quiet(|| received_from_rogue(fabric));
    let mut count = 0;
    while count < RELIABLE_RECORDS {
        let packet = hostile.packet();
        if packet.is_empty() {
            continue;
        }
        let header = StreamHeader {
            packet_len: u32::try_from(packet.len()).unwrap(),
            offload: any_offload(&mut hostile.random, &packet),
        };
        let bucket = hostile.random.below(streams.len());
        backlog[bucket].extend_from_slice(&header.encode());
        backlog[bucket].extend_from_slice(&packet);
        count += 1;
        push(rogue, &streams, &mut backlog);
    }
    assert!(rogue.pump_until(|rogue| {
        push(rogue, &streams, &mut backlog);
        backlog.iter().all(Vec::is_empty) && received_from_rogue(fabric) >= before + count
    }));
    let after = quiet(|| {
        rogue.pump();
        received_from_rogue(fabric)
    });
    assert_eq!(after - before, count, "records received on streams");
    assert!(rogue.is_connected(), "{:?}", rogue.closed());
    count
}

/// Packets that the kernel of node 0's pod has received through `eth0`.
fn received_by_pod(fabric: &Fabric) -> u64 {
    let text = fabric.nodes[0]
        .pod
        .run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap())
        .unwrap();
    let row = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("eth0:"));
    // Bytes, then packets.
    row.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

/// One connection: some ten thousand records that decode, then one that does not.
fn session(hostile: &mut Hostile, rogue: &mut Rogue, sent: &mut Sent, enough: impl Fn() -> bool) {
    let streams: Vec<StreamId> = (0..STREAMS).filter_map(|_| rogue.open(Dir::Uni)).collect();
    let mut backlog: Vec<Vec<u8>> = vec![Vec::new(); streams.len()];
    let length = 10_000 + hostile.random.below(40_000);
    for number in 0..length {
        let packet = hostile.packet();
        let fits = packet.len() + DATAGRAM_HEADER_LEN <= rogue.datagram_room();
        if packet.is_empty() {
            continue;
        }
        if fits && hostile.random.one_in(2) {
            let mut record = vec![hostile.random.below(2) as u8];
            record.extend_from_slice(&packet);
            let mut tries = 0;
            let mut accepted = rogue.datagram(&record);
            while !accepted && rogue.closed().is_none() && tries < 100_000 {
                rogue.pump();
                tries += 1;
                accepted = rogue.datagram(&record);
            }
            sent.datagrams += u64::from(accepted);
        } else {
            let bucket = hostile.random.below(streams.len());
            let header = StreamHeader {
                packet_len: u32::try_from(packet.len()).unwrap(),
                offload: any_offload(&mut hostile.random, &packet),
            };
            backlog[bucket].extend_from_slice(&header.encode());
            backlog[bucket].extend_from_slice(&packet);
            sent.stream_records += 1;
        }
        if number % 32 == 0 {
            push(rogue, &streams, &mut backlog);
        }
        if rogue.closed().is_some() {
            panic!("closed on records that decode: {:?}", rogue.closed());
        }
        if number % 1024 == 0 && enough() {
            break;
        }
    }
    assert!(rogue.pump_until(|rogue| {
        push(rogue, &streams, &mut backlog);
        backlog.iter().all(Vec::is_empty)
    }));
    if hostile.random.one_in(2) {
        rogue.datagram(&[0xff, 1, 2, 3]);
    } else {
        rogue.write_all(streams[0], &[0xff; STREAM_HEADER_LEN]);
    }
    let words = rogue.wait_closed();
    assert!(words.contains("malformed record"), "{words}");
}

fn push(rogue: &mut Rogue, streams: &[StreamId], backlog: &mut [Vec<u8>]) {
    loop {
        for (id, bytes) in streams.iter().zip(&mut *backlog) {
            let written = rogue.write(*id, bytes);
            bytes.drain(..written);
        }
        rogue.pump();
        let waiting: usize = backlog.iter().map(Vec::len).sum();
        if waiting < 1 << 20 || rogue.closed().is_some() {
            return;
        }
    }
}

/// Mostly a claim that contradicts the packet, now and then one that fits.
fn any_offload(random: &mut Generator, packet: &[u8]) -> Offload {
    let sizes = [1, 8, 100, 1200, 1448, 9000, u16::MAX];
    let kinds = [GsoKind::Tcp, GsoKind::TcpEcn, GsoKind::Udp];
    let claims = random.one_in(4) || parse(packet, packet.len()).is_err();
    Offload {
        needs_checksum: random.one_in(3),
        gso: claims.then(|| Gso {
            kind: kinds[random.below(3)],
            size: NonZeroU16::new(sizes[random.below(sizes.len())]).unwrap(),
        }),
    }
}

/// A peer that opens connection after connection keeps no more than it could use, with or without a
/// hello, whatever number, boot and workers it tells of.
#[test]
fn connections_of_one_peer_are_bounded() {
    let _alone = alone();
    let fabric = fabric_with_rogue("rogue");
    let (links, echoes) = tcp_echoes_during(&fabric, 0, 1, || {
        let mut rogues: Vec<Rogue> = Vec::new();
        let mut most = 0;
        for number in 0..40_u16 {
            let mut address = underlay(ROGUE);
            address.set_port(20_000 + number);
            let mut rogue = Rogue::bind_to(&fabric, address, None);
            dial(&fabric, &mut rogue);
            if number % 2 == 0 {
                let control = rogue.open(Dir::Bi).unwrap();
                rogue.write_all(control, &hello(1, 7, u32::from(number)));
            }
            rogues.push(rogue);
            rogues.iter_mut().for_each(Rogue::pump);
            most = most.max(fabric.peer(0, ROGUE).unwrap().links.len());
        }
        fabric.wait_for("only so many links", || {
            rogues.iter_mut().for_each(Rogue::pump);
            let connected = rogues.iter().filter(|rogue| rogue.is_connected()).count();
            connected <= 4 && fabric.peer(0, ROGUE).unwrap().links.len() <= 4
        });
        most
    });
    println!("at most {links} links at once, {echoes} honest echoes");
    assert!(links <= 4 && echoes > 0);
    fabric.assert_conserved();
}

/// A peer that is dialled and lies about its workers is dialled no more often than its backoff
/// allows, and a peer that never says hello is not served.
#[test]
fn lies_of_a_dialled_peer_do_not_make_a_storm() {
    // Greater than the nodes' names: they dial.
    let _alone = alone();
    let fabric = fabric_with_rogue("z-rogue");
    let identity = fabric.identity(&fabric.name(ROGUE));
    let mut rogue = Rogue::bind(&fabric, ROGUE, Some(identity.server_config()));
    // What node 0 takes for the rogue's second worker.
    let mut address = underlay(ROGUE);
    address.set_port(address.port() + 1);
    let second = fabric.nodes[0]
        .host
        .run(|| UdpSocket::bind(address).unwrap())
        .unwrap();
    second.set_nonblocking(true).unwrap();
    let ((told, attempts), echoes) = tcp_echoes_during(&fabric, 0, 1, || {
        let end = Instant::now() + Duration::from_secs(4);
        let (mut told, mut attempts) = (0, 0);
        let mut again: Option<(Instant, StreamId)> = None;
        while Instant::now() < end {
            rogue.pump();
            while second.recv(&mut [0; 2048]).is_ok() {
                attempts += 1;
            }
            if let Some(control) = rogue.opened_by_peer(Dir::Bi) {
                told += 1;
                let workers = if told % 2 == 0 { u32::MAX } else { 0 };
                rogue.write_all(control, &hello(workers, told, u32::MAX));
                again = Some((Instant::now() + Duration::from_millis(50), control));
            }
            // A second hello ends this connection, and the node dials again.
            if let Some((_, control)) = again.take_if(|(due, _)| *due <= Instant::now()) {
                rogue.write_all(control, &hello(1, told, 0));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        (told, attempts)
    });
    println!("{told} lies told, {attempts} datagrams to the second worker, {echoes} honest echoes");
    assert!(told > 2 && attempts > 0);
    // Two nodes, two datagrams for each first flight and each repetition of it.
    assert!(attempts < 2 * 2 * 4 * 4, "{attempts}");
    assert!(echoes > 0);
    fabric.assert_conserved();
}

/// Resident memory of this process (bytes).
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Watches what a pod receives.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    from_rogue: u64,
    from_others: u64,
    foreign: BTreeMap<IpAddr, u64>,
}

impl Watch {
    fn begin(fabric: &Fabric) -> Self {
        let capture = fabric.nodes[0]
            .pod
            .run(|| Capture::open("eth0").unwrap())
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            let mut frame = vec![0; 70_000];
            loop {
                match capture.next(&mut frame).unwrap() {
                    Some(len) => seen.note(&frame[..len.min(frame.len())]),
                    None if stopped.load(Ordering::Relaxed) => return seen,
                    None => {
                        capture.wait(Duration::from_millis(20)).unwrap();
                    }
                }
            }
        });
        Self { stop, thread }
    }

    fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

impl Seen {
    fn note(&mut self, packet: &[u8]) {
        let source = match packet.first().map(|first| first >> 4) {
            Some(4) => {
                let bytes: [u8; 4] = packet[12..16].try_into().unwrap();
                IpAddr::from(bytes)
            }
            _ => {
                let bytes: [u8; 16] = packet[8..24].try_into().unwrap();
                IpAddr::from(bytes)
            }
        };
        let node = match source {
            IpAddr::V4(v4) => v4.octets()[0] == 10 && v4.octets()[1] == ROGUE as u8 + 1,
            IpAddr::V6(v6) => v6.segments()[..2] == [0xfd00, ROGUE as u16 + 1],
        };
        // The pod itself, its gateway, the good peer's pod.
        let honest = [(0, 2), (0, 1), (1, 2)]
            .iter()
            .flat_map(|(node, host)| [false, true].map(|ipv6| pod_address(*node, *host, ipv6)))
            .any(|address| address == source);
        if node {
            self.from_rogue += 1;
        } else if honest {
            self.from_others += 1;
        } else {
            *self.foreign.entry(source).or_default() += 1;
        }
    }
}
