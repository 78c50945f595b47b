#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use etherparse::{Icmpv4Type, PacketBuilder, SlicedPacket, TransportSlice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::sys::{
    netlink::{LinkSettings, Netlink, NetlinkError, enable_ipv6},
    netns::Netns,
};

fn in_new_netns<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    Netns::create()
        .expect("this test makes network namespaces: run it as root")
        .run(f)
        .unwrap()
}

fn set_up(name: &str) -> u32 {
    let netlink = Netlink::connect().unwrap();
    let index = netlink.link(name).unwrap().unwrap().index;
    enable_ipv6(name).unwrap();
    let settings = LinkSettings {
        ipv6_addr_gen_none: true,
        up: Some(true),
        ..LinkSettings::default()
    };
    netlink.configure_link(index, settings).unwrap();
    index
}

/// The next packet that `wanted` accepts.
fn read_until(tun: &Tun, wanted: impl Fn(&[u8]) -> bool) -> ([u8; VnetHeader::LEN], Vec<u8>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let (mut vnet, mut packet) = ([0; VnetHeader::LEN], vec![0; READ_BYTES_MAX]);
    loop {
        match tun.read(&mut vnet, &mut packet) {
            Ok(len) if wanted(&packet[..len]) => return (vnet, packet[..len].to_vec()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = deadline.saturating_duration_since(Instant::now());
                assert!(!left.is_zero(), "no such packet came");
                let mut fds = [PollFd::new(tun, PollFlags::IN)];
                poll(&mut fds, Some(&Timespec::try_from(left).unwrap())).unwrap();
            }
            Err(error) => panic!("read: {error}"),
        }
    }
}

/// This kernel grants all that is wanted, nothing beyond it, and segmentation never without
/// checksums; what is granted is reported.
#[test]
fn offloads_are_reported() {
    in_new_netns(|| {
        let all = Tun::create("full", TunOffloads::ALL).unwrap().offloads();
        assert!(all.checksum && all.tso4 && all.tso6, "{all:?}");
        assert_eq!(all.uso4, all.uso6);
        let none = Tun::create("none", TunOffloads::NONE).unwrap();
        assert_eq!(none.offloads(), TunOffloads::NONE);
        let only_tcp4 = TunOffloads {
            checksum: true,
            tso4: true,
            ..TunOffloads::NONE
        };
        let tun = Tun::create("tcp4", only_tcp4).unwrap();
        assert_eq!(tun.offloads(), only_tcp4);
        let without_checksum = TunOffloads {
            checksum: false,
            ..TunOffloads::ALL
        };
        let tun = Tun::create("odd", without_checksum).unwrap();
        assert_eq!(tun.offloads(), TunOffloads::NONE);
    });
}

/// Half of the UDP offloads, which kernels refuse, costs UDP offload and nothing else.
#[test]
fn a_refused_offload_leaves_the_others() {
    in_new_netns(|| {
        let wanted = TunOffloads {
            uso6: false,
            ..TunOffloads::ALL
        };
        let tun = Tun::create("eth0", wanted).unwrap();
        let expected = TunOffloads {
            uso4: false,
            uso6: false,
            ..TunOffloads::ALL
        };
        assert_eq!(tun.offloads(), expected);
    });
}

/// An echo request written to the device is answered by the kernel, and the answer can be read with
/// its virtio header.
#[test]
fn the_kernel_answers_a_ping() {
    in_new_netns(|| {
        let tun = Tun::create("eth0", TunOffloads::ALL).unwrap();
        let index = set_up("eth0");
        let netlink = Netlink::connect().unwrap();
        netlink
            .add_address(index, "10.0.0.1/24".parse().unwrap())
            .unwrap();
        let mut request = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
            .icmpv4_echo_request(7, 9)
            .write(&mut request, b"are you there")
            .unwrap();
        let (head, tail) = request.split_at(20);
        tun.write(&[
            IoSlice::new(&[0; VnetHeader::LEN]),
            IoSlice::new(head),
            IoSlice::new(tail),
        ])
        .unwrap();
        let (_, reply) = read_until(&tun, |packet| packet[0] >> 4 == 4);
        let reply = SlicedPacket::from_ip(&reply).unwrap();
        let Some(TransportSlice::Icmpv4(icmp)) = reply.transport else {
            panic!("{reply:?}");
        };
        let Icmpv4Type::EchoReply(echo) = icmp.icmp_type() else {
            panic!("{icmp:?}");
        };
        assert_eq!((echo.id, echo.seq), (7, 9));
        assert_eq!(icmp.payload(), b"are you there");
    });
}

/// Nothing to read is `WouldBlock`, and what is no IP packet is refused on write.
#[test]
fn reads_do_not_block_and_writes_are_checked() {
    in_new_netns(|| {
        let tun = Tun::create("eth0", TunOffloads::ALL).unwrap();
        let (mut vnet, mut packet) = ([0; VnetHeader::LEN], [0; 64]);
        let error = tun.read(&mut vnet, &mut packet).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        set_up("eth0");
        let parts = [
            IoSlice::new(&[0; VnetHeader::LEN]),
            IoSlice::new(&[0xff; 40]),
        ];
        assert!(tun.write(&parts).is_err());
    });
}

