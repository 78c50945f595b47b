//! Reports for people: one pair as lines, all pairs as a table.

use std::fmt::Write as _;

use super::report::{Member, Report, ReportList, RoundTrips};
use crate::{
    measure::{Measurement, result::PacketRate, rtt::Summary},
    terminal::output::{NONE, Show, printable, table},
};

impl Report {
    fn meter_words(&self) -> String {
        let test = &self.tcp.start.test_start;
        if test.duration == 0 {
            return if self.meter.is_empty() {
                NONE
            } else {
                self.meter
            }
            .to_owned();
        }
        let streams = if test.num_streams == 1 {
            "stream"
        } else {
            "streams"
        };
        let way = match (test.reverse, &self.tcp.end.sum_sent_bidir_reverse) {
            (1, _) => ", reverse",
            (_, Some(_)) => " each way",
            _ => "",
        };
        let builtin = if self.meter == "builtin" {
            " built-in meter"
        } else {
            ""
        };
        format!(
            "{}{builtin}, {} {streams}{way}, {} s",
            self.tcp.start.version, test.num_streams, test.duration
        )
    }

    fn lines(&self, wide: bool) -> Vec<(String, String)> {
        let mut lines = vec![
            ("From".to_owned(), self.from.described()),
            ("To".to_owned(), self.to.described()),
            ("Path".to_owned(), self.path.words().to_owned()),
            ("Meter".to_owned(), self.meter_words()),
            ("TCP".to_owned(), tcp_words(&self.tcp)),
        ];
        if let Some(bits) = self.tcp.received_reverse_bits_per_second() {
            lines.push(("TCP-Back".to_owned(), rate(bits)));
        }
        for udp in &self.udp {
            let failed = failed(&udp.measurement);
            let words = udp
                .measurement
                .packet_rate()
                .map_or(failed, |it| packets_words(&it, wide));
            lines.push((format!("UDP-{}", udp.size), words));
            if let Some(back) = udp.measurement.packet_rate_reverse() {
                lines.push((format!("UDP-{}-Back", udp.size), packets_words(&back, wide)));
            }
        }
        lines.push(("RTT-Idle".to_owned(), rtt_words(&self.rtt.idle, wide)));
        lines.push(("RTT-Loaded".to_owned(), rtt_words(&self.rtt.loaded, wide)));
        lines.extend(listed("Drops", self.drop_words()));
        lines.extend(listed("Kernel-Drops", self.kernel_drop_words()));
        if wide {
            if let Some(cpu) = &self.tcp.end.cpu_utilization_percent {
                let words = format!(
                    "client {:.0} %, server {:.0} %",
                    cpu.host_total, cpu.remote_total
                );
                lines.push(("CPU".to_owned(), words));
            }
            if let Some(congestion) = &self.tcp.end.sender_tcp_congestion {
                lines.push(("Congestion".to_owned(), congestion.clone()));
            }
            for interval in &self.tcp.intervals {
                let sum = &interval.sum;
                let name = format!("{:.1}-{:.1}s", sum.start, sum.end);
                lines.push((name, rate(sum.bits_per_second)));
            }
        }
        lines
    }

    fn drop_words(&self) -> Vec<String> {
        let mut words: Vec<String> = self
            .drops
            .iter()
            .map(|it| {
                format!(
                    "{} {} on {} ({})",
                    it.packets, it.reason, it.node, it.during
                )
            })
            .collect();
        words.extend(
            self.drops_unknown
                .iter()
                .map(|node| format!("not known of {node}")),
        );
        words
    }

    fn kernel_drop_words(&self) -> Vec<String> {
        self.kernel_drops
            .iter()
            .map(|it| {
                format!(
                    "{} {} in {} ({})",
                    it.packets, it.counter, it.pod, it.during
                )
            })
            .collect()
    }
}

