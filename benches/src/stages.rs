//! Stages of a packet that the micro-benchmarks and the count of their allocations share.

use std::io::IoSlice;

use aws_lc_rs::{
    aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    error::Unspecified,
};
use bytes::Bytes;
use fabric_core::{offload::Offload, record::StreamHeader};
use fabric_node::tunnel::framing::{RECORD_SLICES_MAX, RecordAssembler};

/// A QUIC packet on a path of MTU 1500, over either family (bytes): 1500 less 48 of headers.
pub const PACKET_BYTES: usize = 1452;
/// Bytes of it that are not sealed: the short header with a connection id of 8 bytes and a packet
/// number of 4 (RFC 9000 section 17.3).
const HEADER_BYTES: usize = 1 + 8 + 4;
/// Its tag (bytes).
const TAG_BYTES: usize = 16;
/// Packet of the record that is taken apart (bytes).
const SUPER_PACKET_BYTES: usize = 65_000;
/// Bytes of a stream in one QUIC packet: what remains beside headers, frame and tag.
const CHUNK_BYTES: usize = 1_410;

/// The cipher of most connections, on packets as QUIC has them.
#[derive(Debug)]
pub struct Cipher {
    key: LessSafeKey,
}

impl Cipher {
    /// With some key.
    ///
    /// # Errors
    ///
    /// The library refuses the key.
    pub fn new() -> Result<Self, Unspecified> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[7; 16])?);
        Ok(Self { key })
    }

    /// Seals a packet of [`PACKET_BYTES`] in place; whether that worked.
    pub fn seal(&mut self, packet: &mut [u8]) -> bool {
        let Some((header, rest)) = packet.split_at_mut_checked(HEADER_BYTES) else {
            return false;
        };
        let Some(place) = rest.len().checked_sub(TAG_BYTES) else {
            return false;
        };
        let (payload, tag) = rest.split_at_mut(place);
        let made = self
            .key
            .seal_in_place_separate_tag(nonce(), Aad::from(&*header), payload);
        made.map(|made| tag.copy_from_slice(made.as_ref())).is_ok()
    }

    /// Opens such a packet in place; whether it is what was sealed.
    pub fn open(&mut self, packet: &mut [u8]) -> bool {
        let Some((header, rest)) = packet.split_at_mut_checked(HEADER_BYTES) else {
            return false;
        };
        let opened = self.key.open_in_place(nonce(), Aad::from(&*header), rest);
        opened.is_ok()
    }
}

/// Nobody attacks a benchmark: one nonce does for all.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// The record of a super-packet in the chunks that it arrives in.
#[must_use]
pub fn arrived() -> Vec<Bytes> {
    let header = StreamHeader {
        packet_len: SUPER_PACKET_BYTES as u32,
        offload: Offload::NONE,
    };
    let mut record = header.encode().to_vec();
    record.resize(record.len() + SUPER_PACKET_BYTES, 7);
    record
        .chunks(CHUNK_BYTES)
        .map(Bytes::copy_from_slice)
        .collect()
}

/// Takes all records out of `chunks`, up to the slices for their writing; how many there were.
pub fn take_apart(assembler: &mut RecordAssembler, chunks: &[Bytes]) -> usize {
    let mut records = 0;
    for chunk in chunks {
        assembler.push(chunk.clone());
        while let Ok(Some(header)) = assembler.next_record() {
            let mut slices = [IoSlice::new(&[]); RECORD_SLICES_MAX];
            let used = assembler.slices(header.packet_len as usize, &mut slices, 0);
            std::hint::black_box((used, &slices));
            assembler.consume();
            records += 1;
        }
    }
    records
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What is sealed opens to what it was, and not once a byte has changed.
    #[test]
    fn sealed_packets_open() {
        let mut cipher = Cipher::new().unwrap();
        let plain = vec![9; PACKET_BYTES];
        let mut packet = plain.clone();
        assert!(cipher.seal(&mut packet));
        assert_ne!(packet[HEADER_BYTES..], plain[HEADER_BYTES..]);
        let mut changed = packet.clone();
        changed[100] ^= 1;
        assert!(!cipher.open(&mut changed));
        assert!(cipher.open(&mut packet));
        let payload = HEADER_BYTES..PACKET_BYTES - TAG_BYTES;
        assert_eq!(packet[payload.clone()], plain[payload]);
        assert!(!cipher.seal(&mut [0; 5]) && !cipher.open(&mut [0; 5]));
    }

    /// The chunks hold one record, again and again.
    #[test]
    fn chunks_hold_one_record() {
        let (mut assembler, chunks) = (RecordAssembler::default(), arrived());
        for _ in 0..3 {
            assert_eq!(take_apart(&mut assembler, &chunks), 1);
        }
        assert_eq!(assembler.buffered(), 0);
    }
}
