//! Which byte belongs where: each word of 8 bytes is a function of its stream and its place.
//!
//! A byte that is changed, lost, doubled, moved within its stream or strayed from another one is a
//! wrong byte. The function is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
//! Generators, OOPSLA 2014): the word at place n is the n-th number of a generator of the stream's own.

/// The increment of SplitMix64.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bytes that are a function of one place.
const WORD: usize = 8;

/// The number that SplitMix64 gives in the state `state`.
#[must_use]
pub fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// All bytes that a stream may ever carry.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    key: u64,
}

impl Content {
    /// Those of stream number `stream`.
    #[must_use]
    pub fn of_stream(stream: u64) -> Self {
        Self { key: mix(stream) }
    }

    /// Writes the bytes from `offset` on into `buffer`.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let within = (offset % WORD as u64) as usize;
        let mut place = offset / WORD as u64;
        let (head, rest) = buffer.split_at_mut(match within {
            0 => 0,
            _ => (WORD - within).min(buffer.len()),
        });
        if !head.is_empty() {
            head.copy_from_slice(&self.word(place)[within..within + head.len()]);
            place += 1;
        }
        let mut words = rest.chunks_exact_mut(WORD);
        for word in &mut words {
            word.copy_from_slice(&self.word(place));
            place += 1;
        }
        let tail = words.into_remainder();
        tail.copy_from_slice(&self.word(place)[..tail.len()]);
    }

    /// Compares `received` with what belongs at `offset`; `scratch` is at least as long.
    ///
    /// # Errors
    ///
    /// The first byte that is another.
    pub fn check(&self, offset: u64, received: &[u8], scratch: &mut [u8]) -> Result<(), Wrong> {
        let expected = &mut scratch[..received.len()];
        self.fill(offset, expected);
        if received == expected {
            return Ok(());
        }
        let mut pairs = received.iter().zip(&*expected).enumerate();
        let wrong = pairs.find(|(_, (received, expected))| received != expected);
        Err(
            wrong.map_or_else(Wrong::default, |(at, (&received, &expected))| Wrong {
                offset: offset + at as u64,
                received,
                expected,
            }),
        )
    }

    fn word(&self, place: u64) -> [u8; WORD] {
        mix(self.key.wrapping_add(place.wrapping_mul(GAMMA))).to_le_bytes()
    }
}

/// The first wrong byte of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("the byte at offset {offset} is {received:#04x}, not {expected:#04x}")]
pub struct Wrong {
    /// Where it is, counted from the stream's first byte.
    pub offset: u64,
    /// What arrived.
    pub received: u8,
    /// What belongs there.
    pub expected: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The function is SplitMix64 as others compute it: the first numbers for seed 1234567.
    #[test]
    fn words_are_those_of_splitmix64() {
        let expected: [u64; 5] = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        let content = Content { key: 1_234_567 };
        for (place, expected) in expected.into_iter().enumerate() {
            assert_eq!(u64::from_le_bytes(content.word(place as u64)), expected);
        }
    }

    /// A piece has the same bytes wherever it begins and however long it is.
    #[test]
    fn pieces_fit_together() {
        let content = Content::of_stream(3);
        let mut whole = [0; 64];
        content.fill(0, &mut whole);
        for from in 0..whole.len() {
            for to in from..=whole.len() {
                let mut piece = vec![0; to - from];
                content.fill(from as u64, &mut piece);
                assert_eq!(piece, whole[from..to], "{from}..{to}");
            }
        }
    }

    /// A changed byte is found at its offset; a piece that is moved, doubled or of another stream is
    /// found at its first byte or close behind it.
    #[test]
    fn the_first_wrong_byte_is_named() {
        let content = Content::of_stream(3);
        let (mut piece, mut scratch) = ([0; 1000], [0; 1000]);
        content.fill(77, &mut piece);
        assert_eq!(content.check(77, &piece, &mut scratch), Ok(()));
        piece[500] ^= 1;
        let wrong = content.check(77, &piece, &mut scratch);
        assert_eq!(wrong.map_err(|wrong| wrong.offset), Err(577));
        piece[500] ^= 1;
        for (content, offset) in [(content, 69), (content, 78), (Content::of_stream(4), 77)] {
            let wrong = content.check(offset, &piece, &mut scratch);
            assert!(wrong.is_err_and(|wrong| wrong.offset < offset + 8));
        }
    }
}
