//! The plugin binary as a runtime sees it, where it refuses: tables of calls, by what is wrong with
//! them. None of them reaches the daemon.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};

use support::{
    Call,
    refusals::{check_refused, refused},
};

/// Each missing or broken variable is refused with code 4 before the daemon hears of it.
#[test]
fn environment_errors() {
    let add = || Call::new("ADD");
    check_refused(vec![
        refused(
            "unknown verb",
            Call::new("UPDATE"),
            4,
            &["unknown CNI_COMMAND: UPDATE"],
        ),
        refused(
            "lower-case verb",
            Call::new("add"),
            4,
            &["unknown CNI_COMMAND: add"],
        ),
        refused(
            "ADD without container",
            add().unset("CNI_CONTAINERID"),
            4,
            &["CNI_CONTAINERID"],
        ),
        refused(
            "ADD without netns",
            add().unset("CNI_NETNS"),
            4,
            &["CNI_NETNS"],
        ),
        refused(
            "ADD with empty netns",
            add().env("CNI_NETNS", ""),
            4,
            &["CNI_NETNS"],
        ),
        refused(
            "ADD without ifname",
            add().unset("CNI_IFNAME"),
            4,
            &["CNI_IFNAME"],
        ),
        refused(
            "ADD without path",
            add().unset("CNI_PATH"),
            4,
            &["CNI_PATH"],
        ),
        refused(
            "ADD without anything",
            add()
                .unset("CNI_CONTAINERID")
                .unset("CNI_NETNS")
                .unset("CNI_IFNAME")
                .unset("CNI_PATH"),
            4,
            &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
        ),
        refused(
            "DEL without container",
            Call::new("DEL").unset("CNI_CONTAINERID"),
            4,
            &["CNI_CONTAINERID"],
        ),
        refused(
            "DEL without ifname",
            Call::new("DEL").unset("CNI_IFNAME"),
            4,
            &["CNI_IFNAME"],
        ),
        refused(
            "CHECK without netns",
            Call::new("CHECK").unset("CNI_NETNS"),
            4,
            &["CNI_NETNS"],
        ),
        refused(
            "GC without path",
            Call::new("GC").unset("CNI_PATH"),
            4,
            &["CNI_PATH"],
        ),
        refused(
            "STATUS without path",
            Call::new("STATUS").unset("CNI_PATH"),
            4,
            &["CNI_PATH"],
        ),
        refused(
            "container id with a slash",
            add().env("CNI_CONTAINERID", "a/b"),
            4,
            &["a/b"],
        ),
        refused(
            "container id that climbs",
            add().env("CNI_CONTAINERID", "../x"),
            4,
            &["../x"],
        ),
        refused(
            "container id with a leading dot",
            add().env("CNI_CONTAINERID", ".x"),
            4,
            &[".x"],
        ),
        refused(
            "container id with a space",
            add().env("CNI_CONTAINERID", "a b"),
            4,
            &["a b"],
        ),
        refused(
            "ifname of 16 bytes",
            add().env("CNI_IFNAME", "abcdefghijklmnop"),
            4,
            &["15 bytes"],
        ),
        refused("ifname .", add().env("CNI_IFNAME", "."), 4, &["CNI_IFNAME"]),
        refused(
            "ifname ..",
            add().env("CNI_IFNAME", ".."),
            4,
            &["CNI_IFNAME"],
        ),
        refused(
            "ifname with a slash",
            add().env("CNI_IFNAME", "a/b"),
            4,
            &["a/b"],
        ),
        refused(
            "ifname with a colon",
            add().env("CNI_IFNAME", "a:b"),
            4,
            &["a:b"],
        ),
        refused(
            "ifname with a space",
            add().env("CNI_IFNAME", "a b"),
            4,
            &["a b"],
        ),
        refused(
            "arguments without =",
            add().env("CNI_ARGS", "IgnoreUnknown"),
            4,
            &["IgnoreUnknown"],
        ),
        refused(
            "arguments with two =",
            add().env("CNI_ARGS", "A=b=c"),
            4,
            &["A=b=c"],
        ),
        refused(
            "unknown argument",
            add().env("CNI_ARGS", "COLOUR=red"),
            4,
            &["COLOUR"],
        ),
        refused(
            "argument IP that is none",
            add().env("CNI_ARGS", "IP=300.1.1.1"),
            4,
            &["300.1.1.1"],
        ),
    ]);
}

