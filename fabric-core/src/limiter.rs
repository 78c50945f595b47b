//! Token buckets for ICMP errors (RFC 1812 4.3.2.8, RFC 4443 2.4f).
//!
//! In: who would get an error, of which class, and the time. Out: yes or no. Each class has a bucket
//! for all receivers together and one for each receiver; path MTU errors are a class of their own,
//! so that a flood of other errors cannot starve path MTU discovery.
//!
//! A receiver is one whole address, for IPv6 as for IPv4: by the time an error is due its address
//! has been checked against what its port or peer owns, so nobody has a /64 to choose from, while
//! all pods of a node commonly share one and must not silence each other.
//!
//! The rates are not randomised, because this crate has no source of randomness. Probing the global
//! bucket for what other pods do (as in CVE-2020-25705) reveals only that errors were sent: no port
//! of anybody's socket decides whether an error is due here.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// Errors of one class per second and worker, to everybody together.
pub const GLOBAL_PER_SECOND_MAX: u32 = 1_000;
/// Errors of one class that may follow each other at once, to everybody together.
pub const GLOBAL_BURST_MAX: u32 = 50;
/// Errors of one class per second and worker to one address.
pub const RECEIVER_PER_SECOND_MAX: u32 = 10;
/// Errors of one class that may follow each other at once to one address.
pub const RECEIVER_BURST_MAX: u32 = 10;
/// Addresses remembered per class. Where a new one finds no place, the one unused for the longest
/// time among four is forgotten and would start with a full bucket; the global bucket still holds.
pub const RECEIVERS_MAX: usize = 512;

/// Places where one address may be remembered.
const WAYS: usize = 4;
const _: () = assert!(RECEIVERS_MAX.is_multiple_of(WAYS) && RECEIVERS_MAX.is_power_of_two());

const GLOBAL: Rate = Rate::new(GLOBAL_PER_SECOND_MAX, GLOBAL_BURST_MAX);
const RECEIVER: Rate = Rate::new(RECEIVER_PER_SECOND_MAX, RECEIVER_BURST_MAX);

/// Classes of errors that do not compete with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Packet too big (ICMPv6 type 2), fragmentation needed (ICMP 3/4).
    PathMtu,
    /// All others.
    Other,
}

/// The rate limits of one worker. Memory is fixed: nothing is allocated after creation.
#[derive(Debug, Default)]
pub struct IcmpLimiter {
    path_mtu: Class,
    other: Class,
}

impl IcmpLimiter {
    /// Whether an error may go to `receiver` at `now`; if so, it is counted as sent.
    ///
    /// A refused error costs no token, so a receiver over its own rate takes nothing from others.
    pub fn allow(&mut self, class: ErrorClass, receiver: IpAddr, now: Instant) -> bool {
        match class {
            ErrorClass::PathMtu => self.path_mtu.allow(receiver, now),
            ErrorClass::Other => self.other.allow(receiver, now),
        }
    }
}

#[derive(Debug)]
struct Class {
    global: Bucket,
    sets: Box<[[Slot; WAYS]]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    receiver: Option<IpAddr>,
    used: Option<Instant>,
    bucket: Bucket,
}

impl Default for Class {
    fn default() -> Self {
        Self {
            global: Bucket::default(),
            sets: vec![[Slot::default(); WAYS]; RECEIVERS_MAX / WAYS].into_boxed_slice(),
        }
    }
}

impl Class {
    fn allow(&mut self, receiver: IpAddr, now: Instant) -> bool {
        if !self.global.has_token(GLOBAL, now) {
            return false;
        }
        let Some(slot) = self.slot(receiver) else {
            return false;
        };
        slot.used = Some(now);
        if !slot.bucket.has_token(RECEIVER, now) {
            return false;
        }
        slot.bucket.take(RECEIVER, now);
        self.global.take(GLOBAL, now);
        true
    }

    /// The slot of `receiver`, cleared for it if it had none. `None` cannot happen: no set is empty.
    fn slot(&mut self, receiver: IpAddr) -> Option<&mut Slot> {
        let sets = self.sets.len();
        let set = self.sets.get_mut(spread(receiver).checked_rem(sets)?)?;
        let known = set.iter().position(|slot| slot.receiver == Some(receiver));
        if let Some(at) = known {
            return set.get_mut(at);
        }
        let oldest = set.iter_mut().min_by_key(|slot| slot.used)?;
        *oldest = Slot {
            receiver: Some(receiver),
            ..Slot::default()
        };
        Some(oldest)
    }
}

/// A token bucket, kept as the moment at which it will be full again.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// `None`: full since ever.
    full_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Time in which one token grows back.
    per_token: Duration,
    /// Time in which an empty bucket fills.
    to_fill: Duration,
}

impl Rate {
    const fn new(per_second: u32, burst: u32) -> Self {
        // Evaluated at compile time: a rate of zero would not build.
        let Some(per_token) = Duration::from_secs(1).checked_div(per_second) else {
            panic!("a rate of zero");
        };
        Self {
            per_token,
            to_fill: per_token.saturating_mul(burst),
        }
    }
}

impl Bucket {
    fn has_token(&self, rate: Rate, now: Instant) -> bool {
        self.until_full(now).saturating_add(rate.per_token) <= rate.to_fill
    }

    fn take(&mut self, rate: Rate, now: Instant) {
        self.full_at = now.checked_add(self.until_full(now).saturating_add(rate.per_token));
    }

