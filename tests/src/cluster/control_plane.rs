//! The control plane: etcd, API server, controllers and scheduler, on a machine of their own.
//!
//! Each of them can be stopped and started again, as a test of an outage does. All state is etcd's, in memory, and ends
//! with the cluster.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::ensure;

use super::{
    daemon::{Daemon, Program},
    kubectl::Kubectl,
    pki::{MASTERS, Pki, Subject},
    plan,
    programs::Programs,
    realm::{Realm, found},
};

/// How long the API server may take to be ready: 3 s where nothing else runs.
const READY_MAX: Duration = Duration::from_secs(90);
/// Where etcd answers the API server.
const ETCD: &str = "http://127.0.0.1:2379";
/// Where etcd would answer others of its kind.
const ETCD_PEERS: &str = "http://127.0.0.1:2380";

/// A part of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// The store.
    Etcd,
    /// The API server.
    ApiServer,
    /// The controller manager.
    Controllers,
    /// The scheduler.
    Scheduler,
}

/// See the module's documentation. Dropping it kills all parts.
#[derive(Debug)]
pub struct ControlPlane {
    // Dropped in this order: who depends on others first.
    scheduler: Daemon,
    controllers: Daemon,
    api_server: Daemon,
    etcd: Daemon,
    realm: Realm,
    kubectl: Kubectl,
}

impl ControlPlane {
    /// Starts all parts in the network namespace `netns`, with files below `folder`, and waits until the API server is
    /// ready.
    ///
    /// # Errors
    ///
    /// A part cannot be started, has ended, or is not ready within 90 s; with the end of its log.
    pub fn start(
        netns: &Path,
        folder: &Path,
        pki: &Pki,
        programs: &Programs,
    ) -> anyhow::Result<Self> {
        let realm = Realm::of_network(netns);
        let program = |name: &str, file: PathBuf, arguments: Vec<OsString>| Program {
            name: name.to_owned(),
            file,
            arguments,
            realm: realm.clone(),
            folder: folder.join(name),
        };
        let etcd = Daemon::start(program("etcd", found("etcd")?, etcd_arguments(folder)))?;
        let api_server = Daemon::start(program(
            "kube-apiserver",
            programs.kube_apiserver(),
            api_server_arguments(pki)?,
        ))?;
        let admin = client(pki, "admin", "kubernetes-admin", Some(MASTERS))?;
        let kubectl = Kubectl::new(&programs.kubectl(), &admin, folder, &realm);
        let controllers = program(
            "kube-controller-manager",
            programs.kube_controller_manager(),
            controllers_arguments(pki)?,
        );
        let scheduler = program(
            "kube-scheduler",
            programs.kube_scheduler(),
            scheduler_arguments(pki)?,
        );
        let mut plane = Self {
            scheduler: Daemon::stopped(scheduler),
            controllers: Daemon::stopped(controllers),
            api_server,
            etcd,
            realm,
            kubectl,
        };
        // The others end where they find no API server for some seconds.
        plane.await_ready()?;
        plane.controllers.start_again()?;
        plane.scheduler.start_again()?;
        Ok(plane)
    }

    /// Waits until the API server says that it is ready.
    ///
    /// # Errors
    ///
    /// It does not within 90 s, or has ended; with the end of its log.
    pub fn await_ready(&mut self) -> anyhow::Result<()> {
        self.etcd.check()?;
        let kubectl = self.kubectl.clone();
        self.api_server
            .await_that("the API server is ready", READY_MAX, || {
                let said = kubectl.run(&["get", "--raw", "/readyz"])?;
                ensure!(said == "ok", "{said}");
                Ok(())
            })
    }

    /// A part, to be stopped, killed, started again or looked at.
    pub fn component(&mut self, component: Component) -> &mut Daemon {
        match component {
            Component::Etcd => &mut self.etcd,
            Component::ApiServer => &mut self.api_server,
            Component::Controllers => &mut self.controllers,
            Component::Scheduler => &mut self.scheduler,
        }
    }

    /// Goes on if all parts run.
    ///
    /// # Errors
    ///
    /// One has ended; with the end of its log.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.etcd.check()?;
        self.api_server.check()?;
        self.controllers.check()?;
        self.scheduler.check()
    }

    /// The machine's namespaces.
    #[must_use]
    pub fn realm(&self) -> &Realm {
        &self.realm
    }

    /// kubectl of the administrator.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }
}

