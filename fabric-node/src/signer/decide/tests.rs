#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use rcgen::{
    Attribute, BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    PublicKeyData as _, SanType,
};

use super::*;

const NODE: &str = "worker-a";
const URI: &str = "spiffe://cluster.local/node/worker-a";

fn policy() -> Policy {
    Policy {
        namespace: "fabric-system".to_owned(),
        trust_domain: TrustDomain::new("cluster.local").unwrap(),
    }
}

/// What a node's daemon asks for; each case changes something.
struct Case {
    key: KeyPair,
    params: CertificateParams,
    attributes: Vec<Attribute>,
    spec: CertificateSigningRequestSpec,
    node_exists: bool,
    /// What is done to the DER before it is sent.
    mangle: fn(Vec<u8>) -> Vec<u8>,
    /// What is done to the PEM.
    wrap: fn(String) -> String,
}

/// The reason, words of the message, what is changed.
type Row = (&'static str, &'static str, fn(&mut Case));

fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

fn good() -> Case {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, NODE);
    params.subject_alt_names = vec![uri(URI)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    Case {
        key: KeyPair::generate().unwrap(),
        params,
        attributes: Vec::new(),
        spec: CertificateSigningRequestSpec {
            signer_name: SIGNER_NAME.to_owned(),
            username: Some("system:serviceaccount:fabric-system:fabric-node".to_owned()),
            extra: Some([(NODE_NAME_EXTRA.to_owned(), vec![NODE.to_owned()])].into()),
            usages: Some(USAGES.map(str::to_owned).to_vec()),
            ..CertificateSigningRequestSpec::default()
        },
        node_exists: true,
        mangle: |der| der,
        wrap: |pem| pem,
    }
}

fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
    for chunk in der.chunks(3) {
        let mut word = [0; 4];
        word[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(word);
        for place in 0..4 {
            text.push(if place <= chunk.len() {
                char::from(DIGITS[(bits >> (18 - 6 * place)) as usize & 63])
            } else {
                '='
            });
        }
    }
    text.push_str("\n-----END CERTIFICATE REQUEST-----\n");
    text
}

impl Case {
    fn decide(mut self) -> Decision {
        let request = self
            .params
            .serialize_request_with_attributes(&self.key, self.attributes)
            .unwrap();
        let der = (self.mangle)(request.der().to_vec());
        self.spec.request = ByteString((self.wrap)(pem(&der)).into_bytes());
        decide(&self.spec, self.node_exists, &policy())
    }
}

/// A node's own request is approved, for its name and its key, on either curve and without a subject too.
#[test]
fn what_a_node_asks_for_is_approved() {
    let variations: [fn(&mut Case); 5] = [
        |_| {},
        |case| case.key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
        |case| case.params.distinguished_name = DistinguishedName::new(),
        |case| {
            case.params.key_usages.clear();
            case.params.extended_key_usages.clear();
        },
        |case| case.spec.usages.as_mut().unwrap().reverse(),
    ];
    for (index, vary) in variations.into_iter().enumerate() {
        let mut case = good();
        vary(&mut case);
        let wanted = case.key.subject_public_key_info();
        let Decision::Approve { node, key } = case.decide() else {
            panic!("variation {index} is denied")
        };
        assert_eq!(node.as_str(), NODE);
        assert_eq!(key, wanted, "variation {index}");
    }
}

