//! Certificates and keys on disk.
//!
//! A file appears whole or not at all: written to a temporary beside it, fsynced, renamed, and the
//! directory fsynced. All files are 0600, directories that are made 0700. Nothing that
//! exists is replaced unless [`Overwrite::Yes`] is said; a file that has the content already is left.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::authority::{self, Authority, AuthorityError, NodeCredentials};
use crate::node_id::NodeId;

/// Largest PEM file that is read (bytes): hundreds of certificates.
pub const PEM_BYTES_MAX: u64 = 1024 * 1024;
/// The CA's certificate in a PKI directory, and beside a node's own.
pub const CA_CERTIFICATE: &str = "ca.pem";
/// The CA's private key in a PKI directory.
pub const CA_KEY: &str = "ca-key.pem";
pub(super) const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// Whether files that exist may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// Refuse.
    No,
    /// Replace them.
    Yes,
}

/// Why the files could not be read or written.
#[derive(Debug, Error)]
pub enum PkiError {
    /// It would have been overwritten.
    #[error(
        "{path} exists; nothing was changed: say --force to replace it (a replaced CA means that every node must be issued anew)"
    )]
    Exists {
        /// The file in the way.
        path: PathBuf,
    },
    /// There is no CA here.
    #[error(
        "there is no CA in {dir}: {path} is missing; make one with `fabric pki init --dir {dir}`"
    )]
    NoAuthority {
        /// The PKI directory.
        dir: PathBuf,
        /// The missing file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The authority refused.
    #[error("{dir}: {source}")]
    Authority {
        /// The PKI directory.
        dir: PathBuf,
        /// Why.
        source: AuthorityError,
    },
}

/// Where a node's three files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFiles {
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The node's certificate.
    pub certificate: PathBuf,
    /// The node's private key.
    pub key: PathBuf,
}

impl NodeFiles {
    /// The files of `node` in `dir`.
    #[must_use]
    pub fn within(dir: &Path, node: &NodeId) -> Self {
        Self {
            ca: dir.join(CA_CERTIFICATE),
            certificate: dir.join(format!("{node}.pem")),
            key: dir.join(format!("{node}-key.pem")),
        }
    }
}

/// Makes a CA in `dir`, which is made where it is missing.
///
/// # Errors
///
/// [`PkiError`]; nothing is changed when a CA exists and `overwrite` is [`Overwrite::No`].
pub fn init_dir(
    dir: &Path,
    name: &str,
    days: u32,
    overwrite: Overwrite,
) -> Result<Authority, PkiError> {
    ensure_authority_absent(dir, overwrite)?;
    let made = authority::init(name, days).map_err(|source| PkiError::Authority {
        dir: dir.to_owned(),
        source,
    })?;
    make_directory(dir)?;
    write_file(&dir.join(CA_KEY), made.key_pem(), FILE_MODE, overwrite)?;
    write_file(
        &dir.join(CA_CERTIFICATE),
        made.certificate_pem(),
        FILE_MODE,
        overwrite,
    )?;
    Ok(made)
}

/// Refuses where `dir` holds a CA and `overwrite` is [`Overwrite::No`].
///
/// # Errors
///
/// [`PkiError::Exists`].
pub fn ensure_authority_absent(dir: &Path, overwrite: Overwrite) -> Result<(), PkiError> {
    refuse_existing(&[dir.join(CA_KEY), dir.join(CA_CERTIFICATE)], overwrite)
}

/// Reads the CA in `dir`.
///
/// # Errors
///
/// [`PkiError`].
pub fn load_authority(dir: &Path) -> Result<Authority, PkiError> {
    let read = |name: &str| {
        let path = dir.join(name);
        read_limited(&path).map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                PkiError::NoAuthority {
                    dir: dir.to_owned(),
                    path,
                }
            } else {
                PkiError::Io {
                    action: "read",
                    path,
                    source,
                }
            }
        })
    };
    let (certificate, key) = (read(CA_CERTIFICATE)?, read(CA_KEY)?);
    Authority::from_pem(
        &String::from_utf8_lossy(&certificate),
        &String::from_utf8_lossy(&key),
    )
    .map_err(|source| PkiError::Authority {
        dir: dir.to_owned(),
        source,
    })
}

/// Signs a certificate for `node` with the CA in `dir` and writes its three files to `out`.
///
/// # Errors
///
/// [`PkiError`]; nothing is changed when one of the files exists and `overwrite` is
/// [`Overwrite::No`].
pub fn issue_dir(
    dir: &Path,
    node: &NodeId,
    out: &Path,
    days: u32,
    overwrite: Overwrite,
) -> Result<(NodeFiles, NodeCredentials), PkiError> {
    let authority = load_authority(dir)?;
    let credentials =
        authority::issue(&authority, node, days).map_err(|source| PkiError::Authority {
            dir: dir.to_owned(),
            source,
        })?;
    let files = save_node(&credentials, out, overwrite)?;
    Ok((files, credentials))
}

/// Writes a node's three files to `out`, which is made where it is missing.
///
/// # Errors
///
/// [`PkiError`]; nothing is changed when one of the files exists and `overwrite` is
/// [`Overwrite::No`].
pub fn save_node(
    credentials: &NodeCredentials,
    out: &Path,
    overwrite: Overwrite,
) -> Result<NodeFiles, PkiError> {
    ensure_node_absent(credentials, out, overwrite)?;
    let files = NodeFiles::within(out, &credentials.node);
    make_directory(out)?;
    write_file(&files.key, &credentials.key_pem, FILE_MODE, overwrite)?;
    write_file(
        &files.certificate,
        &credentials.chain_pem,
        FILE_MODE,
        overwrite,
    )?;
    if !has_content(&files.ca, &credentials.ca_pem) {
        write_file(&files.ca, &credentials.ca_pem, FILE_MODE, overwrite)?;
    }
    Ok(files)
}

