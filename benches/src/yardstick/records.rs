//! The ceiling's format: packets as one stream of bytes, cut into sealed records of equal size.
//!
//! Comes in: packets behind their virtio headers. Goes out: batches of records, each one UDP payload;
//! and the way back. Never done here: sending anything twice.
//!
//! A record is its number (8 bytes, little-endian, also the nonce), where in it the first packet
//! begins (2 bytes), then bytes of the stream, sealed, and the tag. In the stream, a packet has its
//! length (4 bytes) and its virtio header in front. A record that is missing costs the packets that
//! it has a part of, and no others.

use anyhow::{Context as _, ensure};
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use fabric_core::offload::VnetHeader;
use fabric_node::sys::tun::READ_BYTES_MAX;

/// Number and start of a record, in the clear (bytes).
const CLEAR_BYTES: usize = 8 + 2;
/// Tag of AES-GCM (bytes).
const TAG_BYTES: usize = 16;
/// In the place of a start: no packet begins in this record.
const NO_START: u16 = u16::MAX;
/// Length of a packet with its virtio header (bytes).
const LENGTH_BYTES: usize = 4;
/// The longest packet with all that stands in front of it (bytes).
const FRAME_BYTES_MAX: usize = LENGTH_BYTES + VnetHeader::LEN + READ_BYTES_MAX;

/// A key and the direction that its nonces are for: two directions under one key must never share a
/// nonce.
fn nonce(direction: u8, number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[0] = direction;
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn aes_128(key: &[u8; 16]) -> anyhow::Result<LessSafeKey> {
    Ok(LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key)?))
}

/// Makes records of packets.
pub struct Sealer {
    key: LessSafeKey,
    direction: u8,
    next_number: u64,
    record_bytes: usize,
    records_max: usize,
    /// The stream, as far as it has not been sealed.
    stream: Vec<u8>,
    filled: usize,
    /// Where packets begin in `stream`, in order.
    starts: Vec<usize>,
    batch: Vec<u8>,
}

impl Sealer {
    /// Records of up to `record_bytes` each and `records_max` to a batch; `direction` is another one
    /// for each side.
    ///
    /// # Errors
    ///
    /// A record has no room for anything.
    pub fn new(
        key: &[u8; 16],
        direction: u8,
        record_bytes: usize,
        records_max: usize,
    ) -> anyhow::Result<Self> {
        ensure!(
            record_bytes > CLEAR_BYTES + TAG_BYTES && records_max > 0,
            "records of {record_bytes} bytes, {records_max} to a batch, carry nothing"
        );
        let batch_bytes = record_bytes * records_max;
        Ok(Self {
            key: aes_128(key)?,
            direction,
            next_number: 0,
            record_bytes,
            records_max,
            stream: vec![0; batch_bytes + FRAME_BYTES_MAX],
            filled: 0,
            starts: Vec::new(),
            batch: vec![0; batch_bytes],
        })
    }

    /// Lets `read` put the next packet into place, behind its virtio header; it answers the packet's
    /// length.
    ///
    /// # Errors
    ///
    /// As `read` has them; then nothing was added.
    pub fn add<E>(
        &mut self,
        read: impl FnOnce(&mut [u8; VnetHeader::LEN], &mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let frame = &mut self.stream[self.filled..self.filled + FRAME_BYTES_MAX];
        let (length, rest) = frame.split_at_mut(LENGTH_BYTES);
        let (vnet, packet) = rest.split_at_mut(VnetHeader::LEN);
        let mut header = [0; VnetHeader::LEN];
        let len = VnetHeader::LEN + read(&mut header, packet)?;
        vnet.copy_from_slice(&header);
        length.copy_from_slice(&(len as u32).to_le_bytes());
        self.starts.push(self.filled);
        self.filled += LENGTH_BYTES + len;
        Ok(())
    }

    /// Whether there is enough for a full batch. Packets may be added only while there is not.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.filled >= self.room() * self.records_max
    }

