//! What tests of this crate and of others build on: the naive reference model of the fabric.

pub mod model;
