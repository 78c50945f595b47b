//! What the kernel must be told before it forwards between `fabric0` and the other interfaces.
//!
//! The least that does it: single interfaces where the kernel forwards by interface, the whole host only
//! where it knows no other way. A value that is right already is not written.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::Context as _;

use super::Surroundings;
use crate::{
    control::host::HOST_DEVICE,
    sys::{netlink::Netlink, sysctl::Sysctl},
};

/// Lets the kernel forward in the families in which this node has pods.
pub(super) fn configure(
    netlink: &Netlink,
    sysctl: &Sysctl,
    wanted: &Surroundings,
) -> anyhow::Result<()> {
    let has = |ipv6| wanted.gateways.iter().any(|ip| ip.is_ipv6() == ipv6);
    let mut results = Vec::new();
    if has(false) {
        let ways_out = ways_out(netlink, wanted, false)?;
        results.push(ipv4(sysctl, &ways_out).context("forwarding of IPv4"));
    }
    if has(true) {
        let ways_out = ways_out(netlink, wanted, true)?;
        let done = ipv6(netlink, sysctl, &ways_out);
        results.push(done.context("forwarding of IPv6"));
    }
    results.into_iter().collect()
}

/// The interfaces that have an address of this node, and those of default routes: what pods send to the
/// outside leaves by them, and answers and callers come in by them.
fn ways_out(
    netlink: &Netlink,
    wanted: &Surroundings,
    ipv6: bool,
) -> anyhow::Result<BTreeSet<String>> {
    const MAIN: u32 = 254;
    let defaults: Vec<u32> = netlink
        .routes_in(MAIN)?
        .into_iter()
        .filter(|route| route.destination.prefix_len() == 0)
        .filter(|route| route.destination.addr().is_ipv6() == ipv6)
        .map(|route| route.index)
        .collect();
    let own: Vec<IpAddr> = wanted.own_hosts.clone();
    let mut names = BTreeSet::new();
    for link in netlink.links()? {
        let addresses = netlink.addresses(link.index)?;
        let has_own = addresses
            .iter()
            .any(|net| net.addr().is_ipv6() == ipv6 && own.contains(&net.addr()));
        let is_loopback = addresses.iter().any(|net| net.addr().is_loopback());
        if link.name != HOST_DEVICE && !is_loopback && (has_own || defaults.contains(&link.index)) {
            names.insert(link.name);
        }
    }
    Ok(names)
}

fn ipv4(sysctl: &Sysctl, ways_out: &BTreeSet<String>) -> anyhow::Result<()> {
    let of = |name: &str, setting: &str| format!("net/ipv4/conf/{name}/{setting}");
    // Only its input decides whether a packet is forwarded.
    for name in ways_out.iter().map(String::as_str).chain([HOST_DEVICE]) {
        if sysctl.set(&of(name, "forwarding"), "1")? && name != HOST_DEVICE {
            tracing::info!(interface = name, "forwards IPv4 from now on");
        }
    }
    // ICMP errors about what the host sent for a pod come from the gateway's address, which is the
    // host's own: the kernel translates and forwards them like any other.
    sysctl.set(&of(HOST_DEVICE, "accept_local"), "1")?;
    // The strict check would drop a peer's host, whose address is not reached by fabric0. Sources on
    // fabric0 have been checked before. The higher of both values counts.
    let strict = |name: &str| -> anyhow::Result<bool> {
        let value = sysctl.get(&of(name, "rp_filter"))?;
        Ok(value.as_deref() == Some("1"))
    };
    if strict("all")? || strict(HOST_DEVICE)? {
        sysctl.set(&of(HOST_DEVICE, "rp_filter"), "2")?;
    }
    // There is no shorter way than by fabric0. Where `all` says otherwise, the data plane drops them.
    sysctl.set(&of(HOST_DEVICE, "send_redirects"), "0")?;
    Ok(())
}

