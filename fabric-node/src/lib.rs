//! The worker daemon and the operator CLI: all the I/O around [`fabric_core`].
//!
//! A packet's way: [`dataplane`] reads it from a TUN device, asks [`fabric_core::forward`], and
//! writes it to another device or hands it to a [`tunnel`] connection; the peer's `dataplane` takes
//! it from there. Everything else serves that: [`control`] turns sources of truth into snapshots,
//! [`cni`] attaches pods, [`admin`] answers the operator, [`app`] wires it all.
#![deny(unsafe_code)]

pub mod admin;
pub mod app;
pub mod causes;
pub mod cli;
pub mod cni;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod lab;
pub mod measure;
pub mod node_id;
pub mod offloads;
pub mod pki;
pub mod signals;
pub mod signer;
pub mod sys;
pub mod terminal;
pub mod tunnel;
