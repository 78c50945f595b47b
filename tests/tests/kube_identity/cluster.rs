//! A real API server of its own for each test, with Nodes, Pods and tokens that are bound to them.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::{
    node_id::NodeId,
    pki::{kubernetes::Enrollment, spiffe::TrustDomain},
};
use fabric_tests::{eventually::eventually, stage::bin_dir};

/// Names the folder of kube-apiserver, kubectl and the script that starts them with etcd.
const BIN_VARIABLE: &str = "FABRIC_K8S_BIN";
/// How long an API server may take to be ready on a busy machine.
const READY_MAX: Duration = Duration::from_secs(120);
/// One at a time: they measure times.
static TURN: Mutex<()> = Mutex::new(());

pub(crate) struct Cluster {
    bin: PathBuf,
    dir: tempfile::TempDir,
    port: u16,
    server: Option<Child>,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts an API server with the objects of `objects.yaml` and two Nodes.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let bin = env::var_os(BIN_VARIABLE)
            .map(PathBuf::from)
            .with_context(|| {
                format!("name the folder of the Kubernetes programs in {BIN_VARIABLE}")
            })?;
        let mut cluster = Self {
            bin,
            dir: tempfile::tempdir()?,
            port: free_ports()?,
            server: None,
            _turn: turn,
        };
        cluster.resume()?;
        cluster.apply(include_str!("objects.yaml"))?;
        for node in ["worker-a", "worker-b"] {
            cluster.add_node(node)?;
        }
        cluster.kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd/fabricnodes.fabric.dev",
        ])?;
        Ok(cluster)
    }

    /// Starts the API server with what it had before.
    pub(crate) fn resume(&mut self) -> anyhow::Result<()> {
        let mut server = Command::new(self.bin.join("start-apiserver"))
            .arg(self.dir.path())
            .arg(self.port.to_string())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = server.stdout.take().context("no output")?;
        let (told, ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line == "ready" {
                    let _ = told.send(());
                }
            }
        });
        self.server = Some(server);
        ready
            .recv_timeout(READY_MAX)
            .context("the API server is not ready")
    }

    /// Ends the API server; its data stay.
    pub(crate) fn pause(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = Command::new("kill").arg(server.id().to_string()).status();
            let _ = server.wait();
        }
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.kubectl_with(arguments, "")
    }

    fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut child = Command::new(self.bin.join("kubectl"))
            .arg("--kubeconfig")
            .arg(self.dir.path().join("admin.kubeconfig"))
            .arg("--request-timeout=20s")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("no input")?
            .write_all(input.as_bytes())?;
        let answer = child.wait_with_output()?;
        ensure!(
            answer.status.success(),
            "kubectl {arguments:?}: {}",
            String::from_utf8_lossy(&answer.stderr)
        );
        Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
    }

    pub(crate) fn apply(&self, objects: &str) -> anyhow::Result<()> {
        self.kubectl_with(&["apply", "-f", "-"], objects).map(drop)
    }

    /// A Node with a FabricNode and a Pod of the DaemonSet on it.
    pub(crate) fn add_node(&self, name: &str) -> anyhow::Result<()> {
        self.apply(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{ name: {name} }}\n---\n{}---\n{}",
            format_args!(
                "apiVersion: fabric.dev/v1alpha1\nkind: FabricNode\nmetadata: {{ name: {name} }}\nspec: {{}}\n"
            ),
            pod("fabric-node", name),
        ))
    }

    /// The file of a way to the API server as the ServiceAccount `account` of a Pod on `node`, or of no Pod.
    pub(crate) fn kubeconfig(&self, account: &str, node: Option<&str>) -> anyhow::Result<PathBuf> {
        let mut arguments = vec!["create", "token", account, "-n", "fabric-system"];
        let bound = node.map(|node| format!("--bound-object-name={account}-{node}"));
        if let Some(bound) = &bound {
            arguments.extend(["--bound-object-kind=Pod", bound]);
        }
        let token = self.kubectl(&arguments)?;
        let path = self.dir.path().join(format!(
            "{account}-{}.kubeconfig",
            node.unwrap_or("nowhere")
        ));
        let ca = self.dir.path().join("ca.pem");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster: {{ server: \"https://127.0.0.1:{}\", certificate-authority: {ca:?} }}\nusers:\n- name: u\n  user: {{ token: {:?} }}\ncontexts:\n- name: c\n  context: {{ cluster: c, user: u }}\n",
            self.port,
            token.trim(),
        );
        fs::write(&path, text)?;
        Ok(path)
    }

    /// A client as such a ServiceAccount.
    pub(crate) async fn client(
        &self,
        account: &str,
        node: Option<&str>,
    ) -> anyhow::Result<kube::Client> {
        let file = self.kubeconfig(account, node)?;
        let config = kube::config::Kubeconfig::read_from(file)?;
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(config, &options).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// The way of a daemon on `runs_on` to certificates that it asks for as `node`.
    pub(crate) async fn enrollment(
        &self,
        runs_on: &str,
        node: &str,
        dir: &Path,
    ) -> anyhow::Result<Enrollment> {
        let client = self.client("fabric-node", Some(runs_on)).await?;
        enrollment(client, node, dir)
    }

    /// Starts a signer; `more` are further arguments.
    pub(crate) fn signer(&self, name: &str, more: &[&str]) -> anyhow::Result<Signer> {
        let health = free_ports()?;
        let log = self.dir.path().join(format!("{name}.log"));
        let child = Command::new(bin_dir()?.join("fabric-node"))
            .arg("signer")
            .args(["--name", name, "--health-address"])
            .arg(format!("127.0.0.1:{health}"))
            .args(more)
            .env("KUBECONFIG", self.kubeconfig("fabric-signer", None)?)
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        Ok(Signer {
            name: name.to_owned(),
            child,
            health,
            log,
        })
    }

    /// Who holds the Lease, without what is random in its name.
    pub(crate) fn leader(&self) -> anyhow::Result<String> {
        let holder = self.kubectl(&[
            "get",
            "lease",
            "-n",
            "fabric-system",
            "fabric-signer",
            "-o",
            "jsonpath={.spec.holderIdentity}",
        ])?;
        let (name, _) = holder.split_once('_').context("nobody leads")?;
        Ok(name.to_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.pause();
    }
}

pub(crate) fn enrollment(
    client: kube::Client,
    node: &str,
    dir: &Path,
) -> anyhow::Result<Enrollment> {
    Ok(Enrollment::new(
        client,
        NodeId::new(node).map_err(anyhow::Error::msg)?,
        TrustDomain::new("cluster.local")?,
        "fabric-system",
        dir,
        Duration::from_secs(7 * 24 * 3600),
    )?)
}

/// A Pod of a ServiceAccount on a Node.
pub(crate) fn pod(account: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {account}-{node}, namespace: fabric-system }}\nspec: {{ serviceAccountName: {account}, nodeName: {node}, containers: [{{ name: c, image: none }}] }}\n"
    )
}

pub(crate) struct Signer {
    pub(crate) name: String,
    child: Child,
    health: u16,
    log: PathBuf,
}

impl Signer {
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it in order.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        Command::new("kill")
            .arg(self.child.id().to_string())
            .status()?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}: {}", self.log());
        Ok(())
    }

    /// What it answers to a question about its health: the first line.
    pub(crate) fn ask(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.health))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    pub(crate) fn wait_for_log(&self, words: &str, limit: Duration) -> anyhow::Result<()> {
        eventually(words, limit, || {
            if self.log().contains(words) {
                return Ok(());
            }
            bail!("the log of {} is {}", self.name, self.log())
        })
        .map(drop)
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The first of four ports in a row that nobody has.
fn free_ports() -> anyhow::Result<u16> {
    for _ in 0..50 {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let Some(last) = port.checked_add(3) else {
            continue;
        };
        if (port..=last).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return Ok(port);
        }
    }
    bail!("no four free ports in a row")
}
