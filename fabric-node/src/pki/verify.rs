//! Is this peer one of ours, and which one?
//!
//! Comes in: the certificates a peer showed in its handshake. Goes out: accepted, or refused with a
//! sentence that names who the peer claimed to be. Both sides decide inside the handshake, so that no
//! byte of a refused peer is ever read. Never done here: revocation; a node that left the cluster is
//! refused by the tunnel because its id is unknown there.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use thiserror::Error;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{
    spiffe::{SpiffeError, SpiffeId, TrustDomain},
    validity::{Rfc3339, Validity},
};
use crate::node_id::NodeId;

/// Longest name of a refused peer in a message (characters): the peer wrote it.
const CLAIM_CHARS_MAX: usize = 300;

/// Why a peer is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeerError {
    /// It showed none.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The chain does not lead to the cluster's CA, or is not valid at this time or for this use.
    #[error("the peer that calls itself {claim} is refused: {reason}")]
    Chain {
        /// What the certificate says, not verified.
        claim: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate is of the cluster's CA but names no node.
    #[error("the peer with the subject {subject} is refused: {source}")]
    Name {
        /// Subject of the certificate.
        subject: String,
        /// What is wrong with the name.
        source: SpiffeError,
    },
    /// The certificate is of the cluster's CA but of another trust domain.
    #[error("the peer {found} is refused: its trust domain is not {expected}")]
    TrustDomain {
        /// Ours.
        expected: TrustDomain,
        /// The peer's id.
        found: SpiffeId,
    },
    /// Another node answered than the one that was dialled.
    #[error(
        "the peer is node {found}, but node {expected} was expected at this address: check the underlay addresses of both"
    )]
    WrongNode {
        /// The node dialled.
        expected: NodeId,
        /// The node that answered.
        found: NodeId,
    },
}

/// The node a verified chain names, which must be of `trust_domain`.
///
/// # Errors
///
/// [`PeerError`].
pub fn node_of(
    trust_domain: &TrustDomain,
    certificates: &[CertificateDer<'_>],
) -> Result<NodeId, PeerError> {
    let end_entity = certificates.first().ok_or(PeerError::NoCertificate)?;
    let found = SpiffeId::of_der(end_entity).map_err(|source| PeerError::Name {
        subject: subject_of(end_entity),
        source,
    })?;
    if found.trust_domain != *trust_domain {
        return Err(PeerError::TrustDomain {
            expected: trust_domain.clone(),
            found,
        });
    }
    Ok(found.node)
}

/// Says in words why a chain was not accepted.
pub(super) fn chain_reason(
    error: &rustls::Error,
    end_entity: &CertificateDer<'_>,
    now: UnixTime,
) -> String {
    let now = Rfc3339(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    let validity = X509Certificate::from_der(end_entity)
        .ok()
        .map(|(_, c)| Validity::of(&c));
    let rustls::Error::InvalidCertificate(error) = error else {
        return error.to_string();
    };
    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "the enum of another crate keeps growing"
    )]
    match (error, validity) {
        (CertificateError::Expired | CertificateError::ExpiredContext { .. }, Some(validity)) => {
            format!(
                "its certificate expired at {}; it is {now} here",
                Rfc3339(validity.not_after)
            )
        }
        (
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            Some(validity),
        ) => format!(
            "its certificate is not valid before {}; it is {now} here: compare the clocks",
            Rfc3339(validity.not_before)
        ),
        (CertificateError::UnknownIssuer, _) => {
            "its certificate is not signed by this cluster's CA".to_owned()
        }
        (CertificateError::BadSignature, _) => {
            "its certificate's signature is not the one of this cluster's CA".to_owned()
        }
        (other, _) => format!("its certificate is not usable here: {other}"),
    }
}

/// Verifies that the server is exactly one node.
#[derive(Debug)]
pub(super) struct ExactNode {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) trust_domain: TrustDomain,
    pub(super) expected: NodeId,
}

impl ServerCertVerifier for ExactNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        ParsedCertificate::try_from(end_entity)
            .and_then(|parsed| {
                verify_server_cert_signed_by_trust_anchor(
                    &parsed,
                    &self.roots,
                    intermediates,
                    now,
                    self.provider.signature_verification_algorithms.all,
                )
            })
            .map_err(|error| refuse_chain(&error, end_entity, now))?;
        let found =
            node_of(&self.trust_domain, std::slice::from_ref(end_entity)).map_err(refuse)?;
        if found != self.expected {
            return Err(refuse(PeerError::WrongNode {
                expected: self.expected.clone(),
                found,
            }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Verifies that the client is any node of the cluster; which one is asked after the handshake.
#[derive(Debug)]
pub(super) struct AnyNode {
    pub(super) chain: Arc<dyn ClientCertVerifier>,
    pub(super) trust_domain: TrustDomain,
}

impl ClientCertVerifier for AnyNode {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)
            .map_err(|error| refuse_chain(&error, end_entity, now))?;
        node_of(&self.trust_domain, std::slice::from_ref(end_entity)).map_err(refuse)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The one kind of TLS error that is printed as the sentence it carries. The price is that the peer
/// gets the alert `handshake_failure` for every reason; QUIC's close frame tells it the sentence.
fn refuse(error: PeerError) -> rustls::Error {
    rustls::Error::Other(OtherError(Arc::new(error)))
}

fn refuse_chain(
    error: &rustls::Error,
    end_entity: &CertificateDer<'_>,
    now: UnixTime,
) -> rustls::Error {
    let claim =
        SpiffeId::of_der(end_entity).map_or_else(|_| subject_of(end_entity), |id| id.to_string());
    let reason = chain_reason(error, end_entity, now);
    refuse(PeerError::Chain {
        claim: shorten(&claim),
        reason,
    })
}

/// The subject, quoted: its text comes from the peer.
fn subject_of(certificate: &CertificateDer<'_>) -> String {
    X509Certificate::from_der(certificate).map_or_else(
        |_| "<not a certificate>".to_owned(),
        |(_, certificate)| shorten(&format!("{:?}", certificate.subject().to_string())),
    )
}

fn shorten(text: &str) -> String {
    text.chars().take(CLAIM_CHARS_MAX).collect()
}
