//! The calls that the kubelet makes to a container runtime (Kubernetes Container Runtime Interface, version v1),
//! each blocking until it is answered.
//!
//! The messages are generated from `proto/cri/api.proto`, as `k8s.io/cri-api` publishes it. Every call may be made
//! from several threads at once. A failure tells the end of containerd's log.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::runtime::{self, Runtime};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use self::v1::{
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use super::{containerd::Containerd, image::Image};
use crate::eventually::eventually;

/// Messages and clients as generated.
#[allow(
    missing_docs,
    deprecated,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::use_self
)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// Kubernetes namespace of all sandboxes.
pub const NAMESPACE: &str = "default";

/// How long one call may take, but for what the command of an exec takes.
const CALL_MAX: Duration = Duration::from_secs(120);
/// How long the runtime may take to be ready, and to list an image that was imported.
const READY_MAX: Duration = Duration::from_secs(20);

/// A connection to a containerd.
#[derive(Debug)]
pub struct Cri<'c, 'p> {
    containerd: &'c Containerd<'p>,
    runtime: Runtime,
    channel: Channel,
}

/// A sandbox: what Kubernetes calls a pod.
#[derive(Clone, Debug)]
pub struct SandboxId {
    /// As the runtime calls it; also CNI_CONTAINERID.
    pub id: String,
    // The calls for its containers repeat it.
    config: v1::PodSandboxConfig,
}

/// A container in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerId(pub String);

/// What there is to know of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxStatus {
    /// Whether it runs.
    pub ready: bool,
    /// Its addresses, the one first that Kubernetes calls `podIP`.
    pub ips: Vec<IpAddr>,
}

