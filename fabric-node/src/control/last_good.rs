//! The last good desired state on disk, so that a restart forwards before any source answers.
//!
//! Comes in: a [`DesiredState`] that passed all checks. Goes out: the same, after a restart, or an
//! error if a single bit of it changed. Never done here: deciding what is good.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    desired::{DesiredState, KeyHash, NodeSpec},
    file::SourceError,
};
use crate::node_id::NodeId;

/// Why the last good state cannot be kept or used.
#[derive(Debug, Error)]
pub enum LastGoodError {
    /// It cannot be written.
    #[error("cannot write {path}: {source}; check that state_dir is writable and has room")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error(
        "{path} is damaged ({problem}): it is not used; remove it once the state source can be read"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// Another version of the program wrote it.
    #[error("{path} has format {found}, this program reads formats 1 to {FORMAT}: it is not used")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// A state that was good, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The state.
    pub state: DesiredState,
    /// When it was written (whole seconds).
    pub written: SystemTime,
}

impl Saved {
    /// How old it is at `now`, in the largest unit that is not zero.
    #[must_use]
    pub fn age(&self, now: SystemTime) -> String {
        age(self.written, now)
    }
}

/// The file below the state directory.
#[derive(Clone, Debug)]
pub struct LastGood {
    dir: PathBuf,
}

impl LastGood {
    /// Keeps the file in `state_dir`, which is made when the first state is saved.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.to_owned(),
        }
    }

    /// Puts `state` in the place of what was saved before; after a crash either is there, whole.
    ///
    /// # Errors
    ///
    /// [`LastGoodError::Write`]; what was saved before stays.
    pub fn save(&self, state: &DesiredState, now: SystemTime) -> Result<(), LastGoodError> {
        self.replace(&encode(state, now))
            .map_err(|source| LastGoodError::Write {
                path: self.path(),
                source,
            })
    }

    /// What was saved last, if anything was.
    ///
    /// # Errors
    ///
    /// [`LastGoodError`] for what cannot be read or is not what was written.
    pub fn load(&self) -> Result<Option<Saved>, LastGoodError> {
        let path = self.path();
        match fs::read(&path) {
            Ok(bytes) => decode(&bytes, &path).map(Some),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LastGoodError::Read { path, source }),
        }
    }

    /// The state to begin with: what the source says, which is then saved; else what was saved, with
    /// its age in the log.
    ///
    /// # Errors
    ///
    /// The source's error if there is no saved state to fall back on.
    pub fn begin_with(
        &self,
        read: Result<DesiredState, SourceError>,
        now: SystemTime,
    ) -> Result<DesiredState, SourceError> {
        let error = match read {
            Ok(state) => {
                if let Err(error) = self.save(&state, now) {
                    tracing::error!(%error, "the desired state is in force, but a restart will not know it");
                }
                return Ok(state);
            }
            Err(error) => error,
        };
        match self.load() {
            Ok(Some(saved)) => {
                tracing::error!(
                    %error,
                    age = age(saved.written, now),
                    nodes = saved.state.nodes.len(),
                    "the state source cannot be used; the last good state is in force"
                );
                Ok(saved.state)
            }
            Ok(None) => Err(error),
            Err(damage) => {
                tracing::error!(error = %damage, "there is no last good state to fall back on");
                Err(error)
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE_NAME)
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        let temporary = self.dir.join(TEMPORARY_NAME);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, self.path())?;
        // The rename is on disk only when the directory is.
        File::open(&self.dir)?.sync_all()
    }
}

const FILE_NAME: &str = "desired-state.json";
const TEMPORARY_NAME: &str = ".desired-state.json.new";

/// Grows with every change that an older program would misread. Files of all earlier formats are
/// read: 2 has added the hashes of the nodes' keys.
const FORMAT: u32 = 2;

/// The file: a checksum of the body's own encoding, and the body.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    crc32: u32,
    body: Body,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    format: u32,
    written_unix_seconds: u64,
    nodes: Vec<Node>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    id: String,
    underlay: Vec<SocketAddr>,
    pod_cidrs: Vec<IpNet>,
    host_addresses: Vec<IpAddr>,
    /// Not written where there is none, so that a file of format 1 has the checksum it was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    identity_keys: Vec<String>,
}

