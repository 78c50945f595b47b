//! The CNI socket: one request and one response per connection.
//!
//! Comes in: connections of the plugin. Goes out: calls of the [`Attacher`] on threads that may
//! block, and their answers. Never done here: deciding anything about a pod.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixStream as BlockingUnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use fabric_proto::cni::{
    FRAME_BYTES_USUAL, FRAME_HEADER_LEN, Failure, FrameError, Request, Response, code,
    decode_frame, encode_frame, frame_length,
};
use rustix::process::geteuid;
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    task::JoinSet,
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    attach::{AddRequest, AddTicket, AttachError, Attacher},
    links::Links,
};
use crate::sys::peer::peer_credentials_of;

mod waiting;

/// How long a plugin may take to say what it wants, and to take its answer.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// STATUS has to answer within two seconds, its caller's start included.
const STATUS_TIMEOUT: Duration = Duration::from_millis(1_000);
/// ADD, CHECK and GC carried out side by side (threads).
const REQUESTS_MAX: usize = 16;
/// DELs carried out side by side (threads): their own, so that stuck ADDs cannot hold them up.
const DELETES_MAX: usize = 16;
/// STATUS requests side by side (threads).
const STATUSES_MAX: usize = 4;
/// Long frames (GCs) in memory at a time: each may take 4 MiB, and several times that once it is
/// decoded.
const LONG_FRAMES_MAX: usize = 2;
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections at a time; the next ones wait in the socket's queue.
const CONNECTIONS_MAX: usize = 512;

/// Why the socket cannot be opened.
#[derive(Debug, Error)]
pub enum ServerError {
    /// A daemon answers on it.
    #[error("{socket} is in use: is a second fabric-node running?")]
    InUse {
        /// The socket.
        socket: PathBuf,
    },
    /// Others could replace the socket.
    #[error(
        "folder {folder} of the CNI socket belongs to uid {uid} with mode {mode:o}: it must belong to the daemon's user and be writable by no other (chmod 0700)"
    )]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its mode.
        mode: u32,
    },
    /// The file system.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The open socket; its file goes away with it.
#[derive(Debug)]
pub struct CniServer {
    listener: UnixListener,
    socket: PathBuf,
}

