//! What a measurement came to, with the names that iperf3's JSON has, so that what reads iperf3 reads
//! this. Fields that no command here needs are not kept.

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

/// A measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// How it was set up.
    #[serde(default)]
    pub start: Start,
    /// Pieces of the time, in order.
    #[serde(default)]
    pub intervals: Vec<Interval>,
    /// The sums; empty where it failed.
    #[serde(default)]
    pub end: End,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How a measurement was set up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Start {
    /// Program and version.
    pub version: String,
    /// When it began.
    pub timestamp: Timestamp,
    /// The server, as the client calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connecting_to: Option<Server>,
    /// What was asked for.
    pub test_start: TestStart,
}

/// A moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timestamp {
    /// Seconds since 1970, UTC.
    pub timesecs: u64,
}

/// Where the server listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Address.
    pub host: String,
    /// Port of the meter.
    pub port: u16,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TestStart {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Streams in each direction.
    pub num_streams: u32,
    /// Bytes of one write; the payload of a datagram.
    pub blksize: u32,
    /// Seconds.
    pub duration: u32,
    /// 1 where the server sends.
    pub reverse: u8,
    /// Rate that was asked for (bit/s), 0 for none.
    pub target_bitrate: u64,
}

/// A piece of the time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// All streams together; with both directions, those of the client.
    pub sum: Sum,
    /// With both directions, those of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum_bidir_reverse: Option<Sum>,
}

/// The sums over the whole time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// UDP: what was sent, with the receiver's losses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum: Option<Sum>,
    /// What the sender counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum_sent: Option<Sum>,
    /// What the receiver counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum_received: Option<Sum>,
    /// With both directions: what the server sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum_sent_bidir_reverse: Option<Sum>,
    /// With both directions: what the client received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum_received_bidir_reverse: Option<Sum>,
    /// Processor time of the two programs that measured; iperf3 alone says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_utilization_percent: Option<Cpu>,
    /// TCP congestion control of the sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_tcp_congestion: Option<String>,
}

/// A sum over streams and time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sum {
    /// Begin (seconds from the begin of the measurement).
    pub start: f64,
    /// End (seconds from the same).
    pub end: f64,
    /// Length (seconds).
    pub seconds: f64,
    /// Bytes of payload.
    pub bytes: u64,
    /// Bits of payload per second.
    pub bits_per_second: f64,
    /// Segments that were sent again; where the sender is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u64>,
    /// UDP: variation of the transit time (RFC 3550 section 6.4.1, in milliseconds).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_ms: Option<f64>,
    /// UDP: datagrams that did not arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_packets: Option<i64>,
    /// UDP: datagrams, with those that did not arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// UDP: `lost_packets` of `packets`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_percent: Option<f64>,
    /// Whether the client is the sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<bool>,
}

/// Processor time, in percent of one processor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Of the client.
    pub host_total: f64,
    /// Of the server.
    pub remote_total: f64,
}

/// Datagrams per second, and how many were lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PacketRate {
    /// Sent per second.
    pub sent_per_second: f64,
    /// Arrived per second.
    pub received_per_second: f64,
    /// Those of the sent ones that did not arrive (percent).
    pub lost_percent: f64,
    /// Variation of the transit time (ms).
    pub jitter_ms: f64,
}

impl Measurement {
    /// Reads iperf3's JSON.
    ///
    /// # Errors
    ///
    /// It is no such document, or says that the measurement failed.
    pub fn from_iperf3(json: &str) -> anyhow::Result<Self> {
        let measurement: Self = serde_json::from_str(json).context("its answer is no JSON")?;
        if let Some(error) = measurement.error {
            bail!("{error}");
        }
        if measurement.end.sum_received.is_none() && measurement.end.sum.is_none() {
            bail!("its answer has no sum of what was received");
        }
        Ok(measurement)
    }

    /// A measurement that failed.
    #[must_use]
    pub fn failed(error: &anyhow::Error) -> Self {
        Self {
            error: Some(format!("{error:#}")),
            ..Self::default()
        }
    }

    /// What the receiver got (bit/s): the sender's figure counts what waits in buffers. With both
    /// directions, from the client to the server.
    #[must_use]
    pub fn received_bits_per_second(&self) -> Option<f64> {
        Some(self.end.sum_received.as_ref()?.bits_per_second)
    }

    /// With both directions: what the client received (bit/s).
    #[must_use]
    pub fn received_reverse_bits_per_second(&self) -> Option<f64> {
        Some(
            self.end
                .sum_received_bidir_reverse
                .as_ref()?
                .bits_per_second,
        )
    }

    /// Segments that were sent again, in all directions.
    #[must_use]
    pub fn retransmits(&self) -> Option<u64> {
        let forward = self.end.sum_sent.as_ref()?.retransmits?;
        let reverse = self.end.sum_sent_bidir_reverse.as_ref();
        Some(forward + reverse.and_then(|sum| sum.retransmits).unwrap_or_default())
    }

    /// UDP: datagrams per second; with both directions, from the client to the server.
    #[must_use]
    pub fn packet_rate(&self) -> Option<PacketRate> {
        let end = &self.end;
        let size = self.start.test_start.blksize;
        packet_rate(
            size,
            end.sum.as_ref()?,
            end.sum_sent.as_ref(),
            end.sum_received.as_ref(),
        )
    }

