//! Which pod is meant: what an operator writes in, one attachment out. Pure.

use std::net::{IpAddr, SocketAddr};

use anyhow::bail;
use fabric_proto::admin::Pod;

/// Fewest characters of a container id that count as one.
const CONTAINER_ID_CHARS_MIN: usize = 4;
/// How much of a container id is shown (characters), as container tools do.
const CONTAINER_ID_CHARS: usize = 13;
/// Most pods that an error names.
const NAMED_MAX: usize = 20;

/// A pod, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodAt {
    /// Its node.
    pub(super) node: String,
    /// As the node's daemon shows it.
    pub(super) pod: Pod,
}

impl PodAt {
    /// `namespace/name`, or the begin of the container's id.
    pub(super) fn label(&self) -> String {
        let pod = &self.pod;
        match (pod.namespace.as_str(), pod.name.as_str()) {
            (_, "") => pod.container_id.chars().take(CONTAINER_ID_CHARS).collect(),
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        }
    }

    /// Its addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.pod
            .addresses
            .iter()
            .filter_map(|text| text.parse().ok())
    }

    fn described(&self) -> String {
        let id: String = self
            .pod
            .container_id
            .chars()
            .take(CONTAINER_ID_CHARS)
            .collect();
        let addresses = self.pod.addresses.join(" and ");
        format!(
            "{} ({id}, {addresses}, {} of {})",
            self.label(),
            self.pod.ifname,
            self.node
        )
    }

    fn is(&self, wanted: &str) -> bool {
        let pod = &self.pod;
        if let Ok(address) = wanted.parse::<IpAddr>() {
            return self.addresses().any(|own| own == address);
        }
        // A pod without a name is not meant by no name.
        let is_named = |name: &str| !name.is_empty() && pod.name == name;
        match wanted.split_once('/') {
            Some((namespace, name)) => pod.namespace == namespace && is_named(name),
            None => is_named(wanted),
        }
    }

    fn begins(&self, id: &str) -> bool {
        id.len() >= CONTAINER_ID_CHARS_MIN && self.pod.container_id.starts_with(id)
    }
}

/// The one pod that `wanted` means: by name, by namespace and name, by address, or else by the begin of
/// its container's id.
///
/// # Errors
///
/// None is meant, or more than one; the message names those there are.
pub(super) fn find<'a>(pods: &'a [PodAt], wanted: &str) -> anyhow::Result<&'a PodAt> {
    let mut found: Vec<&PodAt> = pods.iter().filter(|pod| pod.is(wanted)).collect();
    if found.is_empty() {
        found = pods.iter().filter(|pod| pod.begins(wanted)).collect();
    }
    match found[..] {
        [pod] => Ok(pod),
        [] if pods.is_empty() => bail!("no pod {wanted:?}: no pod is attached"),
        [] => {
            let all: Vec<&PodAt> = pods.iter().collect();
            let labels = list(&all, PodAt::label);
            bail!(
                "no pod {wanted:?}: there are {labels}. For a pod of another machine, run `fabric bench \
                 --serve POD` there and give its address here"
            )
        }
        _ => {
            let described = list(&found, PodAt::described);
            bail!(
                "{wanted:?} means more than one pod: {described}; write NAMESPACE/NAME, more of the \
                 container id, or the address"
            )
        }
    }
}

/// The server that `wanted` means, where that is no pod known here: an address, with a port or without.
pub(super) fn server(pods: &[PodAt], wanted: &str, port: u16) -> Option<SocketAddr> {
    // With a port, a server runs there already, whosever pod it is.
    if let Ok(server) = wanted.parse::<SocketAddr>() {
        return Some(server);
    }
    let address = wanted.trim_start_matches('[').trim_end_matches(']');
    let address: IpAddr = address.parse().ok()?;
    let is_known = pods
        .iter()
        .any(|pod| pod.addresses().any(|own| own == address));
    (!is_known).then(|| SocketAddr::new(address, port))
}