    /// Whether everything was sealed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Seals what one batch takes: records of `record_bytes`, the last one perhaps shorter.
    ///
    /// # Errors
    ///
    /// The cipher refuses, which it does not.
    pub fn seal(&mut self) -> anyhow::Result<&[u8]> {
        let room = self.room();
        let taken = self.filled.min(room * self.records_max);
        let mut starts = self.starts.iter().copied().peekable();
        let mut written = 0;
        for (index, plain) in self.stream[..taken].chunks(room).enumerate() {
            let (first, end) = (index * room, index * room + plain.len());
            while starts.next_if(|start| *start < first).is_some() {}
            let start = match starts.peek() {
                Some(start) if *start < end => u16::try_from(*start - first)?,
                _ => NO_START,
            };
            let len = CLEAR_BYTES + plain.len() + TAG_BYTES;
            let (clear, rest) = self.batch[written..written + len].split_at_mut(CLEAR_BYTES);
            let (sealed, tag) = rest.split_at_mut(plain.len());
            clear[..8].copy_from_slice(&self.next_number.to_le_bytes());
            clear[8..].copy_from_slice(&start.to_le_bytes());
            let nonce = nonce(self.direction, self.next_number);
            self.key.seal_out_of_place_scatter(
                nonce,
                Aad::from(&*clear),
                plain,
                sealed,
                &[],
                tag,
            )?;
            self.next_number += 1;
            written += len;
        }
        self.stream.copy_within(taken..self.filled, 0);
        self.filled -= taken;
        self.starts.retain(|start| *start >= taken);
        self.starts.iter_mut().for_each(|start| *start -= taken);
        Ok(&self.batch[..written])
    }

    fn room(&self) -> usize {
        self.record_bytes - CLEAR_BYTES - TAG_BYTES
    }
}

/// Makes packets of records.
pub struct Opener {
    key: LessSafeKey,
    direction: u8,
    next_number: u64,
    /// The stream from the packet at hand on; `None` while it is not known where one begins.
    stream: Vec<u8>,
    filled: usize,
    in_step: bool,
}

impl Opener {
    /// For records that a [`Sealer`] with the same key and direction made.
    ///
    /// # Errors
    ///
    /// The key is refused.
    pub fn new(key: &[u8; 16], direction: u8) -> anyhow::Result<Self> {
        Ok(Self {
            key: aes_128(key)?,
            direction,
            next_number: 0,
            stream: vec![0; 2 * FRAME_BYTES_MAX],
            filled: 0,
            in_step: false,
        })
    }

    /// Opens one record, and hands every packet that it completes to `deliver`, behind its virtio
    /// header.
    ///
    /// # Errors
    ///
    /// It is none, or was changed on its way.
    pub fn open(&mut self, record: &[u8], mut deliver: impl FnMut(&[u8])) -> anyhow::Result<()> {
        let (clear, rest) = record.split_at_checked(CLEAR_BYTES).context("too short")?;
        let plain_bytes = rest.len().checked_sub(TAG_BYTES).context("too short")?;
        let (sealed, tag) = rest.split_at(plain_bytes);
        let number = u64::from_le_bytes(clear[..8].try_into()?);
        let start = u16::from_le_bytes(clear[8..].try_into()?);
        if number != self.next_number {
            self.in_step = false;
        }
        // Out of step: what is before the first packet that begins here is of one already lost.
        let at = if self.in_step { self.filled } else { 0 };
        let place = self.stream.get_mut(at..at + plain_bytes);
        let nonce = nonce(self.direction, number);
        self.key.open_separate_gather(
            nonce,
            Aad::from(clear),
            sealed,
            tag,
            place.context("too long")?,
        )?;
        self.next_number = number + 1;
        self.filled = at + plain_bytes;
        let mut done = 0;
        if !self.in_step {
            if start == NO_START {
                return Ok(());
            }
            self.in_step = true;
            done = usize::from(start);
        }
        self.deliver_from(done, &mut deliver);
        Ok(())
    }

