//! The cluster's certificate authority, in memory.
//!
//! Comes in: names and lifetimes. Goes out: PEM texts. Never done here: files ([`super::files`]).

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use thiserror::Error;
use x509_parser::{certificate::X509Certificate, prelude::FromDer, time::ASN1Time};

use super::{
    spiffe::{SpiffeError, SpiffeId, TrustDomain},
    validity::{Rfc3339, Validity, unix_now},
};
use crate::node_id::NodeId;

/// Longest lifetime that may be asked for (days).
pub const DAYS_MAX: u32 = 36_500;
/// Lifetime of a CA unless asked otherwise (days).
pub const AUTHORITY_DAYS: u32 = 3650;
/// Lifetime of a node certificate unless asked otherwise (days).
pub const NODE_DAYS: u32 = 365;
/// A certificate is valid this long before it was made, for peers whose clock is behind (seconds).
const BACKDATE_SECONDS: i64 = 5 * 60;
/// Random bytes of a serial number; RFC 5280 section 4.1.2.2 allows 20.
const SERIAL_BYTES: usize = 16;

/// Why the authority cannot do what was asked.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// The name cannot be a trust domain.
    #[error("cannot name a CA: {0}")]
    Name(SpiffeError),
    /// A lifetime outside 1..=[`DAYS_MAX`].
    #[error("a lifetime of {0} days is not possible: choose 1 to {DAYS_MAX}")]
    Days(u32),
    /// The CA certificate cannot be used.
    #[error(
        "the CA certificate cannot be used: {0}; restore it, or make a new CA with `fabric pki init --force` and issue all nodes anew"
    )]
    Certificate(String),
    /// The CA key cannot be used.
    #[error(
        "the CA key cannot be used: {0}; restore the key that was made with this CA certificate"
    )]
    Key(String),
    /// The CA is past its end.
    #[error(
        "the CA certificate expired at {not_after} (it is {now}); make a new CA with `fabric pki init --force` and issue all nodes anew"
    )]
    Expired {
        /// Its last valid second.
        not_after: Rfc3339,
        /// The time of the check.
        now: Rfc3339,
    },
    /// Names that would collide with other files of a PKI directory.
    #[error(
        "a node cannot be named {0}: its files would be mistaken for those of the CA or for another node's key"
    )]
    ReservedName(NodeId),
    /// The random generator or the signer failed.
    #[error("the certificate could not be made: {0}")]
    Crypto(String),
}

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Crypto(error.to_string())
    }
}