fn ipv6(netlink: &Netlink, sysctl: &Sysctl, ways_out: &BTreeSet<String>) -> anyhow::Result<()> {
    let of = |name: &str, setting: &str| format!("net/ipv6/conf/{name}/{setting}");
    let all = of("all", "forwarding");
    if sysctl.get(&all)?.as_deref() == Some("1") {
        return Ok(());
    }
    if sysctl.get(&of(HOST_DEVICE, "force_forwarding"))?.is_some() {
        // Linux 6.17 and later forward by interface, and leave router advertisements alone.
        for name in ways_out.iter().map(String::as_str).chain([HOST_DEVICE]) {
            if sysctl.set(&of(name, "force_forwarding"), "1")? && name != HOST_DEVICE {
                tracing::info!(interface = name, "forwards IPv6 from now on");
            }
        }
        return Ok(());
    }
    // The whole host or nothing. A host that forwards ignores router advertisements where accept_ra is
    // 1, and would lose its default route: 2 goes on accepting them.
    let mut raised = Vec::new();
    for link in netlink.links()? {
        let setting = of(&link.name, "accept_ra");
        if link.name != HOST_DEVICE && sysctl.get(&setting)?.as_deref() == Some("1") {
            sysctl.set(&setting, "2")?;
            raised.push(link.name);
        }
    }
    if sysctl.set(&all, "1")? {
        tracing::warn!(
            accept_ra = ?raised,
            "this host forwards IPv6 on all interfaces from now on; those named go on accepting router advertisements (accept_ra = 2)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{collections::BTreeMap, fs};

    use super::*;

    /// Settings as a kernel has them, in a folder.
    struct Kernel(tempfile::TempDir);

    impl Kernel {
        fn with(settings: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (name, value) in settings {
                let path = folder.path().join("net").join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, value).unwrap();
            }
            Self(folder)
        }

        fn sysctl(&self) -> Sysctl {
            Sysctl::at(self.0.path())
        }

        fn check(&self, wanted: &[(&str, &str)]) {
            let found: BTreeMap<&str, String> = wanted
                .iter()
                .map(|(name, _)| {
                    let path = self.0.path().join("net").join(name);
                    (*name, fs::read_to_string(path).unwrap())
                })
                .collect();
            let wanted = wanted.iter();
            let wanted = wanted.map(|(name, value)| (*name, (*value).to_owned()));
            assert_eq!(found, wanted.collect());
        }
    }

    fn ways_out() -> BTreeSet<String> {
        ["eth0".to_owned()].into()
    }

    /// IPv4 is forwarded by the interfaces named and by no other; a strict check of sources on `fabric0`
    /// becomes a loose one, and none stays none.
    #[test]
    fn ipv4_is_forwarded_by_interface() {
        for (all, before, after) in [("1", "0", "2"), ("0", "1", "2"), ("0", "0", "0")] {
            let kernel = Kernel::with(&[
                ("ipv4/conf/all/forwarding", "0"),
                ("ipv4/conf/all/rp_filter", all),
                ("ipv4/conf/eth0/forwarding", "0"),
                ("ipv4/conf/eth1/forwarding", "0"),
                ("ipv4/conf/fabric0/forwarding", "0"),
                ("ipv4/conf/fabric0/accept_local", "0"),
                ("ipv4/conf/fabric0/rp_filter", before),
                ("ipv4/conf/fabric0/send_redirects", "1"),
            ]);
            ipv4(&kernel.sysctl(), &ways_out()).unwrap();
            kernel.check(&[
                ("ipv4/conf/all/forwarding", "0"),
                ("ipv4/conf/eth0/forwarding", "1"),
                ("ipv4/conf/eth1/forwarding", "0"),
                ("ipv4/conf/fabric0/forwarding", "1"),
                ("ipv4/conf/fabric0/accept_local", "1"),
                ("ipv4/conf/fabric0/rp_filter", after),
                ("ipv4/conf/fabric0/send_redirects", "0"),
            ]);
        }
    }

    /// A kernel that forwards IPv6 by interface is asked for that, and one that forwards already for
    /// nothing.
    #[test]
    fn ipv6_is_forwarded_by_interface_where_the_kernel_can() {
        let netlink = Netlink::connect().unwrap();
        for (all, forced) in [("0", "1"), ("1", "0")] {
            let kernel = Kernel::with(&[
                ("ipv6/conf/all/forwarding", all),
                ("ipv6/conf/eth0/force_forwarding", "0"),
                ("ipv6/conf/fabric0/force_forwarding", "0"),
                ("ipv6/conf/lo/accept_ra", "1"),
            ]);
            ipv6(&netlink, &kernel.sysctl(), &ways_out()).unwrap();
            kernel.check(&[
                ("ipv6/conf/all/forwarding", all),
                ("ipv6/conf/eth0/force_forwarding", forced),
                ("ipv6/conf/fabric0/force_forwarding", forced),
                ("ipv6/conf/lo/accept_ra", "1"),
            ]);
        }
    }

    /// An older kernel forwards IPv6 as a whole, and goes on accepting router advertisements where it did.
    #[test]
    fn an_older_kernel_keeps_its_router_advertisements() {
        let netlink = Netlink::connect().unwrap();
        let kernel = Kernel::with(&[
            ("ipv6/conf/all/forwarding", "0"),
            // The loopback is there on every machine.
            ("ipv6/conf/lo/accept_ra", "1"),
        ]);
        ipv6(&netlink, &kernel.sysctl(), &ways_out()).unwrap();
        kernel.check(&[
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/lo/accept_ra", "2"),
        ]);
    }
}
