//! Blocking: asks the kernel about `lo` in the namespace of the calling thread, and sets it up or
//! down.
//!
//! The socket lives in the namespace of a pod, whose processes may send to it: only what the kernel
//! itself says is read.

use std::{
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::SocketAddrNetlink,
    recvfrom, sendto, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use super::message::{self, Message, NLMSG_DONE, NLMSG_ERROR, RTM_NEWADDR, RTM_NEWLINK};

/// The kernel answers at once; a pod that fills its namespace with addresses cannot hold the runtime
/// longer than this.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// What the kernel sends at a time at most (bytes): it fills up to 32 KiB of a dump.
const DATAGRAM_BYTES_MAX: usize = 32 * 1024;
/// More addresses of `lo` than this are not told (addresses): a fresh namespace has two.
const ADDRESSES_MAX: usize = 16;

/// The kernel itself as a partner of netlink sockets.
const KERNEL: SocketAddrNetlink = SocketAddrNetlink::new(0, 0);

/// A conversation with the kernel.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// In the namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sets `lo` up or down.
    pub(super) fn set_up(&mut self, up: bool) -> io::Result<()> {
        let sequence = self.next();
        self.ask(&message::set_up(sequence, up), |message| {
            (message.kind == NLMSG_ERROR).then_some(())
        })
    }

    /// Whether `lo` is up.
    pub(super) fn is_up(&mut self) -> io::Result<bool> {
        let sequence = self.next();
        self.ask(&message::get_link(sequence), |message| {
            (message.kind == RTM_NEWLINK).then(|| message::is_up(message.body))?
        })
    }

    /// The loopback addresses of `lo` with their prefix lengths. Other interfaces may come and go
    /// meanwhile.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<(IpAddr, u8)>> {
        let sequence = self.next();
        let mut found = Vec::new();
        self.ask(&message::get_addresses(sequence), |message| {
            match message.kind {
                RTM_NEWADDR => {
                    found.extend(message::address(message.body).filter(|(address, _)| {
                        address.is_loopback() && found.len() < ADDRESSES_MAX
                    }))
                }
                NLMSG_DONE => return Some(()),
                _ => {}
            }
            None
        })?;
        Ok(found)
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a question and gives its answers to `take` until that has what it wants. An error that
    /// the kernel reports is an error here.
    fn ask<T>(
        &self,
        question: &[u8],
        mut take: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> io::Result<T> {
        sendto(&self.socket, question, SendFlags::empty(), &KERNEL)?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let datagram = self.receive(&mut buffer, deadline)?;
            for message in message::messages(datagram) {
                if message.sequence != self.sequence {
                    continue;
                }
                if message.kind == NLMSG_ERROR
                    && let Some(error) = message::error(message.body)
                    && error != 0
                {
                    return Err(io::Error::from_raw_os_error(error.saturating_neg()));
                }
                if let Some(taken) = take(&message) {
                    return Ok(taken);
                }
            }
        }
    }

    /// The next datagram of the kernel.
    fn receive<'a>(&self, buffer: &'a mut [u8], deadline: Instant) -> io::Result<&'a [u8]> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            set_socket_timeout(&self.socket, Timeout::Recv, Some(left))?;
            let (length, _, sender) = match recvfrom(&self.socket, &mut *buffer, RecvFlags::empty())
            {
                Ok(received) => received,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
                Err(error) => return Err(error.into()),
            };
            let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
            if sender.is_some_and(|sender| sender.pid() == KERNEL.pid()) {
                return Ok(buffer.get(..length).unwrap_or_default());
            }
        }
    }
}
