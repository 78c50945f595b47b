#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]
#![expect(
    clippy::disallowed_methods,
    reason = "a test starts at any moment and counts from there"
)]

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::{
    packet::parse,
    testing::packets::{Ip, Tcp, udp},
};

const SECOND: Duration = Duration::from_secs(1);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn flow(number: u32) -> Flow {
    Flow {
        source: Ipv4Addr::new(10, 0, 1, 2).into(),
        destination: Ipv4Addr::from(0x0a00_0200 | number >> 16).into(),
        protocol: protocol::UDP,
        source_port: number as u16,
        destination_port: 53,
    }
}

struct Packet(Vec<u8>, Headers);

impl Packet {
    fn new(bytes: Vec<u8>) -> Self {
        let headers = parse(&bytes, bytes.len()).unwrap();
        Self(bytes, headers)
    }

    fn udp(source: &str, destination: &str, ports: (u16, u16)) -> Self {
        let ip = Ip::between(ip(source), ip(destination));
        Self::new(udp(&ip, ports.0, ports.1, b"x"))
    }

    fn tcp(source: &str, destination: &str, ports: (u16, u16), flags: u8) -> Self {
        let tcp = Tcp {
            source: ports.0,
            destination: ports.1,
            flags,
            ..Tcp::default()
        };
        Self::new(tcp.packet(&Ip::between(ip(source), ip(destination)), b""))
    }
}

struct Table {
    detours: Detours,
    began: Instant,
}

impl Table {
    fn new() -> Self {
        let began = Instant::now();
        let detours = Detours::new([1, 2], began);
        Self { detours, began }
    }

    fn remember(&self, packet: &Packet, at: Duration) {
        self.detours.remember(&packet.0, &packet.1, self.began + at);
    }

    fn is_reply(&self, packet: &Packet, at: Duration) -> bool {
        self.detours.is_reply(&packet.0, &packet.1, self.began + at)
    }
}

/// A reply is known by exactly the reversed addresses, ports and protocol.
#[test]
fn a_reply_is_the_flow_reversed() {
    let table = Table::new();
    table.remember(&Packet::udp("10.0.1.2", "10.0.2.5", (40_000, 53)), SECOND);
    let known = |packet: Packet| table.is_reply(&packet, SECOND);
    assert!(known(Packet::udp("10.0.2.5", "10.0.1.2", (53, 40_000))));
    assert!(!known(Packet::udp("10.0.1.2", "10.0.2.5", (40_000, 53))));
    assert!(!known(Packet::udp("10.0.2.5", "10.0.1.2", (53, 40_001))));
    assert!(!known(Packet::udp("10.0.2.5", "10.0.1.2", (54, 40_000))));
    assert!(!known(Packet::udp("10.0.2.6", "10.0.1.2", (53, 40_000))));
    assert!(!known(Packet::udp("10.0.2.5", "10.0.1.3", (53, 40_000))));
    assert!(!known(Packet::tcp(
        "10.0.2.5",
        "10.0.1.2",
        (53, 40_000),
        0x10
    )));
}

/// What the host sends back unchanged is a reply of what is remembered, and makes no flow of its own.
#[test]
fn a_reply_that_the_host_sends_is_not_remembered() {
    let table = Table::new();
    let there = Packet::udp("fd00:1::2", "fd00:2::5", (40_000, 53));
    let back = Packet::udp("fd00:2::5", "fd00:1::2", (53, 40_000));
    table.remember(&there, SECOND);
    table.remember(&back, SECOND);
    assert!(table.is_reply(&back, SECOND));
    assert!(!table.is_reply(&there, SECOND));
}

/// A UDP flow is kept as long as it is used in either direction, and then for ten minutes.
#[test]
fn use_in_both_directions_keeps_a_flow() {
    let table = Table::new();
    let there = Packet::udp("10.0.1.2", "10.0.2.5", (40_000, 53));
    let back = Packet::udp("10.0.2.5", "10.0.1.2", (53, 40_000));
    table.remember(&there, Duration::ZERO);
    assert!(table.is_reply(&back, OTHER_IDLE_MAX));
    table.remember(&there, OTHER_IDLE_MAX * 2);
    assert!(table.is_reply(&back, OTHER_IDLE_MAX * 3));
    assert!(!table.is_reply(&back, OTHER_IDLE_MAX * 4 + SECOND));
}

/// A TCP flow is kept for days, after FIN or RST for two minutes, and a SYN opens it again.
#[test]
fn tcp_lives_by_its_flags() {
    const FIN_ACK: u8 = 0x11;
    const ACK: u8 = 0x10;
    let there = |flags| Packet::tcp("10.0.1.2", "10.0.2.5", (40_000, 80), flags);
    let back = |flags| Packet::tcp("10.0.2.5", "10.0.1.2", (80, 40_000), flags);
    for last in [FIN_ACK, tcp::RST] {
        let table = Table::new();
        table.remember(&there(tcp::SYN), Duration::ZERO);
        let mut now = TCP_IDLE_MAX;
        assert!(table.is_reply(&back(ACK), now));
        assert!(table.is_reply(&back(last), now));
        // Data after it, as of a half-closed connection, keeps it, and does not open it.
        for _ in 0..5 {
            now += CLOSING_IDLE_MAX;
            assert!(table.is_reply(&back(ACK), now), "{last:#x}");
        }
        assert!(!table.is_reply(&back(ACK), now + CLOSING_IDLE_MAX + SECOND));
        table.remember(&there(tcp::SYN), now);
        assert!(table.is_reply(&back(ACK), now + TCP_IDLE_MAX));
    }
}

