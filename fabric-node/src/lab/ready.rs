//! Asking a daemon's admin socket, and waiting until it answers as wanted. Every wait is bounded
//! and ends early when the daemon does.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use fabric_proto::admin::{Document, Status};
use serde::de::DeserializeOwned;

use super::{interrupt::Interrupt, process::Process, state::Worker};

/// How long a daemon may take from its start until it is ready.
pub const READY_MAX: Duration = Duration::from_secs(15);
/// How long the daemons may take until each is connected to all others.
pub const PEERS_MAX: Duration = Duration::from_secs(20);

/// Time between two questions.
const INTERVAL: Duration = Duration::from_millis(25);
/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Largest answer read (bytes).
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Lines of the log shown when a daemon fails.
const LOG_LINES: usize = 20;

/// Asks `path` of an admin socket; status code and body.
///
/// # Errors
///
/// The socket is not there, does not answer in time, or not in HTTP.
pub fn get(socket: &Path, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    // With HTTP/1.0 the answer ends with the connection (RFC 9112 section 6.3).
    let question =
        format!("GET {path} HTTP/1.0\r\nHost: fabric\r\nAccept: application/json\r\n\r\n");
    stream.write_all(question.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    parse(&answer).with_context(|| format!("{} answered {path} with no HTTP", socket.display()))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head
        .strip_prefix("HTTP/1.")?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()?;
    Some((code, body.to_owned()))
}

/// Asks for a document of the admin API.
///
/// # Errors
///
/// As [`get`]; an answer other than 200; a document of another shape.
pub fn document<T: DeserializeOwned>(socket: &Path, path: &str) -> anyhow::Result<T> {
    let (code, body) = get(socket, path)?;
    if code != 200 {
        bail!(
            "{} answered {path} with status {code}: {}",
            socket.display(),
            body.trim()
        );
    }
    let document: Document<T> = serde_json::from_str(&body)
        .with_context(|| format!("{} answered {path} with another document", socket.display()))?;
    Ok(document.content)
}

/// Waits until the daemon says that it is ready.
///
/// # Errors
///
/// It ended, or was not ready in time; with the tail of its log. Or the user interrupted.
pub fn wait_ready(worker: &Worker, interrupt: &Interrupt) -> anyhow::Result<()> {
    wait(worker, READY_MAX, interrupt, || {
        match get(&worker.admin_socket(), "/readyz")? {
            (200, _) => Ok(()),
            (code, body) => bail!("/readyz says {code} {}", body.trim()),
        }
    })
    .with_context(|| format!("the daemon of {} is not ready", worker.name))
}

/// Waits until the daemon is connected to `peers` other daemons.
///
/// # Errors
///
/// As [`wait_ready`].
pub fn wait_peers(worker: &Worker, peers: usize, interrupt: &Interrupt) -> anyhow::Result<()> {
    wait(worker, PEERS_MAX, interrupt, || {
        let status: Status = document(&worker.admin_socket(), "/v1/status")?;
        if usize::try_from(status.peers_connected).is_ok_and(|connected| connected >= peers) {
            Ok(())
        } else {
            bail!("{} of {peers} peers are connected", status.peers_connected)
        }
    })
    .with_context(|| format!("{} has not reached all other workers", worker.name))
}

fn wait(
    worker: &Worker,
    limit: Duration,
    interrupt: &Interrupt,
    mut ask: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    let process = worker.pid.and_then(Process::open);
    loop {
        let Err(why) = ask() else { return Ok(()) };
        interrupt.check()?;
        let ended = process
            .as_ref()
            .is_none_or(|process| process.wait(INTERVAL));
        if ended {
            bail!("its process has ended; {}", log_tail(&worker.log_file()));
        }
        if Instant::now() >= deadline {
            bail!(
                "{why:#} after {} s; {}",
                limit.as_secs(),
                log_tail(&worker.log_file())
            );
        }
    }
}

/// The last lines of a log, introduced by its path.
#[must_use]
pub fn log_tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines
        .get(lines.len().saturating_sub(LOG_LINES)..)
        .unwrap_or_default();
    if tail.is_empty() {
        format!("{} is empty", log.display())
    } else {
        format!("the end of {}:\n  {}", log.display(), tail.join("\n  "))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::net::UnixListener;

    use super::*;

    fn answering(answer: &'static str) -> (tempfile::TempDir, std::thread::JoinHandle<String>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (dir, server)
    }

    /// Status code and body come back, and the question is one that ends with its answer.
    #[test]
    fn an_answer_is_read_to_its_end() {
        let (dir, server) = answering("HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\nnot yet\n");
        assert_eq!(
            get(&dir.path().join("s"), "/readyz").unwrap(),
            (503, "not yet\n".to_owned())
        );
        assert!(
            server
                .join()
                .unwrap()
                .starts_with("GET /readyz HTTP/1.0\r\n")
        );
    }

    /// What is not HTTP is an error that names the socket.
    #[test]
    fn nonsense_is_named() {
        let (dir, server) = answering("hello");
        let error = format!("{:#}", get(&dir.path().join("s"), "/readyz").unwrap_err());
        assert!(
            error.contains("no HTTP") && error.contains("/s "),
            "{error}"
        );
        server.join().unwrap();
    }

    /// Only the end of a long log is shown.
    #[test]
    fn only_the_end_of_a_log_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert!(log_tail(&log).ends_with("is empty"));
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        fs::write(&log, text).unwrap();
        let tail = log_tail(&log);
        assert!(tail.contains("line 80") && tail.contains("line 99") && !tail.contains("line 79"));
    }
}
