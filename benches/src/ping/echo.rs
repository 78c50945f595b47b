//! ICMP echo (RFC 792) over a raw IPv4 socket: what is sent bears a number, and an answer's time is
//! the kernel's, from before this process could be woken. A busy processor that lets it wait does not
//! count.

use std::{
    io::IoSliceMut,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use fabric_core::packet::checksum::checksum;
use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
            SockaddrIn, connect, recvmsg, send, setsockopt, socket, sockopt,
        },
        time::TimeSpec,
    },
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Type of a request (RFC 792).
const ECHO_REQUEST: u8 = 8;
/// Type of an answer (RFC 792).
const ECHO_REPLY: u8 = 0;
/// Type, code, checksum, identifier and sequence number (bytes).
const ICMP_HEADER_LEN: usize = 8;
/// Behind the header, as the program ping sends by default (bytes).
const PAYLOAD_LEN: usize = 56;
/// A request.
const REQUEST_LEN: usize = ICMP_HEADER_LEN + PAYLOAD_LEN;
/// More than an answer with the largest IPv4 header needs.
const ANSWER_LEN_MAX: usize = 256;

/// Sends requests to one address and takes its answers.
#[derive(Debug)]
pub(super) struct EchoSocket {
    fd: OwnedFd,
    /// In every payload: tells answers to this socket from those to an earlier one.
    cookie: [u8; 8],
    /// When each request was sent; none where its answer has come.
    sent: Vec<Option<SystemTime>>,
}

impl EchoSocket {
    /// Opens one to `address`, in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// There is no route to the address, or this is not root.
    pub(super) fn open(address: Ipv4Addr) -> anyhow::Result<Self> {
        let fd = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::Icmp,
        )
        .context("no raw socket: this needs root")?;
        setsockopt(&fd, sockopt::ReceiveTimestampns, &true)?;
        let to = SockaddrIn::from(SocketAddrV4::new(address, 0));
        connect(fd.as_raw_fd(), &to).with_context(|| format!("no way to {address}"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        Ok(Self {
            fd,
            cookie: (now.as_nanos() as u64).to_be_bytes(),
            sent: Vec::new(),
        })
    }

    /// Sends the next request. One that finds the queue of the interface full is lost as any other.
    ///
    /// # Errors
    ///
    /// The address cannot be reached, or all numbers are used.
    pub(super) fn send(&mut self) -> anyhow::Result<()> {
        let number = u16::try_from(self.sent.len()).context("too many pings")?;
        let request = request(number, self.cookie);
        self.sent.push(Some(SystemTime::now()));
        match send(self.fd.as_raw_fd(), &request, MsgFlags::empty()) {
            Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error).context("cannot send a ping"),
        }
    }

    /// Whether every request has its answer.
    pub(super) fn is_complete(&self) -> bool {
        self.sent.iter().all(Option::is_none)
    }

    /// Waits for something to receive and hands the time of each answer to `keep`; whether anything
    /// came before `deadline`. After it, what has come already is still taken.
    ///
    /// # Errors
    ///
    /// The socket reports one.
    pub(super) fn receive(
        &mut self,
        deadline: Instant,
        keep: &mut impl FnMut(Duration),
    ) -> anyhow::Result<bool> {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.drain(keep)?;
        Ok(true)
    }

    fn drain(&mut self, keep: &mut impl FnMut(Duration)) -> anyhow::Result<()> {
        loop {
            let mut packet = [0; ANSWER_LEN_MAX];
            let mut slices = [IoSliceMut::new(&mut packet)];
            let mut space = cmsg_space!(TimeSpec);
            let received = recvmsg::<SockaddrIn>(
                self.fd.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                MsgFlags::empty(),
            );
            let message = match received {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("cannot receive pings"),
            };
            let mut notes = message.cmsgs()?;
            let Some(ControlMessageOwned::ScmTimestampns(arrived)) = notes.next() else {
                bail!("the kernel does not say when a ping was answered");
            };
            let arrived = UNIX_EPOCH + Duration::from(arrived);
            let len = message.bytes;
            let answer = packet
                .get(..len)
                .and_then(|packet| answer(packet, self.cookie));
            let request = answer.and_then(|number| self.sent.get_mut(usize::from(number)));
            if let Some(sent) = request.and_then(Option::take) {
                keep(
                    arrived
                        .duration_since(sent)
                        .context("the clock was set back")?,
                );
            }
        }
    }
}

/// Header and payload of a request: identifier 0, as the cookie tells whose it is.
fn request(number: u16, cookie: [u8; 8]) -> [u8; REQUEST_LEN] {
    let mut request = [0; REQUEST_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = request.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, &[ECHO_REQUEST]);
    put(6, &number.to_be_bytes());
    put(ICMP_HEADER_LEN, &cookie);
    let sum = checksum(&request).to_be_bytes();
    if let Some(field) = request.get_mut(2..4) {
        field.copy_from_slice(&sum);
    }
    request
}

/// The number of the request that an IPv4 packet answers, if it does.
fn answer(packet: &[u8], cookie: [u8; 8]) -> Option<u16> {
    let header_len = usize::from(packet.first()? & 0x0f) * 4;
    let icmp = packet.get(header_len..)?;
    let is_own = *icmp.first()? == ECHO_REPLY && icmp.get(ICMP_HEADER_LEN..)?.starts_with(&cookie);
    let number = icmp.get(6..8)?.try_into().ok()?;
    is_own.then(|| u16::from_be_bytes(number))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use fabric_core::testing::packets::{Ip, echo_request};

    use super::*;

    const COOKIE: [u8; 8] = *b"01234567";

    /// A request is byte for byte what an independent maker of packets makes.
    #[test]
    fn requests_are_as_others_make_them() {
        let mut payload = COOKIE.to_vec();
        payload.resize(PAYLOAD_LEN, 0);
        let packet = echo_request(&Ip::v4(), 0, 7, &payload);
        assert_eq!(packet.get(20..), Some(&request(7, COOKIE)[..]));
    }

    /// An answer is known by type and cookie behind an IPv4 header of any length; requests, answers to
    /// others and what is cut short are none.
    #[test]
    fn only_own_answers_count() {
        let reply = |header_words: u8, kind: u8, cookie: [u8; 8]| {
            let mut packet = vec![0; usize::from(header_words) * 4];
            packet[0] = 0x40 | header_words;
            packet.extend(request(300, cookie));
            packet[usize::from(header_words) * 4] = kind;
            packet
        };
        assert_eq!(answer(&reply(5, ECHO_REPLY, COOKIE), COOKIE), Some(300));
        assert_eq!(answer(&reply(8, ECHO_REPLY, COOKIE), COOKIE), Some(300));
        assert_eq!(answer(&reply(5, ECHO_REQUEST, COOKIE), COOKIE), None);
        assert_eq!(answer(&reply(5, ECHO_REPLY, *b"76543210"), COOKIE), None);
        let whole = reply(5, ECHO_REPLY, COOKIE);
        assert!((0..36).all(|len| answer(&whole[..len], COOKIE).is_none()));
    }
}
