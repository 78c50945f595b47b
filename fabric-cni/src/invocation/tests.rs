#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::wildcard_enum_match_arm
)]

use serde_json::json;

use super::*;

fn environment() -> Environment {
    BTreeMap::from(
        [
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/p"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ]
        .map(|(name, value)| (name, value.to_owned())),
    )
}

fn parse(verb: Verb, arguments: &str, extra: &Value) -> Result<Invocation, CniError> {
    let mut environment = environment();
    environment.insert("CNI_ARGS", arguments.to_owned());
    let mut config = json!({"cniVersion": "1.1.0", "name": "fabric", "type": "fabric-cni"});
    config
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    Invocation::parse(verb, &environment, &serde_json::to_vec(&config).unwrap())
}

fn requested(arguments: &str, extra: &Value) -> Vec<String> {
    match parse(Verb::Add, arguments, extra).unwrap().action {
        Action::Add { addresses, .. } => addresses.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

fn code_of(result: Result<Invocation, CniError>) -> u32 {
    result.unwrap_err().code
}

/// The pod's identity is what the K8S_* arguments say, in any order, and absent without them.
#[test]
fn pod_identity() {
    let identity = |arguments: &str| match parse(Verb::Add, arguments, &json!({})).unwrap().action {
        Action::Add { pod, .. } => pod,
        other => panic!("{other:?}"),
    };
    let pod = identity("K8S_POD_UID=u;IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=ns;X=y");
    assert_eq!(pod.namespace.as_deref(), Some("ns"));
    assert_eq!(pod.name.as_deref(), Some("web"));
    assert_eq!(pod.uid.as_deref(), Some("u"));
    assert_eq!(identity(""), PodIdentity::default());
}

/// Requested addresses come from runtimeConfig.ips first, args.cni.ips second, CNI_ARGS last, with
/// or without a prefix length.
#[test]
fn requested_addresses_by_rank() {
    let runtime = json!({"runtimeConfig": {"ips": ["10.0.0.9/24", "fd00::9"]}, "args": {"cni": {"ips": ["10.0.0.8"]}}});
    assert_eq!(requested("IP=10.0.0.7", &runtime), ["10.0.0.9", "fd00::9"]);
    let args = json!({"args": {"cni": {"ips": ["10.0.0.8"]}}, "runtimeConfig": {"ips": []}});
    assert_eq!(requested("IP=10.0.0.7", &args), ["10.0.0.8"]);
    assert_eq!(
        requested("IP=10.0.0.7,fd00::7", &json!({})),
        ["10.0.0.7", "fd00::7"]
    );
    assert!(requested("", &json!({})).is_empty());
}

/// portMappings and bandwidth with something in them are refused by name and value on ADD, and
/// never stand in the way of a DEL.
#[test]
fn unsupported_capabilities() {
    let ports = json!({"runtimeConfig": {"portMappings": [{"hostPort": 8080}]}});
    let error = parse(Verb::Add, "", &ports).unwrap_err();
    assert_eq!(error.code, code::UNSUPPORTED_FIELD);
    assert!(error.msg.contains("portMappings") && error.msg.contains("8080"));
    let bandwidth = json!({"runtimeConfig": {"bandwidth": {"ingressRate": 1000}}});
    assert_eq!(
        code_of(parse(Verb::Add, "", &bandwidth)),
        code::UNSUPPORTED_FIELD
    );
    parse(Verb::Del, "", &ports).unwrap();
    for nothing in [json!([]), json!(null), json!({}), json!({"ingressRate": 0})] {
        let extra = json!({"runtimeConfig": {"portMappings": [], "bandwidth": nothing, "dns": {"servers": []}, "mac": "02:00:00:00:00:01"}});
        parse(Verb::Add, "", &extra).unwrap();
    }
}

/// A DEL goes through with arguments, runtimeConfig and prevResult that an ADD would refuse.
#[test]
fn del_looks_only_at_its_key() {
    let extra = json!({"runtimeConfig": 7, "prevResult": "broken", "args": []});
    let invocation = parse(Verb::Del, "no pair", &extra).unwrap();
    assert!(matches!(invocation.action, Action::Del { .. }));
}

/// GC tells a missing list from an empty one, understands the misspelt key where the right one is not
/// there, and leaves out what no ADD could have made.
#[test]
fn gc_lists() {
    let valid = |extra: &Value| match parse(Verb::Gc, "", extra).unwrap().action {
        Action::Gc { valid, .. } => valid.map(|valid| valid.len()),
        other => panic!("{other:?}"),
    };
    assert_eq!(valid(&json!({})), None);
    assert_eq!(valid(&json!({"cni.dev/valid-attachments": null})), Some(0));
    assert_eq!(valid(&json!({"cni.dev/valid-attachments": []})), Some(0));
    let one = json!([{"containerID": "c1", "ifname": "eth0"}]);
    assert_eq!(valid(&json!({"cni.dev/valid-attachments": one})), Some(1));
    assert_eq!(valid(&json!({"cni.dev/attachments": one})), Some(1));
    let both = json!({"cni.dev/valid-attachments": [], "cni.dev/attachments": one});
    assert_eq!(valid(&both), Some(0));
    let foreign = json!([
        {"containerID": "../x", "ifname": "eth0"},
        {"containerID": "c1", "ifname": "a/b"},
        {"containerID": "c".repeat(2000), "ifname": "eth0"}
    ]);
    assert_eq!(
        valid(&json!({"cni.dev/valid-attachments": foreign})),
        Some(0)
    );
    for broken in [
        json!({}),
        json!("x"),
        json!([{}]),
        json!([{"containerID": 1, "ifname": "e"}]),
    ] {
        let result = parse(Verb::Gc, "", &json!({"cni.dev/valid-attachments": broken}));
        assert_eq!(code_of(result), code::INVALID_CONFIG);
    }
}

/// Every string of up to three characters from a nasty alphabet gives a name or an error, never a
/// name that leaves its folder.
#[test]
fn container_ids_are_file_names() {
    let alphabet = ['a', '0', '.', '-', '_', '/', '\0', ' ', 'é', '\n'];
    for a in alphabet {
        for b in alphabet {
            for c in alphabet {
                let id: String = [a, b, c].iter().collect();
                let mut environment = environment();
                environment.insert("CNI_CONTAINERID", id.clone());
                let config = br#"{"cniVersion":"1.0.0","name":"n"}"#;
                let accepted = Invocation::parse(Verb::Del, &environment, config).is_ok();
                let expected = a.is_ascii_alphanumeric()
                    && [b, c]
                        .iter()
                        .all(|c| c.is_ascii_alphanumeric() || "._-".contains(*c));
                assert_eq!(accepted, expected, "{id:?}");
            }
        }
    }
}

/// Whatever bytes stand on stdin, the answer is an invocation or an error with a code.
#[test]
fn mutated_configurations_do_not_panic() {
    let seed = br#"{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"ips":["10.0.0.1"]},"prevResult":{"ips":[{"address":"10.0.0.1/32"}]},"cni.dev/valid-attachments":[{"containerID":"c","ifname":"e"}]}"#;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below.max(1) as u64).unwrap()
    };
    for _ in 0..20_000 {
        let mut bytes = seed.to_vec();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                1 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at.max(1)),
            }
        }
        for verb in [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status] {
            if let Err(error) = Invocation::parse(verb, &environment(), &bytes) {
                assert!(error.code > 0 && !error.msg.is_empty());
            }
        }
    }
}
