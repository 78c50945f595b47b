//! The admin API's client.
//!
//! Comes in: the socket's path. Goes out: documents, or an error that says what to do. One connection
//! per question; an answer is awaited for a limited time and read up to a limited size.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use fabric_proto::admin::{API_VERSION, Document, DropList, PeerList, PodList, RouteList, Status};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

/// Largest answer that is read (bytes): 100 000 routes.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long an answer may take unless asked otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Most of an error's body that is shown (characters).
const ERROR_CHARS_MAX: usize = 500;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no socket, or nobody listens.
    #[error(
        "no daemon answers on {path} ({source}): the daemon is not running or --socket is wrong; look at `systemctl status fabric-node`"
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket is not for this user.
    #[error("permission denied on {path}: run as root (`sudo fabric ...`)")]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed otherwise.
    #[error("cannot connect to {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error(
        "the daemon on {path} did not answer within {seconds} s: it is busy or stuck; look at its log"
    )]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// The conversation broke.
    #[error(
        "the conversation with the daemon on {path} broke: {reason}; it refuses other users than root and its own"
    )]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// It answered with an error.
    #[error("the daemon on {path} answered {status}: {body}")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// HTTP status.
        status: u16,
        /// What it said.
        body: String,
    },
    /// It answered something else.
    #[error(
        "the answer of the daemon on {path} cannot be read: {reason}; `fabric` and the daemon may differ in version"
    )]
    Document {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl ClientError {
    /// Whether the daemon could not be reached at all.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::NotRunning { .. }
            | Self::Permission { .. }
            | Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::Broken { .. } => true,
            Self::Answer { .. } | Self::Document { .. } => false,
        }
    }
}

/// Asks one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    timeout: Duration,
}

impl Client {
    /// A client of the daemon that listens on `path`. Nothing is opened yet.
    #[must_use]
    pub fn new(path: &Path, timeout: Duration) -> Self {
        Self {
            path: path.to_owned(),
            timeout,
        }
    }

    /// `/v1/status`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn status(&self) -> Result<Document<Status>, ClientError> {
        self.document("/v1/status", "Status").await
    }

    /// `/v1/peers`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn peers(&self) -> Result<Document<PeerList>, ClientError> {
        self.document("/v1/peers", "PeerList").await
    }

    /// `/v1/pods`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn pods(&self) -> Result<Document<PodList>, ClientError> {
        self.document("/v1/pods", "PodList").await
    }

    /// `/v1/routes`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn routes(&self) -> Result<Document<RouteList>, ClientError> {
        self.document("/v1/routes", "RouteList").await
    }

    /// `/v1/drops`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn drops(&self) -> Result<Document<DropList>, ClientError> {
        self.document("/v1/drops", "DropList").await
    }

    /// The body of any path.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn get(&self, uri: &str) -> Result<Vec<u8>, ClientError> {
        tokio::time::timeout(self.timeout, self.exchange(uri))
            .await
            .map_err(|_| ClientError::TimedOut {
                path: self.path.clone(),
                seconds: self.timeout.as_secs(),
            })?
    }

    async fn document<T: DeserializeOwned>(
        &self,
        uri: &str,
        kind: &str,
    ) -> Result<Document<T>, ClientError> {
        let unreadable = |reason: String| ClientError::Document {
            path: self.path.clone(),
            reason,
        };
        let body = self.get(uri).await?;
        let document: Document<T> =
            serde_json::from_slice(&body).map_err(|e| unreadable(e.to_string()))?;
        if document.api_version != API_VERSION || document.kind != kind {
            return Err(unreadable(format!(
                "it is a {} {} and not a {API_VERSION} {kind}",
                document.api_version, document.kind
            )));
        }
        Ok(document)
    }

    async fn exchange(&self, uri: &str) -> Result<Vec<u8>, ClientError> {
        let broken = |reason: String| ClientError::Broken {
            path: self.path.clone(),
            reason,
        };
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|e| self.unconnected(e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(e.to_string()))?;
        let request = Request::get(uri)
            .header(HOST, "fabric")
            .body(Empty::<Bytes>::new())
            .map_err(|e| broken(e.to_string()))?;
        let answer = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|e| broken(e.to_string()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
            let body = body.collect().await.map_err(|e| broken(e.to_string()))?;
            Ok((status, body.to_bytes().to_vec()))
        };
        // The connection only has to be driven; how it ended, the answer itself tells.
        let driven = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        let (status, body) = tokio::select! {
            answer = answer => answer?,
            () = driven => return Err(broken("hung up".to_owned())),
        };
        if status == StatusCode::OK {
            return Ok(body);
        }
        let body = String::from_utf8_lossy(&body)
            .trim()
            .chars()
            .take(ERROR_CHARS_MAX)
            .collect();
        Err(ClientError::Answer {
            path: self.path.clone(),
            status: status.as_u16(),
            body,
        })
    }

    fn unconnected(&self, source: io::Error) -> ClientError {
        let path = self.path.clone();
        #[allow(
            clippy::wildcard_enum_match_arm,
            reason = "the enum of std keeps growing"
        )]
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path, source }
            }
            io::ErrorKind::PermissionDenied => ClientError::Permission { path },
            _ => ClientError::Connect { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    use super::*;

    /// A server that reads a request and writes `answer`, then stays silent.
    fn answering(dir: &Path, answer: &'static [u8]) -> PathBuf {
        let path = dir.join("odd.sock");
        let listener = UnixListener::bind(&path).unwrap();
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer).await.unwrap();
            let _ = stream.read(&mut request).await;
        });
        path
    }

    /// A missing socket and one without a listener both mean that the daemon is not running.
    #[tokio::test]
    async fn nobody_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let client = Client::new(&path, TIMEOUT);
        let missing = client.status().await.unwrap_err();
        drop(UnixListener::bind(&path).unwrap());
        let refused = client.status().await.unwrap_err();
        for error in [missing, refused] {
            assert!(error.is_unreachable());
            let text = error.to_string();
            assert!(text.contains("not running or --socket is wrong"), "{text}");
        }
    }

    /// A daemon that does not answer is given up on.
    #[tokio::test]
    async fn silence_times_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = answering(dir.path(), b"");
        let error = Client::new(&path, Duration::from_millis(50))
            .status()
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    }

    /// Other documents, other versions and other protocols are refused, not misread.
    #[tokio::test]
    async fn odd_answers() {
        for answer in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 51\r\n\r\n{\"apiVersion\":\"fabric/v2\",\"kind\":\"PeerList\",\"items\":[]}",
            b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{\"apiVersion\":\"fabric/v1\",\"kind\":\"PodList\",\"items\":[]}",
            b"\x00\x00\x00\x05hello",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = answering(dir.path(), answer);
            let error = Client::new(&path, TIMEOUT).peers().await.unwrap_err();
            let understood =
                matches!(error, ClientError::Document { .. } | ClientError::Broken { .. });
            assert!(understood, "{error}");
        }
    }
}
