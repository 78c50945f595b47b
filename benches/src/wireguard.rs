//! The peer to compare with: wireguard-go at the version of `benches/peers/go.mod`, one process in
//! each worker's namespace, configured through its own socket.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::{
    agreement::{PrivateKey, X25519},
    encoding::{AsBigEndian as _, Curve25519SeedBin},
};
use fabric_node::{
    lab::command,
    sys::{
        netlink::{LinkSettings, Netlink},
        netns::Netns,
    },
};
use ipnet::IpNet;

use crate::child::Guard;

/// MTU of the tunnel (bytes): what 1500 leaves after 80 bytes of outer headers, as wg-quick(8) sets.
const MTU: u32 = 1420;
/// UDP port of both ends.
const LISTEN_PORT: u16 = 51_820;
/// Go module of the peer.
const MODULE: &str = "golang.zx2c4.com/wireguard";
/// Where the program opens its sockets.
const SOCKET_FOLDER: &str = "/var/run/wireguard";
/// How long a build may take, downloads included.
const BUILD_MAX: Duration = Duration::from_secs(300);
/// How long the program may take until its socket answers.
const START_MAX: Duration = Duration::from_secs(10);
/// Pause between two looks for the socket.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// How long the program may take to answer on its socket.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The program at the pinned version, in `bin_dir`; built with Go if it is not there yet.
///
/// # Errors
///
/// The version is not pinned, Go is missing, or the build fails.
pub fn program(peers: &Path, bin_dir: &Path) -> anyhow::Result<PathBuf> {
    let go_mod = fs::read_to_string(peers.join("go.mod"))
        .with_context(|| format!("cannot read {}/go.mod", peers.display()))?;
    let version = pinned(&go_mod).with_context(|| format!("go.mod does not name {MODULE}"))?;
    let program = bin_dir.join(format!("wireguard-go-{version}"));
    if command::is_program(&program) {
        return Ok(program);
    }
    fs::create_dir_all(bin_dir)?;
    let unfinished = bin_dir.join("wireguard-go.unfinished");
    let mut build = Command::new(command::find("go").context("Go is not installed")?);
    build
        .args(["build", "-trimpath", "-o"])
        .args([unfinished.as_os_str(), MODULE.as_ref()])
        .current_dir(peers);
    let answer = command::run(build, b"", BUILD_MAX)?;
    ensure!(
        answer.status.success(),
        "go build failed: {}",
        answer.last_line()
    );
    fs::rename(&unfinished, &program)?;
    Ok(program)
}

/// The version of the module in the text of a `go.mod`.
#[must_use]
pub fn pinned(go_mod: &str) -> Option<&str> {
    go_mod.lines().find_map(|line| {
        let mut words = line
            .trim_start()
            .trim_start_matches("require ")
            .split_whitespace();
        (words.next() == Some(MODULE))
            .then(|| words.next())
            .flatten()
            .filter(|version| version.starts_with('v'))
    })
}

/// One end of the tunnel, as planned.
#[derive(Debug)]
pub struct End<'a> {
    /// Where it runs.
    pub netns: &'a Netns,
    /// Name of its device and socket: unique on the machine, at most 15 bytes.
    pub ifname: String,
    /// Address on the underlay.
    pub underlay: IpAddr,
    /// Address inside the tunnel.
    pub inner: IpNet,
}

/// A tunnel of two processes.
#[derive(Debug)]
pub struct Tunnel {
    ends: [Guard; 2],
    // Dropped last: the processes use them until they end.
    _sockets: Sockets,
}

/// The sockets of both ends; what is left of them goes with this value.
#[derive(Debug)]
struct Sockets {
    files: [PathBuf; 2],
    folder_was_there: bool,
}

impl Tunnel {
    /// Starts and configures both ends.
    ///
    /// # Errors
    ///
    /// A process does not start or refuses its configuration; then none is left.
    pub fn start(program: &Path, planned: &[End<'_>; 2]) -> anyhow::Result<Self> {
        let [a, b] = planned;
        // Made first, so that it is dropped last on the way out of an error, too.
        let sockets = Sockets {
            files: [socket(&a.ifname), socket(&b.ifname)],
            folder_was_there: Path::new(SOCKET_FOLDER).exists(),
        };
        let tunnel = Self {
            ends: [start(program, a)?, start(program, b)?],
            _sockets: sockets,
        };
        let keys = [Keys::generate()?, Keys::generate()?];
        let [keys_a, keys_b] = &keys;
        configure(a, keys_a, b, keys_b)?;
        configure(b, keys_b, a, keys_a)?;
        Ok(tunnel)
    }

    /// Process ids of both ends.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.ends.iter().map(Guard::pid).collect()
    }
}

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

fn start(program: &Path, end: &End<'_>) -> anyhow::Result<Guard> {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(program);
    command
        .args(["--foreground", &end.ifname])
        .env("LOG_LEVEL", "error")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A Ctrl-C in the terminal is for this program, which ends its peers in order.
        .process_group(0);
    let mut guard = Guard::start(end.netns, command)?;
    let deadline = Instant::now() + START_MAX;
    while UnixStream::connect(socket(&end.ifname)).is_err() {
        if guard.has_ended() {
            bail!(
                "wireguard-go ended at once in the namespace of {}",
                end.underlay
            );
        }
        ensure!(
            Instant::now() < deadline,
            "wireguard-go does not open its socket"
        );
        thread::sleep(LOOK_INTERVAL);
    }
    Ok(guard)
}

fn configure(own: &End<'_>, keys: &Keys, peer: &End<'_>, peer_keys: &Keys) -> anyhow::Result<()> {
    let answer = ask(
        &own.ifname,
        &message(
            &keys.private,
            &peer_keys.public,
            SocketAddr::new(peer.underlay, LISTEN_PORT),
            peer.inner.addr(),
        ),
    )?;
    ensure!(
        answer.contains("errno=0\n"),
        "wireguard-go refuses its configuration: {}",
        answer.trim()
    );
    own.netns.run(|| -> anyhow::Result<()> {
        let netlink = Netlink::connect()?;
        let index = netlink
            .link(&own.ifname)?
            .with_context(|| format!("there is no interface {}", own.ifname))?
            .index;
        let settings = LinkSettings {
            mtu: Some(MTU),
            up: Some(true),
            ..LinkSettings::default()
        };
        netlink.configure_link(index, settings)?;
        Ok(netlink.add_address(index, own.inner)?)
    })?
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

fn message(private: &str, peer: &str, endpoint: SocketAddr, allowed: IpAddr) -> String {
    let prefix_len = if allowed.is_ipv4() { 32 } else { 128 };
    format!(
        "set=1\nprivate_key={private}\nlisten_port={LISTEN_PORT}\nreplace_peers=true\n\
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

    /// The pinned version is found in the repository's own go.mod.
    #[test]
    fn the_version_is_pinned() {
        let go_mod = include_str!("../peers/go.mod");
        assert!(pinned(go_mod).unwrap().starts_with("v0.0."));
        assert_eq!(
            pinned("require golang.zx2c4.com/wireguard v1.2.3"),
            Some("v1.2.3")
        );
        assert_eq!(pinned("tool golang.zx2c4.com/wireguard"), None);
    }

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
            endpoint,
            "10.99.0.2".parse().unwrap(),
        );
        let peer = text.find("public_key=").unwrap();
        assert!(text.find("endpoint=10.90.0.2:51820\n").unwrap() > peer);
        assert!(text.find("allowed_ip=10.99.0.2/32\n").unwrap() > peer);
        assert!(text.starts_with("set=1\n") && text.ends_with("\n\n"));
    }
}
