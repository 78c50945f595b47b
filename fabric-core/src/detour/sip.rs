//! SipHash-1-3 (Aumasson and Bernstein, 2012) of whole words: without its key nobody can tell which
//! inputs meet.

/// The hash of `words`, each as eight bytes in little-endian order.
pub(super) fn hash<const N: usize>(key: [u64; 2], words: [u64; N]) -> u64 {
    let [k0, k1] = key;
    let mut state = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    for word in words {
        state = take(state, word);
    }
    // What is left of the input is nothing but its length in bytes, in the highest byte.
    let len = (N as u64).wrapping_mul(8);
    let mut state = take(state, len << 56);
    state[2] ^= 0xff;
    for _ in 0..3 {
        state = round(state);
    }
    let [a, b, c, d] = state;
    a ^ b ^ c ^ d
}

fn take(mut state: [u64; 4], word: u64) -> [u64; 4] {
    state[3] ^= word;
    state = round(state);
    state[0] ^= word;
    state
}

fn round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hasher as _};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// With a key of zeros it is the hash of the standard library, which is SipHash-1-3 today.
        #[test]
        fn agrees_with_the_standard_library(words in any::<[u64; 5]>()) {
            let mut hasher = DefaultHasher::new();
            for word in words {
                hasher.write(&word.to_le_bytes());
            }
            prop_assert_eq!(hash([0, 0], words), hasher.finish());
        }

        /// Another key gives another hash.
        #[test]
        fn depends_on_the_key(words in any::<[u64; 2]>(), key in any::<[u64; 2]>()) {
            prop_assume!(key != [0, 0]);
            prop_assert_ne!(hash(key, words), hash([0, 0], words));
        }
    }
}