    /// UDP with both directions: from the server to the client.
    #[must_use]
    pub fn packet_rate_reverse(&self) -> Option<PacketRate> {
        let (sent, received) = (
            self.end.sum_sent_bidir_reverse.as_ref()?,
            self.end.sum_received_bidir_reverse.as_ref()?,
        );
        packet_rate(
            self.start.test_start.blksize,
            sent,
            Some(sent),
            Some(received),
        )
    }
}

/// Counts what was sent against what arrived: iperf3's own `lost_packets` lack those that were lost
/// after the last one that arrived. Its older versions have but one sum.
fn packet_rate(
    size: u32,
    sum: &Sum,
    sent: Option<&Sum>,
    received: Option<&Sum>,
) -> Option<PacketRate> {
    let sent_packets = sent.and_then(|sent| sent.packets).or(sum.packets)?;
    let seconds = sent.map_or(sum.seconds, |sent| sent.seconds);
    let arrived = match received {
        Some(received) => received.bytes / u64::from(size.max(1)),
        None => sum.packets?.saturating_add_signed(-sum.lost_packets?),
    };
    if seconds <= 0.0 || sent_packets == 0 {
        return None;
    }
    let lost = sent_packets.saturating_sub(arrived);
    Some(PacketRate {
        sent_per_second: sent_packets as f64 / seconds,
        received_per_second: arrived as f64 / seconds,
        lost_percent: 100.0 * lost as f64 / sent_packets as f64,
        jitter_ms: received.unwrap_or(sum).jitter_ms.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The receiver's rate is taken, not the sender's, which counts what waits in buffers.
    #[test]
    fn the_receivers_rate_is_taken() {
        let json = r#"{"start": {"version": "iperf 3.12", "test_start": {"protocol": "TCP"}},
            "intervals": [{"streams": [], "sum": {"start": 0, "end": 0.5, "seconds": 0.5, "bytes": 8,
                "bits_per_second": 128.0, "retransmits": 3, "omitted": false, "sender": true}}],
            "end": {"streams": [],
                "sum_sent": {"bytes": 1, "bits_per_second": 9.9e9, "retransmits": 7},
                "sum_received": {"start": 0, "end": 3.0, "bytes": 1, "bits_per_second": 4.25e9}}}"#;
        let read = Measurement::from_iperf3(json).unwrap();
        assert_eq!(read.received_bits_per_second(), Some(4.25e9));
        assert_eq!(read.retransmits(), Some(7));
        assert_eq!(read.start.version, "iperf 3.12");
        assert_eq!(read.intervals[0].sum.bytes, 8);
    }

    /// iperf3's own error is told; an answer without a sum or without JSON is an error, too.
    #[test]
    fn errors_are_told() {
        let told = |json: &str| format!("{:#}", Measurement::from_iperf3(json).unwrap_err());
        let refused = r#"{"start": {}, "intervals": [], "end": {}, "error": "unable to connect to server: Connection refused"}"#;
        assert_eq!(
            told(refused),
            "unable to connect to server: Connection refused"
        );
        assert!(told(r#"{"end": {}}"#).contains("no sum"));
        assert!(told("iperf3: usage").contains("no JSON"));
    }

    /// Lost datagrams are those sent that did not arrive, also where iperf3 missed the last ones: it
    /// says 30 of 95, but 100 were sent and 65 arrived.
    #[test]
    fn the_last_lost_datagrams_count_too() {
        let json = r#"{"start": {"test_start": {"protocol": "UDP", "blksize": 64}}, "end": {
            "sum": {"packets": 100, "lost_packets": 30, "lost_percent": 31.5, "seconds": 2, "jitter_ms": 0.5},
            "sum_sent": {"packets": 100, "seconds": 2, "bytes": 6400},
            "sum_received": {"packets": 95, "lost_packets": 30, "seconds": 2.1, "bytes": 4160, "jitter_ms": 0.5}}}"#;
        let rate = Measurement::from_iperf3(json).unwrap().packet_rate();
        let expected = PacketRate {
            sent_per_second: 50.0,
            received_per_second: 32.5,
            lost_percent: 35.0,
            jitter_ms: 0.5,
        };
        assert_eq!(rate, Some(expected));
    }

    /// The one sum that an older iperf3 has is enough.
    #[test]
    fn one_sum_is_enough() {
        let json = r#"{"start": {"test_start": {"protocol": "UDP", "blksize": 64}}, "end": {
            "sum": {"packets": 100, "lost_packets": 30, "seconds": 2, "jitter_ms": 0.5}}}"#;
        let rate = Measurement::from_iperf3(json)
            .unwrap()
            .packet_rate()
            .unwrap();
        assert_eq!((rate.received_per_second, rate.lost_percent), (35.0, 30.0));
    }

    /// What is written is read back, and has no field that says nothing.
    #[test]
    fn documents_round_trip() {
        let failed = Measurement::failed(&anyhow::anyhow!("no way"));
        let json = serde_json::to_value(&failed).unwrap();
        assert_eq!(json["end"], serde_json::json!({}));
        assert_eq!(serde_json::from_value::<Measurement>(json).unwrap(), failed);
    }
}
