//! The kernel's VXLAN between two addresses, as flannel sets it up by default: without encryption,
//! without learning. A reference, and the only contender without a process.

use std::process::Command;

use anyhow::Context as _;
use fabric_node::{
    lab::command,
    sys::{netlink::Netlink, netns::Netns},
};

use super::{End, Site, Trace, Tunnel, program};

/// What it adds to a packet (bytes): IPv4 20, UDP 8, VXLAN 8, Ethernet 14 (RFC 7348, section 5).
const OVERHEAD_BYTES: u32 = 50;
/// Number of the network: flannel's.
const VNI: &str = "1";
/// UDP port: Linux's and flannel's.
const PORT: &str = "8472";

pub(super) fn start(site: &Site<'_>) -> anyhow::Result<Tunnel> {
    let mut links: Vec<Box<dyn Trace>> = Vec::new();
    let ip = command::find("ip").context("ip is not installed: apt-get install iproute2")?;
    for (_, own, peer) in site.pairs() {
        let run = |arguments: &[&str]| {
            let mut tool = Command::new(&ip);
            tool.args(arguments);
            own.run_tool(tool)
        };
        let (local, remote) = (own.underlay.to_string(), peer.underlay.to_string());
        let mtu = site.mtu(OVERHEAD_BYTES).to_string();
        let ifname = own.ifname.as_str();
        run(&[
            "link",
            "add",
            ifname,
            "mtu",
            &mtu,
            "type",
            "vxlan",
            "id",
            VNI,
            "local",
            &local,
            "remote",
            &remote,
            "dstport",
            PORT,
            "nolearning",
        ])?;
        links.push(Box::new(Link::of(own)?));
        run(&["address", "add", &own.inner.to_string(), "dev", ifname])?;
        run(&["link", "set", "dev", ifname, "up"])?;
    }
    Ok(Tunnel {
        version: program::kernel()?,
        daemons: Vec::new(),
        _traces: links,
    })
}

/// An interface that goes with this value.
#[derive(Debug)]
struct Link {
    netns: Netns,
    ifname: String,
}

impl Trace for Link {}

impl Link {
    fn of(end: &End<'_>) -> anyhow::Result<Self> {
        Ok(Self {
            netns: end.netns.try_clone()?,
            ifname: end.ifname.clone(),
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // What cannot be removed goes with its namespace.
        let _ = self.netns.run(|| -> anyhow::Result<()> {
            let netlink = Netlink::connect()?;
            if let Some(link) = netlink.link(&self.ifname)? {
                netlink.delete_link(link.index)?;
            }
            Ok(())
        });
    }
}
