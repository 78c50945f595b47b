//! Points in time that can be written down and still be compared after a restart.

use std::{
    fs, io,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// A point in time. Within one boot the uptime counts, which nobody can set; across a reboot only
/// the wall clock is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// The kernel's random id of this boot.
    pub boot: String,
    /// Since boot, time in suspend included (seconds).
    pub uptime_s: u64,
    /// Since 1970 (seconds).
    pub wall_s: u64,
}

impl Moment {
    /// Reads the clocks.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted.
    pub fn now() -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let uptime = rustix::system::sysinfo().uptime;
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Ok(Self {
            boot: boot.trim().to_owned(),
            uptime_s: u64::try_from(uptime).unwrap_or_default(),
            wall_s: wall.as_secs(),
        })
    }

    /// Seconds from `earlier` to this moment; 0 where a clock was set back in between.
    #[must_use]
    pub fn seconds_since(&self, earlier: &Self) -> u64 {
        if self.boot == earlier.boot {
            self.uptime_s.saturating_sub(earlier.uptime_s)
        } else {
            self.wall_s.saturating_sub(earlier.wall_s)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn moment(boot: &str, uptime_s: u64, wall_s: u64) -> Moment {
        Moment {
            boot: boot.into(),
            uptime_s,
            wall_s,
        }
    }

    /// Setting the wall clock changes nothing within a boot and never makes time run backwards
    /// across two.
    #[test]
    fn jumps_of_the_wall_clock() {
        let earlier = moment("a", 100, 1_000_000);
        assert_eq!(moment("a", 130, 9_000_000).seconds_since(&earlier), 30);
        assert_eq!(moment("a", 130, 5).seconds_since(&earlier), 30);
        assert_eq!(moment("b", 5, 1_000_050).seconds_since(&earlier), 50);
        assert_eq!(moment("b", 5, 999_000).seconds_since(&earlier), 0);
    }

    /// The machine's clocks can be read and do not run backwards.
    #[test]
    fn now_is_monotonic() {
        let first = Moment::now().unwrap();
        let second = Moment::now().unwrap();
        assert_eq!(first.boot, second.boot);
        assert!(second.uptime_s >= first.uptime_s && first.uptime_s > 0);
    }
}
