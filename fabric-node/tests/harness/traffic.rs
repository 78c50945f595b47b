//! Honest traffic between pods: echoes, once or for as long as something else happens.

use std::{
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use super::{Fabric, pod_address};

/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Echoes every size over TCP and UDP between two pods, and checks who is seen.
pub fn echo_all(fabric: &Fabric, from: usize, to: usize) {
    for ipv6 in [false, true] {
        for size in [1, 1400, 8000, 60_000] {
            tcp_echo(fabric, from, to, ipv6, size);
            udp_echo(fabric, from, to, ipv6, size);
        }
    }
}

/// Echoes over TCP from `from` to `to` while `during` runs; each echo must succeed. Returns what
/// `during` returned and how many echoes there were.
pub fn tcp_echoes_during<T>(
    fabric: &Fabric,
    from: usize,
    to: usize,
    during: impl FnOnce() -> T,
) -> (T, u64) {
    let done = AtomicBool::new(false);
    let (begun, has_begun) = mpsc::channel();
    std::thread::scope(|scope| {
        let stop = &done;
        let echoes = scope.spawn(move || {
            // One before, so that this thread runs when the other work begins.
            tcp_echo(fabric, from, to, true, 2000);
            let _ = begun.send(());
            let mut count = 0;
            loop {
                tcp_echo(fabric, from, to, count % 2 == 1, 2000);
                count += 1;
                if stop.load(Ordering::Relaxed) {
                    return count;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        // The channel also ends if that first echo panics.
        let _ = has_begun.recv();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
        done.store(true, Ordering::Relaxed);
        let count = echoes.join();
        match (result, count) {
            (Ok(result), Ok(count)) => (result, count),
            (Err(payload), _) | (_, Err(payload)) => std::panic::resume_unwind(payload),
        }
    })
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n * 31 % 251) as u8).collect()
}

pub fn tcp_echo(fabric: &Fabric, from: usize, to: usize, ipv6: bool, size: usize) {
    let (server, client) = (pod_address(to, 2, ipv6), pod_address(from, 2, ipv6));
    let listener = fabric.nodes[to]
        .pod
        .run(|| TcpListener::bind((server, 0)).unwrap())
        .unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let mut stream = fabric.nodes[from]
            .pod
            .run(|| TcpStream::connect_timeout(&address, ANSWER_MAX))
            .unwrap()
            .unwrap_or_else(|e| panic!("no TCP to {server}: {e}; {:?}", fabric.reports()));
        // The connection is complete, so this does not wait.
        let (mut accepted, seen) = listener.accept().unwrap();
        assert_eq!(seen.ip(), client);
        for stream in [&stream, &accepted] {
            stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
            stream.set_write_timeout(Some(ANSWER_MAX)).unwrap();
        }
        scope.spawn(move || {
            let mut data = vec![0; size];
            accepted.read_exact(&mut data).unwrap();
            accepted.write_all(&data).unwrap();
        });
        let sent = pattern(size);
        stream.write_all(&sent).unwrap();
        let mut back = vec![0; size];
        stream
            .read_exact(&mut back)
            .unwrap_or_else(|e| panic!("no echo from {server}: {e}; {:?}", fabric.reports()));
        assert_eq!(back, sent, "{size} bytes of TCP to {server}");
    });
}

pub fn udp_echo(fabric: &Fabric, from: usize, to: usize, ipv6: bool, size: usize) {
    let (server, client) = (pod_address(to, 2, ipv6), pod_address(from, 2, ipv6));
    let bind = |node: usize, ip: IpAddr| {
        let socket = fabric.nodes[node]
            .pod
            .run(|| UdpSocket::bind((ip, 0)).unwrap())
            .unwrap();
        socket.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        socket
    };
    let listener = bind(to, server);
    let sender = bind(from, client);
    let sent = pattern(size);
    sender
        .send_to(&sent, listener.local_addr().unwrap())
        .unwrap();
    let mut buffer = vec![0; 65_536];
    let (len, seen) = listener
        .recv_from(&mut buffer)
        .unwrap_or_else(|e| panic!("{size} to {server}: {e}; {:?}", fabric.reports()));
    assert_eq!(seen.ip(), client);
    listener.send_to(&buffer[..len], seen).unwrap();
    let (len, seen) = sender.recv_from(&mut buffer).unwrap();
    assert_eq!(seen.ip(), server);
    assert_eq!(&buffer[..len], &sent[..], "{size} bytes of UDP to {server}");
}
