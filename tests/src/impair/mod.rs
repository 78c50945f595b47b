//! A bad cable between two workers of a lab: it loses, doubles and delays single datagrams, by a
//! seed, and counts exactly what it did.
//!
//! Comes in: a lab that is up, and an [`Impairment`]. Goes out: the same lab with the process `impair`
//! where the bridge was, and its [`Counts`] at the end. Never done here: changing a byte of a
//! datagram that passes.
//!
//! [`cable`] lays two TUN devices between the workers' own links, [`relay`] carries packets from one to
//! the other. Packets are UDP super-packets of up to 64 KiB, as the workers' kernels make them.
//! [`superpacket`] takes them apart where [`direction`] has decided with [`fate`] that one of their
//! datagrams is not to go the way of the others; all others stay together, or the cable would be too
//! slow to load anything. [`process`] starts and ends the program.

pub mod cable;
pub mod direction;
pub mod fate;
pub mod process;
pub mod relay;
pub mod superpacket;

use std::{iter::Sum, ops::Add, time::Duration};

use serde::{Deserialize, Serialize};

/// Rates are in parts per million.
pub const MILLION: u32 = 1_000_000;

/// How bad the cable is, for each datagram of either direction. The three exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Impairment {
    /// Datagrams that do not arrive (parts per million).
    pub lose_ppm: u32,
    /// Datagrams that arrive, and again later (parts per million).
    pub double_ppm: u32,
    /// Datagrams that later ones overtake (parts per million).
    pub delay_ppm: u32,
    /// How many later datagrams overtake a delayed one, or the second of a double, at most; the
    /// number is drawn evenly, from 1 on.
    pub positions_max: u32,
    /// When a delayed datagram goes on its way at the latest (ms): there may be no later ones.
    pub delay_ms_max: u64,
    /// What all of it is drawn from.
    pub seed: u64,
}

impl Impairment {
    /// One datagram in a thousand is lost, one comes twice, one is overtaken by up to a hundred.
    #[must_use]
    pub fn one_in_a_thousand(seed: u64) -> Self {
        Self {
            lose_ppm: 1_000,
            double_ppm: 1_000,
            delay_ppm: 1_000,
            positions_max: 100,
            delay_ms_max: 5,
            seed,
        }
    }

    /// Longest stay of a delayed datagram.
    #[must_use]
    pub fn delay_max(&self) -> Duration {
        Duration::from_millis(self.delay_ms_max)
    }
}

/// What happened in one direction, or in both. After the end:
/// `sent = received - lost + doubled - refused`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Packets as they came: super-packets and single ones.
    pub packets: u64,
    /// Super-packets that were cut because of a datagram in them.
    pub cut: u64,
    /// UDP datagrams in them.
    pub received: u64,
    /// Datagrams not passed on.
    pub lost: u64,
    /// Datagrams passed on twice.
    pub doubled: u64,
    /// Datagrams held back until others had overtaken them, or their time was over.
    pub delayed: u64,
    /// Of these, and of second ones of doubles: those that others did overtake.
    pub overtaken: u64,
    /// Datagrams passed on, second ones of doubles included.
    pub sent: u64,
    /// Datagrams that the kernel did not take back.
    pub refused: u64,
    /// Packets that are no UDP: passed on as they are.
    pub other: u64,
    /// Packets that the kernel lost in front of the cable because the program was late: losses that
    /// nobody ordered.
    pub overrun: u64,
    /// Bytes of IP packets that came.
    pub bytes: u64,
}

impl Counts {
    /// Whether every datagram is accounted for.
    #[must_use]
    pub fn add_up(&self) -> bool {
        self.sent + self.lost + self.refused == self.received + self.doubled
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            cut: self.cut + other.cut,
            received: self.received + other.received,
            lost: self.lost + other.lost,
            doubled: self.doubled + other.doubled,
            delayed: self.delayed + other.delayed,
            overtaken: self.overtaken + other.overtaken,
            sent: self.sent + other.sent,
            refused: self.refused + other.refused,
            other: self.other + other.other,
            overrun: self.overrun + other.overrun,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Add::add)
    }
}

/// What the program prints at its end, as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was asked for.
    pub impairment: Impairment,
    /// From each of the two workers to the other.
    pub directions: [Counts; 2],
}

impl Report {
    /// Both directions together.
    #[must_use]
    pub fn total(&self) -> Counts {
        self.directions.iter().copied().sum()
    }
}