/// Only the format, for files of other programs.
#[derive(Deserialize)]
struct AnyDocument {
    body: AnyBody,
}

#[derive(Deserialize)]
struct AnyBody {
    format: u32,
}

fn encode(state: &DesiredState, now: SystemTime) -> Vec<u8> {
    let nodes = state.nodes.iter().map(|(id, spec)| Node {
        id: id.to_string(),
        underlay: spec.underlay.clone(),
        pod_cidrs: spec.pod_cidrs.clone(),
        host_addresses: spec.host_addresses.clone(),
        identity_keys: spec.identity_keys.iter().map(KeyHash::to_string).collect(),
    });
    let body = Body {
        format: FORMAT,
        written_unix_seconds: now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        nodes: nodes.collect(),
    };
    let document = Document {
        crc32: checksum(&body),
        body,
    };
    json(&document)
}

fn decode(bytes: &[u8], path: &Path) -> Result<Saved, LastGoodError> {
    let damaged = |problem: String| LastGoodError::Damaged {
        path: path.to_owned(),
        problem,
    };
    let document: Document = serde_json::from_slice(bytes).map_err(|error| {
        match serde_json::from_slice::<AnyDocument>(bytes) {
            Ok(other) if other.body.format > FORMAT => LastGoodError::Format {
                path: path.to_owned(),
                found: other.body.format,
            },
            _ => damaged(error.to_string()),
        }
    })?;
    let Document { crc32, body } = document;
    if checksum(&body) != crc32 {
        return Err(damaged("the checksum does not fit".into()));
    }
    if !(1..=FORMAT).contains(&body.format) {
        return Err(LastGoodError::Format {
            path: path.to_owned(),
            found: body.format,
        });
    }
    let mut state = DesiredState::default();
    for node in body.nodes {
        let spec = NodeSpec {
            underlay: node.underlay,
            pod_cidrs: node.pod_cidrs,
            host_addresses: node.host_addresses,
            identity_keys: (node.identity_keys.iter())
                .map(|text| text.parse())
                .collect::<Result<_, _>>()
                .map_err(damaged)?,
        };
        state
            .nodes
            .insert(NodeId::new(&node.id).map_err(damaged)?, spec);
    }
    Ok(Saved {
        state,
        written: SystemTime::UNIX_EPOCH + Duration::from_secs(body.written_unix_seconds),
    })
}

/// Of the encoding, which the order of the fields fixes: what changes the meaning changes it.
fn checksum(body: &Body) -> u32 {
    crc32fast::hash(&json(body))
}

#[allow(
    clippy::expect_used,
    reason = "strings, numbers and lists: there is nothing that JSON cannot hold"
)]
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data is always JSON")
}

