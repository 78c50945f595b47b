//! A floor beneath the congestion window of any controller, a ceiling on short paths, and a watch on
//! who asks for it and on how much is on its way.
//!
//! Comes in: what acknowledgements and losses say. Goes out: a window between [`WINDOW_BYTES_MIN`] and
//! what keeps the queue on the way short, whether the engine has looked at it, how many bytes nobody
//! has acknowledged, and up to when nothing is unknown. Never done here: deciding how a window grows or
//! shrinks by losses.
//!
//! **The floor.** A controller makes the window smaller with every loss and larger only when it is
//! used up (RFC 9002 section 7.8). Between nodes that have little to say it only ever shrinks, to two
//! packets in the end. When the path is cut those two are in flight at once, and nothing but probes at
//! doubling intervals would find out that it is back.
//!
//! **The ceiling.** Where nothing is lost a controller lets the window grow until the receiver's socket
//! buffer is full: megabytes that every other packet waits behind. So on a path of a data centre
//! ([`SHORT_PATH`]) the window also follows the delay: beyond [`QUEUE_DELAY_MAX`] above the shortest
//! round trip lately seen it shrinks, below it grows. On longer paths somebody else's queue is the
//! likelier cause of a delay, and giving way to it would only leave the path to others.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use quinn_proto::{
    RttEstimator,
    congestion::{Controller, ControllerFactory, ControllerMetrics},
};

/// Smallest congestion window (bytes): two super-packets. Small beside what a connection may begin
/// with, and enough for a thousand small packets.
pub const WINDOW_BYTES_MIN: u64 = 128 * 1024;
/// The ceiling is never below this (bytes): 8 Gbit/s at a round trip of 0.225 ms.
const CEILING_BYTES_MIN: u64 = 224 * 1024;
/// Paths with a shorter round trip have a ceiling.
const SHORT_PATH: Duration = Duration::from_millis(2);
/// Waiting on the way beyond which the ceiling comes down.
const QUEUE_DELAY_MAX: Duration = Duration::from_micros(225);
/// The shortest round trip is that of the present and the last interval of this length, so that a
/// new route is learned.
const SHORTEST_OF: Duration = Duration::from_secs(10);

/// Makes controllers that stand on the floor and below the ceiling.
pub(super) struct Bounded<F>(pub(super) Arc<F>);

impl<F: ControllerFactory> ControllerFactory for Bounded<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Between {
            inner: self.0.clone().build(now, current_mtu),
            ceiling: Ceiling::new(now),
            watch: WindowWatch::since(now),
        })
    }
}

/// Sees whether the engine has asked for the window of a connection, and what is in flight.
///
/// The engine asks before each packet that needs room in the window, and only then. If it has asked
/// and sent nothing, it has something to send and was held back, by the window or by pacing; if it
/// has not asked, it has nothing. It tells so in no other way.
#[derive(Clone, Debug, Default)]
pub struct WindowWatch(Arc<Seen>);

#[derive(Debug, Default)]
struct Seen {
    asked: AtomicBool,
    in_flight: AtomicU64,
    /// When the connection began; `None` without a controller.
    begin: Option<Instant>,
    /// Nanoseconds from then on, see [`WindowWatch::known_until`].
    known_until: AtomicU64,
}

/// Granularity of the engine's timers (RFC 9002 section 6.1.2): no loss is declared sooner.
const GRANULARITY: Duration = Duration::from_millis(1);

impl WindowWatch {
    fn since(now: Instant) -> Self {
        Self(Arc::new(Seen {
            begin: Some(now),
            ..Seen::default()
        }))
    }

    /// The watch on a connection's controller; one that never sees anything if the controller was
    /// not made here.
    pub(super) fn of(controller: &dyn Controller) -> Self {
        let between = controller.clone_box().into_any().downcast::<Between>();
        between.map(|between| between.watch).unwrap_or_default()
    }

    /// Forgets what was seen.
    pub(super) fn reset(&self) {
        self.0.asked.store(false, Relaxed);
    }

    /// Whether the window was asked for since.
    pub(super) fn was_asked(&self) -> bool {
        self.0.asked.load(Relaxed)
    }

    /// Bytes of QUIC packets sent and neither acknowledged nor declared lost. Packets that only
    /// acknowledge are among them until the next acknowledgement comes.
    pub(super) fn in_flight(&self) -> u64 {
        self.0.in_flight.load(Relaxed)
    }

