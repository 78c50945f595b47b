//! Two lanes: one that is blocked does not hold up the other, and a flow on both keeps its order.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

/// A link whose lanes have room of their own.
struct Gate {
    inner: Sink,
    open: [bool; LANES],
    refusals: [usize; LANES],
}

impl Gate {
    fn new(open: [bool; LANES]) -> Self {
        Self {
            inner: Sink::with_room(usize::MAX),
            open,
            refusals: [0; LANES],
        }
    }

    fn is_open(&mut self, lane: Lane) -> bool {
        self.refusals[lane as usize] += usize::from(!self.open[lane as usize]);
        self.open[lane as usize]
    }
}

impl Engine for Gate {
    fn datagram_room(&mut self) -> usize {
        self.inner.datagram_room
    }

    fn take_datagram(&mut self, record: &Bytes) -> bool {
        self.is_open(Lane::Datagram) && self.inner.take_datagram(record)
    }

    fn take_stream(&mut self, bucket: usize, piece: &mut Bytes) -> Written {
        if self.is_open(Lane::Stream) {
            self.inner.take_stream(bucket, piece)
        } else {
            Written::Bytes(0)
        }
    }

    fn as_stream_record(&mut self, record: &Bytes) -> Bytes {
        record.clone()
    }
}

/// What waits: of three ports some super-packets and some datagrams each. The sender that a record
/// names is its port, and 3 more for datagrams.
fn fill(queue: &mut SendQueue, now: Instant) {
    for number in 0..4 {
        for port in 1..=3_u8 {
            for (class, lane, sender, len) in [
                (Class::Bulk, Lane::Stream, port, SUPER),
                (Class::Latency, Lane::Datagram, port + 3, 1000),
            ] {
                let label = label(u32::from(port), 7, class);
                push(queue, label, lane, record(sender, number, len), now);
            }
        }
    }
}

/// While one lane is blocked all that waits for the other one leaves, of the same ports and of others;
/// the blocked one is asked once a round. When it opens, all has its order and nothing is lost.
#[test]
fn a_blocked_lane_does_not_hold_up_the_other() {
    for blocked in [Lane::Stream, Lane::Datagram] {
        let (mut queue, now) = (SendQueue::default(), Instant::now());
        fill(&mut queue, now);
        let mut gate = Gate::new([true; LANES]);
        gate.open[blocked as usize] = false;
        for round in 1..=3 {
            queue.serve(now, usize::MAX, usize::MAX, &mut gate);
            assert_eq!(gate.refusals[blocked as usize], round);
        }
        assert_eq!(queue.queued(), 12);
        assert!(queue.load[blocked as usize] > 0);
        let free = match blocked {
            Lane::Stream => 4..=6,
            Lane::Datagram => 1..=3,
        };
        assert!((1..=6).all(|sender| (gate.inner.sent[sender] > 0) == free.contains(&sender)));
        gate.open = [true; LANES];
        queue.serve(now, usize::MAX, usize::MAX, &mut gate);
        let mut numbers: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
        let streams = gate.inner.streams.iter().flat_map(|stream| records(stream));
        let datagrams = gate.inner.datagrams.iter().flat_map(|bytes| records(bytes));
        for (sender, number, _) in streams.chain(datagrams) {
            numbers.entry(sender).or_default().push(number);
        }
        assert_eq!(numbers.len(), 6);
        assert!(numbers.values().all(|numbers| numbers == &[0, 1, 2, 3]));
        assert_eq!(queue.load, [0; LANES]);
    }
}

