//! What UDP sockets can do beyond the standard library: batches that the kernel cuts, batches that it
//! has joined, several messages with one call, and what their headers said.
//!
//! Comes in: a socket, payloads and where they go, memory for what arrives. Goes out: system calls,
//! messages with their addresses and marks, errors as they are. Never done here: deciding anything.

mod control;
mod options;
mod receive;
mod send;

pub use self::{
    options::{check_segmentation, omit_checksums, prepare, set_coalescing},
    receive::{Received, receive},
    send::{Payloads, send},
};
