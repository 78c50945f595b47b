//! The packet decision of the fabric, pure: no I/O, no clock, no sockets, no unsafe.
//!
//! A packet's way, each step with the module that does it:
//!
//! 1. [`packet::parse()`] checks the IP packet once and keeps its offsets ([`packet::Headers`]).
//! 2. [`offload`] checks the virtio metadata that came with it ([`offload::Offload`]).
//! 3. [`forward`] decides: source check, [`route`] lookup in the [`snapshot`], TTL, size. The result
//!    is a [`verdict::Verdict`]: deliver, send to a peer, answer, or drop for one
//!    [`verdict::DropReason`]. Where the host's kernel translates addresses, [`detour`] knows which
//!    replies must pass it.
//! 4. [`packet::icmp`] writes the answer a router owes, within [`limiter`]'s rate.
//! 5. [`record`] frames the packet for the way to the peer node, and takes it apart there.
//! 6. [`counters`] proves that every packet received has exactly one outcome.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

pub mod counters;
pub mod detour;
pub mod forward;
pub mod ids;
pub mod limiter;
pub mod offload;
pub mod packet;
pub mod record;
pub mod route;
pub mod snapshot;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod verdict;
