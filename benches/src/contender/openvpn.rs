//! openvpn of the distribution: TLS between two ends that know each other's certificate, the cipher
//! that both prefer (AES-256-GCM), and no help from the kernel's data channel: this is a comparison
//! of userspace programs.
//!
//! Its own default holds for the device (MTU 1500): it lets TCP make segments that fit the underlay.

use std::{fs, path::Path, process::Command};

use aws_lc_rs::digest;
use rcgen::{CertificateParams, DnType, KeyPair};

use super::{Daemon, Site, Tunnel, program};

/// UDP port of both ends: its default.
const PORT: u16 = 1194;

pub(super) fn start(site: &Site<'_>, folder: &Path) -> anyhow::Result<Tunnel> {
    let program = program::installed("openvpn", "openvpn")?;
    let [a, b] = &site.ends;
    let fingerprints = [certify(&a.ifname, folder)?, certify(&b.ifname, folder)?];
    let mut daemons = Vec::new();
    for (index, own, peer) in site.pairs() {
        let roles: [&[&str]; 2] = [&["--tls-server", "--dh", "none"], &["--tls-client"]];
        let port = PORT.to_string();
        let mut command = Command::new(&program.path);
        command
            .current_dir(folder)
            .args(["--dev", &own.ifname, "--dev-type", "tun", "--disable-dco"])
            .args(["--proto", "udp", "--local", &own.underlay.to_string()])
            .args(["--port", &port, "--remote", &peer.underlay.to_string()])
            .args(roles[index])
            .args(["--cert", &format!("{}.crt", own.ifname)])
            .args(["--key", &format!("{}.key", own.ifname)])
            .args(["--peer-fingerprint", &fingerprints[1 - index]])
            .arg("--ifconfig")
            .args([own, peer].map(|end| end.inner.addr().to_string()))
            .args(["--verb", "3"]);
        daemons.push(Daemon::start(own, command, folder)?);
    }
    Ok(Tunnel {
        version: program.version,
        daemons,
        _traces: Vec::new(),
    })
}

/// Writes a key and its self-signed certificate; the certificate's SHA-256 as openvpn reads it.
fn certify(name: &str, folder: &Path) -> anyhow::Result<String> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.self_signed(&key)?;
    fs::write(folder.join(format!("{name}.crt")), certificate.pem())?;
    fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    let hash = digest::digest(&digest::SHA256, certificate.der());
    let bytes: Vec<String> = hash
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    Ok(bytes.join(":"))
}