/// Ports that are passed over lose nothing: while streams are blocked others share what there is, and
/// afterwards each has its part again, in whichever line its flows stood.
#[test]
fn passing_over_keeps_the_turns() {
    let (mut queue, mut now) = (SendQueue::default(), Instant::now());
    let mut gate = Gate::new([true; LANES]);
    let (mut blocked, mut open) = ([0; 8], [0; 8]);
    for round in 0..8000_u32 {
        now += Duration::from_micros(100);
        for (port, class, lane, len, count) in [
            (1, Class::Bulk, Lane::Stream, SUPER, 1),
            (2, Class::Latency, Lane::Datagram, 1300, 20),
            (3, Class::Latency, Lane::Datagram, 200, 100),
            (4, Class::Bulk, Lane::Stream, 1000, 20),
        ] {
            for n in 0..count {
                let label = label(port, n % 3, class);
                push(&mut queue, label, lane, record(port as u8, 0, len), now);
            }
        }
        // Blocked for 40 ms of 80.
        let is_blocked = round / 400 % 2 == 0;
        gate.open[Lane::Stream as usize] = !is_blocked;
        gate.inner.room = 12_500;
        let before = gate.inner.sent;
        queue.serve(now, usize::MAX, 16 * 1024, &mut gate);
        let sum = if is_blocked { &mut blocked } else { &mut open };
        for (sender, sum) in sum.iter_mut().enumerate() {
            *sum += gate.inner.sent[sender] - before[sender];
        }
    }
    let share =
        |sums: &[usize; 8], port: usize| sums[port] as f64 / sums.iter().sum::<usize>() as f64;
    assert_eq!((blocked[1], blocked[4]), (0, 0));
    for port in [2, 3] {
        assert!((0.48..0.52).contains(&share(&blocked, port)), "{blocked:?}");
    }
    for port in 1..=4 {
        assert!((0.23..0.27).contains(&share(&open, port)), "{open:?}");
    }
}

/// Records of up to this take a datagram.
const ROOM: usize = 1400;

/// An engine and a path that do the worst that they may: of what they have, stream bytes may be sent
/// before datagrams, and stay away for as long as they like.
#[derive(Default)]
struct Worst {
    room: [usize; LANES],
    datagrams: VecDeque<Bytes>,
    streams: [BytesMut; STREAM_BUCKETS],
    /// Bytes that each stream was given, and how many of them have arrived.
    given: [usize; STREAM_BUCKETS],
    arrived: [usize; STREAM_BUCKETS],
    /// Numbers, in the order in which they arrived.
    numbers: Vec<u32>,
    by_datagram: usize,
}

impl Worst {
    fn send_datagrams(&mut self, most: usize) {
        let sent = self.datagrams.drain(..most.min(self.datagrams.len()));
        for datagram in sent {
            self.numbers
                .extend(records(&datagram).iter().map(|(_, number, _)| number));
            self.by_datagram += 1;
        }
    }

    fn deliver(&mut self, bucket: usize, most: usize) {
        let begin = self.arrived[bucket];
        let end = (begin + most).min(self.given[bucket]);
        let ends = |end: usize| records(&self.streams[bucket][..end]);
        let (before, after) = (ends(begin).len(), ends(end));
        self.numbers
            .extend(after[before..].iter().map(|(_, number, _)| number));
        self.arrived[bucket] = end;
    }
}

impl Engine for Worst {
    fn datagram_room(&mut self) -> usize {
        ROOM
    }

    fn take_datagram(&mut self, record: &Bytes) -> bool {
        let taken = self.room[Lane::Datagram as usize].checked_sub(record.len());
        let Some(left) = taken else { return false };
        self.room[Lane::Datagram as usize] = left;
        self.datagrams.push_back(record.clone());
        true
    }

    fn datagrams_unsent(&mut self) -> usize {
        self.datagrams.iter().map(|record| record.len() + 32).sum()
    }

    fn take_stream(&mut self, bucket: usize, piece: &mut Bytes) -> Written {
        let room = &mut self.room[Lane::Stream as usize];
        let taken = piece.split_to(piece.len().min(*room));
        *room -= taken.len();
        self.given[bucket] += taken.len();
        self.streams[bucket].extend_from_slice(&taken);
        Written::Bytes(taken.len())
    }

    fn as_stream_record(&mut self, record: &Bytes) -> Bytes {
        record.clone()
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// Packets of a flow: how long, how many.
    Push(u32, usize, usize),
    /// The engine has room, and takes so much.
    Serve([usize; LANES], usize),
    /// Datagrams leave and arrive.
    Datagrams(usize),
    /// Bytes of a stream arrive.
    Stream(usize, usize),
    /// The engine sends all that it has.
    Dry,
    /// All that was given has arrived; the other side says so.
    Acknowledged,
}

fn event() -> impl Strategy<Value = Event> {
    let len = prop_oneof![3 => 60..200usize, 1 => 1000..ROOM, 1 => 1401..9000usize];
    prop_oneof![
        6 => (0..5u32, len, 1..6usize).prop_map(|(flow, len, times)| Event::Push(flow, len, times)),
        4 => (0..8000usize, 0..8000usize, 1..8000usize)
            .prop_map(|(datagrams, streams, bytes)| Event::Serve([datagrams, streams], bytes)),
        3 => (1..8usize).prop_map(Event::Datagrams),
        3 => (0..STREAM_BUCKETS, 1..20_000usize)
            .prop_map(|(bucket, bytes)| Event::Stream(bucket, bytes)),
        2 => Just(Event::Dry),
        2 => Just(Event::Acknowledged),
    ]
}

/// The queue in front of it, and what is known of its streams.
struct World {
    queue: SendQueue,
    engine: Worst,
    now: Instant,
    /// The flow of each number.
    flows: Vec<u32>,
    ended: Option<(u64, [usize; STREAM_BUCKETS])>,
}

impl World {
    fn new() -> Self {
        Self {
            queue: SendQueue::default(),
            engine: Worst::default(),
            now: Instant::now(),
            flows: Vec::new(),
            ended: None,
        }
    }

