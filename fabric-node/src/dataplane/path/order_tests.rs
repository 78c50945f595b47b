//! The order of a flow, from the socket of one pod to that of another on another node. Needs root.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use super::{
    allocation_tests::{PATIENCE, World},
    *,
};

/// Payloads of UDP packets: the second and the fifth fit no datagram on an underlay of 1500 bytes.
const SIZES: [usize; 6] = [64, 1472, 64, 1000, 1472, 65];
/// Packets that arrive in one turn of the receiving node.
const BURST: u32 = 60;

/// Packets that arrive together by datagram and by stream are written in the order in which they were
/// sent, also where those of one kind are held back to be joined.
#[test]
fn a_flow_of_any_sizes_keeps_its_order() {
    let mut world = World::new(&[&[2], &[2]]);
    let flow = world.udp((0, 2), (1, 2));
    let (mut next, mut bytes) = (0_u32, [0; 1472]);
    for round in 0..100 {
        for number in next..next + BURST {
            let size = SIZES[(number as usize + round) % SIZES.len()];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            flow.sender.send(&bytes[..size]).unwrap();
        }
        let end = next + BURST;
        let deadline = Instant::now() + PATIENCE;
        while next < end {
            assert!(Instant::now() < deadline, "{next} did not come");
            world.turn();
            while flow.receiver.recv(&mut bytes).is_ok() {
                assert_eq!(bytes[..4], next.to_be_bytes());
                next += 1;
            }
        }
        // Time to be back in datagrams.
        let rest = Instant::now() + std::time::Duration::from_millis(5);
        while Instant::now() < rest {
            world.turn();
        }
    }
}
