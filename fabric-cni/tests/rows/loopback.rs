//! G1: the program under the name `loopback`, against the kernel, iproute2 and the reference plugin.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    sync::LazyLock,
};

use serde_json::{Value, json};

use crate::support::{
    Call, Outcome,
    pod::Pod,
    table::{Expected, Row, check, refused, rows, silent_alone},
};

/// Where Debian's package containernetworking-plugins has the reference.
const REFERENCE: &str = "/usr/lib/cni/loopback";

/// One container for the table: its rows follow one another. It ends with the test.
static POD: LazyLock<Pod> = LazyLock::new(Pod::start);

pub(super) fn rows() -> Vec<Row> {
    [life(), trouble()].into_iter().flatten().collect()
}

/// ADD sets `lo` up and tells its addresses, CHECK sees it, DEL sets it down, each as often as a
/// runtime likes.
#[test]
fn g1_life_of_lo() {
    check(life());
}

/// What is no container's namespace is refused by ADD and CHECK, and is nothing to do for DEL.
#[test]
fn g1_trouble() {
    check(trouble());
}

/// Thousands of addresses, and such as are no loopback addresses, neither fail an ADD nor swell its
/// result.
#[test]
fn a_crowded_lo() {
    let pod = Pod::start();
    let batch: String = (0..4000)
        .map(|index| {
            format!(
                "address add 127.1.{}.{}/32 dev lo\n",
                index / 250,
                index % 250
            )
        })
        .collect();
    let call = Call::loopback("ADD", &pod.netns());
    let file = call.folder.path().join("batch");
    std::fs::write(&file, batch).unwrap();
    pod.run("ip address add 192.0.2.1/32 dev lo");
    pod.run(&format!("ip -batch {}", file.display()));
    let outcome = call.run();
    assert_eq!(outcome.status, 0, "{outcome:?}");
    let ips = outcome.json()["ips"].as_array().unwrap().clone();
    assert_eq!(ips.len(), 16, "{ips:?}");
    let is_loopback = |ip: &Value| ip["address"].as_str().unwrap().starts_with("127.");
    assert!(ips.iter().all(is_loopback), "{ips:?}");
}

/// The results in 0.3.1 to 1.0.0 are those of the reference plugin, but for the family of an address:
/// up to 0.4.0 the specification wants it, and the reference leaves it out.
#[test]
fn results_are_those_of_the_reference() {
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let pod = Pod::start();
        let call = Call::loopback("ADD", &pod.netns()).set("cniVersion", json!(version));
        let theirs = reference(&call);
        assert!(pod.lo_is_up());
        let mut ours = call.run().json();
        for ip in ours["ips"].as_array_mut().unwrap() {
            let family = ip.as_object_mut().unwrap().remove("version");
            assert_eq!(family.is_some(), version < "1.0.0", "{version}");
        }
        // An empty dns and none mean the same.
        assert_eq!(ours, with_dns(theirs), "{version}");
    }
}

fn with_dns(mut result: Value) -> Value {
    let result = result.as_object_mut().unwrap();
    result.entry("dns").or_insert_with(|| json!({}));
    json!(result)
}

fn reference(call: &Call) -> Value {
    let mut child = Command::new(REFERENCE)
        .env_clear()
        .envs(call.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!(
                "{REFERENCE}: {error}: install containernetworking-plugins (scripts/install-deps)"
            )
        });
    let stdin = serde_json::to_vec(&call.config).unwrap();
    child.stdin.take().unwrap().write_all(&stdin).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn call(verb: &str) -> Call {
    Call::loopback(verb, &POD.netns())
}

