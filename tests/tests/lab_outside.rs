//! Pods and what is not the fabric's: Services that the kernel translates beside us, NodePorts, machines
//! outside. The rules are real ones of the kernel's packet filter.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    config::outside::{OutsideConfig, Via},
    lab::{Interrupt, Lab, Pod, daemon::nodes_dir, ready},
    measure::{Direction, Load, Protocol, iperf},
    sys::netns::Netns,
};
use fabric_proto::admin::Status;
use fabric_tests::{
    account::check_conserved,
    eventually::eventually,
    operator::dropped,
    outside::{
        BACKEND_PORT, Caller, PORT_CLUSTER, PORT_LOCAL, Scene, Way, connect, host_address,
        machine_address, no_way, refusal, run_in, run_on, tcp_through, udp_through,
    },
    stage::Stage,
    traffic::address,
};

/// Segments and super-packets.
const TCP_SIZES: [usize; 3] = [1, 1400, 60_000];
/// Whole, nearly full, and in two and in seven fragments.
const UDP_SIZES: [usize; 4] = [1, 1400, 2000, 10_000];

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn caller(pod: &Pod) -> Caller<'_> {
    Caller::Path(&pod.netns)
}

/// A pod's way to the Service of another pod: the backend sees the caller's own address.
fn service(scene: &Scene, from: &Pod, to: &Pod, ipv6: bool) -> anyhow::Result<Way> {
    Ok(Way {
        listens: at(address(to, ipv6)?, 0),
        called: at(scene.service(to, ipv6)?, 0),
        seen: address(from, ipv6)?,
    })
}

/// Through a Service pods reach a pod of their node, of another node, and themselves, over TCP and UDP,
/// small, large and in fragments, in both families; backends see the caller's address, callers the
/// Service's; who is not there is told as such; and no packet is unaccounted for.
#[test]
fn services_are_translated_beside_us() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let scene = Scene::up(&stage, "services", false)?;
    for ipv6 in [false, true] {
        for (from, to) in [
            ("pod-a-1", "pod-a-2"),
            ("pod-a-1", "pod-b-1"),
            ("pod-b-2", "pod-a-1"),
        ] {
            let (from, to) = (scene.pod(from)?, scene.pod(to)?);
            let what = || format!("{} to the Service of {}, IPv6 {ipv6}", from.name, to.name);
            let way = service(&scene, from, to, ipv6)?;
            tcp_through(caller(from), caller(to), way, &TCP_SIZES).with_context(what)?;
            udp_through(caller(from), caller(to), way, &UDP_SIZES).with_context(what)?;
            // Beside it, the direct way is as it was.
            let direct = Way {
                called: way.listens,
                ..way
            };
            tcp_through(caller(from), caller(to), direct, &TCP_SIZES).with_context(what)?;
            udp_through(caller(from), caller(to), direct, &UDP_SIZES).with_context(what)?;
            let nobody = at(scene.service(to, ipv6)?, 9);
            let told = refusal(caller(from), nobody).with_context(what)?;
            ensure!(told == ErrorKind::ConnectionRefused, "{}: {told:?}", what());
        }
        let itself = scene.pod("pod-a-1")?;
        let way = Way {
            seen: scene.gateway("worker-a", ipv6)?,
            ..service(&scene, itself, itself, ipv6)?
        };
        tcp_through(caller(itself), caller(itself), way, &TCP_SIZES).context("itself")?;
        udp_through(caller(itself), caller(itself), way, &UDP_SIZES).context("itself")?;
    }
    for worker in scene.lab.workers() {
        check_conserved(worker)?;
    }
    scene.lab.down()
}

