//! Which address a pod gets: pure, no I/O, no clock.
//!
//! Comes in: the node's ranges, what is in use, what was released when. Goes out: addresses that
//! nobody has and nobody had lately. Never done here: remembering anything beyond the process,
//! which is [`super::store`]'s part.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use thiserror::Error;

/// How long a released address rests before it is handed out again (seconds): longer than the
/// caches of neighbours, resolvers and connection pools that still point at it.
pub const ADDRESS_COOLDOWN_S: u64 = 120;
/// Most rested addresses whose order of release is remembered (addresses). Beyond it the longest
/// rested are handed out in the order of their numbers.
const RESTING_MAX: usize = 65_536;

/// Why there is no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IpamError {
    /// The node has no range at all.
    #[error("this node has no pod range to allocate from")]
    NoRange,
    /// Every address of a family is in use or resting.
    #[error("no free {family} address: {usage}")]
    Exhausted {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The family's ranges with their numbers.
        usage: UsageList,
    },
    /// A requested address is outside the node's ranges.
    #[error("requested address {address} is outside this node's pod ranges ({ranges})")]
    OutOfRange {
        /// The address.
        address: IpAddr,
        /// The ranges.
        ranges: String,
    },
    /// A requested address is the network's, the broadcast or a gateway address.
    #[error("requested address {0} is reserved in its range")]
    Reserved(IpAddr),
    /// A requested address belongs to a pod.
    #[error("requested address {0} is in use")]
    InUse(IpAddr),
    /// A requested address was released a moment ago.
    #[error("requested address {address} was released lately and rests for another {seconds} s")]
    Resting {
        /// The address.
        address: IpAddr,
        /// How long it is not to be had (seconds).
        seconds: u64,
    },
    /// Two requested addresses of one family.
    #[error("more than one {0} address is requested")]
    TwoOfAFamily(&'static str),
}

/// How full a range is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The range.
    pub range: IpNet,
    /// Addresses in use, or held back because their record cannot be read or is lost.
    pub used: u64,
    /// Released addresses that rest.
    pub cooling: u64,
    /// All that can be handed out; [`u64::MAX`] stands for more than that.
    pub total: u64,
}

/// The ranges of a family, for a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageList(pub Vec<Usage>);

impl fmt::Display for UsageList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, usage) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let Usage {
                range,
                used,
                cooling,
                total,
            } = usage;
            write!(
                f,
                "{comma}{range} has {used} used and {cooling} cooling down of {total}"
            )?;
        }
        Ok(())
    }
}

/// The allocator. Times are seconds of any clock that does not run backwards.
#[derive(Debug)]
pub struct Ipam {
    pools: Vec<Pool>,
    reserved: HashSet<IpAddr>,
    held: HashSet<IpAddr>,
    resting: Resting,
}

impl Ipam {
    /// An allocator of the addresses in `ranges`, less those in `reserved` and the first two and, in
    /// IPv4, the last of each range.
    #[must_use]
    pub fn new(ranges: &[IpNet], reserved: &[IpAddr]) -> Self {
        Self {
            pools: ranges.iter().copied().map(Pool::new).collect(),
            reserved: reserved.iter().copied().collect(),
            held: HashSet::new(),
            resting: Resting::default(),
        }
    }

    /// Takes other ranges; what is in use or resting stays so.
    pub fn set_ranges(&mut self, ranges: &[IpNet], reserved: &[IpAddr]) {
        let same = self
            .pools
            .iter()
            .map(|pool| pool.range)
            .eq(ranges.iter().map(IpNet::trunc));
        if !same {
            self.pools = ranges.iter().copied().map(Pool::new).collect();
            self.start_behind_held();
        }
        self.reserved = reserved.iter().copied().collect();
    }

    /// Says that `address` is in use, as found in a record.
    pub fn hold(&mut self, address: IpAddr) {
        self.resting.remove(address);
        self.held.insert(address);
        self.start_behind(address);
    }

    /// Whether `address` is in use.
    #[must_use]
    pub fn is_held(&self, address: IpAddr) -> bool {
        self.held.contains(&address)
    }

    /// Says that `address` was released earlier and rests until `ready_at_s`; without effect on an
    /// address in use. Call it in the order of release.
    pub fn rest(&mut self, address: IpAddr, ready_at_s: u64) {
        if !self.held.contains(&address) {
            self.resting.push(address, ready_at_s);
            self.start_behind(address);
        }
    }