fn life() -> Vec<Row> {
    let old = |verb: &str, version: &str| call(verb).set("cniVersion", json!(version));
    let after = json!({"interfaces": [{"name": "eth0", "sandbox": "/n"}], "x": 1});
    let chained = call("ADD").set("prevResult", after);
    let bare = |verb: &str| {
        let call = call(verb).unset("CNI_CONTAINERID").unset("CNI_NETNS");
        call.unset("CNI_IFNAME")
    };
    fn told(outcome: &Outcome) {
        let result = outcome.json();
        let lo = POD.lo();
        assert!(POD.lo_is_up(), "{lo}");
        let interface = json!({"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": POD.netns()});
        assert_eq!(result["interfaces"], json!([interface]));
        let ours = result["ips"].as_array().unwrap().iter();
        let theirs = lo["addr_info"].as_array().unwrap().iter();
        let theirs =
            theirs.map(|info| format!("{}/{}", info["local"].as_str().unwrap(), info["prefixlen"]));
        let ours: Vec<&str> = ours.map(|ip| ip["address"].as_str().unwrap()).collect();
        assert_eq!(ours, theirs.collect::<Vec<String>>());
        assert!(ours.contains(&"127.0.0.1/8"));
        assert_eq!(
            result["ips"][0].get("version").is_some(),
            result["cniVersion"].as_str() < Some("1.0.0")
        );
    }
    fn passed_through(outcome: &Outcome) {
        let result = outcome.json();
        assert_eq!(
            result["interfaces"],
            json!([{"name": "eth0", "sandbox": "/n"}])
        );
        assert_eq!(
            (&result["x"], &result["cniVersion"]),
            (&json!(1), &json!("1.1.0"))
        );
    }
    fn down(call: Call) {
        let outcome = call.run();
        assert_eq!((outcome.status, &*outcome.stdout), (0, ""), "{outcome:?}");
        assert!(!POD.lo_is_up());
    }
    fn versions(outcome: &Outcome) {
        assert_eq!(outcome.stdout, Call::new("VERSION").run().stdout);
    }
    fn about(outcome: &Outcome) {
        assert_eq!(outcome.stdout, "");
        assert!(outcome.stderr.starts_with("loopback "), "{outcome:?}");
    }
    rows! {
        "G1 loopback CHECK before ADD": call("CHECK") => refused(101, &["lo is down"]);
        "G1 loopback ADD as containerd calls it": old("ADD", "0.3.1") => Expected::Prints(told);
        "G1 loopback ADD again": old("ADD", "0.4.0") => Expected::Prints(told);
        "G1 loopback ADD in 1.0.0": old("ADD", "1.0.0") => Expected::Prints(told);
        "G1 loopback ADD in 1.1.0": call("ADD") => Expected::Prints(told);
        "G1 loopback ADD under another interface's name": call("ADD").env("CNI_IFNAME", "eth0")
            => Expected::Prints(told);
        "G1 loopback ADD in a chain": chained => Expected::Prints(passed_through);
        "G1 loopback CHECK": call("CHECK") => silent_alone();
        "G1 loopback DEL": old("DEL", "0.3.1") => Expected::By(down);
        "G1 loopback DEL again": call("DEL") => Expected::By(down);
        "G1 loopback CHECK after DEL": call("CHECK") => refused(101, &["lo is down"]);
        "G1 loopback DEL with an empty namespace": call("DEL").env("CNI_NETNS", "") => silent_alone();
        "G1 loopback DEL without a namespace": call("DEL").unset("CNI_NETNS") => silent_alone();
        "G1 loopback GC": bare("GC") => silent_alone();
        "G1 loopback STATUS": bare("STATUS") => silent_alone();
        "G1 loopback VERSION": bare("VERSION").stdin(b"") => Expected::Prints(versions);
        "G1 loopback without a verb": bare("ADD").unset("CNI_COMMAND").stdin(b"") => Expected::Prints(about);
    }
}

fn trouble() -> Vec<Row> {
    let at = |verb: &str, netns: &str| Call::loopback(verb, netns);
    let add = || call("ADD");
    rows! {
        "G1 loopback ADD in a namespace that has gone": at("ADD", "/run/netns/gone")
            => refused(8, &["/run/netns/gone"]);
        "G1 loopback ADD in a file": at("ADD", "/etc/hostname") => refused(8, &["not a network namespace"]);
        "G1 loopback ADD in a device": at("ADD", "/dev/null") => refused(8, &["not a network namespace"]);
        "G1 loopback ADD in a namespace of another kind": at("ADD", "/proc/self/ns/uts")
            => refused(8, &["not a network namespace"]);
        "G1 loopback ADD in the plugin's namespace": at("ADD", "/proc/self/ns/net")
            => refused(8, &["CNI_NETNS_OVERRIDE"]);
        "G1 loopback CHECK in a namespace that has gone": at("CHECK", "/run/netns/gone")
            => refused(8, &["/run/netns/gone"]);
        "G1 loopback DEL in a namespace that has gone": at("DEL", "/run/netns/gone") => silent_alone();
        "G1 loopback DEL in a file": at("DEL", "/etc/hostname") => silent_alone();
        "G1 loopback DEL in a namespace of another kind": at("DEL", "/proc/self/ns/uts") => silent_alone();
        "G1 loopback DEL leaves the plugin's own lo alone": at("DEL", "/proc/self/ns/net")
            => Expected::By(own_lo_stays);
        "G1 loopback ADD without a namespace": add().unset("CNI_NETNS") => refused(4, &["CNI_NETNS"]);
        "G1 loopback ADD without a container": add().unset("CNI_CONTAINERID") => refused(4, &["CNI_CONTAINERID"]);
        "G1 loopback ADD without a configuration": add().stdin(b"") => refused(6, &["no network configuration"]);
        "G1 loopback ADD without a network": add().without("name") => refused(7, &["name"]);
        "G1 loopback ADD with a broken prevResult": add().set("prevResult", json!([]))
            => refused(6, &["prevResult"]);
        "G1 loopback ADD in 0.2.0": add().set("cniVersion", json!("0.2.0")) => refused(1, &["0.2.0"]);
        "G1 loopback CHECK in 0.3.1": call("CHECK").set("cniVersion", json!("0.3.1")) => refused(1, &["CHECK"]);
        "G1 loopback GC in 1.0.0": call("GC").set("cniVersion", json!("1.0.0")) => refused(1, &["GC"]);
        "G1 loopback unknown verb": call("UPDATE") => refused(4, &["unknown CNI_COMMAND"]);
    }
}

/// Executed inside a namespace whose `lo` is up: that one is the plugin's own.
fn own_lo_stays(call: Call) {
    let pod = Pod::start();
    pod.run("ip link set lo up");
    let config = call.config.to_string();
    let program = env!("CARGO_BIN_EXE_fabric-cni");
    for more in ["", "CNI_NETNS_OVERRIDE=1"] {
        let environment = "CNI_COMMAND=DEL CNI_CONTAINERID=c1 CNI_IFNAME=lo CNI_PATH=/";
        let command = format!(
            "ln -sf {program} {folder}/loopback && echo '{config}' | env {environment} {more} CNI_NETNS=/proc/self/ns/net {folder}/loopback",
            folder = call.folder.path().display(),
        );
        assert_eq!(pod.run(&command), "");
        assert!(pod.lo_is_up());
    }
}
