//! CertificateSigningRequests: decided, approved or denied, signed, and cleared away.
//!
//! Comes in: every request for our signer name. Goes out: conditions and certificates. An instance may end
//! at any point: what it has approved is decided again and signed by the next one, and what is signed is left
//! alone. An API server that does not answer denies nobody: the request is looked at again.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
        core::v1::Node,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
    runtime::{
        controller::{Action, Controller},
        watcher,
    },
};
use rcgen::SubjectPublicKeyInfo;
use serde_json::json;
use thiserror::Error;

use super::{
    authority::Keeper,
    decide::{Decision, Denial, Policy, decide, requester},
};
use crate::pki::{
    authority::{AuthorityError, certify},
    kubernetes::{SIGNER_NAME, api_reason, is_code},
};

/// Requests that are worked on at once.
const SIDE_BY_SIDE_MAX: u16 = 8;
/// Wait after an error of the API server.
const RETRY: Duration = Duration::from_secs(2);
/// Requests that have come to an end are deleted after this; the node has its certificate by then, or has
/// read why not.
const KEPT: Duration = Duration::from_secs(600);
/// Between looks for such requests.
const CLEAN_INTERVAL: Duration = Duration::from_secs(300);
/// Requests read at once.
const PAGE: u32 = 500;
/// Longest message of a condition (bytes).
const MESSAGE_BYTES_MAX: usize = 1024;

/// Why a request could not be dealt with now.
#[derive(Debug, Error)]
enum DealError {
    #[error("cannot {action} {object}: {reason}")]
    Api {
        action: &'static str,
        object: String,
        reason: String,
        is_conflict: bool,
    },
    #[error("cannot sign {name}: {source}")]
    Sign {
        name: String,
        source: AuthorityError,
    },
}

struct Desk {
    requests: Api<CertificateSigningRequest>,
    nodes: Api<Node>,
    keeper: Arc<Keeper>,
    policy: Policy,
    lifetime_seconds_max: i64,
}

/// Deals with requests, for ever.
pub async fn serve(
    client: &Client,
    keeper: Arc<Keeper>,
    policy: Policy,
    lifetime_seconds_max: i64,
) {
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let desk = Arc::new(Desk {
        requests: requests.clone(),
        nodes: Api::all(client.clone()),
        keeper,
        policy,
        lifetime_seconds_max,
    });
    let ours = watcher::Config::default().fields(&format!("spec.signerName={SIGNER_NAME}"));
    let on_error = |request: Arc<CertificateSigningRequest>, error: &DealError, _: Arc<Desk>| {
        if !matches!(
            error,
            DealError::Api {
                is_conflict: true,
                ..
            }
        ) {
            tracing::warn!(request = request.name_any(), %error, "looked at again");
        }
        Action::requeue(RETRY)
    };
    Controller::new(requests, ours)
        .with_config(kube::runtime::controller::Config::default().concurrency(SIDE_BY_SIDE_MAX))
        .run(deal, on_error, desk)
        .for_each(|_| std::future::ready(()))
        .await;
}

/// Does what is next for one request.
async fn deal(
    request: Arc<CertificateSigningRequest>,
    desk: Arc<Desk>,
) -> Result<Action, DealError> {
    if is_over(&request) {
        return Ok(Action::await_change());
    }
    let node_exists = match requester(&request.spec, &desk.policy) {
        Ok(node) => desk.node_exists(node.as_str()).await?,
        // The decision says why.
        Err(_) => false,
    };
    match decide(&request.spec, node_exists, &desk.policy) {
        Decision::Deny(denial) => desk.refuse(&request, &denial).await?,
        Decision::Approve { node, key } => {
            let name = request.name_any();
            let sign = |source: AuthorityError| DealError::Sign {
                name: name.clone(),
                source,
            };
            let public =
                SubjectPublicKeyInfo::from_der(&key).map_err(|error| sign(error.into()))?;
            let seconds = request.spec.expiration_seconds.map_or(i64::MAX, i64::from);
            let seconds = seconds.min(desk.lifetime_seconds_max);
            let approved = if has(&request, "Approved") {
                (*request).clone()
            } else {
                let message = format!("asked for by a pod on node {node}, for that node");
                desk.approve(&request, &message).await?
            };
            let authority = desk.keeper.current();
            let (certificate, validity) =
                certify(&authority, &node, &public, seconds).map_err(sign)?;
            desk.hand_out(&approved, certificate).await?;
            let until = crate::pki::validity::Rfc3339(validity.not_after);
            tracing::info!(request = name, %node, %until, "signed");
        }
    }
    Ok(Action::await_change())
}

