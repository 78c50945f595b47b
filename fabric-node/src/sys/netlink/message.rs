//! Between our types and rtnetlink's messages; no I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{InfoData, InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
        RouteScope, RouteType,
    },
};
use rtnetlink::{AddressMessageBuilder, packet_core::Nla as _};

use super::{Link, RouteSpec, TunLink, TunOwner};

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "a foreign enum without end, of which a few attributes matter"
)]
pub(super) fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: false,
        kind: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Carrier(carrier) => link.carrier = *carrier != 0,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

/// `IFLA_TUN_OWNER` (linux/if_link.h).
const TUN_OWNER: u16 = 1;
/// `IFLA_TUN_GROUP` (linux/if_link.h).
const TUN_GROUP: u16 = 2;

/// `None` for an interface of another kind.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "foreign enums without end, of which a few attributes matter"
)]
pub(super) fn tun(message: &LinkMessage) -> Option<TunLink> {
    let link = link(message);
    if link.kind.as_deref() != Some("tun") {
        return None;
    }
    let infos = message
        .attributes
        .iter()
        .flat_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.as_slice(),
            _ => &[],
        });
    let details: Vec<&InfoTun> = infos
        .flat_map(|info| match info {
            LinkInfo::Data(InfoData::Tun(details)) => details.as_slice(),
            _ => &[],
        })
        .collect();
    let id = |wanted: u16| {
        let found = details.iter().find(|detail| detail.kind() == wanted)?;
        let mut bytes = [0; 4];
        (found.value_len() == bytes.len()).then(|| found.emit_value(&mut bytes))?;
        Some(u32::from_ne_bytes(bytes))
    };
    let owner = match (id(TUN_OWNER), id(TUN_GROUP)) {
        (Some(user), Some(group)) => Some(TunOwner { user, group }),
        _ => None,
    };
    Some(TunLink { link, owner })
}

pub(super) fn skip_detection(message: &mut AddressMessage) {
    if message.header.family == AddressFamily::Inet6 {
        message.header.flags |= AddressHeaderFlags::Nodad;
    }
}

pub(super) fn address(index: u32, address: IpNet) -> AddressMessage {
    match address {
        IpNet::V4(net) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(index)
            .address(net.addr(), net.prefix_len())
            .build(),
    }
}

/// On a point-to-point link `Address` is the other end's: the interface's own is `Local`, which
/// IPv6 leaves out where both are the same.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "a foreign enum without end, of which a few attributes matter"
)]
pub(super) fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    IpNet::new(local.or(address)?, message.header.prefix_len).ok()
}

pub(super) fn route(spec: &RouteSpec) -> RouteMessage {
    let mut message = base(spec);
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = match (spec.destination, spec.gateway) {
        // IPv4 keeps what is on the link apart from what is behind a router.
        (IpNet::V4(_), None) => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    if let Some(mtu) = spec.mtu {
        message
            .attributes
            .push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    message
}

/// The same in another table than the main one.
pub(super) fn in_table(mut message: RouteMessage, table: u32) -> RouteMessage {
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes.push(RouteAttribute::Table(table));
    message
}

/// The higher the metric, the later a route's turn.
pub(super) fn route_with_metric(spec: &RouteSpec, metric: u32) -> RouteMessage {
    let mut message = route(spec);
    message.attributes.push(RouteAttribute::Priority(metric));
    message
}

pub(super) fn route_to_delete(spec: &RouteSpec) -> RouteMessage {
    let mut message = base(spec);
    // Both match any.
    message.header.protocol = RouteProtocol::Unspec;
    message.header.scope = RouteScope::NoWhere;
    message
}

fn base(spec: &RouteSpec) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::Unicast;
    message.header.address_family = match spec.destination {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = spec.destination.prefix_len();
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(
        spec.destination.network().into(),
    ));
    attributes.push(RouteAttribute::Oif(spec.index));
    if let Some(source) = spec.source {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(gateway) = spec.gateway {
        attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    message
}

/// None for what is no ordinary route: other tables, other types, the kernel's own for addresses.
pub(super) fn route_of(message: &RouteMessage) -> Option<RouteSpec> {
    route_in(message, RouteHeader::RT_TABLE_MAIN.into())
}

/// As [`route_of`], of another table.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "a foreign enum without end, of which a few attributes matter"
)]
pub(super) fn route_in(message: &RouteMessage, wanted: u32) -> Option<RouteSpec> {
    let header = &message.header;
    // Numbers beyond a byte are in an attribute.
    let large = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    if header.kind != RouteType::Unicast
        || large.unwrap_or_else(|| header.table.into()) != wanted
        || header.protocol == RouteProtocol::Kernel
    {
        return None;
    }
    // A default route comes without a destination.
    let mut destination = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut index, mut source, mut gateway, mut mtu) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(RouteSpec {
        destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
        index: index?,
        source,
        gateway,
        mtu,
    })
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "a foreign enum; other families carry no IP address"
)]
fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// For error texts.
pub(super) fn describe(route: &RouteSpec) -> String {
    let RouteSpec {
        destination,
        index,
        source,
        gateway,
        mtu: _,
    } = route;
    let mut text = format!("route to {destination} by link {index}");
    if let Some(gateway) = gateway {
        text.push_str(&format!(" via {gateway}"));
    }
    if let Some(source) = source {
        text.push_str(&format!(" from {source}"));
    }
    text
}
