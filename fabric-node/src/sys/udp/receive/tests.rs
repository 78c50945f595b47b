//! Messages over loopback, which delivers before a send returns. Those that come with control messages
//! are first sent by quinn-udp, whose control messages are not ours.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{io::ErrorKind, net::UdpSocket, os::fd::AsFd as _, time::Duration};

use quinn_udp::{EcnCodepoint, Transmit, UdpSocketState};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::set_socket_recv_buffer_size,
};

use super::*;
use crate::sys::udp::{Payloads, prepare, send, set_coalescing};

const PATIENCE: Duration = Duration::from_secs(5);

fn bound(local: &str) -> UdpSocket {
    let socket = UdpSocket::bind(local).unwrap();
    prepare(socket.as_fd(), socket.local_addr().unwrap()).unwrap();
    set_coalescing(socket.as_fd(), true).unwrap();
    socket
}

fn slots<const N: usize>(bytes: usize) -> [BytesMut; N] {
    array::from_fn(|_| BytesMut::with_capacity(bytes))
}

/// What the next call gives: as many messages as have come.
fn next<const N: usize>(socket: &UdpSocket, slots: &mut [BytesMut; N]) -> Vec<Received> {
    let mut wait = [PollFd::new(socket, PollFlags::IN)];
    let patience = Timespec::try_from(PATIENCE).unwrap();
    assert_eq!(poll(&mut wait, Some(&patience)), Ok(1), "nothing came");
    let mut metas = [Received::default(); N];
    let received = receive(socket.as_fd(), slots, &mut metas).unwrap();
    metas[..received].to_vec()
}

/// As many bytes, no two neighbours alike.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

/// Over both families, what a joined batch came with is known: lengths, mark, both addresses.
#[test]
fn all_that_came_with_a_batch_is_known() {
    for ip in ["127.0.0.9", "::1"] {
        let any = if ip == "::1" { "[::]:0" } else { "0.0.0.0:0" };
        let receiver = bound(any);
        let ip: IpAddr = ip.parse().unwrap();
        let sender = UdpSocket::bind((ip, 0)).unwrap();
        let state = UdpSocketState::new((&sender).into()).unwrap();
        for (ecn, bits) in [
            (Some(EcnCodepoint::Ect0), 0b10),
            (Some(EcnCodepoint::Ect1), 0b01),
            (Some(EcnCodepoint::Ce), 0b11),
            (None, 0),
        ] {
            let contents = pattern(2500);
            let batch = Transmit {
                destination: (ip, receiver.local_addr().unwrap().port()).into(),
                ecn,
                contents: &contents,
                segment_size: Some(1000),
                src_ip: None,
            };
            state.try_send((&sender).into(), &batch).unwrap();
            let mut slots = slots::<1>(70_000);
            let expected = Received {
                from: sender.local_addr().unwrap(),
                to: Some(ip),
                len: 2500,
                segment_bytes: 1000,
                ecn: bits,
                overruns: 0,
                whole: true,
            };
            assert_eq!(next(&receiver, &mut slots), [expected]);
            assert_eq!(slots[0], contents);
        }
    }
}

/// One call takes eight messages that wait, in their order, also an empty one, and says that there
/// is no more; slots beyond the last message are empty.
#[test]
fn eight_messages_come_with_one_call() {
    let receiver = bound("127.0.0.1:0");
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let lengths = [1, 1452, 0, 9000, 65_507, 3, 4, 5, 6];
    for length in lengths {
        let destination = receiver.local_addr().unwrap();
        assert_eq!(
            sender.send_to(&pattern(length), destination).unwrap(),
            length
        );
    }
    let mut slots = slots::<8>(66 * 1024);
    let metas = next(&receiver, &mut slots);
    assert_eq!(metas.len(), 8);
    for ((meta, slot), length) in metas.iter().zip(&slots).zip(lengths) {
        assert_eq!((meta.len, meta.segment_bytes), (length, length));
        assert!(meta.whole && meta.from == sender.local_addr().unwrap());
        assert_eq!(slot, &pattern(length));
    }
    assert_eq!(next(&receiver, &mut slots).len(), 1);
    assert_eq!(
        slots.each_ref().map(BytesMut::len),
        [6, 0, 0, 0, 0, 0, 0, 0]
    );
}

/// Without a message there is no waiting, even on a socket that waits, and no slot keeps what it held.
#[test]
fn nothing_is_waited_for() {
    let receiver = bound("127.0.0.1:0");
    let mut slots = [BytesMut::from(&b"old"[..])];
    let error = receive(receiver.as_fd(), &mut slots, &mut [Received::default()]);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(slots[0].is_empty());
}

/// A message longer than its slot is not taken for a whole one, joined or not; the one that exactly
/// fits and the ones after it are.
#[test]
fn a_message_longer_than_its_slot_is_not_whole() {
    let receiver = bound("127.0.0.1:0");
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let send_one = |len, segment_bytes| {
        let contents = pattern(len);
        let payloads = Payloads {
            destination: receiver.local_addr().unwrap(),
            source: None,
            ecn: 0b10,
            contents: &contents,
            segment_bytes,
        };
        send(sender.as_fd(), &payloads).unwrap();
    };
    send_one(101, None);
    send_one(100, None);
    send_one(150, Some(60));
    send_one(99, None);
    let mut slots = slots::<4>(100);
    let metas = next(&receiver, &mut slots);
    let told: Vec<_> = metas.iter().map(|meta| (meta.whole, meta.len)).collect();
    assert_eq!(told, [(false, 0), (true, 100), (false, 0), (true, 99)]);
    assert_eq!(slots.each_ref().map(BytesMut::len), [0, 100, 0, 99]);
    assert!(slots.iter().all(|slot| slot.capacity() == 100));
    assert!(
        metas
            .iter()
            .all(|meta| meta.from == sender.local_addr().unwrap())
    );

    // No room at all: nothing is written, nothing is made up.
    send_one(1, None);
    let metas = next(&receiver, &mut [BytesMut::new()]);
    assert_eq!((metas[0].whole, metas[0].len), (false, 0));
}

