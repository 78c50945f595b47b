//! WireGuard in userspace, whoever wrote it: one process at each end, configured through its own
//! socket (wireguard.com/xplatform).

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use aws_lc_rs::{
    agreement::{PrivateKey, X25519},
    encoding::{AsBigEndian as _, Curve25519SeedBin},
};
use fabric_node::sys::netlink::{LinkSettings, Netlink};

use super::{Daemon, End, START_MAX, Site, Trace, Tunnel, program::Program, wait_until};

/// What WireGuard adds to a packet at most (bytes): IPv6 40, UDP 8, its own 32. wg-quick(8) subtracts
/// as much from the MTU of the underlay.
const OVERHEAD_BYTES: u32 = 80;
/// Where the programs open their sockets.
const SOCKET_FOLDER: &str = "/var/run/wireguard";
/// How long a program may take to answer on its socket.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// An implementation.
#[derive(Debug)]
pub(super) struct Implementation<'a> {
    pub(super) program: Program,
    /// What makes it stay in the foreground; the name of the device follows.
    pub(super) arguments: &'a [&'a str],
    /// UDP port of both ends.
    pub(super) port: u16,
}

/// Starts and configures both ends.
pub(super) fn start(
    site: &Site<'_>,
    folder: &Path,
    implementation: Implementation<'_>,
) -> anyhow::Result<Tunnel> {
    let [a, b] = &site.ends;
    // Made first, so that it is dropped last on the way out of an error, too.
    let sockets = Sockets {
        files: [socket(&a.ifname), socket(&b.ifname)],
        folder_was_there: Path::new(SOCKET_FOLDER).exists(),
    };
    let start = |end: &End<'_>| -> anyhow::Result<Daemon> {
        let mut command = Command::new(&implementation.program.path);
        command
            .args(implementation.arguments)
            .arg(&end.ifname)
            .env("LOG_LEVEL", "error");
        Daemon::start(end, command, folder)
    };
    let mut daemons = vec![start(a)?, start(b)?];
    for file in &sockets.files {
        let answers = || UnixStream::connect(file).is_ok();
        wait_until(START_MAX, &mut daemons, "open its socket", answers)?;
    }
    let keys = [Keys::generate()?, Keys::generate()?];
    for (index, own, peer) in site.pairs() {
        let request = message(
            &keys[index].private,
            &keys[1 - index].public,
            implementation.port,
            peer.listen(implementation.port),
            peer.inner.addr(),
        );
        let answer = ask(&own.ifname, &request)?;
        ensure!(
            answer.contains("errno=0\n"),
            "it refuses its configuration: {}",
            answer.trim()
        );
        own.netns
            .run(|| bring_up(own, site.mtu(OVERHEAD_BYTES)))??;
    }
    Ok(Tunnel {
        version: implementation.program.version,
        daemons,
        _traces: vec![Box::new(sockets)],
    })
}

/// The sockets of both ends; what is left of them goes with this value.
#[derive(Debug)]
struct Sockets {
    files: [PathBuf; 2],
    folder_was_there: bool,
}

impl Trace for Sockets {}

impl Drop for Sockets {
    fn drop(&mut self) {
        // A process that is asked to end removes its own; a killed one cannot.
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        if !self.folder_was_there {
            // Not empty means that somebody else has come to use it.
            let _ = fs::remove_dir(SOCKET_FOLDER);
        }
    }
}

fn socket(ifname: &str) -> PathBuf {
    Path::new(SOCKET_FOLDER).join(format!("{ifname}.sock"))
}

fn bring_up(end: &End<'_>, mtu: u32) -> anyhow::Result<()> {
    let netlink = Netlink::connect()?;
    let index = netlink
        .link(&end.ifname)?
        .with_context(|| format!("there is no interface {}", end.ifname))?
        .index;
    let settings = LinkSettings {
        mtu: Some(mtu),
        up: Some(true),
        ..LinkSettings::default()
    };
    netlink.configure_link(index, settings)?;
    Ok(netlink.add_address(index, end.inner)?)
}

/// One request and its answer; both end with an empty line (wireguard.com/xplatform).
fn ask(ifname: &str, request: &str) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(socket(ifname))?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut bytes = [0; 256];
    while !answer.ends_with(b"\n\n") {
        match stream.read(&mut bytes)? {
            0 => break,
            len => answer.extend_from_slice(bytes.get(..len).unwrap_or_default()),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn message(private: &str, peer: &str, port: u16, endpoint: SocketAddr, allowed: IpAddr) -> String {
    let prefix_len = if allowed.is_ipv4() { 32 } else { 128 };
    format!(
        "set=1\nprivate_key={private}\nlisten_port={port}\nreplace_peers=true\n\
         public_key={peer}\nendpoint={endpoint}\npersistent_keepalive_interval=25\n\
         replace_allowed_ips=true\nallowed_ip={allowed}/{prefix_len}\n\n"
    )
}

/// An X25519 key pair, in hexadecimal.
struct Keys {
    private: String,
    public: String,
}

impl Keys {
    fn generate() -> anyhow::Result<Self> {
        let key = PrivateKey::generate(&X25519)?;
        let seed: Curve25519SeedBin<'_> = key.as_be_bytes()?;
        Ok(Self {
            private: hex(seed.as_ref()),
            public: hex(key.compute_public_key()?.as_ref()),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The message has the peer's keys behind its public key, hexadecimal, and ends with an empty
    /// line.
    #[test]
    fn the_message_is_as_the_protocol_asks() {
        let keys = Keys::generate().unwrap();
        assert_eq!((keys.private.len(), keys.public.len()), (64, 64));
        let endpoint = "10.90.0.2:51820".parse().unwrap();
        let text = message(
            &keys.private,
            &keys.public,
            51_820,
            endpoint,
            "10.99.0.2".parse().unwrap(),
        );
        let peer = text.find("public_key=").unwrap();
        assert!(text.find("endpoint=10.90.0.2:51820\n").unwrap() > peer);
        assert!(text.find("allowed_ip=10.99.0.2/32\n").unwrap() > peer);
        assert!(text.starts_with("set=1\n") && text.ends_with("\n\n"));
    }
}
