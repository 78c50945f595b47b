//! Makers of hostile packets: random, mutated, and with metadata that contradicts them.

use std::net::IpAddr;

use fabric_core::{
    offload::VnetHeader,
    packet::parse,
    testing::packets::{Generator, Ip, Tcp, naive_sum, udp_partial},
};

use super::pod_address;

/// Packets made once; each packet sent is one of them, re-addressed and mostly damaged.
const CORPUS: usize = 4096;

/// Last number of addresses that no pod has, by which spoofed packets are known.
pub const FOREIGN_HOST: u8 = 77;

pub struct Hostile {
    pub random: Generator,
    corpus: Vec<Vec<u8>>,
    /// What the sender may call itself, IPv4 and IPv6.
    own: [IpAddr; 2],
    destinations: [Vec<IpAddr>; 2],
}

impl Hostile {
    /// Packets that a sender at `own` addresses to all sorts of places.
    pub fn new(seed: u64, own: [IpAddr; 2]) -> Self {
        let mut random = Generator::new(seed);
        let corpus = (0..CORPUS).map(|_| base_packet(&mut random)).collect();
        let everywhere = |ipv6: bool, others: &[&str]| {
            let mut all: Vec<IpAddr> = Vec::new();
            for node in 0..4 {
                for host in [2, 2, 1, 99, 200] {
                    all.push(pod_address(node, host, ipv6));
                }
            }
            all.extend(others.iter().map(|a| a.parse::<IpAddr>().unwrap()));
            all
        };
        let v4 = everywhere(
            false,
            &[
                "224.0.0.1",
                "255.255.255.255",
                "127.0.0.1",
                "169.254.1.1",
                "0.0.0.0",
                "8.8.8.8",
                "10.90.0.1",
            ],
        );
        let v6 = everywhere(
            true,
            &[
                "ff02::1",
                "::1",
                "::",
                "fe80::1",
                "::ffff:10.2.0.2",
                "2001:db8::1",
            ],
        );
        Self {
            random,
            corpus,
            own,
            destinations: [v4, v6],
        }
    }

    /// The next packet.
    pub fn packet(&mut self) -> Vec<u8> {
        if self.random.one_in(16) {
            let len = self.random.below(200);
            return self.random.bytes(len);
        }
        let at = self.random.below(self.corpus.len());
        let mut packet = self.corpus[at].clone();
        let ipv6 = packet[0] >> 4 == 6;
        let source = if self.random.one_in(16) {
            pod_address(self.random.below(4), FOREIGN_HOST, ipv6)
        } else {
            self.own[usize::from(ipv6)]
        };
        put_address(&mut packet, ipv6, false, source);
        if !self.random.one_in(16) {
            let all = &self.destinations[usize::from(ipv6)];
            let destination = all[self.random.below(all.len())];
            put_address(&mut packet, ipv6, true, destination);
        }
        fix_checksum(&mut packet);
        if self.random.one_in(2) {
            self.random.mutate(&mut packet);
            // Else nearly all damage would end at the header checksum.
            if self.random.one_in(2) {
                fix_checksum(&mut packet);
            }
        }
        packet
    }

    /// A virtio header for `packet`: none, a fitting one, or one that contradicts it.
    pub fn vnet(&mut self, packet: &[u8]) -> [u8; VnetHeader::LEN] {
        let random = &mut self.random;
        match random.below(4) {
            0 | 1 => VnetHeader::default().encode(),
            2 => {
                let mut vnet = VnetHeader {
                    flags: 1,
                    gso_type: [0, 1, 4, 5, 0x81, 0x84][random.below(6)],
                    hdr_len: random.bits() as u16,
                    gso_size: [0, 1, 8, 100, 1200, 1448, u16::MAX][random.below(7)],
                    csum_start: random.below(80) as u16,
                    csum_offset: [6, 16][random.below(2)],
                };
                if let Ok(headers) = parse(packet, packet.len())
                    && !random.one_in(4)
                {
                    vnet.csum_start = headers.transport_offset;
                    vnet.csum_offset = headers.checksum_offset().unwrap_or(6);
                }
                vnet.encode()
            }
            _ => {
                let bytes = random.bytes(VnetHeader::LEN);
                bytes.try_into().unwrap()
            }
        }
    }
}

fn base_packet(random: &mut Generator) -> Vec<u8> {
    if !random.one_in(24) {
        return random.packet();
    }
    let ip = if random.one_in(2) { Ip::v4() } else { Ip::v6() };
    let len = random.below(64_000);
    let payload = random.bytes(len);
    if random.one_in(2) {
        Tcp::default().partial(&ip, &payload)
    } else {
        udp_partial(&ip, 40_000, 9, &payload)
    }
}

fn put_address(packet: &mut [u8], ipv6: bool, destination: bool, address: IpAddr) {
    let (start, len) = if ipv6 { (8, 16) } else { (12, 4) };
    let start = start + if destination { len } else { 0 };
    match address {
        IpAddr::V4(v4) => packet[start..start + len].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => packet[start..start + len].copy_from_slice(&v6.octets()),
    }
}

fn fix_checksum(packet: &mut [u8]) {
    let Some(first) = packet.first().filter(|first| **first >> 4 == 4) else {
        return;
    };
    let header_len = usize::from(first & 15) * 4;
    if header_len >= 20 && header_len <= packet.len() {
        packet[10..12].copy_from_slice(&[0; 2]);
        let sum = !naive_sum(&[&packet[..header_len]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}
