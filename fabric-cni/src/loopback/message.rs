//! Pure: the few messages of NETLINK_ROUTE that concern `lo` (linux/netlink.h, linux/rtnetlink.h,
//! linux/if_addr.h; all numbers in the byte order of the machine).
//!
//! Never done here: trusting a length. What does not fit its frame ends the walk.

use std::net::IpAddr;

/// `LOOPBACK_IFINDEX` (net/flow.h of the kernel): `lo` is the first interface of every namespace.
pub(super) const LO_INDEX: u32 = 1;

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
pub(super) const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;

const IFF_UP: u32 = 0x1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// `struct ifinfomsg`: family, padding, type, index, flags, change.
const LINK_LEN: usize = 16;
/// `struct ifaddrmsg`: family, prefix length, flags, scope, index.
const ADDRESS_LEN: usize = 8;
/// `struct rtattr`.
const ATTRIBUTE_LEN: usize = 4;

/// Asks for `lo` to be up or down; answered by an error message, with 0 for success.
pub(super) fn set_up(sequence: u32, up: bool) -> Vec<u8> {
    let flags = if up { IFF_UP } else { 0 };
    request(
        RTM_NEWLINK,
        NLM_F_REQUEST | NLM_F_ACK,
        sequence,
        &link(flags, IFF_UP),
    )
}

/// Asks for `lo`; answered by one [`RTM_NEWLINK`].
pub(super) fn get_link(sequence: u32) -> Vec<u8> {
    request(RTM_GETLINK, NLM_F_REQUEST, sequence, &link(0, 0))
}

/// Asks for the addresses of all interfaces; answered by many [`RTM_NEWADDR`] and [`NLMSG_DONE`].
pub(super) fn get_addresses(sequence: u32) -> Vec<u8> {
    let everything = [0; ADDRESS_LEN];
    request(
        RTM_GETADDR,
        NLM_F_REQUEST | NLM_F_DUMP,
        sequence,
        &everything,
    )
}

fn link(flags: u32, change: u32) -> [u8; LINK_LEN] {
    let mut link = [0; LINK_LEN];
    link[4..8].copy_from_slice(&LO_INDEX.to_ne_bytes());
    link[8..12].copy_from_slice(&flags.to_ne_bytes());
    link[12..16].copy_from_slice(&change.to_ne_bytes());
    link
}

fn request(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_LEN + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER_LEN + body.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    // The port of the sender: the kernel knows it.
    message.extend_from_slice(&0_u32.to_ne_bytes());
    message.extend_from_slice(body);
    message
}

/// One message of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

/// The messages in one datagram, up to the first that does not fit.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let message = Message {
            kind: u16_at(datagram, 4)?,
            sequence: u32_at(datagram, 8)?,
            body: datagram.get(HEADER_LEN..length)?,
        };
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
        Some(message)
    })
}

/// The error in an [`NLMSG_ERROR`]: 0 for success, else the negative number of the error.
pub(super) fn error(body: &[u8]) -> Option<i32> {
    u32_at(body, 0).map(u32::cast_signed)
}

/// Whether the interface in an [`RTM_NEWLINK`] is up; `None` if it is not `lo`.
pub(super) fn is_up(body: &[u8]) -> Option<bool> {
    let flags = u32_at(body, 8)?;
    (u32_at(body, 4)? == LO_INDEX).then_some(flags & IFF_UP != 0)
}

/// Address and prefix length in an [`RTM_NEWADDR`]; `None` if they are not of `lo`.
pub(super) fn address(body: &[u8]) -> Option<(IpAddr, u8)> {
    let (&family, &prefix) = (body.first()?, body.get(1)?);
    if u32_at(body, 4)? != LO_INDEX {
        return None;
    }
    let (mut address, mut local) = (None, None);
    for (kind, value) in attributes(body.get(ADDRESS_LEN..)?) {
        match kind {
            IFA_ADDRESS => address = ip(family, value),
            IFA_LOCAL => local = ip(family, value),
            _ => {}
        }
    }
    // Between two ends IFA_ADDRESS is the far one.
    Some((local.or(address)?, prefix))
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let attribute = (u16_at(bytes, 2)?, bytes.get(ATTRIBUTE_LEN..length)?);
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some(attribute)
    })
}

fn ip(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        AF_INET6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Messages and attributes begin at multiples of four bytes.
fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*four))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*two))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// An RTM_NEWADDR as the kernel sends it for 127.0.0.1/8 on `lo`.
    fn address_of_lo() -> Vec<u8> {
        let mut body = vec![AF_INET, 8, 0x80, 254];
        body.extend_from_slice(&LO_INDEX.to_ne_bytes());
        for (kind, value) in [
            (IFA_ADDRESS, &[127, 0, 0, 1][..]),
            (IFA_LOCAL, &[127, 0, 0, 1]),
            (3, b"lo\0"),
        ] {
            let length = u16::try_from(ATTRIBUTE_LEN + value.len()).unwrap();
            body.extend_from_slice(&length.to_ne_bytes());
            body.extend_from_slice(&kind.to_ne_bytes());
            body.extend_from_slice(value);
            body.resize(aligned(body.len()), 0);
        }
        body
    }

    /// A datagram with two messages gives both, with their bodies.
    #[test]
    fn walks_a_datagram() {
        let body = address_of_lo();
        let mut datagram = request(RTM_NEWADDR, 0, 7, &body);
        datagram.extend(request(NLMSG_DONE, 0, 7, &[0; 4]));
        let found: Vec<Message<'_>> = messages(&datagram).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].kind, found[0].sequence), (RTM_NEWADDR, 7));
        assert_eq!(
            address(found[0].body),
            Some(([127, 0, 0, 1].into(), 8)),
            "{found:?}"
        );
        assert_eq!((found[1].kind, found[1].body), (NLMSG_DONE, &[0; 4][..]));
    }

    /// Addresses and flags of other interfaces are nobody's here.
    #[test]
    fn other_interfaces_do_not_count() {
        let mut body = address_of_lo();
        body[4] = 2;
        assert_eq!(address(&body), None);
        let mut body = link(IFF_UP, 0);
        assert_eq!(is_up(&body), Some(true));
        body[4] = 2;
        assert_eq!(is_up(&body), None);
    }

    /// Whatever bytes come, the walk ends, gives only parts of the datagram and does not panic.
    #[test]
    fn any_bytes_are_walked() {
        let seed = request(RTM_NEWADDR, 0, 7, &address_of_lo());
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        for _ in 0..50_000 {
            let mut bytes = seed.repeat(1 + random(3));
            for _ in 0..random(6) {
                let at = random(bytes.len());
                bytes[at] = u8::try_from(random(256)).unwrap();
            }
            bytes.truncate(1 + random(bytes.len()));
            let mut walked = 0;
            for message in messages(&bytes) {
                walked += HEADER_LEN + message.body.len();
                let _ = (error(message.body), is_up(message.body));
                if let Some((address, _)) = address(message.body) {
                    assert!(address.is_ipv4() || address.is_ipv6());
                }
            }
            assert!(walked <= bytes.len());
        }
    }
}
