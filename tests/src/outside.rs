//! What stands beside the fabric in a cluster: rules of the kernel's packet filter as kube-proxy writes
//! them, and a machine on the underlay that is no node.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    config::outside::{OutsideConfig, Via},
    control::reconcile::gateway_of,
    lab::{Lab, Pod, Worker, command, underlay::BRIDGE, underlay::inside},
    sys::{
        netlink::{LinkSettings, Netlink},
        netns::Netns,
    },
};
use ipnet::IpNet;

use crate::{
    stage::Stage,
    traffic::{address, any, echo_through, pattern},
};

/// The port that Services' backends listen on where a NodePort leads to them.
pub const BACKEND_PORT: u16 = 8080;
/// NodePort that leads to [`BACKEND_PORT`] of pod-b-1 from every node, as the node's own address.
pub const PORT_CLUSTER: u16 = 30_080;
/// NodePort that leads there on worker-b only, and keeps the caller's address.
pub const PORT_LOCAL: u16 = 31_080;
/// How long a program may take.
const PROGRAM_MAX: Duration = Duration::from_secs(10);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A lab with two workers of two pods each, translation on both, and a machine outside.
#[derive(Debug)]
pub struct Scene {
    /// The lab.
    pub lab: Lab,
    /// The machine's namespace.
    pub machine: Netns,
}

impl Scene {
    /// Builds it. The machine is the workers' default route, and knows no way to pods.
    ///
    /// # Errors
    ///
    /// Something cannot be made; a program is missing.
    pub fn up(stage: &Stage, purpose: &str, masquerade: bool) -> anyhow::Result<Self> {
        let mut options = stage.options(purpose, 2, 2)?;
        options.outside = OutsideConfig {
            via: Via::Host,
            masquerade,
        };
        let lab = Lab::up(&options)?;
        let machine = machine(&lab)?;
        let scene = Self { lab, machine };
        for worker in scene.lab.workers() {
            scene.translate(worker)?;
            // As on any machine: without one the kernel asks for no neighbour on others' behalf.
            let number = if worker.name == "worker-a" { 1 } else { 2 };
            let local = format!("fe80::{number}/64");
            let local = ["-6", "address", "add", &local, "dev", "eth0", "nodad"];
            run_in(&worker.netns, "ip", &local, "")?;
            for ipv6 in [false, true] {
                let family = if ipv6 { "-6" } else { "-4" };
                let way = machine_address(ipv6).to_string();
                run_in(
                    &worker.netns,
                    "ip",
                    &[family, "route", "add", "default", "via", &way],
                    "",
                )?;
            }
        }
        Ok(scene)
    }

    /// The pod of this name.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn pod(&self, name: &str) -> anyhow::Result<&Pod> {
        let mut pods = self.lab.pods().iter();
        pods.find(|pod| pod.name == name).context("no such pod")
    }

    /// The worker of this name.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn worker(&self, name: &str) -> anyhow::Result<&Worker> {
        let mut workers = self.lab.workers().iter();
        workers
            .find(|worker| worker.name == name)
            .context("no such worker")
    }

    /// The address of the Service whose only backend is `pod`: any port leads to the same port there.
    ///
    /// # Errors
    ///
    /// The pod has no address of the family.
    pub fn service(&self, pod: &Pod, ipv6: bool) -> anyhow::Result<IpAddr> {
        service_of(address(pod, ipv6)?)
    }

    /// A worker's address in the fabric: that of its `fabric0`.
    ///
    /// # Errors
    ///
    /// It has none of the family.
    pub fn gateway(&self, worker: &str, ipv6: bool) -> anyhow::Result<IpAddr> {
        let ranges = &self.worker(worker)?.pod_cidrs;
        let mut gateways = ranges.iter().filter_map(gateway_of);
        gateways
            .find(|gateway| gateway.is_ipv6() == ipv6)
            .context("no such gateway")
    }

    /// What kube-proxy would write: destinations before routing and for the host's own, sources after
    /// where a pod reaches itself and for NodePorts without a policy.
    fn translate(&self, worker: &Worker) -> anyhow::Result<()> {
        let mut destinations = String::new();
        let mut hairpins = String::new();
        let backend = self.pod("pod-b-1")?;
        let backend_is_here = backend.worker == worker.name;
        for ipv6 in [false, true] {
            let ip = if ipv6 { "ip6" } else { "ip" };
            for pod in self.lab.pods() {
                let to = address(pod, ipv6)?;
                let service = service_of(to)?;
                destinations.push_str(&format!(
                    "{ip} daddr {service} meta l4proto {{ tcp, udp }} dnat {ip} to {to}\n"
                ));
                hairpins.push_str(&format!(
                    "{ip} saddr {to} {ip} daddr {to} ct status dnat masquerade\n"
                ));
            }
            let to = SocketAddr::new(address(backend, ipv6)?, BACKEND_PORT);
            let own = host_address(worker, ipv6)?;
            for protocol in ["tcp", "udp"] {
                destinations.push_str(&format!(
                    "{ip} daddr {own} {protocol} dport {PORT_CLUSTER} meta mark set 0x4000 dnat {ip} to {to}\n"
                ));
                if backend_is_here {
                    destinations.push_str(&format!(
                        "{ip} daddr {own} {protocol} dport {PORT_LOCAL} dnat {ip} to {to}\n"
                    ));
                }
            }
        }
        let rules = format!(
            "table inet services {{
                chain prerouting {{ type nat hook prerouting priority dstnat; policy accept;
                    {destinations} }}
                chain output {{ type nat hook output priority -100; policy accept;
                    {destinations} }}
                chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;
                    meta mark & 0x4000 != 0 masquerade
                    {hairpins} }}
                chain forward {{ type filter hook forward priority filter; policy accept;
                    ct state invalid drop
                }}
            }}\n"
        );
        run_in(&worker.netns, "nft", &["-f", "-"], &rules).map(drop)
    }
}

