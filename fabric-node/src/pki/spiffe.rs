//! The name inside a node certificate: exactly one URI SAN `spiffe://<trust domain>/node/<node>`.
//!
//! Comes in: a certificate whose chain was verified elsewhere. Goes out: the node it names, or why it
//! names none. SPIFFE X509-SVID section 2 asks for exactly one URI SAN; more are refused, so that two
//! readers cannot take two names from one certificate.

use std::fmt;

use rustls_pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use crate::node_id::NodeId;

const SCHEME: &str = "spiffe://";
const NODE_PATH: &str = "node/";
/// Longest trust domain (bytes; SPIFFE-ID section 2.3).
pub const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// Why a certificate does not name a node.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpiffeError {
    /// The DER is broken.
    #[error("the certificate cannot be parsed: {0}")]
    Malformed(String),
    /// There is no URI in the subject alternative names.
    #[error("the certificate has no SPIFFE URI among its subject alternative names")]
    NoUri,
    /// There is more than one URI.
    #[error(
        "the certificate has {0} URIs among its subject alternative names; exactly one is allowed"
    )]
    ManyUris(usize),
    /// The one URI has another form.
    #[error("the certificate's URI {0:?} is not of the form spiffe://<trust domain>/node/<node>")]
    Form(String),
    /// The trust domain cannot be one.
    #[error(
        "{0:?} is not a trust domain: use lower-case letters, digits, '.', '-' and '_', at most 255 bytes"
    )]
    TrustDomain(String),
    /// The node name cannot be one.
    #[error("the certificate's URI names no node: {0}")]
    Node(String),
}

/// Name of the cluster that a CA speaks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Checks and takes a name.
    ///
    /// # Errors
    ///
    /// [`SpiffeError::TrustDomain`].
    pub fn new(name: &str) -> Result<Self, SpiffeError> {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if name.is_empty() || name.len() > TRUST_DOMAIN_BYTES_MAX || !name.bytes().all(allowed) {
            return Err(SpiffeError::TrustDomain(name.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }

    /// The trust domain a CA certificate speaks for: its one URI SAN, `spiffe://<trust domain>`.
    ///
    /// # Errors
    ///
    /// [`SpiffeError`].
    pub fn of_authority(certificate: &X509Certificate<'_>) -> Result<Self, SpiffeError> {
        let uri = single_uri(certificate)?;
        let name = uri
            .strip_prefix(SCHEME)
            .ok_or_else(|| SpiffeError::Form(uri.to_owned()))?;
        Self::new(name)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URI of the authority itself.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("{SCHEME}{self}")
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A node of a cluster, as a certificate names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiffeId {
    /// The cluster.
    pub trust_domain: TrustDomain,
    /// The node.
    pub node: NodeId,
}

impl SpiffeId {
    /// The id in a certificate in DER.
    ///
    /// # Errors
    ///
    /// [`SpiffeError`].
    pub fn of_der(der: &CertificateDer<'_>) -> Result<Self, SpiffeError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|e| SpiffeError::Malformed(e.to_string()))?;
        Self::parse(single_uri(&certificate)?)
    }

    /// Takes `spiffe://<trust domain>/node/<node>` apart.
    ///
    /// # Errors
    ///
    /// [`SpiffeError`].
    pub fn parse(uri: &str) -> Result<Self, SpiffeError> {
        let form = || SpiffeError::Form(uri.to_owned());
        let (domain, path) = uri
            .strip_prefix(SCHEME)
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(form)?;
        let node = path.strip_prefix(NODE_PATH).ok_or_else(form)?;
        if node.contains('/') {
            return Err(form());
        }
        Ok(Self {
            trust_domain: TrustDomain::new(domain)?,
            node: NodeId::new(node).map_err(SpiffeError::Node)?,
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{NODE_PATH}{}", self.trust_domain, self.node)
    }
}

fn single_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, SpiffeError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|e| SpiffeError::Malformed(format!("subject alternative names: {e}")))?
        .ok_or(SpiffeError::NoUri)?;
    let mut uris = names.value.general_names.iter().filter_map(|name| {
        if let GeneralName::URI(uri) = name {
            Some(*uri)
        } else {
            None
        }
    });
    let first = uris.next().ok_or(SpiffeError::NoUri)?;
    match uris.count() {
        0 => Ok(first),
        more => Err(SpiffeError::ManyUris(more.saturating_add(1))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// A well-formed id survives printing and parsing.
    #[test]
    fn round_trip() {
        let id = SpiffeId::parse("spiffe://prod.example/node/worker-a.rack1").unwrap();
        assert_eq!(id.trust_domain.as_str(), "prod.example");
        assert_eq!(id.node.as_str(), "worker-a.rack1");
        assert_eq!(SpiffeId::parse(&id.to_string()).unwrap(), id);
    }

    /// Anything but the one form is refused.
    #[test]
    fn refused_forms() {
        for uri in [
            "",
            "spiffe://",
            "spiffe:///node/a",
            "spiffe://d",
            "spiffe://d/",
            "spiffe://d/node",
            "spiffe://d/node/",
            "spiffe://d/node/a/b",
            "spiffe://d/pod/a",
            "spiffe://d/node/A",
            "spiffe://D/node/a",
            "SPIFFE://d/node/a",
            "spiffe://d:443/node/a",
            "spiffe://user@d/node/a",
            "spiffe://d/node/a?x=1",
            "spiffe://d/node/a#x",
            "spiffe://d//node/a",
            "spiffe://d/node/%61",
            "https://d/node/a",
        ] {
            assert!(SpiffeId::parse(uri).is_err(), "{uri:?} was accepted");
        }
    }

    proptest! {
        /// No text makes the parser panic, and what it accepts prints as the same text.
        #[test]
        fn accepted_is_canonical(uri in "(spiffe://)?[a-z0-9./_-]{0,20}(/node/)?[a-zA-Z0-9./%-]{0,20}") {
            if let Ok(id) = SpiffeId::parse(&uri) {
                prop_assert_eq!(id.to_string(), uri);
            }
        }
    }
}
