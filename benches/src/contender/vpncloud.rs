//! vpncloud: both ends share a password; it picks the fastest of its ciphers by itself.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
};

use anyhow::Context as _;
use aws_lc_rs::rand;
use fabric_node::sys::{
    netlink::{Netlink, RouteSpec},
    netns::Netns,
};
use ipnet::IpNet;
use serde_json::json;

use super::{Daemon, End, Site, Trace, Tunnel};

const CRATE: &str = "vpncloud";
const VERSION: &str = "2.3.0";
/// UDP port of both ends: its default.
const PORT: u16 = 3210;
/// What it reckons for itself (bytes): IPv6 40, UDP 8, key number and nonce 8, tag 16, type 1. It
/// subtracts that from the MTU of the default route's device; workers of a lab have no such route.
const OVERHEAD_BYTES: u32 = 73;

/// It learns its own address by asking the kernel which one it would use towards this one, and ends
/// where there is no way there. Nothing is ever sent to it.
const FAR_AWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8));

pub(super) fn start(site: &Site<'_>, folder: &Path) -> anyhow::Result<Tunnel> {
    let program = site.programs.of_crate(CRATE, VERSION)?;
    let mut secret = [0; 16];
    rand::fill(&mut secret)?;
    let password = format!("{:032x}", u128::from_ne_bytes(secret));
    let [a, b] = &site.ends;
    let routes: Vec<Box<dyn Trace>> = vec![Box::new(Route::add(a)?), Box::new(Route::add(b)?)];
    let mut daemons = Vec::new();
    for (_, own, peer) in site.pairs() {
        let file = folder.join(format!("{}.yaml", own.ifname));
        let mtu = site.mtu(OVERHEAD_BYTES);
        // JSON is YAML.
        let configuration = json!({
            "device": {"name": own.ifname},
            // Not its key "ip": built by a compiler of today, it sets another address.
            "ifup": format!(
                "ip address add {} dev \"$IFNAME\" && ip link set \"$IFNAME\" mtu {mtu} up",
                own.inner
            ),
            "claims": [IpNet::from(own.inner.addr()).to_string()],
            "auto-claim": false,
            "listen": own.listen(PORT).to_string(),
            "peers": [peer.listen(PORT).to_string()],
            "crypto": {"password": password},
            // There is no router to be asked.
            "port-forwarding": false,
        });
        fs::write(&file, configuration.to_string())?;
        let mut command = Command::new(&program.path);
        command.arg("--config").arg(&file);
        daemons.push(Daemon::start(own, command, folder)?);
    }
    Ok(Tunnel {
        version: program.version,
        daemons,
        _traces: routes,
    })
}

/// A way to [`FAR_AWAY`] over the underlay, which goes with this value.
#[derive(Debug)]
struct Route {
    netns: Netns,
    spec: RouteSpec,
}

impl Trace for Route {}

impl Route {
    fn add(end: &End<'_>) -> anyhow::Result<Self> {
        let netns = end.netns.try_clone()?;
        let spec = netns.run(|| -> anyhow::Result<RouteSpec> {
            let netlink = Netlink::connect()?;
            let spec = RouteSpec {
                destination: FAR_AWAY.into(),
                index: underlay_index(&netlink, end.underlay)?,
                source: None,
                gateway: None,
                mtu: None,
            };
            netlink.replace_route(&spec)?;
            Ok(spec)
        })??;
        Ok(Self { netns, spec })
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        // What cannot be removed goes with its namespace.
        let _ = self
            .netns
            .run(|| Netlink::connect()?.delete_route(&self.spec));
    }
}

fn underlay_index(netlink: &Netlink, address: IpAddr) -> anyhow::Result<u32> {
    for link in netlink.links()? {
        let addresses = netlink.addresses(link.index)?;
        if addresses.iter().any(|net| net.addr() == address) {
            return Ok(link.index);
        }
    }
    None.with_context(|| format!("no interface has {address}"))
}
