//! What the kernel counts of TCP in a namespace.

use std::{fs, path::Path};

use anyhow::Context as _;
use fabric_node::lab::underlay::inside;

/// TCP segments that were sent again in the namespace at `netns`, since it was made: `RetransSegs` of
/// RFC 4022 (tcpRetransSegs).
///
/// # Errors
///
/// The kernel does not tell.
pub fn tcp_retransmissions(netns: &Path) -> anyhow::Result<u64> {
    let table = inside(netns, || {
        Ok(fs::read_to_string("/proc/thread-self/net/snmp")?)
    })?;
    tcp(&table, "RetransSegs").context("/proc/net/snmp says nothing of RetransSegs")
}

/// A line of names, then one of numbers.
fn tcp(table: &str, name: &str) -> Option<u64> {
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Tcp:"));
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
        assert_eq!(tcp(table, "RetransSegs"), Some(17));
        assert_eq!(tcp(table, "InErrs"), None);
        assert_eq!(tcp("", "RetransSegs"), None);
    }
}
