//! Connections to whichever API server answers: the candidates in turn, TLS included.
//!
//! Comes in: the wish of a client for a connection. Goes out: a byte stream that ends by itself when
//! the other side has been silent for too long. The name in the certificate is always the same,
//! whatever the address was.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{
    Uri,
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use kube::{Config, client::ConfigExt as _};
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep, timeout},
};
use tower::{BoxError, Service};

use super::candidates::{Candidate, Candidates};

/// How long one candidate may take until TLS is up.
pub const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long a connection may be silent while something is waited for. On an open watch the API server
/// sends a bookmark about every minute.
pub const SILENCE_MAX: Duration = Duration::from_secs(100);

/// Makes connections.
#[derive(Clone)]
pub struct Connector {
    config: Arc<Config>,
    candidates: Arc<Candidates>,
    silence_max: Duration,
}

impl Connector {
    /// To one of `candidates`, with the TLS of `config`; silent for `silence_max` at most.
    #[must_use]
    pub fn new(config: Arc<Config>, candidates: Arc<Candidates>, silence_max: Duration) -> Self {
        Self {
            config,
            candidates,
            silence_max,
        }
    }

    async fn connect(self, uri: Uri) -> Result<Stream, BoxError> {
        let candidates = self.candidates.list();
        if candidates.is_empty() {
            return Err("no address of an API server is known: neither a kept EndpointSlice, nor a kubeconfig of the kubelet below source.host_root, nor KUBERNETES_SERVICE_HOST".into());
        }
        let mut failures = Vec::new();
        for candidate in candidates {
            let mut https = self
                .config
                .rustls_https_connector_with_connector(Tcp(candidate.clone()))?;
            match timeout(CONNECT_MAX, https.call(uri.clone())).await {
                Ok(Ok(stream)) => {
                    self.candidates.connected(&candidate);
                    return Ok(Stream {
                        inner: Box::pin(stream),
                        silence: Box::pin(sleep(self.silence_max)),
                        silence_max: self.silence_max,
                        candidate,
                        candidates: self.candidates,
                    });
                }
                Ok(Err(error)) => failures.push(format!("{candidate}: {}", innermost(&*error))),
                Err(_) => failures.push(format!("{candidate}: no answer within {CONNECT_MAX:?}")),
            }
        }
        Err(failures.join(", ").into())
    }
}

/// The cause beneath all others says what happened.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// TCP to one candidate, whatever the URL says.
#[derive(Clone)]
struct Tcp(Candidate);

impl Service<Uri> for Tcp {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Candidate { host, port } = self.0.clone();
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
            let stream = TcpStream::connect(&*addresses).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
}

trait Bytes: Read + Write + Connection + Send {}
impl<T: Read + Write + Connection + Send> Bytes for T {}

/// A connection.
pub struct Stream {
    inner: Pin<Box<dyn Bytes>>,
    /// Ends when nothing has been sent or received for too long.
    silence: Pin<Box<Sleep>>,
    silence_max: Duration,
    candidate: Candidate,
    candidates: Arc<Candidates>,
}

impl Stream {
    fn heard(&mut self) {
        let end = Instant::now() + self.silence_max;
        self.silence.as_mut().reset(end);
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = self.inner.as_mut().poll_read(context, buffer) {
            self.heard();
            return Poll::Ready(read);
        }
        ready!(self.silence.as_mut().poll(context));
        self.candidates.doubt(&self.candidate);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // The wait for an answer begins with the request, not with the end of the last answer.
        let written = self.inner.as_mut().poll_write(context, bytes);
        if written.is_ready() {
            self.heard();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_shutdown(context)
    }
}