/// A cluster CA with its private key.
pub struct Authority {
    trust_domain: TrustDomain,
    validity: Validity,
    certificate_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What one node needs to take part. The key is secret.
pub struct NodeCredentials {
    /// Whose they are.
    pub node: NodeId,
    /// The node's certificate, PEM.
    pub chain_pem: String,
    /// The node's private key, PKCS#8 PEM.
    pub key_pem: String,
    /// The CA's certificate, PEM.
    pub ca_pem: String,
    /// From when to when the certificate is valid.
    pub validity: Validity,
}

/// Makes a CA for the trust domain `name` that lives `days`.
///
/// # Errors
///
/// [`AuthorityError`].
pub fn init(name: &str, days: u32) -> Result<Authority, AuthorityError> {
    let trust_domain = TrustDomain::new(name).map_err(AuthorityError::Name)?;
    let validity = validity_from_now(seconds_of_days(days)?);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = base_params(&format!("{trust_domain} CA"), &trust_domain.uri(), validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Authority::from_pem(&certificate.pem(), &key.serialize_pem())
}

/// Signs a certificate for `node` that lives `days`, or until the CA ends where that is sooner.
///
/// # Errors
///
/// [`AuthorityError`].
pub fn issue(
    authority: &Authority,
    node: &NodeId,
    days: u32,
) -> Result<NodeCredentials, AuthorityError> {
    issue_for_seconds(authority, node, seconds_of_days(days)?)
}

/// As [`issue`], with a lifetime in seconds.
///
/// # Errors
///
/// [`AuthorityError`].
pub fn issue_for_seconds(
    authority: &Authority,
    node: &NodeId,
    seconds: i64,
) -> Result<NodeCredentials, AuthorityError> {
    if node.as_str() == "ca" || node.as_str().ends_with("-key") {
        return Err(AuthorityError::ReservedName(node.clone()));
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let (chain_pem, validity) = certify(authority, node, &key, seconds)?;
    Ok(NodeCredentials {
        node: node.clone(),
        chain_pem,
        key_pem: key.serialize_pem(),
        ca_pem: authority.certificate_pem.clone(),
        validity,
    })
}

/// Signs a certificate for `node` with somebody's public key, good for `seconds`, or until the CA ends
/// where that is sooner: PEM, and from when to when it is valid.
///
/// # Errors
///
/// [`AuthorityError`].
pub fn certify(
    authority: &Authority,
    node: &NodeId,
    key: &impl PublicKeyData,
    seconds: i64,
) -> Result<(String, Validity), AuthorityError> {
    let now = unix_now();
    if authority.validity.seconds_left(now) <= 0 {
        return Err(AuthorityError::Expired {
            not_after: Rfc3339(authority.validity.not_after),
            now: Rfc3339(now),
        });
    }
    let mut validity = validity_from_now(seconds);
    // Verifiers do not look at a trust anchor's own end, so it is enforced in what the CA signs.
    validity.not_after = validity.not_after.min(authority.validity.not_after);
    let id = SpiffeId {
        trust_domain: authority.trust_domain.clone(),
        node: node.clone(),
    };
    let mut params = base_params(node.as_str(), &id.to_string(), validity)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(key, &authority.issuer)?;
    Ok((certificate.pem(), validity))
}

impl Authority {
    /// Takes a CA from its PEM texts, and checks that they belong together.
    ///
    /// # Errors
    ///
    /// [`AuthorityError::Certificate`], [`AuthorityError::Key`].
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let unusable = |why: String| AuthorityError::Certificate(why);
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|e| unusable(format!("it is not a PEM certificate ({e})")))?;
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|e| unusable(e.to_string()))?;
        if !certificate.is_ca() {
            return Err(unusable("it is not a CA certificate".to_owned()));
        }
        let trust_domain =
            TrustDomain::of_authority(&certificate).map_err(|e| unusable(e.to_string()))?;
        let key = KeyPair::from_pem(key_pem)
            .map_err(|e| AuthorityError::Key(format!("it is not a PEM private key ({e})")))?;
        if key.public_key_raw() != certificate.public_key().subject_public_key.data.as_ref() {
            return Err(AuthorityError::Key(
                "it does not match the CA certificate".to_owned(),
            ));
        }
        Ok(Self {
            trust_domain,
            validity: Validity::of(&certificate),
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            issuer: Issuer::from_ca_cert_der(&der, key)?,
        })
    }

    /// The cluster it speaks for.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// From when to when it is valid.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its private key, PKCS#8 PEM. Secret.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }
}

fn seconds_of_days(days: u32) -> Result<i64, AuthorityError> {
    if !(1..=DAYS_MAX).contains(&days) {
        return Err(AuthorityError::Days(days));
    }
    Ok(i64::from(days).saturating_mul(Validity::DAY_SECONDS))
}

fn validity_from_now(seconds: i64) -> Validity {
    let now = unix_now();
    Validity {
        not_before: now.saturating_sub(BACKDATE_SECONDS),
        not_after: now.saturating_add(seconds),
    }
}

/// What both kinds of certificate share: subject, the one URI, lifetime, a random serial.
fn base_params(
    common_name: &str,
    uri: &str,
    validity: Validity,
) -> Result<CertificateParams, AuthorityError> {
    let time = |seconds| {
        ASN1Time::from_timestamp(seconds)
            .map(|time| time.to_datetime())
            .map_err(|_| AuthorityError::Crypto(format!("{seconds} s after 1970 is no date")))
    };
    let mut params = CertificateParams::default();
    params.not_before = time(validity.not_before)?;
    params.not_after = time(validity.not_after)?;
    params.serial_number = Some(random_serial()?);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    Ok(params)
}