/// Broken, incomplete or contradictory configurations get the specification's codes.
#[test]
fn configuration_errors() {
    let add = || Call::new("ADD");
    let eth0 = json!({"interfaces": [{"name": "eth0", "sandbox": "/run/netns/p"}]});
    check_refused(vec![
        refused(
            "empty stdin",
            add().stdin(b""),
            6,
            &["no network configuration"],
        ),
        refused(
            "blank stdin",
            add().stdin(b" \n"),
            6,
            &["no network configuration"],
        ),
        refused("not JSON", add().stdin(b"{"), 6, &["JSON"]),
        refused("JSON list", add().stdin(b"[]"), 6, &["JSON"]),
        refused(
            "not UTF-8",
            add().stdin(b"{\"name\":\"\xff\"}"),
            6,
            &["JSON"],
        ),
        refused(
            "endless stdin",
            add().stdin(&vec![b' '; 5 << 20]),
            6,
            &["larger than"],
        ),
        refused(
            "deep nesting",
            add().stdin(&[b"{\"a\":".as_slice(), &b"[".repeat(100_000)].concat()),
            6,
            &["JSON"],
        ),
        refused("no name", add().without("name"), 7, &["name"]),
        refused("empty name", add().set("name", json!("")), 7, &["name"]),
        refused(
            "name that climbs",
            add().set("name", json!("../etc")),
            7,
            &["../etc"],
        ),
        refused(
            "name that is a number",
            add().set("name", json!(7)),
            7,
            &["7"],
        ),
        refused(
            "relative socket",
            add().set("socket", json!("cni.sock")),
            7,
            &["socket", "absolute"],
        ),
        refused(
            "socket that is a number",
            add().set("socket", json!(1)),
            7,
            &["socket"],
        ),
        refused(
            "relative stateDir",
            add().set("stateDir", json!("state")),
            7,
            &["stateDir"],
        ),
        refused(
            "port mapping",
            add().set("runtimeConfig", json!({"portMappings": [{"hostPort": 80}]})),
            2,
            &["portMappings", "80"],
        ),
        refused(
            "bandwidth",
            add().set("runtimeConfig", json!({"bandwidth": {"egressRate": 9}})),
            2,
            &["bandwidth", "9"],
        ),
        refused(
            "runtimeConfig that is a list",
            add().set("runtimeConfig", json!([])),
            7,
            &["runtimeConfig"],
        ),
        refused(
            "requested address that is none",
            add().set("runtimeConfig", json!({"ips": ["x"]})),
            7,
            &["runtimeConfig.ips", "x"],
        ),
        refused(
            "requested addresses that are no list",
            add().set("args", json!({"cni": {"ips": "10.0.0.1"}})),
            7,
            &["args.cni.ips"],
        ),
        refused(
            "prevResult that is no object",
            add().set("prevResult", json!("x")),
            6,
            &["prevResult"],
        ),
        refused(
            "prevResult with broken ips",
            add().set("prevResult", json!({"ips": [1]})),
            6,
            &["prevResult", "ips"],
        ),
        refused(
            "prevResult with our interface",
            add().set("prevResult", eth0),
            100,
            &["eth0", "chain"],
        ),
        refused(
            "CHECK without prevResult",
            Call::new("CHECK"),
            7,
            &["prevResult"],
        ),
        refused(
            "CHECK with broken prevResult",
            Call::new("CHECK").set("prevResult", json!({"ips": [{"address": "x"}]})),
            6,
            &["prevResult"],
        ),
        refused(
            "GC without a list",
            Call::new("GC"),
            7,
            &["valid-attachments"],
        ),
        refused(
            "GC with a broken list",
            Call::new("GC").set("cni.dev/valid-attachments", json!([{}])),
            7,
            &["containerID"],
        ),
    ]);
}

/// Versions that are not spoken, and verbs that came later than the configuration's version, get
/// code 1 with both sides; what is no version at all gets code 6.
#[test]
fn version_rules() {
    let with = |verb: &str, version: Value| Call::new(verb).set("cniVersion", version);
    check_refused(vec![
        refused("0.1.0", with("ADD", json!("0.1.0")), 1, &["0.1.0", "1.1.0"]),
        refused("0.2.0", with("ADD", json!("0.2.0")), 1, &["0.2.0", "1.1.0"]),
        refused("0.3.0", with("ADD", json!("0.3.0")), 1, &["0.3.0"]),
        refused("1.2.0", with("ADD", json!("1.2.0")), 1, &["1.2.0", "0.3.1"]),
        refused("2.0.0", with("DEL", json!("2.0.0")), 1, &["2.0.0"]),
        refused(
            "missing",
            Call::new("ADD").without("cniVersion"),
            1,
            &["0.1.0"],
        ),
        refused("empty", with("ADD", json!("")), 1, &["0.1.0"]),
        refused("word", with("ADD", json!("newest")), 6, &["newest"]),
        refused(
            "four numbers",
            with("ADD", json!("1.0.0.0")),
            6,
            &["1.0.0.0"],
        ),
        refused("number", with("ADD", json!(1.1)), 6, &["1.1"]),
        refused(
            "CHECK in 0.3.1",
            with("CHECK", json!("0.3.1")),
            1,
            &["CHECK", "0.4.0"],
        ),
        refused(
            "GC in 1.0.0",
            with("GC", json!("1.0.0")),
            1,
            &["GC", "1.1.0"],
        ),
        refused("GC in 0.4.0", with("GC", json!("0.4.0")), 1, &["GC"]),
        refused(
            "STATUS in 1.0.0",
            with("STATUS", json!("1.0.0")),
            1,
            &["STATUS", "1.1.0"],
        ),
    ]);
    let old = with("CHECK", json!("0.3.1")).run().json();
    assert_eq!(
        old["cniVersion"], "0.3.1",
        "the error speaks the configuration's version"
    );
}

/// The plugin's own namespace is refused before the daemon is asked, unless the runtime insists.
#[test]
fn own_namespace() {
    let own = |verb: &str| Call::new(verb).env("CNI_NETNS", "/proc/self/ns/net");
    check_refused(vec![
        refused(
            "ADD",
            own("ADD"),
            8,
            &["/proc/self/ns/net", "CNI_NETNS_OVERRIDE"],
        ),
        refused("DEL", own("DEL"), 8, &["/proc/self/ns/net"]),
    ]);
    for yes in ["1", "TRUE", "true"] {
        let outcome = own("ADD").env("CNI_NETNS_OVERRIDE", yes).run();
        assert_eq!(outcome.status, 0, "{outcome:?}");
    }
}
