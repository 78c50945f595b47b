//! Takes a stream of bytes apart into records, without copying packets.
//!
//! Comes in: the chunks of one QUIC stream, in order. Goes out: records as runs of slices, ready for
//! a gathering write. Never done here: looking into packets.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use fabric_core::record::{RecordError, STREAM_HEADER_LEN, StreamHeader};

/// Slices that one record is handed out in, at most. A 64 KiB record at the smallest QUIC packet
/// size arrives in about 60 chunks; one cut up further is copied together first.
pub const RECORD_SLICES_MAX: usize = 96;

/// Chunks kept apart, at most: a peer that sends its record byte by byte makes us copy, not hoard.
const CHUNKS_MAX: usize = 512;

/// Pieces of unfinished records that one connection may leave in the buffers they came in.
///
/// A piece of one byte can keep a receive buffer of 66 KiB: 1024 of them are 66 MiB at worst. An
/// honest peer has 16 unfinished records of up to 64 KiB, which are fewer pieces than that.
const CHUNKS_PER_CONNECTION_MAX: usize = 1024;

/// Reassembles the records of one stream.
#[derive(Debug, Default)]
pub struct RecordAssembler {
    chunks: VecDeque<Bytes>,
    buffered: usize,
    header: Option<StreamHeader>,
}

impl RecordAssembler {
    /// Appends the next bytes of the stream.
    pub fn push(&mut self, chunk: Bytes) {
        self.buffered += chunk.len();
        if self.chunks.len() >= CHUNKS_MAX {
            self.join();
        }
        self.chunks.push_back(chunk);
    }

    /// The header of the next record, once all of that record is here.
    ///
    /// The packet is then taken with [`Self::slices`] and [`Self::consume`].
    ///
    /// # Errors
    ///
    /// The stream cannot be read any further: the peer broke the framing.
    pub fn next_record(&mut self) -> Result<Option<StreamHeader>, RecordError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                if self.buffered < STREAM_HEADER_LEN {
                    return Ok(None);
                }
                let mut bytes = [0; STREAM_HEADER_LEN];
                self.copy_front(&mut bytes);
                let header = StreamHeader::decode(bytes)?;
                self.advance(STREAM_HEADER_LEN);
                self.header = Some(header);
                header
            }
        };
        Ok((self.buffered >= header.packet_len as usize).then_some(header))
    }

    /// Copies the first bytes of the record at hand into `prefix`; returns how many there were.
    pub fn copy_prefix(&self, packet_len: usize, prefix: &mut [u8]) -> usize {
        let wanted = prefix.len().min(packet_len);
        let mut filled = 0;
        for chunk in &self.chunks {
            let Some(room) = prefix.get_mut(filled..wanted) else {
                break;
            };
            let n = room.len().min(chunk.len());
            if n == 0 {
                break;
            }
            room[..n].copy_from_slice(&chunk[..n]);
            filled += n;
        }
        filled
    }

    /// The first chunk of the record at hand, where it holds `wanted` bytes in one piece.
    #[must_use]
    pub fn contiguous_prefix(&self, wanted: usize) -> Option<&[u8]> {
        self.chunks.front().and_then(|chunk| chunk.get(..wanted))
    }

    /// Appends the first `len` bytes of the record at hand to `slices`, beginning at `slices[used]`;
    /// returns how many slices are used then, or `None` if they do not suffice.
    pub fn slices<'a>(
        &'a self,
        len: usize,
        slices: &mut [IoSlice<'a>],
        mut used: usize,
    ) -> Option<usize> {
        let mut left = len;
        for chunk in &self.chunks {
            if left == 0 {
                break;
            }
            let n = left.min(chunk.len());
            *slices.get_mut(used)? = IoSlice::new(&chunk[..n]);
            used += 1;
            left -= n;
        }
        Some(used)
    }

    /// Appends the first `len` bytes of the record at hand to `out`.
    pub fn append_to(&self, len: usize, out: &mut Vec<u8>) {
        let mut left = len;
        for chunk in &self.chunks {
            let n = left.min(chunk.len());
            out.extend_from_slice(&chunk[..n]);
            left -= n;
            if left == 0 {
                break;
            }
        }
    }

    /// Drops the record at hand from the front.
    pub fn consume(&mut self) {
        if let Some(header) = self.header.take() {
            self.advance(header.packet_len as usize);
        }
    }

    /// Bytes that wait for the rest of their record.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    /// Pieces that wait for the rest of their record.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Copies together what waits, so that it no longer holds on to the buffers it came in.
    pub fn join(&mut self) {
        if self.chunks.is_empty() {
            return;
        }
        let mut joined = BytesMut::with_capacity(self.buffered);
        for chunk in self.chunks.drain(..) {
            joined.extend_from_slice(&chunk);
        }
        self.chunks.push_back(joined.freeze());
    }

    fn copy_front(&self, out: &mut [u8]) {
        let mut filled = 0;
        for chunk in &self.chunks {
            let n = (out.len() - filled).min(chunk.len());
            out[filled..filled + n].copy_from_slice(&chunk[..n]);
            filled += n;
            if filled == out.len() {
                break;
            }
        }
    }

    fn advance(&mut self, mut n: usize) {
        self.buffered -= n;
        while n > 0 {
            let Some(front) = self.chunks.front_mut() else {
                break;
            };
            if front.len() > n {
                front.advance(n);
                break;
            }
            n -= front.len();
            self.chunks.pop_front();
        }
    }
}

