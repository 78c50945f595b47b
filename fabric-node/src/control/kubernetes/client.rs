//! The client of the API server: made here, used by all who ask it anything.
//!
//! Comes in: a service account's folder, or a kubeconfig. Goes out: a [`kube::Client`] that finds an
//! API server by itself, reads its token and CA anew when they change, never retries by itself, and
//! takes no answer without end.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{ClientBuilder, ConfigExt as _},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use thiserror::Error;
use tower::{
    BoxError,
    util::{MapErr, MapResponse, option_layer},
};

use super::{
    candidates::{Candidates, candidate_of},
    connector::{Connector, SILENCE_MAX},
};

/// The name that every API server's certificate has.
pub const SERVER_NAME: &str = "kubernetes.default.svc";
/// Where a pod has its service account.
pub const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Longest line of an answer (bytes): a list is one line, an event of a watch another. A list comes in
/// pages of 500 objects, of 1.5 MiB at most each in the API server's store; ours have about 2 KiB.
pub const LINE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a connection without a request is kept.
const POOL_IDLE: Duration = Duration::from_secs(60);

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The kubeconfig is no use.
    #[error("the kubeconfig {path} cannot be used: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<kube::config::KubeconfigError>,
    },
    /// The kubeconfig names no server.
    #[error("the kubeconfig {path} names {server:?} as its server: expected https://HOST:PORT")]
    Server {
        /// The file.
        path: PathBuf,
        /// What it names.
        server: String,
    },
    /// There is no service account.
    #[error(
        "{path} cannot be read: {source}; run the daemon in a pod with its service account mounted, or name a kubeconfig (source.kubeconfig)"
    )]
    ServiceAccount {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The client's own words.
    #[error("no client for the API server can be made: {0}")]
    Client(Box<kube::Error>),
}

/// Who is asked, and as whom.
#[derive(Clone, Debug)]
pub struct Access {
    config: Config,
    candidates: Arc<Candidates>,
    silence_max: Duration,
}

impl Access {
    /// With the service account in the folder `dir`, at one of `candidates`.
    ///
    /// # Errors
    ///
    /// [`ClientError::ServiceAccount`]: its token or the CA cannot be read.
    pub fn of_service_account(dir: &Path, candidates: Candidates) -> Result<Self, ClientError> {
        let (token, ca) = (dir.join("token"), dir.join("ca.crt"));
        for path in [&token, &ca] {
            std::fs::File::open(path).map_err(|source| ClientError::ServiceAccount {
                path: path.clone(),
                source,
            })?;
        }
        let mut config = Config::new(hyper::Uri::from_static("https://kubernetes.default.svc"));
        config.auth_info = AuthInfo {
            token_file: Some(token.display().to_string()),
            ..AuthInfo::default()
        };
        // The list of roots is not used beside the file, and must not be the machine's own.
        config.root_cert = Some(Vec::new());
        config.root_cert_file = Some(ca);
        config.tls_server_name = Some(SERVER_NAME.to_owned());
        Ok(Self {
            config,
            candidates: Arc::new(candidates),
            silence_max: SILENCE_MAX,
        })
    }

    /// With what the kubeconfig at `path` says, its current context.
    ///
    /// # Errors
    ///
    /// [`ClientError`]: it cannot be read, or names no server.
    pub async fn of_kubeconfig(path: &Path) -> Result<Self, ClientError> {
        let unusable = |source| ClientError::Kubeconfig {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let kubeconfig = Kubeconfig::read_from(path).map_err(unusable)?;
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .map_err(unusable)?;
        if config.cluster_url.scheme_str() == Some("http") {
            // Nothing is verified, so the machine's own roots need not be there.
            config.root_cert.get_or_insert_default();
        }
        let server = config.cluster_url.to_string();
        let candidate = candidate_of(&server).ok_or_else(|| ClientError::Server {
            path: path.to_owned(),
            server: server.clone(),
        })?;
        Ok(Self {
            config,
            candidates: Arc::new(Candidates::only(candidate)),
            silence_max: SILENCE_MAX,
        })
    }

    /// Ends connections after another time of silence.
    #[must_use]
    pub fn with_silence_max(self, silence_max: Duration) -> Self {
        Self {
            silence_max,
            ..self
        }
    }

    /// Where API servers are looked for.
    #[must_use]
    pub fn candidates(&self) -> Arc<Candidates> {
        self.candidates.clone()
    }

    /// Makes a client. It connects when it is used. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ClientError::Client`]: the credentials cannot be used.
    pub fn client(&self) -> Result<Client, ClientError> {
        let unusable = |error| ClientError::Client(Box::new(error));
        // Fails where it is there already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config = Arc::new(self.config.clone());
        // That the certificate's own folder can be used is seen here, not at the first connection.
        config.rustls_client_config().map_err(unusable)?;
        let connector = Connector::new(config.clone(), self.candidates(), self.silence_max);
        let http: legacy::Client<_, kube::client::Body> =
            legacy::Client::builder(TokioExecutor::new())
                .pool_idle_timeout(POOL_IDLE)
                .pool_timer(TokioTimer::new())
                .build(connector);
        let bounded = MapResponse::new(http, |answer: hyper::Response<Incoming>| {
            answer.map(Bounded::new)
        });
        let bounded = MapErr::new(bounded, BoxError::from);
        let auth = option_layer(config.auth_layer().map_err(unusable)?);
        let builder = ClientBuilder::new(bounded, config.default_namespace.clone())
            .with_layer(&config.extra_headers_layer().map_err(unusable)?)
            .with_layer(&auth)
            .with_layer(&config.base_uri_layer());
        Ok(builder.build())
    }
}

/// A body whose lines are not without end.
struct Bounded {
    inner: Incoming,
    line: usize,
}

impl Bounded {
    fn new(inner: Incoming) -> Self {
        Self { inner, line: 0 }
    }
}

impl Body for Bounded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(frame) = ready!(Pin::new(&mut self.inner).poll_frame(context)) else {
            return Poll::Ready(None);
        };
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            let after_last = data.iter().rev().position(|byte| *byte == b'\n');
            self.line = after_last.unwrap_or_else(|| self.line.saturating_add(data.len()));
            if self.line > LINE_BYTES_MAX {
                let problem = format!("a line of the answer is longer than {LINE_BYTES_MAX} bytes");
                return Poll::Ready(Some(Err(problem.into())));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
