//! What the kernel lost inside of a pod, where no daemon sees it: packets that the pod's interface had
//! no room for, and datagrams that the receiving program did not read in time.

use std::{collections::BTreeMap, fs};

use serde::Serialize;

use crate::sys::netns::Netns;

/// Packets that the kernel dropped inside of a pod while a load ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KernelDrops {
    /// Whose namespace.
    pub(super) pod: String,
    /// During what: `tcp`, `udp-64`.
    pub(super) during: String,
    /// The kernel's name for it: `tx_dropped` and `rx_dropped` of the interface (linux/if_link.h),
    /// `RcvbufErrors` of UDP (linux/snmp.h).
    pub(super) counter: &'static str,
    /// How many.
    pub(super) packets: u64,
}

/// The kernel's counters inside of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters(BTreeMap<&'static str, u64>);

impl Counters {
    /// Those of `ifname` and of UDP in `netns`; what cannot be read is left out.
    pub(super) fn read(netns: &Netns, ifname: &str) -> Self {
        // `/proc/self` would be the main thread's namespace.
        let read = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let texts =
            netns.run(|| ["dev", "snmp", "snmp6"].map(|file| read(file).unwrap_or_default()));
        texts
            .map(|[dev, snmp, snmp6]| parse(ifname, &dev, &snmp, &snmp6))
            .unwrap_or_default()
    }

    /// What was counted since.
    pub(super) fn until(&self, later: &Self, pod: &str, during: &str) -> Vec<KernelDrops> {
        let grown = |(counter, before): (&&'static str, &u64)| {
            let packets = later.0.get(counter)?.checked_sub(*before)?;
            (packets > 0).then(|| KernelDrops {
                pod: pod.to_owned(),
                during: during.to_owned(),
                counter,
                packets,
            })
        };
        self.0.iter().filter_map(grown).collect()
    }
}

fn parse(ifname: &str, dev: &str, snmp: &str, snmp6: &str) -> Counters {
    let mut counters = BTreeMap::new();
    let line = dev
        .lines()
        .find_map(|line| line.trim().strip_prefix(ifname)?.strip_prefix(':'));
    if let Some(line) = line {
        // Receive: bytes packets errs drop fifo frame compressed multicast; then transmit (proc(5)).
        let fields: Vec<&str> = line.split_whitespace().collect();
        for (counter, place) in [("rx_dropped", 3), ("tx_dropped", 11)] {
            if let Some(value) = fields.get(place).and_then(|field| field.parse().ok()) {
                counters.insert(counter, value);
            }
        }
    }
    // IPv4 has a line of names above one of values, IPv6 a name and a value on each line.
    let mut udp = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (
        udp.next().unwrap_or_default(),
        udp.next().unwrap_or_default(),
    );
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let ipv4 = pairs
        .find(|(name, _)| *name == "RcvbufErrors")
        .map(|(_, value)| value);
    let ipv6 = snmp6
        .lines()
        .find_map(|line| line.strip_prefix("Udp6RcvbufErrors"));
    let values = [ipv4, ipv6].into_iter().flatten();
    if let Some(sum) = values
        .filter_map(|value| value.trim().parse::<u64>().ok())
        .reduce(|a, b| a + b)
    {
        counters.insert("RcvbufErrors", sum);
    }
    Counters(counters)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    9    0     0          0         0        0       0    0    9    0     0       0          0
  eth0: 783914561  150840    0    3    0     0          0         0 1930920059  465912    0 499194    0     0       0          0
";
    const SNMP: &str = "\
Ip: Forwarding DefaultTTL
Ip: 2 64
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors
Udp: 77277 0 46175 928426 46170 0
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors
UdpLite: 0 0 0 0 7 0
";

    /// The counters are those of the interface and of both families, and of nothing else.
    #[test]
    fn counters_are_read() {
        let found = parse(
            "eth0",
            DEV,
            SNMP,
            "Udp6InErrors  \t4\nUdp6RcvbufErrors                \t5\n",
        );
        let expected = [
            ("RcvbufErrors", 46_175),
            ("rx_dropped", 3),
            ("tx_dropped", 499_194),
        ];
        assert_eq!(found, Counters(expected.into_iter().collect()));
        assert_eq!(parse("eth", "", "", ""), Counters::default());
        assert_eq!(parse("eth", DEV, "", ""), Counters::default());
    }

    /// Only what grew is told.
    #[test]
    fn only_growth_is_told() {
        let counters = |tx, buffer| {
            Counters(
                [("tx_dropped", tx), ("RcvbufErrors", buffer)]
                    .into_iter()
                    .collect(),
            )
        };
        let found = counters(5, 2).until(&counters(12, 2), "web", "tcp");
        let expected = KernelDrops {
            pod: "web".to_owned(),
            during: "tcp".to_owned(),
            counter: "tx_dropped",
            packets: 7,
        };
        assert_eq!(found, [expected]);
    }
}