/// NodePorts serve pods of the same and of another node, the nodes themselves and a machine outside; with
/// the policy Local the backend sees who calls, whoever it is.
#[test]
fn node_ports_serve_everybody() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let scene = Scene::up(&stage, "nodeports", false)?;
    let backend = scene.pod("pod-b-1")?;
    let (a, b) = (scene.worker("worker-a")?, scene.worker("worker-b")?);
    let (pod_a, pod_b) = (scene.pod("pod-a-1")?, scene.pod("pod-b-2")?);
    for ipv6 in [false, true] {
        let listens = at(address(backend, ipv6)?, BACKEND_PORT);
        let callers = [
            (caller(pod_a), address(pod_a, ipv6)?, "a pod of worker-a"),
            (caller(pod_b), address(pod_b, ipv6)?, "a pod of worker-b"),
            (Caller::Path(&a.netns), host_address(a, ipv6)?, "worker-a"),
            (
                Caller::Machine(&scene.machine),
                machine_address(ipv6),
                "the machine",
            ),
        ];
        for (from, own, name) in callers {
            for node in [a, b] {
                let what = || format!("{name} to the NodePort of {}, IPv6 {ipv6}", node.name);
                // The node's address in the fabric: the kernel takes it for what leaves by fabric0.
                let way = Way {
                    listens,
                    called: at(host_address(node, ipv6)?, PORT_CLUSTER),
                    seen: scene.gateway(&node.name, ipv6)?,
                };
                tcp_through(from, caller(backend), way, &TCP_SIZES).with_context(what)?;
                udp_through(from, caller(backend), way, &UDP_SIZES).with_context(what)?;
            }
            let what = || format!("{name} to the NodePort with policy Local, IPv6 {ipv6}");
            let way = Way {
                listens,
                called: at(host_address(b, ipv6)?, PORT_LOCAL),
                seen: own,
            };
            tcp_through(from, caller(backend), way, &TCP_SIZES).with_context(what)?;
            udp_through(from, caller(backend), way, &UDP_SIZES).with_context(what)?;
        }
        // A node's own processes and the Service's address.
        for node in [a, b] {
            let way = Way {
                listens: at(address(backend, ipv6)?, 0),
                called: at(scene.service(backend, ipv6)?, 0),
                seen: host_address(node, ipv6)?,
            };
            tcp_through(Caller::Path(&node.netns), caller(backend), way, &TCP_SIZES)
                .with_context(|| format!("{} to a Service, IPv6 {ipv6}", node.name))?;
        }
    }
    for worker in scene.lab.workers() {
        check_conserved(worker)?;
    }
    scene.lab.down()
}

/// A backend on the host network of another node, as an API server is: the pod's packets stay in the
/// tunnel also after the translation, and the server sees the pod.
#[test]
fn services_of_other_hosts_stay_in_the_tunnel() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let scene = Scene::up(&stage, "hosts", false)?;
    let (pod, b) = (scene.pod("pod-a-1")?, scene.worker("worker-b")?);
    let a = scene.worker("worker-a")?;
    for ipv6 in [false, true] {
        let ip = if ipv6 { "ip6" } else { "ip" };
        let host = host_address(b, ipv6)?;
        let service = if ipv6 { "fd96::1" } else { "10.96.0.1" };
        let rule = format!(
            "add rule inet services prerouting {ip} daddr {service} meta l4proto {{ tcp, udp }} dnat {ip} to {host}\n"
        );
        run_in(&a.netns, "nft", &["-f", "-"], &rule)?;
        // Nothing with the pod's address may be seen on the underlay.
        let leak = format!(
            "add table inet leak\nadd chain inet leak out {{ type filter hook postrouting priority 300; }}\n\
             add rule inet leak out oifname eth0 {ip} saddr {} counter\n",
            address(pod, ipv6)?
        );
        run_in(&a.netns, "nft", &["-f", "-"], &leak)?;
        let way = Way {
            listens: at(host, 0),
            called: at(service.parse()?, 0),
            seen: address(pod, ipv6)?,
        };
        let server = Caller::Path(&b.netns);
        tcp_through(caller(pod), server, way, &TCP_SIZES)?;
        udp_through(caller(pod), server, way, &UDP_SIZES)?;
    }
    let leaked = run_in(&a.netns, "nft", &["list", "table", "inet", "leak"], "")?;
    let counters: Vec<&str> = leaked
        .lines()
        .filter(|line| line.contains("counter"))
        .collect();
    ensure!(
        counters.len() == 2 && counters.iter().all(|line| line.contains("packets 0 ")),
        "a pod's packets left on the underlay: {leaked}"
    );
    scene.lab.down()
}

