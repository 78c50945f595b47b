//! Two relays to hold the fabric against: how fast it could be, and how fast the ready-made way is.
//!
//! Comes in: a TUN device, the address of one other relay. Goes out: packets between the two. Never
//! done here: anything a product needs. There is no routing, no identity, no key exchange worth the
//! name; nothing but a yardstick may use them.
//!
//! [`relay`] is the ceiling: AES-128-GCM over UDP with segmentation offload, one thread, nothing sent
//! twice; [`records`] is its format. [`wrapped`] is the async QUIC crate as it comes. [`device`] is
//! the TUN device of both.

pub mod device;
pub mod records;
pub mod relay;
pub mod wrapped;
