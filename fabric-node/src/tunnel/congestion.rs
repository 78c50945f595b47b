//! A floor beneath the congestion window of any controller, and a watch on who asks for it.
//!
//! Comes in: what acknowledgements and losses say. Goes out: a window that is never smaller than
//! [`WINDOW_BYTES_MIN`], and whether the engine has looked at it. Never done here: deciding how a
//! window grows or shrinks.
//!
//! A controller makes the window smaller with every loss and larger only when it is used up (RFC 9002
//! section 7.8). Between nodes that have little to say it only ever shrinks, to two packets in the end.
//! When the path is cut those two are in flight at once, and nothing but probes at doubling intervals
//! would find out that it is back.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use quinn_proto::{
    RttEstimator,
    congestion::{Controller, ControllerFactory, ControllerMetrics},
};

/// Smallest congestion window (bytes): two super-packets. Small beside what a connection may begin
/// with, and enough for a thousand small packets.
pub const WINDOW_BYTES_MIN: u64 = 128 * 1024;

/// Makes controllers that stand on the floor.
pub(super) struct WithFloor<F>(pub(super) Arc<F>);

impl<F: ControllerFactory> ControllerFactory for WithFloor<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Floored(
            self.0.clone().build(now, current_mtu),
            WindowWatch::default(),
        ))
    }
}

/// Sees whether the engine has asked for the window of a connection.
///
/// The engine asks before each packet that needs room in the window, and only then. If it has asked
/// and sent nothing, it has something to send and was held back, by the window or by pacing; if it
/// has not asked, it has nothing. It tells so in no other way.
#[derive(Clone, Debug, Default)]
pub struct WindowWatch(Arc<AtomicBool>);

impl WindowWatch {
    /// The watch on a connection's controller; one that never sees anything if the controller was
    /// not made here.
    pub(super) fn of(controller: &dyn Controller) -> Self {
        let floored = controller.clone_box().into_any().downcast::<Floored>();
        floored.map(|floored| floored.1).unwrap_or_default()
    }

    /// Forgets what was seen.
    pub(super) fn reset(&self) {
        self.0.store(false, Relaxed);
    }

    /// Whether the window was asked for since.
    pub(super) fn was_asked(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// Used by one thread at a time; the watch is atomic because the engine wants controllers `Sync`.
struct Floored(Box<dyn Controller>, WindowWatch);

impl Controller for Floored {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.0.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.0.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.0
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.0
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.0.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.1.0.store(true, Relaxed);
        self.0.window().max(WINDOW_BYTES_MIN)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.0.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self(self.0.clone_box(), self.1.clone()))
    }

    fn initial_window(&self) -> u64 {
        self.0.initial_window().max(WINDOW_BYTES_MIN)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use quinn_proto::congestion::CubicConfig;

    use super::*;

    /// Losses without end take the window down to the floor and not below it.
    #[test]
    fn losses_end_at_the_floor() {
        let begin = Instant::now();
        let mut cubic = CubicConfig::default();
        cubic.initial_window(1024 * 1024);
        let mut controller = Arc::new(WithFloor(Arc::new(cubic))).build(begin, 1452);
        assert_eq!(controller.window(), 1024 * 1024);
        for second in 1..100 {
            let now = begin + Duration::from_secs(second);
            controller.on_congestion_event(now, now, second % 2 == 0, 1000);
        }
        assert_eq!(controller.window(), WINDOW_BYTES_MIN);
        assert_eq!(controller.clone_box().window(), WINDOW_BYTES_MIN);
    }
}