/// Pods reach a machine outside with their own address where it knows the way back, and with the node's
/// where the node masquerades; the rules are as documented, and go with the daemon.
#[test]
fn machines_outside_are_reached() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    for masquerade in [false, true] {
        let mut scene = Scene::up(&stage, "machines", masquerade)?;
        for ipv6 in [false, true] {
            let pod = scene.pod("pod-a-1")?;
            let worker = scene.worker("worker-a")?;
            let machine = at(machine_address(ipv6), 0);
            if !masquerade {
                way_back(&scene.machine, pod, host_address(worker, ipv6)?, ipv6)?;
            }
            let way = Way {
                listens: machine,
                called: machine,
                seen: if masquerade {
                    host_address(worker, ipv6)?
                } else {
                    address(pod, ipv6)?
                },
            };
            let to = Caller::Machine(&scene.machine);
            let what = || format!("masquerade {masquerade}, IPv6 {ipv6}");
            tcp_through(caller(pod), to, way, &TCP_SIZES).with_context(what)?;
            udp_through(caller(pod), to, way, &UDP_SIZES).with_context(what)?;
            // Pods among each other keep their addresses.
            let other = scene.pod("pod-b-1")?;
            let way = service(&scene, pod, other, ipv6)?;
            udp_through(caller(pod), caller(other), way, &UDP_SIZES).with_context(what)?;
        }
        check_rules(&scene, masquerade)?;
        for worker in scene.lab.workers() {
            check_conserved(worker)?;
        }
        let netns = scene.worker("worker-a")?.netns.clone();
        scene.lab.stop_daemon("worker-a")?;
        // Pods are still attached: the way stays for the next daemon.
        check_rules(&scene, masquerade)?;
        ensure!(run_in(&netns, "ip", &["rule"], "")?.contains("iif fabric0 lookup 7946"));
        scene.lab.down()?;
    }
    Ok(())
}

fn way_back(machine: &Netns, pod: &Pod, by: IpAddr, ipv6: bool) -> anyhow::Result<()> {
    let family = if ipv6 { "-6" } else { "-4" };
    let (to, by) = (address(pod, ipv6)?.to_string(), by.to_string());
    run_on(machine, "ip", &[family, "route", "add", &to, "via", &by]).map(drop)
}

/// The table as `nft` reads it.
fn check_rules(scene: &Scene, masquerade: bool) -> anyhow::Result<()> {
    let netns = &scene.worker("worker-a")?.netns;
    let table = run_in(netns, "nft", &["list", "table", "inet", "fabric"], "")?;
    let mut wanted = vec![
        "type filter hook prerouting priority raw; policy accept;",
        "iifname != \"fabric0\" iifname != \"lo\" ip saddr 10.244.1.0/24 counter packets",
        "iifname != \"fabric0\" iifname != \"lo\" ip6 saddr fd44:0:0:1::/64 counter packets",
    ];
    if masquerade {
        wanted.extend([
            "type nat hook postrouting priority srcnat + 10; policy accept;",
            "oifname != \"fabric0\" ip saddr 10.244.1.0/24 masquerade",
            "oifname != \"fabric0\" ip6 saddr fd44:0:0:1::/64 masquerade",
        ]);
    }
    for line in wanted {
        ensure!(table.contains(line), "{line} is not in {table}");
    }
    ensure!(
        table.contains("chain masquerade") == masquerade,
        "masquerade {masquerade}: {table}"
    );
    Ok(())
}

/// What has no way anywhere goes round nowhere: the pod is told, and the packets that pass the host are
/// counted on one hand.
#[test]
fn nothing_goes_in_circles() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let scene = Scene::up(&stage, "circles", false)?;
    let (pod, worker) = (scene.pod("pod-a-1")?, scene.worker("worker-a")?);
    let from_host = || -> anyhow::Result<u64> {
        let status: Status = ready::document(&worker.admin_socket(), "/v1/status")?;
        Ok(status.packets.received_host.packets)
    };
    for ipv6 in [false, true] {
        let family = if ipv6 { "-6" } else { "-4" };
        let (range, dead) = if ipv6 {
            ("fd97::/64", "fd97::1")
        } else {
            ("10.97.0.0/24", "10.97.0.1")
        };
        // The kernel believes that the fabric has it, and the fabric that the kernel knows it.
        let route = [family, "route", "add", range, "dev", "fabric0"];
        run_in(&worker.netns, "ip", &route, "")?;
        let before = from_host()?;
        let told = no_way(caller(pod), at(dead.parse()?, 80))?;
        ensure!(
            matches!(
                told,
                ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable
            ),
            "{told:?}"
        );
        let passed = from_host()? - before;
        println!("IPv6 {ipv6}: {passed} packets came back from the host, {told:?}");
        ensure!(passed <= 5, "{passed} packets came back from the host");
        // An address of this node's range that no pod has, by a Service.
        let nobody = if ipv6 {
            "fd44:0:0:1::77"
        } else {
            "10.244.1.77"
        };
        let service = if ipv6 { "fd96::77" } else { "10.96.0.77" };
        let ip = if ipv6 { "ip6" } else { "ip" };
        let rule = format!(
            "add rule inet services prerouting {ip} daddr {service} meta l4proto tcp dnat {ip} to {nobody}\n"
        );
        run_in(&worker.netns, "nft", &["-f", "-"], &rule)?;
        let told = no_way(caller(pod), at(service.parse()?, 80))?;
        println!("IPv6 {ipv6}: a backend that has gone: {told:?}");
        ensure!(told == ErrorKind::HostUnreachable, "{told:?}");
    }
    check_conserved(worker)?;
    scene.lab.down()
}

