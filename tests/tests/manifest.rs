//! The chart and the plain manifests are one thing: `helm` finds no fault with the chart, and what it renders is what
//! is in the repository.
//!
//! `HELM` names the program; without it, the one in the PATH is taken.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use fabric_node::lab::command::{self, Answer};
use fabric_tests::stage::workspace;

const STEP_MAX: Duration = Duration::from_secs(60);
const MANIFESTS: [&str; 2] = ["fabric.yaml", "fabric-cleanup.yaml"];

fn helm() -> PathBuf {
    let named = env::var_os("HELM").filter(|name| !name.is_empty());
    named
        .map(PathBuf::from)
        .or_else(|| command::find("helm"))
        .expect("there is no helm: HELM names it, version 4")
}

fn chart() -> PathBuf {
    workspace().join("deploy/helm/fabric")
}

fn run(arguments: &[&str]) -> Answer {
    let home = tempfile::tempdir().unwrap();
    let mut helm = Command::new(helm());
    helm.args(arguments);
    for variable in ["HELM_CONFIG_HOME", "HELM_CACHE_HOME", "HELM_DATA_HOME"] {
        helm.env(variable, home.path());
    }
    command::run(helm, b"", STEP_MAX).unwrap()
}

/// What the chart renders with more options.
fn rendered(options: &[&str]) -> String {
    let chart = chart();
    let arguments = [
        "template",
        "fabric",
        chart.to_str().unwrap(),
        "-n",
        "fabric-system",
    ];
    let answer = run(&[&arguments[..], options].concat());
    assert!(answer.status.success(), "{}", answer.stderr);
    answer.stdout
}

fn refused(options: &[&str]) -> String {
    let chart = chart();
    let arguments = [
        "template",
        "fabric",
        chart.to_str().unwrap(),
        "-n",
        "fabric-system",
    ];
    let answer = run(&[&arguments[..], options].concat());
    assert!(!answer.status.success(), "{options:?} is accepted");
    answer.stderr
}

/// `helm lint --strict` has nothing to say against the chart.
#[test]
fn the_chart_is_clean() {
    let answer = run(&[
        "lint",
        "--strict",
        chart().to_str().unwrap(),
        "-n",
        "fabric-system",
    ]);
    assert!(
        answer.status.success(),
        "{}{}",
        answer.stdout,
        answer.stderr
    );
    assert!(
        answer.stdout.contains("0 chart(s) failed"),
        "{}",
        answer.stdout
    );
}

/// The manifests of the repository are what `make manifest` would write.
#[test]
fn the_manifests_are_the_charts() {
    let folder = tempfile::tempdir().unwrap();
    let mut script = Command::new(workspace().join("scripts/manifest"));
    script.arg(helm()).env("MANIFEST_DIR", folder.path());
    let answer = command::run(script, b"", STEP_MAX).unwrap();
    assert!(answer.status.success(), "{}", answer.stderr);
    let committed = workspace().join("deploy/kubernetes");
    for name in MANIFESTS {
        let (made, there) = (read(&folder.path().join(name)), read(&committed.join(name)));
        assert!(
            made == there,
            "{name} differs from the chart: run `make manifest`"
        );
    }
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        MANIFESTS.len()
    );
}

/// The chart has the same definition of FabricNode as the repository, and renders it.
#[test]
fn one_definition() {
    let definition = read(&workspace().join("deploy/kubernetes/crd.yaml"));
    assert!(definition.contains("kind: CustomResourceDefinition"));
    assert_eq!(
        read(&chart().join("files/crd.yaml")),
        definition,
        "run `make manifest`"
    );
    assert!(rendered(&[]).contains(definition.trim()));
    assert!(!rendered(&["--set", "crd.create=false"]).contains("CustomResourceDefinition"));
}

/// Chart and programs have one version, which is the tag of the image.
#[test]
fn one_version() {
    let version = env!("CARGO_PKG_VERSION");
    let text = read(&chart().join("Chart.yaml"));
    for key in ["version", "appVersion"] {
        assert!(
            text.lines().any(|line| line == format!("{key}: {version}")),
            "{key}"
        );
    }
    assert!(rendered(&[]).contains(&format!("image: localhost/fabric:{version}\n")));
    let digest = format!("sha256:{}", "0".repeat(64));
    let by_digest = rendered(&["--set", &format!("image.digest={digest}")]);
    assert!(by_digest.contains(&format!("image: localhost/fabric@{digest}\n")));
}

