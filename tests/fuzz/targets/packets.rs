//! Packets of pods: virtio header and packet, through everything that looks at their bytes.

use std::{net::IpAddr, num::NonZeroU16};

use fabric_core::{
    offload::{Gso, GsoKind, Offload, VnetHeader, coalesce::Coalescer, segment},
    packet::{Headers, checksum, fragment, icmp, icmp::IcmpError, parse, rewrite},
    testing::packets::{Generator, naive_sum},
};

use crate::fuzz::{Outcome, Target};

/// Smallest MTU of IPv4 (RFC 791 3.2).
const MTU_MIN: usize = 68;

/// A virtio header of 10 bytes and a packet.
pub(super) struct Packets;

impl Target for Packets {
    fn name(&self) -> &'static str {
        "packets"
    }

    fn make(&self, corpus: &[Vec<u8>], random: &mut Generator) -> Vec<u8> {
        let frame = &corpus[random.below(corpus.len())];
        let mut header = frame[..VnetHeader::LEN.min(frame.len())].to_vec();
        header.resize(VnetHeader::LEN, 0);
        if random.one_in(3) {
            random.mutate(&mut header);
            header.resize(VnetHeader::LEN, 0);
        }
        let mut packet = match frame.get(VnetHeader::LEN..) {
            Some(packet) if random.one_in(4) => packet.to_vec(),
            _ => random.packet(),
        };
        if random.one_in(2) {
            random.mutate(&mut packet);
        }
        [header, packet].concat()
    }

    fn run(&self, input: &[u8]) -> Result<Outcome, String> {
        let Some((header, packet)) = input.split_first_chunk::<{ VnetHeader::LEN }>() else {
            return Ok("no virtio header".into());
        };
        let headers = match parse(packet, packet.len()) {
            Ok(headers) => headers,
            Err(reason) => return Ok(format!("dropped {reason:?}").into()),
        };
        let length = headers.packet_len as usize;
        if length > packet.len() || usize::from(headers.transport_offset) > length {
            return Err(format!("headers beyond the packet: {headers:?}"));
        }
        let mut packet = packet.to_vec();
        let vnet = VnetHeader::decode(*header);
        let offload = vnet.offload_of_local(&mut packet, &headers);
        let _ = checksum::verify(&packet, &headers);
        answers(&packet, &headers)?;
        pieces(
            &packet,
            &headers,
            u16::from_be_bytes([header[4], header[5]]),
        )?;
        joined(&packet, &headers)?;
        hop(&mut packet, &headers)?;
        Ok(match offload {
            Ok(Offload { gso: Some(_), .. }) => "super-packet",
            Ok(_) => "packet",
            Err(_) => "packet with a bad virtio header",
        }
        .into())
    }

    fn expected(&self) -> &'static [&'static str] {
        &[
            "packet",
            "super-packet",
            "packet with a bad virtio header",
            "dropped Truncated",
            "dropped BadVersion",
            "dropped BadHeaderChecksum",
        ]
    }

    fn per_mille(&self) -> u64 {
        100
    }
}

/// One TTL less, and a header checksum that is still right.
fn hop(packet: &mut [u8], headers: &Headers) -> Result<(), String> {
    if headers.ttl == 0 || !rewrite::decrement_ttl(packet, headers) {
        return Ok(());
    }
    let again = parse(packet, packet.len()).map_err(|reason| format!("one hop on: {reason:?}"))?;
    if again.ttl + 1 == headers.ttl {
        Ok(())
    } else {
        Err("the TTL did not go down by one".into())
    }
}

/// ICMP errors are small packets that parse, with a checksum that is right.
fn answers(packet: &[u8], headers: &Headers) -> Result<(), String> {
    let gateway: IpAddr = if headers.is_ipv6() {
        [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].into()
    } else {
        [10, 244, 1, 1].into()
    };
    for error in [
        IcmpError::TimeExceeded,
        IcmpError::HostUnreachable,
        IcmpError::TooBig { mtu: 1_500 },
    ] {
        let mut answer = Vec::new();
        if !icmp::write_error(error, gateway, packet, headers, &mut answer) {
            return Err("no answer in the family of the packet".into());
        }
        let read = parse(&answer, answer.len()).map_err(|reason| format!("answer: {reason:?}"))?;
        let limit = if headers.is_ipv6() { 1_280 } else { 576 };
        if answer.len() > limit || read.destination != headers.source {
            return Err("an answer that is too large or to somebody else".into());
        }
        if !headers.is_ipv6() && naive_sum(&[&answer[20..]]) != 0xffff {
            return Err("an answer with a wrong checksum".into());
        }
    }
    Ok(())
}

/// Segments and fragments are no larger than asked for.
fn pieces(packet: &[u8], headers: &Headers, size: u16) -> Result<(), String> {
    let mut scratch = Vec::new();
    let size = NonZeroU16::new(size.max(100)).unwrap_or(NonZeroU16::MIN);
    for kind in [GsoKind::Tcp, GsoKind::TcpEcn, GsoKind::Udp] {
        let gso = Gso { kind, size };
        let mut largest = 0;
        let cut = segment::segment(packet, headers, gso, &mut scratch, |piece| {
            largest = largest.max(piece.len());
        });
        let overhead = usize::from(headers.payload_offset().unwrap_or_default());
        if cut.is_ok() && largest > overhead + usize::from(size.get()) {
            return Err("a segment that is too large".into());
        }
    }
    let mut largest = 0;
    let split = fragment::split(packet, headers, MTU_MIN, &mut scratch, |piece| {
        largest = largest.max(piece.len());
    });
    if split.is_ok() && largest > MTU_MIN {
        return Err("a fragment that is too large".into());
    }
    Ok(())
}

/// What goes into the coalescer comes out.
fn joined(packet: &[u8], headers: &Headers) -> Result<(), String> {
    let mut coalescer = Coalescer::default();
    let mut bytes = 0;
    for _ in 0..2 {
        coalescer.push(packet, headers, &mut |piece: &mut [u8], _| {
            bytes += piece.len()
        });
    }
    coalescer.flush(&mut |piece: &mut [u8], _| bytes += piece.len());
    if bytes >= headers.packet_len as usize {
        Ok(())
    } else {
        Err("a packet was lost".into())
    }
}
