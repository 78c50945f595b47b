//! The kernel's packet filter by netlink: what its connection tracking knows, and a table of rules.
//!
//! Comes in: requests as bytes. Goes out: the kernel's answers as bytes, or what it refused. The messages
//! themselves are made and read in [`conntrack`] and [`nftables`], which do no I/O; [`wire`] knows their
//! common form.

pub mod conntrack;
pub mod nftables;
pub mod wire;

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink,
    netlink::SocketAddrNetlink, recv, send, socket_with, sockopt,
};

/// Bytes of one answer that are read at once: the kernel fills at most 32 KiB (NLMSG_GOODSIZE).
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The kernel answers at once; beyond this it does not.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A netlink socket of the packet filter, of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netfilter {
    socket: OwnedFd,
}

impl Netfilter {
    /// Opens a socket.
    ///
    /// # Errors
    ///
    /// What the kernel said: `EPROTONOSUPPORT` where it has no packet filter.
    pub fn connect() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_MAX))?;
        Ok(Self { socket })
    }

    /// Sends `request` and hands each message of the answer to `take` until it ends. `acknowledgements`
    /// is how many messages of the request ask for one; a dump has none and ends by itself.
    ///
    /// # Errors
    ///
    /// What the kernel refused, or that it does not answer.
    pub fn ask(
        &self,
        request: &[u8],
        mut acknowledgements: usize,
        mut take: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        send(&self.socket, request, SendFlags::empty())?;
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        let deadline = Instant::now() + ANSWER_MAX;
        loop {
            let (len, _) = recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty())?;
            for message in wire::messages(buffer.get(..len).unwrap_or_default()) {
                match message {
                    wire::Message::Done => return Ok(()),
                    wire::Message::Acknowledged => {
                        acknowledgements = acknowledgements.saturating_sub(1);
                        if acknowledgements == 0 {
                            return Ok(());
                        }
                    }
                    wire::Message::Refused(errno) => {
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    wire::Message::Data(kind, payload) => take(kind, payload),
                }
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}
