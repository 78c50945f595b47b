//! Where the API server may be, without its ClusterIP: that needs somebody who translates it, and on a
//! new node nobody does yet.
//!
//! Comes in: files and the environment. Goes out: addresses in the order in which to try them: the one
//! that answered last, what the EndpointSlice `default/kubernetes` said when it was last seen, what the
//! kubelet of this node uses, and what the kubelet has put into the environment. Of the kubelet's files
//! only the address is used, never its credentials.

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::pruned::Backends;

/// Addresses that are tried in turn.
pub const CANDIDATES_MAX: usize = 16;
/// Largest kubeconfig or cache that is read (bytes).
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where kubelets have their kubeconfig: kubeadm and most others, plain kubelets, k3s, RKE2, k0s,
/// MicroK8s.
const KUBELET_FILES: [&str; 6] = [
    "etc/kubernetes/kubelet.conf",
    "var/lib/kubelet/kubeconfig",
    "var/lib/rancher/k3s/agent/kubelet.kubeconfig",
    "var/lib/rancher/rke2/agent/kubelet.kubeconfig",
    "var/lib/k0s/kubelet.conf",
    "var/snap/microk8s/current/credentials/kubelet.config",
];
const CACHE_FILE: &str = "api-servers.json";
const CACHE_TEMPORARY: &str = ".api-servers.json.new";

/// A host and a TCP port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// An address, or a name to be resolved.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where to look.
#[derive(Debug)]
pub struct Candidates {
    fixed: Option<Candidate>,
    cache_dir: PathBuf,
    host_root: PathBuf,
    environment: Option<Candidate>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    good: Option<Candidate>,
    doubtful: Option<Candidate>,
}

impl Candidates {
    /// Looks in `state_dir` for what was seen before, below `host_root` for the kubelet's files, and
    /// takes `environment` (KUBERNETES_SERVICE_HOST and _PORT).
    #[must_use]
    pub fn new(state_dir: &Path, host_root: &Path, environment: Option<Candidate>) -> Self {
        Self {
            fixed: None,
            cache_dir: state_dir.to_owned(),
            host_root: host_root.to_owned(),
            environment,
            state: Mutex::default(),
        }
    }

    /// Only this one, for a client that was told where to go.
    #[must_use]
    pub fn only(candidate: Candidate) -> Self {
        Self {
            fixed: Some(candidate),
            ..Self::new(Path::new(""), Path::new(""), None)
        }
    }

    /// Whom to try, in this order. The files are read anew each time.
    #[must_use]
    pub fn list(&self) -> Vec<Candidate> {
        let (good, doubtful) = {
            let state = self.lock();
            (state.good.clone(), state.doubtful.clone())
        };
        if let Some(fixed) = &self.fixed {
            return vec![fixed.clone()];
        }
        let cached = read_cache(&self.cache_dir.join(CACHE_FILE));
        let kubelet = KUBELET_FILES.iter().filter_map(|file| {
            let text = read_limited(&self.host_root.join(file)).ok()?;
            server_of(&text)
        });
        let mut list: Vec<Candidate> = Vec::new();
        let all = good.into_iter().chain(cached).chain(kubelet);
        for candidate in all.chain(self.environment.clone()) {
            if !list.contains(&candidate) && list.len() < CANDIDATES_MAX {
                list.push(candidate);
            }
        }
        // Who did not answer goes to the end, not away: it may be the only one.
        list.sort_by_key(|candidate| Some(candidate) == doubtful.as_ref());
        list
    }

    /// Remembers who took a connection.
    pub fn connected(&self, candidate: &Candidate) {
        self.lock().good = Some(candidate.clone());
    }

    /// Remembers who took a connection and then did not answer: the next connection begins with
    /// others.
    pub fn doubt(&self, candidate: &Candidate) {
        let mut state = self.lock();
        state.good = None;
        state.doubtful = Some(candidate.clone());
    }

