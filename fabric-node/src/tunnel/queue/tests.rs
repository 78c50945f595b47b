//! The queue in front of a simulated engine, by a clock of the test's own.
#![allow(clippy::unwrap_used)]

mod elastic;
mod fairness;
mod lanes;
mod model;

use std::{collections::BTreeSet, time::Duration};

use bytes::BytesMut;
use fabric_core::ids::PortId;

use super::*;
use crate::tunnel::buffers::footprint;

/// A super-packet with its record header.
const SUPER: usize = 65_000;

/// An engine that takes so many bytes and keeps what it took.
#[derive(Default)]
struct Sink {
    room: usize,
    datagram_room: usize,
    /// Room that the datagram refused last wants: until then there is none for streams either, for
    /// both lanes share it.
    kept: usize,
    streams: [BytesMut; STREAM_BUCKETS],
    datagrams: Vec<Bytes>,
    /// Bytes of each sender: the first byte of a record names it.
    sent: [usize; 8],
    /// Whose record each stream is in the midst of, and how much of it is to come.
    within: [(usize, usize); STREAM_BUCKETS],
}

impl Sink {
    fn with_room(room: usize) -> Self {
        Self {
            room,
            datagram_room: 1400,
            ..Self::default()
        }
    }
}

/// A record of the tests: `sender, length:u32, number:u32`, then whatever.
const RECORD_LEN_MIN: usize = 9;

fn record(sender: u8, number: u32, len: usize) -> Bytes {
    let mut bytes = vec![sender; len.max(RECORD_LEN_MIN)];
    let len = bytes.len() as u32;
    bytes[1..5].copy_from_slice(&len.to_be_bytes());
    bytes[5..9].copy_from_slice(&number.to_be_bytes());
    bytes.into()
}

/// Takes a stream apart into sender, number and length of its records.
fn records(mut stream: &[u8]) -> Vec<(u8, u32, usize)> {
    let mut found = Vec::new();
    while let Some((head, _)) = stream.split_at_checked(RECORD_LEN_MIN) {
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let (sender, len, number) = (head[0], number(1) as usize, number(5));
        let Some((body, rest)) = stream.split_at_checked(len) else {
            break;
        };
        assert!(body[RECORD_LEN_MIN..].iter().all(|byte| *byte == sender));
        found.push((sender, number, len));
        stream = rest;
    }
    found
}

impl Engine for Sink {
    fn datagram_room(&mut self) -> usize {
        self.datagram_room
    }

    fn take_datagram(&mut self, record: &Bytes) -> bool {
        if self.room < record.len() {
            self.kept = record.len();
            return false;
        }
        self.kept = 0;
        self.room -= record.len();
        self.sent[usize::from(record[0])] += record.len();
        self.datagrams.push(record.clone());
        true
    }

    fn take_stream(&mut self, bucket: usize, piece: &mut Bytes) -> Written {
        // A record's first bytes are taken together or not at all: they name its sender.
        if self.room < self.kept.max(16) {
            return Written::Bytes(0);
        }
        let taken = piece.len().min(self.room);
        self.room -= taken;
        let taken = piece.split_to(taken);
        let mut rest = &taken[..];
        while !rest.is_empty() {
            let (sender, left) = &mut self.within[bucket];
            if *left == 0 {
                *sender = usize::from(rest[0]);
                *left = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            }
            let n = rest.len().min(*left);
            self.sent[*sender] += n;
            *left -= n;
            rest = &rest[n..];
        }
        self.streams[bucket].extend_from_slice(&taken);
        Written::Bytes(taken.len())
    }

    fn as_stream_record(&mut self, record: &Bytes) -> Bytes {
        record.clone()
    }
}

fn label(port: u32, flow: u32, class: Class) -> Label {
    Label {
        port: PortId(port),
        flow,
        class,
    }
}

fn push(queue: &mut SendQueue, label: Label, lane: Lane, record: Bytes, now: Instant) {
    let pending = Pending {
        pinned: footprint(record.len()),
        account: Some(record.len() as u32),
        record,
    };
    queue.push(lane, label, pending, now);
}

/// A full queue takes from the port that has the most, the oldest first, and never from one that has
/// little.
#[test]
fn who_has_the_most_loses() {
    for (lane, class, len) in [
        (Lane::Stream, Class::Bulk, SUPER),
        (Lane::Datagram, Class::Latency, 1000),
    ] {
        let (mut queue, now) = (SendQueue::default(), Instant::now());
        let before = |queue: &mut SendQueue| {
            for number in 0..3 {
                push(
                    queue,
                    label(2, number, class),
                    lane,
                    record(2, number, len),
                    now,
                );
            }
        };
        before(&mut queue);
        for number in 0..10_000 {
            push(
                &mut queue,
                label(1, number % 5, class),
                lane,
                record(1, number, len),
                now,
            );
            assert!(queue.load[lane as usize] <= bound(lane));
        }
        before(&mut queue);
        let waiting = queue.queued();
        assert_eq!(queue.accounts.full + waiting, 10_006);
        let mut sink = Sink::with_room(usize::MAX);
        queue.serve(now, usize::MAX, usize::MAX, &mut sink);
        assert_eq!(sink.sent[2], 6 * len);
        let numbers: BTreeSet<u32> = sink
            .datagrams
            .iter()
            .flat_map(|record| records(record))
            .chain(sink.streams.iter().flat_map(|stream| records(stream)))
            .filter(|(sender, ..)| *sender == 1)
            .map(|(_, number, _)| number)
            .collect();
        assert!(numbers.len() > 40);
        // Of each flow the newest are left, and of none more than one more than of another.
        let left = |flow| numbers.iter().filter(|number| *number % 5 == flow).count() as u32;
        for flow in 0..5 {
            assert!(left(flow).abs_diff(left(0)) <= 1, "{numbers:?}");
            let oldest = 10_000 + flow - 5 * left(flow);
            let newest = (oldest..10_000).step_by(5);
            assert!(newest.clone().all(|number| numbers.contains(&number)));
        }
        assert_eq!((queue.queued(), queue.is_empty()), (0, true));
        assert_eq!(queue.take_accounts().handed.packets, waiting);
    }
}

