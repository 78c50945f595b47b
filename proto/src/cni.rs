//! The CNI socket: one request and one response per connection.
//!
//! A frame is a 4-byte big-endian length and that many bytes of JSON, at most [`FRAME_BYTES_MAX`].
//! Where the daemon does not answer, a DEL becomes a file: [`PendingDelete`].

use std::{fmt::Write as _, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Largest frame either side reads (bytes of JSON, the length itself not counted): the list of a GC is
/// as long as the configuration that it came in, of which the plugin reads 4 MiB. The rest is room for
/// what stands around the list.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024 + 64 * 1024;
/// What requests fit in, but for long GCs (bytes): the daemon reads only few longer frames at a time,
/// so that its connections together cannot take much memory.
pub const FRAME_BYTES_USUAL: usize = 64 * 1024;
/// Bytes of the length in front of the JSON.
pub const FRAME_HEADER_LEN: usize = 4;
/// Folder beneath the state directory that holds [`PendingDelete`] files.
pub const PENDING_DELETES_DIR: &str = "pending-deletes";

/// Why a frame was refused.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The length is zero or above [`FRAME_BYTES_MAX`].
    #[error("frame of {0} bytes is outside 1..={FRAME_BYTES_MAX}")]
    Length(usize),
    /// The content is not the JSON of the expected message.
    #[error("frame does not hold the expected message: {0}")]
    Json(#[from] serde_json::Error),
}

/// The frame of `message`: length and JSON, ready to be sent.
///
/// # Errors
///
/// [`FrameError::Length`] when the JSON is larger than either side reads.
pub fn encode_frame<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).map_err(|_| FrameError::Length(json.len()))?;
    if json.len() > FRAME_BYTES_MAX {
        return Err(FrameError::Length(json.len()));
    }
    let mut frame = Vec::with_capacity(FRAME_HEADER_LEN + json.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&json);
    Ok(frame)
}

/// Bytes of JSON that follow `header`.
///
/// # Errors
///
/// [`FrameError::Length`], before anything is allocated for it.
pub fn frame_length(header: [u8; FRAME_HEADER_LEN]) -> Result<usize, FrameError> {
    let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if length == 0 || length > FRAME_BYTES_MAX {
        return Err(FrameError::Length(length));
    }
    Ok(length)
}

/// Reads the JSON of one frame.
///
/// # Errors
///
/// [`FrameError::Json`].
pub fn decode_frame<T: DeserializeOwned>(json: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(json)?)
}

/// A DEL that the daemon could not take: one JSON file in [`PENDING_DELETES_DIR`], named
/// [`PendingDelete::file_name`]. The daemon carries it out and removes the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingDelete {
    /// [`PendingDelete::VERSION`].
    pub version: u32,
    /// The attachment to remove.
    pub key: AttachmentKey,
}

impl PendingDelete {
    /// Version of the file's content.
    pub const VERSION: u32 = 1;
    /// What a finished file's name ends with; others in the folder are unfinished.
    pub const SUFFIX: &str = ".delete";
    /// What an unfinished file's name ends with. One that is older than [`PendingDelete::UNFINISHED_AGE`]
    /// was left behind by a plugin that was killed, and may be removed.
    pub const UNFINISHED_SUFFIX: &str = ".tmp";
    /// No plugin takes this long to write a file.
    pub const UNFINISHED_AGE: Duration = Duration::from_secs(60);
    /// Most finished files the plugin lets pile up.
    pub const FILES_MAX: usize = 10_000;
    /// Largest file the daemon reads (bytes).
    pub const FILE_BYTES_MAX: usize = 64 * 1024;

    /// A request to remove `key`.
    #[must_use]
    pub fn new(key: AttachmentKey) -> Self {
        Self {
            version: Self::VERSION,
            key,
        }
    }

    /// The file name for `key`: the same for every DEL of one attachment, so that repeats do not
    /// pile up, and of fixed length whatever the runtime calls its containers.
    #[must_use]
    pub fn file_name(key: &AttachmentKey) -> String {
        let mut name = String::with_capacity(32 + Self::SUFFIX.len());
        let _ = write!(name, "{:032x}", fnv1a_128(key));
        name.push_str(Self::SUFFIX);
        name
    }
}

/// FNV-1a, 128 bits, over the three parts, each closed by a zero byte, which none of
/// them can contain.
fn fnv1a_128(key: &AttachmentKey) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    [&key.network, &key.container_id, &key.ifname]
        .into_iter()
        .flat_map(|part| part.bytes().chain([0]))
        .fold(OFFSET, |hash, byte| {
            (hash ^ u128::from(byte)).wrapping_mul(PRIME)
        })
}

/// Which interface of which container: the key of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachmentKey {
    /// Name of the network in the CNI configuration.
    pub network: String,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

/// The Kubernetes pod behind a container, where the runtime says so (CNI_ARGS).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodIdentity {
    /// K8S_POD_NAMESPACE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// K8S_POD_NAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// K8S_POD_UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// Attach a pod.
    Add {
        /// The attachment.
        key: AttachmentKey,
        /// CNI_NETNS: path of the pod's network namespace.
        netns: String,
        /// Who the pod is.
        #[serde(default)]
        pod: PodIdentity,
        /// Addresses asked for; empty: the daemon chooses.
        #[serde(default)]
        addresses: Vec<IpAddr>,
    },
    /// Detach a pod. Always succeeds unless the record cannot be written.
    Del {
        /// The attachment.
        key: AttachmentKey,
        /// CNI_NETNS, where it was given.
        #[serde(default)]
        netns: Option<String>,
    },
    /// Verify an attachment against what the runtime believes.
    Check {
        /// The attachment.
        key: AttachmentKey,
        /// CNI_NETNS.
        netns: String,
        /// Addresses in the runtime's prevResult.
        addresses: Vec<IpAddr>,
    },
    /// Could an ADD succeed now?
    Status,
    /// Free what is not listed and whose namespace is gone.
    Gc {
        /// Name of the network.
        network: String,
        /// Attachments of this network that are still valid.
        valid: Vec<ValidAttachment>,
    },
}

