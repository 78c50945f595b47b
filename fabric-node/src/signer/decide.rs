//! Whether a node gets a certificate: the whole decision, as a pure function.
//!
//! Comes in: a CertificateSigningRequest's spec, as the API server filled it in, and what is known of the
//! node. Goes out: [`Decision`]. Never done here: asking the API server, signing, the time.
//!
//! Who asks is proven by the API server: `username` and `extra` are its own words about the token that the
//! request came with, and `authentication.kubernetes.io/node-name` is the node that the token's pod is bound
//! to. What is asked for is the requester's word. So the decision is: the two agree, and nothing else is
//! asked for. Everything that is not named here is denied; the certificate is made from the name and the key
//! alone, never from other parts of the request.

use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequestSpec};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_X509_COMMON_NAME, Oid,
    },
    prelude::FromDer,
    x509::{SubjectPublicKeyInfo, X509Name},
};

use crate::{
    node_id::NodeId,
    pki::{
        kubernetes::{NODE_SERVICE_ACCOUNT, SIGNER_NAME, USAGES},
        spiffe::{SpiffeId, TrustDomain},
    },
};

/// What the API server says of the node that a requester's token is bound to.
pub const NODE_NAME_EXTRA: &str = "authentication.kubernetes.io/node-name";
/// Largest request that is looked into (bytes of PEM); ours have 600.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Longest text of a requester in a reason (characters).
const QUOTED_CHARS_MAX: usize = 200;

/// Whom this signer signs for.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Namespace of the daemons' ServiceAccount.
    pub namespace: String,
    /// Name of the cluster in certificates.
    pub trust_domain: TrustDomain,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A certificate for this node and this key.
    Approve {
        /// Whose.
        node: NodeId,
        /// SubjectPublicKeyInfo, DER.
        key: Vec<u8>,
    },
    /// None.
    Deny(Denial),
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// For machines: one PascalCase word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Denial {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// The node that a request is made from, as the API server knows it: which Node must exist for it.
///
/// # Errors
///
/// The requester is not a node's daemon, or nobody knows on which node it runs.
pub fn requester(spec: &CertificateSigningRequestSpec, policy: &Policy) -> Result<NodeId, Denial> {
    if spec.signer_name != SIGNER_NAME {
        let message = format!("this signer signs for {SIGNER_NAME} only");
        return Err(Denial::new("OtherSigner", message));
    }
    let expected = format!(
        "system:serviceaccount:{}:{NODE_SERVICE_ACCOUNT}",
        policy.namespace
    );
    let username = spec.username.as_deref().unwrap_or_default();
    if username != expected {
        let message = format!(
            "the requester is {}, and only {expected} gets node certificates",
            quoted(username)
        );
        return Err(Denial::new("OtherRequester", message));
    }
    let names = spec
        .extra
        .as_ref()
        .and_then(|extra| extra.get(NODE_NAME_EXTRA));
    match names.map(Vec::as_slice) {
        Some([name]) => NodeId::new(name).map_err(|problem| {
            Denial::new("NoNodeName", format!("the requester's token: {problem}"))
        }),
        None | Some([]) => Err(Denial::new(
            "NoNodeName",
            format!(
                "the requester's token names no node ({NODE_NAME_EXTRA}): use the token that is projected into the pod, of Kubernetes 1.32 or later"
            ),
        )),
        Some(names) => Err(Denial::new(
            "ManyNodeNames",
            format!("the requester's token names {} nodes", names.len()),
        )),
    }
}

/// Decides on a request. `node_exists` is about the Node that [`requester`] names.
#[must_use]
pub fn decide(
    spec: &CertificateSigningRequestSpec,
    node_exists: bool,
    policy: &Policy,
) -> Decision {
    match judge(spec, node_exists, policy) {
        Ok((node, key)) => Decision::Approve { node, key },
        Err(denial) => Decision::Deny(denial),
    }
}

