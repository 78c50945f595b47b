//! What must not be joined comes out as it came, damage included.

use super::*;

/// Packets that may not join go out unchanged and in order, however well they fit otherwise.
#[test]
fn leaves_strangers_alone() {
    let (v4, tcp) = (Ip::v4(), Tcp::default());
    let second = |ip: Ip, tcp: Tcp| {
        let ip = Ip {
            identification: 1,
            ..ip
        };
        let tcp = Tcp {
            sequence: tcp.sequence + 100,
            ..tcp
        };
        tcp.packet(&ip, &[2; 100])
    };
    let first = tcp.packet(&v4, &[1; 100]);
    let joins = coalesce_all(&[first.clone(), second(v4.clone(), tcp.clone())]);
    assert_eq!(joins.len(), 1);

    let mut corrupt = second(v4.clone(), tcp.clone());
    *corrupt.last_mut().unwrap() ^= 1;
    let strangers = [
        corrupt,
        second(
            Ip {
                ttl: 63,
                ..v4.clone()
            },
            tcp.clone(),
        ),
        second(
            Ip {
                traffic_class: 3,
                ..v4.clone()
            },
            tcp.clone(),
        ),
        second(
            Ip {
                flags_and_offset: 0,
                ..v4.clone()
            },
            tcp.clone(),
        ),
        second(
            Ip {
                options: vec![1; 4],
                ..v4.clone()
            },
            tcp.clone(),
        ),
        second(
            v4.clone(),
            Tcp {
                sequence: 1001,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                acknowledgement: 9,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                window: 9,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                options: vec![1; 4],
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                source: 9,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                flags: 0x90,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                flags: 0x50,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                flags: 0x14,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                flags: 0x12,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                flags: 0x30,
                ..tcp.clone()
            },
        ),
    ];
    for stranger in strangers {
        let out = coalesce_all(&[first.clone(), stranger.clone()]);
        assert_eq!(
            out,
            [(first.clone(), Offload::NONE), (stranger, Offload::NONE)]
        );
    }
}

/// TCP options of one length and different content, as timestamps are, keep segments apart.
#[test]
fn different_options_do_not_join() {
    let run = |options: [u8; 4]| {
        let tcp = Tcp {
            options: options.to_vec(),
            ..Tcp::default()
        };
        tcp_run(&Ip::v6(), &tcp, 2, 100, 0)
    };
    let (a, b) = (run([1, 1, 1, 0]), run([1, 1, 1, 1]));
    assert_eq!(coalesce_all(&a).len(), 1);
    assert_eq!(coalesce_all(&[a[0].clone(), b[1].clone()]).len(), 2);
}

/// A first packet that is corrupt is not covered up by a sound one after it.
#[test]
fn corrupt_first_packet_stays_corrupt() {
    for ip in [Ip::v4(), Ip::v6()] {
        let mut packets = tcp_run(&ip, &Tcp::default(), 3, 100, 0);
        *packets[0].last_mut().unwrap() ^= 1;
        let out = coalesce_all(&packets);
        assert_eq!(out.len(), 2);
        assert_eq!(out[0], (packets[0].clone(), Offload::NONE));
        assert!(!checksum::verify(&out[0].0, &headers(&out[0].0)));
        assert_eq!(cut_all(&out), packets);
    }
}

/// UDP without a checksum, and with a length that is not the packet's, passes as it came.
#[test]
fn udp_oddities_pass() {
    let mut none = udp_run(&Ip::v4(), 3, 100);
    for packet in &mut none {
        packet[26..28].fill(0);
    }
    let mut short = udp_run(&Ip::v4(), 3, 100);
    for packet in &mut short {
        packet[25] = 50;
    }
    for packets in [none, short] {
        let out = coalesce_all(&packets);
        assert_eq!(out.len(), 3);
        assert_eq!(cut_all(&out), packets);
    }
}

/// Other protocols pass at once, without the bytes behind the packet.
#[test]
fn passes_what_it_does_not_know() {
    let ping = echo_request(&Ip::v6(), 1, 2, b"abc");
    let mut frame = ping.clone();
    frame.extend_from_slice(&[0; 8]);
    let mut out = Vec::new();
    Coalescer::default().push(&frame, &headers(&frame), &mut |packet, offload| {
        out.push((packet.to_vec(), offload));
    });
    assert_eq!(out, [(ping, Offload::NONE)]);
}
