//! When a run goes out: at its last segment, at a limit, before what may not overtake it.

use super::*;

/// PSH and FIN end a run at once, and so does a short segment: nothing waits for the flush.
#[test]
fn ends_a_run_at_once() {
    for last in [0x18, 0x11] {
        let mut packets = tcp_run(&Ip::v4(), &Tcp::default(), 3, 100, 0);
        let ip = Ip {
            identification: 3,
            ..Ip::v4()
        };
        let tcp = Tcp {
            sequence: 1300,
            flags: last,
            ..Tcp::default()
        };
        packets.push(tcp.packet(&ip, &[9; 100]));
        let mut out = Vec::new();
        let mut coalescer = Coalescer::default();
        for packet in &packets {
            coalescer.push(packet, &headers(packet), &mut |packet, offload| {
                out.push((packet.to_vec(), offload));
            });
        }
        assert_eq!(out.len(), 1);
        assert_eq!(cut_all(&out), packets);
    }
    let short = tcp_run(&Ip::v6(), &Tcp::default(), 3, 100, 1);
    let mut emitted = 0;
    let mut coalescer = Coalescer::default();
    for packet in &short {
        coalescer.push(packet, &headers(packet), &mut |_, _| emitted += 1);
    }
    assert_eq!(emitted, 1);
}

/// No super-packet exceeds 64 segments or the largest IPv4 length.
#[test]
fn keeps_to_its_limits() {
    for ip in [Ip::v4(), Ip::v6()] {
        let out = coalesce_all(&udp_run(&ip, 130, 100));
        let sizes: Vec<_> = out
            .iter()
            .map(|(packet, _)| headers(packet).payload_len().unwrap() / 100)
            .collect();
        assert_eq!(sizes, [64, 64, 2]);
        let packets = udp_run(&ip, 60, 1400);
        let out = coalesce_all(&packets);
        assert_eq!(out.len(), 2);
        assert!(out.iter().all(|(packet, _)| packet.len() <= 65_535));
        assert_eq!(cut_all(&out), packets);
    }
}

/// A later fragment does not overtake the flow it may belong to; other hosts' flows go on waiting.
#[test]
fn fragments_keep_the_order() {
    let other = Ip::between([10, 9, 9, 9], [10, 2, 0, 2]);
    let waiting = udp(&other, 7, 9, &[1; 100]);
    let first = udp(&Ip::v4(), 7, 9, &[1; 100]);
    let fragment = Ip {
        flags_and_offset: 0x0010,
        ..Ip::v4()
    }
    .packet(17, &[2; 100]);
    let out = coalesce_all(&[waiting.clone(), first.clone(), fragment.clone()]);
    let order: Vec<_> = out.into_iter().map(|(packet, _)| packet).collect();
    assert_eq!(order, [first, fragment, waiting]);
}

/// With more flows than it holds, the oldest goes out first.
#[test]
fn holds_a_bounded_number_of_flows() {
    let packets: Vec<_> = (0..=FLOWS_MAX as u16)
        .map(|port| udp(&Ip::v6(), port, 9, &[1; 100]))
        .collect();
    let mut out = Vec::new();
    let mut coalescer = Coalescer::default();
    for packet in &packets {
        coalescer.push(packet, &headers(packet), &mut |packet, _| {
            out.push(packet.to_vec());
        });
    }
    assert_eq!(out, packets[..1]);
}