impl Desk {
    /// Whether there is a Node of this name. Only the API server's own word counts for "no".
    async fn node_exists(&self, name: &str) -> Result<bool, DealError> {
        match self.nodes.get_metadata_opt(name).await {
            Ok(found) => Ok(found.is_some()),
            Err(error) => Err(failed("read", format!("Node {name}"), &error)),
        }
    }

    async fn approve(
        &self,
        request: &CertificateSigningRequest,
        message: &str,
    ) -> Result<CertificateSigningRequest, DealError> {
        self.condition(request, "Approved", "BoundToNode", message)
            .await
    }

    /// Denies; what somebody else has approved all the same cannot be denied any more and is not signed.
    async fn refuse(
        &self,
        request: &CertificateSigningRequest,
        denial: &Denial,
    ) -> Result<(), DealError> {
        let name = request.name_any();
        tracing::warn!(
            request = name,
            reason = denial.reason,
            username = request.spec.username,
            "denied: {}",
            denial.message
        );
        let type_ = if has(request, "Approved") {
            "Failed"
        } else {
            "Denied"
        };
        self.condition(request, type_, denial.reason, &denial.message)
            .await
            .map(drop)
    }

    /// Adds a condition: an approval or denial beside the request, a failure to its status.
    async fn condition(
        &self,
        request: &CertificateSigningRequest,
        type_: &str,
        reason: &str,
        message: &str,
    ) -> Result<CertificateSigningRequest, DealError> {
        let name = request.name_any();
        let now = Time(Timestamp::now());
        let mut conditions = conditions(request).to_vec();
        conditions.push(CertificateSigningRequestCondition {
            type_: type_.to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(cut(message).to_owned()),
            last_update_time: Some(now.clone()),
            last_transition_time: Some(now),
        });
        // It is about the version that was decided on: if another one acts meanwhile, this is refused.
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": request.resource_version() },
            "status": { "conditions": conditions },
        }));
        let params = PatchParams::default();
        let patched = if type_ == "Failed" {
            self.requests.patch_status(&name, &params, &patch).await
        } else {
            self.requests.patch_approval(&name, &params, &patch).await
        };
        patched.map_err(|error| failed("decide on", object(&name), &error))
    }

    async fn hand_out(
        &self,
        request: &CertificateSigningRequest,
        certificate: String,
    ) -> Result<(), DealError> {
        let name = request.name_any();
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": request.resource_version() },
            "status": { "certificate": ByteString(certificate.into_bytes()) },
        }));
        self.requests
            .patch_status(&name, &PatchParams::default(), &patch)
            .await
            .map(drop)
            .map_err(|error| failed("write the certificate of", object(&name), &error))
    }
}

/// Deletes requests that have come to an end long ago, for ever.
pub async fn clean(client: &Client) {
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    loop {
        if let Err(error) = clean_once(&requests).await {
            tracing::debug!(
                reason = api_reason(&error),
                "old requests are not cleared away"
            );
        }
        tokio::time::sleep(CLEAN_INTERVAL).await;
    }
}