    /// Hands out one address for each family that the node has: those in `requested`, others of the
    /// allocator's choice. IPv4 comes first. Either all are handed out or none.
    ///
    /// # Errors
    ///
    /// [`IpamError`].
    pub fn allocate(&mut self, requested: &[IpAddr], now_s: u64) -> Result<Vec<IpAddr>, IpamError> {
        if self.pools.is_empty() {
            return Err(IpamError::NoRange);
        }
        for address in requested {
            self.check_requested(*address, now_s)?;
        }
        let mut chosen = Vec::with_capacity(2);
        for family in [Family::V4, Family::V6] {
            let mut wanted = requested.iter().filter(|address| family.has(address));
            match (wanted.next(), wanted.next()) {
                (Some(_), Some(_)) => return Err(IpamError::TwoOfAFamily(family.name())),
                (Some(address), None) => chosen.push(*address),
                (None, _) if self.pools.iter().any(|pool| pool.family == family) => {
                    chosen.push(self.choose(family, now_s)?);
                }
                (None, _) => {}
            }
        }
        for address in &chosen {
            self.resting.remove(*address);
            self.held.insert(*address);
        }
        Ok(chosen)
    }

    /// Takes an address back; it rests for [`ADDRESS_COOLDOWN_S`].
    pub fn release(&mut self, address: IpAddr, now_s: u64) {
        if self.held.remove(&address) {
            self.resting
                .push(address, now_s.saturating_add(ADDRESS_COOLDOWN_S));
            self.resting.forget_beyond(RESTING_MAX, now_s);
        }
    }

    /// Takes back an address that no pod ever used; it need not rest.
    pub fn give_back(&mut self, address: IpAddr) {
        self.held.remove(&address);
    }

    /// Whether an allocation without requests would succeed.
    ///
    /// # Errors
    ///
    /// What it would fail with.
    pub fn check_free(&self, now_s: u64) -> Result<(), IpamError> {
        if self.pools.is_empty() {
            return Err(IpamError::NoRange);
        }
        for family in [Family::V4, Family::V6] {
            let mut pools = self
                .pools
                .iter()
                .filter(|pool| pool.family == family)
                .peekable();
            if pools.peek().is_some() && !pools.any(|pool| self.has_free(pool, now_s)) {
                return Err(self.exhausted(family, now_s));
            }
        }
        Ok(())
    }

    fn has_free(&self, pool: &Pool, now_s: u64) -> bool {
        let taken = self
            .held
            .iter()
            .chain(self.reserved.difference(&self.held))
            .chain(self.resting.not_ready(now_s))
            .filter(|address| pool.may_hand_out(**address))
            .count();
        u128::try_from(taken).is_ok_and(|taken| taken < pool.size())
    }

    /// How full the ranges are.
    #[must_use]
    pub fn usage(&self, now_s: u64) -> Vec<Usage> {
        self.pools
            .iter()
            .map(|pool| {
                let count = |addresses: &mut dyn Iterator<Item = &IpAddr>| {
                    let inside = addresses.filter(|address| pool.range.contains(*address));
                    u64::try_from(inside.count()).unwrap_or(u64::MAX)
                };
                let cooling = &mut self.resting.not_ready(now_s);
                Usage {
                    range: pool.range,
                    used: count(&mut self.held.iter()),
                    cooling: count(cooling),
                    total: u64::try_from(pool.size()).unwrap_or(u64::MAX),
                }
            })
            .collect()
    }

    fn check_requested(&self, address: IpAddr, now_s: u64) -> Result<(), IpamError> {
        let Some(pool) = self.pools.iter().find(|pool| pool.range.contains(&address)) else {
            let ranges: Vec<_> = self
                .pools
                .iter()
                .map(|pool| pool.range.to_string())
                .collect();
            return Err(IpamError::OutOfRange {
                address,
                ranges: ranges.join(", "),
            });
        };
        if !pool.may_hand_out(address) || self.reserved.contains(&address) {
            return Err(IpamError::Reserved(address));
        }
        if self.held.contains(&address) {
            return Err(IpamError::InUse(address));
        }
        match self.resting.seconds_left(address, now_s) {
            0 => Ok(()),
            seconds => Err(IpamError::Resting { address, seconds }),
        }
    }

    fn choose(&mut self, family: Family, now_s: u64) -> Result<IpAddr, IpamError> {
        let Self {
            pools,
            reserved,
            held,
            resting,
        } = self;
        let unavailable = |address: &IpAddr| held.contains(address) || reserved.contains(address);
        for pool in pools.iter_mut().filter(|pool| pool.family == family) {
            let taken = |address: &IpAddr| unavailable(address) || resting.has(*address);
            let rested = |pool: &Pool| {
                resting
                    .oldest(|address| pool.may_hand_out(*address) && !unavailable(address))
                    .filter(|&address| resting.seconds_left(address, now_s) == 0)
            };
            // The last try finds what nobody remembers: released before a restart, or given back.
            let found = pool
                .next_in_lap(taken)
                .or_else(|| rested(pool))
                .or_else(|| pool.new_lap().next_in_lap(taken));
            if let Some(address) = found {
                return Ok(address);
            }
        }
        Err(self.exhausted(family, now_s))
    }