/// The last number of a pod's address and of its node make that of its Service.
fn service_of(pod: IpAddr) -> anyhow::Result<IpAddr> {
    Ok(match pod {
        IpAddr::V4(pod) => {
            let [.., node, number] = pod.octets();
            Ipv4Addr::new(10, 96, node, number).into()
        }
        IpAddr::V6(pod) => {
            let [_, _, _, node, .., number] = pod.segments();
            Ipv6Addr::new(0xfd96, 0, 0, node, 0, 0, 0, number).into()
        }
    })
}

/// Address of the machine outside.
#[must_use]
pub fn machine_address(ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd90, 0, 0, 0, 0, 0, 0, 0xc8).into()
    } else {
        Ipv4Addr::new(10, 90, 0, 200).into()
    }
}

/// A worker's address on the underlay.
///
/// # Errors
///
/// It has none of the family.
pub fn host_address(worker: &Worker, ipv6: bool) -> anyhow::Result<IpAddr> {
    let mut addresses = worker.underlay_addresses.iter().copied();
    addresses
        .find(|address| address.is_ipv6() == ipv6)
        .context("no such underlay address")
}

fn machine(lab: &Lab) -> anyhow::Result<Netns> {
    let machine = Netns::create()?;
    inside(&lab.state().underlay_netns, || {
        let netlink = Netlink::connect()?;
        netlink.add_veth("outside", "eth0")?;
        let index = |name: &str| -> anyhow::Result<u32> {
            Ok(netlink.link(name)?.context("the cable vanished")?.index)
        };
        netlink.move_to_netns(index("eth0")?, &machine)?;
        netlink.set_master(index("outside")?, index(BRIDGE)?)?;
        let up = LinkSettings {
            up: Some(true),
            ..LinkSettings::default()
        };
        Ok(netlink.configure_link(index("outside")?, up)?)
    })?;
    machine.run(|| -> anyhow::Result<()> {
        let netlink = Netlink::connect()?;
        netlink.set_loopback_up()?;
        let index = netlink.link("eth0")?.context("no cable")?.index;
        let up = LinkSettings {
            up: Some(true),
            ..LinkSettings::default()
        };
        netlink.configure_link(index, up)?;
        for (address, prefix) in [(machine_address(false), 24), (machine_address(true), 64)] {
            netlink.add_address(index, IpNet::new(address, prefix)?)?;
        }
        Ok(())
    })??;
    Ok(machine)
}

/// Runs a program in a namespace; what it said.
///
/// # Errors
///
/// It is missing or failed.
pub fn run_in(
    netns: &Path,
    program: &str,
    arguments: &[&str],
    stdin: &str,
) -> anyhow::Result<String> {
    let found = command::find(program).with_context(|| format!("there is no program {program}"))?;
    let mut command = Command::new(found);
    command.args(arguments);
    let answer = inside(netns, || {
        command::run(command, stdin.as_bytes(), PROGRAM_MAX)
    })?;
    ensure!(
        answer.status.success(),
        "{program} {arguments:?}: {}\n{stdin}",
        answer.last_line()
    );
    Ok(answer.stdout)
}

/// As [`run_in`], on the machine outside.
///
/// # Errors
///
/// As [`run_in`].
pub fn run_on(machine: &Netns, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&machine.as_fd())
    );
    run_in(Path::new(&path), program, arguments, "")
}

/// Who speaks: a namespace to make sockets in.
#[derive(Clone, Copy, Debug)]
pub enum Caller<'a> {
    /// A pod or a worker.
    Path(&'a Path),
    /// The machine outside.
    Machine(&'a Netns),
}

impl Caller<'_> {
    fn make<T: Send>(self, f: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        match self {
            Self::Path(path) => inside(path, f),
            Self::Machine(netns) => netns.run(f)?,
        }
    }
}

