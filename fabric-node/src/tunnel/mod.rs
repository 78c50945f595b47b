//! Packets between nodes: QUIC connections driven by the worker's own loop.
//!
//! Comes in: records for a peer, UDP datagrams from the underlay, the time. Goes out: UDP datagrams
//! in large batches, records from authenticated peers. Never done here: decisions about packets.
//!
//! From the outside in:
//!
//! 1. [`endpoint`]: all connections of one worker. Dials, accepts, authenticates, reconnects.
//! 2. [`link`]: the trait behind which the engine sits; [`quic`] is the engine.
//! 3. [`framing`] takes streams apart into records; [`queue`] bounds what waits for a connection.
//! 4. [`socket`] moves UDP with segmentation and receive offload, out of [`buffers`]; [`outbox`] is its
//!    way out, [`segmentation`] knows where that must do without batches.
//! 5. [`transport`] holds the QUIC settings, [`congestion`] bounds one of them, [`secrets`] what must
//!    survive a restart.

pub mod buffers;
pub mod congestion;
pub mod dialer;
pub mod endpoint;
pub mod framing;
pub mod link;
pub mod membership;
pub mod outbox;
pub mod queue;
pub mod quic;
pub mod report;
pub mod secrets;
pub mod segmentation;
pub mod socket;
pub mod transport;