/// One line each, the first with the name; `0` for none.
fn listed(name: &str, mut words: Vec<String>) -> Vec<(String, String)> {
    if words.is_empty() {
        words.push("0".to_owned());
    }
    let names = std::iter::once(name.to_owned()).chain(std::iter::repeat(String::new()));
    names.zip(words).collect()
}

impl Show for Report {
    fn show(&self, wide: bool) -> String {
        let mut text = String::new();
        for (name, value) in self.lines(wide) {
            let name = if name.is_empty() { name } else { name + ":" };
            let _ = writeln!(text, "{name:<17}{}", printable(&value));
        }
        text
    }
}

impl Show for ReportList {
    fn show(&self, wide: bool) -> String {
        let mut sizes: Vec<u32> = Vec::new();
        for udp in self.items.iter().flat_map(|report| &report.udp) {
            if !sizes.contains(&udp.size) {
                sizes.push(udp.size);
            }
        }
        if !wide {
            sizes.truncate(1);
        }
        let mut header: Vec<String> = ["FROM", "TO", "PATH", "TCP-GBIT/S", "RTT-MS", "LOADED-MS"]
            .map(str::to_owned)
            .into();
        for size in &sizes {
            header.push(format!("UDP-{size}/S"));
            header.push("LOST".to_owned());
        }
        if wide {
            let more = ["RETRANSMITS", "RTT-P99", "LOADED-P99", "DROPS", "METER"];
            header.extend(more.map(str::to_owned));
        }
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        table(
            &header,
            self.items.iter().map(|report| row(report, &sizes, wide)),
        )
    }
}

fn row(report: &Report, sizes: &[u32], wide: bool) -> Vec<String> {
    let cell = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
    let ms = |trips: &RoundTrips, of: fn(&Summary) -> f64| {
        cell(
            trips
                .summary
                .as_ref()
                .map(|summary| format!("{:.3}", of(summary))),
        )
    };
    let name = |member: &Member| if wide { member.label() } else { member.short() }.to_owned();
    let mut row = vec![
        name(&report.from),
        name(&report.to),
        report.path.cell().to_owned(),
        cell(
            report
                .tcp
                .received_bits_per_second()
                .map(|bits| format!("{:.2}", bits / 1e9)),
        ),
        ms(&report.rtt.idle, |it| it.p50_ms),
        ms(&report.rtt.loaded, |it| it.p50_ms),
    ];
    for size in sizes {
        let udp = report.udp.iter().find(|udp| udp.size == *size);
        let rate = udp.and_then(|udp| udp.measurement.packet_rate());
        row.push(cell(
            rate.map(|rate| format!("{:.0}", rate.received_per_second)),
        ));
        row.push(cell(rate.map(|rate| format!("{:.1}%", rate.lost_percent))));
    }
    if wide {
        row.push(cell(
            report.tcp.retransmits().map(|count| count.to_string()),
        ));
        row.push(ms(&report.rtt.idle, |it| it.p99_ms));
        row.push(ms(&report.rtt.loaded, |it| it.p99_ms));
        let drops: u64 = report.drops.iter().map(|drop| drop.packets).sum();
        row.push(cell(
            report.drops_unknown.is_empty().then(|| drops.to_string()),
        ));
        row.push(report.meter.to_owned());
    }
    row
}

fn failed(measurement: &Measurement) -> String {
    format!(
        "{NONE} ({})",
        measurement
            .error
            .as_deref()
            .unwrap_or("nothing was counted")
    )
}

fn tcp_words(tcp: &Measurement) -> String {
    let Some(bits) = tcp.received_bits_per_second() else {
        return failed(tcp);
    };
    match tcp.retransmits() {
        Some(1) => format!("{}, 1 retransmit", rate(bits)),
        Some(count) => format!("{}, {count} retransmits", rate(bits)),
        None => rate(bits),
    }
}

