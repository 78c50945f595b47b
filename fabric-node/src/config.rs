//! Configuration of the daemon: one TOML file, unknown keys refused, defaults named here.
//!
//! Comes in: a path. Goes out: a complete [`NodeConfig`]. Never done here: touching what the paths
//! in it name.
//!
//! The smallest file is `node = "worker-a"`. A full one:
//!
//! ```toml
//! node = "worker-a"
//! state_dir = "/var/lib/fabric"
//! run_dir = "/run/fabric"
//!
//! [source]
//! kind = "file"
//! path = "/etc/fabric/nodes.d"
//!
//! # or, in a Kubernetes cluster (docs/fabricnode.md):
//! # kind = "kubernetes"
//! # port = 7946
//! # underlay = []            # instead of the Node's InternalIPs
//! # host_addresses = []
//! # host_root = "/"          # where the kubelet's kubeconfig is looked for
//! # service_account = "/var/run/secrets/kubernetes.io/serviceaccount"
//! # kubeconfig = "/path"     # instead of the service account
//! # startup_taint = "fabric.dev/agent-not-ready"
//!
//! [identity]
//! kind = "files" # or "kubernetes": certificates of the cluster's signer, kept below `state_dir`
//! ca = "/etc/fabric/pki/ca.pem"
//! certificate = "/etc/fabric/pki/node.pem"
//! key = "/etc/fabric/pki/node-key.pem"
//! trust_domain = "cluster.local" # with kind = "kubernetes", as are the two below
//! namespace = "fabric-system"
//! lifetime_hours = 168
//!
//! [dataplane]
//! workers = 2
//!
//! [dataplane.offloads] # or `offloads = true`, or `offloads = false`
//! checksum = true
//! tso4 = true
//! tso6 = true
//! uso = true
//! udp_gso = true
//! udp_gro = true
//!
//! [tunnel]
//! congestion = "cubic"
//! idle_timeout_ms = 3000
//! keep_alive_ms = 1400
//! reconnect_max_ms = 500
//!
//! [cni]
//! socket = "/run/fabric/cni.sock"
//! netns_roots = [] # for instance ["/run/user/1000/netns"]
//! # conflist_dir = "/etc/cni/net.d"
//!
//! [admin]
//! socket = "/run/fabric/admin.sock"
//!
//! [outside]
//! via = "none" # or "host"
//! masquerade = false
//!
//! [host]
//! proc_sys = "/proc/sys"
//!
//! [metrics]
//! # listen = "127.0.0.1:9946"
//! ```

pub mod offloads;
pub mod outside;
pub mod place;

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde::Deserialize;
use thiserror::Error;

use self::{
    offloads::Offloads,
    outside::{HostConfig, OutsideConfig},
    place::{Misplaced, Source},
};
use crate::{
    control::kubernetes::client::SERVICE_ACCOUNT_DIR, node_id::NodeId, pki::spiffe::TrustDomain,
};

