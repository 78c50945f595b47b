//! Changes to TOML, line by line.

use fabric_core::testing::packets::Generator;

use crate::fuzz::mutate;

/// Tables in tables, far more than a file of ours has.
const DEPTH: usize = 5_000;

/// A file like one of the corpus, with lines of `words`.
pub(super) fn make(corpus: &[Vec<u8>], random: &mut Generator, words: &[&str]) -> Vec<u8> {
    let mut text = corpus[random.below(corpus.len())].clone();
    for _ in 0..random.below(4) {
        let lines: Vec<Vec<u8>> = text
            .split_inclusive(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        let at = random.below(lines.len() + 1);
        let word = words[random.below(words.len())].as_bytes().to_vec();
        let mut lines = lines;
        match random.below(8) {
            0 if at < lines.len() => drop(lines.remove(at)),
            1 if at < lines.len() => lines.insert(at, lines[at].clone()),
            2 if at < lines.len() => lines[at] = word,
            3 => lines.insert(at, word),
            4 if at < lines.len() => digits(random, &mut lines[at]),
            5 if at < lines.len() => mutate::once(random, &mut lines[at]),
            6 if random.one_in(20) => {
                let nested = ["x = ", &"[".repeat(DEPTH), "\n"].concat();
                lines.insert(at, nested.into_bytes());
            }
            _ => mutate::once(random, lines.last_mut().unwrap_or(&mut Vec::new())),
        }
        text = lines.concat();
    }
    text
}

/// Another number in the place of one.
fn digits(random: &mut Generator, line: &mut [u8]) {
    for byte in line.iter_mut().filter(|byte| byte.is_ascii_digit()) {
        if random.one_in(3) {
            *byte = b'0' + random.below(10) as u8;
        }
    }
}