    /// All packets sent up to this time have been acknowledged or declared lost.
    pub(super) fn known_until(&self) -> Option<Instant> {
        let nanos = self.0.known_until.load(Relaxed);
        let begin = self.0.begin?;
        (nanos > 0).then(|| begin + Duration::from_nanos(nanos))
    }

    /// A packet that left at `sent` was acknowledged on a path with this round trip.
    ///
    /// Of the packets sent before it, those are declared lost with this acknowledgement that left
    /// 9/8 of a round trip ago and were not acknowledged (RFC 9002 section 6.1.2). The round trip
    /// may become as long as this packet has just taken; a safe margin covers that and the rounding.
    fn was_acked(&self, now: Instant, sent: Instant, round_trip: Duration) {
        let Some(begin) = self.0.begin else { return };
        let taken = now.saturating_duration_since(sent);
        let margin = round_trip.max(taken).max(GRANULARITY) * 2;
        let nanos = |time: Instant| {
            let since = time.saturating_duration_since(begin).as_nanos();
            u64::try_from(since).unwrap_or(u64::MAX)
        };
        let before = nanos(sent).saturating_sub(1);
        let long_ago = now.checked_sub(margin).map_or(0, nanos);
        self.0.known_until.fetch_max(before.min(long_ago), Relaxed);
    }

    fn was_sent(&self, bytes: u64) {
        let in_flight = self.in_flight().saturating_add(bytes);
        self.0.in_flight.store(in_flight, Relaxed);
    }

    fn was_lost(&self, bytes: u64) {
        let in_flight = self.in_flight().saturating_sub(bytes);
        self.0.in_flight.store(in_flight, Relaxed);
    }
}

/// Used by one thread at a time; the watch is atomic because the engine wants controllers `Sync`.
struct Between {
    inner: Box<dyn Controller>,
    ceiling: Ceiling,
    watch: WindowWatch,
}

/// What the delay allows.
#[derive(Clone, Debug)]
struct Ceiling {
    /// `None` on a long path.
    bytes: Option<u64>,
    shortest: [Duration; 2],
    since: Instant,
    judged: Instant,
}

impl Ceiling {
    fn new(now: Instant) -> Self {
        Self {
            bytes: None,
            shortest: [Duration::MAX; 2],
            since: now,
            judged: now,
        }
    }

    /// A round trip has been measured while the controller would allow `window` bytes.
    fn measured(&mut self, now: Instant, round_trip: Duration, window: u64) {
        if now >= self.since + SHORTEST_OF {
            self.since = now;
            self.shortest = [Duration::MAX, self.shortest[0]];
        }
        self.shortest[0] = self.shortest[0].min(round_trip);
        let shortest = self.shortest[0].min(self.shortest[1]);
        if shortest >= SHORT_PATH {
            self.bytes = None;
            return;
        }
        // Once per round trip: a change takes that long to show.
        if now < self.judged + round_trip {
            return;
        }
        self.judged = now;
        let ceiling = self.bytes.unwrap_or(window).min(window);
        let waited = round_trip.saturating_sub(shortest);
        let next = if waited > QUEUE_DELAY_MAX {
            ceiling - ceiling / 8
        } else {
            ceiling + ceiling / 16
        };
        self.bytes = Some(next.max(CEILING_BYTES_MIN));
    }

    fn apply(&self, window: u64) -> u64 {
        self.bytes.map_or(window, |bytes| window.min(bytes))
    }
}

impl Controller for Between {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.watch.was_sent(bytes);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.watch.was_acked(now, sent, rtt.conservative());
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
        self.ceiling
            .measured(now, rtt.get(), self.inner.window().max(WINDOW_BYTES_MIN));
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.watch.0.in_flight.store(in_flight, Relaxed);
        self.inner
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.watch.was_lost(lost_bytes);
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.watch.0.asked.store(true, Relaxed);
        self.ceiling
            .apply(self.inner.window())
            .max(WINDOW_BYTES_MIN)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.inner.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            ceiling: self.ceiling.clone(),
            watch: self.watch.clone(),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window().max(WINDOW_BYTES_MIN)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use quinn_proto::congestion::CubicConfig;

    use super::*;

