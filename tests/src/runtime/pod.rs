//! A pod as the kubelet runs it: a sandbox, and one container in it.

use std::{net::IpAddr, time::Duration};

use anyhow::ensure;

use super::{
    cri::{ContainerId, Cri, SandboxId},
    image::Image,
};

/// How long a command in a container may take.
const EXEC_MAX: Duration = Duration::from_secs(20);
/// How long an echo request may stay unanswered (s).
const ECHO_SECONDS_MAX: &str = "5";

/// A pod with one container. Dropping it does nothing: [`Pod::end`] does.
#[derive(Debug)]
pub struct Pod<'c, 'p> {
    cri: &'c Cri<'c, 'p>,
    sandbox: SandboxId,
    container: ContainerId,
    ips: Vec<IpAddr>,
}

impl<'c, 'p> Pod<'c, 'p> {
    /// RunPodSandbox, PodSandboxStatus, CreateContainer, StartContainer. The container runs `command`, or what its
    /// image says if that is empty.
    ///
    /// # Errors
    ///
    /// One of the calls fails, or the sandbox is not ready.
    pub fn run(
        cri: &'c Cri<'c, 'p>,
        name: &str,
        image: Image,
        command: &[&str],
    ) -> anyhow::Result<Self> {
        let sandbox = cri.run_sandbox(name, &format!("uid-of-{name}"))?;
        let status = cri.status(&sandbox)?;
        ensure!(status.ready, "the sandbox of {name} is not ready");
        let container = cri.create(&sandbox, "main", image, command)?;
        cri.start(&container)?;
        Ok(Self {
            cri,
            sandbox,
            container,
            ips: status.ips,
        })
    }

    /// A pod with a busybox that waits for commands.
    ///
    /// # Errors
    ///
    /// As [`Pod::run`].
    pub fn waiting(cri: &'c Cri<'c, 'p>, name: &str) -> anyhow::Result<Self> {
        Self::run(cri, name, Image::Busybox, &["sleep", "86400"])
    }

    /// Its sandbox.
    #[must_use]
    pub fn sandbox(&self) -> &SandboxId {
        &self.sandbox
    }

    /// Its addresses, as the runtime tells them.
    #[must_use]
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// ExecSync: the output of a command that must succeed.
    ///
    /// # Errors
    ///
    /// It does not, or not in time.
    pub fn exec(&self, command: &[&str]) -> anyhow::Result<String> {
        self.cri.exec(&self.container, command, EXEC_MAX)?.success()
    }

    /// Sends `count` echo requests to `address`, one a second; all must be answered. What `ping` said.
    ///
    /// # Errors
    ///
    /// One is not.
    pub fn ping(&self, address: IpAddr, count: u32) -> anyhow::Result<String> {
        let (address, count) = (address.to_string(), count.to_string());
        let said = self.exec(&["ping", "-c", &count, "-W", ECHO_SECONDS_MAX, &address])?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        Ok(said)
    }

    /// StopPodSandbox, RemovePodSandbox.
    ///
    /// # Errors
    ///
    /// One of the calls fails.
    pub fn end(self) -> anyhow::Result<()> {
        self.cri.stop(&self.sandbox)?;
        self.cri.remove(&self.sandbox)
    }
}
