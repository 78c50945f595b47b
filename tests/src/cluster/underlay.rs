//! The network between the machines: a bridge, a cable to each machine, a router to an outside world that knows the
//! machines and no pod.
//!
//! Scenery around the cluster, never part of what is proved. The router and the outside share one namespace.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{command, underlay::inside},
    sys::{
        netlink::{LinkSettings, Netlink, RouteSpec, enable_ipv6},
        netns::Netns,
    },
};
use ipnet::IpNet;

use super::plan::{CONTROL_PLANE, Machine, OUTSIDE, ROUTER};

/// Folder of named network namespaces.
const NETNS: &str = "/run/netns";
/// The bridge, which is the router's interface too.
const BRIDGE: &str = "br0";
/// A machine's interface.
pub const IFNAME: &str = "eth0";
/// How long a machine may take to forget its neighbours.
const FORGET_MAX: Duration = Duration::from_secs(10);
/// Path MTU of the underlay (bytes): that of an ordinary Ethernet.
const MTU: u32 = 1500;

/// The bridge and the namespaces of the machines. Dropping it removes the namespaces' names.
#[derive(Debug)]
pub struct Underlay {
    prefix: String,
    outside: PathBuf,
    machines: Vec<String>,
}

impl Underlay {
    /// A bridge without machines. All names begin with `prefix`.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn make(prefix: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(NETNS)?;
        let underlay = Self {
            prefix: prefix.to_owned(),
            outside: Path::new(NETNS).join(format!("{prefix}-outside")),
            machines: Vec::new(),
        };
        make_netns(&underlay.outside)?;
        inside(&underlay.outside, || {
            let netlink = Netlink::connect()?;
            netlink.add_bridge(BRIDGE)?;
            enable_ipv6(BRIDGE)?;
            up(&netlink, BRIDGE, true)?;
            for network in ROUTER.networks()? {
                netlink.add_address(index(&netlink, BRIDGE)?, network)?;
            }
            for address in OUTSIDE {
                netlink.add_address(index(&netlink, "lo")?, IpNet::from(address))?;
            }
            forward()
        })?;
        Ok(underlay)
    }

    /// The namespace of the router and of the outside world: who calls from there is a stranger to the cluster.
    #[must_use]
    pub fn outside(&self) -> &Path {
        &self.outside
    }

    /// The namespace of the machine called `name`.
    #[must_use]
    pub fn netns(&self, name: &str) -> PathBuf {
        Path::new(NETNS).join(format!("{}-{name}", self.prefix))
    }

    /// Makes the network namespace of a machine and connects it, with a default route of each family to the router.
    ///
    /// # Errors
    ///
    /// The kernel refuses, or there is one of that name.
    pub fn add(&mut self, name: &str, machine: Machine) -> anyhow::Result<PathBuf> {
        let path = self.netns(name);
        make_netns(&path)?;
        self.machines.push(name.to_owned());
        self.connect(name, machine, &path)
            .with_context(|| format!("cannot connect {name} to the underlay"))?;
        let others = self.machines.iter().filter(|other| *other != name);
        others
            .map(|other| self.netns(other))
            .try_for_each(|other| forget_neighbours(&other))?;
        Ok(path)
    }

    /// Disconnects a machine and takes its namespace's name away.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        inside(&self.outside, || {
            let netlink = Netlink::connect()?;
            if let Some(link) = netlink.link(name)? {
                netlink.delete_link(link.index)?;
            }
            Ok(())
        })?;
        self.machines.retain(|machine| machine != name);
        Ok(Netns::remove_named(self.netns(name))?)
    }

    /// Pulls the cable of a machine, or plugs it in.
    ///
    /// # Errors
    ///
    /// There is no such machine.
    pub fn set_link(&self, name: &str, up: bool) -> anyhow::Result<()> {
        inside(&self.outside, || {
            let netlink = Netlink::connect()?;
            let settings = LinkSettings {
                up: Some(up),
                ..LinkSettings::default()
            };
            Ok(netlink.configure_link(index(&netlink, name)?, settings)?)
        })
    }

    fn connect(&self, name: &str, machine: Machine, path: &Path) -> anyhow::Result<()> {
        let netns = Netns::open(path)?;
        inside(&self.outside, || {
            let netlink = Netlink::connect()?;
            netlink.add_veth(name, IFNAME)?;
            netlink.move_to_netns(index(&netlink, IFNAME)?, &netns)?;
            netlink.set_master(index(&netlink, name)?, index(&netlink, BRIDGE)?)?;
            up(&netlink, name, false)
        })?;
        inside(path, || {
            let netlink = Netlink::connect()?;
            enable_ipv6(IFNAME)?;
            let index = index(&netlink, IFNAME)?;
            for network in machine.networks()? {
                netlink.add_address(index, network)?;
            }
            up(&netlink, IFNAME, true)?;
            for gateway in ROUTER.addresses() {
                let any: IpNet = if gateway.is_ipv4() {
                    "0.0.0.0/0"
                } else {
                    "::/0"
                }
                .parse()?;
                netlink.replace_route(&RouteSpec {
                    destination: any,
                    index,
                    source: None,
                    gateway: Some(gateway),
                    mtu: None,
                })?;
            }
            // As every guide to Kubernetes asks for.
            if machine == CONTROL_PLANE {
                Ok(())
            } else {
                forward()
            }
        })
    }
}

impl Drop for Underlay {
    fn drop(&mut self) {
        for machine in std::mem::take(&mut self.machines) {
            let _ = self.remove(&machine);
        }
        let _ = Netns::remove_named(&self.outside);
    }
}

fn make_netns(path: &Path) -> anyhow::Result<()> {
    Netns::create_named(path)?.run(|| -> anyhow::Result<()> {
        Netlink::connect()?.set_loopback_up()?;
        Ok(enable_ipv6("lo")?)
    })?
}

/// What a machine does when another one announces its addresses as it boots, and what this kernel does not do for IPv6
/// before the bridge lets a new port send: otherwise packets go to the machine that had the addresses before, for ten
/// seconds and more (RFC 4861 section 7.3.3).
fn forget_neighbours(netns: &Path) -> anyhow::Result<()> {
    let ip = command::find("ip").context("there is no program ip: install iproute2")?;
    let answer = inside(netns, move || {
        let mut forget = Command::new(ip);
        forget.args(["neigh", "flush", "dev", IFNAME]);
        command::run(forget, b"", FORGET_MAX)
    })?;
    ensure!(
        answer.status.success(),
        "ip neigh flush ended with {}: {}",
        answer.status,
        answer.last_line()
    );
    Ok(())
}

/// Lets the calling thread's namespace forward packets of both families.
fn forward() -> anyhow::Result<()> {
    for file in [
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/net/ipv6/conf/all/forwarding",
    ] {
        fs::write(file, "1").with_context(|| format!("cannot write {file}"))?;
    }
    Ok(())
}

/// Who forwards packets of IPv6 asks for the next hop from its link-local address: a machine needs one, a port of the
/// bridge does not.
fn up(netlink: &Netlink, ifname: &str, link_local: bool) -> anyhow::Result<()> {
    let settings = LinkSettings {
        mtu: Some(MTU),
        ipv6_addr_gen_none: !link_local,
        up: Some(true),
        ..LinkSettings::default()
    };
    Ok(netlink.configure_link(index(netlink, ifname)?, settings)?)
}

fn index(netlink: &Netlink, ifname: &str) -> anyhow::Result<u32> {
    let link = netlink.link(ifname)?;
    Ok(link
        .with_context(|| format!("there is no interface {ifname}"))?
        .index)
}
