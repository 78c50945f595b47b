#![allow(clippy::unwrap_used)]

use super::*;

fn parsed(text: &str) -> Result<NodeConfig, String> {
    let path = Path::new("fabric.toml");
    parse(&Source { path, text }, None).map_err(|error| error.to_string())
}

/// A file with the node's name alone gives all documented defaults.
#[test]
fn defaults_fill_in() {
    let config = parsed("node = \"worker-a\"").unwrap();
    let wanted = NodeConfig {
        node: NodeId::new("worker-a").unwrap(),
        state_dir: "/var/lib/fabric".into(),
        run_dir: "/run/fabric".into(),
        source: SourceConfig::File {
            path: "/etc/fabric/nodes.d".into(),
        },
        identity: IdentityConfig {
            ca: "/etc/fabric/pki/ca.pem".into(),
            certificate: "/etc/fabric/pki/node.pem".into(),
            key: "/etc/fabric/pki/node-key.pem".into(),
            kind: IdentityKind::Files,
            trust_domain: "cluster.local".to_owned(),
            namespace: "fabric-system".to_owned(),
            lifetime_hours: 168,
        },
        dataplane: DataplaneConfig {
            workers: None,
            offloads: Offloads::ALL,
        },
        tunnel: TunnelConfig {
            congestion: Congestion::Cubic,
            idle_timeout_ms: 3000,
            keep_alive_ms: 1_400,
            reconnect_max_ms: 500,
        },
        cni: CniConfig {
            socket: "/run/fabric/cni.sock".into(),
            netns_roots: Vec::new(),
            conflist_dir: None,
        },
        admin: SocketConfig {
            socket: "/run/fabric/admin.sock".into(),
        },
        outside: OutsideConfig::default(),
        host: HostConfig {
            proc_sys: "/proc/sys".into(),
        },
        metrics: MetricsConfig { listen: None },
    };
    assert_eq!(config, wanted);
    assert!((1..=WORKERS_DEFAULT_MAX).contains(&config.dataplane.worker_count()));
}

/// The example in the module's documentation is a valid file and says what the defaults say.
#[test]
fn the_documented_file_is_valid() {
    let example: String = include_str!("../config.rs")
        .lines()
        .skip_while(|line| *line != "//! ```toml")
        .skip(1)
        .take_while(|line| *line != "//! ```")
        .map(|line| line.trim_start_matches("//!").trim_start().to_owned() + "\n")
        .collect();
    let mut wanted = parsed("node = \"worker-a\"").unwrap();
    wanted.dataplane.workers = Some(2);
    assert_eq!(parsed(&example).unwrap(), wanted);
}

/// Sockets without a path of their own follow `run_dir`; keys that are set win.
#[test]
fn sockets_follow_run_dir() {
    let text = "node = \"a\"\nrun_dir = \"/x\"\n[admin]\nsocket = \"/y/a.sock\"\n\
                [tunnel]\ncongestion = \"bbr\"\n[dataplane]\nworkers = 3\n";
    let config = parsed(text).unwrap();
    assert_eq!(config.cni.socket, Path::new("/x/cni.sock"));
    assert_eq!(config.admin.socket, Path::new("/y/a.sock"));
    assert_eq!(config.tunnel.congestion, Congestion::Bbr);
    assert_eq!(config.dataplane.worker_count(), 3);
}

