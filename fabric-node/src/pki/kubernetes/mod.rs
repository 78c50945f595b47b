//! A node's identity from the cluster it is a node of, by the API of certificates.k8s.io.
//!
//! Comes in: a client of the API server, the node's name. Goes out: a key made here and a certificate for
//! it, on disk ([`folder`]) and in the [`LiveIdentity`](super::LiveIdentity). [`request`] asks for one and
//! waits for it; [`renew`] does so in time, for ever. Never done here: signing (`signer`), and telling
//! peers the keys (the state source does).
//!
//! On a start the identity on disk is used as it is while it is valid, so that no start waits for the API
//! server. The private key never leaves the node: what is sent is a request signed with it.

pub mod folder;
pub mod renew;
pub mod request;

pub use renew::Enrollment;
pub use request::RequestError;

/// Name of the signer in CertificateSigningRequests.
pub const SIGNER_NAME: &str = "fabric.dev/node";
/// The ConfigMap with the CA's certificate.
pub const CA_CONFIG_MAP: &str = "fabric-ca";
/// The key in it, and in the Secret with the CA's key: one certificate or more, PEM.
pub const CA_CERTIFICATE_ENTRY: &str = "ca.pem";
/// The ServiceAccount of the nodes' daemons.
pub const NODE_SERVICE_ACCOUNT: &str = "fabric-node";
/// What a node may ask to do with its certificate, and must.
pub const USAGES: [&str; 3] = ["digital signature", "client auth", "server auth"];

/// What the API server, or the way to it, said, in one line.
#[must_use]
pub fn api_reason(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        let reason = if status.reason.is_empty() {
            String::new()
        } else {
            format!(" {}", status.reason)
        };
        return format!("{}{reason}: {}", status.code, status.message);
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(deeper) = cause {
        let words = deeper.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = deeper.source();
    }
    text
}

/// Whether the API server said so with this code.
#[must_use]
pub fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
