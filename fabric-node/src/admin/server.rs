//! The admin API's server.
//!
//! Comes in: HTTP/1.1 on a unix socket (mode 0600), from root or the daemon's own user; others are
//! hung up on. Goes out: the documents of [`fabric_proto::admin`]. Never done here: changing anything.

use std::{
    future::Future,
    io,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream as BlockingUnixStream,
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get, serve::Listener};
use fabric_proto::admin::{API_VERSION, Document, DropList, PeerList, PodList, RouteList, Status};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{STATE_READY, View};

/// Connections at once; further ones wait in the socket's backlog.
pub const CONNECTIONS_MAX: usize = 64;
/// Pause after a failed accept, so that a lack of descriptors does not burn a core (milliseconds).
const ACCEPT_RETRY_MS: u64 = 100;
const SOCKET_MODE: u32 = 0o600;

/// Why the socket cannot be listened on.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Somebody answers there.
    #[error(
        "another daemon answers on the admin socket {path}: stop it, or give this one another run directory"
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else lies there.
    #[error(
        "{path} exists and is not a socket: remove it, or give the daemon another run directory"
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot listen on the admin socket {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound admin socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct AdminListener {
    listener: UnixListener,
    path: PathBuf,
    own_uid: u32,
    slots: Arc<Semaphore>,
}

impl AdminListener {
    /// Binds `path`, in place of a socket that a dead daemon left. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub fn bind(path: &Path) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Io {
            path: path.to_owned(),
            source,
        };
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Between bind and chmod the peer's credentials still keep others out.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))
            .map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            own_uid: rustix::process::geteuid().as_raw(),
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        })
    }

    async fn accept_permitted(&self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.listener.accept().await?;
        let uid = stream.peer_cred()?.uid();
        if is_permitted(uid, self.own_uid) {
            return Ok(Some(stream));
        }
        tracing::warn!(uid, socket = %self.path.display(), "admin connection of another user refused");
        Ok(None)
    }
}

/// Root and the daemon's own user may ask; others learn nothing.
fn is_permitted(uid: u32, own_uid: u32) -> bool {
    uid == 0 || uid == own_uid
}

impl Drop for AdminListener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Answers until `shutdown` resolves; requests under way are finished.
///
/// # Errors
///
/// What the HTTP server could not recover from.
pub async fn serve<V: View>(
    listener: AdminListener,
    view: Arc<V>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router(view))
        .with_graceful_shutdown(shutdown)
        .await
}

/// The routes, without a socket.
pub fn router<V: View>(view: Arc<V>) -> Router {
    Router::new()
        .route("/v1/status", get(status::<V>))
        .route("/v1/peers", get(peers::<V>))
        .route("/v1/pods", get(pods::<V>))
        .route("/v1/routes", get(routes::<V>))
        .route("/v1/drops", get(drops::<V>))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz::<V>))
        .with_state(view)
}

async fn status<V: View>(State(view): State<Arc<V>>) -> Json<Document<Status>> {
    document("Status", view.status())
}

async fn peers<V: View>(State(view): State<Arc<V>>) -> Json<Document<PeerList>> {
    document("PeerList", view.peers())
}

async fn pods<V: View>(State(view): State<Arc<V>>) -> Json<Document<PodList>> {
    document("PodList", view.pods())
}

async fn routes<V: View>(State(view): State<Arc<V>>) -> Json<Document<RouteList>> {
    document("RouteList", view.routes())
}

async fn drops<V: View>(State(view): State<Arc<V>>) -> Json<Document<DropList>> {
    document("DropList", view.drops())
}

