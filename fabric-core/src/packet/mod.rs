//! IP packets as bytes: parsing, rewriting, checksums, ICMP errors, fragmentation.

pub mod checksum;
pub mod fragment;
pub mod icmp;
pub mod parse;
pub mod rewrite;

pub use parse::{Fragment, Headers, Transport, parse};
