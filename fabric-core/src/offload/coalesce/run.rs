//! One super-packet in the making.
//!
//! Comes in: segments of one flow, in order. Goes out: one packet with its offload. Never done here:
//! choosing the flow.

use std::num::NonZeroU16;

use super::{SEGMENTS_MAX, SUPER_PACKET_BYTES_MAX};
use crate::{
    offload::{Gso, GsoKind, Offload},
    packet::{
        Fragment, Headers, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Transport,
        checksum::{self, pseudo_header_sum},
        field::{get_u16, get_u32, ipv4, ipv6, put, put_u16, tcp, udp},
    },
};

/// TCP flags a segment may have and still be joined with others.
const TCP_FLAGS_JOINED: u8 = tcp::ACK | tcp::PSH | tcp::FIN | tcp::ECE | tcp::CWR;
/// TCP flags that say "no more": the segment is the last of its run.
const TCP_FLAGS_LAST: u8 = tcp::PSH | tcp::FIN;

/// A packet that may be part of a run.
pub(super) struct Candidate<'a> {
    packet: &'a [u8],
    headers: &'a Headers,
    offload: Offload,
    payload: &'a [u8],
    header: &'a [u8],
    tcp: Option<TcpFields>,
}

/// What a run of TCP segments goes by.
#[derive(Clone, Copy, Debug)]
struct TcpFields {
    sequence: u32,
    flags: u8,
}

impl<'a> Candidate<'a> {
    /// `None` for a packet that is never joined: fragments, IPv4 options, IPv6 extension headers,
    /// no payload, super-packets, TCP flags with a meaning of their own, UDP without a checksum or
    /// with a length of its own.
    pub(super) fn of(packet: &'a [u8], headers: &'a Headers, offload: Offload) -> Option<Self> {
        let plain = match headers.is_ipv6() {
            true => IPV6_HEADER_LEN,
            false => IPV4_HEADER_LEN,
        };
        if headers.fragment != Fragment::Whole
            || usize::from(headers.transport_offset) != plain
            || offload.gso.is_some()
            || usize::try_from(headers.packet_len) != Ok(packet.len())
        {
            return None;
        }
        let (header, payload) = packet.split_at_checked(headers.payload_offset()?.into())?;
        if payload.is_empty() {
            return None;
        }
        let upper = header.get(plain..)?;
        let tcp = match headers.transport {
            Transport::Tcp { flags, .. } => {
                if flags & !TCP_FLAGS_JOINED != 0 || flags & tcp::ACK == 0 {
                    return None;
                }
                Some(TcpFields {
                    sequence: get_u32(upper, tcp::SEQUENCE)?,
                    flags,
                })
            }
            Transport::Udp { .. } => {
                let upper_len = packet.len().checked_sub(plain)?;
                let has_checksum =
                    offload.needs_checksum || get_u16(upper, udp::CHECKSUM.into())? != 0;
                let length_agrees = usize::from(get_u16(upper, udp::LENGTH)?) == upper_len;
                if !has_checksum || !length_agrees {
                    return None;
                }
                None
            }
            Transport::Icmp { .. } | Transport::Other | Transport::Absent => return None,
        };
        Some(Self {
            packet,
            headers,
            offload,
            payload,
            header,
            tcp,
        })
    }

    /// True if nothing may follow this packet in its run.
    pub(super) fn ends_run(&self) -> bool {
        self.tcp.is_some_and(|tcp| tcp.flags & TCP_FLAGS_LAST != 0)
    }

    fn is_intact(&self) -> bool {
        is_intact(self.packet, self.headers, self.offload)
    }

    fn identification(&self) -> u16 {
        get_u16(self.header, ipv4::IDENTIFICATION).unwrap_or(0)
    }
}

/// True if the checksum, complete or partial, is right.
fn is_intact(packet: &[u8], headers: &Headers, offload: Offload) -> bool {
    if !offload.needs_checksum {
        return checksum::verify(packet, headers);
    }
    let upper_len = headers
        .packet_len
        .checked_sub(u32::from(headers.transport_offset));
    let Some((upper_len, field)) = upper_len.zip(headers.checksum_offset()) else {
        return false;
    };
    let field = usize::from(headers.transport_offset).saturating_add(field.into());
    get_u16(packet, field) == Some(pseudo_header_sum(headers, upper_len).fold())
}

/// How the IPv4 identification goes on from packet to packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identification {
    /// One packet only: not known yet.
    Unknown,
    /// One more each.
    Counting,
    /// Always the same (atomic datagrams only).
    Constant,
}

