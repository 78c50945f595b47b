//! Random operations, and what must hold of all of them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Operation {
    Push {
        port: u8,
        flow: u32,
        datagram: bool,
        len: usize,
        times: u32,
    },
    Serve {
        room: usize,
        bytes: usize,
        piece: usize,
        datagram_room: usize,
    },
    Wait(u64),
}

fn operation() -> impl Strategy<Value = Operation> {
    let len = prop_oneof![
        9..100usize,
        1000..1500usize,
        2000..2100usize,
        60_000..65_000usize
    ];
    let push = (
        1..8u8,
        0..40u32,
        any::<bool>(),
        len,
        prop_oneof![Just(1), 1..200u32],
    )
        .prop_map(|(port, flow, datagram, len, times)| Operation::Push {
            port,
            flow,
            datagram: datagram && len < 3000,
            len,
            times,
        });
    let serve = (
        0..300_000usize,
        1..300_000usize,
        20..70_000usize,
        900..3000usize,
    )
        .prop_map(|(room, bytes, piece, datagram_room)| Operation::Serve {
            room,
            bytes,
            piece,
            datagram_room,
        });
    prop_oneof![3 => push, 3 => serve, 1 => (0..30_000u64).prop_map(Operation::Wait)]
}

/// Every packet ever queued, by its number: whose it was and how long.
#[derive(Default)]
struct Model {
    pushed: Vec<(u8, u32, usize)>,
    handed: u64,
    dropped: u64,
}

impl Model {
    /// What must hold at any time.
    fn check(&mut self, queue: &mut SendQueue) {
        let accounts = queue.take_accounts();
        self.handed += accounts.handed.packets;
        self.dropped += accounts.full + accounts.managed;
        assert_eq!(accounts.cut, 0, "no stream ends");
        assert_eq!(accounts.marked, 0, "none of these is a packet");
        assert_eq!(
            self.pushed.len() as u64,
            self.handed + self.dropped + queue.queued()
        );
        for lane in [Lane::Datagram, Lane::Stream] {
            // A datagram that went over to the streams is not held against their bound.
            let slack = if lane == Lane::Stream { 1 << 20 } else { 0 };
            assert!(queue.load[lane as usize] <= bound(lane) + slack);
        }
        assert_eq!(queue.is_empty(), queue.queued() == 0);
    }

    /// What must hold of all that came out: each whole, once, in the order of its flow.
    fn check_output(&self, sink: &Sink) {
        let mut last: BTreeMap<(u8, u32, bool), u32> = BTreeMap::new();
        let mut seen = vec![false; self.pushed.len()];
        let streams = sink.streams.iter().flat_map(|stream| records(stream));
        let datagrams = sink.datagrams.iter().flat_map(|record| records(record));
        let all = streams
            .map(|found| (true, found))
            .chain(datagrams.map(|found| (false, found)));
        for (on_stream, (sender, number, len)) in all {
            let (port, flow, pushed_len) = self.pushed[number as usize];
            assert_eq!((sender, len), (port, pushed_len));
            assert!(
                !std::mem::replace(&mut seen[number as usize], true),
                "{number} twice"
            );
            if let Some(before) = last.insert((port, flow, on_stream), number) {
                assert!(
                    before < number,
                    "{number} of {port}/{flow} came after {before}"
                );
            }
        }
        assert_eq!(
            seen.iter().filter(|seen| **seen).count() as u64,
            self.handed
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever is queued and however little the engine takes at a time: every packet is handed over
    /// whole and once or dropped and counted, flows keep their order, and the bounds hold.
    #[test]
    fn nothing_is_lost_untold(operations in prop::collection::vec(operation(), 1..120)) {
        let (mut queue, mut now) = (SendQueue::default(), Instant::now());
        let (mut sink, mut model) = (Sink::with_room(0), Model::default());
        for operation in operations {
            match operation {
                Operation::Push { port, flow, datagram, len, times } => {
                    let (lane, class) = if datagram {
                        (Lane::Datagram, Class::Latency)
                    } else {
                        (Lane::Stream, Class::Bulk)
                    };
                    for _ in 0..times {
                        let number = model.pushed.len() as u32;
                        // TCP and the rest are never one flow.
                        model.pushed.push((port, flow + 1000 * u32::from(datagram), len));
                        let label = label(u32::from(port), flow, class);
                        push(&mut queue, label, lane, record(port, number, len), now);
                    }
                }
                Operation::Serve { room, bytes, piece, datagram_room } => {
                    sink.room = room;
                    sink.datagram_room = datagram_room;
                    let served = queue.serve(now, bytes, piece, &mut sink);
                    prop_assert_eq!(served, room - sink.room);
                    prop_assert!(served < bytes + piece.max(3000));
                }
                Operation::Wait(us) => now += Duration::from_micros(us),
            }
            model.check(&mut queue);
        }
        sink.room = usize::MAX;
        queue.serve(now, usize::MAX, usize::MAX, &mut sink);
        model.check(&mut queue);
        prop_assert_eq!(queue.queued(), 0);
        prop_assert_eq!(queue.load, [0; LANES]);
        model.check_output(&sink);
    }
}
