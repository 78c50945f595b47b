//! Raw capture of what crosses an interface, for proofs: demo and tests.
//!
//! Comes in: an interface name. Goes out: frames as the kernel saw them, both directions, link
//! header included where the interface has one; and, for hostile tests, frames that no kernel would
//! make. Never done here: decoding.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, netdevice::name_to_index, recv, send, sockopt},
};
use thiserror::Error;

/// Room for frames that wait to be read (bytes): one second at 500 Mbit/s.
pub const RECEIVE_BUFFER_BYTES: usize = 64 * 1024 * 1024;

/// Why a capture could not begin.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// No such interface here.
    #[error(
        "cannot capture on {ifname}: {source}; check the name with `ip link` in the same network namespace"
    )]
    Interface {
        /// Name asked for.
        ifname: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No packet socket.
    #[error(
        "cannot capture on {ifname}: {source}; CAP_NET_RAW is needed and a kernel with CONFIG_PACKET"
    )]
    Socket {
        /// Name asked for.
        ifname: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A packet socket bound to one interface of the calling thread's network namespace.
#[derive(Debug)]
pub struct Capture {
    fd: OwnedFd,
}

impl Capture {
    /// Begins to capture on `ifname`; frames that cross from here on are kept for [`Capture::next`]
    /// within [`RECEIVE_BUFFER_BYTES`].
    ///
    /// # Errors
    ///
    /// [`CaptureError`].
    pub fn open(ifname: &str) -> Result<Self, CaptureError> {
        let no_socket = |source| CaptureError::Socket {
            ifname: ifname.to_owned(),
            source,
        };
        // Protocol 0 receives nothing: frames of other interfaces would come in before the bind.
        // SAFETY: plain integers in, a descriptor or -1 out.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if raw < 0 {
            return Err(no_socket(io::Error::last_os_error()));
        }
        // SAFETY: a descriptor that was just opened and that nobody else knows.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let index = name_to_index(&fd, ifname).map_err(|errno| CaptureError::Interface {
            ifname: ifname.to_owned(),
            source: errno.into(),
        })?;
        // FORCE goes beyond net.core.rmem_max, but only with CAP_NET_ADMIN.
        sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE_BUFFER_BYTES)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&fd, RECEIVE_BUFFER_BYTES))
            .map_err(|errno| no_socket(errno.into()))?;
        bind_all_protocols(fd.as_fd(), index).map_err(no_socket)?;
        Ok(Self { fd })
    }

    /// The next frame's length in `buf`, or none if there is none yet. A frame longer than `buf` is
    /// cut off.
    ///
    /// # Errors
    ///
    /// What the kernel said: the interface went down or away.
    pub fn next(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(&self.fd, buf, RecvFlags::DONTWAIT) {
            Ok((len, _)) => Ok(Some(len)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Puts `frame` on the interface as if the kernel had sent it, whatever is in it.
    ///
    /// # Errors
    ///
    /// `WouldBlock` or what else the kernel said: its queue is full, the frame is longer than the
    /// interface takes, the interface is down.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(&self.fd, frame, SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// Waits until there is a frame, at most `timeout`; returns whether there is one.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn bind_all_protocols(fd: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    // SAFETY: integers and a byte array, for which zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    // Network byte order (packet(7)).
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex =
        i32::try_from(index).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the address is valid for reads of the length given, for the time of the call.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::UdpSocket;

    use super::*;
    use crate::sys::{netlink::Netlink, netns::Netns};

    /// A datagram sent over the loopback is seen, byte for byte.
    #[test]
    fn sees_what_crosses() {
        let netns = Netns::create().expect("this test makes network namespaces: run it as root");
        let seen = netns.run(|| {
            Netlink::connect().unwrap().set_loopback_up().unwrap();
            let capture = Capture::open("lo").unwrap();
            let mut frame = [0; 2048];
            assert_eq!(capture.next(&mut frame).unwrap(), None);
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket
                .send_to(b"marker of this test", socket.local_addr().unwrap())
                .unwrap();
            assert!(capture.wait(Duration::from_secs(10)).unwrap());
            let len = capture.next(&mut frame).unwrap().unwrap();
            frame[..len].to_vec()
        });
        assert!(seen.unwrap().ends_with(b"marker of this test"));
    }

    /// An interface that is not there is named.
    #[test]
    fn names_the_missing_interface() {
        let error = Capture::open("nosuch0").unwrap_err().to_string();
        assert!(
            error.starts_with("cannot capture on nosuch0: No such device"),
            "{error}"
        );
    }
}
