//! nebula, at the version of `benches/peers/nebula/go.mod`: each end knows the other's address, there
//! is no lighthouse, and the firewall lets everything through.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use super::{Daemon, End, Site, Tunnel, program::GoProgram, run_tool};

/// What it adds to a packet (bytes): IPv4 20, UDP 8, its own header 16, the tag 16. Its default MTU,
/// 1300, is meant for paths of which nothing is known.
const OVERHEAD_BYTES: u32 = 60;
/// UDP port of both ends: the one in its documentation.
const PORT: u16 = 4242;
const PROGRAM: GoProgram = GoProgram {
    pins: "nebula",
    module: "github.com/slackhq/nebula",
    package: "github.com/slackhq/nebula/cmd/nebula",
    name: "nebula",
};
/// Makes its certificates.
const CERT_PROGRAM: GoProgram = GoProgram {
    package: "github.com/slackhq/nebula/cmd/nebula-cert",
    name: "nebula-cert",
    ..PROGRAM
};

pub(super) fn start(site: &Site<'_>, folder: &Path) -> anyhow::Result<Tunnel> {
    let program = site.programs.go(PROGRAM)?;
    let cert_program = site.programs.go(CERT_PROGRAM)?;
    let cert_tool = |command: &str, name: &str| {
        let mut tool = Command::new(&cert_program.path);
        tool.current_dir(folder).args([command, "-name", name]);
        tool.args(["-out-crt", &format!("{name}.crt")]);
        tool.args(["-out-key", &format!("{name}.key")]);
        tool
    };
    run_tool(cert_tool("ca", "ca"))?;
    let mut daemons = Vec::new();
    for (_, own, peer) in site.pairs() {
        let mut sign = cert_tool("sign", &own.ifname);
        sign.args(["-ca-crt", "ca.crt", "-ca-key", "ca.key"]);
        sign.args(["-networks", &own.inner.to_string()]);
        run_tool(sign)?;
        let file = folder.join(format!("{}.yaml", own.ifname));
        let configuration = configuration(own, peer, site.mtu(OVERHEAD_BYTES));
        // JSON is YAML.
        fs::write(&file, configuration.to_string())?;
        let mut command = Command::new(&program.path);
        command.current_dir(folder).arg("-config").arg(&file);
        daemons.push(Daemon::start(own, command, folder)?);
    }
    Ok(Tunnel {
        version: program.version,
        daemons,
        _traces: Vec::new(),
    })
}

fn configuration(own: &End<'_>, peer: &End<'_>, mtu: u32) -> Value {
    let anything = json!([{"port": "any", "proto": "any", "host": "any"}]);
    json!({
        "pki": {
            "ca": "ca.crt",
            "cert": format!("{}.crt", own.ifname),
            "key": format!("{}.key", own.ifname),
        },
        "static_host_map": {peer.inner.addr().to_string(): [peer.listen(PORT).to_string()]},
        "lighthouse": {"am_lighthouse": false, "hosts": []},
        "listen": {"host": own.underlay.to_string(), "port": PORT},
        "tun": {"dev": own.ifname, "mtu": mtu},
        "logging": {"level": "warning"},
        "firewall": {"outbound": anything, "inbound": anything},
    })
}
