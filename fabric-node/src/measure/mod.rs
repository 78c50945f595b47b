//! Traffic between two network namespaces and what it came to: throughput, packets per second, loss,
//! round-trip times.
//!
//! Comes in: where the client runs, the address of the server, a [`Load`]. Goes out: a
//! [`Measurement`] with the field names of iperf3, or [`rtt::Samples`]. Never done here: finding
//! pods, printing.
//!
//! * [`iperf`] runs the program iperf3; [`meter`] is what measures without it.
//! * [`rtt`] measures round trips; alone, or beside a load.
//! * [`result`] is what both meters answer; [`child`] keeps hold of the programs that run.

pub mod child;
pub mod iperf;
pub mod meter;
pub mod result;
pub mod rtt;

use std::time::Duration;

pub use self::result::Measurement;
use crate::lab::interrupt::Interrupt;

/// Longest load (seconds): an hour.
pub const SECONDS_MAX: u32 = 3600;
/// Most streams of one load and direction: iperf3 allows no more.
pub const STREAMS_MAX: u32 = 128;
/// Smallest payload of a datagram (bytes): a number and a time; iperf3 wants as much.
pub const DATAGRAM_BYTES_MIN: u32 = 16;
/// Largest payload of a datagram (bytes): what UDP over IPv4 can say (RFC 768, RFC 791).
pub const DATAGRAM_BYTES_MAX: u32 = 65_507;
/// Highest rate that can be asked for (bit/s).
pub const BITRATE_MAX: u64 = 1_000_000_000_000;

/// Pause between two looks at whether to stop, while something is waited for.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// What is sent, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Which way.
    pub direction: Direction,
    /// Parallel streams, in each direction; 1 to [`STREAMS_MAX`].
    pub streams: u32,
    /// How long is sent (seconds); 1 to [`SECONDS_MAX`].
    pub seconds: u32,
}

/// What carries the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// As fast as it goes.
    Tcp,
    /// One datagram per system call.
    Udp {
        /// Payload of one datagram (bytes), [`DATAGRAM_BYTES_MIN`] to [`DATAGRAM_BYTES_MAX`].
        size: u32,
        /// Rate of each stream (bit/s of payload); 0 for as fast as it goes.
        bitrate: u64,
    },
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    #[default]
    Forward,
    /// From the server to the client.
    Reverse,
    /// Both at once.
    Both,
}

impl Direction {
    /// Whether the client sends.
    #[must_use]
    pub fn forward(self) -> bool {
        self != Self::Reverse
    }

    /// Whether the server sends.
    #[must_use]
    pub fn reverse(self) -> bool {
        self != Self::Forward
    }
}

impl Load {
    /// Length of the intervals that are reported.
    #[must_use]
    pub fn interval(&self) -> Duration {
        // Enough points for a curve, and no more than about a hundred of them.
        match self.seconds {
            0..=20 => Duration::from_millis(500),
            seconds => Duration::from_secs(u64::from(seconds.div_ceil(100))),
        }
    }
}

/// Who waits for a measurement: asked again and again while it runs, from any thread.
pub trait Watch: Sync {
    /// Goes on, or says why not.
    ///
    /// # Errors
    ///
    /// The measurement is to stop.
    fn check(&self) -> anyhow::Result<()>;
}

impl Watch for Interrupt {
    fn check(&self) -> anyhow::Result<()> {
        Self::check(self)
    }
}
