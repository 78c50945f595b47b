//! Names and addresses of a cluster: fixed, as every cluster is alone in its sandbox.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, ensure};
use ipnet::IpNet;

/// Networks from which the controllers give each node its pod CIDRs, IPv4 first.
pub const POD_CIDRS: &str = "10.244.0.0/16,fd44::/48";
/// Prefix lengths of a node's pod CIDRs (bits), IPv4 and IPv6.
pub const NODE_PREFIXES: [u8; 2] = [24, 64];
/// Networks of Service addresses, IPv4 first.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd96::/112";
/// Addresses of the Service `kubernetes`: the first of each network.
pub const API_SERVICE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1)),
];
/// Addresses of the cluster's DNS Service.
pub const DNS_SERVICE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0xa)),
];
/// Domain of the cluster's names.
pub const DOMAIN: &str = "cluster.local";
/// TCP port of the API server.
pub const API_PORT: u16 = 6443;
/// TCP port of the registry, beside the API server.
pub const REGISTRY_PORT: u16 = 5000;

/// The machine of the control plane.
pub const CONTROL_PLANE: Machine = Machine::numbered(1);
/// The router between the machines and the outside world.
pub const ROUTER: Machine = Machine::numbered(254);
/// Two addresses of the outside world, which knows the machines and no pod.
pub const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 1)),
];

/// Nodes that a cluster may have. Their numbers are part of their addresses, of which the underlay has 254.
pub const NODES_MAX: u8 = 100;
/// Number of the first node's address before the first.
const NODES_FROM: u8 = 10;

/// A machine on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine(u8);

impl Machine {
    const fn numbered(number: u8) -> Self {
        Self(number)
    }

    /// The machine of the node called `name`: `n1` to `n100`. A node of the same name has the same addresses.
    ///
    /// # Errors
    ///
    /// That is no name of a node.
    pub fn of_node(name: &str) -> anyhow::Result<Self> {
        let number: u8 = name
            .strip_prefix('n')
            .and_then(|digits| digits.parse().ok())
            .with_context(|| format!("nodes are called n1, n2, ..., not {name:?}"))?;
        ensure!(
            (1..=NODES_MAX).contains(&number) && node_name(number) == name,
            "nodes are called n1 to n{NODES_MAX}, not {name:?}"
        );
        Ok(Self(NODES_FROM + number))
    }

    /// Its IPv4 address.
    #[must_use]
    pub const fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 90, 0, self.0)
    }

    /// Its IPv6 address.
    #[must_use]
    pub const fn v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd90, 0, 0, 0, 0, 0, 0, self.0 as u16)
    }

    /// Both, IPv4 first.
    #[must_use]
    pub const fn addresses(self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4()), IpAddr::V6(self.v6())]
    }

    /// Both with the prefix lengths of the underlay.
    ///
    /// # Errors
    ///
    /// Never: the lengths are in range.
    pub fn networks(self) -> Result<[IpNet; 2], ipnet::PrefixLenError> {
        let [v4, v6] = self.addresses();
        Ok([IpNet::new(v4, 24)?, IpNet::new(v6, 64)?])
    }
}

/// The networks of all pods, IPv4 first.
///
/// # Errors
///
/// Never: [`POD_CIDRS`] has one of each family.
pub fn pod_networks() -> anyhow::Result<[IpNet; 2]> {
    let (v4, v6) = POD_CIDRS.split_once(',').context("two networks")?;
    Ok([v4.parse()?, v6.parse()?])
}

/// The name of a node, from 1 upward.
#[must_use]
pub fn node_name(number: u8) -> String {
    format!("n{number}")
}

/// Where the API server answers, for those on the underlay.
#[must_use]
pub fn api_url() -> String {
    format!("https://{}:{API_PORT}", CONTROL_PLANE.v4())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Machines have addresses of their own, and what is no name of a node is told.
    #[test]
    fn names_are_addresses() {
        let first = Machine::of_node("n1").unwrap();
        assert_eq!(first.v4().to_string(), "10.90.0.11");
        assert_eq!(first.v6().to_string(), "fd90::b");
        let last = Machine::of_node("n100").unwrap();
        assert!(last != ROUTER && last.v4().to_string() == "10.90.0.110");
        for wrong in ["n0", "n101", "n01", "1", "worker", "n", "n256"] {
            let told = Machine::of_node(wrong).unwrap_err().to_string();
            assert!(told.contains(wrong), "{told}");
        }
    }
}