    fn push(&mut self, flow: u32, len: usize) {
        // The last two come of one slot; the others are two ports'.
        let hash = [11, 22, 33, 44, 44][flow as usize];
        let label = label(1 + flow % 2, hash, Class::Latency);
        let lane = if len > ROOM || self.queue.wants_stream(hash) {
            Lane::Stream
        } else {
            Lane::Datagram
        };
        let number = self.flows.len() as u32;
        self.flows.push(flow);
        push(
            &mut self.queue,
            label,
            lane,
            record(1, number, len),
            self.now,
        );
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Push(flow, len, times) => (0..times).for_each(|_| self.push(flow, len)),
            Event::Serve(room, bytes) => {
                self.engine.room = room;
                self.queue.serve(self.now, bytes, 3000, &mut self.engine);
            }
            Event::Datagrams(most) => self.engine.send_datagrams(most),
            Event::Stream(bucket, most) => self.engine.deliver(bucket, most),
            Event::Dry => {
                self.engine.send_datagrams(usize::MAX);
                if self.ended.is_none() {
                    let given = self.engine.given;
                    self.ended = self.queue.end_epoch().map(|number| (number, given));
                }
            }
            Event::Acknowledged => {
                if let Some((number, given)) = self.ended.take() {
                    for (bucket, given) in given.into_iter().enumerate() {
                        let missing = given.saturating_sub(self.engine.arrived[bucket]);
                        self.engine.deliver(bucket, missing);
                    }
                    self.queue.settle(number);
                }
            }
        }
    }

    fn finish(&mut self) {
        while !self.queue.is_empty() {
            self.apply(Event::Dry);
            self.apply(Event::Serve([usize::MAX; LANES], usize::MAX));
        }
        self.apply(Event::Dry);
        (0..STREAM_BUCKETS).for_each(|bucket| self.engine.deliver(bucket, usize::MAX >> 1));
        let mut last = BTreeMap::new();
        for number in &self.engine.numbers {
            let flow = self.flows[*number as usize];
            if let Some(before) = last.insert(flow, *number) {
                assert!(
                    before < *number,
                    "{number} of flow {flow} came after {before}"
                );
            }
        }
        assert_eq!(self.engine.numbers.len(), self.flows.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Packets of any sizes arrive in the order of their flow, whatever the engine sends first and
    /// however long a stream repeats, also if flows share a slot.
    #[test]
    fn flows_of_any_sizes_keep_their_order(events in prop::collection::vec(event(), 1..150)) {
        let mut world = World::new();
        events.into_iter().for_each(|event| world.apply(event));
        world.finish();
    }
}

/// A flow of small packets takes datagrams however many large packets others send, and one that sent a
/// large packet does so again once that has arrived.
#[test]
fn small_packets_take_datagrams() {
    let mut world = World::new();
    for round in 0..100 {
        world.push(0, 64);
        world.push(1, 1500);
        world.push(2, 64);
        world.apply(Event::Serve([usize::MAX; LANES], usize::MAX));
        world.apply(Event::Dry);
        world.apply(Event::Serve([usize::MAX; LANES], usize::MAX));
        assert_eq!(world.engine.by_datagram, 2 * (round + 1));
    }
    world.push(1, 64);
    world.apply(Event::Serve([usize::MAX; LANES], usize::MAX));
    world.apply(Event::Acknowledged);
    world.apply(Event::Dry);
    world.apply(Event::Acknowledged);
    assert_eq!(world.engine.by_datagram, 200);
    world.push(1, 64);
    world.apply(Event::Serve([usize::MAX; LANES], usize::MAX));
    world.apply(Event::Dry);
    assert_eq!(world.engine.by_datagram, 201);
    world.finish();
}
