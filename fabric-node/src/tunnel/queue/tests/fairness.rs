//! Who gets how much of a link, and who waits for how long.

use super::*;

/// A link of a fixed rate behind the queue, fed as the engine is: little at a time.
struct Link {
    queue: SendQueue,
    sink: Sink,
    now: Instant,
    /// Bytes per millisecond.
    rate: usize,
    piece: usize,
}

impl Link {
    fn new(mbit: usize) -> Self {
        let now = Instant::now();
        Self {
            queue: SendQueue::default(),
            sink: Sink::with_room(0),
            now,
            rate: mbit * 125,
            piece: 16 * 1024,
        }
    }

    /// One step of the clock; returns what left: whose it was, and how many bytes.
    fn step(&mut self) -> [usize; 8] {
        let before = self.sink.sent;
        self.now += STEP;
        self.sink.room += self.rate * STEP.as_micros() as usize / 1000;
        self.queue
            .serve(self.now, usize::MAX, self.piece, &mut self.sink);
        // Room that nobody wanted is not there later.
        if self.queue.is_empty() {
            self.sink.room = 0;
        }
        std::array::from_fn(|sender| self.sink.sent[sender] - before[sender])
    }

    fn send(&mut self, port: u32, flow: u32, class: Class, len: usize) {
        let lane = match class {
            Class::Bulk => Lane::Stream,
            Class::Latency => Lane::Datagram,
        };
        let record = record(port as u8, 0, len);
        push(
            &mut self.queue,
            label(port, flow, class),
            lane,
            record,
            self.now,
        );
    }
}

const STEP: Duration = Duration::from_micros(100);

/// Four ports that send as much as they can, in packets of any size, over one flow or many, as TCP
/// or not, get a quarter each.
#[test]
fn ports_get_equal_shares() {
    let mut link = Link::new(1000);
    for round in 0..20_000_u32 {
        for (port, flows, class, len, count) in [
            (1, 1, Class::Bulk, SUPER, 1),
            (2, 50, Class::Bulk, 20_000, 4),
            (3, 1, Class::Latency, 1300, 30),
            (4, 1000, Class::Latency, 100, 200),
        ] {
            for n in 0..count {
                link.send(port, (round * count + n) % flows, class, len);
            }
        }
        link.step();
    }
    let total: usize = link.sink.sent.iter().sum();
    for port in 1..=4 {
        let share = link.sink.sent[port] as f64 / (total as f64 / 4.0);
        assert!(
            (0.95..1.05).contains(&share),
            "port {port}: {share}, {:?}",
            link.sink.sent
        );
    }
    let used = total as f64 / (link.rate as f64 * 2000.0);
    assert!((0.99..1.01).contains(&used), "{used}");
}

/// What a port does not want goes to the others in equal parts.
#[test]
fn unused_shares_are_shared() {
    let mut link = Link::new(1000);
    for round in 0..20_000 {
        for port in [1, 2, 3] {
            link.send(port, 0, Class::Bulk, SUPER);
        }
        // A tenth of the link.
        if round % 8 == 0 {
            link.send(4, 0, Class::Bulk, 10_000);
        }
        link.step();
    }
    let total: usize = link.sink.sent.iter().sum();
    let part = |port: usize| link.sink.sent[port] as f64 / total as f64;
    assert!((0.099..0.101).contains(&part(4)), "{}", part(4));
    for port in 1..=3 {
        assert!((0.285..0.315).contains(&part(port)), "{}", part(port));
    }
}

/// A packet of a flow that says little waits for no more than the piece that is on its way, whoever
/// else floods, its own pod included; as TCP or not.
#[test]
fn the_small_go_first() {
    for class in [Class::Bulk, Class::Latency] {
        let mut link = Link::new(100);
        link.piece = 16 * 1024;
        let mut asked: Option<Instant> = None;
        let (mut worst, mut served) = (Duration::ZERO, 0);
        for round in 0..100_000_u32 {
            for port in 1..=4 {
                if round % 10 == 0 {
                    for flow in 0..8 {
                        link.send(port, flow, Class::Bulk, SUPER);
                    }
                }
                link.send(port, 9, Class::Latency, 1300);
            }
            if asked.is_none() && round % 97 == 0 {
                asked = Some(link.now);
                let pending = record(7, 0, 100);
                let (flow, others) = (1_000_003, [9, 0, 1, 2, 3, 4, 5, 6, 7]);
                let place = |flow| PortQueue::flow_of(class, flow);
                assert!(others.iter().all(|other| place(*other) != place(flow)));
                let lane = if class == Class::Bulk {
                    Lane::Stream
                } else {
                    Lane::Datagram
                };
                // From a pod that floods, in a flow of its own.
                push(
                    &mut link.queue,
                    label(1, flow, class),
                    lane,
                    pending,
                    link.now,
                );
            }
            if link.step()[7] > 0
                && let Some(at) = asked.take()
            {
                worst = worst.max(link.now - at);
                served += 1;
            }
        }
        assert!(served > 900, "{served}");
        // 16 KiB at 100 Mbit/s are 1.3 ms. The stream may be in the midst of a super-packet, 5.2 ms.
        let bound = if class == Class::Bulk { 6 } else { 2 };
        assert!(
            worst <= Duration::from_millis(bound),
            "{class:?}: {worst:?}"
        );
    }
}

/// A pod that makes a new flow of every packet does not go first with all of them.
#[test]
fn many_small_beginnings_are_no_way_round() {
    let mut link = Link::new(100);
    for round in 0..20_000_u32 {
        link.send(1, 0, Class::Bulk, SUPER);
        for n in 0..50 {
            link.send(2, round * 50 + n, Class::Latency, 200);
        }
        link.step();
    }
    let share = link.sink.sent[1] as f64 / (link.sink.sent[1] + link.sink.sent[2]) as f64;
    assert!((0.47..0.53).contains(&share), "{share}");
}
