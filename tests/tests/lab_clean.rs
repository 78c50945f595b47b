//! A node's life with Fabric as a cluster has it: the daemon itself tells runtimes that pods can be attached, is asked
//! for its health over TCP, and when it is gone `fabric clean-node` leaves the node as it was before.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Worker, command, underlay::inside};
use fabric_tests::{
    eventually::eventually,
    installer::{LIST, Machine, expect},
    stage::{Stage, workspace},
};

/// How long one program may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long the daemon may take to write the list, and a namespace to be gone.
const SOON: Duration = Duration::from_secs(10);
/// Where the daemon answers, in its own namespace.
const LISTEN: &str = "127.0.0.1:9946";

/// Interfaces, addresses, routes and rules of a worker's namespace, and its files: after the daemon was killed and
/// `clean-node` has run they are what they were before it started. Rehearsals change nothing, and say what is left.
#[test]
fn a_node_is_as_it_was() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("clean", 1, 0)?;
    lab.stop_daemon("worker-a")?;
    let worker = lab.state().worker("worker-a")?.clone();
    let machine = Machine::new()?;
    fs::remove_dir_all(worker.state_dir())?;
    fs::remove_dir_all(worker.run_dir())?;
    let before = inventory(&worker, &machine)?;

    expect(
        &clean(&stage, &worker, &machine, &["--check"])?,
        0,
        &["is not there"],
    )?;
    expect(
        &install_plugin(&stage, &machine)?,
        0,
        &["fabric-cni created", "loopback created"],
    )?;
    configure(&worker, &machine)?;
    lab.start_daemon("worker-a")?;
    eventually("the list is written", SOON, || {
        ensure!(machine.list().is_file(), "there is none");
        Ok(())
    })?;
    expect(
        &clean(&stage, &worker, &machine, &[])?,
        1,
        &["a daemon answers"],
    )?;
    assert!(machine.list().is_file());
    lab.kill_daemon("worker-a")?;
    let left = inventory(&worker, &machine)?;
    assert_ne!(left, before);
    assert!(left["links"].contains("fabric0"), "{left:?}");

    let told = [
        "10-fabric.conflist removed (dry run)",
        "fabric-cni removed (dry run)",
        "loopback removed (dry run)",
        "fabric0 removed (dry run)",
        "state removed (dry run)",
        "run removed (dry run)",
    ];
    expect(&clean(&stage, &worker, &machine, &["--dry-run"])?, 0, &told)?;
    expect(&clean(&stage, &worker, &machine, &["--check"])?, 1, &told)?;
    assert_eq!(inventory(&worker, &machine)?, left);
    let told = told.map(|line| line.trim_end_matches(" (dry run)"));
    expect(&clean(&stage, &worker, &machine, &[])?, 0, &told)?;
    assert_eq!(inventory(&worker, &machine)?, before);
    expect(
        &clean(&stage, &worker, &machine, &["--check"])?,
        0,
        &["is not there"],
    )?;
    expect(
        &clean(&stage, &worker, &machine, &[])?,
        0,
        &["is not there"],
    )
}

/// With a pod that still has its interface nothing is removed, and the pod is named; once the runtime has removed its
/// namespace the node can be cleaned, although nobody took the DEL.
#[test]
fn a_pod_is_in_the_way() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("clean-pod", 1, 1)?;
    let worker = lab.state().worker("worker-a")?.clone();
    let machine = Machine::new()?;
    expect(
        &install_plugin(&stage, &machine)?,
        0,
        &["fabric-cni created"],
    )?;
    lab.kill_daemon("worker-a")?;
    let before = inventory(&worker, &machine)?;
    for arguments in [&[][..], &["--dry-run"], &["--check"]] {
        let answer = clean(&stage, &worker, &machine, arguments)?;
        expect(&answer, 1, &["pods are attached (", "drain the node first"])?;
    }
    assert_eq!(inventory(&worker, &machine)?, before);
    let pod = lab.pods().first().context("no pod")?.netns().to_owned();
    let mut delete = Command::new("ip");
    delete
        .args(["netns", "delete"])
        .arg(pod.file_name().context("no name")?);
    let deleted = command::run(delete, b"", LIMIT)?;
    ensure!(deleted.status.success(), "{}", deleted.stderr);
    eventually("the namespace is gone", SOON, || {
        ensure!(!pod.exists(), "{} is there", pod.display());
        Ok(())
    })?;
    expect(
        &clean(&stage, &worker, &machine, &[])?,
        0,
        &["fabric0 removed", "fabric-cni removed"],
    )
}

