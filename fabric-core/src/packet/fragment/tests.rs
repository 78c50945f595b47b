//! Fragments against a reassembler that knows nothing of how they were cut.
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use etherparse::Ipv4HeaderSlice;
use proptest::prelude::*;

use super::*;
use crate::{
    packet::parse,
    testing::packets::{Ip, udp},
};

fn cut(packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, DropReason> {
    let headers = parse(packet, packet.len()).unwrap();
    let mut fragments = Vec::new();
    split(packet, &headers, mtu, &mut Vec::new(), |fragment| {
        fragments.push(fragment.to_vec());
    })?;
    Ok(fragments)
}

/// Puts the payload together by the offsets that the headers tell; also says whether more follows.
fn reassemble(fragments: &[Vec<u8>]) -> (Vec<u8>, usize, bool) {
    let mut parts: Vec<(usize, &[u8], bool)> = fragments
        .iter()
        .map(|fragment| {
            let header = Ipv4HeaderSlice::from_slice(fragment).unwrap();
            let offset = usize::from(header.fragments_offset().value()) * 8;
            let payload = &fragment[usize::from(header.ihl()) * 4..];
            (offset, payload, header.more_fragments())
        })
        .collect();
    parts.sort_by_key(|part| part.0);
    let first = parts[0].0;
    let mut payload = Vec::new();
    for (index, (offset, bytes, more)) in parts.iter().enumerate() {
        assert_eq!(*offset, first + payload.len(), "gap or overlap");
        assert!(*more || index + 1 == parts.len(), "ends early");
        payload.extend_from_slice(bytes);
    }
    (payload, first, parts.last().unwrap().2)
}

fn ip(flags_and_offset: u16, options: Vec<u8>) -> Ip {
    Ip {
        identification: 0x4242,
        flags_and_offset,
        options,
        ..Ip::v4()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Fragments fit the MTU, are valid packets of the same datagram, and give its payload back;
    /// also those of a packet that is a fragment itself.
    #[test]
    fn fragments_reassemble(
        payload in prop::collection::vec(any::<u8>(), 1..4000),
        mtu in 68_usize..1600,
        option_words in 0_usize..=10,
        offset in 0_u16..1000,
        more: bool,
    ) {
        let word = offset | if more { 0x2000 } else { 0 };
        let packet = ip(word, vec![1; option_words * 4]).packet(132, &payload);
        let fragments = cut(&packet, mtu).unwrap();
        for fragment in &fragments {
            prop_assert!(fragment.len() <= mtu);
            let headers = parse(fragment, fragment.len()).unwrap();
            prop_assert_eq!(headers.packet_len as usize, fragment.len());
            let header = Ipv4HeaderSlice::from_slice(fragment).unwrap();
            prop_assert_eq!(header.identification(), 0x4242);
            prop_assert_eq!(header.protocol().0, 132);
            prop_assert_eq!(header.ttl(), 64);
        }
        let (again, first, last_more) = reassemble(&fragments);
        prop_assert_eq!(again, payload);
        prop_assert_eq!(first, usize::from(offset) * 8);
        prop_assert_eq!(last_more, more);
    }

    /// Cutting fragments once more for a smaller link gives the same datagram.
    #[test]
    fn cuts_twice(payload in prop::collection::vec(any::<u8>(), 1500..4000), mtu in 68_usize..600) {
        let packet = udp(&ip(0, Vec::new()), 1, 2, &payload);
        let mut fragments = Vec::new();
        for fragment in cut(&packet, 1400).unwrap() {
            fragments.extend(cut(&fragment, mtu).unwrap());
        }
        let (again, first, more) = reassemble(&fragments);
        prop_assert_eq!(&again[..], &packet[20..]);
        prop_assert_eq!((first, more), (0, false));
    }
}

/// A packet that fits goes on as it is, without the bytes behind it.
#[test]
fn leaves_what_fits() {
    let packet = udp(&ip(0, Vec::new()), 1, 2, &[7; 100]);
    let mut frame = packet.clone();
    frame.extend_from_slice(&[0; 20]);
    assert_eq!(cut(&frame, packet.len()).unwrap(), [packet]);
}

/// Options with the copied bit are in every fragment, others in the first only.
#[test]
fn copies_marked_options() {
    // Record route (not copied), no-operation, router alert (copied), end.
    let options = vec![7, 3, 4, 1, 148, 4, 0, 0];
    let packet = ip(0, options.clone()).packet(132, &[9; 600]);
    let fragments = cut(&packet, 300).unwrap();
    let options_of = |at: usize| {
        let header = Ipv4HeaderSlice::from_slice(&fragments[at]).unwrap();
        header.options().to_vec()
    };
    assert_eq!(fragments.len(), 3);
    assert_eq!(options_of(0), options);
    assert_eq!(options_of(1), [148, 4, 0, 0]);
    assert_eq!(options_of(2), [148, 4, 0, 0]);
}

/// DF, IPv6, and links too small for any piece are refused, with nothing emitted.
#[test]
fn refuses_what_may_not_be_cut() {
    let big = [7; 2000];
    for packet in [udp(&Ip::v4(), 1, 2, &big), udp(&Ip::v6(), 1, 2, &big)] {
        assert_eq!(cut(&packet, 1500), Err(DropReason::TooBig));
    }
    let packet = udp(&ip(0, Vec::new()), 1, 2, &big);
    for mtu in [0, 19, 20, 27] {
        assert_eq!(cut(&packet, mtu), Err(DropReason::TooBig));
    }
    assert!(cut(&packet, 28).is_ok());
}

/// A fragment that would begin beyond the offset field is refused, as is a buffer too short.
#[test]
fn refuses_impossible_sizes() {
    // 25 pieces of 8 bytes: the last may begin at 0x1fff and not one piece later.
    let packet = ip(0x1fff - 24, Vec::new()).packet(132, &[7; 200]);
    assert_eq!(cut(&packet, 28).unwrap().len(), 25);
    let packet = ip(0x1fff - 23, Vec::new()).packet(132, &[7; 200]);
    assert_eq!(cut(&packet, 28), Err(DropReason::BadTotalLength));
    let packet = udp(&ip(0, Vec::new()), 1, 2, &[7; 200]);
    let headers = parse(&packet, packet.len()).unwrap();
    let result = split(&packet[..100], &headers, 80, &mut Vec::new(), |_| {
        panic!("emitted")
    });
    assert_eq!(result, Err(DropReason::Truncated));
}
