//! Files of the daemon's record of attachments, damaged or written by somebody else.

use std::{cell::RefCell, fmt::Write as _, fs, net::IpAddr};

use fabric_core::testing::packets::Generator;
use fabric_node::cni::{
    clock::Moment,
    store::{ATTACHMENTS_DIR, Store},
};
use tempfile::TempDir;

use crate::fuzz::{
    Outcome, Target,
    json::{self, Words},
    mutate,
};

/// First line the name of the file, the rest its content.
pub(super) struct Records;

thread_local! {
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

impl Target for Records {
    fn name(&self) -> &'static str {
        "store"
    }

    fn make(&self, corpus: &[Vec<u8>], random: &mut Generator) -> Vec<u8> {
        let input = &corpus[random.below(corpus.len())];
        let (mut name, content) = split(input);
        let (mut header, mut json) = split(&content);
        if random.one_in(4) {
            mutate::once(random, &mut name);
        }
        for _ in 0..random.below(4) {
            json::once(random, &mut json, WORDS);
        }
        if !random.one_in(3) {
            let mut right = String::new();
            let sum = crc32(&json);
            let _ = write!(right, "fabric-attachment 1 {sum:08x} {}", json.len());
            header = right.into_bytes();
        }
        if random.one_in(4) {
            mutate::once(random, &mut header);
        }
        [name, header, json].join(&b'\n')
    }

    fn run(&self, input: &[u8]) -> Result<Outcome, String> {
        let (name, content) = split(input);
        let Ok(name) = String::from_utf8(name) else {
            return Ok("name is no text".into());
        };
        let is_one_file = !name.is_empty() && name.len() <= 255 && !name.contains(['/', '\0']);
        if !is_one_file || name.starts_with('.') {
            return Ok("no name of a file".into());
        }
        FOLDER.with_borrow_mut(|folder| {
            let folder = match folder {
                Some(folder) => folder,
                None => folder.insert(tempfile::tempdir().map_err(|error| error.to_string())?),
            };
            let done = load(folder, &name, &content);
            // A fault must not be laid at the next input's door.
            let records = folder.path().join(ATTACHMENTS_DIR);
            fs::remove_dir_all(records).map_err(|error| error.to_string())?;
            done
        })
    }

    fn expected(&self) -> &'static [&'static str] {
        &["record", "withheld", "recovered", "left alone"]
    }

    fn per_mille(&self) -> u64 {
        2
    }
}

/// No address that the file's name tells may be forgotten.
fn load(folder: &TempDir, name: &str, content: &[u8]) -> Result<Outcome, String> {
    let records = folder.path().join(ATTACHMENTS_DIR);
    let io = |error: std::io::Error| error.to_string();
    fs::create_dir_all(&records).map_err(io)?;
    fs::write(records.join(name), content).map_err(io)?;
    let now = Moment {
        boot: "0a1b2c3d-0000".into(),
        uptime_s: 1_000,
        wall_s: 1_000_000,
    };
    let (_store, loaded) = Store::open(folder.path(), &now).map_err(|error| error.to_string())?;
    let mut known: Vec<IpAddr> = [loaded.withheld.as_slice(), &loaded.recovered].concat();
    known.extend(loaded.records.iter().flat_map(|record| &record.addresses));
    if let Some(missing) = promised(name).find(|address| !known.contains(address)) {
        return Err(format!("{missing} is forgotten"));
    }
    Ok(match loaded {
        loaded if !loaded.records.is_empty() => "record",
        loaded if !loaded.withheld.is_empty() => "withheld",
        loaded if !loaded.recovered.is_empty() => "recovered",
        _ => "left alone",
    }
    .into())
}

/// The addresses of a name that is a record's: `ID@BOOT@ADDRESS[@ADDRESS].record[.corrupt]`.
fn promised(name: &str) -> impl Iterator<Item = IpAddr> {
    let stem = name.strip_suffix(".corrupt").unwrap_or(name);
    let mut parts = stem.strip_suffix(".record").unwrap_or_default().split('@');
    let id = parts.next().unwrap_or_default();
    let is_id = u64::from_str_radix(id, 16).is_ok() && !id.starts_with('+');
    let addresses: Option<Vec<IpAddr>> = parts.skip(1).map(|part| part.parse().ok()).collect();
    addresses.filter(|_| is_id).unwrap_or_default().into_iter()
}

fn split(input: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let end = input.iter().position(|byte| *byte == b'\n');
    let end = end.unwrap_or(input.len());
    let rest = input.get(end + 1..).unwrap_or_default();
    (input[..end].to_vec(), rest.to_vec())
}

/// CRC-32 of IEEE 802.3, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |mut sum, byte| {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = sum & 1;
            sum = (sum >> 1) ^ (0xedb8_8320 * carry);
        }
        sum
    })
}

const WORDS: Words = Words {
    keys: &[
        "id",
        "key",
        "network",
        "containerId",
        "ifname",
        "pod",
        "netns",
        "netnsId",
        "dev",
        "ino",
        "addresses",
        "attachedAt",
        "boot",
        "uptimeS",
        "wallS",
        "state",
        "is",
        "answered",
        "at",
    ],
    values: &[
        "1",
        "\"planned\"",
        "\"attached\"",
        "\"released\"",
        "\"0a1b2c3d-0000\"",
        "[\"10.244.1.5\",\"fd00::5\"]",
        "[\"10.244.1.6\"]",
    ],
};
