//! One direction of the cable: what came, what is held back, what was counted.
//!
//! Comes in: packets, and the time. Goes out: packets, through a function that is given each and says
//! whether it was taken. Never done here: I/O, asking a clock.

use std::{
    collections::VecDeque,
    io::IoSlice,
    time::{Duration, Instant},
};

use fabric_core::offload::vnet::VnetHeader;

use super::{
    Counts, Impairment,
    fate::{Fate, Fates},
    superpacket::Datagrams,
};

/// Takes one packet: its first part is the encoded virtio header. Whether it was taken.
pub trait Sink: FnMut(&[IoSlice<'_>]) -> bool {}

impl<F: FnMut(&[IoSlice<'_>]) -> bool> Sink for F {}

/// State of one direction.
#[derive(Debug)]
pub struct Direction {
    fates: Fates,
    delay_max: Duration,
    /// By when they are due, the first first.
    held: VecDeque<Held>,
    /// Datagrams passed on so far, second ones of doubles not among them.
    passed: u64,
    counts: Counts,
}

/// A datagram that waits until others have overtaken it.
#[derive(Debug)]
struct Held {
    /// It goes when this many have passed,
    due: u64,
    /// or at this time.
    until: Instant,
    /// How many had passed when it came.
    since: u64,
    /// Virtio header and packet.
    bytes: Vec<u8>,
}

impl Direction {
    /// Direction number `direction` of a cable.
    #[must_use]
    pub fn new(impairment: Impairment, direction: u64) -> Self {
        Self {
            fates: Fates::new(impairment, direction),
            delay_max: impairment.delay_max(),
            held: VecDeque::new(),
            passed: 0,
            counts: Counts::default(),
        }
    }

    /// A packet came: passes on what is to be.
    pub fn pass(&mut self, vnet: VnetHeader, packet: &[u8], now: Instant, sink: &mut impl Sink) {
        self.counts.packets += 1;
        self.counts.bytes += packet.len() as u64;
        let Some(datagrams) = Datagrams::parse(vnet, packet) else {
            self.counts.other += 1;
            sink(&[IoSlice::new(&vnet.encode()), IoSlice::new(packet)]);
            return;
        };
        let count = datagrams.count();
        self.counts.received += count as u64;
        let mut begin = 0;
        for index in 0..count {
            if self.is_due() {
                self.send(&datagrams, begin, index, sink);
                begin = index;
                self.release(sink);
            }
            let fate = self.fates.draw();
            if fate == Fate::Pass {
                self.passed += 1;
                continue;
            }
            let goes_on = matches!(fate, Fate::Double(_));
            self.send(&datagrams, begin, index + usize::from(goes_on), sink);
            begin = index + 1;
            self.passed += u64::from(goes_on);
            match fate {
                Fate::Lose => self.counts.lost += 1,
                Fate::Double(positions) => {
                    self.counts.doubled += 1;
                    self.hold(&datagrams, index, positions, now);
                }
                Fate::Delay(positions) => {
                    self.counts.delayed += 1;
                    self.hold(&datagrams, index, positions, now);
                }
                Fate::Pass => {}
            }
        }
        self.counts.cut += u64::from(begin > 0 && count > 1);
        self.send(&datagrams, begin, count, sink);
        self.release(sink);
    }

    /// Passes on all whose time is over.
    pub fn pass_overdue(&mut self, now: Instant, sink: &mut impl Sink) {
        while let Some(at) = self.held.iter().position(|held| held.until <= now) {
            if let Some(held) = self.held.remove(at) {
                self.let_go(&held, sink);
            }
        }
    }

    /// Passes on all that is held back.
    pub fn pass_all(&mut self, sink: &mut impl Sink) {
        while let Some(held) = self.held.pop_front() {
            self.let_go(&held, sink);
        }
    }

    /// When [`Self::pass_overdue`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.held.iter().map(|held| held.until).min()
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn is_due(&self) -> bool {
        let first = self.held.front();
        first.is_some_and(|held| held.due <= self.passed)
    }

    fn release(&mut self, sink: &mut impl Sink) {
        while self.is_due() {
            if let Some(held) = self.held.pop_front() {
                self.let_go(&held, sink);
            }
        }
    }

    fn let_go(&mut self, held: &Held, sink: &mut impl Sink) {
        self.counts.overtaken += u64::from(self.passed > held.since);
        let (vnet, packet) = held.bytes.split_at(VnetHeader::LEN);
        self.count_sent(sink(&[IoSlice::new(vnet), IoSlice::new(packet)]), 1);
    }

    fn hold(&mut self, datagrams: &Datagrams<'_>, index: usize, positions: u32, now: Instant) {
        let piece = datagrams.piece(index..index + 1);
        let held = Held {
            due: self.passed + u64::from(positions),
            until: now + self.delay_max,
            since: self.passed,
            bytes: [&piece.head[..], piece.payload].concat(),
        };
        let at = self.held.partition_point(|other| other.due <= held.due);
        self.held.insert(at, held);
    }

    /// Passes on datagrams `begin..end`, if there are any.
    fn send(&mut self, datagrams: &Datagrams<'_>, begin: usize, end: usize, sink: &mut impl Sink) {
        if begin < end {
            let piece = datagrams.piece(begin..end);
            let (vnet, headers) = piece.head.split_at(VnetHeader::LEN);
            let parts = [vnet, headers, piece.payload].map(IoSlice::new);
            self.count_sent(sink(&parts), (end - begin) as u64);
        }
    }

    fn count_sent(&mut self, taken: bool, datagrams: u64) {
        if taken {
            self.counts.sent += datagrams;
        } else {
            self.counts.refused += datagrams;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use fabric_core::offload::vnet::{FLAG_NEEDS_CSUM, GSO_UDP_L4};

    use super::*;

    /// Payload of each datagram: its number.
    const SIZE: usize = 4;

    /// A super-packet of the datagrams with these numbers.
    fn super_packet(numbers: std::ops::Range<u32>) -> (VnetHeader, Vec<u8>) {
        let payload: Vec<u8> = numbers.flat_map(u32::to_be_bytes).collect();
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[9] = 17;
        packet[2..4].copy_from_slice(&(28 + payload.len() as u16).to_be_bytes());
        packet[24..26].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
        packet.extend(payload);
        let vnet = VnetHeader {
            flags: FLAG_NEEDS_CSUM,
            gso_type: GSO_UDP_L4,
            gso_size: SIZE as u16,
            ..VnetHeader::default()
        };
        (vnet, packet)
    }

    /// Sends `count` datagrams in super-packets of up to `each`; their numbers as they arrived.
    fn through(direction: &mut Direction, count: u32, each: usize, now: Instant) -> Vec<u32> {
        let mut arrived = Vec::new();
        let mut sink = |parts: &[IoSlice<'_>]| {
            let packet = parts[1..].iter().flat_map(|part| part.iter().copied());
            let payload: Vec<u8> = packet.skip(28).collect();
            let numbers = payload.chunks_exact(SIZE);
            arrived.extend(numbers.map(|number| u32::from_be_bytes(number.try_into().unwrap())));
            true
        };
        for first in (0..count).step_by(each) {
            let (vnet, packet) = super_packet(first..(first + each as u32).min(count));
            direction.pass(vnet, &packet, now, &mut sink);
        }
        direction.pass_all(&mut sink);
        arrived
    }

    fn impairment(lose_ppm: u32, double_ppm: u32, delay_ppm: u32) -> Impairment {
        Impairment {
            lose_ppm,
            double_ppm,
            delay_ppm,
            positions_max: 9,
            ..Impairment::one_in_a_thousand(1)
        }
    }

    /// A good cable passes all datagrams on, in order and uncut.
    #[test]
    fn a_good_cable_changes_nothing() {
        let mut direction = Direction::new(impairment(0, 0, 0), 0);
        let arrived = through(&mut direction, 1_000, 44, Instant::now());
        assert_eq!(arrived, Vec::from_iter(0..1_000));
        let counts = direction.counts();
        assert_eq!((counts.packets, counts.cut), (23, 0));
        assert_eq!((counts.received, counts.sent), (1_000, 1_000));
    }

    /// What arrives is what was counted: none but the lost is missing, only doubles come twice, each
    /// one that is late is late by at most the positions allowed, whatever the super-packets' size.
    #[test]
    fn what_arrives_is_what_was_counted() {
        for each in [1, 2, 7, 44] {
            let mut direction = Direction::new(impairment(20_000, 30_000, 40_000), each as u64);
            let arrived = through(&mut direction, 20_000, each, Instant::now());
            let counts = direction.counts();
            assert!(counts.add_up() && counts.refused == 0, "{counts:?}");
            assert_eq!(counts.sent, arrived.len() as u64);
            let mut times = vec![0_u8; 20_000];
            for number in &arrived {
                times[*number as usize] += 1;
            }
            let of = |wanted: u8| times.iter().filter(|times| **times == wanted).count() as u64;
            assert_eq!((of(0), of(2)), (counts.lost, counts.doubled));
            assert_eq!(of(1), counts.received - counts.lost - counts.doubled);
            let mut newest = 0;
            let mut late = 0;
            for number in arrived {
                late += u64::from(number < newest);
                // Others may be lost or late themselves in between.
                assert!(number + 9 + 9 >= newest, "{number} comes after {newest}");
                newest = newest.max(number);
            }
            assert!(counts.delayed > 500 && counts.doubled > 400);
            assert!(
                late > 900 && counts.overtaken >= late,
                "{late} of {counts:?}"
            );
        }
    }

    /// A delayed datagram that no other overtakes goes when its time is over, and not before.
    #[test]
    fn nothing_is_held_for_ever() {
        let mut direction = Direction::new(impairment(0, 0, 1_000_000), 0);
        let (vnet, packet) = super_packet(0..1);
        let begin = Instant::now();
        let mut count = 0;
        let mut sink = |_: &[IoSlice<'_>]| {
            count += 1;
            true
        };
        direction.pass(vnet, &packet, begin, &mut sink);
        let deadline = begin + Duration::from_millis(5);
        assert_eq!(direction.deadline(), Some(deadline));
        direction.pass_overdue(deadline - Duration::from_micros(1), &mut sink);
        direction.pass_overdue(deadline, &mut sink);
        direction.pass_overdue(deadline, &mut sink);
        assert_eq!((count, direction.deadline()), (1, None));
        assert_eq!(
            (direction.counts().delayed, direction.counts().overtaken),
            (1, 0)
        );
    }

    /// Packets that are no UDP pass, and those that are not taken are counted.
    #[test]
    fn the_rest_is_counted() {
        let mut direction = Direction::new(impairment(0, 0, 0), 0);
        let (vnet, mut packet) = super_packet(0..3);
        direction.pass(vnet, &packet, Instant::now(), &mut |_: &[IoSlice<'_>]| {
            false
        });
        packet[9] = 1;
        let mut seen = 0;
        direction.pass(vnet, &packet, Instant::now(), &mut |parts: &[IoSlice<
            '_,
        >]| {
            seen = parts[1].len();
            true
        });
        let counts = direction.counts();
        assert_eq!((counts.other, counts.refused, counts.sent), (1, 3, 0));
        assert_eq!(seen, packet.len());
        assert!(counts.add_up());
    }
}