/// Refuses where `out` holds files of this node, or another CA's certificate, and `overwrite` is
/// [`Overwrite::No`].
///
/// # Errors
///
/// [`PkiError::Exists`].
pub fn ensure_node_absent(
    credentials: &NodeCredentials,
    out: &Path,
    overwrite: Overwrite,
) -> Result<(), PkiError> {
    let files = NodeFiles::within(out, &credentials.node);
    refuse_existing(&[files.key, files.certificate], overwrite)?;
    if has_content(&files.ca, &credentials.ca_pem) {
        return Ok(());
    }
    refuse_existing(&[files.ca], overwrite)
}

/// Reads a file of at most [`PEM_BYTES_MAX`] bytes.
pub(super) fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?
        .take(PEM_BYTES_MAX.saturating_add(1))
        .read_to_end(&mut content)?;
    if content.len() as u64 > PEM_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {PEM_BYTES_MAX} bytes, which no certificate or key is"),
        ));
    }
    Ok(content)
}

fn has_content(path: &Path, content: &str) -> bool {
    read_limited(path).is_ok_and(|found| found == content.as_bytes())
}

fn refuse_existing(paths: &[PathBuf], overwrite: Overwrite) -> Result<(), PkiError> {
    let taken = |path: &&PathBuf| fs::symlink_metadata(path).is_ok();
    match (overwrite, paths.iter().find(taken)) {
        (Overwrite::No, Some(path)) => Err(PkiError::Exists { path: path.clone() }),
        (Overwrite::No, None) | (Overwrite::Yes, _) => Ok(()),
    }
}

pub(super) fn make_directory(dir: &Path) -> Result<(), PkiError> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(dir)
        .map_err(|source| PkiError::Io {
            action: "make the directory",
            path: dir.to_owned(),
            source,
        })
}

pub(super) fn write_file(
    path: &Path,
    content: &str,
    mode: u32,
    overwrite: Overwrite,
) -> Result<(), PkiError> {
    let failed = |source| PkiError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
    file.write_all(content.as_bytes()).map_err(failed)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(mode))
        .map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    match overwrite {
        Overwrite::Yes => file.persist(path).map_err(|e| failed(e.error))?,
        // Checked before, but another process may have been faster.
        Overwrite::No => file.persist_noclobber(path).map_err(|e| {
            if e.error.kind() == io::ErrorKind::AlreadyExists {
                PkiError::Exists {
                    path: path.to_owned(),
                }
            } else {
                failed(e.error)
            }
        })?,
    };
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    /// A CA and a node land on disk with the right modes, and nothing temporary stays.
    #[test]
    fn modes_and_names() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("pki");
        init_dir(&dir, "fabric", 10, Overwrite::No).unwrap();
        let (files, _) = issue_dir(&dir, &node("worker-a"), &dir, 1, Overwrite::No).unwrap();
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join(CA_KEY)), 0o600);
        assert_eq!(mode(&dir.join(CA_CERTIFICATE)), 0o600);
        assert_eq!(mode(&files.key), 0o600);
        assert_eq!(mode(&files.certificate), 0o600);
        let mut names: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            ["ca-key.pem", "ca.pem", "worker-a-key.pem", "worker-a.pem"]
        );
    }

    /// Without --force an existing CA, key, certificate or foreign ca.pem stops everything.
    #[test]
    fn nothing_is_overwritten_unasked() {
        let home = tempfile::tempdir().unwrap();
        let (dir, other, out) = (
            home.path().join("one"),
            home.path().join("two"),
            home.path().join("out"),
        );
        init_dir(&dir, "fabric", 10, Overwrite::No).unwrap();
        init_dir(&other, "fabric", 10, Overwrite::No).unwrap();
        let before = fs::read(dir.join(CA_KEY)).unwrap();
        let again = init_dir(&dir, "fabric", 10, Overwrite::No);
        assert!(matches!(again, Err(PkiError::Exists { .. })));
        assert_eq!(fs::read(dir.join(CA_KEY)).unwrap(), before);

        issue_dir(&dir, &node("a"), &out, 1, Overwrite::No).unwrap();
        let again = issue_dir(&dir, &node("a"), &out, 1, Overwrite::No);
        assert!(matches!(again, Err(PkiError::Exists { .. })));
        let foreign = issue_dir(&other, &node("b"), &out, 1, Overwrite::No);
        assert!(
            matches!(foreign, Err(PkiError::Exists { .. })),
            "ca.pem of another CA"
        );
        assert!(
            !out.join("b-key.pem").exists(),
            "refused before anything was written"
        );
        issue_dir(&dir, &node("b"), &out, 1, Overwrite::No).unwrap();

        init_dir(&dir, "fabric", 10, Overwrite::Yes).unwrap();
        assert_ne!(fs::read(dir.join(CA_KEY)).unwrap(), before);
        issue_dir(&dir, &node("a"), &out, 1, Overwrite::Yes).unwrap();
    }

    /// A missing CA is named together with the command that makes one.
    #[test]
    fn missing_authority() {
        let home = tempfile::tempdir().unwrap();
        let error = load_authority(home.path()).err().unwrap().to_string();
        assert!(
            error.contains("ca.pem is missing") && error.contains("fabric pki init"),
            "{error}"
        );
    }
}
