//! The socket of a daemon that cannot attach pods yet: everything is refused, with the reason.

use std::sync::Arc;

use fabric_proto::cni::{Request, code};
use tokio::{net::UnixStream, sync::Semaphore, task::JoinSet, time::timeout};
use tracing::{debug, warn};

use super::{
    CONNECTIONS_MAX, CniServer, EXCHANGE_TIMEOUT, LONG_FRAMES_MAX, ReadError, is_trusted,
    read_request, refusal, respond,
};
use crate::sys::peer::peer_credentials_of;

impl CniServer {
    /// Refuses every request until the future is dropped: STATUS as "not available" (50), others as "try
    /// again later" (11), with what `reason` says at that moment. A DEL is hung up on: its plugin keeps
    /// it on disk, and the daemon carries it out once it can.
    pub async fn refuse(self, reason: Arc<dyn Fn() -> String + Send + Sync>) {
        let long_frames = Arc::new(Semaphore::new(LONG_FRAMES_MAX));
        let mut connections = JoinSet::new();
        loop {
            while connections.len() >= CONNECTIONS_MAX {
                connections.join_next().await;
            }
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let answer = refuse_one(stream, reason.clone(), long_frames.clone());
                        connections.spawn(answer);
                    }
                    Err(error) => {
                        warn!(%error, "cannot accept a connection on the CNI socket");
                        tokio::time::sleep(super::ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

async fn refuse_one(
    mut stream: UnixStream,
    reason: Arc<dyn Fn() -> String + Send + Sync>,
    long_frames: Arc<Semaphore>,
) {
    if !peer_credentials_of(&stream).is_ok_and(|peer| is_trusted(peer.uid)) {
        return;
    }
    let request = timeout(EXCHANGE_TIMEOUT, read_request(&mut stream, &long_frames)).await;
    let response = match request {
        Ok(Ok((Request::Del { .. }, _))) => return,
        Ok(Ok((Request::Status, _))) => refusal(code::NOT_AVAILABLE, reason()),
        Ok(Ok((Request::Add { .. } | Request::Check { .. } | Request::Gc { .. }, _))) => {
            refusal(code::TRY_AGAIN, reason())
        }
        Ok(Err(ReadError::Frame(error))) => refusal(code::DECODE, error.to_string()),
        Ok(Err(ReadError::Io(_))) | Err(_) => return,
    };
    if let Err(error) = respond(&mut stream, &response).await {
        debug!(%error, "the plugin did not take its answer");
    }
}
