#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// Node n of a well-kept cluster.
fn usual(n: u8) -> Value {
    json!({
        "podCIDRs": [format!("10.244.{n}.0/24"), format!("fd00:244:{n}::/64")],
        "endpoints": [{"address": format!("192.0.2.{n}"), "port": 7946}],
        "hostAddresses": [format!("198.51.100.{n}")],
        "identity": {"keys": [{"sha256": "0a".repeat(32)}]},
    })
}

fn read(name: &str, spec: Value) -> Result<NodeSpec, Finding> {
    let spec = serde_json::from_value(spec).map_err(|error| error.to_string());
    node_spec(name, &spec)
}

fn second(second: i64) -> Option<Timestamp> {
    Some(Timestamp::from_second(second).unwrap())
}

/// Converts for node "local", made in second 100, beside others of these names, times and specs.
fn converted(others: &[(&str, i64, Value)]) -> Conversion {
    let local = read("local", usual(1)).unwrap();
    let specs: Vec<_> = others
        .iter()
        .map(|(name, _, spec)| read(name, spec.clone()))
        .collect();
    let claimants: Vec<Claimant<'_>> = others
        .iter()
        .zip(&specs)
        .map(|((name, made, _), spec)| Claimant {
            name,
            created: second(*made),
            leaving: false,
            spec,
        })
        .collect();
    convert((&id("local"), &local, second(100)), &claimants)
}

fn names(conversion: &Conversion) -> Vec<&str> {
    let names = conversion.desired.nodes.keys();
    names.map(NodeId::as_str).collect()
}

fn with(mut spec: Value, path: &str, value: Value) -> Value {
    *spec.pointer_mut(path).unwrap() = value;
    spec
}

/// A cluster without faults is the state, whole.
#[test]
fn a_well_kept_cluster_is_taken_over() {
    let conversion = converted(&[
        ("b", 1, usual(2)),
        ("local", 2, usual(9)),
        ("c", 3, usual(3)),
    ]);
    assert_eq!(conversion.findings, []);
    assert_eq!(names(&conversion), ["b", "c", "local"]);
    let b = &conversion.desired.nodes[&id("b")];
    let wanted = NodeSpec {
        underlay: vec!["192.0.2.2:7946".parse().unwrap()],
        pod_cidrs: vec![
            "10.244.2.0/24".parse().unwrap(),
            "fd00:244:2::/64".parse().unwrap(),
        ],
        host_addresses: vec!["198.51.100.2".parse().unwrap()],
        identity_keys: vec!["0a".repeat(32).parse().unwrap()],
    };
    assert_eq!(*b, wanted);
    // This node is what its own Node says, not what an object says.
    let local = &conversion.desired.nodes[&id("local")];
    assert_eq!(local.pod_cidrs[0].to_string(), "10.244.1.0/24");
}

/// Each field that no node can use leaves out its object alone, and the finding names object, field
/// and cure.
#[test]
fn a_bad_field_leaves_out_its_object() {
    for (path, value, field, problem) in [
        (
            "/podCIDRs/0",
            json!("10.244.2.1/24"),
            "spec.podCIDRs[0]",
            "bits set beyond its prefix",
        ),
        (
            "/podCIDRs/1",
            json!("fd00::/8"),
            "spec.podCIDRs[1]",
            "too large",
        ),
        (
            "/podCIDRs/0",
            json!("10.244.2.0/31"),
            "spec.podCIDRs[0]",
            "too small",
        ),
        (
            "/podCIDRs/0",
            json!("224.0.0.0/24"),
            "spec.podCIDRs[0]",
            "multicast",
        ),
        (
            "/podCIDRs/0",
            json!("10.244.2.0"),
            "spec.podCIDRs[0]",
            "no address range",
        ),
        (
            "/podCIDRs",
            json!([]),
            "spec.podCIDRs",
            "0 entries: expected 1 to 8",
        ),
        ("/endpoints", json!([]), "spec.endpoints", "0 entries"),
        (
            "/endpoints/0/address",
            json!("worker-b"),
            "spec.endpoints[0].address",
            "no address",
        ),
        (
            "/endpoints/0/address",
            json!("0.0.0.0"),
            "spec.endpoints[0].address",
            "unspecified",
        ),
        (
            "/endpoints/0/address",
            json!("fe80::1"),
            "spec.endpoints[0].address",
            "link-local",
        ),
        (
            "/endpoints/0/port",
            json!(0),
            "spec.endpoints[0].port",
            "out of range",
        ),
        (
            "/endpoints/0/port",
            json!(65_535),
            "spec.endpoints[0].port",
            "out of range",
        ),
        ("/endpoints/0/port", json!(-1), "spec", "invalid value"),
        (
            "/hostAddresses",
            json!(vec!["192.0.2.2"; 33]),
            "spec.hostAddresses",
            "33 entries",
        ),
        (
            "/hostAddresses/0",
            json!("::ffff:192.0.2.1"),
            "spec.hostAddresses[0]",
            "IPv4-mapped",
        ),
        (
            "/identity/keys/0/sha256",
            json!("AA"),
            "spec.identity.keys[0].sha256",
            "64 digits",
        ),
        ("/identity", json!("none"), "spec", "invalid type"),
        (
            "/hostAddresses/0",
            json!("10.244.2.7"),
            "spec.hostAddresses[0]",
            "of the same object",
        ),
        (
            "/podCIDRs/1",
            json!("10.244.2.0/25"),
            "spec.podCIDRs[1]",
            "of the same object",
        ),
    ] {
        let bad = with(usual(2), path, value);
        let conversion = converted(&[("b", 1, bad), ("c", 2, usual(3))]);
        assert_eq!(names(&conversion), ["c", "local"], "{path}");
        let [finding] = &conversion.findings[..] else {
            panic!("{path}: {:?}", conversion.findings);
        };
        assert_eq!(finding.reason, Reason::InvalidSpec, "{path}");
        let text = finding.to_string();
        assert!(
            text.starts_with(&format!("FabricNode b: {field}: ")),
            "{path}: {text}"
        );
        assert!(
            text.contains(problem) && text.ends_with(OWNER_CURE),
            "{path}: {text}"
        );
    }
}

