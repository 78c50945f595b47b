//! What a sender that listens to signals makes of the queue.

use fabric_core::testing::packets::{Ip, Tcp};

use super::*;

const STEP: Duration = Duration::from_micros(100);
/// 20 seconds; the second half counts.
const STEPS: u32 = 200_000;
const SEGMENT: f64 = 1448.0;

/// An engine that takes so many bytes and forgets them.
struct Drain(usize);

impl Engine for Drain {
    fn datagram_room(&mut self) -> usize {
        usize::MAX
    }

    fn take_datagram(&mut self, record: &Bytes) -> bool {
        let taken = record.len() <= self.0;
        self.0 -= if taken { record.len() } else { 0 };
        taken
    }

    fn take_stream(&mut self, _: usize, piece: &mut Bytes) -> Written {
        let taken = piece.len().min(self.0);
        self.0 -= taken;
        Written::Bytes(taken)
    }

    fn as_stream_record(&mut self, record: &Bytes) -> Bytes {
        record.clone()
    }
}

/// What came of a run.
#[derive(Debug)]
struct Outcome {
    /// Part of the link that was used.
    used: f64,
    /// Mean time that the backlog took to send.
    waited: Duration,
    accounts: QueueAccounts,
}

/// A TCP in its essentials on a link of `mbit`: its window grows by a segment per round trip and
/// falls to seven tenths at a signal, once per round trip.
fn run(mbit: usize, rtt: Duration, ect: bool) -> Outcome {
    let rate = mbit * 125;
    let ip = Ip {
        traffic_class: if ect { 2 } else { 0 },
        ..Ip::v4()
    };
    // As a kernel makes them: about a millisecond of its rate, at most 64 KiB.
    let packet = Tcp::default().packet(&ip, &vec![0; rate.clamp(2896, 64_000)]);
    let record = Bytes::from([&[0; 8][..], &packet].concat());
    let (mut queue, mut now) = (SendQueue::default(), Instant::now());
    let mut drain = Drain(0);
    let (mut window, mut reacted) = (10.0 * SEGMENT, now);
    let mut flight = std::collections::VecDeque::new();
    let (mut sent, mut backlog) = (0, 0);
    let mut accounts = QueueAccounts::default();
    for step in 0..STEPS {
        now += STEP;
        while flight.front().is_some_and(|back| *back <= now) {
            flight.pop_front();
            window += SEGMENT * record.len() as f64 / window;
        }
        while ((flight.len() + queue.queued() as usize + 1) * record.len()) as f64
            <= window.max(record.len() as f64)
        {
            push(
                &mut queue,
                label(1, 1, Class::Bulk),
                Lane::Stream,
                record.clone(),
                now,
            );
        }
        drain.0 += rate / 10;
        queue.serve(now, usize::MAX, 16 * 1024, &mut drain);
        if queue.is_empty() {
            drain.0 = 0;
        }
        let step_accounts = queue.take_accounts();
        let handed = step_accounts.handed.packets;
        flight.extend((0..handed).map(|_| now + rtt));
        let signals = step_accounts.marked + step_accounts.managed + step_accounts.full;
        if signals > 0 && now > reacted + rtt {
            reacted = now;
            window = (window * 0.7).max(2.0 * SEGMENT);
        }
        if step >= STEPS / 2 {
            sent += handed as usize * record.len();
            backlog += queue.queued() as usize * record.len();
            accounts.add(step_accounts);
        }
    }
    let mean = backlog as f64 / f64::from(STEPS / 2);
    Outcome {
        used: sent as f64 / (rate / 10) as f64 / f64::from(STEPS / 2),
        waited: Duration::from_secs_f64(mean / rate as f64 / 1000.0),
        accounts,
    }
}

/// An elastic sender keeps the link busy, and the queue that it leaves is near the target or, on a
/// slow link, near the two packets that are let be. One that understands marks loses nothing.
#[test]
fn an_elastic_sender_leaves_a_short_queue() {
    for (mbit, rtt_us, used_min, waited_max_ms) in [
        (100, 200, 0.98, 8.0),
        (1000, 200, 0.98, 5.0),
        (1000, 5000, 0.95, 5.0),
        (100, 20_000, 0.9, 8.0),
        (4000, 500, 0.98, 5.0),
    ] {
        for ect in [false, true] {
            let outcome = run(mbit, Duration::from_micros(rtt_us), ect);
            assert!(
                outcome.used > used_min,
                "{mbit} Mbit/s, {rtt_us} us: {outcome:?}"
            );
            let waited_ms = outcome.waited.as_secs_f64() * 1000.0;
            assert!(
                waited_ms < waited_max_ms,
                "{mbit} Mbit/s, {rtt_us} us: {outcome:?}"
            );
            let QueueAccounts {
                managed,
                full,
                marked,
                ..
            } = outcome.accounts;
            assert_eq!(full, 0);
            assert_eq!(if ect { managed } else { marked }, 0);
            assert!(managed + marked > 0, "{outcome:?}");
        }
    }
}

/// A burst that is gone within an interval is let pass whole, and nothing is marked.
#[test]
fn bursts_pass_whole() {
    let (mut queue, mut now) = (SendQueue::default(), Instant::now());
    let mut drain = Drain(0);
    let mut pushed = 0;
    for step in 0..20_000 {
        now += STEP;
        // 2.5 MB every 30 ms on a link of 1 Gbit/s: 20 ms of queue each time.
        if step % 300 == 0 {
            for number in 0..39 {
                push(
                    &mut queue,
                    label(1, 1, Class::Bulk),
                    Lane::Stream,
                    record(1, number, SUPER),
                    now,
                );
                pushed += 1;
            }
        }
        drain.0 += 12_500;
        queue.serve(now, usize::MAX, usize::MAX, &mut drain);
        if queue.is_empty() {
            drain.0 = 0;
        }
    }
    let accounts = queue.take_accounts();
    assert_eq!(accounts.handed.packets + queue.queued(), pushed);
    assert_eq!(
        (accounts.managed, accounts.full, accounts.marked),
        (0, 0, 0)
    );
}
