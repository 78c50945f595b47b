//! One certificate: a key, a CertificateSigningRequest, the wait for it, and the checks of what comes.

use std::time::Duration;

use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::{
            CertificateSigningRequest, CertificateSigningRequestCondition,
            CertificateSigningRequestSpec,
        },
        core::v1::ConfigMap,
    },
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, SanType,
};
use thiserror::Error;

use super::{
    CA_CERTIFICATE_ENTRY, CA_CONFIG_MAP, SIGNER_NAME, USAGES, api_reason,
    folder::{Folder, Generation, hash_of},
    is_code,
};
use crate::{
    node_id::NodeId,
    pki::{
        files::PkiError,
        identity::{IdentityError, NodeIdentity},
        spiffe::{SpiffeId, TrustDomain},
    },
};

/// Shortest certificate that the API lets anybody ask for (seconds).
const EXPIRATION_SECONDS_MIN: u64 = 600;
/// First pause between looks at a request that waits; doubles up to [`POLL_MAX`].
const POLL_FIRST: Duration = Duration::from_millis(200);
/// Longest such pause.
const POLL_MAX: Duration = Duration::from_secs(5);
/// How long one attempt waits for its certificate. The request stays, and the next attempt finds it.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How long the API server may take for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Bytes of a node's name in the name of its request, which has at most 253.
const NAME_BYTES_MAX: usize = 180;
/// Digits of the key's hash in the name of a request.
const HASH_DIGITS: usize = 16;

/// Why there is no certificate; what is in use stays in use.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The state folder cannot be written.
    #[error("{0}; free space in the state folder, or make it writable")]
    Folder(#[from] PkiError),
    /// The API server did not do what was asked.
    #[error("cannot {action} {object}: {reason}; {cure}")]
    Api {
        /// What was tried.
        action: &'static str,
        /// On what.
        object: String,
        /// What was said.
        reason: String,
        /// What to do.
        cure: &'static str,
    },
    /// The signer, or a person, said no.
    #[error(
        "CertificateSigningRequest {name} was {verdict} ({reason}): {message}; mend that, and another request follows"
    )]
    Refused {
        /// Name of the request.
        name: String,
        /// `denied` or `not signed`.
        verdict: &'static str,
        /// The condition's reason.
        reason: String,
        /// The condition's message.
        message: String,
    },
    /// Nobody has answered.
    #[error(
        "CertificateSigningRequest {name} has no certificate after {seconds} s: look at the signer (`kubectl -n {namespace} get pods,lease -l app.kubernetes.io/component=signer`, `kubectl get csr {name}`)"
    )]
    Waiting {
        /// Name of the request.
        name: String,
        /// How long it was waited for.
        seconds: u64,
        /// Where the signer should run.
        namespace: String,
    },
    /// There is no CA to check a certificate by.
    #[error(
        "ConfigMap {namespace}/{CA_CONFIG_MAP} has no {CA_CERTIFICATE_ENTRY}: the signer writes it; look whether it runs (`kubectl -n {namespace} get pods -l app.kubernetes.io/component=signer`)"
    )]
    NoAuthority {
        /// Where it should be.
        namespace: String,
    },
    /// The certificate is for somebody else.
    #[error(
        "the certificate in CertificateSigningRequest {name} is for {found} and not for {expected}: look who signs for {SIGNER_NAME}, and whether identity.trust_domain is the signer's --trust-domain"
    )]
    OtherName {
        /// Name of the request.
        name: String,
        /// Who it is for.
        found: String,
        /// Who asked.
        expected: String,
    },
    /// The certificate is of no use here.
    #[error(
        "the certificate in CertificateSigningRequest {name} cannot be used with the CA in ConfigMap {namespace}/{CA_CONFIG_MAP}: {source}"
    )]
    Unusable {
        /// Name of the request.
        name: String,
        /// Where the CA was read.
        namespace: String,
        /// What is wrong.
        source: Box<IdentityError>,
    },
}

impl RequestError {
    /// Whether the same request cannot come to anything any more.
    fn is_final(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::OtherName { .. } => true,
            // A clock that is behind will catch up, or be set; anything else stays wrong.
            Self::Unusable { source, .. } => !matches!(**source, IdentityError::NotYetValid { .. }),
            Self::Folder(_)
            | Self::Api { .. }
            | Self::Waiting { .. }
            | Self::NoAuthority { .. } => false,
        }
    }
}

/// Who asks, and whom.
#[derive(Clone)]
pub(super) struct Requester {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) node: NodeId,
    pub(super) trust_domain: TrustDomain,
    pub(super) lifetime: Duration,
    pub(super) folder: Folder,
}

/// A certificate that was checked, on disk and not in use yet.
pub(super) struct Obtained {
    pub(super) identity: NodeIdentity,
    pub(super) generation: Generation,
}