/// A message whose control messages found no room is not taken for a whole one: where its payloads
/// end may be among what is missing.
#[test]
fn a_message_without_all_its_control_messages_is_not_whole() {
    // Of an IPv4 sender a socket of both families tells in both ways.
    let receiver = bound("[::]:0");
    let more = [
        (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
        (libc::IPPROTO_IP, libc::IP_PKTINFO),
        (libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR),
    ];
    for (level, option) in more {
        super::super::options::set(receiver.as_fd(), level, option, 1).unwrap();
    }
    let port = receiver.local_addr().unwrap().port();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for segment_bytes in [Some(60), None] {
        let payloads = Payloads {
            destination: (Ipv4Addr::LOCALHOST, port).into(),
            source: None,
            ecn: 0b10,
            contents: &[7; 150],
            segment_bytes,
        };
        send(sender.as_fd(), &payloads).unwrap();
    }
    let mut slots = slots::<2>(1000);
    let told = next(&receiver, &mut slots)
        .iter()
        .map(|meta| (meta.whole, meta.len, meta.segment_bytes))
        .collect::<Vec<_>>();
    assert_eq!(told, [(false, 0, 0), (true, 150, 150)]);
}

/// A socket whose buffer was full tells with the next message how many it has thrown away.
#[test]
fn overruns_are_told() {
    let receiver = bound("127.0.0.1:0");
    set_socket_recv_buffer_size(&receiver, 0).unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let send_one = || {
        let destination = receiver.local_addr().unwrap();
        assert_eq!(sender.send_to(&[7; 1000], destination).unwrap(), 1000);
    };
    (0..50).for_each(|_| send_one());
    let mut slots = slots::<64>(2000);
    let kept = next(&receiver, &mut slots);
    assert!((1..50).contains(&kept.len()), "{} were kept", kept.len());
    assert!(kept.iter().all(|meta| meta.whole && meta.overruns == 0));
    send_one();
    let told = next(&receiver, &mut slots)[0];
    assert!(told.whole && told.len == 1000);
    assert_eq!(told.overruns as usize, 50 - kept.len());
}

/// A slot stays where it is and as large as it is, whatever comes; beyond what came its memory is as
/// it was, and not part of the message.
#[test]
fn slots_are_neither_moved_nor_cleared() {
    let receiver = bound("127.0.0.1:0");
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut slots = [BytesMut::zeroed(2000)];
    slots[0].fill(7);
    let (start, capacity) = (slots[0].as_ptr(), slots[0].capacity());
    for length in [1500, 10, 0] {
        let destination = receiver.local_addr().unwrap();
        sender.send_to(&vec![1; length], destination).unwrap();
        assert!(next(&receiver, &mut slots)[0].whole);
        assert_eq!(slots[0], vec![1; length]);
        assert_eq!((slots[0].as_ptr(), slots[0].capacity()), (start, capacity));
        // SAFETY: all of the slot was written at the beginning of this test.
        let beyond = unsafe { slots[0].spare_capacity_mut().assume_init_ref() };
        let (once_written, never) = beyond.split_at(1500 - length);
        assert!(once_written.iter().all(|byte| *byte == 1));
        assert!(!never.is_empty() && never.iter().all(|byte| *byte == 7));
    }
}

/// An IPv4 sender is an IPv4-mapped address to a socket of both families; its mark arrives, and an
/// answer from the address that it asked finds it, with its mark.
#[test]
fn ipv4_mapped_peers_are_answered() {
    let both = UdpSocket::bind("[::]:0").unwrap();
    prepare(both.as_fd(), both.local_addr().unwrap()).unwrap();
    let plain = bound("127.0.0.1:0");
    let port = both.local_addr().unwrap().port();
    let mut payloads = Payloads {
        destination: (Ipv4Addr::new(127, 0, 0, 9), port).into(),
        source: None,
        ecn: 0b01,
        contents: b"question",
        segment_bytes: None,
    };
    send(plain.as_fd(), &payloads).unwrap();
    let mut slots = slots::<1>(100);
    let question = next(&both, &mut slots)[0];
    assert_eq!(&slots[0][..], b"question");
    let mapped = |ip: [u8; 4]| IpAddr::V6(Ipv4Addr::from(ip).to_ipv6_mapped());
    assert_eq!(question.from.ip(), mapped([127, 0, 0, 1]));
    assert_eq!(
        (question.to, question.ecn),
        (Some(mapped([127, 0, 0, 9])), 0b01)
    );

    payloads.destination = question.from;
    payloads.source = question.to;
    payloads.ecn = 0b10;
    send(both.as_fd(), &payloads).unwrap();
    let answer = next(&plain, &mut slots)[0];
    assert_eq!(answer.from, (Ipv4Addr::new(127, 0, 0, 9), port).into());
    assert_eq!(answer.ecn, 0b10);
}