/// Default of `state_dir`.
pub const STATE_DIR: &str = "/var/lib/fabric";
/// Default of `run_dir`.
pub const RUN_DIR: &str = "/run/fabric";
/// Default of `source.path`.
pub const NODES_DIR: &str = "/etc/fabric/nodes.d";
/// Default of `source.port`: the first worker's UDP port.
pub const UNDERLAY_PORT: u16 = 7946;
/// Default of `source.startup_taint`.
pub const STARTUP_TAINT: &str = "fabric.dev/agent-not-ready";
/// Default of `identity.ca`.
pub const CA_FILE: &str = "/etc/fabric/pki/ca.pem";
/// Default of `identity.certificate`.
pub const CERTIFICATE_FILE: &str = "/etc/fabric/pki/node.pem";
/// Default of `identity.key`.
pub const KEY_FILE: &str = "/etc/fabric/pki/node-key.pem";
/// Default of `identity.trust_domain`.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// Default of `identity.namespace`.
pub const NAMESPACE: &str = "fabric-system";
/// Default of `identity.lifetime_hours`: 7 days. It is renewed when a third is left, so an API server that
/// is away for two days is not noticed, and what was stolen from a node is of no use a week later.
pub const LIFETIME_HOURS: u32 = 7 * 24;
/// Longest certificate that may be asked for (hours): a year.
pub const LIFETIME_HOURS_MAX: u32 = 365 * 24;
/// Default of `cni.socket`, below `run_dir`.
pub const CNI_SOCKET: &str = "cni.sock";
/// Default of `admin.socket`, below `run_dir`.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// Default of `tunnel.idle_timeout_ms`: a dead peer is noticed after this. It also bounds how long a
/// cut path goes unused after its return: QUIC's own probes back off for as long again as the cut.
pub const IDLE_TIMEOUT_MS: u64 = 3_000;
/// Default of `tunnel.keep_alive_ms`: twice within the idle timeout, and one that is lost is sent again
/// after a few round trips, not at the next turn. It is what an idle daemon's processor time goes into.
pub const KEEP_ALIVE_MS: u64 = 1_400;
/// Default of `tunnel.reconnect_max_ms`: traffic resumes this soon after an underlay came back.
pub const RECONNECT_MAX_MS: u64 = 500;
/// Most workers that are started without being asked for: beyond it, forwarding rarely gains and
/// the pods want the cores.
pub const WORKERS_DEFAULT_MAX: u32 = 4;
/// Most workers that may be asked for; each listens on a UDP port of its own.
pub const WORKERS_MAX: u32 = 64;
/// Longest duration that may be configured (ms): an hour.
pub const DURATION_MS_MAX: u64 = 3_600_000;
/// Longest path of a unix socket (bytes): `sun_path` less its NUL (unix(7)).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {path}: {source}; name another file with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file says something that it must not.
    #[error("{0}")]
    Invalid(Misplaced),
}

/// The daemon's configuration, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// `node`: this node's name, as in its certificate and in the state source. Required, here or
    /// from [`load_as`].
    pub node: NodeId,
    /// `state_dir`: what must outlive a reboot: attachments, the last good state. [`STATE_DIR`].
    pub state_dir: PathBuf,
    /// `run_dir`: sockets. [`RUN_DIR`].
    pub run_dir: PathBuf,
    /// `[source]`: where the desired state comes from.
    pub source: SourceConfig,
    /// `[identity]`: who this node is.
    pub identity: IdentityConfig,
    /// `[dataplane]`: how packets are worked on.
    pub dataplane: DataplaneConfig,
    /// `[tunnel]`: the connections to peers.
    pub tunnel: TunnelConfig,
    /// `[cni]`: the socket that the plugin calls.
    pub cni: CniConfig,
    /// `[admin]`: the socket that the operator's tool calls.
    pub admin: SocketConfig,
    /// `[outside]`: what becomes of packets to addresses that nobody in the fabric has.
    pub outside: OutsideConfig,
    /// `[host]`: where the host's settings are.
    pub host: HostConfig,
    /// `[metrics]`: health and metrics over TCP.
    pub metrics: MetricsConfig,
}

/// `[source]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SourceTable")]
pub enum SourceConfig {
    /// `kind = "file"`, the default.
    File {
        /// `source.path`: directory of `*.toml` files that name the nodes. [`NODES_DIR`].
        path: PathBuf,
    },
    /// `kind = "kubernetes"`: the cluster's FabricNodes.
    Kubernetes(KubernetesConfig),
}