impl Requester {
    /// Asks for a certificate for a new key, or goes on with the request under way.
    pub(super) async fn obtain(&self) -> Result<Obtained, RequestError> {
        let obtained = self.try_obtain().await;
        if obtained.as_ref().is_err_and(RequestError::is_final) {
            self.folder.discard_pending();
        }
        obtained
    }

    async fn try_obtain(&self) -> Result<Obtained, RequestError> {
        let key = self.folder.pending_key()?;
        let name = request_name(&self.node, &key);
        self.submit(&name, &key).await?;
        let certificate = self.wait_for(&name).await?;
        let ca = self.authority().await?;
        let generation = self.folder.stage(&key.serialize_pem(), &certificate, &ca)?;
        match self.check(&name, &generation) {
            Ok(identity) => Ok(Obtained {
                identity,
                generation,
            }),
            Err(error) => {
                self.folder.discard(&generation);
                Err(error)
            }
        }
    }

    /// Loads a generation and says whether this node may use it: its own name, its own key, of the CA.
    fn check(&self, name: &str, generation: &Generation) -> Result<NodeIdentity, RequestError> {
        let identity = load(generation).map_err(|source| RequestError::Unusable {
            name: name.to_owned(),
            namespace: self.namespace.clone(),
            source: Box::new(source),
        })?;
        let found = SpiffeId {
            trust_domain: identity.trust_domain().clone(),
            node: identity.node_id().clone(),
        };
        let expected = self.own_id();
        if found != expected {
            return Err(RequestError::OtherName {
                name: name.to_owned(),
                found: found.to_string(),
                expected: expected.to_string(),
            });
        }
        Ok(identity)
    }

    pub(super) fn own_id(&self) -> SpiffeId {
        SpiffeId {
            trust_domain: self.trust_domain.clone(),
            node: self.node.clone(),
        }
    }

