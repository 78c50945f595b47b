//! vpncloud: both ends share a password; it picks the fastest of its ciphers by itself.

use std::{fs, path::Path, process::Command};

use aws_lc_rs::rand;
use serde_json::json;

use super::{Daemon, Site, Tunnel};

const CRATE: &str = "vpncloud";
const VERSION: &str = "2.3.0";
/// UDP port of both ends: its default.
const PORT: u16 = 3210;
/// What it reckons for itself (bytes): IPv6 40, UDP 8, key number and nonce 8, tag 16, type 1. It
/// subtracts that from the MTU of the default route's device; workers of a lab have no such route.
const OVERHEAD_BYTES: u32 = 73;

pub(super) fn start(site: &Site<'_>, folder: &Path) -> anyhow::Result<Tunnel> {
    let program = site.programs.of_crate(CRATE, VERSION)?;
    let mut secret = [0; 16];
    rand::fill(&mut secret)?;
    let password = format!("{:032x}", u128::from_ne_bytes(secret));
    let mut daemons = Vec::new();
    for (_, own, peer) in site.pairs() {
        let file = folder.join(format!("{}.yaml", own.ifname));
        let mtu = site.mtu(OVERHEAD_BYTES);
        // JSON is YAML.
        let configuration = json!({
            "device": {"name": own.ifname},
            "ip": own.inner.to_string(),
            "ifup": format!("ip link set dev \"$IFNAME\" mtu {mtu}"),
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
        _traces: Vec::new(),
    })
}
