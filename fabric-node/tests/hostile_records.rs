//! A hostile peer with a valid certificate: whatever it sends, the worker lives, every record has one
//! outcome, nothing with a foreign source reaches a pod, and other peers notice nothing.
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
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fabric_core::{
    offload::{Gso, GsoKind, Offload},
    packet::parse,
    record::{DATAGRAM_HEADER_LEN, PACKET_BYTES_MAX, STREAM_HEADER_LEN, StreamHeader},
    testing::packets::Generator,
    verdict::DropReason,
};
use fabric_node::{sys::capture::Capture, tunnel::report::PeerState};
use fabric_proto::hello::Hello;
use harness::{
    Fabric, Plan, Wire,
    hostile::Hostile,
    pod_address,
    rogue::{Rogue, framed, hello},
    traffic::{tcp_echo, tcp_echoes_during},
    underlay,
};
use quinn_proto::{Dir, StreamId};

const RECORDS: u64 = 1_000_000;
/// Records sent where none can be lost.
const RELIABLE_RECORDS: u64 = 20_000;
/// When nothing has come for this long, nothing is on its way: that takes microseconds here.
const QUIET: Duration = Duration::from_millis(200);
/// Connections that are ended by a damaged header.
const DAMAGED: usize = 400;
/// Number of the stranger in these tests: nodes 0 and 1 run.
const ROGUE: usize = 2;
/// Its memory may not be anybody's problem (bytes).
const GROWTH_MAX: u64 = 64 * 1024 * 1024;
/// Streams that the rogue spreads records over.
const STREAMS: usize = 8;

/// One test at a time: they measure the memory of the process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Node 0 is attacked, node 1 is the good peer; both know the rogue, whose name makes it the one
/// that dials.
fn fabric_with_rogue(name: &'static str) -> Fabric {
    Fabric::start(Plan {
        wire: Wire::Loopback,
        strangers: vec![name],
        ..Plan::default()
    })
}

fn dial(fabric: &Fabric, rogue: &mut Rogue) {
    let identity = fabric.identity(&fabric.name(ROGUE));
    rogue.dial(identity.client_config(fabric.name(0)), underlay(0));
    rogue.wait_connected();
}

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

