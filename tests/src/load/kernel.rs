//! What the kernel counts of TCP and UDP in a namespace, since it was made.

use std::{fs, path::Path};

use anyhow::Context as _;
use fabric_node::lab::underlay::inside;

/// TCP segments that were sent again in the namespace at `netns`: tcpRetransSegs of RFC 4022.
///
/// # Errors
///
/// The kernel does not tell.
pub fn tcp_retransmissions(netns: &Path) -> anyhow::Result<u64> {
    count(netns, "snmp", "Tcp:", "RetransSegs")
}

/// UDP packets that found the receive buffer of their socket full, in the namespace at `netns`; a
/// super-packet is one.
///
/// # Errors
///
/// The kernel does not tell.
pub fn udp_overruns(netns: &Path) -> anyhow::Result<u64> {
    count(netns, "snmp", "Udp:", "RcvbufErrors")
}

/// How often TCP senders in the namespace at `netns` learned that a segment which they had sent once had
/// come behind a later one, by any of the kernel's ways to tell: by SACK, without it, by timestamp.
///
/// # Errors
///
/// The kernel does not tell.
pub fn tcp_reorderings(netns: &Path) -> anyhow::Result<u64> {
    let names = ["TCPSACKReorder", "TCPRenoReorder", "TCPTSReorder"];
    let counts = names.map(|name| count(netns, "netstat", "TcpExt:", name));
    counts.into_iter().sum()
}

/// Number `name` of `protocol` in the file of that name in `/proc/net`.
fn count(netns: &Path, file: &str, protocol: &str, name: &str) -> anyhow::Result<u64> {
    let table = inside(netns, || {
        Ok(fs::read_to_string(format!("/proc/thread-self/net/{file}"))?)
    })?;
    find(&table, protocol, name)
        .with_context(|| format!("/proc/net/{file} says nothing of {protocol} {name}"))
}

/// A line of names, then one of numbers.
fn find(table: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = table
        .lines()
        .filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(' '));
    let place = lines
        .next()?
        .split_whitespace()
        .position(|found| found == name)?;
    lines.next()?.split_whitespace().nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number is found below its name.
    #[test]
    fn numbers_are_below_their_names() {
        let table = "Ip: A B\nIp: 1 2\nTcp: RtoMin MaxConn RetransSegs\nTcp: 200 -1 17\n";
        assert_eq!(find(table, "Tcp:", "RetransSegs"), Some(17));
        assert_eq!(find(table, "Tcp:", "InErrs"), None);
        assert_eq!(find("", "Tcp:", "RetransSegs"), None);
    }
}
