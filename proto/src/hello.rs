//! The first message on the control stream of a node-to-node connection, both ways.
//!
//! Protocol buffers, because unknown fields must survive while nodes of two versions meet. The
//! message is preceded by its length as a 4-byte big-endian number.

/// Newest version of the node-to-node protocol that this crate describes.
pub const PROTOCOL_VERSION: u32 = 1;
/// Largest hello a node reads (bytes).
pub const HELLO_BYTES_MAX: usize = 4096;

/// What a node says of itself. Its identity is in its certificate, not here.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Hello {
    /// Newest protocol version spoken.
    #[prost(uint32, tag = "1")]
    pub protocol_version: u32,
    /// Data-plane workers of this node, each with a UDP port of its own: base port + index.
    #[prost(uint32, tag = "2")]
    pub workers: u32,
    /// Changes with every start of the daemon.
    #[prost(uint64, tag = "3")]
    pub boot_id: u64,
    /// Which of the connections between the two nodes this is: it joins the dialler's worker
    /// `connection % workers` to the other side's worker by the same rule.
    #[prost(uint32, tag = "5")]
    pub connection: u32,
    /// Version of the software, for people.
    #[prost(string, tag = "4")]
    pub software: String,
}
