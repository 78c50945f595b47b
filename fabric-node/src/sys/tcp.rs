//! What the kernel knows of a TCP connection.

use std::{
    io,
    mem::MaybeUninit,
    net::TcpStream,
    os::fd::{AsFd as _, AsRawFd as _},
};

/// Segments that the kernel has sent again on this connection (`tcpi_total_retrans` of `TCP_INFO`,
/// linux/tcp.h).
///
/// # Errors
///
/// What the kernel said.
pub fn retransmits(stream: &TcpStream) -> io::Result<u64> {
    // An older kernel fills less of it and leaves the rest at zero.
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: both pointers are valid for writes of the lengths given, for the time of the call.
    let result = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: integers only, for which all bit patterns, zeroes included, are valid.
    Ok(unsafe { info.assume_init() }.tcpi_total_retrans.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;

    use super::*;

    /// A connection over loopback has sent nothing twice.
    #[test]
    fn nothing_is_sent_twice_on_loopback() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(retransmits(&stream).unwrap(), 0);
    }
}
