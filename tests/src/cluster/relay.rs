//! A way from this machine's loopback to an address in a namespace: so that a person reaches the API server of a cluster
//! with any program, from where they are.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context as _;
use fabric_node::lab::underlay::inside;
use tokio::{io::copy_bidirectional, sync::oneshot};

/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Passes TCP connections on until it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Listens on `port` of the loopback of the calling thread's network namespace, or any port if that is 0, and passes
    /// each connection on to `target` in the namespace `netns`.
    ///
    /// # Errors
    ///
    /// The port is taken.
    pub fn start(port: u16, netns: &Path, target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("cannot listen on port {port} of the loopback"))?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (end, ended) = oneshot::channel();
        let way = Arc::new((netns.to_owned(), target));
        let thread = thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    tokio::select! {
                        () = pass_all(listener, way) => {}
                        _ = ended => {}
                    }
                });
            })?;
        Ok(Self {
            address,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn pass_all(listener: TcpListener, way: Arc<(PathBuf, SocketAddr)>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    // A connection that cannot be accepted has ended already.
    while let Ok((stream, _)) = listener.accept().await {
        let way = Arc::clone(&way);
        #[allow(
            clippy::disallowed_methods,
            reason = "connections end by themselves or with the runtime"
        )]
        tokio::spawn(async move {
            // One that is cut off tells its ends itself.
            let _ = pass(stream, way).await;
        });
    }
}

async fn pass(
    mut near: tokio::net::TcpStream,
    way: Arc<(PathBuf, SocketAddr)>,
) -> anyhow::Result<()> {
    let connect = move || {
        let (netns, target) = &*way;
        inside(netns, || {
            let far = TcpStream::connect_timeout(target, CONNECT_MAX)?;
            far.set_nonblocking(true)?;
            Ok(far)
        })
    };
    let far = tokio::task::spawn_blocking(connect).await??;
    let mut far = tokio::net::TcpStream::from_std(far)?;
    copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Read as _, Write as _};

    use fabric_node::sys::{netlink::Netlink, netns::Netns};

    use super::*;

    /// What is sent to the loopback of this namespace arrives in another, and the answer comes back.
    #[test]
    fn connections_are_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("there");
        Netns::create_named(&path).expect("this test makes a network namespace: run it as root");
        let server = inside(&path, || {
            Netlink::connect()?.set_loopback_up()?;
            Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
        });
        let server = server.unwrap();
        let relay = Relay::start(0, &path, server.local_addr().unwrap()).unwrap();
        let mut client = TcpStream::connect(relay.address()).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        client.write_all(b"hello").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (mut there, _) = server.accept().unwrap();
        let mut text = String::new();
        there.read_to_string(&mut text).unwrap();
        there.write_all(format!("{text} back").as_bytes()).unwrap();
        drop(there);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "hello back");
        Netns::remove_named(&path).unwrap();
    }
}