    /// Losses without end take the window down to the floor and not below it.
    #[test]
    fn losses_end_at_the_floor() {
        let begin = Instant::now();
        let mut cubic = CubicConfig::default();
        cubic.initial_window(1024 * 1024);
        let mut controller = Arc::new(Bounded(Arc::new(cubic))).build(begin, 1452);
        assert_eq!(controller.window(), 1024 * 1024);
        for second in 1..100 {
            let now = begin + Duration::from_secs(second);
            controller.on_congestion_event(now, now, second % 2 == 0, 1000);
        }
        assert_eq!(controller.window(), WINDOW_BYTES_MIN);
        assert_eq!(controller.clone_box().window(), WINDOW_BYTES_MIN);
    }

    /// What is in flight is what was sent less what was acknowledged or lost.
    #[test]
    fn what_is_in_flight_is_seen() {
        let now = Instant::now();
        let factory = Arc::new(Bounded(Arc::new(CubicConfig::default())));
        let mut controller = factory.build(now, 1452);
        let watch = WindowWatch::of(&*controller);
        controller.on_sent(now, 4_000, 3);
        controller.on_sent(now, 1_000, 4);
        assert_eq!(watch.in_flight(), 5_000);
        controller.on_end_acks(now, 2_500, false, Some(2));
        controller.on_congestion_event(now, now, false, 500);
        assert_eq!(watch.in_flight(), 2_000);
        controller.on_congestion_event(now, now, false, 9_000);
        assert_eq!(watch.in_flight(), 0);
    }

    /// What was sent a while before an acknowledged packet is known of; what is younger than two round
    /// trips, or than that packet, is not.
    #[test]
    fn what_is_known_of_is_seen() {
        let begin = Instant::now();
        let ms = |ms| begin + Duration::from_millis(ms);
        let round_trip = Duration::from_millis(10);
        let watch = WindowWatch::since(begin);
        assert_eq!(watch.known_until(), None);
        watch.was_acked(ms(110), ms(100), round_trip);
        assert_eq!(watch.known_until(), Some(ms(90)));
        // A packet from before says nothing new.
        watch.was_acked(ms(120), ms(50), round_trip);
        assert_eq!(watch.known_until(), Some(ms(90)));
        // It took longer than others, so others may.
        watch.was_acked(ms(150), ms(125), round_trip);
        assert_eq!(watch.known_until(), Some(ms(100)));
        watch.was_acked(ms(1000), ms(995), Duration::ZERO);
        assert_eq!(watch.known_until(), Some(ms(990)));
        watch.was_acked(ms(2000), ms(2000), Duration::ZERO);
        assert_eq!(watch.known_until(), Some(ms(1998)));
        assert_eq!(WindowWatch::default().known_until(), None);
    }

    fn step(ceiling: &mut Ceiling, now: &mut Instant, round_trip_us: u64, times: u32) {
        for _ in 0..times {
            *now += Duration::from_millis(5);
            ceiling.measured(*now, Duration::from_micros(round_trip_us), 4 << 20);
        }
    }

    /// On a short path a standing queue brings the ceiling down to its least, and its end lets it up
    /// again; the window follows.
    #[test]
    fn the_ceiling_follows_the_delay() {
        let mut now = Instant::now();
        let mut ceiling = Ceiling::new(now);
        assert_eq!(ceiling.apply(4 << 20), 4 << 20);
        step(&mut ceiling, &mut now, 200, 1);
        step(&mut ceiling, &mut now, 1_500, 100);
        assert_eq!(ceiling.apply(4 << 20), CEILING_BYTES_MIN);
        step(&mut ceiling, &mut now, 300, 200);
        assert_eq!(ceiling.apply(4 << 20), 4 << 20);
    }

    /// On a long path delay says nothing, and a path that became long is found out.
    #[test]
    fn long_paths_have_no_ceiling() {
        let mut now = Instant::now();
        let mut ceiling = Ceiling::new(now);
        step(&mut ceiling, &mut now, 40_000, 10);
        step(&mut ceiling, &mut now, 90_000, 100);
        assert_eq!(ceiling.apply(4 << 20), 4 << 20);
        let mut ceiling = Ceiling::new(now);
        step(&mut ceiling, &mut now, 200, 10);
        step(&mut ceiling, &mut now, 30_000, 10_000);
        assert_eq!(ceiling.apply(4 << 20), 4 << 20);
    }
}
