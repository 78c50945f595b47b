//! The cluster as one thing: brought up, changed while it runs, gone when dropped.

use std::{
    collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Mutex, thread, time::Duration,
};

use anyhow::{Context as _, bail};
use ipnet::IpNet;

use super::{
    control_plane::ControlPlane,
    dns,
    images::Source,
    kubectl::Kubectl,
    node::Node,
    pki::{Credentials, Pki},
    plan::{self, CONTROL_PLANE, Machine, REGISTRY_PORT},
    programs::Programs,
    proxy::{self, Mode},
    reference,
    registry::Registry,
    site::Site,
    steps::Steps,
    underlay::Underlay,
};

/// How long the controllers may take to give a node its pod CIDRs.
const CIDRS_MAX: Duration = Duration::from_secs(60);
/// How long nodes may take to be Ready after their network was installed: the limit of the first acceptance test.
const NODES_READY_MAX: Duration = Duration::from_secs(60);
/// How long CoreDNS may take to be available.
const DNS_READY_MAX: Duration = Duration::from_secs(60);
/// How long the machine's name is, which begins the names of all network namespaces.
const CONTROL_PLANE_NAME: &str = "cp";

/// What connects the pods of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Nothing: nodes stay NotReady until somebody installs a network.
    None,
    /// The reference plugins.
    Reference,
    /// The product, as a user installs it.
    Fabric {
        /// What `kubectl apply` is given.
        manifest: PathBuf,
        /// Archive of its image, which is imported on each node.
        image: PathBuf,
    },
}

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes at first: n1, n2, ...
    pub nodes: u8,
    /// What connects the pods.
    pub network: Network,
    /// How kube-proxy translates addresses.
    pub proxy: Mode,
    /// Whether CoreDNS is deployed.
    pub dns: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 2,
            network: Network::Reference,
            proxy: Mode::Iptables,
            dns: true,
        }
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: who uses something goes before it.
    nodes: BTreeMap<String, Node>,
    control_plane: ControlPlane,
    // Ends with the cluster.
    _registry: Registry,
    underlay: Underlay,
    pki: Pki,
    proxies: Credentials,
    programs: Programs,
    options: Options,
    site: Site,
}

impl Cluster {
    /// Brings a cluster up, and waits until it is as `options` say. Builds the programs first where they are missing.
    ///
    /// # Errors
    ///
    /// This process is not in the sandbox of `scripts/sandbox`, or a step failed; with what the part in question said at
    /// last. Nothing is left behind then.
    pub fn up(options: &Options, steps: &Steps) -> anyhow::Result<Self> {
        let site = Site::new()?;
        let programs = steps.step("programs of Kubernetes are there", || {
            Programs::find(&site.folder().join("bin"))
        })?;
        let mut underlay = Underlay::make("kc")?;
        let netns = underlay.add(CONTROL_PLANE_NAME, CONTROL_PLANE)?;
        let address = SocketAddr::from((CONTROL_PLANE.v4(), REGISTRY_PORT));
        let registry = Registry::start(&netns, address)?;
        let pki = Pki::make(&site.folder().join("pki"))?;
        let proxies = proxy::credentials(&pki)?;
        let names: Vec<String> = (1..=options.nodes).map(plan::node_name).collect();
        let mut machines = Vec::new();
        for name in &names {
            machines.push((name, underlay.add(name, Machine::of_node(name)?)?));
        }
        let nodes = Mutex::new(BTreeMap::new());
        let plane = thread::scope(|scope| -> anyhow::Result<ControlPlane> {
            let plane = scope.spawn(|| {
                steps.step("etcd and API server are ready", || {
                    let folder = site.folder().join("control-plane");
                    ControlPlane::start(&netns, &folder, &pki, &programs)
                })
            });
            let booting: Vec<_> = machines
                .iter()
                .map(|(name, netns)| {
                    let (nodes, site) = (&nodes, &site);
                    scope.spawn(move || {
                        steps.step(&format!("containerd of {name} answers"), || {
                            let node = Node::boot(name, netns, site)?;
                            if let Ok(mut nodes) = nodes.lock() {
                                nodes.insert(node.name().to_owned(), node);
                            }
                            Ok(())
                        })
                    })
                })
                .collect();
            steps.step("images are made", || {
                for source in Source::ALL {
                    let folder = site.disk().join("images").join(format!("{source:?}"));
                    registry.add(&source.make(&programs, &folder)?);
                }
                Ok(())
            })?;
            for thread in booting {
                joined(thread)?;
            }
            joined(plane)
        })?;
        let mut cluster = Self {
            nodes: nodes.into_inner().unwrap_or_default(),
            control_plane: plane,
            _registry: registry,
            underlay,
            pki,
            proxies,
            programs,
            options: options.clone(),
            site,
        };
        let install = matches!(options.network, Network::Fabric { .. });
        for name in &names {
            cluster.join(name)?;
        }
        cluster.connect(&names, steps)?;
        if install {
            cluster.install(steps)?;
        }
        if options.network != Network::None {
            cluster.await_nodes(&names, steps)?;
            if options.dns {
                cluster.deploy_dns(steps)?;
            }
        }
        Ok(cluster)
    }

    /// Adds a node to the running cluster, and waits until it is Ready where the cluster has a network. One that was
    /// there before under this name has to be gone.
    ///
    /// # Errors
    ///
    /// `name` is no name of a node or one that runs, or the node cannot be made or is not Ready within 60 s.
    pub fn add_node(&mut self, name: &str, steps: &Steps) -> anyhow::Result<()> {
        if self.nodes.contains_key(name) {
            bail!("there is a node {name}");
        }
        let netns = self.underlay.add(name, Machine::of_node(name)?)?;
        let node = steps.step(&format!("containerd of {name} answers"), || {
            Node::boot(name, &netns, &self.site)
        });
        let node = match node {
            Ok(node) => node,
            Err(error) => {
                let _ = self.underlay.remove(name);
                return Err(error);
            }
        };
        self.nodes.insert(name.to_owned(), node);
        self.join(name)?;
        let names = [name.to_owned()];
        self.connect(&names, steps)?;
        if self.options.network != Network::None {
            self.await_nodes(&names, steps)?;
        }
        Ok(())
    }

