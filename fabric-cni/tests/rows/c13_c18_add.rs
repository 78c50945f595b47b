//! C13 to C18: results of ADD, alone and in a chain.

use fabric_proto::cni::{Attached, Response};
use serde_json::{Value, json};

use crate::support::{
    Call, Daemon, Outcome,
    table::{Expected, Row, check, refused, rows},
};

pub(super) fn rows() -> Vec<Row> {
    [results(), chains(), broken_chains()]
        .into_iter()
        .flatten()
        .collect()
}

/// A result has the keys of its version, and names the namespace as the runtime did.
#[test]
fn c13_c15_results() {
    check(results());
}

/// What earlier plugins reported comes first and whole; ours stands behind it and points at our own
/// interface.
#[test]
fn c16_chains() {
    check(chains());
}

/// A prevResult that cannot be read is refused, and so is one that holds our interface already.
#[test]
fn c16_c17_broken_chains() {
    check(broken_chains());
}

fn add() -> Call {
    Call::new("ADD")
}

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(|key| &**key)
        .collect()
}

fn results() -> Vec<Row> {
    let in_version = |version: &str| add().set("cniVersion", json!(version));
    let one_family = |address: &str| {
        add().daemon(Daemon::Answers(Response::Attached(Attached {
            mtu: 1280,
            addresses: vec![address.parse().unwrap()],
        })))
    };
    rows! {
        "C13 keys of a result": add() => Expected::Prints(whole);
        "C13 result of a node with IPv4 alone": one_family("10.0.0.1") => Expected::Prints(only_v4);
        "C13 result of a node with IPv6 alone": one_family("fd00::1") => Expected::Prints(only_v6);
        "C14 shape of 0.3.1": in_version("0.3.1") => Expected::Prints(with_family);
        "C14 shape of 0.4.0": in_version("0.4.0") => Expected::Prints(with_family);
        "C14 shape of 1.0.0": in_version("1.0.0") => Expected::Prints(without_family);
        "C14 shape of 1.1.0": in_version("1.1.0") => Expected::Prints(with_mtu);
        "C15 sandbox as it was given": add().env("CNI_NETNS", "/run//netns/../netns/\u{fc} x")
            => Expected::Prints(odd_sandbox);
        "G4 eth0 with addresses": add() => Expected::Prints(v4_first);
        "G5 IPv4 comes first": add() => Expected::Prints(v4_first);
    }
}

fn whole(outcome: &Outcome) {
    let result = outcome.json();
    let expected = ["cniVersion", "dns", "interfaces", "ips", "routes"];
    assert_eq!(keys(&result), expected);
    assert_eq!(result["interfaces"][0]["mac"], "00:00:00:00:00:00");
    assert_eq!(result["dns"], json!({}));
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    assert_eq!(result["routes"], routes);
}

fn with_family(outcome: &Outcome) {
    let result = outcome.json();
    assert_eq!(result["ips"][0]["version"], "4");
    assert_eq!(result["ips"][1]["version"], "6");
    assert_eq!(keys(&result["interfaces"][0]), ["mac", "name", "sandbox"]);
}

fn without_family(outcome: &Outcome) {
    let result = outcome.json();
    assert_eq!(keys(&result["ips"][0]), ["address", "interface"]);
    assert_eq!(keys(&result["interfaces"][0]), ["mac", "name", "sandbox"]);
}

fn with_mtu(outcome: &Outcome) {
    let result = outcome.json();
    assert_eq!(keys(&result["ips"][0]), ["address", "interface"]);
    assert_eq!(result["interfaces"][0]["mtu"], 1500);
}

fn only_v4(outcome: &Outcome) {
    assert_eq!(
        outcome.json()["ips"],
        json!([{"address": "10.0.0.1/32", "interface": 0}])
    );
    assert_eq!(outcome.json()["routes"], json!([{"dst": "0.0.0.0/0"}]));
    assert_eq!(outcome.json()["interfaces"][0]["mtu"], 1280);
}

fn only_v6(outcome: &Outcome) {
    assert_eq!(
        outcome.json()["ips"],
        json!([{"address": "fd00::1/128", "interface": 0}])
    );
    assert_eq!(outcome.json()["routes"], json!([{"dst": "::/0"}]));
}

fn odd_sandbox(outcome: &Outcome) {
    assert_eq!(
        outcome.json()["interfaces"][0]["sandbox"],
        "/run//netns/../netns/\u{fc} x"
    );
}

