//! Flows that pass through the host, so that their replies do so too.
//!
//! A pod's packet to a Service address goes to the host, where the kernel translates it and sends it on
//! in the pod's name. The reply would find the pod without the host, and the pod would see an address
//! that it never spoke to. So what the host sends in another's name is remembered, and the reply goes
//! where the translation is.
//!
//! In: flows that the host sent, and the time. Out: whether a packet belongs to one. Three kinds of
//! facts are kept, each under its keyed hash alone: a flow; a pair of addresses with any flow, for
//! fragments, which have no ports; a single source whose packets the host has been given. All threads
//! read and write one table without waiting for each other; its memory is fixed when it is made.

mod sip;

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::packet::{
    Fragment, Headers, Transport,
    field::{get_u16, tcp},
    protocol,
    quote::{self, Quoted},
};

/// Facts that are remembered: a flow takes one, and one for its pair of addresses. Where a new one finds
/// no place, the one that was unused for the longest time among eight is forgotten, and counted if it
/// was still good.
pub const DETOURS_MAX: usize = 131_072;
/// An open TCP flow without packets is kept this long: what conntrack keeps one (5 days).
pub const TCP_IDLE_MAX: Duration = Duration::from_secs(432_000);
/// A TCP flow in which a FIN or RST was seen is kept this long after its last packet: conntrack's
/// longest for one that is ending (FIN_WAIT and TIME_WAIT, 120 s).
pub const CLOSING_IDLE_MAX: Duration = Duration::from_secs(120);
/// Everything else is kept this long without packets: conntrack's longest for what is not TCP (600 s, a
/// protocol it does not know; UDP has 120 s).
pub const OTHER_IDLE_MAX: Duration = Duration::from_secs(600);

/// Places where one fact may be: their tags fill one cache line.
const WAYS: usize = 8;
const SETS: usize = DETOURS_MAX / WAYS;
const _: () = assert!(SETS.is_power_of_two());

/// The flows that pass through the host. One for all threads of a node.
#[derive(Debug)]
pub struct Detours {
    seed: [u64; 2],
    began: Instant,
    tags: Box<[Tags]>,
    uses: Box<[[AtomicU32; WAYS]]>,
    evicted: AtomicU64,
}

/// Keyed hashes of facts; 0 is a free place.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Tags([AtomicU64; WAYS]);

/// A flow in one direction. Ports are 0 for protocols without; both are the identifier for ICMP queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// Source port, host byte order.
    pub source_port: u16,
    /// Destination port, host byte order.
    pub destination_port: u16,
}

impl Flow {
    /// The flow of a packet; `None` for a fragment without ports.
    #[must_use]
    pub fn of(packet: &[u8], headers: &Headers) -> Option<Self> {
        let (source_port, destination_port) = match headers.transport {
            Transport::Tcp {
                source,
                destination,
                ..
            }
            | Transport::Udp {
                source,
                destination,
            } => (source, destination),
            Transport::Icmp { .. } => {
                let at = usize::from(headers.transport_offset).saturating_add(ICMP_IDENTIFIER);
                let identifier = get_u16(packet, at)?;
                (identifier, identifier)
            }
            Transport::Other => (0, 0),
            Transport::Absent => return None,
        };
        Some(Self {
            source: headers.source,
            destination: headers.destination,
            protocol: headers.protocol,
            source_port,
            destination_port,
        })
    }

    /// The same flow as the other side sends it.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..self
        }
    }

    fn quoted(quoted: &Quoted) -> Option<Self> {
        let (source_port, destination_port) = quoted.ports?;
        Some(Self {
            source: quoted.source,
            destination: quoted.destination,
            protocol: quoted.protocol,
            source_port,
            destination_port,
        })
    }
}

/// Where the identifier of an ICMP query lies, counted from the ICMP header (RFC 792, RFC 4443 4.1).
const ICMP_IDENTIFIER: usize = 4;

/// How long a fact is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Other,
    Open,
    Closing,
}

impl Life {
    const fn idle_max(self) -> Duration {
        match self {
            Self::Other => OTHER_IDLE_MAX,
            Self::Open => TCP_IDLE_MAX,
            Self::Closing => CLOSING_IDLE_MAX,
        }
    }

    /// What a packet with these TCP flags makes of it. A flow that is ending begins anew with a SYN only.
    fn after(self, flags: Option<u8>) -> Self {
        match flags {
            None => Self::Other,
            Some(flags) if flags & (tcp::FIN | tcp::RST) != 0 => Self::Closing,
            Some(flags) if flags & tcp::SYN != 0 => Self::Open,
            Some(_) if self == Self::Closing => Self::Closing,
            Some(_) => Self::Open,
        }
    }
}

/// When a fact was last used (s since the table began), and its life: one word, so that both change
/// together.
#[derive(Clone, Copy)]
struct Use {
    at: u32,
    life: Life,
}

