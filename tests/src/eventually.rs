//! Waiting for a condition by asking for it, with an end.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

/// Asks until `look` succeeds; how long that took.
///
/// # Errors
///
/// The last error of `look`, when `limit` is over.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Duration)> {
    let begin = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok((found, begin.elapsed())),
            Err(error) if begin.elapsed() >= limit => {
                bail!("{what}: not within {} ms: {error:#}", limit.as_millis())
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}