fn v4_first(outcome: &Outcome) {
    let result = outcome.json();
    assert_eq!(result["interfaces"][0]["name"], "eth0");
    assert_eq!(result["ips"][0]["address"], "10.244.1.5/32");
    assert_eq!(result["ips"][1]["address"], "fd00::5/128");
}

fn chains() -> Vec<Row> {
    let after = |prev_result: Value| add().set("prevResult", prev_result);
    let host_eth0 = json!({"interfaces": [{"name": "eth0"}]});
    let rich = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "sandbox": "/n", "mac": "02:00:00:00:00:01", "x": {"y": 1}}],
        "ips": [{"address": "192.0.2.7/24", "gateway": "192.0.2.1", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}],
        "dns": {"nameservers": ["192.0.2.53"], "search": ["example"]},
        "example.com/extension": [1, 2, 3],
    });
    fn kept(outcome: &Outcome) {
        let result = outcome.json();
        assert_eq!(result["cniVersion"], "1.1.0");
        assert_eq!(result["example.com/extension"], json!([1, 2, 3]));
        assert_eq!(result["dns"]["search"], json!(["example"]));
        let first =
            json!({"name": "net1", "sandbox": "/n", "mac": "02:00:00:00:00:01", "x": {"y": 1}});
        assert_eq!(result["interfaces"][0], first);
        assert_eq!(result["interfaces"][1]["name"], "eth0");
        assert_eq!(result["ips"][0]["gateway"], "192.0.2.1");
        assert_eq!(result["ips"][1]["interface"], 1);
        assert_eq!(result["ips"][2]["interface"], 1);
        assert_eq!(result["routes"][0]["gw"], "192.0.2.1");
        assert_eq!(result["routes"].as_array().unwrap().len(), 3);
    }
    fn as_first(outcome: &Outcome) {
        assert_eq!(outcome.json(), add().env("CNI_NETNS", "/n").run().json());
    }
    fn second_interface(outcome: &Outcome) {
        assert_eq!(outcome.json()["interfaces"].as_array().unwrap().len(), 2);
        assert_eq!(outcome.json()["ips"][0]["interface"], 1);
    }
    rows! {
        "C16 prevResult passes through": after(rich) => Expected::Prints(kept);
        "C16 prevResult that is null": after(Value::Null).env("CNI_NETNS", "/n") => Expected::Prints(as_first);
        "C16 prevResult that is empty": after(json!({})).env("CNI_NETNS", "/n") => Expected::Prints(as_first);
        "C16 prevResult with null lists": after(json!({"interfaces": null, "ips": null, "routes": null, "dns": null})).env("CNI_NETNS", "/n")
            => Expected::Prints(as_first);
        "C16 prevResult with our name on the host": after(host_eth0) => Expected::Prints(second_interface);
    }
}

fn broken_chains() -> Vec<Row> {
    let after = |prev_result: Value| add().set("prevResult", prev_result);
    let eth0 = json!({"interfaces": [{"name": "eth0", "sandbox": "/run/netns/p"}]});
    rows! {
        "C16 prevResult that is a text": after(json!("x")) => refused(6, &["prevResult"]);
        "C16 prevResult that is a list": after(json!([])) => refused(6, &["prevResult"]);
        "C16 interfaces that are no list": after(json!({"interfaces": {}}))
            => refused(6, &["prevResult", "interfaces"]);
        "C16 interface with a number for a name": after(json!({"interfaces": [{"name": 7}]}))
            => refused(6, &["prevResult", "interfaces"]);
        "C16 ips with a number": after(json!({"ips": [1]})) => refused(6, &["prevResult", "ips"]);
        "C16 ips without an address": after(json!({"ips": [{"interface": 0}]}))
            => refused(6, &["prevResult", "ips"]);
        "C16 ips with a word": after(json!({"ips": [{"address": "x"}]})) => refused(6, &["prevResult", "ips"]);
        "C16 routes with a word": after(json!({"routes": [{"dst": "everywhere"}]}))
            => refused(6, &["prevResult", "routes"]);
        "C16 dns that is a list": after(json!({"dns": []})) => refused(6, &["prevResult", "dns"]);
        "C17 prevResult with our interface": after(eth0) => refused(100, &["eth0", "chain"]);
    }
}