    fn until_full(&self, now: Instant) -> Duration {
        self.full_at
            .map_or(Duration::ZERO, |full| full.saturating_duration_since(now))
    }
}

/// Spreads addresses over the sets. The mixing is public, so a sender can choose addresses that meet
/// in one set; all it can gain is that buckets there are forgotten, never that somebody gets less.
#[expect(
    clippy::cast_possible_truncation,
    reason = "any bits of the product will do"
)]
fn spread(addr: IpAddr) -> usize {
    let bits = match addr {
        IpAddr::V4(v4) => u64::from(u32::from(v4)),
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            (bits >> 64) as u64 ^ (bits as u64).rotate_left(32)
        }
    };
    // Fibonacci hashing: 2^64 divided by the golden ratio; the upper half is well mixed.
    (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

#[cfg(test)]
mod tests {
    #![allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
    #![expect(
        clippy::disallowed_methods,
        reason = "a test starts at any moment and counts from there"
    )]

    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn pod(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number))
    }

    fn allowed(limiter: &mut IcmpLimiter, to: IpAddr, tries: u32, now: Instant) -> usize {
        (0..tries)
            .filter(|_| limiter.allow(ErrorClass::Other, to, now))
            .count()
    }

    /// One receiver gets its burst at once, then ten a second, and never saves up more than a burst.
    #[test]
    fn one_receiver_is_limited() {
        let mut limiter = IcmpLimiter::default();
        let start = Instant::now();
        assert_eq!(allowed(&mut limiter, pod(1), 100, start), 10);
        assert_eq!(
            allowed(&mut limiter, pod(1), 100, start + Duration::from_millis(99)),
            0
        );
        assert_eq!(
            allowed(
                &mut limiter,
                pod(1),
                100,
                start + Duration::from_millis(100)
            ),
            1
        );
        assert_eq!(
            allowed(&mut limiter, pod(1), 100, start + Duration::from_secs(3600)),
            10
        );
    }

    /// Pods that share a /64 do not share a bucket.
    #[test]
    fn neighbours_do_not_silence_each_other() {
        let mut limiter = IcmpLimiter::default();
        let now = Instant::now();
        let [first, second] =
            [1, 2].map(|low| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 7, 0, 0, 0, low)));
        assert_eq!(allowed(&mut limiter, first, 100, now), 10);
        assert_eq!(allowed(&mut limiter, second, 100, now), 10);
    }

    /// All receivers together get no more than the global burst at once.
    #[test]
    fn all_together_are_limited() {
        let mut limiter = IcmpLimiter::default();
        let now = Instant::now();
        let total: usize = (0..100)
            .map(|n| allowed(&mut limiter, pod(n), 1, now))
            .sum();
        assert_eq!(total, 50);
        let later = now + Duration::from_millis(20);
        let total: usize = (0..100)
            .map(|n| allowed(&mut limiter, pod(n), 1, later))
            .sum();
        assert_eq!(total, 20);
    }

    /// A receiver that floods leaves the global bucket to the others.
    #[test]
    fn refused_errors_cost_nothing() {
        let mut limiter = IcmpLimiter::default();
        let now = Instant::now();
        assert_eq!(allowed(&mut limiter, pod(1), 100_000, now), 10);
        for n in 2..=5 {
            assert_eq!(allowed(&mut limiter, pod(n), 100, now), 10);
        }
    }

    /// Path MTU errors go out in the midst of a flood of other errors.
    #[test]
    fn path_mtu_errors_are_apart() {
        let mut limiter = IcmpLimiter::default();
        let now = Instant::now();
        for n in 0..100 {
            allowed(&mut limiter, pod(n), 100, now);
        }
        assert!(!limiter.allow(ErrorClass::Other, pod(200), now));
        assert!(limiter.allow(ErrorClass::PathMtu, pod(1), now));
    }

    /// More addresses than the table holds make it forget the oldest, and the newest is remembered.
    #[test]
    fn memory_is_bounded_and_keeps_the_newest() {
        let mut limiter = IcmpLimiter::default();
        let start = Instant::now();
        let mut now = start;
        for n in 0..20_000 {
            now += Duration::from_millis(1);
            assert!(limiter.allow(ErrorClass::Other, pod(n), now));
        }
        now += Duration::from_millis(50);
        assert_eq!(allowed(&mut limiter, pod(19_999), 100, now), 9);
        let remembered = limiter.other.sets.iter().flatten();
        assert_eq!(
            remembered.filter(|slot| slot.receiver.is_some()).count(),
            RECEIVERS_MAX
        );
    }

    proptest! {
        /// Whatever the arrivals, no window of time holds more than burst plus rate times window.
        #[test]
        fn no_window_exceeds_the_rate(
            gaps_ms in prop::collection::vec((0..200_u64, 0..8_u32), 1..300),
        ) {
            let mut limiter = IcmpLimiter::default();
            let start = Instant::now();
            let mut now = start;
            let mut sent: Vec<(Instant, u32)> = Vec::new();
            for (gap, to) in gaps_ms {
                now += Duration::from_millis(gap);
                if limiter.allow(ErrorClass::Other, pod(to), now) {
                    sent.push((now, to));
                }
            }
            for (at, &(begin, to)) in sent.iter().enumerate() {
                let mut count = 0;
                for &(end, _) in sent.iter().skip(at).filter(|&&(_, other)| other == to) {
                    count += 1;
                    let most = 10 + (end - begin).as_millis() / 100;
                    prop_assert!(count <= most, "{} in {:?}", count, end - begin);
                }
            }
        }
    }
}
