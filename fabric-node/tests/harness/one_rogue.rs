//! Two nodes and one rogue that has a valid certificate: how such a fabric is started, how the rogue
//! dials, and what has come from it. Never done here: anything hostile.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Fabric, Plan, Wire, rogue::Rogue, underlay};

/// Number of the stranger in these tests: nodes 0 and 1 run.
pub const ROGUE: usize = 2;
/// When nothing has come for this long, nothing is on its way: that takes microseconds here.
const QUIET: Duration = Duration::from_millis(200);

/// One test at a time: they measure the memory of the process, and wait until nothing comes.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Node 0 is attacked, node 1 is the good peer; both know the rogue, whose name makes it the one
/// that dials.
pub fn fabric_with_rogue(name: &'static str) -> Fabric {
    Fabric::start(Plan {
        wire: Wire::Loopback,
        strangers: vec![name],
        ..Plan::default()
    })
}

/// Connects the rogue to node 0, which may refuse what follows but not its certificate.
pub fn dial(fabric: &Fabric, rogue: &mut Rogue) {
    let identity = fabric.identity(&fabric.name(ROGUE));
    rogue.dial(identity.client_config(fabric.name(0)), underlay(0));
    rogue.wait_connected();
}

/// What node 0 received, less what node 1 sent it.
pub fn received_from_rogue(fabric: &Fabric) -> u64 {
    let of = |node: usize| fabric.nodes[node].dataplane.counters();
    let honest = of(1).delivered_peers.packets;
    of(0).received_peers.packets.saturating_sub(honest)
}

/// What `count` says once it has said the same for [`QUIET`].
pub fn quiet(mut count: impl FnMut() -> u64) -> u64 {
    let mut last = (count(), Instant::now());
    while last.1.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(1));
        let now = count();
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    last.0
}
