#![allow(clippy::unwrap_used)]

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
};

use quinn_proto::EcnCodepoint;
use rustix::io::Errno;

use super::*;
use crate::tunnel::segmentation::{Availability, RETRY_INTERVAL, Segmentation};

/// A kernel that refuses what it is told to and keeps what it took.
#[derive(Default)]
struct Kernel {
    /// Answer to batches to this address.
    batches: Cell<Option<(IpAddr, Errno)>>,
    /// Answers to the next sends of one payload.
    singles: RefCell<VecDeque<Option<Errno>>>,
    /// Answers to the next sends, whatever they are.
    all: RefCell<VecDeque<Option<Errno>>>,
    taken: RefCell<Vec<Taken>>,
    calls: Cell<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
    to: IpAddr,
    whole: bool,
    ecn: u8,
    contents: Vec<u8>,
}

impl Sender for Kernel {
    fn send(&self, payloads: &Payloads<'_>) -> io::Result<()> {
        self.calls.set(self.calls.get() + 1);
        let to = payloads.destination.ip();
        let whole = payloads.segment_bytes.is_some();
        let mut answer = self.all.borrow_mut().pop_front().flatten();
        if whole {
            let refused = self.batches.get().filter(|(ip, _)| *ip == to);
            answer = answer.or_else(|| refused.map(|(_, errno)| errno));
        } else {
            answer = answer.or_else(|| self.singles.borrow_mut().pop_front().flatten());
        }
        if let Some(errno) = answer {
            return Err(errno.into());
        }
        self.taken.borrow_mut().push(Taken {
            to,
            whole,
            ecn: payloads.ecn,
            contents: payloads.contents.to_vec(),
        });
        Ok(())
    }
}

impl Kernel {
    fn refusing(ip: IpAddr, errno: Errno) -> Self {
        let kernel = Self::default();
        kernel.batches.set(Some((ip, errno)));
        kernel
    }

    fn take(&self) -> Vec<Taken> {
        self.calls.set(0);
        self.taken.take()
    }
}

const SIZE: usize = 1000;

fn near() -> IpAddr {
    IpAddr::from([192, 0, 2, 1])
}

fn far() -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])
}

fn outbox() -> Outbox {
    Outbox::new(Paths::new(Availability::InUse))
}

fn transmit(to: IpAddr) -> Transmit {
    Transmit {
        destination: SocketAddr::new(to, 7946),
        ecn: Some(EcnCodepoint::Ect0),
        size: 0,
        segment_size: Some(SIZE),
        src_ip: None,
    }
}

/// Two and a half payloads.
fn contents() -> Vec<u8> {
    (0..2500).map(|n| (n / 10) as u8).collect()
}

fn all_bytes(taken: &[Taken]) -> Vec<u8> {
    taken.iter().flat_map(|it| it.contents.clone()).collect()
}

/// For each error that the kernel has for batches: the refused batch goes out payload by payload with
/// its mark, the next batches of that path go so at once, other paths keep their batches, and after a
/// time the path gets them back.
#[test]
fn a_refused_batch_is_not_lost_and_its_path_alone_remembers() {
    for errno in [Errno::IO, Errno::INVAL, Errno::MSGSIZE] {
        let kernel = Kernel::refusing(near(), errno);
        let (mut outbox, now) = (outbox(), Instant::now());
        let mut send = |to, now| {
            let sent = outbox.send(&kernel, transmit(to), &contents(), now);
            assert_eq!(sent, Sent::Done);
            let calls = kernel.calls.get();
            let taken = kernel.take();
            assert_eq!(all_bytes(&taken), contents());
            assert!(taken.iter().all(|it| it.to == to && it.ecn == 0b10));
            let whole = taken.iter().all(|it| it.whole);
            assert!(whole || taken.iter().all(|it| !it.whole));
            (calls, whole, outbox.paths.state(to))
        };
        let off = Segmentation::Refused(errno);
        assert_eq!(send(near(), now), (4, false, off));
        assert_eq!(send(near(), now), (3, false, off));
        assert_eq!(send(far(), now), (1, true, Segmentation::On));
        let later = now + RETRY_INTERVAL;
        assert_eq!(send(near(), later), (4, false, off));
        assert_eq!(send(near(), later), (3, false, off));
        kernel.batches.set(None);
        assert_eq!(send(near(), later), (3, false, off));
        let latest = later + RETRY_INTERVAL;
        assert_eq!(send(near(), latest), (1, true, Segmentation::On));
        assert_eq!(send(near(), latest), (1, true, Segmentation::On));
    }
}

