//! On which paths the kernel cuts batches, as far as is known.
//!
//! Comes in: batches that the kernel took, batches that it refused although it takes their payloads
//! one by one. Goes out: whether to hand it the next batch whole. A path is this socket's address and
//! one remote address; where a route or a device stands against batches it does so for that path, and
//! for as long as it is like that, so a refusal is remembered by path and tried again from time to
//! time. Never done here: sending.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::IpAddr,
    time::{Duration, Instant},
};

use rustix::io::Errno;

/// How long a path goes without batches before one is tried again. A refused attempt costs one copy
/// of a batch, which is nothing in this time; an operator who mends a device sees it this soon.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// Paths remembered. One per peer is needed; beyond it all are forgotten, and each costs one refused
/// batch to learn again.
const REFUSED_PATHS_MAX: usize = 4096;

/// Whether an offload of a socket is in use, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It is.
    InUse,
    /// The configuration says no.
    SwitchedOff,
    /// The kernel says no.
    Refused(Errno),
}

/// Whether batches to one address leave whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmentation {
    /// The kernel cuts them.
    On,
    /// Payloads leave one by one: the configuration says so.
    SwitchedOff,
    /// Payloads leave one by one: this kernel cuts no batches.
    Unsupported,
    /// Payloads leave one by one: the kernel refused a batch on this path, with this error.
    Refused(Errno),
}

impl fmt::Display for Segmentation {
    /// As the operator sees it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On => f.write_str("on"),
            Self::SwitchedOff => f.write_str("off (configured)"),
            Self::Unsupported => f.write_str("off (kernel)"),
            Self::Refused(Errno::IO) => f.write_str("off (EIO)"),
            Self::Refused(Errno::INVAL) => f.write_str("off (EINVAL)"),
            Self::Refused(Errno::MSGSIZE) => f.write_str("off (EMSGSIZE)"),
            Self::Refused(errno) => write!(f, "off (errno {})", errno.raw_os_error()),
        }
    }
}

/// What one socket knows of its paths.
#[derive(Debug)]
pub struct Paths {
    availability: Availability,
    refused: BTreeMap<IpAddr, Refusal>,
}

#[derive(Clone, Copy, Debug)]
struct Refusal {
    errno: Errno,
    retry: Instant,
}

impl Paths {
    /// Begins without a refusal.
    #[must_use]
    pub fn new(availability: Availability) -> Self {
        Self {
            availability,
            refused: BTreeMap::new(),
        }
    }

    /// Whether the socket can send batches at all.
    #[must_use]
    pub fn availability(&self) -> Availability {
        self.availability
    }

    /// What is known of the path to `remote`.
    #[must_use]
    pub fn state(&self, remote: IpAddr) -> Segmentation {
        match (self.availability, self.refused.get(&remote)) {
            (Availability::SwitchedOff, _) => Segmentation::SwitchedOff,
            (Availability::Refused(_), _) => Segmentation::Unsupported,
            (Availability::InUse, Some(refusal)) => Segmentation::Refused(refusal.errno),
            (Availability::InUse, None) => Segmentation::On,
        }
    }

    /// Whether the next batch to `remote` is worth handing over whole.
    #[must_use]
    pub fn takes_batches(&self, remote: IpAddr, now: Instant) -> bool {
        // On nearly every node the map is empty for ever.
        self.availability == Availability::InUse
            && self
                .refused
                .get(&remote)
                .is_none_or(|refusal| now >= refusal.retry)
    }

    /// The kernel took a batch to `remote`.
    pub fn note_taken(&mut self, remote: IpAddr) {
        if !self.refused.is_empty() && self.refused.remove(&remote).is_some() {
            tracing::info!(%remote, "the kernel cuts batches to this address again");
        }
    }

    /// The kernel refused a batch to `remote` and then took a payload of it alone.
    pub fn note_refused(&mut self, remote: IpAddr, errno: Errno, now: Instant) {
        if self.refused.len() >= REFUSED_PATHS_MAX && !self.refused.contains_key(&remote) {
            self.refused.clear();
        }
        let retry = now + RETRY_INTERVAL;
        let before = self.refused.insert(remote, Refusal { errno, retry });
        if before.is_none_or(|before| before.errno != errno) {
            tracing::warn!(%remote, error = %errno, retry_seconds = RETRY_INTERVAL.as_secs(), "the kernel does not cut batches to this address: payloads go one by one");
        }
    }
}

/// Whether `error` can be about cutting a batch rather than about its payloads: no checksum offload
/// (EIO before Linux 6.11) or a transformation (EIO) on the way, a count or a socket that does not
/// allow it (EINVAL), payloads that do not fit (EINVAL, since Linux 6.14 EMSGSIZE). Source:
/// `udp_send_skb`, net/ipv4/udp.c.
#[must_use]
pub fn may_be_about_cutting(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
        .filter(|errno| matches!(*errno, Errno::IO | Errno::INVAL | Errno::MSGSIZE))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOTE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    /// However many paths refuse, only so many are remembered, and the last one is.
    #[test]
    fn remembers_a_bounded_number() {
        let now = Instant::now();
        let mut paths = Paths::new(Availability::InUse);
        for number in 0..=REFUSED_PATHS_MAX as u32 {
            let remote = IpAddr::from(std::net::Ipv4Addr::from_bits(number));
            paths.note_refused(remote, Errno::IO, now);
            assert!(!paths.takes_batches(remote, now));
        }
        assert!(paths.refused.len() <= REFUSED_PATHS_MAX);
        assert!(paths.takes_batches(IpAddr::from([0, 0, 0, 0]), now));
    }

    /// A socket that cannot send batches does not, and says why.
    #[test]
    fn without_the_offload_no_path_takes_batches() {
        for (availability, told) in [
            (Availability::SwitchedOff, "off (configured)"),
            (Availability::Refused(Errno::NOPROTOOPT), "off (kernel)"),
        ] {
            let paths = Paths::new(availability);
            assert!(!paths.takes_batches(REMOTE, Instant::now()));
            assert_eq!(paths.state(REMOTE).to_string(), told);
        }
    }

    /// A path is tried again after a time, not before, and a refusal then begins that time anew.
    #[test]
    fn tries_again_after_a_time() {
        let now = Instant::now();
        let mut paths = Paths::new(Availability::InUse);
        paths.note_refused(REMOTE, Errno::INVAL, now);
        let second = now + RETRY_INTERVAL;
        assert!(!paths.takes_batches(REMOTE, second - Duration::from_millis(1)));
        assert!(paths.takes_batches(REMOTE, second));
        assert_eq!(paths.state(REMOTE).to_string(), "off (EINVAL)");
        paths.note_refused(REMOTE, Errno::IO, second);
        assert!(!paths.takes_batches(REMOTE, second));
        assert_eq!(paths.state(REMOTE).to_string(), "off (EIO)");
        paths.note_taken(REMOTE);
        assert_eq!(paths.state(REMOTE), Segmentation::On);
    }
}