/// Whatever is not a node's own request is denied with a reason that names what is wrong.
#[test]
fn everything_else_is_denied() {
    let table: [Row; 42] = [
        ("OtherSigner", "fabric.dev/node", |c| {
            c.spec.signer_name = "kubernetes.io/kubelet-serving".into()
        }),
        ("OtherRequester", "\"\"", |c| c.spec.username = None),
        ("OtherRequester", "\"admin\"", |c| {
            c.spec.username = Some("admin".into())
        }),
        ("OtherRequester", "default", |c| {
            c.spec.username = Some("system:serviceaccount:fabric-system:default".into());
        }),
        ("OtherRequester", "other:fabric-node", |c| {
            c.spec.username = Some("system:serviceaccount:other:fabric-node".into());
        }),
        ("OtherRequester", "fabric-node2", |c| {
            c.spec.username = Some("system:serviceaccount:fabric-system:fabric-node2".into());
        }),
        ("OtherRequester", "system:node:worker-a", |c| {
            c.spec.username = Some("system:node:worker-a".into())
        }),
        ("NoNodeName", NODE_NAME_EXTRA, |c| c.spec.extra = None),
        ("NoNodeName", NODE_NAME_EXTRA, |c| {
            c.spec.extra = Some([("other".to_owned(), vec![NODE.to_owned()])].into())
        }),
        ("NoNodeName", NODE_NAME_EXTRA, |c| {
            c.spec
                .extra
                .as_mut()
                .unwrap()
                .insert(NODE_NAME_EXTRA.to_owned(), vec![]);
        }),
        ("NoNodeName", "Worker A", |c| {
            c.spec
                .extra
                .as_mut()
                .unwrap()
                .insert(NODE_NAME_EXTRA.to_owned(), vec!["Worker A".into()]);
        }),
        ("ManyNodeNames", "2 nodes", |c| {
            c.spec
                .extra
                .as_mut()
                .unwrap()
                .insert(NODE_NAME_EXTRA.to_owned(), vec![NODE.into(), "b".into()]);
        }),
        ("ManyNodeNames", "2 nodes", |c| {
            c.spec
                .extra
                .as_mut()
                .unwrap()
                .insert(NODE_NAME_EXTRA.to_owned(), vec![NODE.into(), NODE.into()]);
        }),
        ("OtherUsages", "\"\"", |c| c.spec.usages = None),
        ("OtherUsages", "client auth", |c| {
            drop(c.spec.usages.as_mut().unwrap().pop())
        }),
        ("OtherUsages", "cert sign", |c| {
            c.spec.usages.as_mut().unwrap().push("cert sign".into())
        }),
        ("OtherUsages", "client auth, client auth", |c| {
            c.spec.usages = Some(
                ["client auth", "client auth", "digital signature"]
                    .map(str::to_owned)
                    .to_vec(),
            );
        }),
        ("MalformedRequest", "0 blocks", |c| {
            c.wrap = |_| String::new()
        }),
        ("MalformedRequest", "0 blocks", |c| {
            c.wrap = |_| "hello".into()
        }),
        ("MalformedRequest", "0 blocks", |c| {
            c.wrap = |pem| pem.replace("CERTIFICATE REQUEST", "CERTIFICATE")
        }),
        ("MalformedRequest", "2 blocks", |c| {
            c.wrap = |pem| pem.repeat(2)
        }),
        ("MalformedRequest", "more than 8192", |c| {
            c.wrap = |pem| format!("{}{pem}", " ".repeat(REQUEST_BYTES_MAX))
        }),
        ("MalformedRequest", "not PEM", |c| {
            c.wrap = |pem| pem.replace("\n-----END", "!\n-----END")
        }),
        ("MalformedRequest", "behind the request", |c| {
            c.mangle = |der| [der, vec![5, 0]].concat()
        }),
        ("MalformedRequest", "spec.request", |c| {
            c.mangle = |der| der[..der.len() / 2].to_vec()
        }),
        ("MalformedRequest", "spec.request", |c| {
            c.mangle = |_| vec![0x30, 0x80]
        }),
        ("BadSignature", "does not have that key", |c| {
            c.mangle = flip_signature
        }),
        ("BadSignature", "does not have that key", |c| {
            c.mangle = |der| rename(der, b"worker-a", b"worker-b")
        }),
        ("KeyType", "P-256", |c| {
            c.key = KeyPair::generate_for(&PKCS_ED25519).unwrap()
        }),
        ("OtherSubject", "worker-b", |c| {
            c.params.distinguished_name = DistinguishedName::new();
            c.params
                .distinguished_name
                .push(DnType::CommonName, "worker-b");
        }),
        ("OtherSubject", "system:masters", |c| {
            c.params
                .distinguished_name
                .push(DnType::OrganizationName, "system:masters");
        }),
        ("NameOfAnotherNode", "node worker-b", |c| {
            c.params.subject_alt_names = vec![uri("spiffe://cluster.local/node/worker-b")];
        }),
        ("NotANodeName", "0 URIs", |c| {
            c.params.subject_alt_names.clear()
        }),
        ("NotANodeName", "2 URIs", |c| {
            c.params.subject_alt_names =
                vec![uri(URI), uri("spiffe://cluster.local/node/worker-b")];
        }),
        ("NotANodeName", "spiffe://cluster.local", |c| {
            c.params.subject_alt_names = vec![uri("spiffe://cluster.local")]
        }),
        ("OtherTrustDomain", "spiffe://other/node/worker-a", |c| {
            c.params.subject_alt_names = vec![uri("spiffe://other/node/worker-a")];
        }),
        ("AsksForMore", "DNS name \"kubernetes.default.svc\"", |c| {
            c.params.subject_alt_names.push(SanType::DnsName(
                "kubernetes.default.svc".try_into().unwrap(),
            ));
        }),
        ("AsksForMore", "an IP address", |c| {
            c.params
                .subject_alt_names
                .push(SanType::IpAddress([10, 96, 0, 1].into()));
        }),
        ("AsksForMore", "the right to sign", |c| {
            c.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }),
        ("AsksForMore", "key usage", |c| {
            c.params.key_usages.push(KeyUsagePurpose::KeyCertSign)
        }),
        ("AsksForMore", "extended key usage", |c| {
            c.params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::CodeSigning);
        }),
        ("NoSuchNode", "no Node worker-a", |c| c.node_exists = false),
    ];
    for (index, (reason, words, change)) in table.into_iter().enumerate() {
        let mut case = good();
        change(&mut case);
        match case.decide() {
            Decision::Deny(denial) => {
                assert_eq!(denial.reason, reason, "row {index}: {}", denial.message);
                assert!(
                    denial.message.contains(words),
                    "row {index}: {}",
                    denial.message
                );
                assert!(
                    denial.message.len() < 700,
                    "row {index}: {}",
                    denial.message.len()
                );
            }
            Decision::Approve { .. } => panic!("row {index}, {reason}, is approved"),
        }
    }
}

