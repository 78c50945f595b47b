//! The reference library's own client calls the plugin: alone, before and after the reference plugins.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{
        Lab, Worker, command,
        plugin::{PLUGIN, POD_IFNAME},
        underlay::inside,
    },
    sys::{netlink::Netlink, netns::Netns},
};
use fabric_tests::{
    gotools::Tool,
    operator::{dropped, pods},
    plugin::{Container, addresses},
    runtime::place::Place,
    stage::Stage,
};
use serde_json::{Value, json};

/// How long one call may take.
const CALL_MAX: Duration = Duration::from_secs(30);
/// How long an answer over TCP may take, where one is expected.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long one is waited for where none may come.
const SILENCE: Duration = Duration::from_secs(1);
/// Folder of the reference plugins, as Debian packages them.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
/// The newest version that these plugins know.
const REFERENCE_VERSION: &str = "1.0.0";
/// What a pod listens on, and the port of its node that leads there.
const PORTS: (u16, u16) = (80, 8080);

/// STATUS, ADD, CHECK and DEL of a list in version 1.1.0 do what the daemon says they did; CHECK sees
/// an address that was taken away, and DEL may come twice.
#[test]
fn the_verbs_of_a_plain_list() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("tools", 1, 0)?;
    let host = Host::new(&lab, "worker-a")?;
    host.list("plain", "1.1.0", &[host.fabric()])?;
    let pod = Container::make(&lab, &host.worker, 1)?;
    host.done("status", "plain", &pod)?;
    let result: Value = serde_json::from_str(&host.done("add", "plain", &pod)?)?;
    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(result["interfaces"][0]["mtu"], 1500);
    let known = pods(&stage, &host.worker)?.items;
    assert_eq!(known.len(), 1, "{known:?}");
    assert_eq!(known[0].addresses, addresses(&result));
    host.done("check", "plain", &pod)?;
    host.done("status", "plain", &pod)?;

    take_an_address_away(&pod)?;
    let told = host.failed("check", "plain", &pod)?;
    ensure!(told.contains("eth0"), "{told}");
    for _ in 0..2 {
        host.done("del", "plain", &pod)?;
    }
    assert_eq!(pods(&stage, &host.worker)?.items, []);
    assert_eq!(cached("plain")?, 0);
    Ok(())
}

/// cnitool's `gc` deletes what it has in its cache and then sends GC without a list of what is valid:
/// that succeeds, and frees nothing of what other clients attached.
#[test]
fn gc_spares_what_it_was_not_told_of() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("tools", 1, 1)?;
    let host = Host::new(&lab, "worker-a")?;
    host.list("swept", "1.1.0", &[host.fabric()])?;
    let [first, second] = [
        Container::make(&lab, &host.worker, 2)?,
        Container::make(&lab, &host.worker, 3)?,
    ];
    host.done("add", "swept", &first)?;
    host.done("add", "swept", &second)?;
    assert_eq!(pods(&stage, &host.worker)?.items.len(), 3);
    host.done("gc", "swept", &first)?;
    let left = pods(&stage, &host.worker)?.items;
    ensure!(left.len() == 1 && left[0].name == "pod-a-1", "{left:?}");
    assert_eq!(cached("swept")?, 0);
    Ok(())
}

/// While the daemon is dead STATUS, ADD and CHECK say so, and DEL succeeds and is carried out later.
#[test]
fn without_a_daemon() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("tools", 1, 0)?;
    let host = Host::new(&lab, "worker-a")?;
    host.list("dead", "1.1.0", &[host.fabric()])?;
    let [pod, late] = [
        Container::make(&lab, &host.worker, 1)?,
        Container::make(&lab, &host.worker, 2)?,
    ];
    host.done("add", "dead", &pod)?;
    lab.kill_daemon("worker-a")?;
    for (verb, container) in [("status", &late), ("add", &late), ("check", &pod)] {
        let told = host.failed(verb, "dead", container)?;
        ensure!(
            told.contains("start the fabric-node daemon") || told.contains("cannot connect"),
            "{verb}: {told}"
        );
    }
    host.done("del", "dead", &pod)?;
    lab.start_daemon("worker-a")?;
    assert_eq!(pods(&stage, &host.worker)?.items, []);
    assert!(link(&pod, POD_IFNAME)?.is_none(), "the DEL left eth0");
    host.done("add", "dead", &late)?;
    host.done("del", "dead", &late)?;
    Ok(())
}

