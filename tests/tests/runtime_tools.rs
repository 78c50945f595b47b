//! What others wrote to examine and drive container runtimes, against a containerd that uses the plugin.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::plugin::network_list;
use fabric_tests::{
    gotools::Tool,
    operator::pods,
    runtime::{
        containerd::Containerd,
        image::{self, Image},
        leaks,
        place::Place,
    },
    stage::Stage,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// How long one command of crictl may take.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// How long the suite may take.
const SUITE_MAX: Duration = Duration::from_secs(240);
/// How long what a pod leaves may stay.
const GONE_MAX: Duration = Duration::from_secs(10);
/// The parts of the suite that are about networks and sandboxes, and how many specs they have at least.
const FOCUS: [&str; 2] = ["networking", "basic operations on PodSandbox"];
const SPECS_MIN: usize = 8;
/// The reference plugin for ports of the node, which one spec needs.
const PORTMAP: &str = "/usr/lib/cni/portmap";

/// crictl makes a pod with a container, the way a person does by hand: it has the addresses that the
/// daemon knows, IPv4 first, reaches a pod of another node, and leaves nothing when it is removed.
#[test]
fn a_pod_by_hand() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("crictl", 2, 1)?;
    let place = Place::new(&lab, "worker-a")?;
    let worker = lab.state().worker("worker-a")?;
    let containerd = Containerd::start(&place, &network_list(worker))?;
    image::import(&containerd, Image::Pause)?;
    image::import(&containerd, Image::Busybox)?;
    let before = leaks::snapshot(&stage, &lab, &[&place])?;
    let crictl = Crictl::new(&containerd)?;
    let info: Value = serde_json::from_str(&crictl.done(&["info"])?)?;
    let conditions = info.pointer("/status/conditions").and_then(Value::as_array);
    let network = conditions
        .into_iter()
        .flatten()
        .find(|it| it.get("type").and_then(Value::as_str) == Some("NetworkReady"));
    let ready = network
        .and_then(|it| it.get("status"))
        .and_then(Value::as_bool);
    ensure!(ready == Some(true), "{info}");

    let (pod_file, container_file) = descriptions(&crictl)?;
    let pod = crictl.done(&["runp", &pod_file])?;
    let container = crictl.done(&["create", &pod, &container_file, &pod_file])?;
    crictl.done(&["start", &container])?;
    let known = pods(&stage, worker)?.items;
    let known = known
        .iter()
        .find(|known| known.name == "web")
        .context("the daemon does not know it")?;
    assert_eq!(
        (known.namespace.as_str(), known.container_id.as_str()),
        ("default", pod.as_str())
    );
    assert_eq!(shown_addresses(&crictl, &pod)?, known.addresses);
    for target in &lab.state().pod("pod-b-1")?.addresses {
        let ping = ["ping", "-c", "1", "-W", "5", &target.to_string()];
        let said = crictl.done(&[&["exec", "--sync", container.as_str()], &ping[..]].concat())?;
        ensure!(said.contains("1 packets received"), "{said}");
    }
    crictl.done(&["stopp", &pod])?;
    ensure!(
        !pods(&stage, worker)?
            .items
            .iter()
            .any(|pod| pod.name == "web"),
        "it is attached still"
    );
    crictl.done(&["rmp", &pod])?;
    leaks::check(&before, &stage, &lab, &[&place], GONE_MAX)?;
    Ok(())
}

/// Files that describe a pod and its container.
fn descriptions(crictl: &Crictl<'_, '_>) -> anyhow::Result<(String, String)> {
    let place = crictl.containerd.place();
    let pod_file = crictl.file(
        "pod.json",
        &json!({
            "metadata": { "name": "web", "namespace": "default", "uid": "1f2e", "attempt": 0 },
            "log_directory": place.folder(),
            "linux": { "cgroup_parent": place.cgroup() },
        }),
    )?;
    let container_file = crictl.file(
        "container.json",
        &json!({
            "metadata": { "name": "main", "attempt": 0 },
            "image": { "image": Image::Busybox.name() },
            "command": ["sleep", "1000"],
            "log_path": "web.log",
            "linux": {},
        }),
    )?;
    Ok((pod_file, container_file))
}

/// The pod's addresses as the runtime shows them.
fn shown_addresses(crictl: &Crictl<'_, '_>, pod: &str) -> anyhow::Result<Vec<String>> {
    let shown: Value = serde_json::from_str(&crictl.done(&["inspectp", pod])?)?;
    let network = &shown["status"]["network"];
    let more = network["additionalIps"]
        .as_array()
        .context("one address only")?;
    let more = more.iter().map(|ip| &ip["ip"]);
    Ok([&network["ip"]]
        .into_iter()
        .chain(more)
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect())
}

