//! A node's identity on disk: generations that are whole, and a name for the one in use.
//!
//! Comes in: PEM texts. Goes out: files below `state_dir/identity`, 0600 in folders of 0700. A generation
//! is a folder with key, certificate and CA; `current` is a symbolic link to one of them and is replaced
//! by a rename, so key, certificate and CA change together or not at all. The key of a request that is
//! under way is beside them, so that a daemon that starts again goes on with the same request.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};

use crate::pki::{
    files::{FILE_MODE, NodeFiles, Overwrite, PkiError, make_directory, read_limited, write_file},
    key::KeyHash,
};

const CURRENT: &str = "current";
const PENDING_KEY: &str = "pending-key.pem";
const GENERATION_PREFIX: &str = "generation-";
const CA: &str = "ca.pem";
const CERTIFICATE: &str = "node.pem";
const KEY: &str = "node-key.pem";

/// The folder of a node's identity.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

/// A generation that is on disk, in use or not.
#[derive(Clone, Debug)]
pub struct Generation {
    name: String,
    /// Its three files.
    pub files: NodeFiles,
}

impl Folder {
    /// Opens `path`, and makes it where it is missing.
    ///
    /// # Errors
    ///
    /// [`PkiError`] names the folder.
    pub fn open(path: &Path) -> Result<Self, PkiError> {
        make_directory(path)?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// The generation in use, if there is one.
    #[must_use]
    pub fn current(&self) -> Option<Generation> {
        let target = fs::read_link(self.path.join(CURRENT)).ok()?;
        let name = target.to_str()?.to_owned();
        Some(self.generation(name))
    }

    /// Writes a generation that is not in use yet.
    ///
    /// # Errors
    ///
    /// [`PkiError`] names the file, for instance on a full disk; what is in use is as it was.
    pub fn stage(&self, key: &str, certificate: &str, ca: &str) -> Result<Generation, PkiError> {
        let generation = self.generation(self.next_name());
        let NodeFiles {
            ca: ca_path,
            certificate: certificate_path,
            key: key_path,
        } = &generation.files;
        make_directory(&self.path.join(&generation.name))?;
        let written = [
            (key_path, key),
            (certificate_path, certificate),
            (ca_path, ca),
        ]
        .into_iter()
        .try_for_each(|(path, text)| write_file(path, text, FILE_MODE, Overwrite::Yes));
        if let Err(error) = written {
            self.discard(&generation);
            return Err(error);
        }
        Ok(generation)
    }

    /// Takes a generation into use and removes all others, and the key that was pending if it is this one's.
    ///
    /// # Errors
    ///
    /// [`PkiError`]; what was in use is in use then.
    pub fn commit(&self, generation: &Generation) -> Result<(), PkiError> {
        let link = self.path.join(CURRENT);
        let temporary = self.path.join("current.new");
        let failed = |path: &Path, source| PkiError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        };
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&temporary, error));
            }
            Ok(()) | Err(_) => {}
        }
        symlink(&generation.name, &temporary)
            .and_then(|()| fs::rename(&temporary, &link))
            .and_then(|()| fs::File::open(&self.path)?.sync_all())
            .map_err(|error| failed(&link, error))?;
        let pending = read_limited(&self.path.join(PENDING_KEY)).ok();
        if pending.is_some() && pending == read_limited(&generation.files.key).ok() {
            self.discard_pending();
        }
        self.sweep(&generation.name);
        Ok(())
    }

    /// Removes a generation that was not taken into use.
    pub fn discard(&self, generation: &Generation) {
        let path = self.path.join(&generation.name);
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::debug!(path = %path.display(), %error, "not removed");
        }
    }

    /// The key of the request under way; a new one where there is none.
    ///
    /// # Errors
    ///
    /// [`PkiError`] names the file; no key is used that is not on disk.
    pub fn pending_key(&self) -> Result<KeyPair, PkiError> {
        let path = self.path.join(PENDING_KEY);
        if let Ok(found) = read_limited(&path) {
            match KeyPair::from_pem(&String::from_utf8_lossy(&found)) {
                Ok(key) => return Ok(key),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a pending key cannot be read: made anew");
                }
            }
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| PkiError::Io {
            action: "make a key for",
            path: path.clone(),
            source: io::Error::other(error.to_string()),
        })?;
        write_file(&path, &key.serialize_pem(), FILE_MODE, Overwrite::Yes)?;
        Ok(key)
    }

    /// Forgets the key of a request that came to nothing.
    pub fn discard_pending(&self) {
        let path = self.path.join(PENDING_KEY);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "not removed");
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn generation(&self, name: String) -> Generation {
        let dir = self.path.join(&name);
        Generation {
            files: NodeFiles {
                ca: dir.join(CA),
                certificate: dir.join(CERTIFICATE),
                key: dir.join(KEY),
            },
            name,
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| name.starts_with(GENERATION_PREFIX))
            .collect()
    }

    fn next_name(&self) -> String {
        let numbers = self.names();
        let numbers = numbers.iter().filter_map(|name| {
            let number = name.strip_prefix(GENERATION_PREFIX)?;
            number.parse::<u64>().ok()
        });
        let next = numbers.max().map_or(1, |last| last.saturating_add(1));
        format!("{GENERATION_PREFIX}{next}")
    }

    fn sweep(&self, kept: &str) {
        for name in self.names().into_iter().filter(|name| name != kept) {
            self.discard(&self.generation(name));
        }
    }
}