fn packets_words(it: &PacketRate, wide: bool) -> String {
    let mut words = format!(
        "{:.0} packets/s, {:.2} % lost",
        it.received_per_second, it.lost_percent
    );
    if wide {
        let _ = write!(
            words,
            " of {:.0} packets/s, jitter {:.3} ms",
            it.sent_per_second, it.jitter_ms
        );
    }
    words
}

fn rtt_words(trips: &RoundTrips, wide: bool) -> String {
    let Some(it) = &trips.summary else {
        return format!(
            "{NONE} ({})",
            trips.error.as_deref().unwrap_or("not measured")
        );
    };
    let mut words = format!("p50 {:.3} ms, p99 {:.3} ms", it.p50_ms, it.p99_ms);
    if wide {
        let _ = write!(
            words,
            ", min {:.3} ms, p90 {:.3} ms, max {:.3} ms",
            it.min_ms, it.p90_ms, it.max_ms
        );
    }
    let _ = write!(
        words,
        " ({} of {} answered, {})",
        it.answered,
        it.sent,
        it.method.title()
    );
    words
}

/// A rate as people read it.
pub(super) fn rate(bits_per_second: f64) -> String {
    match bits_per_second {
        bits if bits >= 1e8 => format!("{:.2} Gbit/s", bits / 1e9),
        bits if bits >= 1e5 => format!("{:.2} Mbit/s", bits / 1e6),
        bits => format!("{:.2} kbit/s", bits / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::report::{Rtt, tests::sample};

    /// People read who, how fast, how many, how long, and what was lost where; a part that failed is
    /// missing with its reason.
    #[test]
    fn one_pair_for_people() {
        let expected = "\
From:            default/web (10.1.0.5) on worker-a
To:              default/db (10.1.1.7) on worker-b
Path:            across nodes
Meter:           iperf 3.12, 1 stream, 5 s
TCP:             6.80 Gbit/s, 12 retransmits
UDP-64:          485 packets/s, 3.00 % lost
UDP-1200:        <none> (the server is busy)
RTT-Idle:        p50 0.200 ms, p99 0.400 ms (2 of 3 answered, UDP echo)
RTT-Loaded:      p50 1.500 ms, p99 3.000 ms (2 of 3 answered, UDP echo)
Drops:           30 PEER_QUEUE_FULL on worker-a (udp-64)
Kernel-Drops:    9 tx_dropped in default/web (udp-64)
                 4 RcvbufErrors in default/db (udp-1200)
";
        assert_eq!(sample().show(false), expected);
        let wide = sample().show(true);
        assert!(wide.contains("0.5-1.0s:        6.00 Gbit/s\n"), "{wide}");
        assert_eq!(sample().failures(), ["UDP 1200: the server is busy"]);
    }

    /// All pairs are a table without holes, also where a pair failed as a whole.
    #[test]
    fn all_pairs_for_people() {
        let dead = Report {
            tcp: Measurement::failed(&anyhow::anyhow!("gone")),
            udp: vec![],
            rtt: Rtt::default(),
            ..sample()
        };
        let list = ReportList {
            items: vec![sample(), dead],
        };
        let expected = "\
FROM   TO   PATH     TCP-GBIT/S   RTT-MS   LOADED-MS   UDP-64/S   LOST
web    db   across   6.80         0.200    1.500       485        3.0%
web    db   across   <none>       <none>   <none>      <none>     <none>
";
        assert_eq!(list.show(false), expected);
        let wide = list.show(true);
        let counts: Vec<_> = wide
            .lines()
            .map(|line| line.split_whitespace().count())
            .collect();
        assert_eq!(counts, [15, 15, 15], "{wide}");
    }

    /// Rates have the unit in which they are short.
    #[test]
    fn rates_are_short() {
        for (bits, text) in [
            (6.8e9, "6.80 Gbit/s"),
            (1e8, "0.10 Gbit/s"),
            (9.9e7, "99.00 Mbit/s"),
            (1e4, "10.00 kbit/s"),
            (0.0, "0.00 kbit/s"),
        ] {
            assert_eq!(rate(bits), text);
        }
    }
}
