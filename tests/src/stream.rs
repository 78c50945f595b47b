//! A TCP stream between two pods whose every byte is checked by its position, for as long as a test
//! likes.

use std::{
    io::{Read as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::lab::Pod;

use crate::{
    eventually::eventually,
    traffic::{address, tcp},
};

/// Bytes written and read at a time.
const BLOCK_BYTES: usize = 256 * 1024;
/// Bytes of a position.
const WORD_BYTES: usize = size_of::<u64>();

/// A transfer that goes on until it is ended.
#[derive(Debug)]
pub struct Stream {
    name: String,
    stop: Arc<AtomicBool>,
    checked: Arc<AtomicU64>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Stream {
    /// Connects and begins to send from one pod to another.
    ///
    /// # Errors
    ///
    /// There is no connection.
    pub fn start(from: &Pod, to: &Pod, ipv6: bool) -> anyhow::Result<Self> {
        let (mut sender, mut receiver) = tcp(&from.netns, &to.netns, address(to, ipv6)?)?;
        let stop = Arc::new(AtomicBool::new(false));
        let checked = Arc::new(AtomicU64::new(0));
        let stopped = stop.clone();
        let sending = thread::spawn(move || {
            let mut position = 0;
            while !stopped.load(Ordering::Relaxed) {
                sender.write_all(&words(position))?;
                position += BLOCK_BYTES as u64;
            }
            Ok(())
        });
        let counter = checked.clone();
        let checking = thread::spawn(move || {
            let (mut position, mut block) = (0, vec![0; BLOCK_BYTES]);
            loop {
                match receiver.read_exact(&mut block) {
                    Ok(()) => {}
                    Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                    Err(e) => return Err(e).context("the stream stands still"),
                }
                ensure!(
                    block == words(position),
                    "other bytes than were sent, between {position} and {BLOCK_BYTES} further on"
                );
                position += BLOCK_BYTES as u64;
                counter.store(position, Ordering::Relaxed);
            }
        });
        Ok(Self {
            name: format!("{} -> {} (IPv6: {ipv6})", from.name, to.name),
            stop,
            checked,
            threads: vec![sending, checking],
        })
    }

    /// Waits until `bytes` more have arrived as they were sent.
    ///
    /// # Errors
    ///
    /// They have not within `limit`, or the stream has ended.
    pub fn moves(&self, bytes: u64, limit: Duration) -> anyhow::Result<()> {
        let goal = self.checked.load(Ordering::Relaxed) + bytes;
        let moved = eventually(&self.name, limit, || {
            let checked = self.checked.load(Ordering::Relaxed);
            ensure!(
                checked >= goal,
                "{} of {bytes} bytes are missing",
                goal - checked
            );
            Ok(())
        });
        moved.map(drop)
    }

    /// Ends the transfer; bytes that were checked.
    ///
    /// # Errors
    ///
    /// A byte was not what its position wants, or the connection broke.
    pub fn end(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            match thread.join() {
                Ok(ended) => ended.with_context(|| self.name.clone())?,
                Err(_) => bail!("{}: a thread panicked", self.name),
            }
        }
        Ok(self.checked.load(Ordering::Relaxed))
    }
}

/// A block whose every word is its own position, mixed so that each byte of it tells.
fn words(position: u64) -> Vec<u8> {
    let words = (0..BLOCK_BYTES / WORD_BYTES).map(|word| position + (word * WORD_BYTES) as u64);
    words
        .flat_map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
        .collect()
}