/// A device goes away with its descriptor; a persistent one stays, keeps its index, cannot be held
/// twice and can be taken up again.
#[test]
fn persistence_is_a_choice() {
    in_new_netns(|| {
        let netlink = Netlink::connect().unwrap();
        drop(Tun::open("eth0", TunOffloads::ALL).unwrap());
        assert_eq!(netlink.link("eth0").unwrap(), None);

        let tun = Tun::open("eth0", TunOffloads::ALL).unwrap();
        tun.set_persistent(true).unwrap();
        let before = netlink.link("eth0").unwrap().unwrap();
        let busy = Tun::open("eth0", TunOffloads::ALL).unwrap_err();
        assert!(matches!(busy, TunError::Busy { .. }), "{busy}");
        drop(tun);
        let tun = Tun::open("eth0", TunOffloads::NONE).unwrap();
        assert_eq!(netlink.link("eth0").unwrap().unwrap().index, before.index);
        assert_eq!(tun.offloads(), TunOffloads::NONE);

        tun.set_persistent(false).unwrap();
        drop(tun);
        assert_eq!(netlink.link("eth0").unwrap(), None);
    });
}

/// `open` refuses an interface that is no TUN device, `create` refuses any that exists; both leave
/// it alone and leave nothing behind.
#[test]
fn taken_names_are_refused() {
    in_new_netns(|| {
        let netlink = Netlink::connect().unwrap();
        netlink.add_bridge("br0").unwrap();
        let kept = Tun::create("kept", TunOffloads::NONE).unwrap();
        kept.set_persistent(true).unwrap();
        drop(kept);
        let before = netlink.links().unwrap();
        for result in [
            Tun::open("br0", TunOffloads::ALL),
            Tun::create("br0", TunOffloads::ALL),
            Tun::create("kept", TunOffloads::ALL),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, TunError::Exists { .. }), "{error}");
        }
        assert_eq!(netlink.links().unwrap(), before);
    });
}

/// Of several threads that create the same name at once, exactly one gets it.
#[test]
fn creation_has_one_winner() {
    const RACERS: usize = 8;
    let netns = Netns::create().expect("this test makes network namespaces: run it as root");
    let (start, end) = (Barrier::new(RACERS), Barrier::new(RACERS));
    let winners = thread::scope(|scope| {
        let racers: Vec<_> = (0..RACERS)
            .map(|_| {
                scope.spawn(|| {
                    netns.run(|| {
                        start.wait();
                        let made = Tun::create("eth0", TunOffloads::ALL);
                        end.wait();
                        made.is_ok()
                    })
                })
            })
            .collect();
        racers
            .into_iter()
            .map(|racer| racer.join().unwrap().unwrap())
            .filter(|&won| won)
            .count()
    });
    assert_eq!(winners, 1);
}

/// Names that would be patterns, paths or too long never reach the kernel.
#[test]
fn bad_names_are_refused() {
    for name in [
        "",
        ".",
        "..",
        "all",
        "default",
        "eth%d",
        "a/b",
        "a:b",
        "a b",
        "a\tb",
        "a\0b",
        "sixteen-bytes-xx",
    ] {
        for result in [
            Tun::open(name, TunOffloads::NONE),
            Tun::create(name, TunOffloads::NONE),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, TunError::Name { .. }), "{name:?}: {error}");
        }
    }
}

/// A deleted device is an error to its holder, not a silent void.
#[test]
fn a_deleted_device_is_noticed() {
    in_new_netns(|| {
        let tun = Tun::create("eth0", TunOffloads::NONE).unwrap();
        let netlink = Netlink::connect().unwrap();
        let index = netlink.link("eth0").unwrap().unwrap().index;
        netlink.delete_link(index).unwrap();
        let (mut vnet, mut packet) = ([0; VnetHeader::LEN], [0; 64]);
        let error = tun.read(&mut vnet, &mut packet).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::WouldBlock);
        let again = netlink.delete_link(index).unwrap_err();
        assert!(matches!(again, NetlinkError::NotFound { .. }), "{again}");
    });
}

/// Each refusal of the kernel comes with what to check.
#[test]
fn refusals_name_the_cure() {
    for (errno, cure) in [
        (Errno::NOENT, "modprobe tun"),
        (Errno::NODEV, "modprobe tun"),
        (Errno::ACCESS, "chmod 0666 /dev/net/tun"),
        (Errno::PERM, "CAP_NET_ADMIN"),
        (Errno::BUSY, "is a second fabric-node running?"),
        (Errno::NOMEM, "check that /dev/net/tun exists"),
    ] {
        let text = refusal("fabric0", errno.into()).to_string();
        assert!(text.contains("fabric0") && text.contains(cure), "{text}");
    }
}
