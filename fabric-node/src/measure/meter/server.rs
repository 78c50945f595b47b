//! The meter's server: threads in the server's network namespace. Serves whoever asks, for as long as
//! it lives; every wait is bounded, so that it can end.

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    EXTRA_MAX, Patience, tcp, udp,
    wire::{Greeting, Opened, Request, hear, say},
};
use crate::{
    measure::{LOOK, STREAMS_MAX, Watch, rtt},
    sys::netns::{Netns, NetnsThread},
};

/// Connections served at once: both directions of the largest load, and some who only ask. Others are
/// closed.
pub const CONNECTIONS_MAX: usize = 2 * STREAMS_MAX as usize + 16;
/// How long a client may take to say what it wants.
const REQUEST_MAX: Duration = Duration::from_secs(10);

/// A server; ends with this value.
#[derive(Debug)]
pub struct Server {
    stop: Stop,
    threads: Vec<NetnsThread<()>>,
}

impl Server {
    /// Listens in `netns` on `address`, over TCP and UDP; greets with `greeting`.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered, or the port is taken.
    pub fn start(netns: &Netns, address: SocketAddr, greeting: Greeting) -> anyhow::Result<Self> {
        let (listener, echo) = netns.run(|| -> anyhow::Result<_> {
            let taken = || {
                format!(
                    "cannot listen on port {} of {}",
                    address.port(),
                    address.ip()
                )
            };
            let listener = TcpListener::bind(address).with_context(taken)?;
            let echo = UdpSocket::bind(address).with_context(taken)?;
            Ok((listener, echo))
        })??;
        listener.set_nonblocking(true)?;
        echo.set_read_timeout(Some(LOOK))?;
        let mut server = Self {
            stop: Stop::default(),
            threads: Vec::new(),
        };
        let stop = server.stop.clone();
        server
            .threads
            .push(netns.spawn("meter-echo", move || answer(&echo, &stop))?);
        let stop = server.stop.clone();
        server
            .threads
            .push(netns.spawn("meter", move || accept(&listener, greeting, &stop))?);
        Ok(server)
    }

    /// Whether it has ended by itself: it then serves nobody.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.threads.iter().any(NetnsThread::is_finished)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.0.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Its sockets are closed whether it panicked or not.
            let _ = thread.join();
        }
    }
}

/// Whether the server is to end.
#[derive(Clone, Debug, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Watch for Stop {
    fn check(&self) -> anyhow::Result<()> {
        if self.is_set() {
            bail!("the server ends");
        }
        Ok(())
    }
}

/// Answers requests for round trips.
fn answer(echo: &UdpSocket, stop: &Stop) {
    let mut datagram = [0; 2 * rtt::BYTES];
    while !stop.is_set() {
        // Time limits and unreachable askers come as errors; neither is a reason to end.
        if let Ok((len, from)) = echo.recv_from(&mut datagram)
            && let Some(answer) = rtt::answer(datagram.get(..len).unwrap_or_default())
        {
            let _ = echo.send_to(&answer, from);
        }
    }
}

/// Serves each connection on a thread of its own, which is inside of the namespace as this one is.
fn accept(listener: &TcpListener, greeting: Greeting, stop: &Stop) {
    let open = AtomicUsize::new(0);
    thread::scope(|scope| {
        while !stop.is_set() {
            let Ok((stream, _)) = listener.accept() else {
                wait(listener);
                continue;
            };
            if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let served = thread::Builder::new()
                .name("meter-stream".to_owned())
                .spawn_scoped(scope, || {
                    // The client notices by itself that its stream broke.
                    if let Err(error) = serve(&stream, greeting, stop) {
                        tracing::debug!("{error:#}");
                    }
                    drop(stream);
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            if served.is_err() {
                open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    });
}

fn wait(listener: &TcpListener) {
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: LOOK.subsec_nanos().into(),
    };
    let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    // Whatever it answers, to look again is right.
    let _ = poll(&mut fds, Some(&limit));
}

fn serve(stream: &TcpStream, greeting: Greeting, stop: &Stop) -> anyhow::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(REQUEST_MAX))?;
    let patience = |duration| Patience {
        watch: stop,
        deadline: Instant::now() + duration,
    };
    say(stream, &greeting)?;
    let request: Request = hear(stream, &patience(REQUEST_MAX))?;
    let request = request.check()?;
    let duration = Duration::from_secs(request.seconds().into());
    let patience = patience(duration + EXTRA_MAX);
    // The client reports the curve; here it is counted and forgotten.
    let interval = duration;
    match request {
        Request::TcpSink { .. } => {
            let (account, _) = tcp::drain(stream, interval, &patience)?;
            say(stream, &account)
        }
        Request::TcpSource { .. } => {
            let (account, _) = tcp::pump(stream, duration, interval, &patience)?;
            stream.set_write_timeout(Some(EXTRA_MAX))?;
            say(stream, &account)
        }
        Request::UdpSink { .. } => {
            let socket = udp::socket(SocketAddr::new(stream.local_addr()?.ip(), 0))?;
            let port = socket.local_addr()?.port();
            say(stream, &Opened { port })?;
            let (account, _, _) = udp::receive(&socket, stream, interval, &patience)?;
            say(stream, &account)
        }
        Request::UdpSource {
            port,
            size,
            bitrate,
            ..
        } => {
            // Only to who asked: nobody can be flooded in the name of another.
            let target = SocketAddr::new(stream.peer_addr()?.ip(), port);
            let socket = udp::socket_to(target)?;
            let (account, _) = udp::send(&socket, size, bitrate, duration, interval, &patience)?;
            say(stream, &account)
        }
    }
}
