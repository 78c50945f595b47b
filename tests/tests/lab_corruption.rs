//! Streams over a cable that loses, doubles and delays datagrams: no byte may be wrong.
#![allow(clippy::print_stdout)]

use std::path::Path;

use fabric_node::lab::Lab;
use fabric_tests::{
    impair::Impairment,
    load::corruption::{Options, describe, run},
    stage::Stage,
    threads,
};

/// Bytes of all streams together; `make soak` sends 20 GB.
const BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// The same where two threads on either side carry them.
const THREADED_BYTES: u64 = 768 * 1024 * 1024;
/// Data-plane threads of each daemon there.
const THREADS: u32 = 2;
/// Seed of the cable's fates, arbitrary: the same datagrams in each run.
const SEED: u64 = 0x00c0_ffee;

/// 2 GiB over 16 streams, both ways and both families, arrive without a wrong byte across a cable
/// that loses one datagram of a thousand, doubles one and delays one; the accounts of both daemons add
/// up afterwards.
#[test]
fn no_byte_is_wrong_behind_a_bad_cable() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("corrupt", 2, 2)?;
    check(&lab, BYTES)?;
    lab.down()
}

/// The same with two data-plane threads on either side, each of which carries a part.
#[test]
fn no_byte_is_wrong_with_two_threads() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("corrupt", 2, 2)?;
    threads::start_with(&mut lab, THREADS)?;
    check(&lab, THREADED_BYTES)?;
    for worker in lab.workers() {
        let worked = threads::check_all_worked(worker, THREADS as usize)?;
        println!("{}: its threads worked {worked:?}", worker.name);
    }
    lab.down()
}

fn check(lab: &Lab, bytes: u64) -> anyhow::Result<()> {
    let options = Options {
        bytes,
        impairment: Impairment::one_in_a_thousand(SEED),
    };
    let impair = Path::new(env!("CARGO_BIN_EXE_impair"));
    let outcome = run(lab, impair, options, &mut |_| Ok(()))?;
    println!("{}", describe(&outcome));
    Ok(())
}
