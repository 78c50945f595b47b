//! The routes of one address family, as one hash table asked once per prefix length in use.
//!
//! A fabric has few prefix lengths: those of its pods, of its node ranges, perhaps of a few single
//! hosts. So the longest match takes two or three probes, each of one cache line, where a trie walks
//! a pointer for every byte of the address.

use std::{fmt::Debug, ops::BitAnd};

use crate::verdict::NextHop;

/// An address as a number, most significant bit first.
pub(super) trait Bits: Copy + Debug + Eq + BitAnd<Output = Self> {
    /// No bit set.
    const ZERO: Self;
    /// A number whose first `len` bits are set and no others.
    fn mask(len: u8) -> Self;
    /// Both halves, for hashing.
    fn halves(self) -> (u64, u64);
}

impl Bits for u32 {
    const ZERO: Self = 0;

    fn mask(len: u8) -> Self {
        let host_bits = Self::BITS.saturating_sub(len.into());
        Self::MAX.checked_shl(host_bits).unwrap_or(0)
    }

    fn halves(self) -> (u64, u64) {
        (0, self.into())
    }
}

impl Bits for u128 {
    const ZERO: Self = 0;

    fn mask(len: u8) -> Self {
        let host_bits = Self::BITS.saturating_sub(len.into());
        Self::MAX.checked_shl(host_bits).unwrap_or(0)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the halves are what is wanted"
    )]
    fn halves(self) -> (u64, u64) {
        ((self >> 64) as u64, self as u64)
    }
}

/// An immutable longest-prefix index.
#[derive(Debug)]
pub(super) struct Index<A> {
    /// Prefix lengths in use and their masks, longest first.
    lengths: Box<[(u8, A)]>,
    /// Open addressing with linear probing; a power of two, or none at all. Some are always empty.
    slots: Box<[Slot<A>]>,
    /// How far a hash is shifted to number a slot.
    shift: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot<A> {
    addr: A,
    len: u8,
    /// `None` in an empty slot.
    next: Option<NextHop>,
}

impl<A> Default for Index<A> {
    fn default() -> Self {
        Self {
            lengths: Box::default(),
            slots: Box::default(),
            shift: 0,
        }
    }
}

impl<A: Bits> Index<A> {
    /// Indexes prefixes without host bits, each given once.
    pub(super) fn new(routes: &[(A, u8, NextHop)]) -> Self {
        if routes.is_empty() {
            return Self::default();
        }
        let mut lengths: Vec<u8> = routes.iter().map(|&(_, len, _)| len).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();

        // At most half full: the search for a length that has no prefix here, which precedes most
        // finds, then ends after one or two looks.
        let count = routes.len().saturating_mul(2).next_power_of_two();
        let empty = Slot {
            addr: A::ZERO,
            len: 0,
            next: None,
        };
        let mut index = Self {
            lengths: lengths.into_iter().map(|len| (len, A::mask(len))).collect(),
            slots: vec![empty; count].into_boxed_slice(),
            shift: u64::BITS.saturating_sub(count.trailing_zeros()),
        };
        for &(addr, len, next) in routes {
            let at = index.place(addr, len);
            if let Some(slot) = index.slots.get_mut(at) {
                *slot = Slot {
                    addr,
                    len,
                    next: Some(next),
                };
            }
        }
        index
    }

    /// The next hop of the longest prefix that covers `addr`.
    #[inline]
    pub(super) fn lookup(&self, addr: A) -> Option<NextHop> {
        for &(len, mask) in &self.lengths {
            let slot = self.slots.get(self.place(addr & mask, len));
            if let Some(next) = slot.and_then(|slot| slot.next) {
                return Some(next);
            }
        }
        None
    }

    /// Number of the slot that holds the prefix, or else of the empty one where it would be.
    #[inline]
    fn place(&self, addr: A, len: u8) -> usize {
        let last = self.slots.len().wrapping_sub(1);
        let mut at = self.home(addr, len);
        while let Some(slot) = self.slots.get(at) {
            if slot.next.is_none() || (slot.addr == addr && slot.len == len) {
                break;
            }
            at = at.wrapping_add(1) & last;
        }
        at
    }

    /// Where the search for a prefix begins. The upper bits of a product depend on all bits of its
    /// factors; the second one spreads prefixes that lie at regular distances, as ranges do.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the shift leaves as many bits as number a slot"
    )]
    fn home(&self, addr: A, len: u8) -> usize {
        let (high, low) = addr.halves();
        let hash = (high ^ u64::from(len) << 56).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ low;
        let hash = hash.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        let hash = (hash ^ hash >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash.checked_shr(self.shift).unwrap_or(0) as usize
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

    use super::*;
    use crate::ids::PeerId;

    fn next(n: u32) -> NextHop {
        NextHop::Peer(PeerId(n))
    }

    /// A mask keeps the first bits and nothing else, at both ends of its range.
    #[test]
    fn masks_keep_the_first_bits() {
        assert_eq!(u32::mask(0), 0);
        assert_eq!(u32::mask(24), 0xffff_ff00);
        assert_eq!(u32::mask(32), u32::MAX);
        assert_eq!(u128::mask(0), 0);
        assert_eq!(u128::mask(64), u128::MAX << 64);
        assert_eq!(u128::mask(128), u128::MAX);
    }

    /// A full table still has an empty slot, and a search for what is not there ends.
    #[test]
    fn a_search_ends() {
        for count in 1..70_u32 {
            let routes: Vec<_> = (0..count).map(|n| (n, 32, next(n))).collect();
            let index = Index::new(&routes);
            assert!(index.slots.iter().any(|slot| slot.next.is_none()));
            for n in 0..count {
                assert_eq!(index.lookup(n), Some(next(n)));
            }
            assert_eq!(index.lookup(count), None);
        }
    }

    /// Prefixes at regular distances, as node ranges and pods are, do not crowd: the mean search
    /// looks at fewer than two slots.
    #[test]
    fn regular_prefixes_do_not_crowd() {
        for shift in 0..=16 {
            let routes: Vec<_> = (0..20_000_u32)
                .map(|n| (0x0a00_0000 ^ n.rotate_left(shift), 32, next(n)))
                .collect();
            let index = Index::new(&routes);
            let slots = index.slots.len();
            let looks: usize = routes
                .iter()
                .map(|&(addr, len, _)| {
                    let (home, place) = (index.home(addr, len), index.place(addr, len));
                    (place + slots - home) % slots + 1
                })
                .sum();
            assert!(looks < 2 * routes.len(), "{looks} looks at shift {shift}");
        }
    }
}