/// `[source]` with `kind = "kubernetes"`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// `source.kubeconfig`: how to reach the API server, instead of the service account. None.
    pub kubeconfig: Option<PathBuf>,
    /// `source.service_account`: folder of the pod's service account. [`SERVICE_ACCOUNT_DIR`].
    pub service_account: PathBuf,
    /// `source.host_root`: where the host's file system is, for the address in the kubelet's
    /// kubeconfig. `/`.
    pub host_root: PathBuf,
    /// `source.underlay`: addresses to listen on, instead of the Node's InternalIPs. None.
    pub underlay: Vec<IpAddr>,
    /// `source.port`: the first worker's UDP port. [`UNDERLAY_PORT`].
    pub port: u16,
    /// `source.host_addresses`: further addresses the host answers on inside the fabric. None.
    pub host_addresses: Vec<IpAddr>,
    /// `source.startup_taint`: key of the taint to take from the Node once pods can be attached; an
    /// empty text for none. [`STARTUP_TAINT`].
    pub startup_taint: Option<String>,
}

/// Where a node's certificate comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityKind {
    /// From three files that somebody puts in place.
    #[default]
    Files,
    /// From the cluster's signer, by a CertificateSigningRequest.
    Kubernetes,
}

/// `[identity]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityConfig {
    /// `identity.kind`: `"files"` (default) or `"kubernetes"`.
    pub kind: IdentityKind,
    /// `identity.ca`: certificate of the cluster's CA (PEM). [`CA_FILE`].
    pub ca: PathBuf,
    /// `identity.certificate`: this node's certificate (PEM). [`CERTIFICATE_FILE`].
    pub certificate: PathBuf,
    /// `identity.key`: its private key (PEM), mode 0600. [`KEY_FILE`].
    pub key: PathBuf,
    /// `identity.trust_domain`: name of the cluster in certificates, with `kind = "kubernetes"`; the
    /// signer's must be the same. [`TRUST_DOMAIN`].
    pub trust_domain: String,
    /// `identity.namespace`: where the signer publishes its CA certificate. [`NAMESPACE`].
    pub namespace: String,
    /// `identity.lifetime_hours`: how long a certificate is asked to last, 1 to [`LIFETIME_HOURS_MAX`];
    /// the signer may give less. [`LIFETIME_HOURS`].
    pub lifetime_hours: u32,
}

/// `[dataplane]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataplaneConfig {
    /// `dataplane.workers`: threads that forward, 1 to [`WORKERS_MAX`]; worker i listens on the
    /// underlay port + i. Default: half the processors, 1 to [`WORKERS_DEFAULT_MAX`].
    pub workers: Option<u32>,
    /// `dataplane.offloads`: offloads to use where the kernel has them; turning one off is for
    /// finding faults. Default: `true`, which is all.
    pub offloads: Offloads,
}

/// `[tunnel]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TunnelConfig {
    /// `tunnel.congestion`: `"cubic"` (default) or `"bbr"`.
    pub congestion: Congestion,
    /// `tunnel.idle_timeout_ms`: silence after which a peer counts as dead. [`IDLE_TIMEOUT_MS`].
    pub idle_timeout_ms: u64,
    /// `tunnel.keep_alive_ms`: interval of signs of life, at most half of the idle timeout.
    /// [`KEEP_ALIVE_MS`].
    pub keep_alive_ms: u64,
    /// `tunnel.reconnect_max_ms`: upper bound of the back-off between attempts to reach a peer.
    /// [`RECONNECT_MAX_MS`].
    pub reconnect_max_ms: u64,
}

/// Congestion control of the connections between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// RFC 9438.
    #[default]
    Cubic,
    /// BBR.
    Bbr,
}

/// `[cni]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConfig {
    /// `cni.socket`: path of the unix socket. [`CNI_SOCKET`] below `run_dir`.
    pub socket: PathBuf,
    /// `cni.netns_roots`: folders of pods' network namespaces, beside those that are always allowed
    /// ([`crate::cni::roots`]). None.
    pub netns_roots: Vec<PathBuf>,
    /// `cni.conflist_dir`: folder in which the daemon puts the network list for runtimes once pods can be
    /// attached. None: `fabric install-cni` does that.
    pub conflist_dir: Option<PathBuf>,
}