/// Segments of one flow that will go out as one packet.
#[derive(Debug)]
pub(super) struct Run {
    /// The first packet, and the payload of all that joined it.
    bytes: Vec<u8>,
    /// Of the first packet.
    headers: Headers,
    /// Of the first packet: what it goes out with if it stays alone.
    offload: Offload,
    segment_len: usize,
    segments: usize,
    first_is_intact: bool,
    first_has_cwr: bool,
    identification: Identification,
    next_sequence: u32,
    /// TCP flags of the newest segment that a cut would put on the last one.
    last_flags: u8,
    is_complete: bool,
}

impl Run {
    /// Begins with `candidate`, in `bytes`.
    pub(super) fn begin(candidate: &Candidate<'_>, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        bytes.extend_from_slice(candidate.packet);
        let mut run = Self {
            bytes,
            headers: *candidate.headers,
            offload: candidate.offload,
            segment_len: candidate.payload.len(),
            segments: 1,
            first_is_intact: false,
            first_has_cwr: false,
            identification: Identification::Unknown,
            next_sequence: 0,
            last_flags: 0,
            is_complete: false,
        };
        if let Some(tcp) = candidate.tcp {
            run.first_has_cwr = tcp.flags & tcp::CWR != 0;
            run.next_sequence = next_sequence(tcp, candidate.payload);
        }
        run
    }

    /// True if the packet that `headers` are of belongs to this run's flow.
    pub(super) fn same_flow(&self, headers: &Headers) -> bool {
        self.same_hosts(headers) && ports(self.headers.transport) == ports(headers.transport)
    }

    /// True if addresses and protocol agree, as far as a fragment tells.
    pub(super) fn same_hosts(&self, headers: &Headers) -> bool {
        self.headers.source == headers.source
            && self.headers.destination == headers.destination
            && self.headers.protocol == headers.protocol
    }

    /// True if no further packet can join.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Takes `candidate`, if it goes on where the run ends. False, and nothing changed but what is
    /// known about the first packet, if it does not.
    pub(super) fn join(&mut self, candidate: &Candidate<'_>) -> bool {
        let Some(identification) = self.goes_on(candidate) else {
            return false;
        };
        if !self.first_is_intact {
            if !is_intact(&self.bytes, &self.headers, self.offload) {
                return false;
            }
            self.first_is_intact = true;
        }
        if !candidate.is_intact() {
            return false;
        }
        self.bytes.extend_from_slice(candidate.payload);
        self.segments = self.segments.saturating_add(1);
        self.identification = identification;
        if let Some(tcp) = candidate.tcp {
            self.next_sequence = next_sequence(tcp, candidate.payload);
            self.last_flags = tcp.flags & TCP_FLAGS_LAST;
        }
        self.is_complete = candidate.ends_run()
            || candidate.payload.len() < self.segment_len
            || self.segments >= SEGMENTS_MAX;
        true
    }

    /// How identifications go on if a cut of the joined packet would give `candidate` back; `None`
    /// if it would not.
    fn goes_on(&self, candidate: &Candidate<'_>) -> Option<Identification> {
        let len = self.bytes.len().checked_add(candidate.payload.len())?;
        if self.is_complete
            || candidate.payload.len() > self.segment_len
            || len > SUPER_PACKET_BYTES_MAX
        {
            return None;
        }
        let (first_ip, first_upper) = self.header()?.split_at_checked(self.transport_offset())?;
        let (ip, upper) = candidate
            .header
            .split_at_checked(candidate.headers.transport_offset.into())?;
        let agree = same_ip(first_ip, ip, self.headers.is_ipv6())
            && match candidate.tcp {
                Some(tcp) => {
                    tcp.sequence == self.next_sequence
                        && tcp.flags & tcp::CWR == 0
                        && same_tcp(first_upper, upper)
                }
                None => true,
            };
        if !agree {
            return None;
        }
        self.identification_with(candidate)
    }

    fn identification_with(&self, candidate: &Candidate<'_>) -> Option<Identification> {
        if self.headers.is_ipv6() {
            return Some(Identification::Unknown);
        }
        let first = get_u16(&self.bytes, ipv4::IDENTIFICATION)?;
        let count = u16::try_from(self.segments).ok()?;
        let id = candidate.identification();
        let counting = id == first.wrapping_add(count);
        let constant = id == first && self.headers.dont_fragment;
        match self.identification {
            Identification::Unknown | Identification::Counting if counting => {
                Some(Identification::Counting)
            }
            Identification::Unknown | Identification::Constant if constant => {
                Some(Identification::Constant)
            }
            Identification::Unknown | Identification::Counting | Identification::Constant => None,
        }
    }

