//! Uses a range up, to be told by the daemon how many of its addresses it counts as used: what it holds
//! in memory is seen in no file.

use anyhow::{Context as _, bail, ensure};

use super::exec::Runtime;
use crate::plugin::{Answer, Container};

/// Most containers that are made for this.
const CONTAINERS_MAX: usize = 300;
/// The code of the specification for "try again later".
const TRY_AGAIN: u64 = 11;

/// Attaches containers until there is no IPv4 address, checks that the daemon counts as used what they
/// and `living` pods have, and deletes them.
///
/// # Errors
///
/// It counts others, or the range is too large for this.
pub fn check_used(runtime: &Runtime<'_>, living: usize) -> anyhow::Result<()> {
    let mut made: Vec<Container> = Vec::new();
    let text = loop {
        ensure!(made.len() < CONTAINERS_MAX, "the range does not run out");
        let container = runtime.container()?;
        let answer = runtime.call("ADD", "fill", &container)?;
        made.push(container);
        match answer {
            Answer::Done(_) => {}
            Answer::Failed {
                code: TRY_AGAIN,
                text,
            } => break text,
            Answer::Failed { code, text } => bail!("ADD failed with code {code}: {text}"),
        }
    };
    // "no free IPv4 address: RANGE has 3 used and 4 cooling down of 29".
    let used = text
        .split_once(" has ")
        .and_then(|(_, rest)| rest.split(' ').next());
    let used: usize = used.and_then(|used| used.parse().ok()).context(text)?;
    for container in &made {
        runtime.del("fill", container)?;
        fabric_node::sys::netns::Netns::remove_named(&container.netns)?;
    }
    let pods = living + made.len() - 1;
    ensure!(
        used == pods,
        "the daemon counts {used} addresses as used, but there are {pods} pods"
    );
    Ok(())
}
