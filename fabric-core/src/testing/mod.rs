//! Packet makers and the naive reference model.

pub mod packets;