/// For the log: in the largest unit that is not zero.
fn age(written: SystemTime, now: SystemTime) -> String {
    let Ok(age) = now.duration_since(written) else {
        return "unknown: the clock went back".into();
    };
    match age.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3_600 => format!("{}m", seconds / 60),
        seconds @ 3_600..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    fn state() -> DesiredState {
        let spec = NodeSpec {
            underlay: vec![
                "192.0.2.1:7946".parse().unwrap(),
                "[2001:db8::1]:7946".parse().unwrap(),
            ],
            pod_cidrs: vec![
                "10.244.1.0/24".parse().unwrap(),
                "fd00:1::/64".parse().unwrap(),
            ],
            host_addresses: vec!["198.51.100.1".parse().unwrap()],
            identity_keys: vec!["0a".repeat(32).parse().unwrap()],
        };
        let mut other = spec.clone();
        other.pod_cidrs.clear();
        other.identity_keys.clear();
        DesiredState {
            nodes: [
                (NodeId::new("worker-a").unwrap(), spec),
                (NodeId::new("worker-b").unwrap(), other),
            ]
            .into(),
        }
    }

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn unreadable() -> SourceError {
        SourceError::Directory {
            path: "/nodes.d".into(),
            source: io::ErrorKind::NotFound.into(),
        }
    }

    /// What was saved last comes back exactly, and nothing else is left in the directory.
    #[test]
    fn what_was_saved_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let last_good = LastGood::new(&dir.path().join("new/state"));
        assert_eq!(last_good.load().unwrap(), None);
        last_good.save(&DesiredState::default(), noon()).unwrap();
        last_good.save(&state(), noon()).unwrap();
        let wanted = Saved {
            state: state(),
            written: noon(),
        };
        assert_eq!(last_good.load().unwrap(), Some(wanted));
        assert_eq!(fs::read_dir(&last_good.dir).unwrap().count(), 1);
    }

    /// Each single flipped bit and each truncation is noticed, or changes nothing of the meaning.
    #[test]
    fn damage_is_noticed() {
        let path = Path::new("/state/desired-state.json");
        let whole = encode(&state(), noon());
        let good = decode(&whole, path).unwrap();
        for index in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[index] ^= 1 << bit;
                if let Ok(read) = decode(&bytes, path) {
                    assert_eq!(read, good, "byte {index}, bit {bit}");
                }
            }
            assert!(decode(&whole[..index], path).is_err(), "cut at {index}");
        }
    }

    /// A file of another format is told apart from a damaged one, and both name the file.
    #[test]
    fn another_format_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let last_good = LastGood::new(dir.path());
        let file = last_good.path();
        for (content, wanted) in [
            (
                r#"{"crc32":1,"body":{"format":3,"nodes":{}}}"#,
                "has format 3, this program reads formats 1 to 2: it is not used",
            ),
            (
                r#"{"crc32":1,"body":{"format":1,"written_unix_seconds":1,"nodes":[]}}"#,
                "is damaged (the checksum does not fit): it is not used",
            ),
            ("", "is damaged (EOF while parsing a value at line 1"),
        ] {
            fs::write(&file, content).unwrap();
            let error = last_good.load().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{} {wanted}", file.display())),
                "{error}"
            );
        }
    }

    /// A file that an earlier version of the program wrote is read.
    #[test]
    fn an_earlier_format_is_read() {
        let text = r#"{"crc32":2143273268,"body":{"format":1,"written_unix_seconds":1800000000,"nodes":[{"id":"worker-b","underlay":["192.0.2.1:7946"],"pod_cidrs":[],"host_addresses":[]}]}}"#;
        let read = decode(text.as_bytes(), Path::new("/state/desired-state.json")).unwrap();
        assert_eq!(read.written, noon());
        let names: Vec<&str> = read.state.nodes.keys().map(NodeId::as_str).collect();
        assert_eq!(names, ["worker-b"]);
    }

    /// At start the source wins and is saved; without it the saved state is used; without either,
    /// or with a damaged file, the source's error is what the operator sees.
    #[test]
    fn a_start_falls_back() {
        let dir = tempfile::tempdir().unwrap();
        let last_good = LastGood::new(dir.path());
        let error = last_good.begin_with(Err(unreadable()), noon()).unwrap_err();
        assert!(matches!(error, SourceError::Directory { .. }));
        assert_eq!(last_good.begin_with(Ok(state()), noon()).unwrap(), state());
        let later = noon() + Duration::from_secs(90);
        assert_eq!(
            last_good.begin_with(Err(unreadable()), later).unwrap(),
            state()
        );
        fs::write(last_good.path(), "{}").unwrap();
        assert!(last_good.begin_with(Err(unreadable()), later).is_err());
    }

    /// A state directory that cannot be made is an error with the path, not a panic.
    #[test]
    fn an_unwritable_directory_is_named() {
        let error = LastGood::new(Path::new("/proc/nowhere"))
            .save(&state(), noon())
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("cannot write /proc/nowhere/desired-state.json: "),
            "{error}"
        );
    }

    /// Ages are short, and a clock that went back is admitted.
    #[test]
    fn ages_are_readable() {
        for (seconds, wanted) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (7_200, "2h"),
            (864_000, "10d"),
        ] {
            assert_eq!(age(noon(), noon() + Duration::from_secs(seconds)), wanted);
        }
        assert_eq!(
            age(noon() + Duration::from_secs(1), noon()),
            "unknown: the clock went back"
        );
    }
}