/// The reference plugin `tuning` after ours: its settings are seen in the pod, its CHECK and ours agree
/// with the result, and its CHECK sees a setting that was changed.
#[test]
fn tuning_comes_after_us() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("tools", 1, 0)?;
    let host = Host::new(&lab, "worker-a")?;
    let settings = [
        ("net.ipv4.conf.eth0.arp_filter", "1"),
        ("net.core.somaxconn", "777"),
    ];
    let tuning = json!({
        "type": "tuning",
        "mtu": 1400,
        "sysctl": settings.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
        "dataDir": host.place.folder().join("tuning"),
    });
    host.list("tuned", REFERENCE_VERSION, &[host.fabric(), tuning])?;
    let pod = Container::make(&lab, &host.worker, 1)?;
    let result: Value = serde_json::from_str(&host.done("add", "tuned", &pod)?)?;
    assert_eq!(result["cniVersion"], REFERENCE_VERSION);
    assert_eq!(addresses(&result).len(), 2);
    for (name, value) in settings {
        assert_eq!(setting(&pod, name)?, value, "{name}");
    }
    assert_eq!(link(&pod, POD_IFNAME)?, Some(1400));
    host.done("check", "tuned", &pod)?;
    inside(&pod.netns, || {
        Ok(fs::write("/proc/sys/net/core/somaxconn", "778")?)
    })?;
    let told = host.failed("check", "tuned", &pod)?;
    ensure!(told.contains("somaxconn"), "{told}");
    host.done("del", "tuned", &pod)?;
    assert_eq!(pods(&stage, &host.worker)?.items, []);
    assert!(link(&pod, POD_IFNAME)?.is_none(), "DEL left eth0");
    Ok(())
}

/// The reference plugin `portmap` after ours: the port of the node leads to the pod from the node itself.
/// From other machines it does once the node forwards and sends such packets under its own address;
/// until then they are dropped and counted. DEL takes the port away.
#[test]
fn portmap_comes_after_us() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("tools", 2, 0)?;
    let host = Host::new(&lab, "worker-a")?;
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    host.list("mapped", REFERENCE_VERSION, &[host.fabric(), portmap])?;
    let pod = Container::make(&lab, &host.worker, 1)?;
    let mapping = json!({ "portMappings": [
        { "hostPort": PORTS.1, "containerPort": PORTS.0, "protocol": "tcp" },
    ] });
    let mapping = mapping.to_string();
    let wish = [("CAP_ARGS", mapping.as_str())];
    host.call("add", "mapped", &pod, &wish)?.0?;
    greet(&pod, 3)?;

    let other = lab.state().worker("worker-b")?;
    let node = host.worker.underlay_addresses[0];
    for address in ["127.0.0.1".parse()?, node] {
        assert_eq!(
            greeting(&host.worker, address, ANSWER_MAX)?,
            "hello",
            "{address}"
        );
    }
    assert!(
        greeting(other, node, SILENCE).is_err(),
        "nothing forwards yet"
    );
    let refused = || dropped(&stage, &host.worker, &["SOURCE_NOT_ALLOWED"]);
    assert_eq!(refused()?, 0);
    host.on_node("sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"])?;
    assert!(
        greeting(other, node, SILENCE).is_err(),
        "a foreign source went into the fabric"
    );
    ensure!(refused()? > 0, "the drop was not counted");
    let masquerade = ["-o", "fabric0", "-j", "MASQUERADE"];
    host.on_node(
        "iptables",
        &[&["-t", "nat", "-A", "POSTROUTING"], &masquerade[..]].concat(),
    )?;
    assert_eq!(greeting(other, node, ANSWER_MAX)?, "hello");

    host.call("del", "mapped", &pod, &wish)?.0?;
    assert!(greeting(other, node, SILENCE).is_err(), "DEL left the port");
    let rules = host.on_node("iptables", &["-t", "nat", "-S"])?;
    ensure!(!rules.contains("DNAT --to"), "{rules}");
    assert_eq!(pods(&stage, &host.worker)?.items, []);
    Ok(())
}

/// After another plugin ours keeps what that one answered, and CHECK and DEL of both succeed.
#[test]
fn we_come_after_loopback() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("tools", 1, 0)?;
    let host = Host::new(&lab, "worker-a")?;
    // Under a name of its own: the place has a plugin `loopback` too, whoever's that is.
    let reference = Path::new(REFERENCE_PLUGINS).join("loopback");
    host.place.add_plugin_as(&reference, "reference-loopback")?;
    let loopback = json!({ "type": "reference-loopback" });
    host.list("second", REFERENCE_VERSION, &[loopback, host.fabric()])?;
    let pod = Container::make(&lab, &host.worker, 1)?;
    let result: Value = serde_json::from_str(&host.done("add", "second", &pod)?)?;
    let names: Vec<&Value> = result["interfaces"]
        .as_array()
        .context("no interfaces")?
        .iter()
        .map(|interface| &interface["name"])
        .collect();
    assert_eq!(names, ["lo", POD_IFNAME]);
    let ours = addresses(&result).split_off(2);
    assert_eq!(pods(&stage, &host.worker)?.items[0].addresses, ours);
    host.done("check", "second", &pod)?;
    host.done("del", "second", &pod)?;
    assert_eq!(pods(&stage, &host.worker)?.items, []);
    Ok(())
}