async fn readyz<V: View>(State(view): State<Arc<V>>) -> (StatusCode, String) {
    let status = view.status();
    if status.state == STATE_READY {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let mut text = format!("{}\n", status.state);
    for reason in status.reasons {
        text.push_str(&reason);
        text.push('\n');
    }
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

fn document<T>(kind: &str, content: T) -> Json<Document<T>> {
    Json(Document {
        api_version: API_VERSION.to_owned(),
        kind: kind.to_owned(),
        content,
    })
}

fn remove_stale(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError::Io {
        path: path.to_owned(),
        source,
    };
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    if !kind.is_socket() {
        return Err(ServeError::NotASocket {
            path: path.to_owned(),
        });
    }
    match BlockingUnixStream::connect(path) {
        Ok(_) => Err(ServeError::InUse {
            path: path.to_owned(),
        }),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(e) => Err(failed(e)),
    }
}

impl Listener for AdminListener {
    type Io = Connection;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let slot = Arc::clone(&self.slots).acquire_owned().await.ok();
            match self.accept_permitted().await {
                Ok(Some(stream)) => {
                    if let Ok(address) = stream.peer_addr() {
                        return (
                            Connection {
                                stream,
                                _slot: slot,
                            },
                            address,
                        );
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, socket = %self.path.display(), "cannot accept on the admin socket");
                    tokio::time::sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// One accepted connection, holding its place among [`CONNECTIONS_MAX`].
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    _slot: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::sync::oneshot;

    use super::*;
    use crate::admin::{
        STATE_DEGRADED,
        client::{Client, ClientError},
        sample::Sample,
    };

    struct Running {
        dir: tempfile::TempDir,
        stop: oneshot::Sender<()>,
        task: tokio::task::JoinHandle<io::Result<()>>,
    }

    impl Running {
        fn start(state: &'static str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let listener = AdminListener::bind(&dir.path().join("admin.sock")).unwrap();
            let (stop, stopped) = oneshot::channel();
            let shutdown = async move {
                let _ = stopped.await;
            };
            #[expect(clippy::disallowed_methods, reason = "the test awaits it")]
            let task = tokio::spawn(serve(listener, Arc::new(Sample { state }), shutdown));
            Self { dir, stop, task }
        }

        fn client(&self) -> Client {
            Client::new(&self.dir.path().join("admin.sock"), Duration::from_secs(10))
        }
    }

    /// Every document travels over a real socket unchanged.
    #[tokio::test]
    async fn documents_arrive_unchanged() {
        let running = Running::start(STATE_READY);
        let (client, sample) = (running.client(), Sample { state: STATE_READY });
        let status = client.status().await.unwrap();
        assert_eq!(
            (status.api_version.as_str(), status.kind.as_str()),
            ("fabric/v1", "Status")
        );
        assert_eq!(status.content, sample.status());
        assert_eq!(client.peers().await.unwrap().content, sample.peers());
        assert_eq!(client.pods().await.unwrap().content, sample.pods());
        assert_eq!(client.routes().await.unwrap().content, sample.routes());
        assert_eq!(client.drops().await.unwrap().content, sample.drops());
    }

    /// The socket is for its owner alone, and gone after an orderly end.
    #[tokio::test]
    async fn socket_file() {
        let running = Running::start(STATE_READY);
        let path = running.dir.path().join("admin.sock");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        running.stop.send(()).unwrap();
        running.task.await.unwrap().unwrap();
        assert!(!path.exists());
    }

    /// Root and the daemon's own user are heard, nobody else is.
    #[test]
    fn who_is_heard() {
        assert!(is_permitted(0, 1000) && is_permitted(1000, 1000) && is_permitted(0, 0));
        assert!(!is_permitted(1001, 1000) && !is_permitted(65_534, 0));
    }

    /// Health answers 200; readiness answers 503 with the reasons while degraded.
    #[tokio::test]
    async fn probes() {
        let ready = Running::start(STATE_READY);
        assert_eq!(ready.client().get("/healthz").await.unwrap(), b"ok\n");
        assert_eq!(ready.client().get("/readyz").await.unwrap(), b"ok\n");
        let degraded = Running::start(STATE_DEGRADED);
        assert_eq!(degraded.client().get("/healthz").await.unwrap(), b"ok\n");
        let error = degraded.client().get("/readyz").await.unwrap_err();
        let ClientError::Answer { status, body, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(status, 503);
        assert!(body.contains("no peer is connected"), "{body}");
        let unknown = degraded.client().get("/v2/status").await.unwrap_err();
        assert!(
            matches!(unknown, ClientError::Answer { status: 404, .. }),
            "{unknown}"
        );
    }

    /// A second daemon is refused; a socket left by a dead one, and only a socket, is replaced.
    #[tokio::test]
    async fn taken_and_stale_sockets() {
        let running = Running::start(STATE_READY);
        let path = running.dir.path().join("admin.sock");
        assert!(matches!(
            AdminListener::bind(&path),
            Err(ServeError::InUse { .. })
        ));

        let stale = running.dir.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        AdminListener::bind(&stale).unwrap();

        let file = running.dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(matches!(
            AdminListener::bind(&file),
            Err(ServeError::NotASocket { .. })
        ));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }

    /// More connections than there are places do not starve the ones that end.
    #[tokio::test]
    async fn connections_are_bounded() {
        let running = Running::start(STATE_READY);
        let path = running.dir.path().join("admin.sock");
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            idle.push(UnixStream::connect(&path).await.unwrap());
        }
        #[expect(clippy::disallowed_methods, reason = "the test awaits it")]
        let waiting = tokio::spawn({
            let client = running.client();
            async move { client.status().await }
        });
        idle.clear();
        waiting.await.unwrap().unwrap();
    }
}
