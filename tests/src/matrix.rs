//! Every pod tries to reach every other: ping, TCP and UDP, small and large.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::Pod;

use crate::traffic::{ping_seen, tcp_echo, udp_echo};

/// Payloads (bytes): one byte, just below and beyond one packet, and the largest that UDP carries,
/// rounded down.
pub const SIZES: [usize; 4] = [1, 1400, 8000, 60_000];
/// Pairs tried side by side.
const SIDE_BY_SIDE: usize = 4;

/// Tries all ordered pairs. No datagram may be lost.
///
/// # Errors
///
/// Every pair that failed, and how.
pub fn matrix(pods: &[Pod], families: &[bool], sizes: &[usize]) -> anyhow::Result<()> {
    let mut work = Vec::new();
    for from in pods {
        for to in pods.iter().filter(|to| to.name != from.name) {
            work.extend(families.iter().map(|ipv6| (from, to, *ipv6)));
        }
    }
    let failures = Mutex::new(Vec::new());
    let work = Mutex::new(work);
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let Some((from, to, ipv6)) = lock(&work).pop() else {
                        break;
                    };
                    if let Err(error) = pair(from, to, ipv6, sizes) {
                        lock(&failures).push(format!("{error:#}"));
                    }
                }
            });
        }
    });
    let failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

fn pair(from: &Pod, to: &Pod, ipv6: bool, sizes: &[usize]) -> anyhow::Result<()> {
    let what = || format!("{} -> {} (IPv6: {ipv6})", from.name, to.name);
    // A lab is up when all peers are connected, and the ping has gone the way before any datagram:
    // none has the excuse of being the first.
    ping_seen(from, to, ipv6).with_context(what)?;
    tcp_echo(from, to, ipv6, sizes).with_context(what)?;
    udp_echo(from, to, ipv6, sizes).with_context(what)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
