//! This node's identity: loaded from its three files, turned into the TLS of the tunnel.
//!
//! Comes in: paths. Goes out: a [`NodeIdentity`] that was verified against its own CA, so that a node
//! that could not be accepted by any peer says so at its start. TLS 1.3 only, both sides show a
//! certificate, no resumption and no early data: a resumed session would keep an expired or removed
//! peer alive, since the stored chain is not verified again.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, danger::ServerCertVerifier as _},
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use thiserror::Error;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{
    files::read_limited,
    key::KeyHash,
    spiffe::{SpiffeError, SpiffeId, TrustDomain},
    validity::{Rfc3339, Validity, unix_now},
    verify::{AnyNode, ExactNode, PeerError, chain_reason, node_of},
};
use crate::node_id::NodeId;

/// Application protocol of a connection between two nodes (RFC 7301).
pub const ALPN: &[u8] = b"fabric/1";
/// Server name to dial with. It is not sent and not verified: the node id is.
pub const SERVER_NAME: &str = "fabric";
/// Bits of a key file's mode that let others than its owner in.
const KEY_MODE_TOO_OPEN: u32 = 0o077;

/// Why this node has no usable identity, or a peer none that is accepted.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file is not there.
    #[error(
        "the {what} {path} does not exist: make it with `fabric pki issue NODE`, or correct its path in the configuration"
    )]
    Missing {
        /// Which of the three.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read the {what} {path}: {source}")]
    Unreadable {
        /// Which of the three.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else.
    #[error(
        "the {what} {path} is not usable: {reason}; replace it by the PEM file that `fabric pki issue` wrote"
    )]
    Content {
        /// Which of the three.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Key and certificate are not a pair.
    #[error(
        "the key {key} does not match the certificate {certificate}: both must come from the same `fabric pki issue`"
    )]
    KeyMismatch {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        certificate: PathBuf,
    },
    /// The CA would refuse this certificate.
    #[error(
        "the certificate {certificate} is not accepted by the CA {ca}: {reason}; issue the node anew with this CA"
    )]
    NotAccepted {
        /// The certificate file.
        certificate: PathBuf,
        /// The CA file.
        ca: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It is too late for this certificate.
    #[error(
        "the certificate {certificate} expired at {not_after}; it is {now}: issue the node anew with `fabric pki issue NODE --force`, or correct the clock"
    )]
    Expired {
        /// The certificate file.
        certificate: PathBuf,
        /// Its last valid second.
        not_after: Rfc3339,
        /// The time of the check.
        now: Rfc3339,
    },
    /// It is too early for this certificate.
    #[error(
        "the certificate {certificate} is not valid before {not_before}; it is {now}: correct the clock"
    )]
    NotYetValid {
        /// The certificate file.
        certificate: PathBuf,
        /// Its first valid second.
        not_before: Rfc3339,
        /// The time of the check.
        now: Rfc3339,
    },
    /// The certificate does not say which node this is.
    #[error("{certificate}: {source}; issue it with `fabric pki issue NODE`")]
    Name {
        /// The certificate file.
        certificate: PathBuf,
        /// What is wrong with the name.
        source: SpiffeError,
    },
    /// A peer is refused.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The TLS library refused its settings.
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
}

/// A node's verified identity. Cheap to share behind an `Arc`; a rotation loads a new one.
#[derive(Debug)]
pub struct NodeIdentity {
    id: SpiffeId,
    key: KeyHash,
    validity: Validity,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    as_client: Arc<AnyNode>,
    client_template: ClientConfig,
    server: Arc<ServerConfig>,
    warnings: Vec<String>,
}

impl NodeIdentity {
    /// Loads the CA certificates `ca` (one or more, so that a CA can be rotated), this node's chain
    /// `certificate` and its private `key`, and verifies that peers with the same CA accept them at
    /// this time. A key that others may read is a warning, logged and kept in [`Self::warnings`].
    ///
    /// # Errors
    ///
    /// [`IdentityError`], naming the file and the cure.
    pub fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let provider = Arc::new(crypto_provider());
        let roots = Arc::new(load_roots(ca)?);
        let chain = load_certificates("certificate", certificate)?;
        let private = load_key(key)?;
        let (id, key_hash, validity) = inspect(certificate, &chain)?;

