//! The cluster's CA: made once, kept in a Secret, its certificate published in a ConfigMap.
//!
//! Comes in: the two objects. Goes out: the CA that signs, and a ConfigMap that says the same as the Secret.
//! Never done here: replacing a CA. A person does, by writing the Secret: the new certificate first and the
//! old ones behind it, with the new key (docs/operations.md has the steps); the ConfigMap follows.
//!
//! The Secret is made by a create, which the API server carries out for one of two instances only; the other
//! one reads what that one made.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    runtime::{WatchStreamExt as _, watcher::watch_object},
};
use thiserror::Error;

use crate::pki::{
    authority::{self, AUTHORITY_DAYS, Authority, AuthorityError},
    kubernetes::{CA_CERTIFICATE_ENTRY, CA_CONFIG_MAP, api_reason, is_code},
    spiffe::TrustDomain,
    validity::{Rfc3339, Validity, unix_now},
};

/// The Secret with the CA's key.
pub const CA_SECRET: &str = "fabric-ca-key";
/// The key in it.
pub const CA_KEY_ENTRY: &str = "ca-key.pem";
/// The type of the Secret, so that nobody takes it for another one.
const SECRET_TYPE: &str = "fabric.dev/ca";
/// A CA that ends within this deserves attention.
const WARN_BEFORE_DAYS: i64 = 90;
/// Wait after an attempt to write the ConfigMap that failed.
const RETRY: Duration = Duration::from_secs(2);

/// Why there is no CA, or not the one that should be.
#[derive(Debug, Error)]
pub enum CaError {
    /// The API server did not do what was asked.
    #[error(
        "cannot {action} {object}: {reason}; the ServiceAccount fabric-signer needs the Role of the manifest"
    )]
    Api {
        /// What was tried.
        action: &'static str,
        /// On what.
        object: String,
        /// What was said.
        reason: String,
    },
    /// The Secret holds something else.
    #[error(
        "Secret {namespace}/{CA_SECRET} cannot be used: {reason}; restore it, or delete it to have a new CA made (every node then asks for a new certificate)"
    )]
    Content {
        /// Where it is.
        namespace: String,
        /// What is wrong.
        reason: String,
    },
    /// The CA is of another cluster.
    #[error(
        "the CA in Secret {namespace}/{CA_SECRET} is for the trust domain {found}, and --trust-domain is {expected}: make them the same"
    )]
    TrustDomain {
        /// Where it is.
        namespace: String,
        /// The CA's.
        found: TrustDomain,
        /// The one this signer was started for.
        expected: TrustDomain,
    },
    /// A CA could not be made.
    #[error(transparent)]
    Make(#[from] AuthorityError),
}

/// The CA in use, followed as the Secret changes.
pub struct Keeper {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    namespace: String,
    trust_domain: TrustDomain,
    current: Mutex<Arc<Authority>>,
}