/// Of two that claim the same, the older one has it, of the same age the first by name, whichever
/// field it is and in whatever order they come; the other one is left out, and a third is not touched.
#[test]
fn the_older_claim_is_honoured() {
    for (path, value) in [
        ("/podCIDRs/0", json!("10.244.2.0/24")),
        ("/podCIDRs/0", json!("10.244.2.128/25")),
        ("/podCIDRs/0", json!("10.244.0.0/16")),
        ("/podCIDRs/1", json!("fd00:244:2::/64")),
        ("/endpoints/0/address", json!("192.0.2.2")),
        ("/hostAddresses/0", json!("192.0.2.2")),
        ("/hostAddresses/0", json!("10.244.2.9")),
        ("/endpoints/0/address", json!("fd00:244:2::9")),
    ] {
        let claim = with(usual(3), path, value);
        let far = usual(200);
        for (made_b, made_c, loser) in [(5, 6, "c"), (6, 5, "b"), (5, 5, "c")] {
            let mut others = vec![
                ("b", made_b, usual(2)),
                ("c", made_c, claim.clone()),
                ("d", 1, far.clone()),
            ];
            // One that claims all of 10.244/16 is in this node's way, too.
            if path == "/podCIDRs/0" && claim["podCIDRs"][0] == "10.244.0.0/16" {
                others.retain(|(name, ..)| *name != "d");
            }
            for _ in 0..others.len() {
                others.rotate_left(1);
                let conversion = converted(&others);
                let there = names(&conversion);
                if claim["podCIDRs"][0] == "10.244.0.0/16" {
                    assert_eq!(there, ["b", "local"], "{path}");
                    continue;
                }
                assert!(
                    !there.contains(&loser) && there.len() == 3,
                    "{path}: {there:?}"
                );
                let [finding] = &conversion.findings[..] else {
                    panic!("{:?}", conversion.findings);
                };
                assert_eq!(
                    (finding.node.as_str(), finding.reason),
                    (loser, Reason::AddressConflict)
                );
                let winner = if loser == "b" { "c" } else { "b" };
                assert!(
                    finding
                        .problem
                        .ends_with(&format!("of FabricNode {winner}")),
                    "{finding}"
                );
            }
        }
    }
}

/// This node always has its own addresses. Who claims them is left out; if that one is older, others
/// will leave out this node, and the finding is about it.
#[test]
fn this_node_is_always_part_of_its_state() {
    let thief = with(usual(2), "/podCIDRs/0", json!("10.244.1.0/24"));
    for (made, about) in [(50, "local"), (150, "thief")] {
        let conversion = converted(&[("thief", made, thief.clone()), ("c", 1, usual(3))]);
        assert_eq!(names(&conversion), ["c", "local"]);
        let [finding] = &conversion.findings[..] else {
            panic!("{:?}", conversion.findings);
        };
        assert_eq!(
            (finding.node.as_str(), finding.reason),
            (about, Reason::AddressConflict)
        );
        assert!(finding.to_string().contains("10.244.1.0/24"), "{finding}");
    }
}

/// One that is no longer there gives way to everybody, and is no fault.
#[test]
fn what_is_leaving_gives_way() {
    let local = read("local", usual(1)).unwrap();
    let spec = read("x", usual(2));
    let claimant = |name, created, leaving| Claimant {
        name,
        created: second(created),
        leaving,
        spec: &spec,
    };
    let others = [claimant("old", 1, true), claimant("new", 2, false)];
    let conversion = convert((&id("local"), &local, None), &others);
    assert_eq!(names(&conversion), ["local", "new"]);
    assert_eq!(conversion.findings, []);
}

/// A name that no node can have, and one node too many, leave out that object alone.
#[test]
fn names_and_numbers_are_bounded() {
    let conversion = converted(&[("B_1", 1, usual(2)), ("c", 2, usual(3))]);
    assert_eq!(names(&conversion), ["c", "local"]);
    assert_eq!(conversion.findings[0].reason, Reason::InvalidName);

    let many: Vec<(String, Result<NodeSpec, Finding>)> = (0..NODES_MAX)
        .map(|n| {
            let net = u32::try_from(n).unwrap() << 4;
            let range = std::net::Ipv4Addr::from(0x0b00_0000 + net);
            let host = std::net::Ipv4Addr::from(0x6440_0000 + net);
            let spec = json!({
                "podCIDRs": [format!("{range}/28")],
                "endpoints": [{"address": host.to_string(), "port": 7946}],
            });
            let name = format!("n{n:05}");
            let spec = read(&name, spec);
            (name, spec)
        })
        .collect();
    let claimants: Vec<Claimant<'_>> = many
        .iter()
        .map(|(name, spec)| Claimant {
            name,
            created: second(1),
            leaving: false,
            spec,
        })
        .collect();
    let local = read("local", usual(1)).unwrap();
    let conversion = convert((&id("local"), &local, second(100)), &claimants);
    assert_eq!(conversion.desired.nodes.len(), NODES_MAX);
    let [finding] = &conversion.findings[..] else {
        panic!("{} findings", conversion.findings.len());
    };
    assert_eq!(
        (finding.node.as_str(), finding.reason),
        ("n09999", Reason::TooManyNodes)
    );
}