/// No container is privileged or may become so, none can write to its root, each drops all capabilities and names
/// those that it adds: only the daemon and the cleanup have any.
#[test]
fn no_more_than_is_needed() {
    for (name, added) in [
        ("fabric.yaml", vec!["NET_ADMIN", "SYS_ADMIN"]),
        ("fabric-cleanup.yaml", vec!["NET_ADMIN"]),
    ] {
        let text = read(&workspace().join("deploy/kubernetes").join(name));
        let count = |wanted: &str| text.lines().filter(|line| line.trim() == wanted).count();
        let containers = text
            .lines()
            .filter(|line| line.trim().starts_with("image: "))
            .count();
        assert!(containers > 0);
        for once in [
            "privileged: false",
            "allowPrivilegeEscalation: false",
            "readOnlyRootFilesystem: true",
            "- ALL",
        ] {
            assert_eq!(count(once), containers, "{name}: {once}");
        }
        for never in [
            "privileged: true",
            "hostPID: true",
            "hostIPC: true",
            "type: Unconfined",
        ] {
            assert_eq!(count(never), 0, "{name}: {never}");
        }
        let adds: Vec<&str> = text.split("              add:\n").skip(1).collect();
        assert_eq!(adds.len(), 1, "{name}");
        let capabilities = adds[0]
            .lines()
            .map_while(|line| line.strip_prefix("                - "));
        assert_eq!(capabilities.collect::<Vec<_>>(), added, "{name}");
    }
}

/// The folders of the host that the daemon sees are these and no others.
#[test]
fn folders_of_the_host() {
    let text = read(&workspace().join("deploy/kubernetes/fabric.yaml"));
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let paths: BTreeSet<&str> = lines
        .windows(2)
        .filter(|pair| pair[0] == "hostPath:")
        .map(|pair| pair[1].strip_prefix("path: ").unwrap())
        .collect();
    let expected = [
        "/dev/net/tun",
        "/etc/cni/net.d",
        "/opt/cni/bin",
        "/proc/sys/net",
        "/run/fabric",
        "/run/netns",
        "/var/lib/fabric",
    ];
    assert_eq!(paths, BTreeSet::from(expected));
}

/// Values that make no sense are refused by the schema, with the value's name; unknown ones too.
#[test]
fn the_schema_refuses() {
    for (value, named) in [
        ("config.underlayPort=0", "underlayPort"),
        ("config.workers=65", "workers"),
        ("config.congestion=reno", "congestion"),
        ("metrics.port=http", "port"),
        ("cni.binDir=relative", "binDir"),
        ("node.maxUnavailable=0", "maxUnavailable"),
        ("node.capabilities={ALL}", "capabilities"),
        ("image.digest=latest", "digest"),
        ("image.tagg=1", "tagg"),
        ("node.podLabels.x=1", "podLabels"),
    ] {
        let told = refused(&["--set", value]);
        assert!(told.contains(named), "{value}: {told}");
    }
}

/// Every value is explained above it, and the schema knows it.
#[test]
fn every_value_is_explained() {
    let text = read(&chart().join("values.yaml"));
    let lines: Vec<&str> = text.lines().collect();
    let mut keys = 0;
    let mut is_list = false;
    for (number, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let is_key = line.contains(':') && !line.trim_start().starts_with(['#', '-']);
        // Deeper ones are the content of a value.
        if !is_key || indent > 2 {
            continue;
        }
        let is_group = indent == 0 && line.ends_with(':');
        is_list = is_list || is_group;
        if !is_group {
            keys += 1;
            let above = lines[number - 1].trim_start();
            assert!(
                above.starts_with('#'),
                "values.yaml: nothing is said of `{}`",
                line.trim()
            );
        }
    }
    assert!(is_list && keys > 30, "only {keys} values are found");
}

/// What is set reaches the daemons: node.toml, the probes, the folders, and a pod is made anew when its node.toml is
/// another one.
#[test]
fn values_arrive() {
    let text = rendered(&[
        "--set",
        "metrics.address=fd00::1,metrics.port=1234,config.workers=3,config.masquerade=true",
        "--set",
        "config.congestion=bbr,cni.binDir=/usr/lib/cni,cni.confDir=/etc/other/net.d",
        "--set-string",
        "config.extra=[dataplane.offloads]\nuso = false",
    ]);
    for line in [
        "    listen = \"[fd00::1]:1234\"",
        "              host: \"fd00::1\"",
        "              port: 1234",
        "    workers = 3",
        "    masquerade = true",
        "    congestion = \"bbr\"",
        "    conflist_dir = \"/etc/other/net.d\"",
        "              mountPath: /etc/other/net.d",
        "            path: /usr/lib/cni",
        "            - --bin-dir=/usr/lib/cni",
        "    uso = false",
    ] {
        assert!(
            text.lines().any(|it| it == line),
            "{line} is not in\n{text}"
        );
    }
    let hash = |text: &str| {
        let line = text.lines().find(|line| line.contains("node-toml-sha256"));
        line.unwrap().to_owned()
    };
    assert_ne!(hash(&text), hash(&rendered(&[])));
    let everywhere = rendered(&["--set", "metrics.address=0.0.0.0"]);
    assert!(everywhere.contains("listen = \"0.0.0.0:9946\""));
    assert!(everywhere.contains("host: 127.0.0.1\n"));
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}