/// The name of a key pair's public half.
#[must_use]
pub fn hash_of(key: &KeyPair) -> KeyHash {
    KeyHash::of_spki(&key.subject_public_key_info())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    /// A generation is in use only once it is committed, then it alone is there, and everything is closed
    /// to others.
    #[test]
    fn generations_replace_each_other_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        let folder = Folder::open(&path).unwrap();
        assert!(folder.current().is_none());
        let first = folder.stage("key 1", "certificate 1", "ca 1").unwrap();
        assert!(folder.current().is_none());
        folder.commit(&first).unwrap();
        let second = folder.stage("key 2", "certificate 2", "ca 2").unwrap();
        let read = |folder: &Folder| {
            let NodeFiles {
                ca,
                certificate,
                key,
            } = folder.current().unwrap().files;
            [ca, certificate, key].map(|path| fs::read_to_string(path).unwrap())
        };
        assert_eq!(read(&folder), ["ca 1", "certificate 1", "key 1"]);
        folder.commit(&second).unwrap();
        let again = Folder::open(&path).unwrap();
        assert_eq!(read(&again), ["ca 2", "certificate 2", "key 2"]);
        assert_eq!(again.names().len(), 1);
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&again.current().unwrap().files.key), 0o600);
        let third = folder.stage("key 3", "certificate 3", "ca 3").unwrap();
        folder.discard(&third);
        assert_eq!(read(&folder), ["ca 2", "certificate 2", "key 2"]);
    }

    /// A pending key outlives the daemon, and goes with the request it was made for.
    #[test]
    fn a_pending_key_is_kept_until_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let key = folder.pending_key().unwrap();
        assert_eq!(mode(&dir.path().join(PENDING_KEY)), 0o600);
        let again = Folder::open(dir.path()).unwrap().pending_key().unwrap();
        assert_eq!(hash_of(&key), hash_of(&again));
        let other = folder.stage("another key", "c", "a").unwrap();
        folder.commit(&other).unwrap();
        assert_eq!(hash_of(&folder.pending_key().unwrap()), hash_of(&key));
        let own = folder.stage(&key.serialize_pem(), "c", "a").unwrap();
        folder.commit(&own).unwrap();
        assert_ne!(hash_of(&folder.pending_key().unwrap()), hash_of(&key));
        fs::write(dir.path().join(PENDING_KEY), "garbage").unwrap();
        folder.pending_key().unwrap();
    }

    /// A folder that cannot be written is named, and what is in use stays.
    #[test]
    fn what_cannot_be_written_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("identity"), dir.path().join("aside"));
        let folder = Folder::open(&path).unwrap();
        let first = folder.stage("key", "certificate", "ca").unwrap();
        folder.commit(&first).unwrap();
        fs::rename(&path, &aside).unwrap();
        fs::write(&path, "in the way").unwrap();
        let error = folder.stage("k", "c", "a").unwrap_err().to_string();
        assert!(error.contains("identity/generation-"), "{error}");
        assert!(
            folder
                .pending_key()
                .unwrap_err()
                .to_string()
                .contains("pending-key.pem")
        );
        assert!(folder.commit(&first).is_err());
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        let current = folder.current().unwrap();
        assert_eq!(fs::read_to_string(current.files.key).unwrap(), "key");
    }
}