/// `[metrics]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// `metrics.listen`: address and port of `/healthz`, `/readyz` and `/metrics`, which anybody who
    /// reaches it may read. None: nobody listens.
    pub listen: Option<SocketAddr>,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketConfig {
    /// `admin.socket`: path of the unix socket. [`ADMIN_SOCKET`] below `run_dir`.
    pub socket: PathBuf,
}

/// Reads and checks the file at `path`.
///
/// # Errors
///
/// [`ConfigError`] names file, line, column and key.
pub fn load(path: &Path) -> Result<NodeConfig, ConfigError> {
    load_as(path, None)
}

/// As [`load`]; `node` is the node's name in place of the file's, which need not have one then: so one file
/// serves all nodes.
///
/// # Errors
///
/// As [`load`], or `node` is no name of a node.
pub fn load_as(path: &Path, node: Option<&str>) -> Result<NodeConfig, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&Source { path, text: &text }, node).map_err(ConfigError::Invalid)
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self::File {
            path: NODES_DIR.into(),
        }
    }
}

impl Default for IdentityConfig {
    fn default() -> Self {
        Self {
            ca: CA_FILE.into(),
            certificate: CERTIFICATE_FILE.into(),
            key: KEY_FILE.into(),
            kind: IdentityKind::default(),
            trust_domain: TRUST_DOMAIN.to_owned(),
            namespace: NAMESPACE.to_owned(),
            lifetime_hours: LIFETIME_HOURS,
        }
    }
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self {
            workers: None,
            offloads: Offloads::ALL,
        }
    }
}

impl DataplaneConfig {
    /// Workers to start, at least 1.
    #[must_use]
    pub fn worker_count(&self) -> u32 {
        self.workers.unwrap_or_else(|| {
            let processors = thread::available_parallelism().map_or(1, usize::from);
            u32::try_from(processors / 2)
                .unwrap_or(WORKERS_DEFAULT_MAX)
                .clamp(1, WORKERS_DEFAULT_MAX)
        })
    }
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            congestion: Congestion::default(),
            idle_timeout_ms: IDLE_TIMEOUT_MS,
            keep_alive_ms: KEEP_ALIVE_MS,
            reconnect_max_ms: RECONNECT_MAX_MS,
        }
    }
}

impl TunnelConfig {
    /// `tunnel.idle_timeout_ms`
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }

    /// `tunnel.keep_alive_ms`
    #[must_use]
    pub fn keep_alive(&self) -> Duration {
        Duration::from_millis(self.keep_alive_ms)
    }

    /// `tunnel.reconnect_max_ms`
    #[must_use]
    pub fn reconnect_max(&self) -> Duration {
        Duration::from_millis(self.reconnect_max_ms)
    }
}

/// The file as it is written; what depends on other keys is not filled in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    node: Option<String>,
    #[serde(default = "default_state_dir")]
    state_dir: PathBuf,
    #[serde(default = "default_run_dir")]
    run_dir: PathBuf,
    #[serde(default)]
    source: SourceConfig,
    #[serde(default)]
    identity: IdentityConfig,
    #[serde(default)]
    dataplane: DataplaneConfig,
    #[serde(default)]
    tunnel: TunnelConfig,
    #[serde(default)]
    cni: CniTable,
    #[serde(default)]
    admin: SocketTable,
    #[serde(default)]
    outside: OutsideConfig,
    #[serde(default)]
    host: HostConfig,
    #[serde(default)]
    metrics: MetricsConfig,
}

fn default_state_dir() -> PathBuf {
    STATE_DIR.into()
}

fn default_run_dir() -> PathBuf {
    RUN_DIR.into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceTable {
    #[serde(default)]
    kind: SourceKind,
    path: Option<PathBuf>,
    kubeconfig: Option<PathBuf>,
    service_account: Option<PathBuf>,
    host_root: Option<PathBuf>,
    underlay: Option<Vec<IpAddr>>,
    port: Option<u16>,
    host_addresses: Option<Vec<IpAddr>>,
    startup_taint: Option<String>,
}

#[derive(Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum SourceKind {
    #[default]
    File,
    Kubernetes,
}

