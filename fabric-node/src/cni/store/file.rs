//! Pure: names and content of record files.
//!
//! A name is `ID@BOOT@ADDRESS[@ADDRESS].record`: 16 hexadecimal digits, the first 8 characters of
//! the boot id, the addresses. The content is one line `fabric-attachment VERSION CRC32 LENGTH` and
//! that many bytes of JSON.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::Record;

/// Version of the content.
const VERSION: &str = "1";
const MAGIC: &str = "fabric-attachment";
const RECORD_SUFFIX: &str = ".record";
const CORRUPT_SUFFIX: &str = ".corrupt";
/// What the name of a file in the making ends with.
pub(super) const UNFINISHED_SUFFIX: &str = ".tmp";
/// Characters of the boot id in a name.
const BOOT_LEN: usize = 8;

/// Why a content is refused.
#[derive(Debug, Error)]
pub(super) enum ContentError {
    #[error("it does not begin with \"{MAGIC} VERSION CRC32 LENGTH\"")]
    Header,
    #[error("its version {0:?} is not {VERSION}: it was written by another release")]
    Version(String),
    #[error("it has {found} bytes of content, not {expected}")]
    Length { found: usize, expected: usize },
    #[error("its checksum is wrong")]
    Checksum,
    #[error("its content makes no sense: {0}")]
    Json(#[from] serde_json::Error),
}

/// The file's bytes.
pub(super) fn encode(record: &Record) -> serde_json::Result<Vec<u8>> {
    let json = serde_json::to_vec(record)?;
    let crc = crc32fast::hash(&json);
    let mut bytes = format!("{MAGIC} {VERSION} {crc:08x} {}\n", json.len()).into_bytes();
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// Reads a file's bytes; any change to them is found.
pub(super) fn decode(bytes: &[u8]) -> Result<Record, ContentError> {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or(ContentError::Header)?;
    let (header, json) = (
        bytes.get(..end).unwrap_or_default(),
        bytes.get(end.saturating_add(1)..).unwrap_or_default(),
    );
    let header = str::from_utf8(header).map_err(|_| ContentError::Header)?;
    let [MAGIC, version, crc, length] = header.split(' ').collect::<Vec<_>>()[..] else {
        return Err(ContentError::Header);
    };
    if version != VERSION {
        return Err(ContentError::Version(version.to_owned()));
    }
    let expected = length.parse().map_err(|_| ContentError::Header)?;
    if json.len() != expected {
        return Err(ContentError::Length {
            found: json.len(),
            expected,
        });
    }
    // Written out again, so that no second spelling of the same number passes.
    if format!("{:08x}", crc32fast::hash(json)) != crc {
        return Err(ContentError::Checksum);
    }
    Ok(serde_json::from_slice(json)?)
}

/// Where an unreadable file goes.
pub(super) fn corrupt(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(CORRUPT_SUFFIX);
    name.into()
}

/// What a file in the folder is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Record(FileName),
    Corrupt(FileName),
    Unfinished,
    /// Not made here.
    Other,
}

impl Name {
    pub(super) fn parse(path: &Path) -> Self {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Self::Other;
        };
        if name.ends_with(UNFINISHED_SUFFIX) {
            return Self::Unfinished;
        }
        let (name, is_corrupt) = match name.strip_suffix(CORRUPT_SUFFIX) {
            Some(name) => (name, true),
            None => (name, false),
        };
        match FileName::parse(name) {
            Some(name) if is_corrupt => Self::Corrupt(name),
            Some(name) => Self::Record(name),
            None => Self::Other,
        }
    }
}

/// What a record's file name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileName {
    pub(super) id: u64,
    boot: String,
    pub(super) addresses: Vec<IpAddr>,
}

impl FileName {
    pub(super) fn of(record: &Record) -> Self {
        Self {
            id: record.id,
            boot: boot_in_name(&record.attached_at.boot),
            addresses: record.addresses.clone(),
        }
    }

    pub(super) fn is_of_boot(&self, boot: &str) -> bool {
        self.boot == boot_in_name(boot)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(RECORD_SUFFIX)?.split('@');
        let id = u64::from_str_radix(parts.next()?, 16).ok()?;
        let boot = parts.next()?.to_owned();
        let addresses = parts
            .map(|part| part.parse().ok())
            .collect::<Option<Vec<_>>>()?;
        Some(Self {
            id,
            boot,
            addresses,
        })
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}@{}", self.id, self.boot)?;
        for address in &self.addresses {
            write!(f, "@{address}")?;
        }
        f.write_str(RECORD_SUFFIX)
    }
}

fn boot_in_name(boot: &str) -> String {
    boot.chars()
        .filter(char::is_ascii_alphanumeric)
        .take(BOOT_LEN)
        .collect()
}