fn random_serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0_u8; SERIAL_BYTES];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| AuthorityError::Crypto("the random generator failed".to_owned()))?;
    // A serial is positive and has no leading zero byte (RFC 5280 section 4.1.2.2).
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use x509_parser::extensions::ParsedExtension;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    /// A CA may sign certificates and revocation lists and nothing below it may be a CA.
    #[test]
    fn authority_profile() {
        let authority = init("prod.example", 10).unwrap();
        let der = der(authority.certificate_pem());
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        let constraints = certificate.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(0));
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical);
        assert_eq!(
            usage.value.flags,
            (1 << 5) | (1 << 6),
            "keyCertSign and cRLSign only"
        );
        assert_eq!(authority.trust_domain().as_str(), "prod.example");
        assert_eq!(
            authority.validity().not_after - authority.validity().not_before,
            10 * Validity::DAY_SECONDS + BACKDATE_SECONDS
        );
    }

    /// A node certificate carries one SPIFFE URI, both TLS roles, a random serial and no CA right.
    #[test]
    fn node_profile() {
        let authority = init("fabric", 10).unwrap();
        let first = issue(&authority, &node("worker-a"), 5).unwrap();
        let second = issue(&authority, &node("worker-a"), 5).unwrap();
        let (first_der, second_der) = (der(&first.chain_pem), der(&second.chain_pem));
        let id = SpiffeId::of_der(&first_der).unwrap();
        assert_eq!(id.to_string(), "spiffe://fabric/node/worker-a");
        let (_, certificate) = X509Certificate::from_der(&first_der).unwrap();
        let (_, other) = X509Certificate::from_der(&second_der).unwrap();
        assert_ne!(certificate.serial, other.serial);
        assert_eq!(certificate.raw_serial().len(), SERIAL_BYTES);
        assert!(!certificate.is_ca());
        let usage = certificate.key_usage().unwrap().unwrap();
        assert_eq!(usage.value.flags, 1, "digitalSignature only");
        let extended = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && extended.client_auth && !extended.any);
        assert!(
            certificate.verify_signature(None).is_err(),
            "signed by the CA, not by itself"
        );
        assert!(certificate.extensions().iter().any(|extension| matches!(
            extension.parsed_extension(),
            ParsedExtension::AuthorityKeyIdentifier(_)
        )));
        assert!(certificate.validity().not_before.timestamp() < unix_now() - 60);
    }

    /// A node certificate never outlives its CA.
    #[test]
    fn clamped_to_the_authority() {
        let authority = init("fabric", 2).unwrap();
        let credentials = issue(&authority, &node("a"), 365).unwrap();
        assert_eq!(
            credentials.validity.not_after,
            authority.validity().not_after
        );
    }

    /// Impossible lifetimes and names are refused with the reason.
    #[test]
    fn refusals() {
        assert!(matches!(init("fabric", 0), Err(AuthorityError::Days(0))));
        assert!(matches!(
            init("fabric", DAYS_MAX + 1),
            Err(AuthorityError::Days(_))
        ));
        assert!(matches!(
            init("Not A Domain", 1),
            Err(AuthorityError::Name(_))
        ));
        let authority = init("fabric", 1).unwrap();
        for name in ["ca", "ca-key", "worker-key"] {
            assert!(matches!(
                issue(&authority, &node(name), 1),
                Err(AuthorityError::ReservedName(_))
            ));
        }
    }

    /// A CA certificate with another CA's key is refused, as is a node's certificate in its place.
    #[test]
    fn mismatched_halves() {
        let (one, two) = (init("fabric", 1).unwrap(), init("fabric", 1).unwrap());
        let mixed = Authority::from_pem(one.certificate_pem(), two.key_pem());
        assert!(matches!(mixed, Err(AuthorityError::Key(_))));
        let leaf = issue(&one, &node("a"), 1).unwrap();
        let leaf = Authority::from_pem(&leaf.chain_pem, &leaf.key_pem);
        assert!(matches!(leaf, Err(AuthorityError::Certificate(_))));
        let text = Authority::from_pem("hello", one.key_pem());
        assert!(matches!(text, Err(AuthorityError::Certificate(_))));
    }
}