/// Each fault is reported with file, line, column, key, what is wrong and what is expected.
#[test]
fn faults_are_located() {
    let long = format!("node = \"a\"\nrun_dir = \"/{}\"\n", "x".repeat(120));
    let cases = [
        ("", "fabric.toml:1:1: missing field `node`"),
        (
            "node = \"Worker\"",
            "fabric.toml:1:8: node: \"Worker\" is not a node name: use lower-case letters, digits, '-' and '.', at most 253 bytes",
        ),
        (
            "node = \"a\"\nnodes = 3\n",
            "fabric.toml:2:1: nodes: unknown field `nodes`, expected one of `node`, `state_dir`, `run_dir`, `source`, `identity`, `dataplane`, `tunnel`, `cni`, `admin`, `outside`, `host`, `metrics`",
        ),
        (
            "node = \"a\"\n[tunnel]\nidle_timeout = 3\n",
            "fabric.toml:3:1: tunnel.idle_timeout: unknown field `idle_timeout`, expected one of `congestion`, `idle_timeout_ms`, `keep_alive_ms`, `reconnect_max_ms`",
        ),
        (
            "node = \"a\"\n[tunnel]\n  congestion = \"reno\"\n",
            "fabric.toml:3:16: tunnel.congestion: unknown variant `reno`, expected `cubic` or `bbr`",
        ),
        (
            "node = \"a\"\n[tunnel]\nkeep_alive_ms = \"1s\"\n",
            "fabric.toml:3:17: tunnel.keep_alive_ms: invalid type: string \"1s\", expected u64",
        ),
        (
            "node = \"a\"\n[tunnel]\nkeep_alive_ms = 3000\n",
            "fabric.toml:3:17: tunnel.keep_alive_ms: 3000 is more than half of tunnel.idle_timeout_ms, 3000: one lost packet would end the connection",
        ),
        (
            "node = \"a\"\n[tunnel]\nidle_timeout_ms = 5\n",
            "fabric.toml:3:19: tunnel.idle_timeout_ms: 5 is less than twice tunnel.keep_alive_ms, 1400: one lost packet would end the connection",
        ),
        (
            "node = \"a\"\nrun_dir = \"run\"\n",
            "fabric.toml:2:11: run_dir: run is relative: use an absolute path",
        ),
        (
            "node = \"a\"\ntunnel.reconnect_max_ms = 0\n",
            "fabric.toml:2:27: tunnel.reconnect_max_ms: 0 is out of range: use 1 to 3600000",
        ),
        (
            "node = \"a\"\n[dataplane]\nworkers = 65\n",
            "fabric.toml:3:11: dataplane.workers: 65 is out of range: use 1 to 64",
        ),
        (
            "node = \"a\"\n[source]\nkind = \"etcd\"\n",
            "fabric.toml:3:8: source.kind: unknown variant `etcd`, expected `file` or `kubernetes`",
        ),
        (
            "node = \"a\"\n[cni]\nnetns_roots = [\"/ok\", \"pods\"]\n",
            "fabric.toml:3:15: cni.netns_roots: pods is relative: use an absolute path",
        ),
        (
            "node = \"a\"\n[outside]\nvia = \"nat\"\n",
            "fabric.toml:3:7: outside.via: unknown variant `nat`, expected `none` or `host`",
        ),
        (
            "node = \"a\"\n[outside]\nmasquerade = true\n",
            "fabric.toml:3:14: outside.masquerade: nothing leaves by the host: set `via = \"host\"` as well",
        ),
        (
            "node = \"a\"\nhost.proc_sys = \"sys\"\n",
            "fabric.toml:2:17: host.proc_sys: sys is relative: use an absolute path",
        ),
        (
            "node = \"a\"\n[cni]\nsocket = 3\n",
            "fabric.toml:3:10: cni.socket: invalid type: integer `3`, expected path string",
        ),
        (
            "node = \"a\"\n[cni]\nconflist_dir = \"net.d\"\n",
            "fabric.toml:3:16: cni.conflist_dir: net.d is relative: use an absolute path",
        ),
        (
            "node = \"a\"\n[metrics]\nlisten = \"9946\"\n",
            "fabric.toml:3:10: metrics.listen: invalid socket address syntax",
        ),
        (
            "node = \"a\"\nnode = \"b\"\n",
            "fabric.toml:2:1: duplicate key",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(parsed(text).unwrap_err(), wanted, "{text:?}");
    }
    let error = parsed(&long).unwrap_err();
    assert!(
        error.ends_with("is 130 bytes long: a unix socket's path has at most 107"),
        "{error}"
    );
}

/// A name that is given wins over the file's, and the file needs none then; one that cannot be a node's
/// is refused with where it came from.
#[test]
fn a_given_name_wins() {
    let path = Path::new("fabric.toml");
    for text in ["", "node = \"a\"\n", "node = \"Not A Name\"\n"] {
        let config = parse(&Source { path, text }, Some("worker-b")).unwrap();
        assert_eq!(config.node.to_string(), "worker-b");
    }
    let told = parse(&Source { path, text: "" }, Some("B")).unwrap_err();
    assert!(
        told.to_string()
            .contains("node: from --node or FABRIC_NODE_NAME: \"B\""),
        "{told}"
    );
}

/// Health and metrics listen where they are told to, in either family.
#[test]
fn metrics_listen() {
    for address in ["127.0.0.1:9946", "[::1]:9946", "0.0.0.0:1"] {
        let text = format!("node = \"a\"\n[metrics]\nlisten = \"{address}\"\n");
        let listen = parsed(&text).unwrap().metrics.listen.unwrap();
        assert_eq!(listen.to_string(), address);
    }
}

/// A missing file is named, with the flag that names another.
#[test]
fn a_missing_file_is_named() {
    let error = load(Path::new("/nonexistent/fabric.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read configuration /nonexistent/fabric.toml: No such file or directory (os error 2); name another file with --config"
    );
}

/// A cluster's keys are read and have their defaults; those of the other kind are refused by name.
#[test]
fn the_kubernetes_source_has_keys_of_its_own() {
    let config = parsed("node = \"a\"\n[source]\nkind = \"kubernetes\"").unwrap();
    let wanted = KubernetesConfig {
        kubeconfig: None,
        service_account: "/var/run/secrets/kubernetes.io/serviceaccount".into(),
        host_root: "/".into(),
        underlay: Vec::new(),
        port: 7946,
        host_addresses: Vec::new(),
        startup_taint: Some("fabric.dev/agent-not-ready".into()),
    };
    assert_eq!(config.source, SourceConfig::Kubernetes(wanted));
    let text = "node = \"a\"\n[source]\nkind = \"kubernetes\"\nunderlay = [\"192.0.2.1\"]\nport = 8000\nstartup_taint = \"\"";
    let SourceConfig::Kubernetes(config) = parsed(text).unwrap().source else {
        panic!("another kind");
    };
    assert_eq!((config.port, config.startup_taint), (8000, None));
    for (text, wanted) in [
        (
            "kind = \"kubernetes\"\npath = \"/x\"",
            "source.path has no meaning",
        ),
        (
            "port = 1",
            "source.port has no meaning with kind = \"file\"",
        ),
        (
            "kind = \"kubernetes\"\nkubeconfig = \"x\"",
            "source.kubeconfig: x is relative",
        ),
        ("kind = \"kubernetes\"\nunderlay = [\"x\"]", "underlay"),
        ("kind = \"etcd\"", "kind"),
    ] {
        let error = parsed(&format!("node = \"a\"\n[source]\n{text}")).unwrap_err();
        assert!(error.contains(wanted), "{text}: {error}");
    }
}
