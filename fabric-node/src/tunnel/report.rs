//! What an endpoint tells of its peers.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use fabric_core::ids::PeerId;

use super::{link::PathReport, segmentation::Segmentation};
use crate::node_id::NodeId;

/// One peer as one worker sees it.
#[derive(Clone, Debug)]
pub struct PeerReport {
    /// Which.
    pub id: PeerId,
    /// Its name.
    pub node: NodeId,
    /// Addresses from the state source.
    pub configured: Vec<SocketAddr>,
    /// Whether packets can flow.
    pub state: PeerState,
    /// When that last changed.
    pub since: Instant,
    /// Live connections.
    pub links: Vec<LinkReport>,
    /// Those that have ended.
    pub ended: EndedLinks,
    /// Why the last connection was refused or ended; empty if none was.
    pub last_error: String,
}

/// One live connection.
#[derive(Clone, Copy, Debug)]
pub struct LinkReport {
    /// Address of the other side.
    pub remote: SocketAddr,
    /// Its path.
    pub path: PathReport,
    /// Whether its batches leave whole.
    pub segmentation: Segmentation,
}

/// What is known of connections that carried packets and have ended.
///
/// What the engine had taken and not sent is not among it: up to its two send buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndedLinks {
    /// How many there were.
    pub connections: u64,
    /// QUIC packets that they declared lost.
    pub lost_packets: u64,
    /// QUIC packets in flight when they ended (bytes): nobody knows whether these arrived.
    pub in_flight_bytes: u64,
}

impl EndedLinks {
    /// Adds a connection that ends with `path` and so many bytes in flight.
    pub(super) fn add_link(&mut self, path: PathReport, in_flight_bytes: u64) {
        self.add(Self {
            connections: 1,
            lost_packets: path.lost_packets,
            in_flight_bytes,
        });
    }

    /// Adds those of another worker.
    pub fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.lost_packets += other.lost_packets;
        self.in_flight_bytes += other.in_flight_bytes;
    }
}

/// QUIC packets that were lost at this node's sockets, on their way from or to the underlay.
///
/// QUIC finds out and sends again what was on streams; so no packet of a pod is counted here, and one that
/// was in a datagram is counted as delivered where it was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnderlayLosses {
    /// Messages that found no room in a socket's receive buffer, or had a wrong checksum, as the kernel
    /// counts them: what it has joined is one. It tells with the next message that comes.
    pub overrun: u64,
    /// Messages of which not all arrived, or not where their payloads end.
    pub cut: u64,
    /// Payloads that the kernel refused to send, but for those that were too large.
    pub refused: u64,
    /// Payloads that were larger than the interface takes: probes of the path's MTU, which are meant to
    /// fail so, and what was sent after the interface's MTU fell.
    pub too_large: u64,
}

impl UnderlayLosses {
    /// Adds those of another socket or worker.
    pub fn add(&mut self, other: Self) {
        self.overrun += other.overrun;
        self.cut += other.cut;
        self.refused += other.refused;
        self.too_large += other.too_large;
    }
}

/// Whether packets can flow to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// At least one live connection.
    Connected,
    /// This side dials.
    Connecting,
    /// The other side dials.
    Waiting,
}

impl PeerState {
    /// As the operator sees it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "Connected",
            Self::Connecting => "Connecting",
            Self::Waiting => "Waiting",
        }
    }
}

/// Characters kept of a text that came from outside.
const TEXT_CHARS_MAX: usize = 300;

/// `text`, which a stranger may have written, fit for a log line and a terminal: control characters
/// escaped, cut off after [`TEXT_CHARS_MAX`] characters.
pub(super) fn printable(text: &str) -> String {
    let mut printable = String::new();
    let mut rest = text.chars();
    for character in rest.by_ref().take(TEXT_CHARS_MAX) {
        match character {
            // Beside control characters: those that turn the direction of the text around them.
            '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                printable.extend(character.escape_unicode());
            }
            _ if character.is_control() => printable.extend(character.escape_default()),
            _ => printable.push(character),
        }
    }
    if rest.next().is_some() {
        printable.push('…');
    }
    printable
}

/// Lets some log lines through per second and counts the others.
#[derive(Debug)]
pub(super) struct Throttle {
    lines_per_second_max: u32,
    second: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl Default for Throttle {
    /// One line per second.
    fn default() -> Self {
        Self::new(1)
    }
}

impl Throttle {
    pub(super) fn new(lines_per_second_max: u32) -> Self {
        Self {
            lines_per_second_max,
            second: None,
            lines: 0,
            suppressed: 0,
        }
    }

    /// How many lines were held back since the last one, if this one may be written.
    pub(super) fn allow(&mut self, now: Instant) -> Option<u64> {
        if self
            .second
            .is_none_or(|second| now >= second + Duration::from_secs(1))
        {
            self.second = Some(now);
            self.lines = 0;
        }
        if self.lines >= self.lines_per_second_max {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many lines pass in a second; the next second's first line tells how many did not.
    #[test]
    fn throttles_by_the_second() {
        let now = Instant::now();
        let mut throttle = Throttle::new(2);
        let passed = [0, 1, 500, 999, 1000, 1001, 1002]
            .map(|millis| throttle.allow(now + Duration::from_millis(millis)));
        assert_eq!(
            passed,
            [Some(0), Some(0), None, None, Some(2), Some(0), None]
        );
    }

    /// A text from outside cannot begin a line of its own, colour a terminal or fill a log.
    #[test]
    fn foreign_texts_are_tamed() {
        assert_eq!(
            printable("it showed no certificate"),
            "it showed no certificate"
        );
        assert_eq!(
            printable("a\nb\u{1b}[31m\u{202e}"),
            "a\\nb\\u{1b}[31m\\u{202e}"
        );
        let long = printable(&"x".repeat(100_000));
        assert_eq!(long.chars().count(), TEXT_CHARS_MAX + 1);
    }
}