fn list(pods: &[&PodAt], text: impl Fn(&PodAt) -> String) -> String {
    let mut names: Vec<String> = pods.iter().take(NAMED_MAX).map(|pod| text(pod)).collect();
    if pods.len() > NAMED_MAX {
        names.push(format!("{} more", pods.len() - NAMED_MAX));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn pod(node: &str, namespace: &str, name: &str, id: &str, addresses: &[&str]) -> PodAt {
        PodAt {
            node: node.to_owned(),
            pod: Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                container_id: id.to_owned(),
                ifname: "eth0".to_owned(),
                addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
                ..Pod::default()
            },
        }
    }

    fn pods() -> Vec<PodAt> {
        vec![
            pod(
                "worker-a",
                "default",
                "web",
                "0123aaaa4567",
                &["10.1.0.5", "fd00::5"],
            ),
            pod("worker-a", "test", "web", "0123bbbb4567", &["10.1.0.6"]),
            pod("worker-b", "default", "db", "89abcdef0123", &["10.1.1.7"]),
            pod("worker-b", "", "", "fedcba987654321", &["10.1.1.8"]),
        ]
    }

    /// A pod is found by each of its names.
    #[test]
    fn every_name_finds() {
        let pods = pods();
        for (wanted, address) in [
            ("db", "10.1.1.7"),
            ("default/web", "10.1.0.5"),
            ("test/web", "10.1.0.6"),
            ("10.1.0.6", "10.1.0.6"),
            ("fd00:0::5", "10.1.0.5"),
            ("89ab", "10.1.1.7"),
            ("0123b", "10.1.0.6"),
            ("fedcba987654321", "10.1.1.8"),
        ] {
            let found = find(&pods, wanted).unwrap();
            assert_eq!(found.pod.addresses[0], address, "{wanted}");
        }
        assert_eq!(pods[3].label(), "fedcba9876543");
    }

    /// What is unknown or ambiguous is answered with the pods there are.
    #[test]
    fn candidates_are_named() {
        let pods = pods();
        let told = |wanted| find(&pods, wanted).unwrap_err().to_string();
        let ambiguous = told("web");
        assert!(
            ambiguous
                .contains("default/web (0123aaaa4567, 10.1.0.5 and fd00::5, eth0 of worker-a)")
                && ambiguous.contains("test/web")
                && !ambiguous.contains("db"),
            "{ambiguous}"
        );
        assert!(told("0123").contains("more than one"), "{}", told("0123"));
        for wanted in ["nginx", "default/nginx", "10.9.9.9", "012", ""] {
            let told = told(wanted);
            assert!(
                told.contains("default/db") && told.contains("--serve"),
                "{told}"
            );
        }
        let many: Vec<PodAt> = (0..30)
            .map(|n| pod("a", "", &format!("p{n}"), "id", &[]))
            .collect();
        let told = find(&many, "x").unwrap_err().to_string();
        assert!(
            told.contains("p19, 10 more") && !told.contains("p20"),
            "{told}"
        );
        assert!(
            find(&[], "x")
                .unwrap_err()
                .to_string()
                .contains("no pod is attached")
        );
    }

    /// An address is a server elsewhere unless it is a pod's; with a port it always is one.
    #[test]
    fn addresses_are_servers_elsewhere() {
        let pods = pods();
        let found = |wanted| server(&pods, wanted, 5201).map(|server| server.to_string());
        assert_eq!(found("10.1.0.5"), None);
        assert_eq!(found("web"), None);
        for (wanted, expected) in [
            ("10.1.0.5:5301", "10.1.0.5:5301"),
            ("10.2.0.1", "10.2.0.1:5201"),
            ("fd00::9", "[fd00::9]:5201"),
            ("[fd00::9]", "[fd00::9]:5201"),
            ("[fd00::9]:5301", "[fd00::9]:5301"),
        ] {
            assert_eq!(found(wanted).as_deref(), Some(expected));
        }
    }
}