impl Use {
    /// Bits of the time; it ends after 34 years.
    const AT_BITS: u32 = 30;
    const AT_MASK: u32 = (1 << Self::AT_BITS) - 1;

    fn encode(self) -> u32 {
        let life = match self.life {
            Life::Other => 0,
            Life::Open => 1,
            Life::Closing => 2,
        };
        (self.at & Self::AT_MASK) | (life << Self::AT_BITS)
    }

    fn decode(word: u32) -> Self {
        let life = match word >> Self::AT_BITS {
            1 => Life::Open,
            2 => Life::Closing,
            _ => Life::Other,
        };
        Self {
            at: word & Self::AT_MASK,
            life,
        }
    }

    fn is_good(self, now: u32) -> bool {
        u64::from(now.saturating_sub(self.at)) <= self.life.idle_max().as_secs()
    }
}

impl Detours {
    /// An empty table. `seed` is random, so that nobody can choose flows that share a place; `began` is
    /// the earliest time that will be told.
    #[must_use]
    pub fn new(seed: [u64; 2], began: Instant) -> Self {
        Self {
            seed,
            began,
            tags: (0..SETS).map(|_| Tags::default()).collect(),
            uses: (0..SETS).map(|_| <[AtomicU32; WAYS]>::default()).collect(),
            evicted: AtomicU64::new(0),
        }
    }

    /// Whether a packet from a pod or a peer is the reply of a flow that the host sent, a fragment between
    /// such a pair of addresses, or an ICMP error about such a flow. Then it keeps what it belongs to.
    pub fn is_reply(&self, packet: &[u8], headers: &Headers, now: Instant) -> bool {
        if headers.fragment != Fragment::Whole {
            return self.has_pair(headers.source, headers.destination, now);
        }
        if quote::is_error(headers) {
            let is_ours =
                quote::of_error(packet, headers).is_some_and(|quoted| {
                    match Flow::quoted(&quoted) {
                        Some(flow) => self.renew(self.flow_tag(&flow), None, now),
                        None => self.has_pair(quoted.source, quoted.destination, now),
                    }
                });
            if is_ours {
                // The host will send it on in the name of whoever wrote it: a router, as a rule.
                self.add_pair(headers.source, headers.destination, now);
            }
            return is_ours;
        }
        Flow::of(packet, headers).is_some_and(|flow| {
            let tag = self.flow_tag(&flow.reversed());
            self.renew(tag, tcp_flags(headers), now)
        })
    }

    /// Remembers a packet that the host sent in another's name, unless it is itself the reply of a flow
    /// that is remembered. An ICMP error is of no flow.
    pub fn remember(&self, packet: &[u8], headers: &Headers, now: Instant) {
        self.add_pair(headers.source, headers.destination, now);
        let flow = Flow::of(packet, headers).filter(|_| !quote::is_error(headers));
        let Some(flow) = flow else {
            return;
        };
        let flags = tcp_flags(headers);
        if !self.renew(self.flow_tag(&flow.reversed()), flags, now) {
            self.add(self.flow_tag(&flow), flags, now);
        }
    }

    /// Remembers a flow that the kernel knows, as it was before this table began.
    pub fn restore(&self, flow: &Flow, is_closing: bool, now: Instant) {
        let flags =
            (flow.protocol == protocol::TCP).then_some(if is_closing { tcp::FIN } else { 0 });
        self.add_pair(flow.source, flow.destination, now);
        self.add(self.flow_tag(flow), flags, now);
    }

    /// Whether the host sent anything in another's name between two addresses.
    pub fn has_pair(&self, one: IpAddr, other: IpAddr, now: Instant) -> bool {
        self.renew(self.pair_tag(one, other), None, now)
    }

    /// Remembers that the host was given a packet from `source`.
    pub fn add_source(&self, source: IpAddr, now: Instant) {
        self.add(self.tag(source, source, SOURCE << 56), None, now);
    }

    /// Whether the host was given packets from `source`.
    pub fn has_source(&self, source: IpAddr, now: Instant) -> bool {
        self.renew(self.tag(source, source, SOURCE << 56), None, now)
    }

    /// Facts that were still good and had to make room for others, since the table began.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Facts that are good now. Looks at the whole table: for the operator, not for the packet path.
    #[must_use]
    pub fn len(&self, now: Instant) -> usize {
        let now = self.seconds(now);
        let places = self.tags.iter().zip(&self.uses);
        places
            .flat_map(|(tags, uses)| tags.0.iter().zip(uses))
            .filter(|(tag, used)| {
                tag.load(Ordering::Relaxed) != 0
                    && Use::decode(used.load(Ordering::Relaxed)).is_good(now)
            })
            .count()
    }

