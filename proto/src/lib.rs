//! Messages between the parts of the fabric, and nothing else: no sockets, no logic.
//!
//! * [`cni`]: the plugin asks the daemon on its CNI socket.
//! * [`admin`]: the operator CLI asks the daemon on its admin socket.
//! * [`hello`]: what two nodes tell each other first on a new connection (feature `hello`).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod admin;
pub mod cni;
#[cfg(feature = "hello")]
pub mod hello;