impl Keeper {
    /// Reads the CA, or makes it where there is none, and publishes its certificate.
    ///
    /// # Errors
    ///
    /// [`CaError`].
    pub async fn open(
        client: &Client,
        namespace: &str,
        trust_domain: &TrustDomain,
    ) -> Result<Self, CaError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let object = || format!("Secret {namespace}/{CA_SECRET}");
        let found = secrets
            .get_opt(CA_SECRET)
            .await
            .map_err(|error| refused("read", object(), &error))?;
        let secret = match found {
            Some(secret) => secret,
            None => make(&secrets, namespace, trust_domain).await?,
        };
        let authority = authority_of(&secret, namespace, trust_domain)?;
        let keeper = Self {
            secrets,
            maps: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
            trust_domain: trust_domain.clone(),
            current: Mutex::new(Arc::new(authority)),
        };
        keeper.publish().await?;
        Ok(keeper)
    }

    /// The CA to sign with.
    #[must_use]
    pub fn current(&self) -> Arc<Authority> {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Follows the Secret, and keeps the ConfigMap as it should be, for ever.
    pub async fn keep(&self) {
        let secrets = watch_object(self.secrets.clone(), CA_SECRET).default_backoff();
        let maps = watch_object(self.maps.clone(), CA_CONFIG_MAP).default_backoff();
        tokio::pin!(secrets, maps);
        loop {
            tokio::select! {
                Some(event) = secrets.next() => match event {
                    Ok(Some(secret)) => self.follow(&secret),
                    Ok(None) => tracing::error!(
                        secret = CA_SECRET, namespace = self.namespace,
                        "the CA's Secret has been deleted: this instance signs on with what it has, and another CA is made after a restart; restore the Secret"
                    ),
                    Err(error) => tracing::debug!(%error, "watching the CA's Secret"),
                },
                Some(event) = maps.next() => if let Err(error) = event {
                    tracing::debug!(%error, "watching the CA's ConfigMap");
                },
                else => return,
            }
            while let Err(error) = self.publish().await {
                tracing::error!(%error, "the CA's certificate is not published");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    fn follow(&self, secret: &Secret) {
        match authority_of(secret, &self.namespace, &self.trust_domain) {
            Ok(next) => {
                let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
                if current.certificate_pem() != next.certificate_pem() {
                    tracing::info!(until = %Rfc3339(next.validity().not_after), "another CA signs from now on");
                    *current = Arc::new(next);
                }
            }
            Err(error) => tracing::error!(%error, "the CA in use stays"),
        }
    }

    /// Makes the ConfigMap say what the CA in use says.
    async fn publish(&self) -> Result<(), CaError> {
        let wanted = self.current().certificate_pem().to_owned();
        let object = || format!("ConfigMap {}/{CA_CONFIG_MAP}", self.namespace);
        let found = self
            .maps
            .get_opt(CA_CONFIG_MAP)
            .await
            .map_err(|error| refused("read", object(), &error))?;
        let (result, action) = match found {
            None => {
                let map = ConfigMap {
                    metadata: labelled(CA_CONFIG_MAP),
                    data: Some(BTreeMap::from([(CA_CERTIFICATE_ENTRY.to_owned(), wanted)])),
                    ..ConfigMap::default()
                };
                let created = self.maps.create(&PostParams::default(), &map).await;
                (created, "create")
            }
            Some(mut map) => {
                let data = map.data.get_or_insert_default();
                if data.get(CA_CERTIFICATE_ENTRY) == Some(&wanted) {
                    return Ok(());
                }
                data.insert(CA_CERTIFICATE_ENTRY.to_owned(), wanted);
                let params = PostParams::default();
                let replaced = self.maps.replace(CA_CONFIG_MAP, &params, &map).await;
                (replaced, "write")
            }
        };
        match result {
            Ok(_) => {
                tracing::info!(
                    config_map = CA_CONFIG_MAP,
                    namespace = self.namespace,
                    "the CA's certificate is published"
                );
                Ok(())
            }
            Err(error) => Err(refused(action, object(), &error)),
        }
    }
}

/// Makes a CA; what another instance has made meanwhile is that one's.
async fn make(
    secrets: &Api<Secret>,
    namespace: &str,
    trust_domain: &TrustDomain,
) -> Result<Secret, CaError> {
    let made = authority::init(trust_domain.as_str(), AUTHORITY_DAYS)?;
    let entry = |name: &str, text: &str| (name.to_owned(), ByteString(text.as_bytes().to_vec()));
    let secret = Secret {
        metadata: labelled(CA_SECRET),
        type_: Some(SECRET_TYPE.to_owned()),
        data: Some(BTreeMap::from([
            entry(CA_CERTIFICATE_ENTRY, made.certificate_pem()),
            entry(CA_KEY_ENTRY, made.key_pem()),
        ])),
        ..Secret::default()
    };
    let object = || format!("Secret {namespace}/{CA_SECRET}");
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(secret) => {
            tracing::info!(
                secret = CA_SECRET,
                namespace,
                days = AUTHORITY_DAYS,
                "made the cluster's CA"
            );
            Ok(secret)
        }
        Err(error) if is_code(&error, 409) => secrets
            .get(CA_SECRET)
            .await
            .map_err(|error| refused("read", object(), &error)),
        Err(error) => Err(refused("create", object(), &error)),
    }
}

fn labelled(name: &str) -> ObjectMeta {
    let labels = [
        ("app.kubernetes.io/name", "fabric"),
        ("app.kubernetes.io/component", "signer"),
    ];
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(
            labels
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        ),
        ..ObjectMeta::default()
    }
}

fn refused(action: &'static str, object: String, error: &kube::Error) -> CaError {
    CaError::Api {
        action,
        object,
        reason: api_reason(error),
    }
}

/// The CA in the Secret: its first certificate signs, and all of them are published.
fn authority_of(
    secret: &Secret,
    namespace: &str,
    trust_domain: &TrustDomain,
) -> Result<Authority, CaError> {
    let content = |reason: String| CaError::Content {
        namespace: namespace.to_owned(),
        reason,
    };
    let text = |entry: &str| {
        let ByteString(bytes) = secret
            .data
            .as_ref()
            .and_then(|data| data.get(entry))
            .ok_or_else(|| content(format!("it has no {entry}")))?;
        String::from_utf8(bytes.clone()).map_err(|_| content(format!("{entry} is no text")))
    };
    let authority = Authority::from_pem(&text(CA_CERTIFICATE_ENTRY)?, &text(CA_KEY_ENTRY)?)
        .map_err(|error| content(error.to_string()))?;
    if authority.trust_domain() != trust_domain {
        return Err(CaError::TrustDomain {
            namespace: namespace.to_owned(),
            found: authority.trust_domain().clone(),
            expected: trust_domain.clone(),
        });
    }
    let left = authority.validity().seconds_left(unix_now());
    if left < WARN_BEFORE_DAYS * Validity::DAY_SECONDS {
        tracing::warn!(
            until = %Rfc3339(authority.validity().not_after),
            "the CA is at its end: put a new one in front of it (docs/operations.md, Certificates)"
        );
    }
    Ok(authority)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn secret(entries: &[(&str, &str)]) -> Secret {
        let entry = |(name, text): &(&str, &str)| {
            ((*name).to_owned(), ByteString(text.as_bytes().to_vec()))
        };
        Secret {
            data: Some(entries.iter().map(entry).collect()),
            ..Secret::default()
        }
    }

    /// The first certificate must be the key's, further ones are published with it, and everything else is
    /// refused with the Secret's name.
    #[test]
    fn the_secret_is_checked() {
        let domain = TrustDomain::new("cluster.local").unwrap();
        let [old, new] = [1, 2].map(|_| authority::init("cluster.local", 10).unwrap());
        let other = authority::init("elsewhere", 10).unwrap();
        let both = [new.certificate_pem(), old.certificate_pem()].concat();
        let take = |entries: &[(&str, &str)]| authority_of(&secret(entries), "ns", &domain);
        let ca = take(&[("ca.pem", &both), ("ca-key.pem", new.key_pem())]).unwrap();
        assert_eq!(ca.certificate_pem(), both);
        for (entries, word) in [
            (vec![], "has no ca.pem"),
            (vec![("ca.pem", both.as_str())], "has no ca-key.pem"),
            (
                vec![("ca.pem", &both), ("ca-key.pem", old.key_pem())],
                "does not match",
            ),
            (
                vec![("ca.pem", "x"), ("ca-key.pem", old.key_pem())],
                "not a PEM certificate",
            ),
            (
                vec![
                    ("ca.pem", other.certificate_pem()),
                    ("ca-key.pem", other.key_pem()),
                ],
                "elsewhere",
            ),
        ] {
            let error = take(&entries).err().unwrap().to_string();
            assert!(
                error.contains(word) && error.contains("ns/fabric-ca-key"),
                "{error}"
            );
        }
    }
}