/// Small records that each keep a large buffer are counted with that, and tiny ones with what the
/// queue itself spends on them.
#[test]
fn memory_is_what_counts() {
    for len in [9, 60, 2047, 2049, 20_000] {
        let (mut queue, now) = (SendQueue::default(), Instant::now());
        for number in 0..120_000 {
            push(
                &mut queue,
                label(1, number, Class::Bulk),
                Lane::Stream,
                record(1, number, len),
                now,
            );
        }
        let each = footprint(len) + ENTRY_BYTES;
        assert_eq!(queue.queued() as usize, STREAM_QUEUE_BYTES_MAX / each);
    }
}

/// A datagram that no longer fits goes on a stream, in its place in the flow, and is counted once. What
/// is behind it in its flow follows it until it has arrived.
#[test]
fn oversized_datagrams_take_a_stream() {
    let (mut queue, now) = (SendQueue::default(), Instant::now());
    let label = label(1, 1, Class::Latency);
    for number in 0..3 {
        push(
            &mut queue,
            label,
            Lane::Datagram,
            record(1, number, 1000),
            now,
        );
    }
    let mut sink = Sink {
        datagram_room: 900,
        ..Sink::with_room(1500)
    };
    queue.serve(now, usize::MAX, usize::MAX, &mut sink);
    assert_eq!(queue.queued(), 2);
    sink.room = usize::MAX;
    sink.datagram_room = 1000;
    queue.serve(now, usize::MAX, usize::MAX, &mut sink);
    let stream = sink
        .streams
        .iter()
        .find(|stream| !stream.is_empty())
        .unwrap();
    assert_eq!(records(stream), [0, 1, 2].map(|number| (1, number, 1000)));
    let arrived = queue.end_epoch().unwrap();
    queue.settle(arrived);
    push(&mut queue, label, Lane::Datagram, record(1, 3, 1000), now);
    queue.serve(now, usize::MAX, usize::MAX, &mut sink);
    assert_eq!(sink.datagrams.len(), 1);
    assert_eq!(
        queue.take_accounts().handed,
        Tally {
            packets: 4,
            bytes: 4000
        }
    );
    assert_eq!(queue.load, [0; LANES]);
}

/// What an ended stream had of a record is lost with the record, which is counted so; the next one
/// begins on a new stream.
#[test]
fn an_ended_stream_loses_one_record() {
    struct Ending(Sink, u32);
    impl Engine for Ending {
        fn datagram_room(&mut self) -> usize {
            0
        }
        fn take_datagram(&mut self, _: &Bytes) -> bool {
            false
        }
        fn take_stream(&mut self, bucket: usize, piece: &mut Bytes) -> Written {
            self.1 += 1;
            if self.1 == 2 {
                self.0.streams[bucket].clear();
                return Written::Ended;
            }
            self.0.streams[bucket].extend_from_slice(piece);
            Written::Bytes(piece.len())
        }
        fn as_stream_record(&mut self, record: &Bytes) -> Bytes {
            record.clone()
        }
    }
    let (mut queue, now) = (SendQueue::default(), Instant::now());
    for number in 0..2 {
        push(
            &mut queue,
            label(1, 1, Class::Bulk),
            Lane::Stream,
            record(1, number, SUPER),
            now,
        );
    }
    let mut engine = Ending(Sink::default(), 0);
    for _ in 0..3 {
        queue.serve(now, usize::MAX, 16 * 1024, &mut engine);
    }
    let stream = engine
        .0
        .streams
        .iter()
        .find(|stream| !stream.is_empty())
        .unwrap();
    assert_eq!(records(stream), [(1, 1, SUPER)]);
    let accounts = queue.take_accounts();
    assert_eq!(
        (accounts.handed.packets, accounts.cut, queue.queued()),
        (1, 1, 0)
    );
    assert_eq!((accounts.full, accounts.managed), (0, 0));
}

/// Queues of ports that have gone are used again: neither memory nor time grows with their number.
#[test]
fn idle_ports_are_forgotten() {
    let (mut queue, now) = (SendQueue::default(), Instant::now());
    for port in 0..1000 {
        let label = label(port, port, Class::Bulk);
        push(&mut queue, label, Lane::Stream, record(1, port, 100), now);
        queue.serve(
            now,
            usize::MAX,
            usize::MAX,
            &mut Sink::with_room(usize::MAX),
        );
    }
    assert!(queue.turns.ports_known() <= 17);
    assert_eq!(queue.take_accounts().handed.packets, 1000);
}
