#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::oneshot,
};

use super::*;
use crate::admin::{
    STATE_DEGRADED, STATE_READY,
    sample::{NO_DATAPLANE, Sample},
};

/// Runs `asking` against a server of a node in `state`; the server has ended when this returns.
async fn with_server<F: Future<Output = ()>>(
    state: &'static str,
    asking: impl FnOnce(SocketAddr) -> F,
) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = MetricsListener::bind(any).unwrap();
    let address = listener.address().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async { stopped.await.unwrap_or_default() };
    let asked = async {
        asking(address).await;
        drop(stop);
    };
    tokio::join!(serve(listener, Arc::new(Sample { state }), stopped), asked);
}

/// The whole answer to `request`; empty where the server hangs up without one.
async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that refuses hangs up before it has read all.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await
}

/// A node in order is healthy and ready, and tells its metrics with the type that scrapers look for.
#[tokio::test]
async fn a_node_in_order() {
    with_server(STATE_READY, async |address| {
        for path in ["/healthz", "/readyz"] {
            let answer = get(address, path).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
        }
        let answer = get(address, "/metrics").await;
        assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"));
        assert!(answer.ends_with("# EOF\n"), "{answer}");
    })
    .await;
}

/// A node that cannot attach pods is healthy and not ready, with the reason; one that has lost a
/// data-plane thread is not healthy.
#[tokio::test]
async fn a_node_out_of_order() {
    with_server(STATE_DEGRADED, async |address| {
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.ends_with("no state is in force yet\n"), "{answer}");
    })
    .await;
    with_server(NO_DATAPLANE, async |address| {
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 503"));
    })
    .await;
}

/// Other paths, other methods and what is no HTTP are refused; a body is not read.
#[tokio::test]
async fn other_requests() {
    with_server(STATE_READY, async |address| {
        for path in ["/", "/v1/status", "/metrics/../v1/pods"] {
            let answer = get(address, path).await;
            assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        }
        for method in ["POST", "PUT", "DELETE", "CONNECT"] {
            let request = format!("{method} /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
            let answer = ask(address, &request).await;
            assert!(!answer.starts_with("HTTP/1.1 2"), "{method}: {answer}");
        }
        let answer = ask(address, "\x00\x01\x02\r\n\r\n").await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
        let head = ask(address, "HEAD /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && !head.contains("fabric_"));
    })
    .await;
}

/// A head that is larger than any of a scraper is refused, and so are more headers.
#[tokio::test]
async fn large_requests_are_refused() {
    with_server(STATE_READY, async |address| {
        let long = format!("/healthz?{}", "x".repeat(2 * REQUEST_BYTES_MAX));
        let many = "a: b\r\n".repeat(REQUEST_HEADERS_MAX + 1);
        for request in [
            format!("GET {long} HTTP/1.1\r\nhost: x\r\n\r\n"),
            format!("GET /healthz HTTP/1.1\r\n{many}\r\n"),
        ] {
            let answer = ask(address, &request).await;
            assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
        }
    })
    .await;
}

/// However many connections somebody holds open without asking, a probe is answered at once, and those
/// held open are closed, the oldest first.
#[tokio::test]
async fn idle_connections_do_not_keep_probes_out() {
    with_server(STATE_READY, async |address| {
        let mut idle = Vec::new();
        for _ in 0..3 * CONNECTIONS_MAX {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        for connection in idle.iter_mut().take(2 * CONNECTIONS_MAX) {
            let mut byte = [0];
            let read = timeout(EXCHANGE_TIMEOUT / 2, connection.read(&mut byte)).await;
            assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
        }
    })
    .await;
}

/// A connection on which nothing comes is closed after the time that one may take.
#[tokio::test]
async fn a_silent_connection_is_closed() {
    with_server(STATE_READY, async |address| {
        let mut silent = TcpStream::connect(address).await.unwrap();
        let begun = Instant::now();
        let mut byte = [0];
        assert!(matches!(silent.read(&mut byte).await, Ok(0) | Err(_)));
        assert!(begun.elapsed() >= EXCHANGE_TIMEOUT);
    })
    .await;
}

/// Metrics are put together at most once in [`FIGURES_AGE_MAX`], however many ask.
#[test]
fn figures_are_kept_for_a_moment() {
    let pages = Pages::new(Arc::new(Sample { state: STATE_READY }));
    let _ = pages.metrics();
    let first = pages.told.lock().unwrap().clone().unwrap();
    let _ = pages.metrics();
    assert_eq!(pages.told.lock().unwrap().clone().unwrap(), first);
    let before = first.0.checked_sub(FIGURES_AGE_MAX).unwrap();
    *pages.told.lock().unwrap() = Some((before, first.1));
    let _ = pages.metrics();
    assert!(pages.told.lock().unwrap().as_ref().unwrap().0 > before);
}

/// An address that somebody else listens on is named, with the key that names another.
#[tokio::test]
async fn a_taken_address_is_named() {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let first = MetricsListener::bind(any).unwrap();
    let address = first.address().unwrap();
    let told = MetricsListener::bind(address).unwrap_err().to_string();
    assert!(
        told.contains(&address.to_string()) && told.contains("metrics.listen"),
        "{told}"
    );
}
