//! One stream of zeroes over TCP, either end.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use super::{
    BLOCK_BYTES, Curve, Patience,
    wire::{Account, LINE_BYTES_MAX, parse},
};
use crate::{
    measure::{LOOK, rtt::is_timeout},
    sys::tcp::retransmits,
};

/// Writes zeroes for as long as asked. Leaves the connection open.
pub(super) fn pump(
    mut stream: &TcpStream,
    duration: Duration,
    interval: Duration,
    patience: &Patience<'_>,
) -> anyhow::Result<(Account, Curve)> {
    // A receiver that stops reading must not hold the sender for ever.
    stream.set_write_timeout(Some(LOOK))?;
    let block = vec![0; BLOCK_BYTES];
    let mut curve = Curve::new(Instant::now(), interval);
    let mut account = Account::default();
    while curve.begin.elapsed() < duration {
        match stream.write(&block) {
            Ok(len) => {
                account.bytes += len as u64;
                curve.add(Instant::now(), len, 0);
            }
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error).context("the connection broke while sending"),
        }
        patience.check()?;
    }
    account.seconds = curve.seconds();
    account.retransmits = retransmits(stream).unwrap_or_default();
    Ok((account, curve))
}

/// Reads zeroes until the sender has shut its half of the connection.
pub(super) fn drain(
    stream: &TcpStream,
    interval: Duration,
    patience: &Patience<'_>,
) -> anyhow::Result<(Account, Curve)> {
    let (account, curve, rest) = read(stream, interval, patience)?;
    ensure!(rest.is_empty(), "something other than zeroes arrived");
    Ok((account, curve))
}

/// As [`drain`], with the sender's account behind the zeroes.
pub(super) fn drain_with_account(
    stream: &TcpStream,
    interval: Duration,
    patience: &Patience<'_>,
) -> anyhow::Result<(Account, Curve, Account)> {
    let (account, curve, rest) = read(stream, interval, patience)?;
    ensure!(!rest.is_empty(), "the other end hung up while sending");
    Ok((account, curve, parse(&rest)?))
}

/// Reads to the end: the zeroes are counted, what follows them is kept.
fn read(
    mut stream: &TcpStream,
    interval: Duration,
    patience: &Patience<'_>,
) -> anyhow::Result<(Account, Curve, Vec<u8>)> {
    stream.set_read_timeout(Some(LOOK))?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut curve = Curve::new(Instant::now(), interval);
    let mut account = Account::default();
    let mut rest = Vec::new();
    loop {
        match stream.read(&mut block) {
            Ok(0) => break,
            Ok(len) => {
                let read = block.get(..len).unwrap_or_default();
                // To look at the last byte is enough: JSON has no zeroes in it.
                let zeroes = match read.last() {
                    Some(0) => len,
                    _ => read
                        .iter()
                        .rposition(|byte| *byte == 0)
                        .map_or(0, |at| at + 1),
                };
                rest.extend(read.iter().skip(zeroes));
                ensure!(
                    rest.len() <= LINE_BYTES_MAX,
                    "something other than zeroes arrived"
                );
                account.bytes += zeroes as u64;
                curve.add(Instant::now(), zeroes, 0);
            }
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error).context("the connection broke while receiving"),
        }
        patience.check()?;
    }
    account.seconds = curve.seconds();
    Ok((account, curve, rest))
}
