//! The host as the way to what is not the fabric's: what its kernel needs for that, and what it knows.
//!
//! Comes in: the nodes in force. Goes out: settings of the kernel ([`forwarding`]), a routing table for
//! what comes in by `fabric0`, the rules of the packet filter, and the [`Detours`] that the data plane
//! asks. Never done here: translating; kube-proxy does that, or another.
//!
//! What comes from a pod and goes to a peer's host after the kernel has translated it would leave by the
//! underlay, in the clear and in the pod's name. So for what comes in by `fabric0`, and for nothing else,
//! a table of its own leads to the peers' hosts by `fabric0`.

mod forwarding;

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::Context as _;
use fabric_core::{
    detour::{DETOURS_MAX, Detours, Flow},
    ids::PortId,
    snapshot::Snapshot,
    verdict::NextHop,
};
use ipnet::IpNet;

use super::host::HOST_DEVICE;
use crate::{
    causes::with_causes,
    config::outside::{HostConfig, OutsideConfig, Via},
    sys::{
        netfilter::{Netfilter, conntrack, nftables},
        netlink::{Netlink, NetlinkError, RouteSpec, policy::RuleSpec},
        sysctl::Sysctl,
    },
};

/// Number of the routing table for what comes in by `fabric0`; the fabric's own port, which nobody else
/// is likely to have taken.
pub const TABLE: u32 = 7946;
/// Place of the rule that asks it: before the main table (32766), behind everything that an
/// administrator is likely to have put first.
pub const RULE_PRIORITY: u32 = 7946;

/// The host as the way to the outside.
#[derive(Debug)]
pub struct Outside {
    detours: Arc<Detours>,
    masquerade: bool,
    sysctl: Sysctl,
    /// The rules that were put in force last.
    filter: Mutex<Option<Vec<IpNet>>>,
    /// Evictions that have been told.
    told: AtomicU64,
}

/// What the nodes in force mean for the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// This node's gateway addresses, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// Ranges of this node's pods.
    pub ranges: Vec<IpNet>,
    /// Addresses of this node's host, gateways aside.
    pub own_hosts: Vec<IpAddr>,
    /// Addresses of the peers' hosts.
    pub peer_hosts: Vec<IpAddr>,
}

impl Outside {
    /// What the configuration asks for; `None` for a node without a way to the outside. Such a node takes
    /// back what an earlier configuration has left.
    ///
    /// # Errors
    ///
    /// There is no randomness.
    pub fn begin(config: OutsideConfig, host: &HostConfig) -> anyhow::Result<Option<Self>> {
        if config.via == Via::None {
            if let Err(error) = withdraw() {
                tracing::warn!(
                    error = with_causes(&error),
                    "taking back the way to the outside"
                );
            }
            return Ok(None);
        }
        let seed = [random()?, random()?];
        Ok(Some(Self {
            detours: Arc::new(Detours::new(seed, Instant::now())),
            masquerade: config.masquerade,
            sysctl: Sysctl::at(&host.proc_sys),
            filter: Mutex::default(),
            told: AtomicU64::new(0),
        }))
    }

    /// The flows that pass through the host.
    #[must_use]
    pub fn detours(&self) -> &Arc<Detours> {
        &self.detours
    }

    /// Brings the host to what the surroundings need; what is so already stays.
    ///
    /// # Errors
    ///
    /// What the kernel refused, with what helps; the rest was done.
    pub fn configure(&self, wanted: &Surroundings) -> anyhow::Result<()> {
        let netlink = Netlink::connect()?;
        // The rules of the routing before those of the filter: see `withdraw`.
        let results = [
            forwarding::configure(&netlink, &self.sysctl, wanted),
            configure_routes(&netlink, wanted).context("routes for what comes from pods"),
            self.configure_filter(wanted),
        ];
        results.into_iter().collect()
    }

    /// Fills the table with what the kernel's connection tracking knows, so that flows whose server
    /// speaks first outlive a restart. To be called before a port is read.
    pub fn restore(&self, snapshot: &Snapshot) {
        let mut restored = 0_usize;
        let now = Instant::now();
        let asked = Netfilter::connect().and_then(|netfilter| {
            netfilter.ask(&conntrack::dump(), 0, |kind, payload| {
                let flow = conntrack::translated(kind, payload).filter(|_| restored < RESTORED_MAX);
                if let Some(known) = flow.filter(|flow| is_ours(snapshot, flow)) {
                    let flow = Flow {
                        source: known.source.0,
                        destination: known.destination.0,
                        protocol: known.protocol,
                        source_port: known.source.1,
                        destination_port: known.destination.1,
                    };
                    self.detours.restore(&flow, known.is_closing, now);
                    restored += 1;
                }
            })
        });
        match asked {
            Ok(()) => tracing::info!(restored, "flows through the host, as the kernel knows them"),
            Err(error) => tracing::warn!(
                %error,
                restored,
                "the kernel does not tell its translated flows: connections through Services may not survive this restart"
            ),
        }
    }

    /// Says in the log when flows had to be forgotten since the last look.
    pub fn look(&self) {
        let evicted = self.detours.evicted();
        let before = self.told.swap(evicted, Ordering::Relaxed);
        if evicted > before {
            tracing::warn!(
                evicted = evicted - before,
                bound = DETOURS_MAX,
                "more flows pass through the host than are remembered: the least recently used were forgotten, and their replies may miss the translation"
            );
        }
    }

