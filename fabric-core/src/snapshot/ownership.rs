//! One address, one owner: the checks a desired state must pass.
//!
//! In: ranges and addresses with their owners. Out: nothing, or the first contradiction. Owners of
//! ranges are nodes; inside its own ranges a node gives each address to the host or to one pod.

use std::{cmp::Reverse, fmt, net::IpAddr};

use ipnet::IpNet;

use super::SnapshotError;
use crate::ids::{PeerId, PortId};

/// Checks that no node claims an address of another.
pub(super) fn check_nodes(
    local_ranges: &[IpNet],
    hosts: &[IpAddr],
    peers: &[(PeerId, Vec<IpNet>)],
) -> Result<(), SnapshotError> {
    let here = local_ranges
        .iter()
        .copied()
        .chain(hosts.iter().copied().map(IpNet::from))
        .map(|net| (net.trunc(), Owner::ThisNode));
    let there = peers
        .iter()
        .flat_map(|(peer, nets)| nets.iter().map(|net| (net.trunc(), Owner::Peer(*peer))));
    let mut claims: Vec<_> = here.chain(there).collect();
    // Two prefixes are nested or apart. In this order a prefix comes right before all it contains.
    claims.sort_unstable_by_key(|&(net, _)| (net.network(), Reverse(net.broadcast())));

    let mut outermost: Option<(IpNet, Owner)> = None;
    for (net, owner) in claims {
        match outermost {
            Some((outer, first)) if outer.contains(&net) => {
                if first != owner {
                    return Err(overlap((outer, first), (net, owner)));
                }
            }
            _ => outermost = Some((net, owner)),
        }
    }
    Ok(())
}

/// Checks that each pod address is in a local range and belongs to no other pod nor to the host.
pub(super) fn check_pods(
    local_ranges: &[IpNet],
    hosts: &[IpAddr],
    pods: &[(PortId, Vec<IpAddr>)],
) -> Result<(), SnapshotError> {
    let mut claims: Vec<_> = hosts.iter().map(|&addr| (addr, Owner::Host)).collect();
    for (port, addrs) in pods {
        for &addr in addrs {
            if *port == PortId::HOST {
                return Err(SnapshotError::PodOnHostPort(addr));
            }
            if !local_ranges.iter().any(|range| range.contains(&addr)) {
                return Err(SnapshotError::PodOutsideRanges(addr));
            }
            claims.push((addr, Owner::Pod(*port)));
        }
    }
    claims.sort_unstable_by_key(|&(addr, _)| addr);
    for (&(addr, first), &(next, second)) in claims.iter().zip(claims.iter().skip(1)) {
        if addr == next && first != second {
            return Err(overlap((addr.into(), first), (next.into(), second)));
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    ThisNode,
    Host,
    Pod(PortId),
    Peer(PeerId),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ThisNode => f.write_str("this node"),
            Self::Host => f.write_str("the host"),
            Self::Pod(port) => write!(f, "the pod on port {}", port.0),
            Self::Peer(peer) => write!(f, "peer {}", peer.0),
        }
    }
}

fn overlap(first: (IpNet, Owner), second: (IpNet, Owner)) -> SnapshotError {
    SnapshotError::Overlap {
        first: first.0,
        first_owner: first.1.to_string(),
        second: second.0,
        second_owner: second.1.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// A gateway inside its node's own range is no contradiction, here or at a peer.
    #[test]
    fn host_address_in_own_range_is_fine() {
        let peers = [(PeerId(1), nets(&["10.0.2.0/24", "10.0.2.1/32"]))];
        let checked = check_nodes(&nets(&["10.0.1.0/24"]), &ips(&["10.0.1.1"]), &peers);
        assert_eq!(checked, Ok(()));
    }

    /// A host address inside another node's range is refused, whichever node is this one.
    #[test]
    fn host_address_in_another_nodes_range_is_refused() {
        let range = [(PeerId(1), nets(&["10.0.2.0/24"]))];
        let error = check_nodes(&[], &ips(&["10.0.2.77"]), &range).unwrap_err();
        assert_eq!(
            error.to_string(),
            "10.0.2.0/24 of peer 1 overlaps 10.0.2.77/32 of this node"
        );
        let single = [(PeerId(1), nets(&["10.0.1.77/32"]))];
        assert!(check_nodes(&nets(&["10.0.1.0/24"]), &[], &single).is_err());
    }

    /// Two nodes behind one address are refused.
    #[test]
    fn the_same_address_of_two_nodes_is_refused() {
        let peers = [
            (PeerId(1), nets(&["fd00::1/128"])),
            (PeerId(2), nets(&["fd00::1/128"])),
        ];
        assert!(check_nodes(&[], &[], &peers).is_err());
    }

    /// A pod must be inside a local range, alone on its address, and on a port of its own.
    #[test]
    fn pods_are_inside_and_alone() {
        let ranges = nets(&["10.0.1.0/24"]);
        let hosts = ips(&["10.0.1.1"]);
        let check = |pods: &[(PortId, Vec<IpAddr>)]| check_pods(&ranges, &hosts, pods);
        let pod = |port, addrs: &[&str]| (PortId(port), ips(addrs));

        assert_eq!(
            check(&[pod(1, &["10.0.1.2"]), pod(2, &["10.0.1.3"])]),
            Ok(())
        );
        assert_eq!(check(&[pod(1, &["10.0.1.2", "10.0.1.2"])]), Ok(()));
        assert_eq!(
            check(&[pod(1, &["10.0.2.2"])]),
            Err(SnapshotError::PodOutsideRanges(ips(&["10.0.2.2"])[0]))
        );
        assert_eq!(
            check(&[pod(0, &["10.0.1.2"])]),
            Err(SnapshotError::PodOnHostPort(ips(&["10.0.1.2"])[0]))
        );
        for twice in [
            [pod(1, &["10.0.1.2"]), pod(2, &["10.0.1.2"])],
            [pod(1, &["10.0.1.2"]), pod(2, &["10.0.1.1"])],
        ] {
            let refused = check(&twice);
            assert!(
                matches!(refused, Err(SnapshotError::Overlap { .. })),
                "{refused:?}"
            );
        }
    }

    fn net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<u8>(), 25..=32_u8).prop_map(|(low, len)| {
                Ipv4Net::new(Ipv4Addr::new(10, 0, 0, low), len)
                    .unwrap()
                    .into()
            }),
            (any::<u8>(), 121..=128_u8).prop_map(|(low, len)| {
                let addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low.into());
                Ipv6Net::new(addr, len).unwrap().into()
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        /// The sweep finds a contradiction exactly where comparing every pair finds one.
        #[test]
        fn sweep_agrees_with_all_pairs(
            local in prop::collection::vec(net(), 0..3),
            peers in prop::collection::vec(prop::collection::vec(net(), 0..3), 0..4),
        ) {
            let peers: Vec<_> = (0..).map(PeerId).zip(peers).collect();
            let claims: Vec<(Option<PeerId>, IpNet)> = local
                .iter()
                .map(|&net| (None, net))
                .chain(peers.iter().flat_map(|(peer, nets)| {
                    nets.iter().map(|&net| (Some(*peer), net))
                }))
                .collect();
            let clash = claims.iter().any(|(owner, net)| {
                claims.iter().any(|(other, second)| {
                    owner != other
                        && (net.contains(&second.network()) || second.contains(&net.network()))
                })
            });
            prop_assert_eq!(check_nodes(&local, &[], &peers).is_err(), clash);
        }
    }
}