    /// Hands on what has been collected and returns the buffer.
    pub(super) fn finish(mut self, emit: &mut impl FnMut(&mut [u8], Offload)) -> Vec<u8> {
        let offload = if self.segments > 1 {
            // The headers were read from these very bytes, so there is room for every field.
            self.write_headers().unwrap_or(self.offload)
        } else {
            self.offload
        };
        emit(&mut self.bytes, offload);
        self.bytes
    }

    fn write_headers(&mut self) -> Option<Offload> {
        let transport_offset = self.transport_offset();
        let upper_len = self.bytes.len().checked_sub(transport_offset)?;
        let upper_len = u16::try_from(upper_len).ok()?;
        if self.headers.is_ipv6() {
            put_u16(&mut self.bytes, ipv6::PAYLOAD_LENGTH, upper_len)?;
        } else {
            let total = u16::try_from(self.bytes.len()).ok()?;
            let header = self.bytes.get_mut(..transport_offset)?;
            put_u16(header, ipv4::TOTAL_LENGTH, total)?;
            put_u16(header, ipv4::CHECKSUM, 0)?;
            let sum = checksum::checksum(header);
            put_u16(header, ipv4::CHECKSUM, sum)?;
        }
        let seed = pseudo_header_sum(&self.headers, u32::from(upper_len)).fold();
        let upper = self.bytes.get_mut(transport_offset..)?;
        put_u16(upper, self.headers.checksum_offset()?.into(), seed)?;
        let kind = match self.headers.transport {
            Transport::Tcp { .. } => {
                let flags = *upper.get(tcp::FLAGS)? | self.last_flags;
                put(upper, tcp::FLAGS, [flags])?;
                if self.first_has_cwr {
                    GsoKind::TcpEcn
                } else {
                    GsoKind::Tcp
                }
            }
            Transport::Udp { .. } => {
                put_u16(upper, udp::LENGTH, upper_len)?;
                GsoKind::Udp
            }
            Transport::Icmp { .. } | Transport::Other | Transport::Absent => return None,
        };
        let size = u16::try_from(self.segment_len)
            .ok()
            .and_then(NonZeroU16::new)?;
        Some(Offload {
            needs_checksum: true,
            gso: Some(Gso { kind, size }),
        })
    }

    fn header(&self) -> Option<&[u8]> {
        self.bytes.get(..self.headers.payload_offset()?.into())
    }

    fn transport_offset(&self) -> usize {
        usize::from(self.headers.transport_offset)
    }
}

fn next_sequence(tcp: TcpFields, payload: &[u8]) -> u32 {
    // A payload is shorter than 64 KiB.
    let len = u32::try_from(payload.len()).unwrap_or(0);
    tcp.sequence.wrapping_add(len)
}

/// Protocol and ports; `None` for what is never held.
fn ports(transport: Transport) -> Option<(bool, u16, u16)> {
    match transport {
        Transport::Tcp {
            source,
            destination,
            ..
        } => Some((true, source, destination)),
        Transport::Udp {
            source,
            destination,
        } => Some((false, source, destination)),
        Transport::Icmp { .. } | Transport::Other | Transport::Absent => None,
    }
}

/// All of the IP header but length, identification and checksum.
fn same_ip(a: &[u8], b: &[u8], is_ipv6: bool) -> bool {
    if is_ipv6 {
        same(a, b, 0, 4) && same(a, b, 6, IPV6_HEADER_LEN)
    } else {
        same(a, b, 0, 2) && same(a, b, 6, 10) && same(a, b, 12, IPV4_HEADER_LEN)
    }
}

/// All of the TCP header but sequence number, checksum, and the flags that a cut moves: CWR of the
/// first, PSH and FIN of the last segment.
fn same_tcp(a: &[u8], b: &[u8]) -> bool {
    const MOVED: u8 = tcp::CWR | TCP_FLAGS_LAST;
    let flags = |header: &[u8]| header.get(tcp::FLAGS).map(|flags| flags & !MOVED);
    same(a, b, 0, 4)
        && same(a, b, 8, 13)
        && flags(a) == flags(b)
        && same(a, b, 14, 16)
        && same(a, b, 18, a.len())
}

fn same(a: &[u8], b: &[u8], from: usize, to: usize) -> bool {
    a.len() == b.len() && a.get(from..to) == b.get(from..to)
}