impl CniServer {
    /// Opens the socket with mode 0600, in a folder that is made with mode 0700 where it is missing.
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ServerError`]. A socket file that nobody answers on is replaced.
    pub fn bind(socket: &Path) -> Result<Self, ServerError> {
        let at = |action, path: &Path| {
            let path = path.to_owned();
            move |source| ServerError::Io {
                action,
                path,
                source,
            }
        };
        if let Some(folder) = socket.parent() {
            prepare(folder)?;
        }
        match BlockingUnixStream::connect(socket) {
            Ok(_) => {
                return Err(ServerError::InUse {
                    socket: socket.to_owned(),
                });
            }
            // Other kinds of files refuse too, and are not ours to remove.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && is_socket(socket) => {
                fs::remove_file(socket).map_err(at("remove the stale socket", socket))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at("examine", socket)(error)),
        }
        let listener = UnixListener::bind(socket).map_err(at("listen on", socket))?;
        fs::set_permissions(socket, Permissions::from_mode(0o600))
            .map_err(at("set the mode of", socket))?;
        Ok(Self {
            listener,
            socket: socket.to_owned(),
        })
    }

    /// Answers requests until the future is dropped; requests under way are then carried out to
    /// their end by their threads.
    pub async fn serve<L: Links>(self, attacher: Arc<Attacher<L>>) {
        let desk = Arc::new(Desk {
            attacher,
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            deletes: Arc::new(Semaphore::new(DELETES_MAX)),
            statuses: Arc::new(Semaphore::new(STATUSES_MAX)),
            long_frames: Semaphore::new(LONG_FRAMES_MAX),
        });
        let mut connections = JoinSet::new();
        loop {
            while connections.len() >= CONNECTIONS_MAX {
                connections.join_next().await;
            }
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => drop(connections.spawn(Arc::clone(&desk).attend(stream))),
                    Err(error) => {
                        // Out of descriptors or memory: a moment later there may be some.
                        warn!(%error, "cannot accept a connection on the CNI socket");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

impl Drop for CniServer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Makes the folder, or sees that nobody else can put something in the socket's place.
fn prepare(folder: &Path) -> Result<(), ServerError> {
    let at = |action| {
        move |source| ServerError::Io {
            action,
            path: folder.to_owned(),
            source,
        }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(at("create"))?;
    let metadata = fs::metadata(folder).map_err(at("examine"))?;
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if mode & 0o022 == 0 && is_trusted(uid) {
        Ok(())
    } else {
        Err(ServerError::Folder {
            folder: folder.to_owned(),
            uid,
            mode,
        })
    }
}

/// Root as the daemon's user namespace sees it, or the daemon's own user.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

struct Desk<L: Links> {
    attacher: Arc<Attacher<L>>,
    requests: Arc<Semaphore>,
    deletes: Arc<Semaphore>,
    statuses: Arc<Semaphore>,
    long_frames: Semaphore,
}

impl<L: Links> Desk<L> {
    async fn attend(self: Arc<Self>, mut stream: UnixStream) {
        match peer_credentials_of(&stream) {
            Ok(peer) if is_trusted(peer.uid) => {}
            Ok(peer) => {
                warn!(
                    uid = peer.uid,
                    pid = peer.pid,
                    "refused a connection on the CNI socket"
                );
                return;
            }
            Err(error) => {
                warn!(%error, "cannot tell who is on the CNI socket");
                return;
            }
        }
        let response = match timeout(
            EXCHANGE_TIMEOUT,
            read_request(&mut stream, &self.long_frames),
        )
        .await
        {
            Ok(Ok((
                Request::Add {
                    key,
                    netns,
                    pod,
                    addresses,
                },
                _long,
            ))) => {
                let request = AddRequest {
                    netns: netns.into(),
                    pod,
                    addresses,
                };
                let ticket = Arc::new(self.attacher.begin_add(key));
                return self.attend_add(stream, ticket, request).await;
            }
            Ok(Ok((request, _long))) => self.answer(request).await,
            Ok(Err(ReadError::Io(error))) => {
                debug!(%error, "the plugin hung up before it had said what it wants");
                return;
            }
            Ok(Err(ReadError::Frame(error))) => refusal(code::DECODE, error.to_string()),
            Err(_) => {
                debug!("the plugin did not say in time what it wants");
                return;
            }
        };
        if let Err(error) = respond(&mut stream, &response).await {
            debug!(%error, "the plugin did not take its answer");
        }
    }

    /// An ADD whose plugin hangs up, or does not take the result, is undone.
    async fn attend_add(
        &self,
        mut stream: UnixStream,
        ticket: Arc<AddTicket>,
        request: AddRequest,
    ) {
        let began = Instant::now();
        let key = ticket.key().clone();
        let work = {
            let (attacher, ticket) = (Arc::clone(&self.attacher), Arc::clone(&ticket));
            blocking(Arc::clone(&self.requests), move || {
                attacher.add(&ticket, request)
            })
        };
        tokio::pin!(work);
        let done = tokio::select! {
            done = &mut work => done,
            () = hung_up(&mut stream) => {
                ticket.hang_up();
                work.await
            }
        };
        let attached = match done {
            Ok(attached) => attached,
            Err(failure) => {
                let _ = respond(&mut stream, &Response::Failed(failure)).await;
                return;
            }
        };
        let sent = match ticket.check() {
            Ok(()) => respond(&mut stream, &Response::Attached(attached))
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let attacher = Arc::clone(&self.attacher);
        let closing = match sent {
            Ok(()) => {
                self.attacher.add_times().record(began.elapsed());
                blocking(Arc::clone(&self.requests), move || {
                    attacher.answered(&ticket);
                    Ok(())
                })
                .await
            }
            Err(reason) => {
                warn!(
                    container = key.container_id,
                    reason, "ADD undone: its result could not be delivered"
                );
                blocking(Arc::clone(&self.deletes), move || attacher.del(&key)).await
            }
        };
        if let Err(failure) = closing {
            warn!(reason = failure.msg, "cannot close an ADD");
        }
    }

    async fn answer(&self, request: Request) -> Response {
        let attacher = Arc::clone(&self.attacher);
        let requests = Arc::clone(&self.requests);
        let done = match request {
            Request::Add { .. } => unasked(),
            Request::Del { key, netns: _ } => {
                blocking(Arc::clone(&self.deletes), move || attacher.del(&key)).await
            }
            Request::Check {
                key,
                netns,
                addresses,
            } => {
                blocking(requests, move || {
                    attacher.check(&key, Path::new(&netns), &addresses)
                })
                .await
            }
            Request::Gc { network, valid } => {
                blocking(requests, move || {
                    let valid: Vec<_> = valid
                        .into_iter()
                        .map(|attachment| attachment.in_network(&network))
                        .collect();
                    attacher.gc(&network, &valid).map(drop)
                })
                .await
            }
            Request::Status => {
                let work = blocking(Arc::clone(&self.statuses), move || attacher.status());
                timeout(STATUS_TIMEOUT, work).await.unwrap_or_else(|_| {
                    Err(failure(
                        code::NOT_AVAILABLE,
                        "the daemon is too busy to tell its state".into(),
                    ))
                })
            }
        };
        match done {
            Ok(()) => Response::Done,
            Err(failure) => Response::Failed(failure),
        }
    }
}

/// ADD has a way of its own.
fn unasked() -> Result<(), Failure> {
    Err(failure(code::IO, "ADD took the wrong way".into()))
}

/// Runs `work` on a thread that may block, when one of its kind is free.
async fn blocking<T: Send + 'static>(
    places: Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, AttachError> + Send + 'static,
) -> Result<T, Failure> {
    let place: Result<OwnedSemaphorePermit, _> = places.acquire_owned().await;
    let worked = tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    });
    match worked.await {
        Ok(done) => done.map_err(Failure::from),
        Err(error) => Err(failure(code::IO, format!("the request broke off: {error}"))),
    }
}

enum ReadError {
    Io(io::Error),
    Frame(FrameError),
}

/// The request, and the place of a long one, to be held until it is answered. A long frame waits for
/// its place before anything is allocated for it.
async fn read_request<'a>(
    stream: &mut UnixStream,
    long_frames: &'a Semaphore,
) -> Result<(Request, Option<SemaphorePermit<'a>>), ReadError> {
    let mut header = [0; FRAME_HEADER_LEN];
    stream
        .read_exact(&mut header)
        .await
        .map_err(ReadError::Io)?;
    let length = frame_length(header).map_err(ReadError::Frame)?;
    let place = if length > FRAME_BYTES_USUAL {
        long_frames.acquire().await.ok()
    } else {
        None
    };
    let mut json = vec![0; length];
    stream.read_exact(&mut json).await.map_err(ReadError::Io)?;
    let request = decode_frame(&json).map_err(ReadError::Frame)?;
    Ok((request, place))
}

async fn respond(stream: &mut UnixStream, response: &Response) -> io::Result<()> {
    let frame = encode_frame(response).map_err(io::Error::other)?;
    timeout(EXCHANGE_TIMEOUT, stream.write_all(&frame))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Returns when the plugin has closed its end. A plugin that goes on talking breaks the protocol and
/// is treated alike.
async fn hung_up(stream: &mut UnixStream) {
    let mut byte = [0];
    let _ = stream.read(&mut byte).await;
}

fn refusal(code: u32, msg: String) -> Response {
    Response::Failed(failure(code, msg))
}

fn failure(code: u32, msg: String) -> Failure {
    Failure {
        code,
        msg,
        details: String::new(),
    }
}

#[cfg(test)]
mod tests;