        let signing = provider
            .key_provider
            .load_private_key(private)
            .map_err(|e| IdentityError::Content {
                what: "key",
                path: key.to_owned(),
                reason: e.to_string(),
            })?;
        let certified = CertifiedKey::new(chain, signing);
        certified
            .keys_match()
            .map_err(|_| IdentityError::KeyMismatch {
                key: key.to_owned(),
                certificate: certificate.to_owned(),
            })?;

        let chain_verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|e| IdentityError::Content {
                    what: "CA certificate",
                    path: ca.to_owned(),
                    reason: e.to_string(),
                })?;
        let as_server = Arc::new(ExactNode {
            roots: Arc::clone(&roots),
            provider: Arc::clone(&provider),
            trust_domain: id.trust_domain.clone(),
            expected: id.node.clone(),
        });
        let accepted = accepted_by_own_rules(&certified.cert, &as_server, &*chain_verifier);
        accepted.map_err(|reason| IdentityError::NotAccepted {
            certificate: certificate.to_owned(),
            ca: ca.to_owned(),
            reason,
        })?;

        let as_client = Arc::new(AnyNode {
            chain: chain_verifier,
            trust_domain: id.trust_domain.clone(),
        });
        let resolver = Arc::new(SingleCertAndKey::from(certified));
        let client_template = client_config(&provider, as_server, Arc::clone(&resolver))?;
        let server = Arc::new(server_config(&provider, Arc::clone(&as_client), resolver)?);
        let warnings = key_warnings(key);
        for warning in &warnings {
            tracing::warn!(node = %id.node, "{warning}");
        }
        Ok(Self {
            id,
            key: key_hash,
            validity,
            roots,
            provider,
            as_client,
            client_template,
            server,
            warnings,
        })
    }

    /// This node's name, as its certificate says.
    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        &self.id.node
    }

    /// The cluster this node belongs to.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.id.trust_domain
    }

    /// The public key in its certificate.
    #[must_use]
    pub fn key(&self) -> KeyHash {
        self.key
    }

    /// From when to when the certificate is valid. No connection is used beyond it.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// What is not right but no reason to refuse, in sentences.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// TLS for dialling the node `expected`: any other peer is refused in the handshake with a
    /// sentence that names both. Dial with [`SERVER_NAME`].
    #[must_use]
    pub fn client_config(&self, expected: NodeId) -> Arc<ClientConfig> {
        let mut config = self.client_template.clone();
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(ExactNode {
                roots: Arc::clone(&self.roots),
                provider: Arc::clone(&self.provider),
                trust_domain: self.id.trust_domain.clone(),
                expected,
            }));
        Arc::new(config)
    }

    /// TLS for accepting any node of the cluster; ask [`Self::peer_node_id`] which one it is.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// The node that the certificates of a finished handshake name.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Peer`].
    pub fn peer_node_id(
        &self,
        certificates: &[CertificateDer<'_>],
    ) -> Result<NodeId, IdentityError> {
        Ok(node_of(&self.id.trust_domain, certificates)?)
    }

    /// Whether `other` trusts exactly the same CA certificates.
    #[must_use]
    pub fn trusts_the_same(&self, other: &Self) -> bool {
        self.roots.roots == other.roots.roots
    }

    /// Verifies the chain of a finished handshake again, by this identity's CA certificates and at this
    /// time.
    ///
    /// # Errors
    ///
    /// Why the peer would not be accepted any more.
    pub fn verify_again(&self, certificates: &[CertificateDer<'_>]) -> Result<(), String> {
        let (end_entity, intermediates) = certificates
            .split_first()
            .ok_or_else(|| PeerError::NoCertificate.to_string())?;
        self.as_client
            .verify_client_cert(end_entity, intermediates, UnixTime::now())
            .map(drop)
            .map_err(|error| error.to_string())
    }
}

/// aws-lc-rs with AES-128-GCM first (the cheapest per byte where AES is in hardware, and what QUIC's
/// initial packets need) and the post-quantum hybrid key exchange first.
#[must_use]
pub fn crypto_provider() -> CryptoProvider {
    use aws_lc_rs::{cipher_suite, kx_group};
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<ExactNode>,
    resolver: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(IdentityError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // The underlay has no business knowing which node is dialled.
    config.enable_sni = false;
    Ok(config)
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<AnyNode>,
    resolver: Arc<SingleCertAndKey>,
) -> Result<ServerConfig, IdentityError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(IdentityError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, IdentityError> {
    read_limited(path).map_err(|source| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::NotFound {
            IdentityError::Missing { what, path }
        } else {
            IdentityError::Unreadable { what, path, source }
        }
    })
}

fn load_certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let unusable = |reason: String| IdentityError::Content {
        what,
        path: path.to_owned(),
        reason,
    };
    let content = read(what, path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&content)
        .collect::<Result<_, _>>()
        .map_err(|e| unusable(format!("it is not PEM ({e})")))?;
    if certificates.is_empty() {
        return Err(unusable("there is no PEM certificate in it".to_owned()));
    }
    Ok(certificates)
}

fn load_roots(path: &Path) -> Result<RootCertStore, IdentityError> {
    let what = "CA certificate";
    let mut roots = RootCertStore::empty();
    for certificate in load_certificates(what, path)? {
        roots.add(certificate).map_err(|e| IdentityError::Content {
            what,
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
    }
    Ok(roots)
}

fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let content = read("key", path)?;
    PrivateKeyDer::from_pem_slice(&content).map_err(|e| IdentityError::Content {
        what: "key",
        path: path.to_owned(),
        reason: format!("there is no PEM private key in it ({e})"),
    })
}

/// Who the certificate is for and when; refuses it outside its time, with both times.
fn inspect(
    path: &Path,
    chain: &[CertificateDer<'static>],
) -> Result<(SpiffeId, KeyHash, Validity), IdentityError> {
    let named = |source| IdentityError::Name {
        certificate: path.to_owned(),
        source,
    };
    let end_entity = chain.first().ok_or(PeerError::NoCertificate)?;
    let (_, certificate) = X509Certificate::from_der(end_entity)
        .map_err(|e| named(SpiffeError::Malformed(e.to_string())))?;
    let key = KeyHash::of_spki(certificate.public_key().raw);
    let validity = Validity::of(&certificate);
    let now = unix_now();
    if now > validity.not_after {
        return Err(IdentityError::Expired {
            certificate: path.to_owned(),
            not_after: Rfc3339(validity.not_after),
            now: Rfc3339(now),
        });
    }
    if now < validity.not_before {
        return Err(IdentityError::NotYetValid {
            certificate: path.to_owned(),
            not_before: Rfc3339(validity.not_before),
            now: Rfc3339(now),
        });
    }
    Ok((SpiffeId::of_der(end_entity).map_err(named)?, key, validity))
}

/// Applies to this node what it applies to its peers, in both roles.
fn accepted_by_own_rules(
    chain: &[CertificateDer<'static>],
    as_server: &ExactNode,
    as_client: &dyn ClientCertVerifier,
) -> Result<(), String> {
    let Some((end_entity, intermediates)) = chain.split_first() else {
        return Err("it is empty".to_owned());
    };
    let now = UnixTime::now();
    let name = ServerName::try_from(SERVER_NAME).map_err(|e| e.to_string())?;
    as_client
        .verify_client_cert(end_entity, intermediates, now)
        .map_err(|e| chain_reason(&e, end_entity, now))?;
    as_server
        .verify_server_cert(end_entity, intermediates, &name, &[], now)
        .map_err(|e| chain_reason(&e, end_entity, now))?;
    Ok(())
}

fn key_warnings(key: &Path) -> Vec<String> {
    let mode = std::fs::metadata(key).map_or(0, |metadata| metadata.permissions().mode());
    if mode & KEY_MODE_TOO_OPEN == 0 {
        return Vec::new();
    }
    let path = key.display();
    vec![format!(
        "the key {path} is open to other users (mode {:04o}): run `chmod 600 {path}`",
        mode & 0o7777
    )]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::{self, Permissions};

    use super::*;
    use crate::pki::files::{self, NodeFiles, Overwrite};

    struct Home {
        dir: tempfile::TempDir,
        files: NodeFiles,
    }

    fn home() -> Home {
        let dir = tempfile::tempdir().unwrap();
        files::init_dir(dir.path(), "fabric", 10, Overwrite::No).unwrap();
        let node = NodeId::new("worker-a").unwrap();
        let (files, _) = files::issue_dir(dir.path(), &node, dir.path(), 5, Overwrite::No).unwrap();
        Home { dir, files }
    }

    fn load(files: &NodeFiles) -> Result<NodeIdentity, IdentityError> {
        NodeIdentity::load(&files.ca, &files.certificate, &files.key)
    }

    /// Files as issued load without a warning and give the node's name.
    #[test]
    fn loads_what_was_issued() {
        let identity = load(&home().files).unwrap();
        assert_eq!(identity.node_id().as_str(), "worker-a");
        assert_eq!(identity.trust_domain().as_str(), "fabric");
        assert!(identity.warnings().is_empty());
    }

    /// quinn-proto takes both configurations for QUIC.
    #[test]
    fn quic_accepts_the_configurations() {
        let identity = load(&home().files).unwrap();
        let expected = NodeId::new("worker-b").unwrap();
        quinn_proto::crypto::rustls::QuicClientConfig::try_from(identity.client_config(expected))
            .unwrap();
        quinn_proto::crypto::rustls::QuicServerConfig::try_from(identity.server_config()).unwrap();
    }

    /// A key that others can read is a warning with the command that mends it, not a refusal.
    #[test]
    fn open_key_is_a_warning() {
        let home = home();
        fs::set_permissions(&home.files.key, Permissions::from_mode(0o644)).unwrap();
        let identity = load(&home.files).unwrap();
        let [warning] = identity.warnings() else {
            panic!("{:?}", identity.warnings())
        };
        assert!(
            warning.contains("0644") && warning.contains("chmod 600"),
            "{warning}"
        );
    }

    /// Each missing file is named together with what it is.
    #[test]
    fn missing_files() {
        for (index, what) in ["CA certificate", "certificate", "key"]
            .into_iter()
            .enumerate()
        {
            let home = home();
            let path = [&home.files.ca, &home.files.certificate, &home.files.key][index];
            fs::remove_file(path).unwrap();
            let text = load(&home.files).unwrap_err().to_string();
            assert!(text.starts_with(&format!("the {what} ")), "{text}");
            assert!(text.contains(&path.display().to_string()), "{text}");
            assert!(text.contains("fabric pki issue"), "{text}");
        }
    }

    /// Files that hold something else are refused with their name.
    #[test]
    fn wrong_content() {
        for content in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            for index in 0..3 {
                let home = home();
                let path = [&home.files.ca, &home.files.certificate, &home.files.key][index];
                fs::write(path, content).unwrap();
                let text = load(&home.files).unwrap_err().to_string();
                assert!(text.contains(&path.display().to_string()), "{text}");
            }
        }
    }

    /// Another node's key is refused with both file names.
    #[test]
    fn key_of_another_node() {
        let home = home();
        let other = NodeId::new("worker-b").unwrap();
        let (other, _) =
            files::issue_dir(home.dir.path(), &other, home.dir.path(), 5, Overwrite::No).unwrap();
        let error = NodeIdentity::load(&home.files.ca, &home.files.certificate, &other.key);
        assert!(matches!(error, Err(IdentityError::KeyMismatch { .. })));
    }

    /// A certificate of another CA is refused, and accepted once both CAs are in the bundle.
    #[test]
    fn other_authority_and_bundle() {
        let (one, two) = (home(), home());
        let error = NodeIdentity::load(&two.files.ca, &one.files.certificate, &one.files.key);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("this cluster's CA"), "{text}");
        let bundle = [&two.files.ca, &one.files.ca]
            .map(|path| fs::read(path).unwrap())
            .concat();
        fs::write(&two.files.ca, bundle).unwrap();
        NodeIdentity::load(&two.files.ca, &one.files.certificate, &one.files.key).unwrap();
    }
}
