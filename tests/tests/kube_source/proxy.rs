//! A bad way to the API server: everything passes through here, and may meet a fault.

use std::{
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use kube::Client;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::sleep};

use super::apiserver::write_kubeconfig;

/// What happens to requests, and to answers that are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// Every answer is this.
    Status(u16),
    /// Every answer is no JSON.
    Garbage,
    /// There is no answer, and what is under way falls silent.
    Hang,
    /// Every answer takes three seconds.
    Slow,
    /// Watches are told that what they have seen is too old.
    Gone,
    /// What is under way is cut off; what is new passes.
    Cut,
}

/// What passed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Passed {
    /// Requests that change something: method and path.
    pub(crate) writes: Vec<String>,
    /// Requests that do not.
    pub(crate) reads: usize,
    /// Bytes of answers.
    pub(crate) bytes: usize,
}

/// The proxy; it ends with this.
pub(crate) struct Proxy {
    dir: TempDir,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

struct Shared {
    client: Client,
    fault: watch::Sender<Fault>,
    passed: Mutex<Passed>,
}

impl Proxy {
    /// Passes everything on by `client`.
    pub(crate) async fn start(client: Client) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let dir = tempfile::tempdir()?;
        let server = format!("http://{}", listener.local_addr()?);
        write_kubeconfig(&dir.path().join("kubeconfig"), &server, None)?;
        let (fault, _) = watch::channel(Fault::None);
        let shared = Arc::new(Shared {
            client,
            fault,
            passed: Mutex::default(),
        });
        let router = Router::new().fallback(pass).with_state(shared.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            dir,
            shared,
            _server: tasks,
        })
    }

    /// Leads through here.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    pub(crate) fn set(&self, fault: Fault) {
        let _ = self.shared.fault.send_replace(fault);
    }

    /// What passed since the last call.
    pub(crate) fn take_passed(&self) -> Passed {
        std::mem::take(&mut self.shared.passed.lock().unwrap())
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let is_watch = request
        .uri()
        .query()
        .is_some_and(|query| query.contains("watch=true"));
    {
        let mut passed = shared.passed.lock().unwrap();
        if request.method() == hyper::Method::GET {
            passed.reads += 1;
        } else {
            let line = format!("{} {}", request.method(), request.uri().path());
            passed.writes.push(line);
        }
    }
    let mut faults = shared.fault.subscribe();
    let fault = *faults.borrow_and_update();
    match fault {
        Fault::None | Fault::Cut => {}
        Fault::Status(code) => return refusal(code),
        Fault::Garbage => return "{\"kind\": \"List\", oops\n".into_response(),
        Fault::Hang => std::future::pending().await,
        Fault::Slow => sleep(Duration::from_secs(3)).await,
        Fault::Gone if is_watch => {
            let event = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version","reason":"Expired","code":410}}"#;
            return format!("{event}\n").into_response();
        }
        Fault::Gone => {}
    }
    let (mut parts, body) = request.into_parts();
    for hop in ["host", "connection", "authorization"] {
        parts.headers.remove(hop);
    }
    let Ok(body) = body.collect().await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let body = kube::client::Body::from(body.to_bytes().to_vec());
    let Ok(answer) = shared.client.send(Request::from_parts(parts, body)).await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let (parts, body) = answer.into_parts();
    let counted = shared.clone();
    let stream = body.into_data_stream().map(move |chunk| {
        let chunk: Result<Bytes, _> = chunk;
        counted.passed.lock().unwrap().bytes += chunk.as_ref().map_or(0, Bytes::len);
        chunk.map_err(axum::Error::new)
    });
    Response::from_parts(parts, Body::from_stream(until_fault(stream, faults)))
}

/// The stream until there is a fault: then it breaks off, or falls silent.
fn until_fault<S>(
    stream: S,
    faults: watch::Receiver<Fault>,
) -> impl futures_util::Stream<Item = Result<Bytes, axum::Error>> + Send
where
    S: futures_util::Stream<Item = Result<Bytes, axum::Error>> + Send + 'static,
{
    futures_util::stream::unfold(
        (Box::pin(stream), faults),
        |(mut stream, mut faults)| async {
            let next = {
                let changed = pin!(faults.changed());
                tokio::select! {
                    biased;
                    _ = changed => None,
                    next = stream.next() => Some(next),
                }
            };
            match next {
                Some(next) => Some((next?, (stream, faults))),
                None if *faults.borrow() == Fault::Hang => std::future::pending().await,
                None => None,
            }
        },
    )
}

fn refusal(code: u16) -> Response {
    let details = if code == 429 {
        r#","details":{"retryAfterSeconds":1}"#
    } else {
        ""
    };
    let status = format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"a fault of the test","reason":"Fault","code":{code}{details}}}"#
    );
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, status).into_response()
}
