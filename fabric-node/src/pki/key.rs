//! The name of a public key: SHA-256 of its SubjectPublicKeyInfo, in which a certificate carries it.

use std::{fmt, str::FromStr};

use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

/// Bytes of SHA-256.
const HASH_BYTES: usize = 32;

/// SHA-256 of a SubjectPublicKeyInfo in DER (RFC 5280 section 4.1.2.7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash([u8; HASH_BYTES]);

impl KeyHash {
    /// Of a SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn of_spki(der: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
        let mut hash = [0; HASH_BYTES];
        for (to, from) in hash.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        Self(hash)
    }

    /// Of the key in a certificate; `None` if it is no certificate.
    #[must_use]
    pub fn of_certificate(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Self::of_spki(certificate.public_key().raw))
    }

    /// Reads 64 hexadecimal digits, in either case.
    ///
    /// # Errors
    ///
    /// One line saying what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a SHA-256 in hexadecimal: 64 digits");
        let digits: Vec<u8> = text
            .chars()
            .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
            .collect::<Option<_>>()
            .ok_or_else(wrong)?;
        if digits.len() != 2 * HASH_BYTES {
            return Err(wrong());
        }
        let mut hash = [0; HASH_BYTES];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
            *byte = pair.iter().fold(0, |byte, digit| byte << 4 | digit);
        }
        Ok(Self(hash))
    }
}

impl FromStr for KeyHash {
    type Err = String;

    /// As [`Self::parse`].
    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What is printed is read again, and nothing else is.
    #[test]
    fn text_and_back() {
        let hash = KeyHash::of_spki(b"abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash.to_string(), text, "FIPS 180-4, the example of `abc`");
        assert_eq!(KeyHash::parse(text).unwrap(), hash);
        assert_eq!(KeyHash::parse(&text.to_uppercase()).unwrap(), hash);
        for wrong in [
            "",
            "ba78",
            &text[1..],
            &format!("{text}00"),
            &text.replace('b', "x"),
        ] {
            assert!(KeyHash::parse(wrong).unwrap_err().contains("64 digits"));
        }
    }
}
