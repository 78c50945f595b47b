//! Waiting for descriptors.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::event::{Timespec, epoll};

/// Events taken per wait; more are taken with the next one.
const EVENTS_MAX: usize = 64;

/// One epoll instance; every descriptor is known by a number.
pub(super) struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            fd: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Waits for `source` to be readable.
    pub(super) fn add(&self, source: impl AsFd, number: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(number);
        Ok(epoll::add(&self.fd, source, data, epoll::EventFlags::IN)?)
    }

    /// Waits for `source` to be writable, too, or no longer.
    pub(super) fn watch_writable(
        &self,
        source: impl AsFd,
        number: u64,
        on: bool,
    ) -> io::Result<()> {
        let data = epoll::EventData::new_u64(number);
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, on);
        Ok(epoll::modify(&self.fd, source, data, flags)?)
    }

    pub(super) fn remove(&self, source: impl AsFd) {
        // A descriptor that is not there needs no removing.
        let _ = epoll::delete(&self.fd, source);
    }

    /// Hands the numbers of ready descriptors to `on_ready`; waits up to `timeout` for the first of
    /// them, for ever without one.
    pub(super) fn wait(
        &self,
        timeout: Option<Duration>,
        mut on_ready: impl FnMut(u64),
    ) -> io::Result<()> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut events = [MaybeUninit::uninit(); EVENTS_MAX];
        match epoll::wait(&self.fd, &mut events, timeout.as_ref()) {
            Ok((ready, _)) => {
                ready.iter().for_each(|event| on_ready(event.data.u64()));
                Ok(())
            }
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