impl TryFrom<SourceTable> for SourceConfig {
    type Error = String;

    fn try_from(table: SourceTable) -> Result<Self, String> {
        let of_file = [("path", table.path.is_some())];
        let of_kubernetes = [
            ("kubeconfig", table.kubeconfig.is_some()),
            ("service_account", table.service_account.is_some()),
            ("host_root", table.host_root.is_some()),
            ("underlay", table.underlay.is_some()),
            ("port", table.port.is_some()),
            ("host_addresses", table.host_addresses.is_some()),
            ("startup_taint", table.startup_taint.is_some()),
        ];
        let (kind, foreign) = match table.kind {
            SourceKind::File => ("file", &of_kubernetes[..]),
            SourceKind::Kubernetes => ("kubernetes", &of_file[..]),
        };
        if let Some((key, _)) = foreign.iter().find(|(_, is_there)| *is_there) {
            return Err(format!(
                "source.{key} has no meaning with kind = \"{kind}\""
            ));
        }
        Ok(match table.kind {
            SourceKind::File => Self::File {
                path: table.path.unwrap_or_else(|| NODES_DIR.into()),
            },
            SourceKind::Kubernetes => Self::Kubernetes(KubernetesConfig {
                kubeconfig: table.kubeconfig,
                service_account: table
                    .service_account
                    .unwrap_or_else(|| SERVICE_ACCOUNT_DIR.into()),
                host_root: table.host_root.unwrap_or_else(|| "/".into()),
                underlay: table.underlay.unwrap_or_default(),
                port: table.port.unwrap_or(UNDERLAY_PORT),
                host_addresses: table.host_addresses.unwrap_or_default(),
                startup_taint: Some(table.startup_taint.unwrap_or_else(|| STARTUP_TAINT.into()))
                    .filter(|taint| !taint.is_empty()),
            }),
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CniTable {
    socket: Option<PathBuf>,
    #[serde(default)]
    netns_roots: Vec<PathBuf>,
    conflist_dir: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SocketTable {
    socket: Option<PathBuf>,
}

fn parse(source: &Source<'_>, node: Option<&str>) -> Result<NodeConfig, Misplaced> {
    let document: Document = source.parse()?;
    let node = node_name(source, document.node.as_deref(), node)?;
    check_ranges(source, &document)?;
    check_paths(source, &document)?;
    document.outside.check(source)?;
    TrustDomain::new(&document.identity.trust_domain)
        .map_err(|problem| source.at_key("identity.trust_domain", problem.to_string()))?;
    let offloads = document.dataplane.offloads.complete(source)?;
    let socket = |key: &str, socket: Option<PathBuf>, default: &str| {
        let socket = socket.unwrap_or_else(|| document.run_dir.join(default));
        let len = socket.as_os_str().len();
        if len > SOCKET_PATH_BYTES_MAX {
            let problem = format!(
                "{} is {len} bytes long: a unix socket's path has at most {SOCKET_PATH_BYTES_MAX}",
                socket.display()
            );
            return Err(source.at_key(key, problem));
        }
        Ok(socket)
    };
    Ok(NodeConfig {
        node,
        cni: CniConfig {
            socket: socket("cni.socket", document.cni.socket, CNI_SOCKET)?,
            netns_roots: document.cni.netns_roots,
            conflist_dir: document.cni.conflist_dir,
        },
        admin: SocketConfig {
            socket: socket("admin.socket", document.admin.socket, ADMIN_SOCKET)?,
        },
        state_dir: document.state_dir,
        run_dir: document.run_dir,
        source: document.source,
        identity: document.identity,
        dataplane: DataplaneConfig {
            offloads,
            ..document.dataplane
        },
        tunnel: document.tunnel,
        outside: document.outside,
        host: document.host,
        metrics: document.metrics,
    })
}

fn node_name(
    source: &Source<'_>,
    written: Option<&str>,
    given: Option<&str>,
) -> Result<NodeId, Misplaced> {
    if let Some(given) = given {
        return NodeId::new(given).map_err(|problem| {
            source.at_key(
                "node",
                format!("from --node or FABRIC_NODE_NAME: {problem}"),
            )
        });
    }
    let written = written.ok_or_else(|| Misplaced {
        key: None,
        ..source.at_key("node", "missing field `node`".to_owned())
    })?;
    NodeId::new(written).map_err(|problem| source.at_key("node", problem))
}

/// A relative path would depend on where the daemon was started.
fn check_paths(source: &Source<'_>, document: &Document) -> Result<(), Misplaced> {
    let (nodes, kubernetes) = match &document.source {
        SourceConfig::File { path } => (Some(path), None),
        SourceConfig::Kubernetes(kubernetes) => (None, Some(kubernetes)),
    };
    let identity = &document.identity;
    let roots = document.cni.netns_roots.iter();
    let roots = roots.map(|root| ("cni.netns_roots", Some(root)));
    for (key, path) in [
        ("state_dir", Some(&document.state_dir)),
        ("run_dir", Some(&document.run_dir)),
        ("source.path", nodes),
        (
            "source.kubeconfig",
            kubernetes.and_then(|it| it.kubeconfig.as_ref()),
        ),
        (
            "source.service_account",
            kubernetes.map(|it| &it.service_account),
        ),
        ("source.host_root", kubernetes.map(|it| &it.host_root)),
        ("identity.ca", Some(&identity.ca)),
        ("identity.certificate", Some(&identity.certificate)),
        ("identity.key", Some(&identity.key)),
        ("cni.socket", document.cni.socket.as_ref()),
        ("cni.conflist_dir", document.cni.conflist_dir.as_ref()),
        ("admin.socket", document.admin.socket.as_ref()),
        ("host.proc_sys", Some(&document.host.proc_sys)),
    ]
    .into_iter()
    .chain(roots)
    {
        if let Some(path) = path.filter(|path| !path.is_absolute()) {
            let problem = format!("{} is relative: use an absolute path", path.display());
            return Err(source.at_key(key, problem));
        }
    }
    Ok(())
}

fn check_ranges(source: &Source<'_>, document: &Document) -> Result<(), Misplaced> {
    let tunnel = &document.tunnel;
    let workers = document.dataplane.workers.unwrap_or(1).into();
    for (key, value, max) in [
        ("dataplane.workers", workers, WORKERS_MAX.into()),
        (
            "identity.lifetime_hours",
            document.identity.lifetime_hours.into(),
            LIFETIME_HOURS_MAX.into(),
        ),
        (
            "tunnel.idle_timeout_ms",
            tunnel.idle_timeout_ms,
            DURATION_MS_MAX,
        ),
        (
            "tunnel.keep_alive_ms",
            tunnel.keep_alive_ms,
            DURATION_MS_MAX,
        ),
        (
            "tunnel.reconnect_max_ms",
            tunnel.reconnect_max_ms,
            DURATION_MS_MAX,
        ),
    ] {
        if !(1..=max).contains(&value) {
            return Err(source.at_key(key, format!("{value} is out of range: use 1 to {max}")));
        }
    }
    if tunnel.keep_alive_ms > tunnel.idle_timeout_ms / 2 {
        let (keep_alive, idle) = (tunnel.keep_alive_ms, tunnel.idle_timeout_ms);
        let (key, problem) = if source.has("tunnel.keep_alive_ms") {
            let problem =
                format!("{keep_alive} is more than half of tunnel.idle_timeout_ms, {idle}");
            ("tunnel.keep_alive_ms", problem)
        } else {
            let problem = format!("{idle} is less than twice tunnel.keep_alive_ms, {keep_alive}");
            ("tunnel.idle_timeout_ms", problem)
        };
        let cost = "one lost packet would end the connection";
        return Err(source.at_key(key, format!("{problem}: {cost}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
