//! What processes have used so far, from `/proc`.

use std::fs;

use anyhow::Context as _;

/// Clock ticks per second in `/proc/PID/stat`: fixed in the kernel's interface (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;
/// Written to `/proc/PID/clear_refs`, it makes the peak of resident memory start anew (proc(5)).
const RESET_PEAK: &str = "5";

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

/// Forgets how much memory `pids` have had resident before.
///
/// # Errors
///
/// One of them does not run any more, or the kernel does not offer it.
pub fn reset_peak_rss(pids: &[u32]) -> anyhow::Result<()> {
    for pid in pids {
        let path = format!("/proc/{pid}/clear_refs");
        fs::write(&path, RESET_PEAK).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

/// The most memory that any one of `pids` has had resident since its start or the last
/// [`reset_peak_rss`] (MiB). The kernel keeps it, so that no moment between two looks is missed.
///
/// # Errors
///
/// One of them does not run any more.
pub fn peak_rss_mib(pids: &[u32]) -> anyhow::Result<f64> {
    let mut largest = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let kib = peak_kib(&status).with_context(|| format!("{path} is not as proc(5) says"))?;
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

fn peak_kib(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        io::{Read as _, Write as _},
        process::{Command, Stdio},
    };

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
        assert!(peak_rss_mib(&own).unwrap() > 0.1);
        assert_eq!(
            peak_kib("VmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n"),
            Some(2048)
        );
    }

    /// Memory that was given back counts in the peak, until the peak is reset.
    #[test]
    fn a_peak_is_remembered_until_it_is_reset() {
        // A shell fills a variable with 32 MiB, empties it, says so, and waits for a line.
        let mut child = Command::new("/bin/sh")
            .args([
                "-c",
                "x=$(head -c 33554432 /dev/zero | tr '\\0' a); x=; echo; read line",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut line)
            .unwrap();
        let pids = [child.id()];
        let before = peak_rss_mib(&pids).unwrap();
        reset_peak_rss(&pids).unwrap();
        let after = peak_rss_mib(&pids).unwrap();
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        child.wait().unwrap();
        assert!(before > 32.0, "{before} MiB");
        assert!(after < before / 2.0, "{after} of {before} MiB");
    }
}
