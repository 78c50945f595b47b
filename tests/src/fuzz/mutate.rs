//! Changes to bytes that know nothing of their meaning.

use fabric_core::testing::packets::Generator;

/// Largest input that is made by growth (bytes); larger ones are made on purpose, and rarely.
const GROWN_BYTES_MAX: usize = 64 * 1024;

/// Bytes that parsers treat in a way of their own.
const ODD_BYTES: [u8; 16] = [
    0, 1, 0x7f, 0x80, 0xc0, 0xed, 0xf5, 0xff, b'"', b'\\', b'{', b']', b'\n', b'=', b';', b' ',
];

/// Lengths that overflow something, as a 4-byte number in network byte order.
const ODD_LENGTHS: [u32; 8] = [
    0,
    1,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    65_535,
    65_576,
    262_145,
];

/// Changes `input` in one to four places; may splice it with another of the corpus.
pub fn bytes(random: &mut Generator, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    for _ in 0..=random.below(4) {
        once(random, input);
    }
    if random.one_in(8) && !corpus.is_empty() {
        let other = &corpus[random.below(corpus.len())];
        splice(random, input, other);
    }
}

/// Changes `input` in one place.
pub fn once(random: &mut Generator, input: &mut Vec<u8>) {
    let at = random.below(input.len() + 1);
    let is_full = input.len() >= GROWN_BYTES_MAX;
    match random.below(9) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = ODD_BYTES[random.below(ODD_BYTES.len())],
        2 if !is_full => input.insert(at, ODD_BYTES[random.below(ODD_BYTES.len())]),
        3 => drop(input.drain(at..end(random, at, input.len()))),
        4 => input.truncate(at),
        5 if !is_full => {
            let piece = input[at..end(random, at, input.len())].to_vec();
            let times = if random.one_in(16) { 200 } else { 1 };
            for _ in 0..times {
                if input.len() >= GROWN_BYTES_MAX {
                    break;
                }
                input.splice(at..at, piece.iter().copied());
            }
        }
        6 if at + 4 <= input.len() => {
            let length = ODD_LENGTHS[random.below(ODD_LENGTHS.len())];
            input[at..at + 4].copy_from_slice(&length.to_be_bytes());
        }
        7 if !is_full => {
            let count = random.below(16);
            let more = random.bytes(count);
            input.splice(at..at, more);
        }
        _ if at < input.len() => input[at] = random.bits() as u8,
        _ => {}
    }
}

/// The beginning of `input` with the end of `other`.
fn splice(random: &mut Generator, input: &mut Vec<u8>, other: &[u8]) {
    input.truncate(random.below(input.len() + 1));
    input.extend_from_slice(&other[random.below(other.len() + 1)..]);
    input.truncate(GROWN_BYTES_MAX);
}

/// The end of a piece that begins at `at`, mostly a short one.
fn end(random: &mut Generator, at: usize, len: usize) -> usize {
    let longest = if random.one_in(4) { len - at } else { 8 };
    (at + random.below(longest + 1)).min(len)
}
