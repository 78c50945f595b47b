//! How the control plane reaches a worker that sleeps in epoll.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, channel},
    },
};

use fabric_core::ids::PortId;
use rustix::event::{EventfdFlags, eventfd};

use crate::sys::tun::Tun;

/// What a worker can be told. A changed state needs no command: waking is enough.
#[derive(Debug)]
pub enum Command {
    /// Begin to read a port.
    OpenPort {
        /// Which.
        id: PortId,
        /// Its device.
        tun: Arc<Tun>,
        /// Told what came of it.
        done: SyncSender<io::Result<()>>,
    },
    /// Stop to read a port.
    ClosePort {
        /// Which.
        id: PortId,
        /// Told what came of it.
        done: SyncSender<io::Result<()>>,
    },
    /// Close all connections and return.
    ShutDown,
}

/// The sending side.
#[derive(Debug)]
pub struct Mailbox {
    sender: Sender<Command>,
    waker: Waker,
}

/// Makes a worker look around.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

/// The worker's side.
#[derive(Debug)]
pub struct Inbox {
    receiver: Receiver<Command>,
    waker: Waker,
}

/// A connected pair.
///
/// # Errors
///
/// The process has no descriptor left.
pub fn pair() -> io::Result<(Mailbox, Inbox)> {
    let waker = Waker(Arc::new(eventfd(
        0,
        EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC,
    )?));
    let (sender, receiver) = channel();
    let mailbox = Mailbox {
        sender,
        waker: waker.clone(),
    };
    Ok((mailbox, Inbox { receiver, waker }))
}

impl Mailbox {
    /// Sends a command. One to a worker that has ended is dropped; whoever waits for its answer
    /// learns of it by the closed channel.
    pub fn send(&self, command: Command) {
        if self.sender.send(command).is_ok() {
            self.waker.wake();
        }
    }

    /// For waking only.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Waker {
    /// Wakes the worker; any number of wakes before it looks count as one.
    pub fn wake(&self) {
        // The only failure is a counter at its maximum, and then the worker is awake.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl Inbox {
    /// Takes back all wakes, and tells whether there were any; call it before looking at commands
    /// and state.
    pub fn clear(&self) -> bool {
        rustix::io::read(&*self.waker.0, &mut [0; 8]).is_ok()
    }

    /// The next command.
    #[must_use]
    pub fn next(&self) -> Option<Command> {
        self.receiver.try_recv().ok()
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.0.as_fd()
    }
}