    /// Keeps what the EndpointSlice says, for the next start. Does nothing if that is known.
    ///
    /// # Errors
    ///
    /// The file cannot be written; what was kept before stays.
    pub fn keep(&self, backends: &Backends) -> io::Result<()> {
        if self.fixed.is_some() {
            return Ok(());
        }
        let port = backends.port.unwrap_or(HTTPS);
        let servers: Vec<Candidate> = (backends.addresses.iter())
            // One that is only on its own node, as a development cluster may have, is no use to others.
            .filter(|address| !address.is_loopback())
            .take(CANDIDATES_MAX)
            .map(|address| Candidate {
                host: address.to_string(),
                port,
            })
            .collect();
        let path = self.cache_dir.join(CACHE_FILE);
        if servers.is_empty() || read_cache(&path) == servers {
            return Ok(());
        }
        let temporary = self.cache_dir.join(CACHE_TEMPORARY);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        let document = Document {
            crc32: checksum(&servers),
            servers,
        };
        file.write_all(&serde_json::to_vec(&document)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the kubelet puts into a container's environment.
#[must_use]
pub fn from_environment(host: Option<String>, port: Option<String>) -> Option<Candidate> {
    let host = host.filter(|host| !host.is_empty())?;
    let port = port.and_then(|port| port.parse().ok()).unwrap_or(HTTPS);
    Some(Candidate { host, port })
}

/// Port of an `https` address without one.
const HTTPS: u16 = 443;

/// The cache: a checksum of the list's own encoding, and the list.
#[derive(Serialize, Deserialize)]
struct Document {
    crc32: u32,
    servers: Vec<Candidate>,
}

fn checksum(servers: &[Candidate]) -> u32 {
    crc32fast::hash(&serde_json::to_vec(servers).unwrap_or_default())
}

/// A damaged cache is as good as none: there are other places to look.
fn read_cache(path: &Path) -> Vec<Candidate> {
    let Ok(text) = read_limited(path) else {
        return Vec::new();
    };
    match serde_json::from_str::<Document>(&text) {
        Ok(document) if checksum(&document.servers) == document.crc32 => document.servers,
        _ => {
            tracing::warn!(path = %path.display(), "the kept addresses of API servers are damaged and not used; they are written anew");
            // Said once: the next look finds none.
            let _ = fs::remove_file(path);
            Vec::new()
        }
    }
}

fn read_limited(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = fs::File::open(path)?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Only what is needed of a kubeconfig: no key, token or certificate is ever read from it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    current_context: Option<String>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct Cluster {
    server: String,
}

/// The server of the current context, else of the first cluster.
fn server_of(kubeconfig: &str) -> Option<Candidate> {
    let kubeconfig: Kubeconfig = serde_saphyr::from_str(kubeconfig).ok()?;
    let current = kubeconfig.current_context.and_then(|name| {
        let context = kubeconfig.contexts.into_iter().find(|it| it.name == name)?;
        Some(context.context.cluster)
    });
    let clusters = &kubeconfig.clusters;
    let cluster = current
        .and_then(|name| clusters.iter().find(|it| it.name == name))
        .or_else(|| clusters.first())?;
    candidate_of(&cluster.cluster.server)
}

/// Host and port of a URL.
#[must_use]
pub fn candidate_of(server: &str) -> Option<Candidate> {
    let uri: hyper::Uri = server.parse().ok()?;
    let default = match uri.scheme_str()? {
        "https" => HTTPS,
        "http" => 80,
        _ => return None,
    };
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let host = host
        .parse::<IpAddr>()
        .map_or_else(|_| host.to_owned(), |address| address.to_string());
    Some(Candidate {
        host,
        port: uri.port_u16().unwrap_or(default),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const KUBELET: &str = r#"
apiVersion: v1
kind: Config
current-context: default
contexts:
- name: default
  context: {cluster: second, user: u}
clusters:
- name: first
  cluster: {server: "https://192.0.2.9:6443"}
- name: second
  cluster: {server: "https://[2001:db8::1]:6443", certificate-authority-data: AAAA}
users:
- name: u
  user: {client-certificate: /none, client-key: /none}
"#;

    fn at(host: &str, port: u16) -> Candidate {
        Candidate {
            host: host.to_owned(),
            port,
        }
    }

    fn slice(addresses: &[&str]) -> Backends {
        Backends {
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            port: Some(6443),
        }
    }

    /// What answered last comes first, then the slice that was kept, the kubelet's server, the
    /// environment; what is there twice is tried once.
    #[test]
    fn all_places_are_tried_in_order() {
        let (state, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = root
            .path()
            .join("var/lib/rancher/k3s/agent/kubelet.kubeconfig");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, KUBELET).unwrap();
        let environment = from_environment(Some("10.96.0.1".into()), Some("443".into()));
        let candidates = Candidates::new(state.path(), root.path(), environment);
        let kubelet = at("2001:db8::1", 6443);
        let cluster_ip = at("10.96.0.1", 443);
        assert_eq!(candidates.list(), [kubelet.clone(), cluster_ip.clone()]);
        candidates
            .keep(&slice(&["192.0.2.1", "127.0.0.1", "2001:db8::1"]))
            .unwrap();
        let first = at("192.0.2.1", 6443);
        assert_eq!(
            candidates.list(),
            [first.clone(), kubelet.clone(), cluster_ip.clone()]
        );
        candidates.connected(&cluster_ip);
        assert_eq!(candidates.list()[0], cluster_ip);
        candidates.doubt(&cluster_ip);
        candidates.connected(&kubelet);
        assert_eq!(candidates.list(), [kubelet, first, cluster_ip]);
    }

    /// What was kept is there after a restart; a damaged file is not used, and an empty slice keeps
    /// what was there.
    #[test]
    fn what_is_kept_survives() {
        let state = tempfile::tempdir().unwrap();
        let open = || Candidates::new(state.path(), Path::new("/nowhere"), None);
        assert!(open().list().is_empty());
        open().keep(&slice(&["192.0.2.1"])).unwrap();
        open().keep(&slice(&[])).unwrap();
        assert_eq!(open().list(), [at("192.0.2.1", 6443)]);
        let path = state.path().join(CACHE_FILE);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("192.0.2.1", "192.0.2.2")).unwrap();
        assert!(open().list().is_empty());
    }

    /// Servers are read from URLs as kubeconfig files have them.
    #[test]
    fn servers_are_read_from_urls() {
        for (url, wanted) in [
            ("https://192.0.2.1:6443", Some(at("192.0.2.1", 6443))),
            ("https://[2001:DB8::1]:6443/", Some(at("2001:db8::1", 6443))),
            ("https://cluster.example", Some(at("cluster.example", 443))),
            ("http://127.0.0.1:8080", Some(at("127.0.0.1", 8080))),
            ("unix:///run/x", None),
            ("", None),
        ] {
            assert_eq!(candidate_of(url), wanted, "{url}");
        }
        assert_eq!(server_of("a: ["), None);
        assert_eq!(server_of("clusters: []"), None);
    }
}
