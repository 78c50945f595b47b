//! Health and metrics over TCP, for the kubelet and for Prometheus.
//!
//! Comes in: HTTP/1.1 from whoever reaches the address that `metrics.listen` names. Goes out:
//!
//! * `/healthz`: 200 while the process answers and all data-plane threads are there; otherwise a restart
//!   is what helps.
//! * `/readyz`: 200 while pods can be attached, 503 with the reason otherwise.
//! * `/metrics`: OpenMetrics ([`exposition`]), totals of the node.
//!
//! Never done here: changing anything, telling who a pod is. Nobody is asked who he is, so whoever asks too
//! much must not hurt the node: connections, the time of each, the size of a request and how often the
//! figures are put together are bounded, and it is the oldest connection that gives way to a new one, so
//! that probes are answered although others hold connections open.

pub mod exposition;

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::View;

/// Connections at once; the oldest one is closed for one more.
pub const CONNECTIONS_MAX: usize = 32;
/// How long one connection may take, from its first byte to the last of the answer: there is one request
/// to each.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest head of a request (bytes): the least that the HTTP library reads. Bodies are not read.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Most headers of a request; Prometheus sends six.
const REQUEST_HEADERS_MAX: usize = 32;
/// For this long the same metrics are told again: scrapes cost the node the same however many there are.
const FIGURES_AGE_MAX: Duration = Duration::from_millis(250);
/// Pause after a failed accept, so that a lack of descriptors does not burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";

/// Nobody can listen there.
#[derive(Debug, Error)]
#[error(
    "cannot listen on {address} for health and metrics: {source}; name another address with metrics.listen, or none"
)]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// A bound socket.
#[derive(Debug)]
pub struct MetricsListener {
    listener: TcpListener,
}

impl MetricsListener {
    /// Binds `address`. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`BindError`]: somebody else listens there, or the node does not have the address.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let bound = || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let listener = bound().map_err(|source| BindError { address, source })?;
        Ok(Self { listener })
    }

    /// Where it listens: with the port that the kernel chose, where it was asked for port 0.
    ///
    /// # Errors
    ///
    /// The kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Answers until `stopped` resolves; whatever is under way ends with it.
pub async fn serve<V: View>(
    listener: MetricsListener,
    view: Arc<V>,
    stopped: impl Future<Output = ()>,
) {
    let pages = Arc::new(Pages::new(view));
    tokio::select! {
        () = accept(&listener.listener, &pages) => {}
        () = stopped => {}
    }
}

/// Never ends.
async fn accept<V: View>(listener: &TcpListener, pages: &Arc<Pages<V>>) {
    let mut connections = JoinSet::new();
    let mut by_age: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for health and metrics");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        by_age.retain(|connection| !connection.is_finished());
        if by_age.len() >= CONNECTIONS_MAX
            && let Some(oldest) = by_age.pop_front()
        {
            oldest.abort();
        }
        by_age.push_back(connections.spawn(exchange(stream, pages.clone())));
    }
}

/// One request and its answer. However that fails is the other side's affair.
async fn exchange<V: View>(stream: TcpStream, pages: Arc<Pages<V>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = pages.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(REQUEST_BYTES_MAX)
        .max_headers(REQUEST_HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let _ = timeout(EXCHANGE_TIMEOUT, connection).await;
}

/// What there is to be read.
struct Pages<V> {
    view: Arc<V>,
    /// The metrics as they were told last, and when.
    told: Mutex<Option<(Instant, Bytes)>>,
}

impl<V: View> Pages<V> {
    fn new(view: Arc<V>) -> Self {
        Self {
            view,
            told: Mutex::new(None),
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if ![Method::GET, Method::HEAD].contains(method) {
            let mut refused = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n");
            let allowed = HeaderValue::from_static("GET, HEAD");
            refused.headers_mut().insert(ALLOW, allowed);
            return refused;
        }
        match path {
            "/healthz" => self.healthz(),
            "/readyz" => self.readyz(),
            "/metrics" => self.metrics(),
            _ => {
                let known = "there is /healthz, /readyz and /metrics\n";
                page(StatusCode::NOT_FOUND, TEXT, known)
            }
        }
    }

    fn healthz(&self) -> Response<Full<Bytes>> {
        if self.view.dataplane_runs() {
            page(StatusCode::OK, TEXT, "ok\n")
        } else {
            let reason = "a data-plane thread has ended\n";
            page(StatusCode::SERVICE_UNAVAILABLE, TEXT, reason)
        }
    }

    fn readyz(&self) -> Response<Full<Bytes>> {
        match self.view.obstacle() {
            None => page(StatusCode::OK, TEXT, "ok\n"),
            Some(reason) => page(
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                format!("no pod can be attached: {reason}\n"),
            ),
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, text)) = &*told
            && at.elapsed() < FIGURES_AGE_MAX
        {
            return page(StatusCode::OK, exposition::CONTENT_TYPE, text.clone());
        }
        match exposition::text(&*self.view) {
            Ok(text) => {
                let text = Bytes::from(text);
                *told = Some((Instant::now(), text.clone()));
                page(StatusCode::OK, exposition::CONTENT_TYPE, text)
            }
            Err(error) => {
                let reason = format!("the metrics cannot be written: {error}\n");
                page(StatusCode::INTERNAL_SERVER_ERROR, TEXT, reason)
            }
        }
    }
}

fn page(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut page = Response::new(Full::new(body.into()));
    *page.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    page.headers_mut().insert(CONTENT_TYPE, content_type);
    page
}

#[cfg(test)]
mod tests;
