//! IP packets as bytes: parsing, rewriting, checksums, ICMP errors, fragmentation.

pub mod checksum;
pub(crate) mod field;
pub mod fragment;
pub mod icmp;
pub mod parse;
pub mod quote;
pub mod rewrite;

pub use parse::{Fragment, HEADER_PREFIX_LEN, Headers, Transport, parse};

/// IANA protocol numbers that the fabric knows (IPv4 `Protocol`, IPv6 `Next Header`).
pub mod protocol {
    /// IPv6 hop-by-hop options (RFC 8200 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// IPv6 routing header (RFC 8200 4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200 4.5).
    pub const FRAGMENT: u8 = 44;
    /// Authentication header (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options (RFC 8200 4.6).
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// Bytes of an IPv4 header without options (RFC 791 3.1).
pub const IPV4_HEADER_LEN: usize = 20;
/// Bytes of the fixed IPv6 header (RFC 8200 3).
pub const IPV6_HEADER_LEN: usize = 40;
/// Bytes of a TCP header without options (RFC 9293 3.1).
pub const TCP_HEADER_LEN: usize = 20;
/// Bytes of a UDP header (RFC 768).
pub const UDP_HEADER_LEN: usize = 8;
/// Bytes before the body of every ICMP and ICMPv6 message the fabric reads or writes.
pub const ICMP_HEADER_LEN: usize = 8;