/// A worker with cnitool.
struct Host {
    worker: Worker,
    cnitool: PathBuf,
    place: Place,
}

/// Standard output, or what was said on standard error.
struct Told(anyhow::Result<String>);

impl Host {
    fn new(lab: &Lab, worker: &str) -> anyhow::Result<Self> {
        Ok(Self {
            worker: lab.state().worker(worker)?.clone(),
            cnitool: Tool::Cnitool.program()?,
            place: Place::new(lab, worker)?,
        })
    }

    /// Our plugin, as an element of a list.
    fn fabric(&self) -> Value {
        json!({
            "type": PLUGIN,
            "socket": self.worker.cni_socket(),
            "stateDir": self.worker.state_dir(),
        })
    }

    fn list(&self, network: &str, version: &str, plugins: &[Value]) -> anyhow::Result<()> {
        let list = json!({ "cniVersion": version, "name": network, "plugins": plugins });
        let file = self.place.networks().join(format!("{network}.conflist"));
        Ok(fs::write(file, list.to_string())?)
    }

    /// Runs cnitool where the worker's runtime would run.
    fn call(
        &self,
        verb: &str,
        network: &str,
        pod: &Container,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Told> {
        let mut program = Command::new(&self.cnitool);
        program
            .args([verb, network])
            .arg(&pod.netns)
            .env(
                "CNI_PATH",
                format!("{}:{REFERENCE_PLUGINS}", self.place.plugins().display()),
            )
            .env("NETCONFPATH", self.place.networks())
            .envs(environment.iter().copied());
        let answer = self.place.run(program, CALL_MAX)?;
        Ok(Told(if answer.status.success() {
            Ok(answer.stdout)
        } else {
            Err(anyhow::anyhow!("{verb}: {}", answer.stderr))
        }))
    }

    fn done(&self, verb: &str, network: &str, pod: &Container) -> anyhow::Result<String> {
        self.call(verb, network, pod, &[])?.0
    }

    fn failed(&self, verb: &str, network: &str, pod: &Container) -> anyhow::Result<String> {
        match self.call(verb, network, pod, &[])?.0 {
            Ok(output) => anyhow::bail!("{verb} succeeded: {output}"),
            Err(error) => Ok(error.to_string()),
        }
    }

    fn on_node(&self, program: &str, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(command::find(program).context("it is not installed")?);
        command.args(words);
        let answer = self.place.run(command, CALL_MAX)?;
        ensure!(answer.status.success(), "{program}: {}", answer.last_line());
        Ok(answer.stdout)
    }
}

/// How many results of a network libcni has in its cache.
fn cached(network: &str) -> anyhow::Result<usize> {
    let prefix = format!("{network}-");
    let entries = fs::read_dir("/var/lib/cni/results")?;
    let names = entries.map(|entry| Ok(entry?.file_name()));
    let names: Vec<_> = names.collect::<std::io::Result<_>>()?;
    Ok(names
        .iter()
        .filter(|name| name.to_string_lossy().starts_with(&prefix))
        .count())
}

/// MTU of a pod's interface, where there is one.
fn link(pod: &Container, name: &str) -> anyhow::Result<Option<u32>> {
    inside(&pod.netns, || {
        Ok(Netlink::connect()?.link(name)?.map(|link| link.mtu))
    })
}

fn setting(pod: &Container, name: &str) -> anyhow::Result<String> {
    let file = Path::new("/proc/sys").join(name.replace('.', "/"));
    let text = inside(&pod.netns, || Ok(fs::read_to_string(file)?))?;
    Ok(text.trim().to_owned())
}

fn take_an_address_away(pod: &Container) -> anyhow::Result<()> {
    inside(&pod.netns, || {
        let netlink = Netlink::connect()?;
        let index = netlink.link(POD_IFNAME)?.context("no eth0")?.index;
        let address = netlink.addresses(index)?[0];
        Ok(netlink.delete_address(index, address)?)
    })
}

/// Says hello to the first `count` who connect to the pod.
fn greet(pod: &Container, count: usize) -> anyhow::Result<()> {
    let listener = Netns::open(&pod.netns)?.run(|| TcpListener::bind(("::", PORTS.0)))??;
    thread::spawn(move || {
        for stream in listener.incoming().take(count) {
            // One who has left misses it.
            let _ = stream.and_then(|mut stream| stream.write_all(b"hello"));
        }
    });
    Ok(())
}

/// What is said to one who connects to the node's port from `worker`.
fn greeting(worker: &Worker, to: IpAddr, limit: Duration) -> anyhow::Result<String> {
    inside(&worker.netns, || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, PORTS.1), limit)?;
        stream.set_read_timeout(Some(limit))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}
