//! What must outlive the daemon so that its peers learn of a restart at once.
//!
//! A peer that sends into a connection we have forgotten gets a stateless reset (RFC 9000 10.3).
//! That needs the same reset key as before, and connection ids that we recognise as our own.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use thiserror::Error;

const RESET_KEY_BYTES: usize = 32;
const CID_KEY_BYTES: usize = 8;
const FILE_NAME: &str = "quic-secrets";

/// Keys that are made once per node.
#[derive(Clone)]
pub struct Secrets {
    /// Key of the stateless reset tokens.
    pub reset_key: [u8; RESET_KEY_BYTES],
    /// Key by which own connection ids are recognised.
    pub cid_key: u64,
}

/// Why the secrets are not to be had.
#[derive(Debug, Error)]
#[error("cannot {action} {path}: {source}; the daemon must be able to write its state folder")]
pub struct SecretsError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Secrets {
    /// Reads the secrets below `state_dir`, or makes them. A file of another size is replaced.
    ///
    /// # Errors
    ///
    /// [`SecretsError`] names the file.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, SecretsError> {
        let path = state_dir.join(FILE_NAME);
        let fail = |action, source| SecretsError {
            action,
            path: path.clone(),
            source,
        };
        match fs::read(&path) {
            Ok(bytes) => {
                if let Some(secrets) = Self::decode(&bytes) {
                    return Ok(secrets);
                }
                tracing::warn!(path = %path.display(), "quic secrets have a wrong size: made anew");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail("read", error)),
        }
        let secrets = Self::random().map_err(|e| fail("make", e))?;
        let temporary = path.with_extension("new");
        let _ = fs::remove_file(&temporary);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|e| fail("create", e))?;
        file.write_all(&secrets.encode())
            .and_then(|()| file.set_permissions(fs::Permissions::from_mode(0o600)))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|e| fail("write", e))?;
        Ok(secrets)
    }

    /// Secrets for one run only.
    ///
    /// # Errors
    ///
    /// The system has no randomness to give.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; RESET_KEY_BYTES + CID_KEY_BYTES];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("no randomness"))?;
        Self::decode(&bytes).ok_or_else(|| io::Error::other("wrong size"))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (reset_key, cid_key) = bytes.split_first_chunk::<RESET_KEY_BYTES>()?;
        Some(Self {
            reset_key: *reset_key,
            cid_key: u64::from_be_bytes(cid_key.try_into().ok()?),
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.reset_key.to_vec();
        bytes.extend_from_slice(&self.cid_key.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The second start reads what the first one made, from a file that only its owner may read.
    #[test]
    fn survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = Secrets::load_or_create(dir.path()).unwrap();
        let second = Secrets::load_or_create(dir.path()).unwrap();
        assert_eq!(first.reset_key, second.reset_key);
        assert_eq!(first.cid_key, second.cid_key);
        let mode = fs::metadata(dir.path().join(FILE_NAME))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