/// What node 0 received, less what node 1 sent it.
fn received_from_rogue(fabric: &Fabric) -> u64 {
    let of = |node: usize| fabric.nodes[node].dataplane.counters();
    let honest = of(1).delivered_peers.packets;
    of(0).received_peers.packets.saturating_sub(honest)
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

/// What `count` says once it has said the same for [`QUIET`].
fn quiet(mut count: impl FnMut() -> u64) -> u64 {
    let mut last = (count(), Instant::now());
    while last.1.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(1));
        let now = count();
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    last.0
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

/// What is wrong with the framing ends the connection, is counted once, is named to the operator; and
/// the peer may come back.
#[test]
fn bad_framing_ends_the_connection_only() {
    let _alone = alone();
    let fabric = fabric_with_rogue("rogue");
    let mut rogue = Rogue::bind(&fabric, ROGUE, None);
    let header = |len: u32, flags: u8, reserved: u8, size: u16| {
        let mut bytes = len.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[flags, reserved]);
        bytes.extend_from_slice(&size.to_be_bytes());
        bytes
    };
    type Attack = (&'static str, Option<Dir>, Vec<u8>);
    let too_long = Hello {
        software: "x".repeat(5000),
        ..Hello::default()
    };
    let old = Hello::default();
    let twice = [hello(1, 1, 0), hello(1, 1, 0)].concat();
    let attacks: Vec<Attack> = vec![
        ("unknown flags", None, vec![2, 0x45]),
        ("unknown flags", None, vec![0xff; 100]),
        ("empty datagram", None, vec![]),
        ("empty datagram", None, vec![1]),
        ("packet length 0", Some(Dir::Uni), header(0, 0, 0, 0)),
        (
            "packet length 65576",
            Some(Dir::Uni),
            header(65_576, 0, 0, 0),
        ),
        (
            "packet length 4294967295",
            Some(Dir::Uni),
            header(u32::MAX, 0, 0, 0),
        ),
        ("unknown flags", Some(Dir::Uni), header(40, 8, 0, 0)),
        ("unknown flags", Some(Dir::Uni), header(40, 0, 1, 0)),
        ("segment size 7", Some(Dir::Uni), header(40, 0, 0, 7)),
        ("segment size 0", Some(Dir::Uni), header(40, 2, 0, 0)),
        ("a hello of 4294967295 bytes", Some(Dir::Bi), vec![0xff; 4]),
        ("the hello is too long", Some(Dir::Bi), framed(&too_long)),
        (
            "the hello",
            Some(Dir::Bi),
            vec![0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff],
        ),
        ("protocol version 0", Some(Dir::Bi), framed(&old)),
        ("more than one hello", Some(Dir::Bi), twice),
    ];
    let bad_records = attacks
        .iter()
        .filter(|(_, dir, _)| *dir != Some(Dir::Bi))
        .count();
    let (count, echoes) = tcp_echoes_during(&fabric, 0, 1, || {
        for (words, dir, bytes) in &attacks {
            dial(&fabric, &mut rogue);
            match dir {
                None => assert!(rogue.datagram(bytes)),
                Some(dir) => {
                    let stream = rogue.open(*dir).unwrap();
                    rogue.write_all(stream, bytes);
                }
            }
            let told = rogue.wait_closed();
            fabric.wait_for("the peer is out of service for a reason", || {
                let peer = fabric.peer(0, ROGUE).unwrap();
                peer.state != PeerState::Connected && peer.last_error.contains(words)
            });
            println!("{words}: told {told:?}");
            assert!(
                told.contains("malformed") || told.contains("version"),
                "{told}"
            );
        }
        attacks.len()
    });
    assert!(count == attacks.len() && echoes > 0);
    fabric.assert_conserved();
    let counters = fabric.nodes[0].dataplane.counters();
    assert_eq!(counters.dropped(DropReason::BadRecord), bad_records as u64);
    dial(&fabric, &mut rogue);
    fabric.wait_for("the rogue is back", || {
        fabric.peer(0, ROGUE).unwrap().state == PeerState::Connected
    });
}

/// Damage to any byte of a record's header, on hundreds of connections: what a plain reading of the
/// format finds before the first malformed header is received, the connection ends there, and that is
/// counted once.
#[test]
fn damaged_headers_end_their_connections_only() {
    let _alone = alone();
    let fabric = fabric_with_rogue("rogue");
    let mut rogue = Rogue::bind(&fabric, ROGUE, None);
    let mut random = Generator::new(5);
    let record = record_to_the_pod(&fabric);
    let bad_records = || {
        let counters = fabric.nodes[0].dataplane.counters();
        counters.dropped(DropReason::BadRecord)
    };
    let (mut at_once, mut sent) = (0, 0);
    let ((), echoes) = tcp_echoes_during(&fabric, 1, 0, || {
        for number in 0..DAMAGED {
            let honest = random.below(4);
            let mut bytes = record.repeat(honest);
            let damaged = bytes.len();
            bytes.extend_from_slice(&record);
            for _ in 0..=random.below(2) {
                // One byte after the other, so that none is left out.
                let at = damaged + (number + random.below(2)) % STREAM_HEADER_LEN;
                bytes[at] = match random.below(3) {
                    0 => bytes[at] ^ (1 << random.below(8)),
                    1 => random.bits() as u8,
                    _ => [0, 1, 2, 0xff][random.below(4)],
                };
            }
            // Whatever length it names, what follows is malformed in the end.
            bytes.resize(
                bytes.len() + PACKET_BYTES_MAX as usize + STREAM_HEADER_LEN,
                0xff,
            );
            let whole = records_before_malformed(&bytes);
            at_once += usize::from(whole == honest);
            let before = bad_records();
            dial(&fabric, &mut rogue);
            let stream = rogue.open(Dir::Uni).unwrap();
            rogue.write_all(stream, &bytes);
            let words = rogue.wait_closed();
            assert!(words.contains("malformed record"), "{words}");
            fabric.wait_for("the malformed record is counted", || bad_records() > before);
            sent += whole as u64 + 1;
        }
    });
    let received = quiet(|| received_from_rogue(&fabric));
    println!("{DAMAGED} connections, {at_once} of them end at the damage; {received} records");
    assert!(echoes > 0);
    assert!(at_once > DAMAGED / 4 && at_once < DAMAGED, "{at_once}");
    assert_eq!(received, sent);
    assert_eq!(bad_records(), DAMAGED as u64);
    fabric.assert_conserved();
}

/// How many whole records precede the first malformed header, by a plain reading of the format:
/// `length:u32 flags:u8 reserved:u8 segment_size:u16`.
fn records_before_malformed(mut bytes: &[u8]) -> usize {
    let mut whole = 0;
    loop {
        let (header, rest) = bytes.split_at(STREAM_HEADER_LEN);
        let len = header[..4]
            .iter()
            .fold(0, |len, byte| len << 8 | usize::from(*byte));
        let (flags, size) = (header[4], &header[6..]);
        let is_segmented = (flags >> 1) & 3 != 0;
        let is_well_formed = (1..=65_575).contains(&len)
            && flags < 8
            && header[5] == 0
            && is_segmented == (size != [0, 0]);
        if !is_well_formed {
            return whole;
        }
        whole += 1;
        bytes = &rest[len..];
    }
}

/// Streams that are abandoned, reset in the middle of a record, dribbled byte by byte or more than
/// allowed cost the node nothing that lasts, and disturb nobody.
#[test]
fn odd_streams_are_borne() {
    let _alone = alone();
    let fabric = fabric_with_rogue("rogue");
    let mut rogue = Rogue::bind(&fabric, ROGUE, None);
    dial(&fabric, &mut rogue);
    let record = record_to_the_pod(&fabric);
    let received = || fabric.nodes[0].dataplane.counters().received_peers.packets;
    // A thousand streams reset in the middle of a record: none of it counts.
    for number in 0..1000 {
        let mut stream = None;
        assert!(rogue.pump_until(|rogue| {
            stream = rogue.open(Dir::Uni);
            stream.is_some()
        }));
        let stream = stream.unwrap();
        rogue.write_all(stream, &record[..number % record.len()]);
        if number % 2 == 0 {
            rogue.reset(stream);
        } else {
            rogue.finish(stream);
        }
    }
    // A record byte by byte, each in a datagram of its own, on top of streams left open with nothing.
    let mut streams = Vec::new();
    // The last eighth of the allowance is granted late.
    assert!(rogue.pump_until(|rogue| {
        streams.extend(rogue.open(Dir::Uni));
        streams.len() >= 28
    }));
    for _ in 0..100 {
        rogue.pump();
        streams.extend(rogue.open(Dir::Uni));
    }
    assert!(streams.len() <= 32, "more streams than allowed");
    let before = received();
    for byte in &record {
        rogue.write_all(streams[0], &[*byte]);
    }
    assert!(rogue.pump_until(|_| received() == before + 1));
    assert!(rogue.is_connected());
    tcp_echo(&fabric, 1, 0, true, 60_000);
    fabric.assert_conserved();
}

/// A second control stream, and a stream of ours that is stopped, end the connection.
#[test]
fn broken_stream_rules_end_the_connection() {
    let _alone = alone();
    let fabric = fabric_with_rogue("rogue");
    let mut rogue = Rogue::bind(&fabric, ROGUE, None);
    dial(&fabric, &mut rogue);
    let control = rogue.open(Dir::Bi).unwrap();
    rogue.write_all(control, &hello(1, 1, u32::MAX));
    // The node's answers to TCP ride on streams.
    let stream = rogue.open(Dir::Uni).unwrap();
    let record = record_to_the_pod(&fabric);
    rogue.write_all(stream, &record);
    // The control stream is ours; what the node opens is for packets.
    assert!(rogue.pump_until(Rogue::stop_one), "the pod did not answer");
    let words = rogue.wait_closed();
    assert!(words.contains("stopped stream"), "{words}");
    fabric.assert_conserved();
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

/// A TCP segment to a closed port of node 0's pod, as a stream record of the rogue.
fn record_to_the_pod(fabric: &Fabric) -> Vec<u8> {
    assert_eq!(fabric.name(ROGUE).as_str(), "rogue");
    let ip = fabric_core::testing::packets::Ip::between(
        pod_address(ROGUE, 2, false),
        pod_address(0, 2, false),
    );
    let tcp = fabric_core::testing::packets::Tcp::default();
    let packet = tcp.packet(&ip, &[5; 500]);
    let header = StreamHeader {
        packet_len: u32::try_from(packet.len()).unwrap(),
        offload: Offload::NONE,
    };
    [header.encode().to_vec(), packet].concat()
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