/// The conformance suite's specs on networks and on sandboxes pass, every one of them, with `portmap`
/// behind our plugin for the one on ports of the node; nothing of their pods is left.
#[test]
fn the_conformance_suite() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("critest", 1, 0)?;
    let place = Place::new(&lab, "worker-a")?;
    place.add_plugin(Path::new(PORTMAP))?;
    let worker = lab.state().worker("worker-a")?;
    // What `portmap` of the distribution knows.
    let list = json!({ "cniVersion": "1.0.0", "name": "fabric", "plugins": [
        network_list(worker)["plugins"][0],
        { "type": "portmap", "capabilities": { "portMappings": true } },
    ] });
    let containerd = Containerd::start(&place, &list)?;
    for image in [Image::Pause, Image::Busybox, Image::Web] {
        image::import(&containerd, image)?;
    }
    let groups = control_groups()?;
    let specs = conformance(&containerd)?;
    for spec in &specs {
        println!("{spec}");
    }
    let not_passed = specs.iter().filter(|spec| spec.state != "passed").count();
    ensure!(
        not_passed == 0 && specs.len() >= SPECS_MIN,
        "{} specs were to run, {not_passed} did not pass",
        specs.len()
    );
    assert_eq!(pods(&stage, worker)?.items, []);
    assert_eq!(control_groups()?, groups);
    Ok(())
}

/// crictl, speaking to one containerd.
struct Crictl<'c, 'p> {
    containerd: &'c Containerd<'p>,
    program: PathBuf,
}

impl<'c, 'p> Crictl<'c, 'p> {
    fn new(containerd: &'c Containerd<'p>) -> anyhow::Result<Self> {
        Ok(Self {
            containerd,
            program: Tool::Crictl.program()?,
        })
    }

    /// What it printed, without the blank at the end.
    fn done(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut crictl = Command::new(&self.program);
        let socket = endpoint(self.containerd);
        crictl
            .args(["--runtime-endpoint", &socket, "--image-endpoint", &socket])
            .args(words);
        let answer = self.containerd.place().run(crictl, COMMAND_MAX)?;
        ensure!(
            answer.status.success(),
            "crictl {words:?} ended with {}: {}{}\n{}",
            answer.status,
            answer.stdout,
            answer.stderr,
            self.containerd.log_tail()
        );
        Ok(answer.stdout.trim().to_owned())
    }

    fn file(&self, name: &str, content: &Value) -> anyhow::Result<String> {
        let path = self.containerd.place().folder().join(name);
        fs::write(&path, content.to_string())?;
        Ok(path.to_string_lossy().into_owned())
    }
}

/// What the suite reports.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Vec<Spec>,
}

/// What it reports of one spec.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    failure: Option<Failure>,
}

/// Why a spec did not pass, also where it skips itself.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
}

impl Spec {
    fn name(&self) -> String {
        let mut words = self.container_hierarchy_texts.clone().unwrap_or_default();
        words.push(self.leaf_node_text.clone());
        words.join(" ")
    }

    /// Whether it was to run. Its state does not tell: a spec that skips itself is "skipped" like one out of focus.
    fn is_selected(&self) -> bool {
        let name = self.name();
        self.leaf_node_type == "It" && FOCUS.iter().any(|focus| name.contains(focus))
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} {}", self.state, self.name())?;
        match &self.failure {
            Some(failure) => write!(to, ": {}", failure.message),
            None => Ok(()),
        }
    }
}

/// Runs the parts of the suite; the specs that were selected, with how each ended.
fn conformance(containerd: &Containerd<'_>) -> anyhow::Result<Vec<Spec>> {
    let folder = containerd.place().folder();
    let (images, report) = (folder.join("images.yaml"), folder.join("report.json"));
    let names = format!(
        "defaultTestContainerImage: {}\nwebServerTestImage: {}\n",
        Image::Busybox.name(),
        Image::Web.name()
    );
    fs::write(&images, names)?;
    let socket = endpoint(containerd);
    let mut suite = Command::new(Tool::Critest.program()?);
    suite
        .args(["--runtime-endpoint", &socket, "--image-endpoint", &socket])
        .arg("--test-images-file")
        .arg(&images)
        .arg("--ginkgo.json-report")
        .arg(&report)
        .args(["--ginkgo.no-color", "--ginkgo.focus", &FOCUS.join("|")]);
    let answer = containerd.place().run(suite, SUITE_MAX)?;
    let text = fs::read(&report).with_context(|| {
        format!(
            "the suite has written no report, and said {}{}",
            answer.stdout, answer.stderr
        )
    })?;
    let suites: Vec<Suite> = serde_json::from_slice(&text)?;
    let specs = suites
        .into_iter()
        .flat_map(|suite| suite.spec_reports)
        .filter(Spec::is_selected)
        .collect();
    ensure!(
        answer.status.success(),
        "the suite ended with {}: {}{}\n{}",
        answer.status,
        answer.stdout,
        answer.stderr,
        containerd.log_tail()
    );
    Ok(specs)
}

fn endpoint(containerd: &Containerd<'_>) -> String {
    format!("unix://{}", containerd.socket.display())
}

/// Control groups at the top of each hierarchy: the suite says nothing of where its pods belong. Those of sandboxes
/// come and go with other tests.
fn control_groups() -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten() {
        for entry in fs::read_dir(hierarchy.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let is_sandbox = name.to_string_lossy().starts_with("fabric-sandbox-");
            if entry.file_type()?.is_dir() && !is_sandbox {
                found.insert(entry.path());
            }
        }
    }
    Ok(found)
}
