//! Who is on the other end of a unix socket.

use std::{
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
};

/// What the kernel recorded when the peer connected; the peer cannot forge it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id; none where the peer lives in a process namespace that this one cannot see.
    pub pid: Option<u32>,
    /// Effective user id, in this process's user namespace.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// Credentials of the process at the other end of `stream` (`SO_PEERCRED`, unix(7)).
///
/// # Errors
///
/// What the kernel said.
pub fn peer_credentials(stream: &UnixStream) -> io::Result<PeerCredentials> {
    peer_credentials_of(stream)
}

/// The same for any owner of a unix socket, such as an asynchronous one.
///
/// # Errors
///
/// What the kernel said; the socket may be of another family.
pub fn peer_credentials_of(socket: impl AsFd) -> io::Result<PeerCredentials> {
    // A foreign process is numbered 0, which the types of safe wrappers rule out.
    let mut credentials = MaybeUninit::<libc::ucred>::zeroed();
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are valid for writes of the lengths given, for the time of the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            credentials.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: three integers, for which all bit patterns, zeroes included, are valid.
    let libc::ucred { pid, uid, gid } = unsafe { credentials.assume_init() };
    Ok(PeerCredentials {
        pid: u32::try_from(pid).ok().filter(|&pid| pid != 0),
        uid,
        gid,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The other end of a pair made here is this process.
    #[test]
    fn own_pair_is_own_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let found = peer_credentials(&one).unwrap();
        assert_eq!(found.pid, Some(std::process::id()));
        assert_eq!(found.uid, rustix::process::geteuid().as_raw());
        assert_eq!(found.gid, rustix::process::getegid().as_raw());
    }
}