/// A way to a backend: where it listens, by which address it is called, and whom it sees.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Where the backend listens; port 0 for any.
    pub listens: SocketAddr,
    /// What the caller calls; port 0 for the one that the backend listens on.
    pub called: SocketAddr,
    /// Whom the backend must see.
    pub seen: IpAddr,
}

/// Both ends of a TCP connection through a translation, the caller's first.
///
/// # Errors
///
/// There is no connection, or the backend sees another caller.
pub fn connect(
    from: Caller<'_>,
    to: Caller<'_>,
    way: Way,
) -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = to.make(|| Ok(TcpListener::bind(way.listens)?))?;
    let mut called = way.called;
    if called.port() == 0 {
        called.set_port(listener.local_addr()?.port());
    }
    let client = from.make(|| {
        TcpStream::connect_timeout(&called, ANSWER_MAX)
            .with_context(|| format!("no TCP connection to {called}"))
    })?;
    let (server, seen) = listener.accept()?;
    ensure!(
        seen.ip() == way.seen,
        "over TCP {} was seen as {seen}",
        way.seen
    );
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
    }
    Ok((client, server))
}

/// Echoes `sizes` over TCP.
///
/// # Errors
///
/// As [`connect`], or other bytes arrive.
pub fn tcp_through(
    from: Caller<'_>,
    to: Caller<'_>,
    way: Way,
    sizes: &[usize],
) -> anyhow::Result<()> {
    let (mut client, mut server) = connect(from, to, way)?;
    for &size in sizes {
        echo_through(&mut client, &mut server, &pattern(size, 7))
            .with_context(|| format!("{size} bytes over TCP to {}", way.called))?;
    }
    Ok(())
}

/// Echoes `sizes` over UDP; the caller takes answers from the address that it called only.
///
/// # Errors
///
/// A datagram or its answer does not arrive, or the backend sees another caller.
pub fn udp_through(
    from: Caller<'_>,
    to: Caller<'_>,
    way: Way,
    sizes: &[usize],
) -> anyhow::Result<()> {
    let server = to.make(|| Ok(UdpSocket::bind(way.listens)?))?;
    let mut called = way.called;
    if called.port() == 0 {
        called.set_port(server.local_addr()?.port());
    }
    let client = from.make(|| {
        let socket = UdpSocket::bind(SocketAddr::new(any(called.ip()), 0))?;
        socket.connect(called)?;
        Ok(socket)
    })?;
    server.set_read_timeout(Some(ANSWER_MAX))?;
    client.set_read_timeout(Some(ANSWER_MAX))?;
    for &size in sizes {
        let payload = pattern(size, size as u64);
        let mut buffer = vec![0; size + 1];
        client.send(&payload)?;
        let (len, seen) = server
            .recv_from(&mut buffer)
            .with_context(|| format!("{size} bytes over UDP to {called}: nothing arrived"))?;
        ensure!(
            seen.ip() == way.seen,
            "over UDP {} was seen as {seen}",
            way.seen
        );
        server.send_to(buffer.get(..len).unwrap_or_default(), seen)?;
        let len = client
            .recv(&mut buffer)
            .with_context(|| format!("{size} bytes over UDP to {called}: nothing came back"))?;
        ensure!(
            buffer.get(..len) == Some(payload.as_slice()),
            "other bytes came back"
        );
    }
    Ok(())
}

/// How the kernel of a caller hears that nobody listens behind an address: the error of a socket.
///
/// # Errors
///
/// The socket cannot be made, or hears nothing.
pub fn refusal(from: Caller<'_>, called: SocketAddr) -> anyhow::Result<std::io::ErrorKind> {
    let client = from.make(|| {
        let socket = UdpSocket::bind(SocketAddr::new(any(called.ip()), 0))?;
        socket.connect(called)?;
        Ok(socket)
    })?;
    client.set_read_timeout(Some(ANSWER_MAX))?;
    client.send(b"anybody?")?;
    let error = match client.recv(&mut [0; 16]) {
        Ok(len) => anyhow::bail!("{len} bytes from {called}, where nobody listens"),
        Err(error) => error,
    };
    ensure!(
        error.kind() != std::io::ErrorKind::WouldBlock,
        "no word about {called}"
    );
    Ok(error.kind())
}

/// How a caller of a TCP port hears that there is no way to it.
///
/// # Errors
///
/// Somebody answers, or nobody says a word.
pub fn no_way(from: Caller<'_>, called: SocketAddr) -> anyhow::Result<std::io::ErrorKind> {
    match from.make(|| Ok(TcpStream::connect_timeout(&called, ANSWER_MAX)))? {
        Ok(_) => anyhow::bail!("{called} has answered"),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            anyhow::bail!("no word about {called}")
        }
        Err(error) => Ok(error.kind()),
    }
}