/// A machine on the underlay that pretends to be a pod reaches nobody.
#[test]
fn forged_sources_are_refused() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let scene = Scene::up(&stage, "forged", false)?;
    let (victim, worker) = (scene.pod("pod-a-1")?, scene.worker("worker-a")?);
    for (ipv6, elsewhere, here) in [
        (false, "10.244.2.3", "10.244.1.3"),
        (true, "fd44:0:0:2::3", "fd44:0:0:1::3"),
    ] {
        way_back(&scene.machine, victim, host_address(worker, ipv6)?, ipv6)?;
        let target = address(victim, ipv6)?;
        let receiver = Caller::Path(&victim.netns);
        // From its own address it gets there: the way is open.
        let way = Way {
            listens: at(target, 0),
            called: at(target, 0),
            seen: machine_address(ipv6),
        };
        udp_through(Caller::Machine(&scene.machine), receiver, way, &[10])?;

        let prefix = if ipv6 { "128" } else { "32" };
        for forged in [elsewhere, here] {
            let forged_net = format!("{forged}/{prefix}");
            let mut words = vec!["address", "add", &forged_net, "dev", "eth0"];
            words.extend(ipv6.then_some("nodad"));
            run_on(&scene.machine, "ip", &words)?;
            let sender = scene.machine.run(|| -> anyhow::Result<UdpSocket> {
                Ok(UdpSocket::bind(at(forged.parse()?, 0))?)
            })??;
            let before = refused(&stage, &scene)?;
            for _ in 0..10 {
                sender.send_to(b"forged", at(target, 9))?;
            }
            eventually(
                "the forged packets are refused",
                Duration::from_secs(5),
                || {
                    let now = refused(&stage, &scene)?;
                    ensure!(now >= before + 10, "{forged}: {before} before, {now} now");
                    Ok(())
                },
            )?;
        }
    }
    check_conserved(worker)?;
    scene.lab.down()
}

/// What worker-a has refused, at its port or by its rules.
fn refused(stage: &Stage, scene: &Scene) -> anyhow::Result<u64> {
    let worker = scene.worker("worker-a")?;
    let table = run_in(
        &worker.netns,
        "nft",
        &["list", "table", "inet", "fabric"],
        "",
    )?;
    let by_rules: u64 = table
        .split("counter packets ")
        .skip(1)
        .filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok())
        .sum();
    Ok(by_rules + dropped(stage, worker, &["SOURCE_NOT_ALLOWED"])?)
}

/// A connection through a Service whose server speaks first outlives a killed daemon, in both families.
#[test]
fn a_service_outlives_a_killed_daemon() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut scene = Scene::up(&stage, "killed", false)?;
    let mut connections = Vec::new();
    for ipv6 in [false, true] {
        for to in ["pod-a-2", "pod-b-1"] {
            let (from, to) = (scene.pod("pod-a-1")?, scene.pod(to)?);
            let way = service(&scene, from, to, ipv6)?;
            let (mut client, mut server) = connect(caller(from), caller(to), way)?;
            server.write_all(b"before")?;
            client.read_exact(&mut [0; 6])?;
            for stream in [&client, &server] {
                stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            }
            connections.push((client, server));
        }
    }
    scene.lab.kill_daemon("worker-a")?;
    scene.lab.start_daemon("worker-a")?;
    for (client, server) in &mut connections {
        server.write_all(b"after!")?;
        let mut word = [0; 6];
        client
            .read_exact(&mut word)
            .context("the server spoke first, and was not heard")?;
        ensure!(&word == b"after!");
        client.write_all(b"answer")?;
        server.read_exact(&mut word)?;
        ensure!(&word == b"answer");
    }
    scene.lab.down()
}

