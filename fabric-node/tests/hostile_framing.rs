//! A peer with a valid certificate that breaks the format or the rules of streams: its connection ends
//! where the rule says so and for that reason, it is counted once, and other peers notice nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says what it counted"
)]

mod harness;

use fabric_core::{
    offload::Offload,
    record::{PACKET_BYTES_MAX, STREAM_HEADER_LEN, StreamHeader},
    testing::packets::Generator,
    verdict::DropReason,
};
use fabric_node::tunnel::report::PeerState;
use fabric_proto::hello::Hello;
use harness::{
    Fabric,
    one_rogue::{ROGUE, alone, dial, fabric_with_rogue, quiet, received_from_rogue},
    pod_address,
    rogue::{Rogue, framed, hello},
    traffic::{tcp_echo, tcp_echoes_during},
};
use quinn_proto::Dir;

/// Connections that are ended by a damaged header.
const DAMAGED: usize = 400;

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
