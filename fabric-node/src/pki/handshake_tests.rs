//! Real QUIC handshakes in memory: who is accepted, and what the refusal says.

#![allow(clippy::unwrap_used, clippy::unwrap_in_result)]

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    quic,
    version::TLS13,
};
use x509_parser::time::ASN1Time;

use super::{
    authority::{self, Authority},
    files::{self, Overwrite},
    identity::{ALPN, NodeIdentity, SERVER_NAME, crypto_provider},
    validity::{Validity, unix_now},
};
use crate::node_id::NodeId;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn identity(authority: &Authority, name: &str) -> NodeIdentity {
    let dir = tempfile::tempdir().unwrap();
    let credentials = authority::issue(authority, &node(name), 1).unwrap();
    let files = files::save_node(&credentials, dir.path(), Overwrite::No).unwrap();
    NodeIdentity::load(&files.ca, &files.certificate, &files.key).unwrap()
}

/// Which side refused, and its words.
type Refusal = (&'static str, String);

/// Hands what `from` has to say, up to its next change of keys, to `to`; whether there was anything.
fn step(from: &mut quic::Connection, to: &mut quic::Connection) -> Result<bool, rustls::Error> {
    let mut bytes = Vec::new();
    let mut changed = false;
    loop {
        let before = bytes.len();
        changed |= from.write_hs(&mut bytes).is_some();
        if changed || bytes.len() == before {
            break;
        }
    }
    to.read_hs(&bytes)?;
    Ok(changed || !bytes.is_empty())
}

fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<(quic::Connection, quic::Connection), Refusal> {
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let mut client: quic::Connection =
        quic::ClientConnection::new(client, quic::Version::V1, name, vec![])
            .unwrap()
            .into();
    let mut server: quic::Connection =
        quic::ServerConnection::new(server, quic::Version::V1, vec![])
            .unwrap()
            .into();
    loop {
        let said = step(&mut client, &mut server).map_err(|e| ("server", e.to_string()))?;
        let answered = step(&mut server, &mut client).map_err(|e| ("client", e.to_string()))?;
        if !said && !answered {
            assert!(
                !client.is_handshaking() && !server.is_handshaking(),
                "stalled"
            );
            return Ok((client, server));
        }
    }
}

/// What a peer of the outside world might show.
struct Rogue {
    uris: Vec<&'static str>,
    not_before: i64,
    not_after: i64,
    usages: Vec<ExtendedKeyUsagePurpose>,
    alpn: &'static [u8],
    show_certificate: bool,
}

impl Default for Rogue {
    fn default() -> Self {
        Self {
            uris: vec!["spiffe://fabric/node/worker-b"],
            not_before: unix_now() - 60,
            not_after: unix_now() + Validity::DAY_SECONDS,
            usages: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            alpn: ALPN,
            show_certificate: true,
        }
    }
}

impl Rogue {
    /// Its certificate, signed by `authority` or by itself.
    fn certificate(&self, authority: Option<&Authority>) -> (CertificateDer<'static>, KeyPair) {
        let (certificate, key) = self.make(authority);
        (certificate.der().clone(), key)
    }

    /// Writes such a certificate as PEM and gives its key.
    fn write(&self, authority: Option<&Authority>, path: &std::path::Path) -> KeyPair {
        let (certificate, key) = self.make(authority);
        std::fs::write(path, certificate.pem()).unwrap();
        key
    }

    fn make(&self, authority: Option<&Authority>) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::default();
        params.not_before = ASN1Time::from_timestamp(self.not_before)
            .unwrap()
            .to_datetime();
        params.not_after = ASN1Time::from_timestamp(self.not_after)
            .unwrap()
            .to_datetime();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "rogue");
        params.subject_alt_names = self
            .uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .collect();
        params.extended_key_usages.clone_from(&self.usages);
        let key = KeyPair::generate().unwrap();
        let certificate = match authority {
            Some(authority) => {
                let signer = KeyPair::from_pem(authority.key_pem()).unwrap();
                let issuer = Issuer::from_ca_cert_pem(authority.certificate_pem(), signer).unwrap();
                params.signed_by(&key, &issuer).unwrap()
            }
            None => params.self_signed(&key).unwrap(),
        };
        (certificate, key)
    }

    fn client(&self, authority: Option<&Authority>) -> Arc<ClientConfig> {
        let (certificate, key) = self.certificate(authority);
        let builder = ClientConfig::builder_with_provider(Arc::new(crypto_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAnyServer));
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = if self.show_certificate {
            builder
                .with_client_auth_cert(vec![certificate], key)
                .unwrap()
        } else {
            builder.with_no_client_auth()
        };
        config.alpn_protocols = vec![self.alpn.to_vec()];
        Arc::new(config)
    }

    fn server(&self, authority: Option<&Authority>) -> Arc<ServerConfig> {
        let (certificate, key) = self.certificate(authority);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(crypto_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = vec![self.alpn.to_vec()];
        Arc::new(config)
    }
}