/// Holds the assemblers of one connection to [`CHUNKS_PER_CONNECTION_MAX`].
pub fn join_excess<T>(streams: &mut [T], assembler: impl Fn(&mut T) -> &mut RecordAssembler) {
    let chunks: usize = streams
        .iter_mut()
        .map(|stream| assembler(stream).chunks())
        .sum();
    if chunks > CHUNKS_PER_CONNECTION_MAX {
        streams
            .iter_mut()
            .for_each(|stream| assembler(stream).join());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use fabric_core::offload::Offload;
    use proptest::prelude::*;

    use super::*;

    /// Single bytes on many streams keep few of the buffers they came in, and none of them is lost.
    #[test]
    fn single_bytes_pin_few_buffers() {
        let mut assemblers: Vec<RecordAssembler> = (0..32).map(|_| Default::default()).collect();
        for round in 1..=400 {
            for assembler in &mut assemblers {
                assembler.push(Bytes::from_static(&[0]));
            }
            join_excess(&mut assemblers, |assembler| assembler);
            let chunks: usize = assemblers.iter().map(RecordAssembler::chunks).sum();
            assert!(chunks <= CHUNKS_PER_CONNECTION_MAX, "{chunks}");
            assert!(assemblers.iter().all(|a| a.buffered() == round));
        }
    }

    proptest! {
        /// Records come out as they went in, however the stream was cut into chunks.
        #[test]
        fn reassembles_any_chunking(
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 1..20),
            cuts in prop::collection::vec(1usize..200, 1..200),
        ) {
            let mut stream = Vec::new();
            for packet in &packets {
                let header = StreamHeader {
                    packet_len: u32::try_from(packet.len()).unwrap(),
                    offload: Offload::NONE,
                };
                stream.extend_from_slice(&header.encode());
                stream.extend_from_slice(packet);
            }
            let mut assembler = RecordAssembler::default();
            let mut out = Vec::new();
            let mut rest = stream.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (chunk, tail) = rest.split_at((*cut).min(rest.len()));
                rest = tail;
                assembler.push(Bytes::copy_from_slice(chunk));
                while let Some(header) = assembler.next_record().unwrap() {
                    let mut slices = [IoSlice::new(&[]); RECORD_SLICES_MAX * 4];
                    let used = assembler.slices(header.packet_len as usize, &mut slices, 0).unwrap();
                    let packet: Vec<u8> = slices[..used].iter().flat_map(|s| s.iter().copied()).collect();
                    let mut prefix = [0; 40];
                    let n = assembler.copy_prefix(header.packet_len as usize, &mut prefix);
                    prop_assert_eq!(&prefix[..n], &packet[..n]);
                    out.push(packet);
                    assembler.consume();
                }
            }
            prop_assert_eq!(out, packets);
            prop_assert_eq!(assembler.buffered(), 0);
        }

        /// Joining what waits changes nothing about the records that come out.
        #[test]
        fn joining_changes_nothing(cut in 1usize..300, more in 1usize..50) {
            let header = StreamHeader { packet_len: 300, offload: Offload::NONE };
            let mut stream = header.encode().to_vec();
            stream.extend((0..300u16).map(|n| n as u8));
            let (head, tail) = stream.split_at(cut);
            let mut assembler = RecordAssembler::default();
            assembler.join();
            for part in head.chunks(more) {
                assembler.push(Bytes::copy_from_slice(part));
            }
            prop_assert_eq!(assembler.next_record(), Ok(None));
            assembler.join();
            prop_assert!(assembler.chunks() <= 1);
            assembler.push(Bytes::copy_from_slice(tail));
            prop_assert_eq!(assembler.next_record(), Ok(Some(header)));
            let mut packet = Vec::new();
            assembler.append_to(300, &mut packet);
            prop_assert_eq!(&packet[..], &stream[STREAM_HEADER_LEN..]);
        }

        /// Hostile bytes are refused or wait for more; they never panic and never grow beyond what came.
        #[test]
        fn survives_garbage(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..50)) {
            let mut assembler = RecordAssembler::default();
            let mut received = 0;
            for chunk in chunks {
                received += chunk.len();
                assembler.push(Bytes::from(chunk));
                loop {
                    match assembler.next_record() {
                        Ok(Some(_)) => assembler.consume(),
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                prop_assert!(assembler.buffered() <= received);
            }
        }
    }
}
