//! The built-in meter: what measures where there is no iperf3, and the echo for round trips in any
//! case.
//!
//! A [`server::Server`] listens on one TCP and one UDP port. Each TCP connection begins with a
//! greeting of the server and a request of the client (see [`wire`]) and then carries one stream of
//! TCP, or stands beside one stream of UDP. The UDP port echoes. [`client`] takes a load apart into
//! streams and the streams' accounts together again. [`tcp`] and [`udp`] are the streams themselves,
//! each half the same on either side.

pub mod client;
pub mod server;
mod tcp;
mod udp;
mod wire;

use std::time::{Duration, Instant};

use super::Watch;

pub use self::wire::Greeting;

/// How far the meter's port is above that of iperf3's server beside it.
pub const PORT_OFFSET: u16 = 1;

/// Bytes of one write: as iperf3's over TCP.
pub(super) const BLOCK_BYTES: usize = 128 * 1024;
/// How long a stream may last beyond the time that it sends: queues that drain, and the account.
pub(super) const EXTRA_MAX: Duration = Duration::from_secs(10);

/// What each interval carried, on one side of one stream.
#[derive(Clone, Debug)]
struct Curve {
    begin: Instant,
    interval: Duration,
    /// Bytes and datagrams.
    parts: Vec<(u64, u64)>,
}

impl Curve {
    fn new(begin: Instant, interval: Duration) -> Self {
        Self {
            begin,
            interval,
            parts: Vec::new(),
        }
    }

    fn add(&mut self, now: Instant, bytes: usize, packets: u64) {
        let part = (now - self.begin).as_nanos() / self.interval.as_nanos().max(1);
        let part = usize::try_from(part)
            .unwrap_or(usize::MAX)
            .min(CURVE_PARTS_MAX - 1);
        if self.parts.len() <= part {
            self.parts.resize(part + 1, (0, 0));
        }
        if let Some(part) = self.parts.get_mut(part) {
            part.0 += bytes as u64;
            part.1 += packets;
        }
    }

    fn seconds(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }
}

/// Most intervals of one curve: a load has a hundred and some, those of what is late included.
const CURVE_PARTS_MAX: usize = 1000;

/// When to stop waiting: at the deadline, or when told so.
struct Patience<'a> {
    watch: &'a dyn Watch,
    deadline: Instant,
}

impl Patience<'_> {
    fn check(&self) -> anyhow::Result<()> {
        self.watch.check()?;
        anyhow::ensure!(
            Instant::now() < self.deadline,
            "the other end did not answer in time"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests;