    /// Whether nothing is remembered at `now`.
    #[must_use]
    pub fn is_empty(&self, now: Instant) -> bool {
        self.len(now) == 0
    }

    fn add_pair(&self, one: IpAddr, other: IpAddr, now: Instant) {
        self.add(self.pair_tag(one, other), None, now);
    }

    /// Whether a fact is there and good; then it is used now.
    fn renew(&self, tag: u64, flags: Option<u8>, now: Instant) -> bool {
        let Some((tags, uses)) = self.set(tag) else {
            return false;
        };
        let mut places = tags.0.iter().zip(uses);
        let found = places.find(|(place, _)| place.load(Ordering::Acquire) == tag);
        let Some((_, used)) = found else {
            return false;
        };
        let now = self.seconds(now);
        let before = Use::decode(used.load(Ordering::Acquire));
        if !before.is_good(now) {
            return false;
        }
        // A quoted packet or a fragment says nothing about whether a TCP flow is open.
        let life = flags.map_or(before.life, |flags| before.life.after(Some(flags)));
        if (before.at, before.life) != (now, life) {
            used.store(Use { at: now, life }.encode(), Ordering::Release);
        }
        true
    }

    /// Notes a fact as used now, in the place it has or in the one that can best be spared.
    fn add(&self, tag: u64, flags: Option<u8>, now: Instant) {
        if self.renew(tag, flags, now) {
            return;
        }
        let Some((tags, uses)) = self.set(tag) else {
            return;
        };
        let now = self.seconds(now);
        let used = Use {
            at: now,
            life: Life::Other.after(flags),
        };
        // Another thread may take the same place at the same moment: then the next best will do.
        for _ in 0..WAYS {
            let spare = tags
                .0
                .iter()
                .zip(uses)
                .map(|(place, word)| {
                    let held = place.load(Ordering::Acquire);
                    let used = Use::decode(word.load(Ordering::Acquire));
                    let is_needed = held != 0 && held != tag && used.is_good(now);
                    (is_needed, used.at, held, place, word)
                })
                .min_by_key(|&(is_needed, at, ..)| (is_needed, at));
            let Some((is_needed, _, held, place, word)) = spare else {
                return;
            };
            let taken = place.compare_exchange(held, tag, Ordering::AcqRel, Ordering::Acquire);
            if taken.is_ok() {
                word.store(used.encode(), Ordering::Release);
                if is_needed {
                    self.evicted.fetch_add(1, Ordering::Relaxed);
                }
                return;
            }
        }
    }

    fn set(&self, tag: u64) -> Option<(&Tags, &[AtomicU32; WAYS])> {
        let at = usize::try_from(tag).unwrap_or(usize::MAX) & (SETS - 1);
        Some((self.tags.get(at)?, self.uses.get(at)?))
    }

    fn seconds(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.began).as_secs();
        u32::try_from(seconds).map_or(Use::AT_MASK, |seconds| seconds.min(Use::AT_MASK))
    }

    fn flow_tag(&self, flow: &Flow) -> u64 {
        let ports = u64::from(flow.source_port) << 16 | u64::from(flow.destination_port);
        let rest = FLOW << 56 | u64::from(flow.protocol) << 32 | ports;
        self.tag(flow.source, flow.destination, rest)
    }

    /// The same for both orders.
    fn pair_tag(&self, one: IpAddr, other: IpAddr) -> u64 {
        let (low, high) = if one <= other {
            (one, other)
        } else {
            (other, one)
        };
        self.tag(low, high, PAIR << 56)
    }

    fn tag(&self, one: IpAddr, other: IpAddr, rest: u64) -> u64 {
        let hash = match (one, other) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                let both = u64::from(one.to_bits()) << 32 | u64::from(other.to_bits());
                sip::hash(self.seed, [both, rest])
            }
            (one, other) => {
                let ([a, b], [c, d]) = (halves(one), halves(other));
                sip::hash(self.seed, [a, b, c, d, rest])
            }
        };
        hash.max(1)
    }
}

/// Kinds of facts, so that their hashes have nothing in common.
const FLOW: u64 = 1;
const PAIR: u64 = 2;
const SOURCE: u64 = 3;

#[expect(
    clippy::cast_possible_truncation,
    reason = "the halves are what is wanted"
)]
fn halves(addr: IpAddr) -> [u64; 2] {
    let bits = match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().to_bits(),
        IpAddr::V6(addr) => addr.to_bits(),
    };
    [(bits >> 64) as u64, bits as u64]
}

fn tcp_flags(headers: &Headers) -> Option<u8> {
    match headers.transport {
        Transport::Tcp { flags, .. } => Some(flags),
        Transport::Udp { .. } | Transport::Icmp { .. } => None,
        Transport::Other | Transport::Absent => None,
    }
}

#[cfg(test)]
mod tests;
