//! The values that describe a node, whatever source they come from: text in, checked addresses and ranges out, or what is wrong and
//! what is expected. No I/O, no place in a file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use crate::config::WORKERS_MAX;

/// Highest underlay port: worker i listens on the port + i.
pub(super) const UNDERLAY_PORT_MAX: u16 = u16::MAX - (WORKERS_MAX as u16 - 1);

/// Longest pod range: it holds the network's address, the gateway, one pod and, in IPv4, the
/// broadcast address.
pub(super) const POD_PREFIX_V4_MAX: u8 = 30;
/// The same for IPv6.
pub(super) const POD_PREFIX_V6_MAX: u8 = 126;

/// Shortest pod range: one that is shorter takes the host's way to the rest of the world.
pub(super) const POD_PREFIX_V4_MIN: u8 = 8;
/// The same for IPv6.
pub(super) const POD_PREFIX_V6_MIN: u8 = 32;

pub(super) fn underlay(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!(
            "{text:?} is no address and port: expected \"192.0.2.1:7946\" or \"[2001:db8::1]:7946\""
        )
    })?;
    if !(1..=UNDERLAY_PORT_MAX).contains(&address.port()) {
        return Err(format!(
            "port {} is out of range: expected 1 to {UNDERLAY_PORT_MAX} (worker i listens on the port + i)",
            address.port()
        ));
    }
    check_unicast(address.ip())?;
    Ok(address)
}

pub(super) fn host_address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| {
        format!("{text:?} is no address: expected \"192.0.2.1\" or \"2001:db8::1\", without a prefix length")
    })?;
    check_unicast(address)?;
    Ok(address)
}

pub(super) fn pod_cidr(text: &str) -> Result<IpNet, String> {
    let range: IpNet = text.parse().map_err(|_| {
        format!("{text:?} is no address range: expected \"10.244.1.0/24\" or \"fd00:244:1::/64\"")
    })?;
    if range != range.trunc() {
        return Err(format!(
            "{text:?} has bits set beyond its prefix: expected \"{}\"",
            range.trunc()
        ));
    }
    let (min, max) = match range {
        IpNet::V4(_) => (POD_PREFIX_V4_MIN, POD_PREFIX_V4_MAX),
        IpNet::V6(_) => (POD_PREFIX_V6_MIN, POD_PREFIX_V6_MAX),
    };
    if range.prefix_len() > max {
        return Err(format!(
            "{text:?} is too small to hold a gateway and a pod: expected /{min} to /{max}"
        ));
    }
    if range.prefix_len() < min {
        return Err(format!("{text:?} is too large: expected /{min} to /{max}"));
    }
    check_unicast(range.network()).map_err(|problem| problem.replace("address", "range"))?;
    if range.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)) {
        return Err(format!("{text:?} is a loopback range"));
    }
    Ok(range)
}

fn check_unicast(address: IpAddr) -> Result<(), String> {
    let kind = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(ip) if ip.is_broadcast() => "the broadcast address",
        IpAddr::V4(ip) if ip.is_link_local() => "a link-local address",
        IpAddr::V6(ip) if ip.is_unicast_link_local() => "a link-local address",
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => "an IPv4-mapped address",
        IpAddr::V4(_) | IpAddr::V6(_) => return Ok(()),
    };
    Err(format!(
        "{address} is {kind}: expected a unicast address that other nodes can reach"
    ))
}
