//! The queue in front of a real engine.

use fabric_core::{offload::Offload, record::StreamHeader};

use super::*;
use crate::tunnel::congestion::WINDOW_BYTES_MIN;

/// A large packet, and its record.
const PACKET: usize = 60_000;
const RECORD: usize = PACKET + 8;
/// What the congestion window of these pairs begins with.
const WINDOW: usize = 1024 * 1024;

pub(super) fn send_large(endpoint: &mut Endpoint, now: Instant) {
    let header = StreamHeader {
        packet_len: PACKET as u32,
        offload: Offload::NONE,
    };
    let label = Label {
        port: PortId(1),
        flow: 1,
        class: Class::Bulk,
    };
    let pending = Pending {
        record: Bytes::from([&header.encode()[..], &[7; PACKET]].concat()),
        pinned: RECORD,
        account: Some(PACKET as u32),
    };
    endpoint
        .link(PEER, 1)
        .unwrap()
        .send_stream(label, pending, now);
}

/// Packets beyond what congestion control lets the engine send wait in the queue, however often the
/// engine is asked for something to send.
#[test]
fn packets_wait_in_the_queue() {
    let mut pair = Pair::connected();
    let _ = pair.a.take_accounts();
    for _ in 0..60 {
        send_large(&mut pair.a, pair.now);
    }
    for _ in 0..50 {
        pair.a.transmit(pair.now);
        // Time for pacing; too little for anything to count as lost.
        pair.now += Duration::from_micros(200);
        let index = pair.a.peers[&PEER].live[0];
        pair.a.mark(index);
    }
    let handed = pair.a.take_accounts().queues.handed.packets as usize * RECORD;
    let slack = SEND_BYTES_MAX + 2 * RECORD;
    assert!(handed <= WINDOW + slack, "{handed}");
    assert!(handed + RECORD >= WINDOW_BYTES_MIN as usize, "{handed}");
    assert_eq!(pair.a.queued() as usize, 60 - handed / RECORD);
}

/// An engine that gets little at a time never waits for more: whatever is queued arrives, in as many
/// turns as the windows need.
#[test]
fn a_transfer_does_not_stall() {
    const PACKETS: usize = 2000;
    let mut pair = Pair::connected();
    let _ = pair.a.take_accounts();
    let (mut sent, mut arrived, mut turns) = (0, 0, 0);
    while arrived < PACKETS {
        let room = 20_usize.saturating_sub(pair.a.queued() as usize);
        for _ in 0..room.min(PACKETS - sent) {
            send_large(&mut pair.a, pair.now);
            sent += 1;
        }
        turn(&mut pair.a, pair.now);
        pair.b.receive(pair.now);
        pair.b.take_records(pair.now, |_, record| {
            if let Received::Stream { packet_len, .. } = record {
                assert_eq!(packet_len, PACKET);
                arrived += 1;
            }
        });
        turn(&mut pair.b, pair.now);
        pair.now += Duration::from_micros(500);
        turns += 1;
        assert!(turns < 4000, "{arrived} of {PACKETS} after {turns} turns");
    }
    let queues = pair.a.take_accounts().queues;
    assert_eq!(
        (queues.handed.packets, pair.a.queued()),
        (PACKETS as u64, 0)
    );
}

/// What is lost with the stream that had its beginning is counted with what ended connections lose,
/// and once.
#[test]
fn a_cut_record_counts_as_disconnected() {
    let mut pair = Pair::connected();
    pair.a.lost = 3;
    pair.a.queues.cut = 2;
    let accounts = pair.a.take_accounts();
    assert_eq!((accounts.lost, accounts.queues.full), (5, 0));
    assert_eq!(pair.a.take_accounts().lost, 0);
}
