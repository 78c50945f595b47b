//! Who has which address when, from what the plugin printed and what was asked of it. Pure: no I/O, no
//! clock; knows nothing of how the daemon decides.
//!
//! Comes in: results of ADD, the beginning of a pod's end, addresses of pods that were seen without a
//! result. Goes out: an error at the first address that two pods have, or that did not rest.
//!
//! Only what is certain is held against the daemon. A pod certainly has its addresses from the moment
//! its ADD had answered until its DEL begins or its namespace goes. An address was certainly released
//! after that moment, and was certainly chosen before the ADD that returned it had ended.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use thiserror::Error;

/// How long a released address rests, as docs/cni.md promises.
pub const REST: Duration = Duration::from_secs(120);
/// How long a lost DEL may hold an address beyond its rest before it counts as free (a promise of the
/// daemon's sweeps, with room).
const LOST_DEL_MAX: Duration = Duration::from_secs(15);

/// What must never happen.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Wrong {
    /// Two live containers.
    #[error("address {address} was given to {second} while {first} had it")]
    Duplicate {
        /// The address.
        address: IpAddr,
        /// Who had it.
        first: String,
        /// Who was given it too.
        second: String,
    },
    /// An address came back too early.
    #[error("address {address} was given to {container} at most {after:?} after its release")]
    NoRest {
        /// The address.
        address: IpAddr,
        /// Who was given it.
        container: String,
        /// Upper bound of the time between.
        after: Duration,
    },
    /// An ADD was refused although there were addresses.
    #[error("no address for a pod, although at most {unavailable} of {total} are taken or rest")]
    NotExhausted {
        /// Upper bound of addresses in use or resting.
        unavailable: usize,
        /// Addresses there are.
        total: usize,
    },
}

/// The model.
#[derive(Debug, Default)]
pub struct Model {
    holders: HashMap<IpAddr, String>,
    containers: BTreeMap<String, Vec<IpAddr>>,
    /// When an address was last known to be in use, and by whom.
    released: HashMap<IpAddr, (Instant, String)>,
    /// ADDs without a result: each may have taken an address of which nothing was seen.
    unseen: Vec<Instant>,
    given: usize,
    given_again: usize,
    shortest_rest: Option<Duration>,
}

impl Model {
    /// An ADD that ended at `at` gave `addresses` to `container`.
    ///
    /// # Errors
    ///
    /// One of them was not to be given.
    pub fn given(
        &mut self,
        container: &str,
        addresses: &[IpAddr],
        at: Instant,
    ) -> Result<(), Wrong> {
        for &address in addresses {
            self.check_free(container, address, at)?;
            self.given += 1;
            self.holders.insert(address, container.to_owned());
        }
        self.containers
            .insert(container.to_owned(), addresses.to_vec());
        Ok(())
    }

    /// The end of `container` begins at `at`: a DEL, or its namespace goes. More than once is fine.
    pub fn leaving(&mut self, container: &str, at: Instant) {
        for address in self.containers.remove(container).unwrap_or_default() {
            self.holders.remove(&address);
            self.released.insert(address, (at, container.to_owned()));
        }
    }

    /// The daemon carried traffic for `addresses` at `at`, for a container without a result: they will
    /// be released, and later than this.
    ///
    /// # Errors
    ///
    /// One of them belongs to another container, or did not rest.
    pub fn seen(
        &mut self,
        container: &str,
        addresses: &[IpAddr],
        at: Instant,
    ) -> Result<(), Wrong> {
        for &address in addresses {
            self.check_free(container, address, at)?;
            self.released.insert(address, (at, container.to_owned()));
        }
        Ok(())
    }

    /// An ADD without a result ended at `at`.
    pub fn without_result(&mut self, at: Instant) {
        self.unseen.push(at);
    }