#[derive(Debug)]
struct AcceptAnyServer;

impl ServerCertVerifier for AcceptAnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Tries `rogue` as a client of worker-a and as the server that worker-a dials as worker-b; both
/// must be refused by worker-a, and `words` must be in both refusals.
fn refused_in_both_roles(
    cluster: &Authority,
    signer: Option<&Authority>,
    rogue: &Rogue,
    words: &[&str],
) {
    let own = identity(cluster, "worker-a");
    let as_client = handshake(rogue.client(signer), own.server_config());
    let as_server = handshake(own.client_config(node("worker-b")), rogue.server(signer));
    for (result, refuser) in [(as_client, "server"), (as_server, "client")] {
        let (side, text) = result.expect_err("the rogue was accepted");
        assert_eq!(side, refuser, "{text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
    }
}

/// Two nodes of one CA accept each other, learn each other's name, and use the wanted algorithms.
#[test]
fn nodes_of_one_cluster_accept_each_other() {
    let cluster = authority::init("fabric", 1).unwrap();
    let (a, b) = (
        identity(&cluster, "worker-a"),
        identity(&cluster, "worker-b"),
    );
    let (client, server) = handshake(a.client_config(node("worker-b")), b.server_config()).unwrap();
    assert_eq!(
        a.peer_node_id(client.peer_certificates().unwrap()).unwrap(),
        node("worker-b")
    );
    assert_eq!(
        b.peer_node_id(server.peer_certificates().unwrap()).unwrap(),
        node("worker-a")
    );
    for side in [&client, &server] {
        assert_eq!(side.alpn_protocol(), Some(ALPN));
        assert_eq!(
            side.negotiated_cipher_suite().unwrap().suite(),
            rustls::CipherSuite::TLS13_AES_128_GCM_SHA256
        );
        assert_eq!(
            side.negotiated_key_exchange_group().unwrap().name(),
            rustls::NamedGroup::X25519MLKEM768
        );
        assert_eq!(side.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

/// The stand-in for a hostile peer is accepted when it shows a proper certificate, so that the
/// refusals below have the reason they claim.
#[test]
fn the_rogue_itself_is_sound() {
    let cluster = authority::init("fabric", 1).unwrap();
    let own = identity(&cluster, "worker-a");
    let rogue = Rogue::default();
    handshake(rogue.client(Some(&cluster)), own.server_config()).unwrap();
    handshake(
        own.client_config(node("worker-b")),
        rogue.server(Some(&cluster)),
    )
    .unwrap();
}

/// A second connection is a full handshake: nothing is resumed, even when the client would like to.
#[test]
fn no_resumption() {
    let cluster = authority::init("fabric", 1).unwrap();
    let own = identity(&cluster, "worker-a");
    let eager = Rogue::default().client(Some(&cluster));
    for _ in 0..2 {
        let (client, _) = handshake(Arc::clone(&eager), own.server_config()).unwrap();
        assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
    let config = own.server_config();
    assert_eq!(
        (config.send_tls13_tickets, config.max_early_data_size),
        (0, 0)
    );
    assert!(!config.session_storage.can_cache());
    assert!(!own.client_config(node("worker-b")).enable_early_data);
}

/// The node that answers must be the one dialled; the refusal names both.
#[test]
fn wrong_node_is_refused() {
    let cluster = authority::init("fabric", 1).unwrap();
    let (a, c) = (
        identity(&cluster, "worker-a"),
        identity(&cluster, "worker-c"),
    );
    let (side, text) = handshake(a.client_config(node("worker-b")), c.server_config()).unwrap_err();
    assert_eq!(side, "client");
    assert!(
        text.contains("is node worker-c") && text.contains("node worker-b"),
        "{text}"
    );
}

/// A certificate of another CA of the same name is refused, with the name it claims.
#[test]
fn other_authority_is_refused() {
    let cluster = authority::init("fabric", 1).unwrap();
    let other = authority::init("fabric", 1).unwrap();
    let words = ["spiffe://fabric/node/worker-b", "this cluster's CA"];
    refused_in_both_roles(&cluster, Some(&other), &Rogue::default(), &words);
}

/// A self-signed certificate is refused, with the name it claims.
#[test]
fn self_signed_is_refused() {
    let cluster = authority::init("fabric", 1).unwrap();
    let words = ["spiffe://fabric/node/worker-b"];
    refused_in_both_roles(&cluster, None, &Rogue::default(), &words);
}

/// An expired certificate is refused, with the time it ended.
#[test]
fn expired_is_refused() {
    let cluster = authority::init("fabric", 1).unwrap();
    let rogue = Rogue {
        not_before: 951_827_000,
        not_after: 951_827_696,
        ..Rogue::default()
    };
    refused_in_both_roles(
        &cluster,
        Some(&cluster),
        &rogue,
        &["expired at 2000-02-29T12:34:56Z"],
    );
}

/// A certificate of the future is refused, with the time it begins.
#[test]
fn not_yet_valid_is_refused() {
    let cluster = authority::init("fabric", 1).unwrap();
    let (not_before, not_after) = (4_102_444_800, 4_102_531_200);
    let rogue = Rogue {
        not_before,
        not_after,
        ..Rogue::default()
    };
    let words = ["not valid before 2100-01-01T00:00:00Z"];
    refused_in_both_roles(&cluster, Some(&cluster), &rogue, &words);
}

/// A certificate that names two things is refused.
#[test]
fn two_uris_are_refused() {
    let cluster = authority::init("fabric", 1).unwrap();
    let uris = vec![
        "spiffe://fabric/node/worker-b",
        "spiffe://fabric/node/worker-c",
    ];
    let rogue = Rogue {
        uris,
        ..Rogue::default()
    };
    refused_in_both_roles(&cluster, Some(&cluster), &rogue, &["rogue", "2 URIs"]);
}

/// A certificate that names nothing is refused.
#[test]
fn no_uri_is_refused() {
    let cluster = authority::init("fabric", 1).unwrap();
    let rogue = Rogue {
        uris: vec![],
        ..Rogue::default()
    };
    refused_in_both_roles(
        &cluster,
        Some(&cluster),
        &rogue,
        &["rogue", "no SPIFFE URI"],
    );
}

/// A certificate of another trust domain is refused although the CA signed it.
#[test]
fn wrong_trust_domain_is_refused() {
    let cluster = authority::init("fabric", 1).unwrap();
    let rogue = Rogue {
        uris: vec!["spiffe://other/node/worker-b"],
        ..Rogue::default()
    };
    let words = ["spiffe://other/node/worker-b", "not fabric"];
    refused_in_both_roles(&cluster, Some(&cluster), &rogue, &words);
}

/// A certificate that is no node's is refused although the CA signed it.
#[test]
fn not_a_node_is_refused() {
    let cluster = authority::init("fabric", 1).unwrap();
    let rogue = Rogue {
        uris: vec!["spiffe://fabric/pod/worker-b"],
        ..Rogue::default()
    };
    refused_in_both_roles(
        &cluster,
        Some(&cluster),
        &rogue,
        &["spiffe://fabric/pod/worker-b"],
    );
}

/// A certificate for another use is refused.
#[test]
fn wrong_extended_key_usage_is_refused() {
    let cluster = authority::init("fabric", 1).unwrap();
    let rogue = Rogue {
        usages: vec![ExtendedKeyUsagePurpose::CodeSigning],
        ..Rogue::default()
    };
    refused_in_both_roles(&cluster, Some(&cluster), &rogue, &["extended key usage"]);
}

/// A certificate that is good for one role only is refused in the other.
#[test]
fn client_only_certificate_cannot_serve() {
    let cluster = authority::init("fabric", 1).unwrap();
    let own = identity(&cluster, "worker-a");
    let rogue = Rogue {
        usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
        ..Rogue::default()
    };
    let server = rogue.server(Some(&cluster));
    let (side, _) = handshake(own.client_config(node("worker-b")), server).unwrap_err();
    assert_eq!(side, "client");
}

/// A node cannot sign for others: a chain through a node's certificate is refused.
#[test]
fn node_cannot_act_as_authority() {
    let cluster = authority::init("fabric", 1).unwrap();
    let own = identity(&cluster, "worker-a");
    let stolen = authority::issue(&cluster, &node("worker-c"), 1).unwrap();
    let signer = KeyPair::from_pem(&stolen.key_pem).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&stolen.chain_pem, signer).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(
        "spiffe://fabric/node/worker-b".try_into().unwrap(),
    )];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let forged = params.signed_by(&key, &issuer).unwrap();
    let middle = CertificateDer::from_pem_slice(stolen.chain_pem.as_bytes()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(crypto_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAnyServer))
        .with_client_auth_cert(
            vec![forged.der().clone(), middle],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let (side, _) = handshake(Arc::new(config), own.server_config()).unwrap_err();
    assert_eq!(side, "server");
}

/// A client that shows no certificate is refused.
#[test]
fn no_client_certificate_is_refused() {
    let cluster = authority::init("fabric", 1).unwrap();
    let own = identity(&cluster, "worker-a");
    let rogue = Rogue {
        show_certificate: false,
        ..Rogue::default()
    };
    let (side, text) = handshake(rogue.client(None), own.server_config()).unwrap_err();
    assert_eq!(side, "server");
    assert!(text.contains("no certificates"), "{text}");
}

/// Another application protocol is refused on both sides.
#[test]
fn wrong_alpn_is_refused() {
    let cluster = authority::init("fabric", 1).unwrap();
    let own = identity(&cluster, "worker-a");
    let rogue = Rogue {
        alpn: b"h3",
        ..Rogue::default()
    };
    let as_client = handshake(rogue.client(Some(&cluster)), own.server_config()).unwrap_err();
    assert_eq!(as_client.0, "server");
    assert!(
        as_client.1.contains("any known protocol"),
        "{}",
        as_client.1
    );
    assert!(
        handshake(
            own.client_config(node("worker-b")),
            rogue.server(Some(&cluster))
        )
        .is_err()
    );
}

/// A TLS 1.2 hello, written out byte by byte, is refused.
#[test]
fn tls12_is_refused() {
    let cluster = authority::init("fabric", 1).unwrap();
    let own = identity(&cluster, "worker-a");
    let mut extensions = Vec::new();
    extensions.extend([0, 10, 0, 4, 0, 2, 0, 29]); // supported_groups: x25519
    extensions.extend([0, 13, 0, 4, 0, 2, 4, 3]); // signature_algorithms: ECDSA P-256 SHA-256
    let mut body = vec![3, 3]; // TLS 1.2
    body.extend([7; 32]); // random
    body.push(0); // no session id
    body.extend([0, 2, 0xc0, 0x2b]); // ECDHE-ECDSA-AES128-GCM-SHA256
    body.extend([1, 0]); // no compression
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut hello = vec![1, 0];
    hello.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    hello.extend(body);
    let mut server =
        quic::ServerConnection::new(own.server_config(), quic::Version::V1, vec![]).unwrap();
    let error = server.read_hs(&hello).unwrap_err();
    assert!(
        matches!(error, rustls::Error::PeerIncompatible(_)),
        "{error}"
    );
}

/// A node does not start with a certificate that its peers would refuse, and says which and why.
#[test]
fn own_certificate_is_held_to_the_same_rules() {
    let cluster = authority::init("fabric", 1).unwrap();
    let past = Rogue {
        not_before: 951_827_000,
        not_after: 951_827_696,
        ..Rogue::default()
    };
    let future = Rogue {
        not_before: 4_102_444_800,
        not_after: 4_102_531_200,
        ..Rogue::default()
    };
    let nameless = Rogue {
        uris: vec![],
        ..Rogue::default()
    };
    let useless = Rogue {
        usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
        ..Rogue::default()
    };
    for (rogue, signer, words) in [
        (
            past,
            Some(&cluster),
            "expired at 2000-02-29T12:34:56Z; it is 2",
        ),
        (
            future,
            Some(&cluster),
            "not valid before 2100-01-01T00:00:00Z; it is 2",
        ),
        (nameless, Some(&cluster), "no SPIFFE URI"),
        (useless, Some(&cluster), "extended key usage"),
        (Rogue::default(), None, "is not accepted by the CA"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let key = rogue.write(signer, &path("node.pem"));
        std::fs::write(path("ca.pem"), cluster.certificate_pem()).unwrap();
        std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
        let error = NodeIdentity::load(&path("ca.pem"), &path("node.pem"), &path("key.pem"));
        let text = error.unwrap_err().to_string();
        assert!(text.contains(words) && text.contains("node.pem"), "{text}");
    }
}