fn client(pki: &Pki, file: &str, user: &str, group: Option<&str>) -> anyhow::Result<PathBuf> {
    let credentials = pki.client(file, Subject { user, group })?;
    pki.kubeconfig(file, &plan::api_url(), &credentials)
}

fn etcd_arguments(folder: &Path) -> Vec<OsString> {
    let data = folder.join("etcd/data");
    vec![
        "--data-dir".into(),
        data.into(),
        // In memory: there is nothing to be synced.
        "--unsafe-no-fsync".into(),
        format!("--listen-client-urls={ETCD}").into(),
        format!("--advertise-client-urls={ETCD}").into(),
        format!("--listen-peer-urls={ETCD_PEERS}").into(),
        format!("--initial-advertise-peer-urls={ETCD_PEERS}").into(),
        format!("--initial-cluster=default={ETCD_PEERS}").into(),
    ]
}

/// As kubeadm calls it.
fn api_server_arguments(pki: &Pki) -> anyhow::Result<Vec<OsString>> {
    let server = pki.api_server()?;
    let kubelets = Subject {
        user: "kube-apiserver-kubelet-client",
        group: Some(MASTERS),
    };
    let kubelets = pki.client("apiserver-kubelet-client", kubelets)?;
    let front_proxy = pki.front_proxy_client()?;
    let mut arguments: Vec<OsString> = [
        format!("--etcd-servers={ETCD}"),
        format!("--advertise-address={}", plan::CONTROL_PLANE.v4()),
        format!("--secure-port={}", plan::API_PORT),
        format!("--service-cluster-ip-range={}", plan::SERVICE_CIDRS),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!(
            "--service-account-issuer=https://kubernetes.default.svc.{}",
            plan::DOMAIN
        ),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
    ]
    .map(OsString::from)
    .to_vec();
    let files = [
        ("--client-ca-file=", pki.file("ca.crt")),
        ("--tls-cert-file=", server.certificate),
        ("--tls-private-key-file=", server.key),
        ("--kubelet-client-certificate=", kubelets.certificate),
        ("--kubelet-client-key=", kubelets.key),
        ("--service-account-key-file=", pki.file("sa.pub")),
        ("--service-account-signing-key-file=", pki.file("sa.key")),
        (
            "--requestheader-client-ca-file=",
            pki.file("front-proxy-ca.crt"),
        ),
        ("--proxy-client-cert-file=", front_proxy.certificate),
        ("--proxy-client-key-file=", front_proxy.key),
    ];
    arguments.extend(files.map(|(word, path)| with(word, &path)));
    Ok(arguments)
}

fn controllers_arguments(pki: &Pki) -> anyhow::Result<Vec<OsString>> {
    let user = "system:kube-controller-manager";
    let kubeconfig = client(pki, "controller-manager", user, None)?;
    let [v4, v6] = plan::NODE_PREFIXES;
    let mut arguments: Vec<OsString> = [
        "--allocate-node-cidrs=true".to_owned(),
        format!("--cluster-cidr={}", plan::POD_CIDRS),
        format!("--node-cidr-mask-size-ipv4={v4}"),
        format!("--node-cidr-mask-size-ipv6={v6}"),
        format!("--service-cluster-ip-range={}", plan::SERVICE_CIDRS),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]
    .map(OsString::from)
    .to_vec();
    let files = [
        ("--kubeconfig=", kubeconfig),
        ("--root-ca-file=", pki.file("ca.crt")),
        ("--service-account-private-key-file=", pki.file("sa.key")),
        ("--cluster-signing-cert-file=", pki.file("ca.crt")),
        ("--cluster-signing-key-file=", pki.file("ca.key")),
    ];
    arguments.extend(files.map(|(word, path)| with(word, &path)));
    Ok(arguments)
}

fn scheduler_arguments(pki: &Pki) -> anyhow::Result<Vec<OsString>> {
    let kubeconfig = client(pki, "scheduler", "system:kube-scheduler", None)?;
    Ok(vec![
        with("--kubeconfig=", &kubeconfig),
        "--leader-elect=false".into(),
        "--bind-address=127.0.0.1".into(),
    ])
}

fn with(word: &str, path: &Path) -> OsString {
    let mut text = OsString::from(word);
    text.push(path);
    text
}
