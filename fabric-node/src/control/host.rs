//! The host's side: `fabric0`, its addresses and the routes of the cluster's pod ranges.
//!
//! Comes in: gateway addresses and ranges. Goes out: a TUN device through which host processes reach
//! pods. Only what is on `fabric0` is touched. The device is persistent: while no daemon runs, pod
//! addresses lead into a device without carrier and never onto the underlay in the clear.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::Context as _;
use fabric_core::snapshot::POD_MTU;
use ipnet::IpNet;

use super::outside;
use crate::sys::{
    netlink::{LinkSettings, Netlink, NetlinkError, RouteSpec},
    netns::Netns,
    sysctl::Sysctl,
    tun::{Tun, TunOffloads, TunOwner},
};

/// Name of the host's device.
pub const HOST_DEVICE: &str = "fabric0";
/// Packets that wait in the device for the worker: a super-packet each, so 256 is 16 MiB at most.
pub const TX_QUEUE_LEN: u32 = 256;
/// Assumed where the underlay's interface cannot be told (bytes): Ethernet.
const UNDERLAY_MTU_DEFAULT: u16 = 1500;

/// Opens `fabric0` in the calling thread's network namespace, making it if need be.
///
/// # Errors
///
/// The device cannot be made; the message says what is missing.
pub fn open(wanted: TunOffloads, sysctl: &Sysctl) -> anyhow::Result<Tun> {
    let tun = Tun::open(HOST_DEVICE, wanted)?;
    let home = Netns::current()?.identity();
    tun.set_owner(TunOwner::of_daemon_in(home))
        .context("fabric0: setting its owner")?;
    tun.set_persistent(true).context("fabric0: TUNSETPERSIST")?;
    let netlink = Netlink::connect()?;
    let index = index_of(&netlink)?;
    sysctl
        .enable_ipv6(HOST_DEVICE)
        .context("fabric0: enabling IPv6")?;
    netlink.configure_link(
        index,
        LinkSettings {
            mtu: Some(POD_MTU),
            tx_queue_len: Some(TX_QUEUE_LEN),
            ipv6_addr_gen_none: true,
            up: Some(true),
        },
    )?;
    Ok(tun)
}

/// Makes the addresses of `fabric0` exactly `gateways` and its routes exactly `ranges`.
///
/// # Errors
///
/// What the kernel refused; what was done before stays, and the next call completes it.
pub fn configure(gateways: &[IpAddr], ranges: &[IpNet]) -> anyhow::Result<()> {
    let netlink = Netlink::connect()?;
    let index = index_of(&netlink)?;
    configure_addresses(&netlink, index, gateways)?;
    let wanted: BTreeSet<IpNet> = ranges.iter().map(IpNet::trunc).collect();
    for range in &wanted {
        let source = gateways
            .iter()
            .find(|ip| ip.is_ipv4() == range.addr().is_ipv4());
        let route = route_to(index, *range, source.copied());
        netlink
            .replace_route(&route)
            .with_context(|| format!("the route to {range}"))?;
    }
    for route in netlink.routes(index)? {
        let is_own_address = gateways
            .iter()
            .any(|ip| IpNet::from(*ip) == route.destination);
        if !wanted.contains(&route.destination) && !is_own_address && is_unicast(&route) {
            netlink
                .delete_route(&route)
                .with_context(|| format!("removing the route to {}", route.destination))?;
        }
    }
    Ok(())
}

fn configure_addresses(netlink: &Netlink, index: u32, gateways: &[IpAddr]) -> anyhow::Result<()> {
    let wanted: BTreeSet<IpNet> = gateways.iter().copied().map(IpNet::from).collect();
    let present: BTreeSet<IpNet> = netlink.addresses(index)?.into_iter().collect();
    for address in wanted.difference(&present) {
        netlink
            .add_address(index, *address)
            .with_context(|| format!("the address {address}"))?;
    }
    for address in present.difference(&wanted) {
        netlink
            .delete_address(index, *address)
            .with_context(|| format!("removing the address {address}"))?;
    }
    Ok(())
}

fn route_to(index: u32, destination: IpNet, source: Option<IpAddr>) -> RouteSpec {
    RouteSpec {
        destination,
        index,
        source,
        gateway: None,
        mtu: None,
    }
}

/// The kernel adds multicast and link-local routes by itself; they are not ours to remove.
fn is_unicast(route: &RouteSpec) -> bool {
    let addr = route.destination.addr();
    let link_local = matches!(addr, IpAddr::V6(ip) if ip.is_unicast_link_local());
    !addr.is_multicast() && !link_local
}

fn index_of(netlink: &Netlink) -> anyhow::Result<u32> {
    let link = netlink.link(HOST_DEVICE)?;
    Ok(link
        .with_context(|| format!("{HOST_DEVICE} vanished"))?
        .index)
}

/// Takes `fabric0` away, with its addresses and routes, and what makes the host the way to the outside.
///
/// # Errors
///
/// What the kernel said.
pub fn remove() -> anyhow::Result<()> {
    let withdrawn = outside::withdraw();
    let netlink = Netlink::connect()?;
    if let Some(link) = netlink.link(HOST_DEVICE)? {
        netlink.delete_link(link.index)?;
    }
    withdrawn
}

/// The smallest MTU among the interfaces that have the `underlay` addresses (bytes).
///
/// # Errors
///
/// The interfaces cannot be listed.
pub fn underlay_mtu(underlay: &[SocketAddr]) -> Result<u16, NetlinkError> {
    let netlink = Netlink::connect()?;
    let mut smallest = None;
    for link in netlink.links()? {
        let addresses = netlink.addresses(link.index)?;
        let carries = addresses
            .iter()
            .any(|address| underlay.iter().any(|socket| socket.ip() == address.addr()));
        if carries {
            let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
            smallest = Some(smallest.map_or(mtu, |other: u16| other.min(mtu)));
        }
    }
    Ok(smallest.unwrap_or(UNDERLAY_MTU_DEFAULT))
}