fn judge(
    spec: &CertificateSigningRequestSpec,
    node_exists: bool,
    policy: &Policy,
) -> Result<(NodeId, Vec<u8>), Denial> {
    let node = requester(spec, policy)?;
    check_usages(spec.usages.as_deref().unwrap_or_default())?;
    let der = der_of(&spec.request)?;
    let malformed =
        |problem: &str| Denial::new("MalformedRequest", format!("spec.request: {problem}"));
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|error| malformed(&error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed("there is something behind the request"));
    }
    let info = &request.certification_request_info;
    check_key(&info.subject_pki)?;
    request.verify_signature().map_err(|_| {
        Denial::new(
            "BadSignature",
            "spec.request is not signed with the key that it is for: whoever made it does not have that key",
        )
    })?;
    let uri = only_uri(&request)?;
    let asked = SpiffeId::parse(&uri)
        .map_err(|problem| Denial::new("NotANodeName", format!("spec.request: {problem}")))?;
    if asked.trust_domain != policy.trust_domain {
        let message = format!(
            "{} is asked for, and this signer signs for the trust domain {}: make identity.trust_domain of the node and --trust-domain of the signer the same",
            asked, policy.trust_domain
        );
        return Err(Denial::new("OtherTrustDomain", message));
    }
    if asked.node != node {
        let message = format!(
            "a certificate for node {} is asked for, by a pod that runs on node {node}",
            asked.node
        );
        return Err(Denial::new("NameOfAnotherNode", message));
    }
    check_subject(&info.subject, &node)?;
    if !node_exists {
        let message = format!("there is no Node {node}");
        return Err(Denial::new("NoSuchNode", message));
    }
    Ok((node, info.subject_pki.raw.to_vec()))
}

/// Exactly the usages of a node's certificate, each once.
fn check_usages(usages: &[String]) -> Result<(), Denial> {
    let mut asked: Vec<&str> = usages.iter().map(String::as_str).collect();
    let mut wanted = USAGES.to_vec();
    asked.sort_unstable();
    wanted.sort_unstable();
    if asked == wanted {
        return Ok(());
    }
    let message = format!(
        "the usages {} are asked for, and node certificates have exactly {}",
        quoted(&asked.join(", ")),
        USAGES.join(", ")
    );
    Err(Denial::new("OtherUsages", message))
}

/// The one PEM block.
fn der_of(request: &ByteString) -> Result<CertificateSigningRequestDer<'static>, Denial> {
    let malformed =
        |problem: String| Denial::new("MalformedRequest", format!("spec.request {problem}"));
    let ByteString(pem) = request;
    if pem.len() > REQUEST_BYTES_MAX {
        return Err(malformed(format!(
            "has {} bytes, more than {REQUEST_BYTES_MAX}",
            pem.len()
        )));
    }
    let blocks: Vec<_> = CertificateSigningRequestDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| malformed(format!("is not PEM ({error})")))?;
    match <[_; 1]>::try_from(blocks) {
        Ok([der]) => Ok(der),
        Err(blocks) => Err(malformed(format!(
            "has {} blocks CERTIFICATE REQUEST instead of one",
            blocks.len()
        ))),
    }
}

/// ECDSA on P-256 or P-384: what every verifier of ours takes, and nothing that is slow to verify.
fn check_key(key: &SubjectPublicKeyInfo<'_>) -> Result<(), Denial> {
    let curve = key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok());
    let is_ec = key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY;
    if is_ec && curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384) {
        return Ok(());
    }
    let message = format!(
        "the key is of type {}, and node certificates are for ECDSA keys on P-256 or P-384",
        key.algorithm.algorithm
    );
    Err(Denial::new("KeyType", message))
}

/// No subject, or the node's name as its one common name.
fn check_subject(subject: &X509Name<'_>, node: &NodeId) -> Result<(), Denial> {
    let mut attributes = subject.iter_attributes();
    let is_right = match (attributes.next(), attributes.next()) {
        (None, _) => true,
        (Some(only), None) => {
            *only.attr_type() == OID_X509_COMMON_NAME
                && only.as_str().is_ok_and(|name| name == node.as_str())
        }
        (Some(_), Some(_)) => false,
    };
    if is_right {
        return Ok(());
    }
    let message = format!(
        "the subject {} is asked for, by a pod that runs on node {node}: only CN={node} is possible",
        quoted(&subject.to_string())
    );
    Err(Denial::new("OtherSubject", message))
}

