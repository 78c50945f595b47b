//! A pod network of the reference plugins, for proving the cluster without the product and for comparing with it: ptp and
//! host-local on each node, a route to every other node's pod CIDRs, and the node's own address for what leaves the pods'
//! network, where nobody knows them.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{command, underlay::inside},
    sys::netlink::{Netlink, RouteSpec},
};
use ipnet::IpNet;
use serde_json::json;

use super::{
    node::Node,
    plan::{self, Machine},
    realm::found,
    underlay::IFNAME,
};

/// How long setting the rules may take.
const NFT_MAX: Duration = Duration::from_secs(20);
/// Name of the configuration in `/etc/cni/net.d`.
const FILE: &str = "10-reference.conflist";

/// Gives `node` a network configuration for its pod CIDRs.
///
/// # Errors
///
/// It cannot be written.
pub fn configure(node: &Node, cidrs: &[IpNet]) -> anyhow::Result<()> {
    let ranges: Vec<_> = cidrs.iter().map(|cidr| json!([{"subnet": cidr}])).collect();
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "reference",
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": ranges,
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }, {
            "type": "portmap",
            "capabilities": {"portMappings": true},
        }],
    });
    masquerade(node)?;
    // Whole or not at all: the runtime looks at any moment.
    let unfinished = node.networks().join("unfinished");
    fs::write(&unfinished, serde_json::to_vec_pretty(&list)?)?;
    fs::rename(&unfinished, node.networks().join(FILE))
        .with_context(|| format!("cannot configure the network of {}", node.name()))
}

fn masquerade(node: &Node) -> anyhow::Result<()> {
    let [v4, v6] = plan::pod_networks()?;
    let rules = format!(
        "table inet reference {{
    chain postrouting {{
        type nat hook postrouting priority srcnat + 10;
        ip saddr {v4} ip daddr != {v4} masquerade
        ip6 saddr {v6} ip6 daddr != {v6} masquerade
    }}
}}
"
    );
    let mut nft = node.realm().command(&found("nft")?, Path::new("/"))?;
    nft.args(["-f", "-"]);
    let answer = command::run(nft, rules.as_bytes(), NFT_MAX)?;
    ensure!(
        answer.status.success(),
        "nft ended with {}: {}",
        answer.status,
        answer.stderr
    );
    Ok(())
}

/// Tells `node` the way to pods of `peer`, which has `cidrs`.
///
/// # Errors
///
/// The kernel refuses.
pub fn route(node: &Node, peer: Machine, cidrs: &[IpNet]) -> anyhow::Result<()> {
    inside(node.realm().netns(), || {
        let netlink = Netlink::connect()?;
        let index = netlink.link(IFNAME)?.context("no underlay")?.index;
        for &destination in cidrs {
            let is_v4 = destination.addr().is_ipv4();
            let gateway = peer.addresses().into_iter().find(|a| a.is_ipv4() == is_v4);
            netlink.replace_route(&RouteSpec {
                destination,
                index,
                source: None,
                gateway,
                mtu: None,
            })?;
        }
        Ok(())
    })
}
