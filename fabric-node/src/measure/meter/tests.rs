//! Client and server against each other, in namespaces of their own.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use super::{client, server::Server, wire::Greeting};
use crate::{
    lab::interrupt::Interrupt,
    measure::{Direction, Load, Measurement, Protocol, result::Sum},
    sys::{netlink::Netlink, netns::Netns},
};

const NEEDS_ROOT: &str = "this test makes network namespaces: run it as root";
const ADDRESS: &str = "127.0.0.1:5202";

fn loopback() -> Netns {
    let netns = Netns::create().expect(NEEDS_ROOT);
    netns
        .run(|| Netlink::connect().unwrap().set_loopback_up().unwrap())
        .unwrap();
    netns
}

/// Bytes and packets that the loopback of the calling thread's namespace has received.
fn counters() -> (u64, u64) {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix("lo:"));
    let mut fields = line
        .unwrap()
        .split_whitespace()
        .map(|field| field.parse().unwrap());
    (fields.next().unwrap(), fields.next().unwrap())
}

/// Measures in a namespace of its own; the result, and what the interface counted meanwhile.
fn measure(load: Load) -> (Measurement, u64, u64) {
    let netns = loopback();
    let address: SocketAddr = ADDRESS.parse().unwrap();
    let _server = Server::start(&netns, address, Greeting::new(false)).unwrap();
    netns
        .run(|| {
            let before = counters();
            let result = client::measure(address, &load, &Interrupt::never()).unwrap();
            let after = counters();
            (result, after.0 - before.0, after.1 - before.1)
        })
        .unwrap()
}

fn load(protocol: Protocol, direction: Direction, streams: u32) -> Load {
    Load {
        protocol,
        direction,
        streams,
        seconds: 1,
    }
}

fn checked(sum: &Option<Sum>) -> &Sum {
    let sum = sum.as_ref().unwrap();
    assert!((0.9..3.0).contains(&sum.seconds), "{sum:?}");
    let rate = sum.bytes as f64 * 8.0 / sum.seconds;
    assert!((rate - sum.bits_per_second).abs() < 1.0, "{sum:?}");
    sum
}

/// Over TCP, what was sent has arrived, either way and both, and the interface counted it, too.
#[test]
fn tcp_arrives_and_is_counted() {
    for (direction, streams) in [
        (Direction::Forward, 2),
        (Direction::Reverse, 1),
        (Direction::Both, 1),
    ] {
        let (result, bytes, _) = measure(load(Protocol::Tcp, direction, streams));
        let end = &result.end;
        let mut arrived = checked(&end.sum_received).bytes;
        assert_eq!(arrived, checked(&end.sum_sent).bytes, "{direction:?}");
        if direction == Direction::Both {
            let back = checked(&end.sum_received_bidir_reverse).bytes;
            assert_eq!(back, checked(&end.sum_sent_bidir_reverse).bytes);
            arrived += back;
        }
        assert!(arrived > 1_000_000, "{direction:?}: {arrived}");
        // Headers and acknowledgements are less than a tenth of it.
        assert!(
            (arrived..arrived + arrived / 10).contains(&bytes),
            "{arrived} of {bytes}"
        );
        assert!(result.intervals.len() >= 2, "{:?}", result.intervals);
        assert!(result.retransmits().is_some());
    }
}

/// Over UDP, datagrams sent are those that arrived and those that were lost, at the rate that was asked
/// for, and the interface counted as many.
#[test]
fn udp_is_counted_exactly() {
    for direction in [Direction::Forward, Direction::Reverse] {
        let udp = Protocol::Udp {
            size: 100,
            bitrate: 800_000,
        };
        let (result, _, packets) = measure(load(udp, direction, 2));
        let (sent, received) = (
            checked(&result.end.sum_sent),
            checked(&result.end.sum_received),
        );
        let lost = received.lost_packets.unwrap();
        let arrived = received.bytes / 100;
        assert_eq!(sent.packets, received.packets);
        assert_eq!(
            sent.packets.unwrap(),
            arrived + u64::try_from(lost).unwrap()
        );
        assert_eq!(lost, 0, "of few datagrams over loopback none is lost");
        // Two streams of 1000 datagrams per second.
        assert!((1900..2100).contains(&arrived), "{arrived}");
        // The connections beside them are a few packets.
        assert!(
            (arrived..arrived + 100).contains(&packets),
            "{arrived} of {packets}"
        );
        let rate = result.packet_rate().unwrap();
        assert!(
            (1800.0..2200.0).contains(&rate.received_per_second),
            "{rate:?}"
        );
        assert!(rate.lost_percent.abs() < 1e-9, "{rate:?}");
    }
}

/// A server that was told to stop ends while a client sends, and the client notices.
#[test]
fn a_server_ends_in_the_middle() {
    let netns = loopback();
    let address: SocketAddr = ADDRESS.parse().unwrap();
    let server = Server::start(&netns, address, Greeting::new(false)).unwrap();
    let long = Load {
        seconds: 600,
        ..load(Protocol::Tcp, Direction::Forward, 1)
    };
    let client = netns
        .spawn("client", move || {
            client::measure(address, &long, &Interrupt::never())
        })
        .unwrap();
    netns
        .run(|| {
            while counters().0 < 1_000_000 {
                thread::yield_now();
            }
        })
        .unwrap();
    drop(server);
    assert!(client.join().unwrap().is_err());
}

/// Nonsense, and requests out of range, are hung up on; the server goes on with the next.
#[test]
fn nonsense_is_hung_up_on() {
    let netns = loopback();
    let address: SocketAddr = ADDRESS.parse().unwrap();
    let _server = Server::start(&netns, address, Greeting::new(true)).unwrap();
    netns
        .run(|| {
            for request in [
                "GET / HTTP/1.1\r\n\r\n",
                "{\"do\":\"tcp-source\",\"seconds\":4000000}\n",
                "{\"do\":\"udp-source\",\"port\":1,\"seconds\":1,\"size\":4,\"bitrate\":0}\n",
                "{\"do\":\"format-disk\"}\n",
            ] {
                let mut stream = TcpStream::connect(address).unwrap();
                stream
                    .set_read_timeout(Some(Duration::from_secs(10)))
                    .unwrap();
                stream.write_all(request.as_bytes()).unwrap();
                let mut said = Vec::new();
                // A reset is a way of hanging up.
                let _ = stream.read_to_end(&mut said);
                assert!(said.len() < 100, "{request}: {said:?}");
            }
            let greeting = client::greet(address, &Interrupt::never()).unwrap();
            assert!(greeting.iperf3);
        })
        .unwrap();
}

/// A port at which nobody listens, and one at which something else does, are told apart from a meter.
#[test]
fn others_are_no_meter() {
    let netns = loopback();
    netns
        .run(|| {
            let told = |address| {
                format!(
                    "{:#}",
                    client::greet(address, &Interrupt::never()).unwrap_err()
                )
            };
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let other = listener.local_addr().unwrap();
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(b"220 mail ESMTP\r\n").unwrap();
            });
            assert!(told(other).contains("no meter"), "{}", told(other));
            server.join().unwrap();
            assert!(told(other).contains("no meter of fabric answers"));
        })
        .unwrap();
}