/// Fragments are known by their addresses, in both directions, whatever their protocol.
#[test]
fn fragments_go_by_the_pair() {
    let table = Table::new();
    table.remember(&Packet::udp("10.0.1.2", "10.0.2.5", (40_000, 53)), SECOND);
    let fragment = |source, destination, flags_and_offset| {
        let ip = Ip {
            flags_and_offset,
            ..Ip::between(ip(source), ip(destination))
        };
        Packet::new(udp(&ip, 1, 2, &[0; 64]))
    };
    for flags_and_offset in [0x2000, 0x2010, 0x0010] {
        assert!(table.is_reply(&fragment("10.0.2.5", "10.0.1.2", flags_and_offset), SECOND));
        assert!(table.is_reply(&fragment("10.0.1.2", "10.0.2.5", flags_and_offset), SECOND));
        assert!(!table.is_reply(&fragment("10.0.2.6", "10.0.1.2", flags_and_offset), SECOND));
    }
}

/// A flow that the kernel knew before is as good as one that was seen.
#[test]
fn restored_flows_have_replies() {
    let table = Table::new();
    let open = Flow {
        protocol: protocol::TCP,
        ..flow(80)
    };
    let closing = Flow {
        source_port: 81,
        ..open
    };
    table.detours.restore(&open, false, table.began);
    table.detours.restore(&closing, true, table.began);
    let back = |port| Packet::tcp("10.0.2.0", "10.0.1.2", (53, port), 0x10);
    assert!(table.is_reply(&back(80), TCP_IDLE_MAX));
    assert!(table.is_reply(&back(81), CLOSING_IDLE_MAX));
    assert!(!table.is_reply(&back(81), CLOSING_IDLE_MAX * 2 + SECOND));
}

/// Beyond its bound the table forgets what was unused for the longest time of those that share a set, and
/// counts it; what is in use stays.
#[test]
fn a_full_table_forgets_the_least_recently_used() {
    let table = Table::new();
    let kept = flow(1);
    let count = DETOURS_MAX as u32 * 4;
    for number in 1..=count {
        let now = table.began + SECOND * (number / 4096);
        table.detours.restore(&flow(number), false, now);
        assert!(
            table
                .detours
                .renew(table.detours.flow_tag(&kept), None, now)
        );
    }
    let now = table.began + SECOND * (count / 4096);
    let held = table.detours.len(now);
    assert!(held <= DETOURS_MAX && held > DETOURS_MAX * 9 / 10, "{held}");
    assert!(table.detours.evicted() as usize >= count as usize - DETOURS_MAX);
    // The last ones are there.
    for number in count - 1000..=count {
        let tag = table.detours.flow_tag(&flow(number));
        assert!(table.detours.renew(tag, None, now), "{number}");
    }
}

/// What has ended by itself makes room without being counted as lost.
#[test]
fn what_has_expired_is_not_counted_as_evicted() {
    let table = Table::new();
    for number in 0..DETOURS_MAX as u32 / 16 {
        table.detours.restore(&flow(number), false, table.began);
    }
    let before = table.detours.evicted();
    let later = table.began + OTHER_IDLE_MAX + SECOND;
    assert!(table.detours.is_empty(later));
    for number in 0..DETOURS_MAX as u32 / 16 {
        let flow = flow(number | 1 << 20);
        table.detours.restore(&flow, false, later);
    }
    assert_eq!(table.detours.evicted(), before);
}

/// Threads that add flows at the same time lose none of another's.
#[test]
fn threads_share_the_table() {
    const EACH: u32 = 2_000;
    let table = Table::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let table = &table;
            scope.spawn(move || {
                for number in 0..EACH {
                    let flow = flow(thread * EACH + number);
                    table.detours.restore(&flow, false, table.began);
                    assert!(
                        table
                            .detours
                            .renew(table.detours.flow_tag(&flow), None, table.began)
                    );
                }
            });
        }
    });
    for number in 0..4 * EACH {
        let tag = table.detours.flow_tag(&flow(number));
        assert!(table.detours.renew(tag, None, table.began), "{number}");
    }
    assert_eq!(table.detours.evicted(), 0);
}

/// Facts of different kinds and families never meet.
#[test]
fn kinds_of_facts_are_apart() {
    let table = Table::new();
    let (one, other) = (ip("10.0.1.2"), ip("10.0.2.5"));
    table.detours.add_source(one, table.began);
    assert!(table.detours.has_source(one, table.began));
    assert!(!table.detours.has_source(other, table.began));
    assert!(!table.detours.has_pair(one, other, table.began));
    assert!(!table.detours.has_pair(one, one, table.began));
    let mapped = Ipv6Addr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 0x0102]).into();
    assert!(!table.detours.has_source(mapped, table.began));
}