/// The list appears after the sockets answer, survives a stop and a kill of the daemon, and one that a person changed
/// is kept by the next daemon. `/readyz`, `/healthz` and `/metrics` answer in the worker's own namespace; what is told
/// there is what docs/metrics.md lists.
#[test]
fn the_daemon_tells_runtimes_and_watchers() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("told", 2, 1)?;
    lab.stop_daemon("worker-a")?;
    let worker = lab.state().worker("worker-a")?.clone();
    let machine = Machine::new()?;
    configure(&worker, &machine)?;
    lab.start_daemon("worker-a")?;
    eventually("the list is written", SOON, || {
        ensure!(machine.list().is_file(), "there is none");
        Ok(())
    })?;
    let socket = worker.cni_socket();
    let list = fs::read_to_string(machine.list())?;
    assert!(list.contains(socket.to_str().unwrap()), "{list}");
    for path in ["/healthz", "/readyz"] {
        let answer = get(&worker, path)?;
        ensure!(answer.starts_with("HTTP/1.1 200 OK"), "{path}: {answer}");
    }
    eventually("the other worker is connected", SOON, || {
        let text = get(&worker, "/metrics")?;
        ensure!(
            text.contains("\nfabric_peers{state=\"Connected\"} 1\n"),
            "{text}"
        );
        Ok(())
    })?;
    let text = get(&worker, "/metrics")?;
    for line in [
        "fabric_ready 1",
        "fabric_healthy 1",
        "fabric_pods 1",
        "fabric_degraded 0",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} is not in {text}");
    }
    let told: BTreeSet<&str> = text.lines().filter_map(kind).collect();
    let docs = fs::read_to_string(workspace().join("docs/metrics.md"))?;
    let rows = docs
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let listed: BTreeSet<&str> = rows
        .filter(|name| name.starts_with("fabric_") && !name.contains([' ', '(']))
        .map(|name| name.trim_end_matches("_total").trim_end_matches("_info"))
        .collect();
    assert_eq!(told, listed);

    lab.stop_daemon("worker-a")?;
    assert_eq!(fs::read_to_string(machine.list())?, list);
    let changed = list.replacen("\"fabric\"", "\"mine\"", 1);
    assert_ne!(changed, list);
    fs::write(machine.list(), &changed)?;
    lab.start_daemon("worker-a")?;
    eventually("the daemon has seen the list", SOON, || {
        let log = fs::read_to_string(worker.log_file())?;
        ensure!(log.contains("changed by hand, and is kept"), "{log}");
        Ok(())
    })?;
    lab.kill_daemon("worker-a")?;
    assert_eq!(fs::read_to_string(machine.list())?, changed);
    Ok(())
}

/// The name of the metric that a `# TYPE` line begins.
fn kind(line: &str) -> Option<&str> {
    line.strip_prefix("# TYPE ")?.split(' ').next()
}

/// `fabric install-cni --plugin-only`, which waits for no daemon: there is none.
fn install_plugin(stage: &Stage, machine: &Machine) -> anyhow::Result<command::Answer> {
    let mut install = Command::new(stage.program("fabric"));
    install
        .args([
            "install-cni",
            "--plugin-only",
            "--loopback",
            "always",
            "--bin-dir",
        ])
        .arg(machine.bin());
    command::run(install, b"", LIMIT)
}

/// `fabric clean-node` for a worker, in its namespace, with the one capability that the manifest gives it.
fn clean(
    stage: &Stage,
    worker: &Worker,
    machine: &Machine,
    more: &[&str],
) -> anyhow::Result<command::Answer> {
    let wrapper = ["setpriv", "--bounding-set", "-all,+net_admin"].map(str::to_owned);
    let mut clean = machine.command(&wrapper, stage, "clean-node");
    clean
        .args(more)
        .arg("--state-dir")
        .arg(worker.state_dir())
        .arg("--run-dir")
        .arg(worker.run_dir())
        .arg("--socket")
        .arg(worker.admin_socket());
    inside(&worker.netns, move || command::run(clean, b"", LIMIT))
}

/// Has the worker's daemon write the list into the machine's folder and answer on [`LISTEN`], from its next start on.
fn configure(worker: &Worker, machine: &Machine) -> anyhow::Result<()> {
    let file = worker.config_file();
    let text = fs::read_to_string(&file)?;
    ensure!(text.contains("[cni]\n"), "no [cni] in {text}");
    let list = format!("[cni]\nconflist_dir = {:?}\n", machine.conf());
    let text = text.replacen("[cni]\n", &list, 1);
    fs::write(file, format!("{text}\n[metrics]\nlisten = {LISTEN:?}\n"))?;
    Ok(())
}

/// The whole answer to a request in the worker's namespace.
fn get(worker: &Worker, path: &str) -> anyhow::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\n\r\n");
    inside(&worker.netns, move || {
        let mut stream = TcpStream::connect(LISTEN).context(LISTEN)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

/// What a node is made of, as far as Fabric could change it.
fn inventory(worker: &Worker, machine: &Machine) -> anyhow::Result<BTreeMap<&'static str, String>> {
    let mut found = BTreeMap::new();
    for (what, words) in [
        ("links", "-o link show"),
        ("addresses", "-o address show"),
        ("routes", "route show table all"),
        ("routes of IPv6", "-6 route show table all"),
        ("rules", "rule show"),
        ("rules of IPv6", "-6 rule show"),
    ] {
        let mut ip = Command::new("ip");
        ip.args(words.split(' '));
        let answer = inside(&worker.netns, move || command::run(ip, b"", LIMIT))?;
        ensure!(answer.status.success(), "{what}: {}", answer.stderr);
        found.insert(what, whatever_the_carrier(&answer.stdout));
    }
    found.insert("files", files(worker, machine)?);
    Ok(found)
}

/// The kernel notices a moment after a daemon's end that nobody is at the other end of `fabric0`.
fn whatever_the_carrier(text: &str) -> String {
    text.replace("NO-CARRIER,", "")
        .replace("state DOWN", "state UNKNOWN")
        .replace(" linkdown", "")
}

/// Names of all files that are the node's, but for the configuration and the log, which an operator wrote.
fn files(worker: &Worker, machine: &Machine) -> anyhow::Result<String> {
    let mut names = machine.names()?;
    for folder in [worker.state_dir(), worker.run_dir()] {
        walk(&folder, &mut names)?;
    }
    assert!(!names.contains(&format!(".{LIST}.fabric-tmp")));
    Ok(names.join("\n"))
}

fn walk(folder: &Path, names: &mut Vec<String>) -> anyhow::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    names.push(folder.display().to_string());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, names)?;
        } else {
            names.push(path.display().to_string());
        }
    }
    Ok(())
}