/// Extensions and attributes that nobody here knows are not passed over.
#[test]
fn what_is_not_known_is_not_given() {
    // A name constraint (RFC 5280 section 4.2.1.10) and one of nobody.
    for oid in [&[2, 5, 29, 30][..], &[1, 3, 6, 1, 4, 1, 55555, 1]] {
        let mut case = good();
        let extension = CustomExtension::from_oid_content(
            &oid.iter().map(|part| *part as u64).collect::<Vec<_>>(),
            vec![0x30, 0],
        );
        case.params.custom_extensions.push(extension);
        let Decision::Deny(denial) = case.decide() else {
            panic!("{oid:?} is approved")
        };
        assert!(
            matches!(denial.reason, "AsksForMore" | "MalformedRequest"),
            "{denial:?}"
        );
    }
    let mut case = good();
    // A challenge password (RFC 2985 section 5.4.1) beside the extensions.
    case.attributes.push(Attribute {
        oid: &[1, 2, 840, 113549, 1, 9, 7],
        values: vec![0x31, 4, 0x0c, 2, b'p', b'w'],
    });
    let Decision::Deny(denial) = case.decide() else {
        panic!("a password is approved")
    };
    assert_eq!(denial.reason, "AsksForMore", "{denial:?}");
}

/// A text of the requester cannot fill a log, nor write into a terminal.
#[test]
fn hostile_texts_are_tamed() {
    let mut case = good();
    case.spec.username = Some(format!("\u{1b}[31m{}", "x".repeat(100_000)));
    let Decision::Deny(denial) = case.decide() else {
        panic!("approved")
    };
    assert!(denial.message.len() < 600 && !denial.message.contains('\u{1b}'));
}

proptest::proptest! {
    /// No bytes make the decision panic, and none but the good request's own are approved.
    #[test]
    fn no_bytes_are_approved_by_chance(
        flips in proptest::collection::vec((0..600usize, 1..=255u8), 1..4)
    ) {
        let case = good();
        let request = case.params.serialize_request(&case.key).unwrap();
        let mut der = request.der().to_vec();
        let before = der.clone();
        for (at, bits) in flips {
            let at = at % der.len();
            der[at] ^= bits;
        }
        let mut spec = case.spec;
        spec.request = ByteString(pem(&der).into_bytes());
        let decision = decide(&spec, true, &policy());
        proptest::prop_assert!(der == before || matches!(decision, Decision::Deny(_)), "{decision:?}");
    }
}

fn flip_signature(mut der: Vec<u8>) -> Vec<u8> {
    // Inside of the second of the two numbers that end it.
    let at = der.len() - 3;
    der[at] ^= 1;
    der
}

fn rename(der: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut der = der;
    for at in 0..der.len() - from.len() {
        if der[at..].starts_with(from) {
            der[at..at + to.len()].copy_from_slice(to);
        }
    }
    der
}