/// Where the payloads themselves are refused, as after a fall of the interface's MTU, batches are not
/// to blame, although the last payload, a short one, is taken.
#[test]
fn payloads_that_are_refused_alone_do_not_blame_batches() {
    let kernel = Kernel::refusing(near(), Errno::MSGSIZE);
    kernel
        .singles
        .replace([Some(Errno::MSGSIZE), Some(Errno::MSGSIZE), None].into());
    let mut outbox = outbox();
    outbox.send(&kernel, transmit(near()), &contents(), Instant::now());
    assert_eq!(kernel.take().len(), 1);
    assert_eq!(outbox.paths.state(near()), Segmentation::On);
    let lost = SendLosses {
        refused: 0,
        too_large: 2,
    };
    assert_eq!(outbox.losses(), lost);
}

/// Each payload that the kernel refuses alone is counted, be it the first of a batch or the last, and
/// also one that had waited; what is taken or waits is not.
#[test]
fn each_refused_payload_is_counted() {
    let kernel = Kernel::refusing(near(), Errno::IO);
    let (refuse, full) = (Some(Errno::NETUNREACH), Some(Errno::AGAIN));
    kernel.singles.replace([None, None, refuse].into());
    let (mut outbox, now) = (outbox(), Instant::now());
    let send = |outbox: &mut Outbox| outbox.send(&kernel, transmit(near()), &contents(), now);
    assert_eq!(send(&mut outbox), Sent::Done);
    assert_eq!(outbox.losses().refused, 1);
    kernel.singles.replace([refuse, full, refuse, None].into());
    assert_eq!(send(&mut outbox), Sent::Held);
    assert_eq!(outbox.losses().refused, 2);
    assert_eq!(outbox.send_held(&kernel, now), Sent::Done);
    assert_eq!((outbox.losses().refused, kernel.take().len()), (3, 3));
    assert_eq!(outbox.losses().too_large, 0);
}

/// An error that says nothing about cutting leaves the path as it is; the payloads are tried alone.
#[test]
fn other_errors_blame_nobody() {
    for errno in [Errno::NETUNREACH, Errno::NOBUFS, Errno::CONNREFUSED] {
        let kernel = Kernel::refusing(near(), errno);
        let mut outbox = outbox();
        outbox.send(&kernel, transmit(near()), &contents(), Instant::now());
        assert_eq!(all_bytes(&kernel.take()), contents());
        assert_eq!(outbox.paths.state(near()), Segmentation::On);
    }
}

/// Without room a batch waits whole; when payloads go alone, what has gone does not go again.
#[test]
fn what_finds_no_room_waits_and_goes_once() {
    let now = Instant::now();
    let mut outbox = outbox();
    let kernel = Kernel::default();
    kernel.all.replace([Some(Errno::AGAIN)].into());
    let sent = outbox.send(&kernel, transmit(near()), &contents(), now);
    assert_eq!((sent, outbox.is_held()), (Sent::Held, true));
    assert_eq!(outbox.send_held(&kernel, now), Sent::Done);
    assert!(!outbox.is_held());
    let taken = kernel.take();
    assert_eq!((taken.len(), all_bytes(&taken)), (1, contents()));

    // Refused as a whole; the first payload goes, the second finds no room, twice.
    let kernel = Kernel::refusing(near(), Errno::IO);
    let full = Some(Errno::AGAIN);
    kernel.singles.replace([None, full, full, None].into());
    assert_eq!(
        outbox.send(&kernel, transmit(near()), &contents(), now),
        Sent::Held
    );
    assert_eq!(outbox.send_held(&kernel, now), Sent::Held);
    assert_eq!(outbox.send_held(&kernel, now), Sent::Done);
    let taken = kernel.take();
    assert_eq!((taken.len(), all_bytes(&taken)), (3, contents()));
    assert_eq!(outbox.paths.state(near()), Segmentation::Refused(Errno::IO));
}

/// A socket that may not send batches sends payloads from the start.
#[test]
fn switched_off_means_one_by_one() {
    let kernel = Kernel::default();
    let mut outbox = Outbox::new(Paths::new(Availability::SwitchedOff));
    outbox.send(&kernel, transmit(near()), &contents(), Instant::now());
    let taken = kernel.take();
    assert_eq!(taken.iter().filter(|it| !it.whole).count(), 3);
    assert_eq!(all_bytes(&taken), contents());
}