/// An attachment that GC leaves alone. The network is not repeated, so that a list takes no more
/// room here than it took in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ValidAttachment {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

impl ValidAttachment {
    /// The key of this attachment in `network`.
    #[must_use]
    pub fn in_network(self, network: &str) -> AttachmentKey {
        AttachmentKey {
            network: network.to_owned(),
            container_id: self.container_id,
            ifname: self.ifname,
        }
    }
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub enum Response {
    /// ADD done.
    Attached(Attached),
    /// The other verbs: done.
    Done,
    /// The request failed.
    Failed(Failure),
}

/// Result of an ADD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// MTU of the pod's interface (bytes).
    pub mtu: u32,
    /// The pod's addresses, IPv4 first; each a single host (/32, /128).
    pub addresses: Vec<IpAddr>,
}

/// A CNI error: code as in the specification (1..=99) or ours (>= 100).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// CNI error code.
    pub code: u32,
    /// One line: what is wrong and where.
    pub msg: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// CNI error codes used by plugin and daemon (CNI specification 1.1.0, "Error").
pub mod code {
    /// Incompatible CNI version.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// Unsupported field in the network configuration.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// Invalid environment variables.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// I/O failure.
    pub const IO: u32 = 5;
    /// Failed to decode content.
    pub const DECODE: u32 = 6;
    /// Invalid network config.
    pub const INVALID_CONFIG: u32 = 7;
    /// Invalid network namespace (libcni's `ErrInvalidNetNS`).
    pub const INVALID_NETNS: u32 = 8;
    /// Try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// The plugin is not available (STATUS).
    pub const NOT_AVAILABLE: u32 = 50;
    /// Not available, and existing containers may have limited connectivity (STATUS).
    pub const LIMITED: u32 = 51;
    /// An error inside the plugin (libcni's `ErrInternal`).
    pub const INTERNAL: u32 = 999;
    /// The interface name is taken in the pod's namespace.
    pub const INTERFACE_EXISTS: u32 = 100;
    /// CHECK found a difference.
    pub const CHECK_FAILED: u32 = 101;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn key(network: &str, container_id: &str, ifname: &str) -> AttachmentKey {
        AttachmentKey {
            network: network.into(),
            container_id: container_id.into(),
            ifname: ifname.into(),
        }
    }

    /// A frame comes out as it went in.
    #[test]
    fn frame_round_trip() {
        let request = Request::Del {
            key: key("net", "c1", "eth0"),
            netns: None,
        };
        let frame = encode_frame(&request).unwrap();
        let (header, json) = frame.split_at(FRAME_HEADER_LEN);
        assert_eq!(
            frame_length(header.try_into().unwrap()).unwrap(),
            json.len()
        );
        assert_eq!(decode_frame::<Request>(json).unwrap(), request);
    }

    /// A length of zero or beyond the limit is refused before anything is read.
    #[test]
    fn frame_length_is_bounded() {
        assert!(frame_length([0; 4]).is_err());
        assert!(frame_length([0xff; 4]).is_err());
        let max = u32::try_from(FRAME_BYTES_MAX).unwrap();
        assert!(frame_length(max.to_be_bytes()).is_ok());
        assert!(frame_length((max + 1).to_be_bytes()).is_err());
    }

    /// A full GC fits: 16,384 attachments of the 64 characters that runtimes give their containers, and
    /// as many of any length as come in 4 MiB of configuration.
    #[test]
    fn long_gcs_fit() {
        for (count, id_len) in [(16_384, 64), (4_000, 1_000)] {
            let valid: Vec<ValidAttachment> = (0..count)
                .map(|index| ValidAttachment {
                    container_id: format!("{index:0>id_len$}"),
                    ifname: "eth0".into(),
                })
                .collect();
            let network = "n".repeat(1024);
            let frame = encode_frame(&Request::Gc { network, valid }).unwrap();
            assert!(frame.len() > FRAME_BYTES_USUAL, "{}", frame.len());
        }
    }

    /// A message too large to be read is not sent.
    #[test]
    fn oversized_message_is_refused() {
        let request = Request::Gc {
            network: "n".repeat(FRAME_BYTES_MAX),
            valid: Vec::new(),
        };
        assert!(matches!(encode_frame(&request), Err(FrameError::Length(_))));
    }

    /// Each part counts on its own: moving a letter from one part to the next changes the name, so
    /// that no DEL can hide another.
    #[test]
    fn pending_delete_names_differ_by_part() {
        let names = [
            key("a", "bc", "d"),
            key("ab", "c", "d"),
            key("a", "b", "cd"),
            key("a", "bc", "e"),
        ]
        .map(|key| PendingDelete::file_name(&key));
        for (index, name) in names.iter().enumerate() {
            assert_eq!(name.len(), 32 + PendingDelete::SUFFIX.len());
            assert!(!names[..index].contains(name));
        }
    }
}