/// The one URI that is asked for; anything else that is asked for is denied.
fn only_uri(request: &X509CertificationRequest<'_>) -> Result<String, Denial> {
    let other = |what: String| {
        Denial::new(
            "AsksForMore",
            format!("spec.request asks for {what}, which no node gets"),
        )
    };
    let mut uris = Vec::new();
    let mut seen: Vec<Oid<'_>> = Vec::new();
    let attributes = request.certification_request_info.attributes();
    if attributes.len() > 1 {
        return Err(other(format!("{} attributes", attributes.len())));
    }
    for attribute in attributes {
        let ParsedCriAttribute::ExtensionRequest(extensions) = attribute.parsed_attribute() else {
            return Err(other(format!("the attribute {}", attribute.oid)));
        };
        for extension in &extensions.extensions {
            if seen.contains(&extension.oid) {
                return Err(other(format!("the extension {} twice", extension.oid)));
            }
            seen.push(extension.oid.clone());
            check_extension(extension.parsed_extension(), &mut uris).map_err(|what| {
                other(what.unwrap_or_else(|| format!("the extension {}", extension.oid)))
            })?;
        }
    }
    match <[_; 1]>::try_from(uris) {
        Ok([uri]) => Ok(uri),
        Err(uris) => Err(Denial::new(
            "NotANodeName",
            format!(
                "spec.request has {} URIs among its subject alternative names; exactly one, spiffe://TRUST-DOMAIN/node/NODE, is needed",
                uris.len()
            ),
        )),
    }
}

/// Whether an extension asks for nothing but a node's name and usages; what it asks for otherwise, if that
/// has a name.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "whatever is not known is not given"
)]
fn check_extension(
    extension: &ParsedExtension<'_>,
    uris: &mut Vec<String>,
) -> Result<(), Option<String>> {
    match extension {
        ParsedExtension::SubjectAlternativeName(names) => {
            for name in &names.general_names {
                match name {
                    GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                    GeneralName::DNSName(name) => {
                        return Err(Some(format!("the DNS name {}", quoted(name))));
                    }
                    GeneralName::IPAddress(bytes) => {
                        return Err(Some(format!("an IP address ({bytes:02x?})")));
                    }
                    GeneralName::RFC822Name(name) => {
                        return Err(Some(format!("the mail address {}", quoted(name))));
                    }
                    GeneralName::OtherName(..)
                    | GeneralName::X400Address(_)
                    | GeneralName::DirectoryName(_)
                    | GeneralName::EDIPartyName(_)
                    | GeneralName::RegisteredID(_)
                    | GeneralName::Invalid(..) => {
                        return Err(Some("a name of another kind".to_owned()));
                    }
                }
            }
            Ok(())
        }
        ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
            Err(Some("the right to sign certificates (CA)".to_owned()))
        }
        ParsedExtension::BasicConstraints(_) => Ok(()),
        ParsedExtension::KeyUsage(usage) if usage.flags == DIGITAL_SIGNATURE => Ok(()),
        ParsedExtension::KeyUsage(usage) => Err(Some(format!(
            "the key usage {}",
            quoted(&usage.to_string())
        ))),
        ParsedExtension::ExtendedKeyUsage(usage) => {
            let more = usage.any
                || usage.code_signing
                || usage.email_protection
                || usage.time_stamping
                || usage.ocsp_signing
                || !usage.other.is_empty();
            if more {
                Err(Some(
                    "an extended key usage other than client and server".to_owned(),
                ))
            } else {
                Ok(())
            }
        }
        _ => Err(None),
    }
}

/// The one flag of a node's key usage: bit 0, as the parser numbers them (RFC 5280 section 4.2.1.3).
const DIGITAL_SIGNATURE: u16 = 1;

/// A text of the requester's, bounded and without characters that a terminal would take for its own.
fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    format!("{cut:?}")
}

#[cfg(test)]
mod tests;
