//! A private etcd and a real kube-apiserver on loopback.

use std::{
    env, fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::control::kubernetes::{client::Access, crd::FabricNode};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, CustomResourceExt as _,
    api::{Patch, PatchParams},
};
use tempfile::TempDir;
use tokio::time::sleep;

/// Names the folder of the Kubernetes programs.
const BIN_VARIABLE: &str = "FABRIC_K8S_BIN";
/// How long the API server may take to be ready on a busy machine.
const READY_MAX: Duration = Duration::from_secs(240);
const TOKEN: &str = "a-token-of-these-tests";

/// Both programs; they end with this.
pub(crate) struct ApiServer {
    dir: TempDir,
    ports: [u16; 3],
    etcd: Child,
    api: Child,
}

impl ApiServer {
    /// Starts both, and defines FabricNode.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let key = rcgen::KeyPair::generate()?;
        fs::write(dir.path().join("sa.key"), key.serialize_pem())?;
        fs::write(dir.path().join("sa.pub"), key.public_key_pem())?;
        let token = format!("{TOKEN},admin,admin,system:masters\n");
        fs::write(dir.path().join("tokens"), token)?;
        let ports = free_ports()?;
        let mut server = Self {
            etcd: start_etcd(dir.path(), ports)?,
            api: start_api(dir.path(), ports)?,
            ports,
            dir,
        };
        server.ready().await?;
        server.define().await?;
        Ok(server)
    }

    /// The API server is killed; etcd stays.
    pub(crate) fn kill_api(&mut self) -> anyhow::Result<()> {
        self.api.kill()?;
        self.api.wait()?;
        Ok(())
    }

    /// The API server is started again.
    pub(crate) async fn start_api(&mut self) -> anyhow::Result<()> {
        self.api = start_api(self.dir.path(), self.ports)?;
        self.ready().await
    }

    /// Everything that was stored is gone. To be done while the API server is killed.
    pub(crate) fn lose_data(&mut self) -> anyhow::Result<()> {
        self.etcd.kill()?;
        self.etcd.wait()?;
        fs::remove_dir_all(self.dir.path().join("etcd"))?;
        self.etcd = start_etcd(self.dir.path(), self.ports)?;
        Ok(())
    }

    /// Applies the definition, and waits until it is served.
    pub(crate) async fn define(&self) -> anyhow::Result<()> {
        let client = self.client().await?;
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        let apply = PatchParams::apply("test").force();
        let definition = Patch::Apply(FabricNode::crd());
        definitions
            .patch(FabricNode::crd_name(), &apply, &definition)
            .await?;
        let objects: Api<FabricNode> = Api::all(client);
        let end = Instant::now() + READY_MAX;
        while let Err(error) = objects.list(&Default::default()).await {
            ensure!(Instant::now() < end, "FabricNodes are not served: {error}");
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// A client that may do everything.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        Ok(Access::of_kubeconfig(&self.kubeconfig()?).await?.client()?)
    }

    /// Writes a kubeconfig that leads here, without a proxy between.
    pub(crate) fn copy_kubeconfig(&self, path: &Path) -> anyhow::Result<()> {
        let ca = self.dir.path().join("certs/apiserver.crt");
        write_kubeconfig(
            path,
            &format!("https://127.0.0.1:{}", self.ports[0]),
            Some(&ca),
        )
    }

    fn kubeconfig(&self) -> anyhow::Result<PathBuf> {
        let path = self.dir.path().join("kubeconfig");
        self.copy_kubeconfig(&path)?;
        Ok(path)
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + READY_MAX;
        loop {
            let over = Instant::now() > end || self.api.try_wait()?.is_some();
            let answer = match self.client().await {
                Ok(client) => {
                    let request = hyper::Request::get("/readyz").body(Vec::new())?;
                    client.request_text(request).await.map_err(Into::into)
                }
                Err(error) => Err(error),
            };
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if over => {
                    let log = fs::read_to_string(self.dir.path().join("apiserver.log"))?;
                    let tail: Vec<&str> = log.lines().rev().take(10).collect();
                    return Err(error).with_context(|| format!("not ready: {tail:#?}"));
                }
                Err(_) => sleep(Duration::from_millis(300)).await,
            }
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in [&mut self.api, &mut self.etcd] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Writes a kubeconfig for `server`.
pub(crate) fn write_kubeconfig(path: &Path, server: &str, ca: Option<&Path>) -> anyhow::Result<()> {
    let ca = ca.map_or_else(String::new, |ca| {
        format!(
            ", certificate-authority: {:?}, tls-server-name: kubernetes.default.svc",
            ca
        )
    });
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nclusters: [{{name: c, cluster: {{server: {server:?}{ca}}}}}]\nusers: [{{name: u, user: {{token: {TOKEN}}}}}]\n"
    );
    fs::write(path, text)?;
    Ok(())
}

fn free_ports() -> anyhow::Result<[u16; 3]> {
    let mut listeners = Vec::new();
    let mut ports = [0; 3];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

fn start_etcd(dir: &Path, [_, client, peer]: [u16; 3]) -> anyhow::Result<Child> {
    let (client, peer) = (
        format!("http://127.0.0.1:{client}"),
        format!("http://127.0.0.1:{peer}"),
    );
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(dir.join("etcd"))
        .args(["--unsafe-no-fsync", "--listen-client-urls", &client])
        .args([
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &peer,
        ])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")]);
    spawn(command, &dir.join("etcd.log")).context("etcd does not start: install etcd-server")
}

fn start_api(dir: &Path, [port, etcd, _]: [u16; 3]) -> anyhow::Result<Child> {
    let bin = env::var_os(BIN_VARIABLE)
        .with_context(|| format!("{BIN_VARIABLE} names no folder with kube-apiserver"))?;
    let file = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new(Path::new(&bin).join("kube-apiserver"));
    command
        .arg(format!("--etcd-servers=http://127.0.0.1:{etcd}"))
        .arg(format!("--secure-port={port}"))
        .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
        .args([
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=RBAC",
        ])
        .args([
            "--endpoint-reconciler-type=none",
            "--service-account-issuer=https://x",
        ])
        .arg(format!("--cert-dir={}", file("certs")))
        .arg(format!("--token-auth-file={}", file("tokens")))
        .arg(format!("--service-account-key-file={}", file("sa.pub")))
        .arg(format!(
            "--service-account-signing-key-file={}",
            file("sa.key")
        ));
    spawn(command, &dir.join("apiserver.log")).context("kube-apiserver does not start")
}

fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Child> {
    let log = fs::File::create(log)?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command.spawn()?)
}