    fn configure_filter(&self, wanted: &Surroundings) -> anyhow::Result<()> {
        let mut filter = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        if filter.as_ref() == Some(&wanted.ranges) {
            return Ok(());
        }
        let table = nftables::Table {
            ranges: &wanted.ranges,
            device: HOST_DEVICE,
            masquerade: self.masquerade,
        };
        match apply(nftables::replace(&table)) {
            Ok(()) => *filter = Some(wanted.ranges.clone()),
            Err(error) if self.masquerade => {
                return Err(error).context(
                    "[outside] masquerade: the kernel refuses the nftables table inet fabric; load the modules nf_tables and nft_masq, or set masquerade = false and let another translate",
                );
            }
            Err(error) => {
                // Once: without it everything works, and a forged source is for others to catch.
                *filter = Some(wanted.ranges.clone());
                tracing::warn!(
                    %error,
                    "no nftables in this kernel: packets from elsewhere that bear a pod's address are stopped by rp_filter or not at all"
                );
            }
        }
        Ok(())
    }
}

/// Flows that are taken over from the kernel: each takes two places of the table at most.
const RESTORED_MAX: usize = DETOURS_MAX / 2;

/// Whether the host sends such a flow in another's name, and its replies come from the fabric.
fn is_ours(snapshot: &Snapshot, flow: &conntrack::Translated) -> bool {
    let from_here = match snapshot.next_hop(flow.source.0) {
        // Pods are taken up again later: an address of this node's range is as good.
        Some(NextHop::Local(port)) => port != PortId::HOST,
        Some(NextHop::Unassigned | NextHop::Peer(_)) => true,
        None => false,
    };
    let to_fabric = match snapshot.next_hop(flow.destination.0) {
        Some(NextHop::Local(port)) => port != PortId::HOST,
        Some(NextHop::Unassigned | NextHop::Peer(_)) => true,
        None => false,
    };
    from_here && to_fabric
}

/// Takes back routes, rules and the table of the packet filter; what is not there is no error. Settings
/// of the kernel stay: others may have come to rely on them.
///
/// # Errors
///
/// What the kernel refused.
pub fn withdraw() -> anyhow::Result<()> {
    let netlink = Netlink::connect()?;
    let mut rules = netlink.rules(false, TABLE)?;
    rules.extend(netlink.rules(true, TABLE)?);
    let routes = netlink.routes_in(TABLE)?;
    // The rules go last and tell that there is something to take back: a host that never was a way to
    // the outside need not load nftables for nothing.
    if rules.is_empty() && routes.is_empty() {
        return Ok(());
    }
    match apply(nftables::remove()) {
        Err(error) if is_unsupported(&error) => {}
        done => done.context("removing the nftables table inet fabric")?,
    }
    for route in routes {
        ignore_missing(netlink.delete_route_in(TABLE, &route))?;
    }
    for rule in rules {
        ignore_missing(netlink.delete_rule(&rule))?;
    }
    Ok(())
}

fn ignore_missing(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(NetlinkError::NotFound { .. }) => Ok(()),
        done => done,
    }
}

/// A kernel without nftables, or without any packet filter.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOENT)
    )
}

fn apply((batch, acknowledgements): (Vec<u8>, usize)) -> io::Result<()> {
    Netfilter::connect()?.ask(&batch, acknowledgements, |_, _| {})
}

fn configure_routes(netlink: &Netlink, wanted: &Surroundings) -> anyhow::Result<()> {
    let link = netlink.link(HOST_DEVICE)?;
    let index = link.context("fabric0 vanished")?.index;
    let families: BTreeSet<bool> = wanted.gateways.iter().map(IpAddr::is_ipv6).collect();
    let destinations: BTreeSet<IpNet> = wanted
        .peer_hosts
        .iter()
        .filter(|host| families.contains(&host.is_ipv6()))
        .map(|host| IpNet::from(*host))
        .collect();
    let present = netlink.routes_in(TABLE)?;
    let is_right =
        |route: &RouteSpec| route.index == index && destinations.contains(&route.destination);
    for route in present.iter().filter(|route| !is_right(route)) {
        ignore_missing(netlink.delete_route_in(TABLE, route))?;
    }
    for &destination in &destinations {
        let is_there = |route: &RouteSpec| route.destination == destination && is_right(route);
        if !present.iter().any(is_there) {
            let route = RouteSpec {
                destination,
                index,
                source: None,
                gateway: None,
                mtu: None,
            };
            netlink.replace_route_in(TABLE, &route)?;
        }
    }
    for ipv6 in [false, true] {
        let rule = RuleSpec {
            ipv6,
            priority: RULE_PRIORITY,
            input: HOST_DEVICE.to_owned(),
            table: TABLE,
        };
        let present = netlink.rules(ipv6, TABLE)?;
        if families.contains(&ipv6) && !present.contains(&rule) {
            netlink.add_rule(&rule)?;
        }
        let is_wanted = |found: &&RuleSpec| families.contains(&ipv6) && **found == rule;
        for found in present.iter().filter(|found| !is_wanted(found)) {
            ignore_missing(netlink.delete_rule(found))?;
        }
    }
    Ok(())
}

fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("no randomness"))?;
    Ok(u64::from_ne_bytes(bytes))
}
