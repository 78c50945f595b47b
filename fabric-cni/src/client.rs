//! Blocking: one request to the daemon, one response, each within a deadline.
//!
//! A DEL that the daemon does not take becomes a file that it finds later ([`crate::pending`]).

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use fabric_proto::cni::{
    Attached, FRAME_HEADER_LEN, Request, Response, code, decode_frame, encode_frame, frame_length,
};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};
use thiserror::Error;

use crate::{
    error::CniError,
    invocation::{Action, Invocation},
    namespace::is_own_netns,
    pending,
};

/// ADD waits longest: the daemon may be restoring pods. Below the runtime's own two minutes.
const ADD_TIMEOUT: Duration = Duration::from_secs(60);
/// After this a DEL goes to disk.
const DEL_TIMEOUT: Duration = Duration::from_secs(20);
/// CHECK changes nothing and is cheap to repeat.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// GC looks at every attachment of the node.
const GC_TIMEOUT: Duration = Duration::from_secs(60);
/// Runtimes ask STATUS without a deadline of their own and hold locks meanwhile.
const STATUS_TIMEOUT: Duration = Duration::from_millis(1_500);

/// A call that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// ADD, with its result.
    Attached(Attached),
    /// The other verbs have none.
    Silently,
}

/// Why the daemon gave no answer.
#[derive(Debug, Error)]
enum Unanswered {
    #[error("cannot connect to the daemon at {socket}: {source}")]
    Connect { socket: String, source: io::Error },
    #[error("the daemon at {socket} did not answer: {source}")]
    Exchange { socket: String, source: io::Error },
}

/// Asks the daemon. A DEL that nobody takes is kept on disk, and then counts as done.
///
/// # Errors
///
/// An ADD or CHECK names the plugin's own namespace, nobody answers in time, or a DEL cannot be kept.
pub fn ask(invocation: &Invocation) -> Result<Response, CniError> {
    refuse_own_netns(invocation)?;
    let (request, timeout) = request(invocation);
    let unanswered = match exchange(&invocation.socket, &request, timeout) {
        Ok(response) => return Ok(response),
        Err(unanswered) => unanswered,
    };
    match &invocation.action {
        Action::Del { key } => {
            pending::write(&invocation.state_dir, key).map_err(|error| {
                CniError::new(code::IO, format!("{unanswered}; and {error}"))
                    .cure("start the fabric-node daemon, or make the state directory writable")
            })?;
            Ok(Response::Done)
        }
        Action::Status => {
            Err(CniError::new(code::NOT_AVAILABLE, unanswered.to_string()).cure(DAEMON_CURE))
        }
        Action::Add { .. } | Action::Check { .. } | Action::Gc { .. } => {
            Err(CniError::new(code::TRY_AGAIN, unanswered.to_string()).cure(DAEMON_CURE))
        }
    }
}

/// What `response` means for this call: an answer to another question is a failure.
pub(crate) fn done(invocation: &Invocation, response: Response) -> Result<Done, CniError> {
    match (&invocation.action, response) {
        (_, Response::Failed(failure)) => Err(failure.into()),
        (Action::Add { .. }, Response::Attached(attached)) => Ok(Done::Attached(attached)),
        (
            Action::Del { .. } | Action::Check { .. } | Action::Gc { .. } | Action::Status,
            Response::Done,
        ) => Ok(Done::Silently),
        (_, other) => Err(CniError::new(
            code::DECODE,
            format!(
                "the daemon at {} answered another question: {other:?}",
                invocation.socket.display()
            ),
        )
        .cure("plugin and daemon must be of the same release")),
    }
}

/// A DEL frees by key and touches the namespace only through that: it is never refused, also when
/// the process number in its path has come back as another process.
fn refuse_own_netns(invocation: &Invocation) -> Result<(), CniError> {
    match (&invocation.action, &invocation.netns) {
        (Action::Add { .. } | Action::Check { .. }, Some(netns))
            if !invocation.own_netns_allowed && is_own_netns(netns) =>
        {
            Err(CniError::own_netns(netns))
        }
        _ => Ok(()),
    }
}

const DAEMON_CURE: &str = "start the fabric-node daemon of this node, or set \"socket\" in the network configuration to its CNI socket";

fn request(invocation: &Invocation) -> (Request, Duration) {
    match &invocation.action {
        Action::Add {
            key,
            netns,
            pod,
            addresses,
            prev_result: _,
        } => (
            Request::Add {
                key: key.clone(),
                netns: netns.clone(),
                pod: pod.clone(),
                addresses: addresses.clone(),
            },
            ADD_TIMEOUT,
        ),
        Action::Del { key } => (
            Request::Del {
                key: key.clone(),
                netns: invocation.netns.clone(),
            },
            DEL_TIMEOUT,
        ),
        Action::Check {
            key,
            netns,
            addresses,
        } => (
            Request::Check {
                key: key.clone(),
                netns: netns.clone(),
                addresses: addresses.clone(),
            },
            CHECK_TIMEOUT,
        ),
        Action::Gc { network, valid } => (
            Request::Gc {
                network: network.clone(),
                valid: valid.clone().unwrap_or_default(),
            },
            GC_TIMEOUT,
        ),
        Action::Status => (Request::Status, STATUS_TIMEOUT),
    }
}

fn exchange(socket: &Path, request: &Request, timeout: Duration) -> Result<Response, Unanswered> {
    let deadline = Instant::now() + timeout;
    let mut stream = dial(socket, timeout).map_err(|source| Unanswered::Connect {
        socket: socket.display().to_string(),
        source,
    })?;
    converse(&mut stream, request, deadline).map_err(|source| Unanswered::Exchange {
        socket: socket.display().to_string(),
        source,
    })
}

/// Connects; a daemon whose queue is full counts as absent after `timeout`.
fn dial(socket: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let descriptor = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // connect(2) on a unix socket honours the send timeout while it waits for room in the queue.
    set_socket_timeout(&descriptor, Timeout::Send, Some(timeout))?;
    connect(&descriptor, &SocketAddrUnix::new(socket)?)?;
    Ok(UnixStream::from(descriptor))
}

fn converse(stream: &mut UnixStream, request: &Request, deadline: Instant) -> io::Result<Response> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let frame = encode_frame(request).map_err(invalid)?;
    stream.set_write_timeout(Some(remaining(deadline)?))?;
    stream.write_all(&frame)?;
    let mut header = [0; FRAME_HEADER_LEN];
    read_full(stream, &mut header, deadline)?;
    let mut json = vec![0; frame_length(header).map_err(invalid)?];
    read_full(stream, &mut json, deadline)?;
    decode_frame(&json).map_err(invalid)
}

fn read_full(stream: &mut UnixStream, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        match stream.read(buffer) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it closed the connection",
                ));
            }
            Ok(read) => buffer = buffer.get_mut(read..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(timed_out()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(left),
        _ => Err(timed_out()),
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "timed out")
}