    /// An ADD found no address, of `total` of a family, at `at`.
    ///
    /// # Errors
    ///
    /// There must have been one.
    pub fn exhausted(&mut self, ipv6: bool, total: usize, at: Instant) -> Result<(), Wrong> {
        let latest = REST + LOST_DEL_MAX;
        let is_recent = |then: &Instant| at.saturating_duration_since(*then) <= latest;
        self.unseen.retain(is_recent);
        let of_family = |address: &&IpAddr| address.is_ipv6() == ipv6;
        let held = self.holders.keys().filter(of_family).count();
        let resting = self.released.iter();
        let resting = resting
            .filter(|(address, (then, _))| of_family(address) && is_recent(then))
            .count();
        let unavailable = held + resting + self.unseen.len();
        if unavailable < total {
            return Err(Wrong::NotExhausted { unavailable, total });
        }
        Ok(())
    }

    fn check_free(&mut self, container: &str, address: IpAddr, at: Instant) -> Result<(), Wrong> {
        if let Some(first) = self.holders.get(&address)
            && first != container
        {
            return Err(Wrong::Duplicate {
                address,
                first: first.clone(),
                second: container.to_owned(),
            });
        }
        // A repeated ADD gets what the first one had.
        if let Some((released, last)) = self.released.get(&address)
            && last != container
        {
            let after = at.saturating_duration_since(*released);
            if after < REST {
                return Err(Wrong::NoRest {
                    address,
                    container: container.to_owned(),
                    after,
                });
            }
            self.given_again += 1;
            self.shortest_rest = Some(self.shortest_rest.map_or(after, |rest| rest.min(after)));
        }
        Ok(())
    }

    /// The containers that have addresses.
    #[must_use]
    pub fn living(&self) -> &BTreeMap<String, Vec<IpAddr>> {
        &self.containers
    }

    /// Addresses given; how many of these for the second time; the shortest time between.
    #[must_use]
    pub fn figures(&self) -> (usize, usize, Option<Duration>) {
        (self.given, self.given_again, self.shortest_rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    /// The second of two holders is found, and an address whose holder has begun to leave has none.
    #[test]
    fn duplicates_are_found() {
        let (mut model, now) = (Model::default(), Instant::now());
        assert_eq!(model.given("a", &[address(2)], now), Ok(()));
        assert_eq!(model.given("b", &[address(3)], now), Ok(()));
        let wrong = model.given("c", &[address(4), address(2)], now);
        assert!(matches!(wrong, Err(Wrong::Duplicate { first, .. }) if first == "a"));
        let wrong = model.seen("d", &[address(3)], now);
        assert!(matches!(wrong, Err(Wrong::Duplicate { first, .. }) if first == "b"));
        model.leaving("b", now);
        assert_eq!(model.living().keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(model.given("d", &[address(3)], now + REST), Ok(()));
    }

    /// An address that comes back before it has rested is found, whether its pod had a result or not.
    #[test]
    fn short_rests_are_found() {
        let (mut model, now) = (Model::default(), Instant::now());
        let early = now + REST - Duration::from_millis(1);
        assert_eq!(model.given("a", &[address(2)], now), Ok(()));
        model.leaving("a", now);
        // A second DEL does not begin the rest anew.
        model.leaving("a", early);
        assert_eq!(model.seen("b", &[address(3)], now), Ok(()));
        for last in [2, 3] {
            let wrong = model.given("c", &[address(last)], early);
            assert!(matches!(wrong, Err(Wrong::NoRest { .. })), "{wrong:?}");
            assert_eq!(model.given("c", &[address(last)], now + REST), Ok(()));
        }
        assert_eq!(model.figures(), (3, 2, Some(REST)));
    }

    /// A refusal is in order when all addresses are held, rest or may have been taken unseen.
    #[test]
    fn refusals_without_need_are_found() {
        let (mut model, now) = (Model::default(), Instant::now());
        assert_eq!(model.given("a", &[address(2)], now), Ok(()));
        assert_eq!(model.given("b", &[address(3)], now), Ok(()));
        model.leaving("b", now);
        let wrong = model.exhausted(false, 3, now);
        assert_eq!(
            wrong,
            Err(Wrong::NotExhausted {
                unavailable: 2,
                total: 3
            })
        );
        model.without_result(now);
        assert_eq!(model.exhausted(false, 3, now), Ok(()));
        let later = now + REST + LOST_DEL_MAX + Duration::from_secs(1);
        assert!(model.exhausted(false, 2, later).is_err());
        assert_eq!(model.exhausted(false, 1, later), Ok(()));
    }
}
