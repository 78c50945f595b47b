//! What every worker reads, replaced as a whole.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use fabric_core::{
    ids::PortId,
    snapshot::{Snapshot, SnapshotBuilder},
};

use crate::{sys::tun::Tun, tunnel::membership::Peer};

/// The state in force: one snapshot and the devices and peers it speaks of.
#[derive(Debug)]
pub struct Published {
    /// Routes and source rules.
    pub snapshot: Snapshot,
    /// Device of every port in the snapshot.
    pub ports: Ports,
    /// Every peer in the snapshot.
    pub peers: Vec<Peer>,
}

/// Devices by port. A port number is its own hash: numbers are handed out one after the other.
pub type Ports = HashMap<PortId, Arc<Tun>, BuildHasherDefault<PortHasher>>;

impl Default for Published {
    fn default() -> Self {
        Self {
            #[expect(
                clippy::expect_used,
                reason = "an empty state has nothing to contradict"
            )]
            snapshot: SnapshotBuilder::default()
                .build()
                .expect("an empty snapshot"),
            ports: Ports::default(),
            peers: Vec::new(),
        }
    }
}

/// See [`Ports`].
#[derive(Clone, Copy, Debug, Default)]
pub struct PortHasher(u64);

impl Hasher for PortHasher {
    fn finish(&self) -> u64 {
        // The map takes its tag from the upper bits: spread them (the constant of Fibonacci hashing).
        self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = u64::from(number);
    }
}
