//! CoreDNS, as clusters have it.

use super::{images::COREDNS, plan};

/// Namespace and name of its Deployment.
pub const DEPLOYMENT: [&str; 3] = ["-n", "kube-system", "deployment/coredns"];

/// The manifest: ServiceAccount with its rights, configuration, Deployment, Service `kube-dns` with an address of each
/// family.
#[must_use]
pub fn manifest() -> String {
    let [v4, v6] = plan::DNS_SERVICE;
    include_str!("coredns.yaml")
        .replace("{image}", COREDNS)
        .replace("{domain}", plan::DOMAIN)
        .replace("{ipv4}", &v4.to_string())
        .replace("{ipv6}", &v6.to_string())
}
