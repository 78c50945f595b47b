//! What processes have used so far, from `/proc`.

use std::fs;

use anyhow::Context as _;

/// Clock ticks per second in `/proc/PID/stat`: fixed in the kernel's interface (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of all threads of `pids` together (seconds).
///
/// # Errors
///
/// One of them does not run any more.
pub fn cpu_seconds(pids: &[u32]) -> anyhow::Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        ticks += cpu_ticks(&stat).with_context(|| format!("{path} is not as proc(5) says"))?;
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Resident memory of the largest of `pids` (MiB).
///
/// # Errors
///
/// One of them does not run any more.
pub fn rss_mib(pids: &[u32]) -> anyhow::Result<f64> {
    let mut largest = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let kib = rss_kib(&status).with_context(|| format!("{path} is not as proc(5) says"))?;
        largest = largest.max(kib);
    }
    Ok(largest as f64 / 1024.0)
}

/// Fields 14 and 15 (proc(5)), counted behind the name, which is in parentheses and may hold
/// anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn rss_kib(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// User and system time are found behind a name with blanks and parentheses.
    #[test]
    fn ticks_are_counted_behind_the_name() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 75 0 0 20 0 5";
        assert_eq!(cpu_ticks(stat), Some(325));
        assert_eq!(cpu_ticks("7 (a"), None);
    }

    /// This very process has used some of both.
    #[test]
    fn own_usage_is_readable() {
        let own = [std::process::id()];
        assert!(cpu_seconds(&own).unwrap() >= 0.0);
        assert!(rss_mib(&own).unwrap() > 0.1);
        assert_eq!(rss_kib("Name:\tx\nVmRSS:\t  2048 kB\n"), Some(2048));
    }
}