    /// Takes a node's power away: all its processes are killed, its interface and its disk are gone. Kubernetes is told
    /// nothing; its Node stays until somebody deletes it.
    ///
    /// # Errors
    ///
    /// There is no such node.
    pub fn kill_node(&mut self, name: &str) -> anyhow::Result<()> {
        let node = self.nodes.remove(name);
        drop(node.with_context(|| format!("there is no node {name}"))?);
        self.underlay.remove(name)
    }

    /// Changes the mode of all kube-proxies.
    ///
    /// # Errors
    ///
    /// One cannot be stopped, its rules cannot be taken away, or it cannot be started.
    pub fn set_proxy_mode(&mut self, mode: Mode) -> anyhow::Result<()> {
        for node in self.nodes.values_mut() {
            node.set_proxy_mode(mode, &self.pki, &self.proxies, &self.programs)
                .with_context(|| {
                    format!("cannot change the mode of kube-proxy on {}", node.name())
                })?;
        }
        self.options.proxy = mode;
        Ok(())
    }

    /// kubectl of the administrator, at the control plane.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        self.control_plane.kubectl()
    }

    /// The control plane.
    pub fn control_plane(&mut self) -> &mut ControlPlane {
        &mut self.control_plane
    }

    /// The keys and certificates.
    #[must_use]
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The network between the machines.
    #[must_use]
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// The programs.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// A node.
    ///
    /// # Errors
    ///
    /// There is no such node.
    pub fn node(&mut self, name: &str) -> anyhow::Result<&mut Node> {
        let node = self.nodes.get_mut(name);
        node.with_context(|| format!("there is no node {name}"))
    }

    /// Goes on if every daemon runs.
    ///
    /// # Errors
    ///
    /// One has ended; with the end of its log.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.control_plane.check()?;
        self.nodes.values_mut().try_for_each(Node::check)
    }

    /// The pod CIDRs of a node, as soon as the controllers have given them.
    ///
    /// # Errors
    ///
    /// They have not within a minute.
    pub fn pod_cidrs(&self, node: &str) -> anyhow::Result<Vec<IpNet>> {
        let object = format!("node/{node}");
        let kubectl = self.kubectl();
        // It waits for an object only if told so, and then only for that.
        kubectl.wait("create", &[&object], CIDRS_MAX)?;
        kubectl.wait("jsonpath={.spec.podCIDRs[1]}", &[&object], CIDRS_MAX)?;
        let found = kubectl.run(&["get", &object, "-o", "jsonpath={.spec.podCIDRs[*]}"])?;
        found
            .split_whitespace()
            .map(|cidr| cidr.parse().with_context(|| format!("{cidr} is no CIDR")))
            .collect()
    }

    fn join(&mut self, name: &str) -> anyhow::Result<()> {
        let mode = self.options.proxy;
        let node = self.nodes.get_mut(name).context("no such node")?;
        node.join(mode, &self.pki, &self.proxies, &self.programs)
    }

    /// What the network needs on new nodes before anything is installed.
    fn connect(&self, new: &[String], steps: &Steps) -> anyhow::Result<()> {
        match &self.options.network {
            Network::None => Ok(()),
            Network::Reference => steps.step("the reference plugins are configured", || {
                self.connect_reference(new)
            }),
            Network::Fabric { image, .. } => steps.step("the product's image is imported", || {
                new.iter().try_for_each(|name| {
                    let node = self.nodes.get(name).context("no such node")?;
                    node.import(image)
                })
            }),
        }
    }

    fn connect_reference(&self, new: &[String]) -> anyhow::Result<()> {
        let mut cidrs = BTreeMap::new();
        for name in self.nodes.keys() {
            cidrs.insert(name, self.pod_cidrs(name)?);
        }
        for (name, node) in &self.nodes {
            for (peer, other) in self.nodes.iter().filter(|(peer, _)| *peer != name) {
                reference::route(node, other.machine(), &cidrs[peer])?;
            }
            if new.contains(name) {
                reference::configure(node, &cidrs[name])?;
            }
        }
        Ok(())
    }

    fn install(&self, steps: &Steps) -> anyhow::Result<()> {
        let Network::Fabric { manifest, .. } = &self.options.network else {
            return Ok(());
        };
        steps.step("the manifest is applied", || {
            let manifest = manifest
                .to_str()
                .context("the manifest's path is no text")?;
            self.kubectl().run(&["apply", "-f", manifest]).map(drop)
        })
    }

    fn await_nodes(&self, names: &[String], steps: &Steps) -> anyhow::Result<()> {
        let mut words = vec!["node".to_owned()];
        words.extend(names.iter().cloned());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        steps.step(&format!("{} Ready", names.join(", ")), || {
            let kubectl = self.kubectl();
            kubectl.wait("condition=Ready", &words, NODES_READY_MAX)
        })?;
        Ok(())
    }

    fn deploy_dns(&self, steps: &Steps) -> anyhow::Result<()> {
        steps.step("CoreDNS is available", || {
            self.kubectl().apply(&dns::manifest())?;
            let what = dns::DEPLOYMENT;
            self.kubectl()
                .wait("condition=Available", &what, DNS_READY_MAX)
        })?;
        Ok(())
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    match thread.join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