    fn deliver_from(&mut self, mut done: usize, deliver: &mut impl FnMut(&[u8])) {
        while let Some((length, rest)) = self
            .stream
            .get(done..self.filled)
            .and_then(|left| left.split_first_chunk::<LENGTH_BYTES>())
        {
            let length = u32::from_le_bytes(*length) as usize;
            if length > FRAME_BYTES_MAX {
                // Only the other end can have written that.
                self.in_step = false;
                return;
            }
            let Some(packet) = rest.get(..length) else {
                break;
            };
            deliver(packet);
            done += LENGTH_BYTES + length;
        }
        self.stream.copy_within(done..self.filled, 0);
        self.filled -= done;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const KEY: [u8; 16] = [7; 16];
    const RECORD_BYTES: usize = 200;

    /// Packets of all kinds of lengths, each of them recognisable.
    fn packets() -> Vec<Vec<u8>> {
        [1, 40, 170, 174, 175, 3000, 20, 20, 65_535, 0, 999]
            .into_iter()
            .enumerate()
            .map(|(index, len)| {
                (0..VnetHeader::LEN + len)
                    .map(|place| (place * 31 + index * 7) as u8)
                    .collect()
            })
            .collect()
    }

    /// All records of all packets.
    fn records(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut sealer = Sealer::new(&KEY, 0, RECORD_BYTES, 10).unwrap();
        let mut records = Vec::new();
        let mut flush = |sealer: &mut Sealer| {
            let batch = sealer.seal().unwrap();
            records.extend(batch.chunks(RECORD_BYTES).map(<[u8]>::to_vec));
        };
        for packet in packets {
            let (header, rest) = packet.split_first_chunk().unwrap();
            sealer
                .add(|vnet, place| {
                    *vnet = *header;
                    place[..rest.len()].copy_from_slice(rest);
                    Ok::<_, ()>(rest.len())
                })
                .unwrap();
            while sealer.is_full() {
                flush(&mut sealer);
            }
        }
        while !sealer.is_empty() {
            flush(&mut sealer);
        }
        records
    }

    fn opened(records: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut opener = Opener::new(&KEY, 0).unwrap();
        let mut packets = Vec::new();
        for record in records {
            opener
                .open(record, |packet| packets.push(packet.to_vec()))
                .unwrap();
        }
        packets
    }

    /// Every packet comes out as it went in, in order, and no record is longer than it may be.
    #[test]
    fn packets_come_out_as_they_went_in() {
        let packets = packets();
        let records = records(&packets);
        assert!(records.iter().all(|record| record.len() <= RECORD_BYTES));
        assert_eq!(opened(&records), packets);
    }

    /// A missing record costs the packets it had a part of: all that come out are whole and in order,
    /// and at most four of these packets have a part in one record.
    #[test]
    fn a_missing_record_costs_only_its_packets() {
        let packets = packets();
        let all = records(&packets);
        for missing in 0..all.len() {
            let mut left = all.clone();
            left.remove(missing);
            let out = opened(&left);
            let mut expected = packets.iter();
            assert!(
                out.iter().all(|packet| expected.any(|sent| sent == packet)),
                "without record {missing}"
            );
            assert!(
                out.len() < packets.len() && out.len() + 4 >= packets.len(),
                "without record {missing} only {} came out",
                out.len()
            );
        }
    }

    /// A record that was changed, cut, sealed with another key or for the other direction is refused.
    #[test]
    fn what_was_changed_is_refused() {
        let records = records(&packets());
        for place in 0..records[0].len() {
            let mut changed = records[0].clone();
            changed[place] ^= 1;
            let mut opener = Opener::new(&KEY, 0).unwrap();
            assert!(opener.open(&changed, |_| {}).is_err(), "byte {place}");
        }
        for (key, direction) in [([8; 16], 0), (KEY, 1)] {
            let mut opener = Opener::new(&key, direction).unwrap();
            assert!(opener.open(&records[0], |_| {}).is_err());
        }
        let mut opener = Opener::new(&KEY, 0).unwrap();
        for len in 0..records[0].len() {
            assert!(opener.open(&records[0][..len], |_| {}).is_err());
        }
    }
}
