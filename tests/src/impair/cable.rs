//! Lays the cable: two namespaces in the place of the lab's bridge, each with one worker's link and a
//! TUN device, and routes between the two.
//!
//! Comes in: the lab's underlay namespace and the two links in it. Goes out: two TUN devices; what is
//! read from one and written to the other goes from worker to worker. Everything goes away with the
//! value, the workers' links included. Never done here: moving packets. IPv4 only.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{plan::underlay_network, underlay::inside},
    sys::{
        netlink::{LinkSettings, Netlink, RouteSpec},
        netns::Netns,
        tun::{Tun, TunOffloads},
    },
};
use ipnet::IpNet;

/// Name of the TUN device in either namespace.
const TUN_IFNAME: &str = "cable";
/// Super-packets that wait for the program (packets): it shares the processors with those who send,
/// and what is lost here is a loss that nobody asked for.
const QUEUE_PACKETS: u32 = 10_000;
/// Place of `drop` among the numbers of a line of `/proc/net/dev`: eight of the receiver come first.
const TRANSMIT_DROPS: usize = 11;

/// One worker's link.
#[derive(Clone, Debug)]
pub struct Plug {
    /// Interface in the underlay's namespace.
    pub ifname: String,
    /// The worker's address.
    pub address: IpAddr,
}

/// A cable that lies.
#[derive(Debug)]
pub struct Cable {
    /// For each worker: what it sends is read here, what is written here it receives.
    pub ends: [Tun; 2],
    middles: [Netns; 2],
}

impl Cable {
    /// Takes the links of `plugs` from the namespace `underlay` and connects them by a cable.
    ///
    /// # Errors
    ///
    /// Any step failed, or the kernel has no UDP super-packets for TUN devices (Linux 6.2).
    pub fn lay(underlay: &Path, plugs: &[Plug; 2], mtu: u32) -> anyhow::Result<Self> {
        let middles = [Netns::create()?, Netns::create()?];
        let lay_end = |index: usize| {
            let plug = &plugs[index];
            connect(underlay, plug, &middles[index], mtu)
                .with_context(|| format!("cannot connect {} to the cable", plug.ifname))
        };
        Ok(Self {
            ends: [lay_end(0)?, lay_end(1)?],
            middles,
        })
    }

    /// Packets of each worker that the kernel lost because nobody read them in time.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn overruns(&self) -> anyhow::Result<[u64; 2]> {
        let of = |middle: &Netns| middle.run(transmit_drops)?;
        let [one, other] = &self.middles;
        Ok([of(one)?, of(other)?])
    }
}

fn connect(underlay: &Path, plug: &Plug, middle: &Netns, mtu: u32) -> anyhow::Result<Tun> {
    inside(underlay, || {
        let netlink = Netlink::connect()?;
        Ok(netlink.move_to_netns(index(&netlink, &plug.ifname)?, middle)?)
    })?;
    middle.run(|| {
        let netlink = Netlink::connect()?;
        netlink.set_loopback_up()?;
        let tun = Tun::create(TUN_IFNAME, TunOffloads::ALL)?;
        ensure!(
            tun.offloads().uso4,
            "this kernel cuts UDP super-packets in front of a TUN device: 6.2 is the first that \
             does not"
        );
        for (ifname, tx_queue_len) in [(TUN_IFNAME, Some(QUEUE_PACKETS)), (&plug.ifname, None)] {
            let settings = LinkSettings {
                mtu: Some(mtu),
                tx_queue_len,
                ipv6_addr_gen_none: true,
                up: Some(true),
            };
            netlink.configure_link(index(&netlink, ifname)?, settings)?;
        }
        answer_for_the_other_side(&plug.ifname)?;
        let (address, prefix) = underlay_network(plug.address);
        let all = IpNet::new(address, prefix)?.trunc();
        for (destination, ifname) in [(plug.address.into(), &*plug.ifname), (all, TUN_IFNAME)] {
            netlink.replace_route(&RouteSpec {
                destination,
                index: index(&netlink, ifname)?,
                source: None,
                gateway: None,
                mtu: None,
            })?;
        }
        Ok(tun)
    })?
}

/// The worker believes that it is on one link with the other: its questions for the other's hardware
/// address are answered at once, and packets are carried on.
fn answer_for_the_other_side(ifname: &str) -> anyhow::Result<()> {
    let folder = Path::new("/proc/sys/net/ipv4");
    let set = |path: PathBuf, value: &str| {
        fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))
    };
    set(folder.join("ip_forward"), "1")?;
    for interface in ["all", ifname, TUN_IFNAME] {
        set(folder.join("conf").join(interface).join("rp_filter"), "0")?;
    }
    set(folder.join("conf").join(ifname).join("proxy_arp"), "1")?;
    set(folder.join("neigh").join(ifname).join("proxy_delay"), "0")
}

fn transmit_drops() -> anyhow::Result<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        (name.trim() == TUN_IFNAME).then_some(numbers)
    });
    line.and_then(|numbers| numbers.split_whitespace().nth(TRANSMIT_DROPS)?.parse().ok())
        .with_context(|| format!("/proc/net/dev says nothing of {TUN_IFNAME}"))
}

fn index(netlink: &Netlink, ifname: &str) -> anyhow::Result<u32> {
    let link = netlink.link(ifname)?;
    Ok(link
        .with_context(|| format!("there is no interface {ifname}"))?
        .index)
}
