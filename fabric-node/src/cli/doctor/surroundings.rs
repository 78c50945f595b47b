//! Checks of what surrounds the daemon: clock, its socket, certificates.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{DoctorArgs, Finding};
use crate::{
    admin::{
        STATE_READY,
        client::{Client, ClientError, TIMEOUT},
    },
    cli::daemon::block_on,
    pki::{
        files::PEM_BYTES_MAX,
        validity::{Rfc3339, Validity, unix_now},
    },
    terminal::exit::Failure,
};

/// A clock before this is certainly wrong: 2026-01-01T00:00:00Z (seconds since 1970).
const CLOCK_MIN: i64 = 1_767_225_600;
/// A certificate that ends within this deserves attention (seconds).
const EXPIRY_WARNING_SECONDS: i64 = 30 * Validity::DAY_SECONDS;

/// All checks of the surroundings.
pub(super) fn examine(socket: &Path, args: &DoctorArgs) -> Vec<Finding> {
    let now = unix_now();
    vec![clock(now), daemon(socket), certificates(&args.pki_dir, now)]
}

fn clock(now: i64) -> Finding {
    let name = "clock";
    if now < CLOCK_MIN {
        let detail = format!("it is {} here, which is in the past", Rfc3339(now));
        return Finding::missing(
            name,
            detail,
            "set the clock (timedatectl set-ntp true): certificates depend on it",
        );
    }
    let synchronised = Path::new("/run/systemd/timesync/synchronized").exists();
    let how = if synchronised {
        "synchronised"
    } else {
        "not known whether synchronised"
    };
    Finding::ok(name, format!("{} ({how})", Rfc3339(now)))
}

fn daemon(socket: &Path) -> Finding {
    let name = "daemon";
    let asked = block_on(async { Ok(Client::new(socket, TIMEOUT).status().await?) });
    match asked {
        Ok(document) if document.content.state == STATE_READY => {
            let status = document.content;
            Finding::ok(
                name,
                format!(
                    "{} is {}, version {}",
                    status.node, status.state, status.version
                ),
            )
        }
        Ok(document) => {
            let status = document.content;
            let detail = format!(
                "{} is {}: {}",
                status.node,
                status.state,
                status.reasons.join("; ")
            );
            Finding::warning(name, detail, "fabric status")
        }
        Err(Failure::Daemon(ClientError::NotRunning { path, .. })) => Finding::warning(
            name,
            format!("nobody answers on {}", path.display()),
            "systemctl start fabric-node, or give its socket with --socket",
        ),
        Err(Failure::Daemon(ClientError::Permission { path })) => Finding::unknown(
            name,
            format!("permission denied on {}", path.display()),
            "sudo fabric doctor",
        ),
        Err(error) => Finding::warning(name, error.to_string(), "look at the daemon's log"),
    }
}

fn certificates(dir: &Path, now: i64) -> Finding {
    let name = "certificates";
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let detail = format!("{} does not exist", dir.display());
            return Finding::unknown(name, detail, "give the directory with --pki-dir");
        }
        Err(error) => {
            let detail = format!("{} cannot be read: {error}", dir.display());
            return Finding::unknown(
                name,
                detail,
                "run as root, or give the directory with --pki-dir",
            );
        }
    };
    let mut first_to_end: Option<(i64, PathBuf)> = None;
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_pem = path.extension().is_some_and(|extension| extension == "pem");
        let Some(validity) = is_pem.then(|| validity_in(&path)).flatten() else {
            continue;
        };
        if validity.not_before > now {
            let detail = format!(
                "{} is not valid before {}",
                path.display(),
                Rfc3339(validity.not_before)
            );
            return Finding::warning(
                name,
                detail,
                "compare this clock with the one that issued it",
            );
        }
        if first_to_end
            .as_ref()
            .is_none_or(|(end, _)| validity.not_after < *end)
        {
            first_to_end = Some((validity.not_after, path));
        }
    }
    let Some((end, path)) = first_to_end else {
        let detail = format!("no certificate in {}", dir.display());
        return Finding::unknown(name, detail, "fabric pki init; fabric pki issue NODE");
    };
    let file = path.display();
    let fix = if path.file_name().is_some_and(|name| name == "ca.pem") {
        "fabric pki init --force, then issue every node anew"
    } else {
        "fabric pki issue NODE --force"
    };
    match end.saturating_sub(now) {
        left if left < 0 => {
            Finding::missing(name, format!("{file} expired at {}", Rfc3339(end)), fix)
        }
        left if left < EXPIRY_WARNING_SECONDS => {
            Finding::warning(name, format!("{file} expires at {}", Rfc3339(end)), fix)
        }
        _ => Finding::ok(
            name,
            format!("{file} is the first to expire, at {}", Rfc3339(end)),
        ),
    }
}

/// When the first certificate of a file is valid; none for keys and anything else.
fn validity_in(path: &Path) -> Option<Validity> {
    let content = read_start(path, PEM_BYTES_MAX)?;
    let der = CertificateDer::from_pem_slice(&content).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some(Validity::of(&certificate))
}

fn read_start(path: &Path, bytes_max: u64) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(path)
        .ok()?
        .take(bytes_max)
        .read_to_end(&mut content)
        .ok()?;
    Some(content)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        cli::doctor::Verdict,
        pki::files::{Overwrite, init_dir},
    };

    /// A clock in the past is a missing requirement, since no certificate would be valid.
    #[test]
    fn clock_in_the_past() {
        assert_eq!(clock(0).status, Verdict::Missing);
        assert_eq!(clock(CLOCK_MIN).status, Verdict::Ok);
    }

    /// A daemon that is not there is a warning that says how to reach it.
    #[test]
    fn absent_daemon() {
        let finding = daemon(Path::new("/nonexistent/admin.sock"));
        assert_eq!(finding.status, Verdict::Warning);
        assert!(finding.fix.contains("--socket"), "{finding:?}");
    }

    /// The certificate that ends first decides, and its age against the clock.
    #[test]
    fn certificate_expiry() {
        let dir = tempfile::tempdir().unwrap();
        let now = unix_now();
        assert_eq!(certificates(dir.path(), now).status, Verdict::Unknown);
        init_dir(dir.path(), "fabric", 100, Overwrite::No).unwrap();
        let after = |days: i64| certificates(dir.path(), now + days * Validity::DAY_SECONDS);
        assert_eq!(after(0).status, Verdict::Ok);
        assert_eq!(after(80).status, Verdict::Warning);
        assert_eq!(after(101).status, Verdict::Missing);
        assert!(
            after(101).detail.contains("ca.pem expired at"),
            "{:?}",
            after(101)
        );
        assert_eq!(after(-1).status, Verdict::Warning);
    }
}
