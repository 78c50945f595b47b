//! What tests of this crate and of others build on: packet makers and the naive reference model.

pub mod model;
pub mod packets;