    /// Makes the request, unless it is there.
    async fn submit(&self, name: &str, key: &KeyPair) -> Result<(), RequestError> {
        let requests: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let pem = request_pem(&self.own_id(), key)?;
        let seconds = self.lifetime.as_secs().max(EXPIRATION_SECONDS_MIN);
        let request = CertificateSigningRequest {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            spec: CertificateSigningRequestSpec {
                request: ByteString(pem.into_bytes()),
                signer_name: SIGNER_NAME.to_owned(),
                expiration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
                usages: Some(USAGES.map(str::to_owned).to_vec()),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let object = || format!("CertificateSigningRequest {name}");
        match answer(requests.create(&PostParams::default(), &request)).await {
            Ok(_) => {
                tracing::info!(
                    name,
                    signer = SIGNER_NAME,
                    seconds,
                    "asked for a certificate"
                );
                Ok(())
            }
            Err(Failure::Said(error)) if is_code(&error, 409) => Ok(()),
            Err(failure) => Err(failure.into_error("create", object())),
        }
    }

    /// Waits for what becomes of the request: its certificate, PEM.
    async fn wait_for(&self, name: &str) -> Result<String, RequestError> {
        let requests: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let begun = tokio::time::Instant::now();
        let mut pause = POLL_FIRST;
        loop {
            let object = || format!("CertificateSigningRequest {name}");
            let request = answer(requests.get(name))
                .await
                .map_err(|failure| failure.into_error("read", object()))?;
            let status = request.status.unwrap_or_default();
            if let Some(refusal) = refusal(name, status.conditions.as_deref().unwrap_or_default()) {
                return Err(refusal);
            }
            if let Some(ByteString(certificate)) = status.certificate {
                return Ok(String::from_utf8_lossy(&certificate).into_owned());
            }
            if begun.elapsed() >= WAIT_MAX {
                return Err(RequestError::Waiting {
                    name: name.to_owned(),
                    seconds: WAIT_MAX.as_secs(),
                    namespace: self.namespace.clone(),
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(POLL_MAX);
        }
    }

    /// The CA's certificates, PEM, as the signer publishes them.
    pub(super) async fn authority(&self) -> Result<String, RequestError> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let object = || format!("ConfigMap {}/{CA_CONFIG_MAP}", self.namespace);
        match answer(maps.get(CA_CONFIG_MAP)).await {
            Ok(map) => certificates_of(&map),
            Err(Failure::Said(error)) if is_code(&error, 404) => None,
            Err(failure) => return Err(failure.into_error("read", object())),
        }
        .ok_or_else(|| RequestError::NoAuthority {
            namespace: self.namespace.clone(),
        })
    }
}

/// The certificates in the ConfigMap, if there are any.
pub(super) fn certificates_of(map: &ConfigMap) -> Option<String> {
    let text = map.data.as_ref()?.get(CA_CERTIFICATE_ENTRY)?;
    (!text.trim().is_empty()).then(|| text.clone())
}

pub(super) fn load(generation: &Generation) -> Result<NodeIdentity, IdentityError> {
    let files = &generation.files;
    NodeIdentity::load(&files.ca, &files.certificate, &files.key)
}

enum Failure {
    Said(kube::Error),
    Silence,
}

async fn answer<T>(asked: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER_MAX, asked).await {
        Ok(answered) => answered.map_err(Failure::Said),
        Err(_) => Err(Failure::Silence),
    }
}

impl Failure {
    fn into_error(self, action: &'static str, object: String) -> RequestError {
        let (reason, cure) = match self {
            Self::Silence => (
                format!("no answer within {} s", ANSWER_MAX.as_secs()),
                "the API server is asked again",
            ),
            Self::Said(error) => (
                api_reason(&error),
                if is_code(&error, 401) {
                    "the daemon's token is not accepted: look whether its pod and node still exist, and at the clock"
                } else if is_code(&error, 403) {
                    "apply the ClusterRole and Role of the manifest for the ServiceAccount fabric-node"
                } else {
                    "the API server is asked again"
                },
            ),
        };
        RequestError::Api {
            action,
            object,
            reason,
            cure,
        }
    }
}

/// That the request was denied or cannot be signed, if its conditions say so.
fn refusal(name: &str, conditions: &[CertificateSigningRequestCondition]) -> Option<RequestError> {
    let (verdict, condition) = conditions.iter().find_map(|condition| {
        let verdict = match condition.type_.as_str() {
            "Denied" => "denied",
            "Failed" => "not signed",
            _ => return None,
        };
        Some((verdict, condition))
    })?;
    Some(RequestError::Refused {
        name: name.to_owned(),
        verdict,
        reason: condition.reason.clone().unwrap_or_default(),
        message: condition.message.clone().unwrap_or_default(),
    })
}

/// The name of a node's request for a key: the same key is asked for once, another key is another request.
fn request_name(node: &NodeId, key: &KeyPair) -> String {
    let hash = hash_of(key).to_string();
    let digits = hash.get(..HASH_DIGITS).unwrap_or(&hash);
    let node = node.as_str();
    let node = node.get(..NAME_BYTES_MAX).unwrap_or(node);
    format!("fabric-node-{}-{digits}", node.trim_end_matches(['-', '.']))
}

fn request_pem(id: &SpiffeId, key: &KeyPair) -> Result<String, RequestError> {
    let failed = |error: rcgen::Error| RequestError::Api {
        action: "make",
        object: format!("a request for {id}"),
        reason: error.to_string(),
        cure: "report this",
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, id.node.as_str());
    let uri = id.to_string().as_str().try_into().map_err(failed)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    params
        .serialize_request(key)
        .and_then(|request| request.pem())
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn condition(type_: &str) -> CertificateSigningRequestCondition {
        CertificateSigningRequestCondition {
            type_: type_.to_owned(),
            status: "True".to_owned(),
            reason: Some("NameOfAnotherNode".to_owned()),
            message: Some("the token is of node b".to_owned()),
            ..Default::default()
        }
    }

    /// A request's name tells its node and key, is one that the API accepts, and is another for another
    /// key.
    #[test]
    fn names_of_requests() {
        let [one, two] = [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()];
        let node = NodeId::new("worker-a").unwrap();
        let name = request_name(&node, &one);
        assert!(name.starts_with("fabric-node-worker-a-"), "{name}");
        assert_eq!(name, request_name(&node, &one));
        assert_ne!(name, request_name(&node, &two));
        let long = NodeId::new(&format!("{}.{}", "a".repeat(179), "b".repeat(60))).unwrap();
        let name = request_name(&long, &one);
        assert!(
            name.len() <= 253 && NodeId::new(&name).is_ok() && !name.contains(".-"),
            "{name}"
        );
    }

    /// A denial and a failure are told with the reason that was given; an approval is none.
    #[test]
    fn refusals_are_told() {
        assert!(refusal("x", &[]).is_none() && refusal("x", &[condition("Approved")]).is_none());
        for (type_, word) in [("Denied", "denied"), ("Failed", "not signed")] {
            let refused = refusal("x", &[condition("Approved"), condition(type_)]).unwrap();
            let text = refused.to_string();
            assert!(
                text.contains(word) && text.contains("the token is of node b"),
                "{text}"
            );
            assert!(refused.is_final());
        }
    }

    /// What the API server says is told with what to do about it.
    #[test]
    fn answers_name_a_cure() {
        let said = |code: u16, reason: &str| {
            let status = kube::core::Status {
                code,
                reason: reason.to_owned(),
                message: "no".to_owned(),
                ..Default::default()
            };
            let failure = Failure::Said(kube::Error::Api(Box::new(status)));
            failure
                .into_error("create", "the request".to_owned())
                .to_string()
        };
        assert!(said(403, "Forbidden").contains("403 Forbidden: no; apply the ClusterRole"));
        assert!(said(401, "Unauthorized").contains("token"));
        assert!(said(500, "").contains("500: no; the API server is asked again"));
    }
}
