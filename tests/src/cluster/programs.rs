//! The programs of Kubernetes that a cluster runs, built where they are not there yet.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::gotools::{self, Tool};

/// Names that the program of all daemons is called by.
const DAEMONS: [&str; 5] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubelet",
];

/// All that a test with a cluster uses.
const TOOLS: [Tool; 5] = [
    Tool::Kubernetes,
    Tool::Kubectl,
    Tool::Agnhost,
    Tool::Coredns,
    Tool::Helm,
];

/// Builds what is missing, for minutes.
///
/// # Errors
///
/// There is no Go, or the build failed.
pub fn build() -> anyhow::Result<()> {
    gotools::build(&TOOLS)
}

/// Where they are.
#[derive(Clone, Debug)]
pub struct Programs {
    links: PathBuf,
    kubectl: PathBuf,
    agnhost: PathBuf,
    coredns: PathBuf,
}

impl Programs {
    /// The programs, with links in `folder`, which is made. Builds what is missing, for minutes.
    ///
    /// # Errors
    ///
    /// There is no Go, or a build failed.
    pub fn find(folder: &Path) -> anyhow::Result<Self> {
        build()?;
        fs::create_dir_all(folder)?;
        let daemons = Tool::Kubernetes.program()?;
        for name in DAEMONS {
            symlink(&daemons, folder.join(name))
                .with_context(|| format!("cannot link {name} in {}", folder.display()))?;
        }
        Ok(Self {
            links: folder.to_owned(),
            kubectl: Tool::Kubectl.program()?,
            agnhost: Tool::Agnhost.program()?,
            coredns: Tool::Coredns.program()?,
        })
    }

    /// The API server.
    #[must_use]
    pub fn kube_apiserver(&self) -> PathBuf {
        self.links.join("kube-apiserver")
    }

    /// The controllers.
    #[must_use]
    pub fn kube_controller_manager(&self) -> PathBuf {
        self.links.join("kube-controller-manager")
    }

    /// The scheduler.
    #[must_use]
    pub fn kube_scheduler(&self) -> PathBuf {
        self.links.join("kube-scheduler")
    }

    /// The kubelet.
    #[must_use]
    pub fn kubelet(&self) -> PathBuf {
        self.links.join("kubelet")
    }

    /// The kube-proxy.
    #[must_use]
    pub fn kube_proxy(&self) -> PathBuf {
        self.links.join("kube-proxy")
    }

    /// kubectl.
    #[must_use]
    pub fn kubectl(&self) -> PathBuf {
        self.kubectl.clone()
    }

    /// agnhost, for its image.
    #[must_use]
    pub fn agnhost(&self) -> PathBuf {
        self.agnhost.clone()
    }

    /// CoreDNS, for its image.
    #[must_use]
    pub fn coredns(&self) -> PathBuf {
        self.coredns.clone()
    }
}
