//! Longest-prefix match for IPv4 and IPv6.
//!
//! In: all routes at once. Out: the next hop of one address. A table is never changed after it is
//! built; a new state means a new table.

mod index;

use std::net::IpAddr;

use ipnet::IpNet;

use self::index::Index;
use crate::verdict::NextHop;

/// An immutable route table for both address families.
#[derive(Debug, Default)]
pub struct RouteTable {
    v4: Index<u32>,
    v6: Index<u128>,
    /// The same routes in the order of [`RouteTable::routes`].
    routes: Box<[(IpNet, NextHop)]>,
}

impl RouteTable {
    /// The next hop of the longest prefix that covers `addr`.
    ///
    /// Does not allocate; takes at most one step per prefix length in use in the address's family.
    #[must_use]
    pub fn lookup(&self, addr: IpAddr) -> Option<NextHop> {
        match addr {
            IpAddr::V4(addr) => self.v4.lookup(addr.to_bits()),
            IpAddr::V6(addr) => self.v6.lookup(addr.to_bits()),
        }
    }

    /// All routes: IPv4 before IPv6, within a family the most specific last.
    #[must_use]
    pub fn routes(&self) -> &[(IpNet, NextHop)] {
        &self.routes
    }
}

/// Host bits of a prefix are ignored. Of several routes for the same prefix the last one counts.
impl FromIterator<(IpNet, NextHop)> for RouteTable {
    fn from_iter<I: IntoIterator<Item = (IpNet, NextHop)>>(routes: I) -> Self {
        let mut routes: Vec<_> = routes
            .into_iter()
            .map(|(net, next)| (net.trunc(), next))
            .collect();
        // The stable sort keeps equal prefixes in the order given; reversed, the last comes first
        // and is the one that survives `dedup`.
        routes.reverse();
        routes.sort_by_key(|&(net, _)| (net.addr().is_ipv6(), net.prefix_len(), net.addr()));
        routes.dedup_by_key(|&mut (net, _)| net);

        let v4: Vec<_> = routes
            .iter()
            .filter_map(|&(net, next)| match net {
                IpNet::V4(net) => Some((net.addr().to_bits(), net.prefix_len(), next)),
                IpNet::V6(_) => None,
            })
            .collect();
        let v6: Vec<_> = routes
            .iter()
            .filter_map(|&(net, next)| match net {
                IpNet::V4(_) => None,
                IpNet::V6(net) => Some((net.addr().to_bits(), net.prefix_len(), next)),
            })
            .collect();
        Self {
            v4: Index::new(&v4),
            v6: Index::new(&v6),
            routes: routes.into_boxed_slice(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{PeerId, PortId};

    /// The longest prefix wins, from the default route to the single address.
    #[test]
    fn longest_prefix_wins() {
        let table: RouteTable = [
            ("0.0.0.0/0", NextHop::Peer(PeerId(1))),
            ("10.0.0.0/8", NextHop::Peer(PeerId(2))),
            ("10.1.0.0/16", NextHop::Unassigned),
            ("10.1.2.3/32", NextHop::Local(PortId(3))),
            ("::/0", NextHop::Peer(PeerId(4))),
            ("fd00::1/128", NextHop::Local(PortId(5))),
        ]
        .map(|(net, next)| (net.parse().unwrap(), next))
        .into_iter()
        .collect();
        let lookup = |addr: &str| table.lookup(addr.parse().unwrap());

        assert_eq!(lookup("9.9.9.9"), Some(NextHop::Peer(PeerId(1))));
        assert_eq!(lookup("10.2.0.1"), Some(NextHop::Peer(PeerId(2))));
        assert_eq!(lookup("10.1.2.4"), Some(NextHop::Unassigned));
        assert_eq!(lookup("10.1.2.3"), Some(NextHop::Local(PortId(3))));
        assert_eq!(lookup("fd00::2"), Some(NextHop::Peer(PeerId(4))));
        assert_eq!(lookup("fd00::1"), Some(NextHop::Local(PortId(5))));
        assert_eq!(
            RouteTable::default().lookup("10.1.2.3".parse().unwrap()),
            None
        );
    }

    /// The families do not mix: an IPv4-mapped address never finds an IPv4 route.
    #[test]
    fn families_are_apart() {
        let table: RouteTable = [("0.0.0.0/0".parse().unwrap(), NextHop::Unassigned)]
            .into_iter()
            .collect();
        assert_eq!(table.lookup("::ffff:10.0.0.1".parse().unwrap()), None);
    }

    /// Of two routes for one prefix the later counts, host bits or not.
    #[test]
    fn last_route_for_a_prefix_counts() {
        let table: RouteTable = [
            ("10.0.0.0/24".parse().unwrap(), NextHop::Unassigned),
            ("10.0.0.9/24".parse().unwrap(), NextHop::Peer(PeerId(1))),
        ]
        .into_iter()
        .collect();
        assert_eq!(
            table.lookup("10.0.0.1".parse().unwrap()),
            Some(NextHop::Peer(PeerId(1)))
        );
        assert_eq!(table.routes().len(), 1);
    }

    /// Addresses from a small space, so that prefixes overlap often.
    fn v4() -> impl Strategy<Value = Ipv4Addr> {
        prop_oneof![
            any::<u32>(),
            any::<u8>().prop_map(|low| 0x0a00_0000 | u32::from(low)),
            any::<u16>().prop_map(|low| 0x0a00_0000 | u32::from(low)),
        ]
        .prop_map(Ipv4Addr::from)
    }

    fn v6() -> impl Strategy<Value = Ipv6Addr> {
        let base = 0xfd00_u128 << 112;
        prop_oneof![
            any::<u128>(),
            any::<u8>().prop_map(move |low| base | u128::from(low)),
            any::<u16>().prop_map(move |mid| base | u128::from(mid) << 56),
        ]
        .prop_map(Ipv6Addr::from)
    }

    fn net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (v4(), 0..=32_u8).prop_map(|(addr, len)| Ipv4Net::new(addr, len).unwrap().into()),
            (v4(), 24..=32_u8).prop_map(|(addr, len)| Ipv4Net::new(addr, len).unwrap().into()),
            (v6(), 0..=128_u8).prop_map(|(addr, len)| Ipv6Net::new(addr, len).unwrap().into()),
            (v6(), 120..=128_u8).prop_map(|(addr, len)| Ipv6Net::new(addr, len).unwrap().into()),
        ]
    }

    fn next_hop() -> impl Strategy<Value = NextHop> {
        prop_oneof![
            any::<u32>().prop_map(|id| NextHop::Local(PortId(id))),
            any::<u32>().prop_map(|id| NextHop::Peer(PeerId(id))),
            Just(NextHop::Unassigned),
        ]
    }

    /// Longest-prefix match as a list and a loop.
    fn scan(routes: &[(IpNet, NextHop)], addr: IpAddr) -> Option<NextHop> {
        let mut best: Option<(u8, NextHop)> = None;
        for &(net, next) in routes {
            if net.contains(&addr) && best.is_none_or(|(len, _)| net.prefix_len() >= len) {
                best = Some((net.prefix_len(), next));
            }
        }
        best.map(|(_, next)| next)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Every lookup gives what a linear scan of the list gives.
        #[test]
        fn agrees_with_a_linear_scan(
            routes in prop::collection::vec((net(), next_hop()), 0..60),
            addrs in prop::collection::vec(
                prop_oneof![v4().prop_map(IpAddr::V4), v6().prop_map(IpAddr::V6)],
                0..40,
            ),
        ) {
            let table: RouteTable = routes.iter().copied().collect();
            let edges = routes.iter().flat_map(|(net, _)| [net.network(), net.broadcast()]);
            for addr in addrs.iter().copied().chain(edges) {
                prop_assert_eq!(table.lookup(addr), scan(&routes, addr), "{}", addr);
            }
        }

        /// The list for the operator has each prefix once, sorted, and builds the same table.
        #[test]
        fn listed_routes_rebuild_the_table(
            routes in prop::collection::vec((net(), next_hop()), 0..60),
        ) {
            let table: RouteTable = routes.iter().copied().collect();
            let again: RouteTable = table.routes().iter().copied().collect();
            prop_assert_eq!(again.routes(), table.routes());
            let sorted = table.routes().is_sorted_by(|(a, _), (b, _)| {
                (a.addr().is_ipv6(), a.prefix_len(), a.network())
                    < (b.addr().is_ipv6(), b.prefix_len(), b.network())
            });
            prop_assert!(sorted);
        }
    }
}
