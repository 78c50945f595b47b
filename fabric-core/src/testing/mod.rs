//! Packet makers and the naive reference model.