    fn exhausted(&self, family: Family, now_s: u64) -> IpamError {
        let mut usage = self.usage(now_s);
        usage.retain(|usage| family.has(&usage.range.addr()));
        IpamError::Exhausted {
            family: family.name(),
            usage: UsageList(usage),
        }
    }

    fn start_behind(&mut self, address: IpAddr) {
        for pool in &mut self.pools {
            pool.start_behind(address);
        }
    }

    fn start_behind_held(&mut self) {
        for pool in &mut self.pools {
            self.held
                .iter()
                .for_each(|address| pool.start_behind(*address));
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    fn has(self, address: &IpAddr) -> bool {
        Self::of(address) == self
    }

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// One range, walked by a cursor: no memory per address.
#[derive(Debug)]
struct Pool {
    range: IpNet,
    family: Family,
    /// First and last number that may be handed out; `first > last` when there is none.
    first: u128,
    last: u128,
    /// Next number to look at.
    cursor: u128,
    /// Numbers not yet looked at in this lap.
    lap_left: u128,
}

impl Pool {
    fn new(range: IpNet) -> Self {
        let range = range.trunc();
        let network = number(range.network());
        let end = number(range.broadcast());
        let family = Family::of(&range.addr());
        // The first is the network's own (in IPv6 the subnet-router anycast address, RFC 4291
        // section 2.6.1), the second the node's gateway; in IPv4 the last is the broadcast address.
        let first = network.saturating_add(2);
        let last = match family {
            Family::V4 => end.saturating_sub(1),
            Family::V6 => end,
        };
        let mut pool = Self {
            range,
            family,
            first,
            last,
            cursor: first,
            lap_left: 0,
        };
        pool.lap_left = pool.size();
        pool
    }

    fn size(&self) -> u128 {
        match self.last.checked_sub(self.first) {
            Some(distance) => distance.saturating_add(1),
            None => 0,
        }
    }

    fn may_hand_out(&self, address: IpAddr) -> bool {
        self.range.contains(&address) && (self.first..=self.last).contains(&number(address))
    }

    /// The next number of this lap that is not taken. Steps over taken ones only, so its cost is
    /// bounded by how many of those there are.
    fn next_in_lap(&mut self, taken: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
        while self.lap_left > 0 {
            let address = self.address(self.cursor);
            self.cursor = if self.cursor >= self.last {
                self.first
            } else {
                self.cursor.saturating_add(1)
            };
            self.lap_left = self.lap_left.saturating_sub(1);
            if !taken(&address) {
                return Some(address);
            }
        }
        None
    }

    fn new_lap(&mut self) -> &mut Self {
        self.lap_left = self.size();
        self
    }

    /// Moves the cursor behind an address that was in use before a restart, so that the lap begins
    /// where the one before the restart ended.
    fn start_behind(&mut self, address: IpAddr) {
        if self.may_hand_out(address) && number(address) >= self.cursor {
            self.cursor = match number(address) {
                last if last >= self.last => self.first,
                other => other.saturating_add(1),
            };
            self.lap_left = self.size();
        }
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            Family::V6 => Ipv6Addr::from(number).into(),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// Released addresses, the longest released first.
#[derive(Debug, Default)]
struct Resting {
    queue: BTreeMap<u64, IpAddr>,
    /// Place in the queue, and when the address may be handed out again (seconds).
    entries: HashMap<IpAddr, (u64, u64)>,
    next_place: u64,
}

impl Resting {
    fn push(&mut self, address: IpAddr, ready_at_s: u64) {
        self.remove(address);
        self.queue.insert(self.next_place, address);
        self.entries.insert(address, (self.next_place, ready_at_s));
        self.next_place = self.next_place.saturating_add(1);
    }

    fn remove(&mut self, address: IpAddr) {
        if let Some((place, _)) = self.entries.remove(&address) {
            self.queue.remove(&place);
        }
    }

    fn has(&self, address: IpAddr) -> bool {
        self.entries.contains_key(&address)
    }

    fn oldest(&self, wanted: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
        self.queue.values().find(|address| wanted(address)).copied()
    }

    fn seconds_left(&self, address: IpAddr, now_s: u64) -> u64 {
        match self.entries.get(&address) {
            Some((_, ready_at_s)) => ready_at_s.saturating_sub(now_s),
            None => 0,
        }
    }

    fn not_ready(&self, now_s: u64) -> impl Iterator<Item = &IpAddr> {
        self.entries
            .iter()
            .filter(move |(_, (_, ready_at_s))| *ready_at_s > now_s)
            .map(|(address, _)| address)
    }

    fn forget_beyond(&mut self, max: usize, now_s: u64) {
        while self.queue.len() > max
            && let Some((_, &address)) = self.queue.first_key_value()
            && self.seconds_left(address, now_s) == 0
        {
            self.remove(address);
        }
    }
}

#[cfg(test)]
mod tests;
