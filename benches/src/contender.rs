//! Other ways from worker to worker, as real running programs.
//!
//! Comes in: two namespaces on one underlay ([`Site`]). Goes out: a [`Contender`] that carries
//! packets between its two inner addresses until it is dropped, with its processes and its version.
//! Never done here: measuring; tuning anything (each runs with its defaults, and with the MTU that
//! its own tools compute or its manual asks for on this underlay).
//!
//! One file per contender. [`program`] is where their programs come from, `daemon` how they run.

mod boringtun;
mod daemon;
mod nebula;
mod openvpn;
pub mod program;
mod tinc;
mod vpncloud;
mod vxlan;
mod wireguard;
pub mod wireguard_go;
mod yardstick;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::{lab::command, sys::netns::Netns};
use ipnet::IpNet;
use tempfile::TempDir;

use self::{
    daemon::{Daemon, wait_until},
    program::Programs,
};
use crate::system::System;

/// How long a contender may take from its start to the first answer through it.
const START_MAX: Duration = Duration::from_secs(20);
/// How long one ping may take, the wait for its answer included.
const PING_MAX: Duration = Duration::from_secs(3);
/// How long a small tool may take, such as one that makes keys.
const TOOL_MAX: Duration = Duration::from_secs(30);

/// Two namespaces that reach each other over an underlay, and what is there to set up on them.
#[derive(Debug)]
pub struct Site<'a> {
    /// The two ends: packets are sent from the first to the second.
    pub ends: [End<'a>; 2],
    /// MTU of the underlay (bytes).
    pub underlay_mtu: u32,
    /// Where programs come from.
    pub programs: &'a Programs,
}

/// One end, as planned.
#[derive(Debug)]
pub struct End<'a> {
    /// Where it runs.
    pub netns: &'a Netns,
    /// Name of its device: unique on the machine, at most 15 bytes.
    pub ifname: String,
    /// Address on the underlay.
    pub underlay: IpAddr,
    /// Address inside the tunnel, with its network.
    pub inner: IpNet,
}

/// A contender that carries packets. Its end takes down all of it.
#[derive(Debug)]
pub struct Contender {
    // Dropped in this order: programs use the folder until they end.
    tunnel: Tunnel,
    _folder: TempDir,
}

/// What a contender's own file sets up; not known to carry anything yet.
#[derive(Debug)]
struct Tunnel {
    version: String,
    // Dropped in this order: a program that is asked to end removes its own traces.
    daemons: Vec<Daemon>,
    _traces: Vec<Box<dyn Trace>>,
}

/// Something on the machine that is removed when its value is dropped.
trait Trace: fmt::Debug {}

impl Contender {
    /// Sets up `system` and waits until an answer has come through it.
    ///
    /// # Errors
    ///
    /// Its program is missing or cannot be built, or no packet passes; then nothing of it is left.
    pub fn start(system: System, site: &Site<'_>) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("bench-peers-")
            .tempdir()
            .context("no folder for its files")?;
        let at = folder.path();
        let tunnel = match system {
            System::WireguardGo => wireguard_go::start(site, at),
            System::BoringtunCli => boringtun::start(site, at),
            System::Nebula => nebula::start(site, at),
            System::Vpncloud => vpncloud::start(site, at),
            System::Openvpn => openvpn::start(site, at),
            System::Tinc => tinc::start(site, at),
            System::Vxlan => vxlan::start(site),
            System::Relay => yardstick::start_relay(site, at),
            System::Quinn => yardstick::start_quinn(site, at),
            System::Fabric | System::Veth => {
                bail!("{} is there without being set up", system.title())
            }
        };
        let mut contender = Self {
            tunnel: tunnel?,
            _folder: folder,
        };
        contender.await_answer(site)?;
        Ok(contender)
    }

    /// Process ids of both ends; none for what the kernel does.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.tunnel.daemons.iter().map(Daemon::pid).collect()
    }

    /// Version of its program.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.tunnel.version
    }

    fn await_answer(&mut self, site: &Site<'_>) -> anyhow::Result<()> {
        let ping = command::find("ping").context("ping is not installed")?;
        let [from, to] = &site.ends;
        let answered = || {
            let mut ping = Command::new(&ping);
            ping.args(["-n", "-c", "1", "-W", "1", &to.inner.addr().to_string()]);
            let answer = from.netns.run(move || command::run(ping, b"", PING_MAX));
            matches!(answer, Ok(Ok(answer)) if answer.status.success())
        };
        wait_until(
            START_MAX,
            &mut self.tunnel.daemons,
            "answer a ping",
            answered,
        )
    }
}

impl Site<'_> {
    /// What the underlay leaves of its MTU (bytes).
    fn mtu(&self, overhead: u32) -> u32 {
        self.underlay_mtu.saturating_sub(overhead)
    }

    /// Each end with its number and the other one.
    fn pairs(&self) -> [(usize, &End<'_>, &End<'_>); 2] {
        let [one, other] = &self.ends;
        [(0, one, other), (1, other, one)]
    }
}

impl End<'_> {
    /// Where its program listens on the underlay.
    fn listen(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.underlay, port)
    }

    /// Runs a small tool inside the namespace.
    fn run_tool(&self, tool: Command) -> anyhow::Result<()> {
        self.netns.run(move || run_tool(tool))?
    }
}

/// Runs a small tool that has to succeed.
fn run_tool(tool: Command) -> anyhow::Result<()> {
    let name = tool.get_program().to_os_string();
    let name = Path::new(&name).file_name().unwrap_or(&name).display();
    let answer = command::run(tool, b"", TOOL_MAX)?;
    ensure!(
        answer.status.success(),
        "{name} failed: {}",
        answer.last_line()
    );
    Ok(())
}