/// With the last pod everything goes that made the host the way to the outside, and a kernel's setting
/// that cannot be written is a problem of the node that names it, not its end.
#[test]
fn an_empty_node_leaves_nothing_and_a_refused_setting_is_told() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut options = stage.options("leaves", 1, 0)?;
    options.outside = OutsideConfig {
        via: Via::Host,
        masquerade: true,
    };
    let mut lab = Lab::up(&options)?;
    let worker = lab.workers().first().context("no worker")?.clone();
    let look = |program: &str, words: &[&str]| run_in(&worker.netns, program, words, "");
    ensure!(look("nft", &["list", "ruleset"])?.contains("table inet fabric"));
    ensure!(look("ip", &["rule"])?.contains("lookup 7946"));
    lab.stop_daemon(&worker.name)?;
    for (program, words) in [
        ("nft", &["list", "ruleset"][..]),
        ("ip", &["rule"]),
        ("ip", &["-6", "rule"]),
        ("ip", &["route", "show", "table", "all"]),
    ] {
        let left = look(program, words)?;
        ensure!(
            !left.contains("fabric") && !left.contains("7946"),
            "{program} {words:?}: {left}"
        );
    }

    let settings = tempfile::tempdir()?;
    let file = worker.config_file();
    let text = std::fs::read_to_string(&file)?;
    let host = format!("[host]\nproc_sys = \"{}\"\n", settings.path().display());
    std::fs::write(&file, format!("{text}\n{host}"))?;
    lab.start_daemon(&worker.name)?;
    let problems = || -> anyhow::Result<Vec<String>> {
        let status: Status = ready::document(&worker.admin_socket(), "/v1/status")?;
        Ok(status.reasons)
    };
    // A folder in the place of a setting can be neither read nor written. Another node makes the daemon
    // look at its settings again.
    let blocked = settings.path().join("net/ipv4/conf/fabric0/forwarding");
    std::fs::create_dir_all(&blocked)?;
    std::fs::write(
        nodes_dir(lab.state()).join("worker-z.toml"),
        "[[node]]\nid = \"worker-z\"\nunderlay = [\"10.90.0.99:7946\"]\npod_cidrs = [\"10.244.99.0/24\"]\n",
    )?;
    let path = blocked.display().to_string();
    eventually("the problem is told", Duration::from_secs(10), || {
        let found = problems()?;
        let is_told = found.iter().any(|problem| problem.contains(&path));
        ensure!(is_told, "{found:?}");
        Ok(())
    })?;
    std::fs::remove_dir(&blocked)?;
    eventually(
        "the problem goes with its cause",
        Duration::from_secs(10),
        || {
            let found = problems()?;
            ensure!(found.is_empty(), "{found:?}");
            Ok(())
        },
    )?;
    lab.down()
}

/// What a bulk transfer through a Service moves, printed beside the direct way's.
#[test]
fn bulk_passes_through_a_service() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let scene = Scene::up(&stage, "bulk", false)?;
    let (from, to) = (scene.pod("pod-a-1")?, scene.pod("pod-b-1")?);
    for ipv6 in [false, true] {
        let (direct, service) = (address(to, ipv6)?, scene.service(to, ipv6)?);
        for (name, target) in [("direct", direct), ("Service", service)] {
            let rate = bulk(from, to, direct, target)?;
            println!("IPv6 {ipv6}: {name}: {:.2} Gbit/s", rate / 1e9);
            ensure!(rate > 100e6, "{name}: {rate} bit/s");
        }
    }
    for worker in scene.lab.workers() {
        check_conserved(worker)?;
    }
    scene.lab.down()
}

/// iperf3 from one pod to a server of another that is called by `target` (bit/s received).
fn bulk(from: &Pod, to: &Pod, listens: IpAddr, target: IpAddr) -> anyhow::Result<f64> {
    let program = iperf::find().context("there is no program iperf3: install it")?;
    let (from, to) = (Netns::open(&from.netns)?, Netns::open(&to.netns)?);
    let _server = iperf::Server::start(
        &program,
        &to,
        Some(listens),
        iperf::PORT,
        iperf::Serve::Once,
    )?;
    let load = Load {
        protocol: Protocol::Tcp,
        direction: Direction::Forward,
        streams: 1,
        seconds: 2,
    };
    let target = at(target, iperf::PORT);
    let measured = iperf::measure(&program, &from, target, &load, &Interrupt::never())?;
    let received = measured.end.sum_received.context("nothing was received")?;
    Ok(received.bits_per_second)
}