/// How a command in a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// The standard output of a command that succeeded.
    ///
    /// # Errors
    ///
    /// It did not; with all it said.
    pub fn success(self) -> anyhow::Result<String> {
        ensure!(
            self.code == 0,
            "it ended with {}: {}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }
}

impl<'c, 'p> Cri<'c, 'p> {
    /// Connects, and waits until the runtime says that it and its network are ready.
    ///
    /// # Errors
    ///
    /// It does not; with the reasons it gives.
    pub fn connect(containerd: &'c Containerd<'p>) -> anyhow::Result<Self> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let endpoint = Endpoint::try_from(format!("unix://{}", containerd.socket.display()))?;
        let channel = {
            let _entered = runtime.enter();
            // Connects with the first call, and again when containerd was started again.
            endpoint.connect_lazy()
        };
        let cri = Self {
            containerd,
            runtime,
            channel,
        };
        eventually("the runtime is ready", READY_MAX, || cri.check_ready())?;
        Ok(cri)
    }

    /// RunPodSandbox, for a pod of [`NAMESPACE`].
    ///
    /// # Errors
    ///
    /// The runtime's.
    pub fn run_sandbox(&self, name: &str, uid: &str) -> anyhow::Result<SandboxId> {
        let config = self.sandbox_config(name, uid);
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            ..Default::default()
        };
        let answer = self.call("RunPodSandbox", CALL_MAX, async |mut client| {
            client.run_pod_sandbox(request).await
        })?;
        Ok(SandboxId {
            id: answer.pod_sandbox_id,
            config,
        })
    }

    /// PodSandboxStatus.
    ///
    /// # Errors
    ///
    /// The runtime's, or an address that is none.
    pub fn status(&self, sandbox: &SandboxId) -> anyhow::Result<SandboxStatus> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: sandbox.id.clone(),
            ..Default::default()
        };
        let answer = self.call("PodSandboxStatus", CALL_MAX, async |mut client| {
            client.pod_sandbox_status(request).await
        })?;
        let status = answer.status.context("a status without a status")?;
        let network = status.network.unwrap_or_default();
        let more = network.additional_ips.iter().map(|more| &more.ip);
        let ips = std::iter::once(&network.ip)
            .chain(more)
            .filter(|ip| !ip.is_empty())
            .map(|ip| ip.parse().with_context(|| format!("{ip:?} is no address")));
        Ok(SandboxStatus {
            ready: status.state == i32::from(v1::PodSandboxState::SandboxReady),
            ips: ips.collect::<anyhow::Result<_>>()?,
        })
    }

    /// CreateContainer of `image`, which runs `command`, or what the image says if that is empty.
    ///
    /// # Errors
    ///
    /// The runtime's.
    pub fn create(
        &self,
        sandbox: &SandboxId,
        name: &str,
        image: Image,
        command: &[&str],
    ) -> anyhow::Result<ContainerId> {
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(image_spec(image.name())),
            command: owned(command),
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let answer = self.call("CreateContainer", CALL_MAX, async |mut client| {
            client.create_container(request).await
        })?;
        Ok(ContainerId(answer.container_id))
    }

    /// StartContainer.
    ///
    /// # Errors
    ///
    /// The runtime's.
    pub fn start(&self, container: &ContainerId) -> anyhow::Result<()> {
        let request = v1::StartContainerRequest {
            container_id: container.0.clone(),
        };
        self.call("StartContainer", CALL_MAX, async |mut client| {
            client.start_container(request).await
        })
        .map(drop)
    }

    /// ExecSync: runs `command` in a container to its end, at most `limit` (whole seconds).
    ///
    /// # Errors
    ///
    /// The runtime's, also when the command did not end.
    pub fn exec(
        &self,
        container: &ContainerId,
        command: &[&str],
        limit: Duration,
    ) -> anyhow::Result<Output> {
        let request = v1::ExecSyncRequest {
            container_id: container.0.clone(),
            cmd: owned(command),
            timeout: i64::try_from(limit.as_secs())?,
        };
        let answer = self.call("ExecSync", limit + CALL_MAX, async |mut client| {
            client.exec_sync(request).await
        })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Output {
            code: answer.exit_code,
            stdout: text(&answer.stdout),
            stderr: text(&answer.stderr),
        })
    }

    /// StopPodSandbox: ends its containers and detaches it from the network.
    ///
    /// # Errors
    ///
    /// The runtime's.
    pub fn stop(&self, sandbox: &SandboxId) -> anyhow::Result<()> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: sandbox.id.clone(),
        };
        self.call("StopPodSandbox", CALL_MAX, async |mut client| {
            client.stop_pod_sandbox(request).await
        })
        .map(drop)
    }

    /// RemovePodSandbox: removes it and its containers.
    ///
    /// # Errors
    ///
    /// The runtime's.
    pub fn remove(&self, sandbox: &SandboxId) -> anyhow::Result<()> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: sandbox.id.clone(),
        };
        self.call("RemovePodSandbox", CALL_MAX, async |mut client| {
            client.remove_pod_sandbox(request).await
        })
        .map(drop)
    }

    /// Waits until the runtime lists the image called `name`.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn await_image(&self, name: &str) -> anyhow::Result<()> {
        let look = || {
            let request = v1::ImageStatusRequest {
                image: Some(image_spec(name)),
                ..Default::default()
            };
            let mut client = ImageServiceClient::new(self.channel.clone());
            let answer = self.runtime.block_on(client.image_status(request))?;
            answer.into_inner().image.context("it is not listed")
        };
        eventually(name, READY_MAX, look).map(drop)
    }

    fn check_ready(&self) -> anyhow::Result<()> {
        let request = v1::StatusRequest { verbose: false };
        let answer = self.call("Status", CALL_MAX, async |mut client| {
            client.status(request).await
        })?;
        let conditions = answer.status.unwrap_or_default().conditions;
        for kind in ["RuntimeReady", "NetworkReady"] {
            let found = conditions.iter().find(|condition| condition.r#type == kind);
            let found = found.with_context(|| format!("{kind} is not told"))?;
            ensure!(
                found.status,
                "no {kind}: {} {}",
                found.reason,
                found.message
            );
        }
        Ok(())
    }

    fn sandbox_config(&self, name: &str, uid: &str) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: NAMESPACE.to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: self.containerd.place().cgroup().to_owned(),
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn call<T>(
        &self,
        what: &str,
        limit: Duration,
        ask: impl AsyncFnOnce(RuntimeServiceClient<Channel>) -> Result<Response<T>, Status>,
    ) -> anyhow::Result<T> {
        let client = RuntimeServiceClient::new(self.channel.clone());
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(limit, ask(client)).await });
        let explain = || format!("{what} fails; {}", self.containerd.log_tail());
        let answer = answer
            .with_context(|| format!("no answer within {} s", limit.as_secs()))
            .with_context(explain)?;
        let answer =
            answer.map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()));
        Ok(answer.with_context(explain)?.into_inner())
    }
}

/// As the kubelet asks for them: each container has processes of its own, the sandbox shares the rest.
fn namespaces() -> v1::NamespaceOption {
    v1::NamespaceOption {
        pid: i32::from(v1::NamespaceMode::Container),
        ..Default::default()
    }
}

fn image_spec(name: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: name.to_owned(),
        ..Default::default()
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
