//! Fields in network byte order at an offset: bounds are checked here and nowhere else.

/// Where fields of the IPv4 header lie (RFC 791 3.1).
pub(crate) mod ipv4 {
    pub(crate) const TOTAL_LENGTH: usize = 2;
    pub(crate) const IDENTIFICATION: usize = 4;
    pub(crate) const FLAGS_AND_OFFSET: usize = 6;
    pub(crate) const TTL: usize = 8;
    pub(crate) const CHECKSUM: usize = 10;

    pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
    pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
    pub(crate) const OFFSET_MASK: u16 = 0x1fff;
}

/// Where fields of the IPv6 header lie (RFC 8200 3).
pub(crate) mod ipv6 {
    pub(crate) const PAYLOAD_LENGTH: usize = 4;
    pub(crate) const HOP_LIMIT: usize = 7;
}

/// Where fields of the TCP header lie (RFC 9293 3.1), and its flag bits.
pub(crate) mod tcp {
    pub(crate) const SEQUENCE: usize = 4;
    pub(crate) const FLAGS: usize = 13;
    pub(crate) const CHECKSUM: u16 = 16;

    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const ECE: u8 = 0x40;
    pub(crate) const CWR: u8 = 0x80;
}

/// Where fields of the UDP header lie (RFC 768).
pub(crate) mod udp {
    pub(crate) const LENGTH: usize = 4;
    pub(crate) const CHECKSUM: u16 = 6;
}

/// Reads 16 bits; `None` beyond the end.
pub(crate) fn get_u16(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*field))
}

/// Reads 32 bits; `None` beyond the end.
pub(crate) fn get_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*field))
}

/// Writes `value`; `None`, and nothing written, beyond the end.
pub(crate) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    let field = bytes.get_mut(at..)?.first_chunk_mut()?;
    *field = value;
    Some(())
}

/// Writes 16 bits; `None`, and nothing written, beyond the end.
pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    put(bytes, at, value.to_be_bytes())
}
