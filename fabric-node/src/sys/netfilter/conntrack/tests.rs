#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::sys::netfilter::wire::{Message, messages};

/// What a kernel (6.18) answered to [`dump`] while it had five flows: UDP and TCP to Services of both
/// families, translated to 10.244.1.9 and fd44:0:0:1::9, and UDP to a pod directly.
const RECORDED: &[u8] = include_bytes!("dump.bin");

fn flows(answer: &[u8]) -> Vec<Translated> {
    let data = messages(answer).filter_map(|message| match message {
        Message::Data(kind, payload) => translated(kind, payload),
        Message::Acknowledged | Message::Done => None,
        Message::Refused(errno) => panic!("error {errno}"),
    });
    data.collect()
}

/// Translated flows are found in what a kernel said, as they leave it; the direct one is not among them.
#[test]
fn a_recorded_dump_is_read() {
    let end = |text: &str, port| (text.parse::<IpAddr>().unwrap(), port);
    let flow = |source, destination, protocol| Translated {
        source,
        destination,
        protocol,
        is_closing: false,
    };
    let wanted = [
        flow(end("10.244.1.1", 40_000), end("10.244.1.9", 5353), 17),
        flow(end("fd44:0:0:1::1", 40_002), end("fd44:0:0:1::9", 5353), 17),
        flow(end("10.244.1.1", 40_003), end("10.244.1.9", 8080), 6),
    ];
    let found = flows(RECORDED);
    for flow in wanted {
        assert!(found.contains(&flow), "{flow:?} is not in {found:?}");
    }
    assert_eq!(found.len(), 3);
    assert_eq!(messages(RECORDED).last(), Some(Message::Done));
}

/// A TCP state from FIN_WAIT on is that of a flow that is ending.
#[test]
fn an_ending_flow_is_told() {
    const SYN_SENT: u8 = 1;
    // The state is the only attribute of its kind in its place: length 5, kind 1, value, padding.
    let attribute = [5, 0, 1, 0, SYN_SENT, 0, 0, 0];
    let places: Vec<usize> = RECORDED
        .windows(attribute.len())
        .enumerate()
        .filter_map(|(at, bytes)| (bytes == attribute).then_some(at))
        .collect();
    assert_eq!(places.len(), 1);
    for (state, is_closing) in [(1, false), (3, false), (4, true), (7, true), (8, true)] {
        let mut answer = RECORDED.to_vec();
        *answer.get_mut(places[0] + 4).unwrap() = state;
        let tcp = flows(&answer).into_iter().find(|flow| flow.protocol == 6);
        assert_eq!(tcp.unwrap().is_closing, is_closing, "{state}");
    }
}

/// The request asks for all entries: header, length 20, kind, flags.
#[test]
fn the_request_is_a_dump() {
    let request = dump();
    assert_eq!(request.len(), 20);
    assert_eq!(request.get(..8), Some(&[20, 0, 0, 0, 1, 1, 1, 3][..]));
}

proptest! {
    /// An answer that was damaged anywhere makes nobody panic.
    #[test]
    fn damage_is_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut answer = RECORDED.to_vec();
        for (at, byte) in changes {
            *at.get_mut(answer.as_mut_slice()) = byte;
        }
        answer.truncate(keep.index(RECORDED.len()));
        for message in messages(&answer) {
            if let Message::Data(kind, payload) = message {
                let _ = translated(kind, payload);
            }
        }
    }
}