async fn clean_once(requests: &Api<CertificateSigningRequest>) -> kube::Result<()> {
    let ours = format!("spec.signerName={SIGNER_NAME}");
    let mut params = ListParams::default().fields(&ours).limit(PAGE);
    loop {
        let page = requests.list(&params).await?;
        for request in page
            .items
            .iter()
            .filter(|request| is_old(request, Timestamp::now()))
        {
            let preconditions = Preconditions {
                uid: request.uid(),
                resource_version: None,
            };
            let delete = DeleteParams::default().preconditions(preconditions);
            match requests.delete(&request.name_any(), &delete).await {
                Err(error) if !is_code(&error, 404) && !is_code(&error, 409) => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}

/// Whether a request came to its end so long ago that nobody waits for it.
fn is_old(request: &CertificateSigningRequest, now: Timestamp) -> bool {
    let made = request.creation_timestamp().map(|Time(at)| at);
    let said = conditions(request)
        .iter()
        .filter_map(|condition| condition.last_update_time.as_ref().map(|Time(at)| *at));
    let last = said.chain(made).max();
    is_over(request)
        && last.is_some_and(|last| now.duration_since(last).as_secs() >= KEPT.as_secs() as i64)
}

/// Whether nothing is left to do: it is signed, denied or has failed.
fn is_over(request: &CertificateSigningRequest) -> bool {
    let status = request.status.as_ref();
    let is_signed = status.is_some_and(|status| status.certificate.is_some());
    is_signed || has(request, "Denied") || has(request, "Failed")
}

fn has(request: &CertificateSigningRequest, type_: &str) -> bool {
    conditions(request)
        .iter()
        .any(|condition| condition.type_ == type_)
}

fn conditions(request: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    let status = request.status.as_ref();
    status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default()
}

fn object(name: &str) -> String {
    format!("CertificateSigningRequest {name}")
}

fn failed(action: &'static str, object: String, error: &kube::Error) -> DealError {
    DealError::Api {
        action,
        object,
        reason: api_reason(error),
        is_conflict: is_code(error, 409),
    }
}

fn cut(message: &str) -> &str {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use k8s_openapi::{
        api::certificates::v1::CertificateSigningRequestStatus,
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    };

    use super::*;

    fn request(made: Timestamp, types: &[&str], certificate: bool) -> CertificateSigningRequest {
        let conditions = types
            .iter()
            .map(|type_| CertificateSigningRequestCondition {
                type_: (*type_).to_owned(),
                last_update_time: Some(Time(made)),
                ..Default::default()
            });
        CertificateSigningRequest {
            metadata: ObjectMeta {
                creation_timestamp: Some(Time(made)),
                ..ObjectMeta::default()
            },
            status: Some(CertificateSigningRequestStatus {
                certificate: certificate.then(|| ByteString(vec![1])),
                conditions: Some(conditions.collect()),
            }),
            ..CertificateSigningRequest::default()
        }
    }

    /// Only what has come to its end is left alone, and cleared away when it is old; an approval without
    /// a certificate is work of an instance that ended in between.
    #[test]
    fn what_is_over_and_what_is_old() {
        let now = Timestamp::now();
        let long_ago = now - KEPT - Duration::from_secs(1);
        let over: [(&[&str], bool, bool); 6] = [
            (&[], false, false),
            (&["Approved"], false, false),
            (&["Approved"], true, true),
            (&["Denied"], false, true),
            (&["Approved", "Failed"], false, true),
            (&["Other"], false, false),
        ];
        for (types, certificate, expected) in over {
            let old = request(long_ago, types, certificate);
            assert_eq!(is_over(&old), expected, "{types:?}");
            assert_eq!(is_old(&old, now), expected, "{types:?}");
            assert!(!is_old(&request(now, types, certificate), now));
        }
    }

    /// A message is cut between characters.
    #[test]
    fn messages_are_bounded() {
        assert_eq!(cut("short"), "short");
        let long = "ä".repeat(MESSAGE_BYTES_MAX);
        assert_eq!(cut(&format!("x{long}")).len(), MESSAGE_BYTES_MAX - 1);
    }
}
