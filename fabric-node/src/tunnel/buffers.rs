//! Buffers for one 64 KiB read, used again once everything cut from them is gone.
//!
//! Comes in: a request for a buffer, later the buffer with what was read into it. Goes out: exactly
//! those bytes, as [`BytesMut`] to be changed in place or as [`Bytes`]. Memory is bounded: what is not
//! handed back in time is left to the allocator. Never done here: clearing what is used again.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Bytes in a buffer: a record header and the largest packet, rounded up.
pub const BUFFER_BYTES: usize = 66 * 1024;
/// Filled lengths up to this are copied out, so that a ping does not hold 66 KiB (bytes).
const COPY_BYTES_MAX: usize = 2 * 1024;
/// Buffers of either kind that are remembered, in use or free. 128 x 66 KiB = 8.3 MiB per worker and
/// kind; beyond it the oldest is forgotten and freed when its last part is.
const RETIRED_MAX: usize = 128;

/// Memory that `len` bytes out of a [`BufferPool`] keep in use (bytes).
#[must_use]
pub fn footprint(len: usize) -> usize {
    if len > COPY_BYTES_MAX {
        BUFFER_BYTES
    } else {
        len
    }
}

/// A worker's own pool; not shared between threads.
#[derive(Debug, Default)]
pub struct BufferPool {
    /// The empty rests of buffers whose contents were handed out, areas of small packets among them.
    retired: Shelf<BytesMut>,
    /// Whole buffers whose parts were handed out read-only: they keep their length, so that using
    /// one again costs no zeroing.
    frozen: Shelf<Bytes>,
    /// The area that small packets are copied into, behind those that are there.
    small: Option<BytesMut>,
}

/// `buffer`, with the count of its users where it stays for the buffer's life. Else each use would
/// allocate a count when the first part is cut off, and free it with the last.
fn counted(mut buffer: BytesMut) -> BytesMut {
    drop(buffer.split_off(buffer.capacity()));
    buffer
}

impl BufferPool {
    /// An empty buffer with room for [`BUFFER_BYTES`], for reads that set the length. Its memory may
    /// be new or used before; nobody can see which.
    pub fn take_empty(&mut self) -> BytesMut {
        let reclaim = |mut buffer: BytesMut| {
            if buffer.try_reclaim(BUFFER_BYTES) {
                Ok(buffer)
            } else {
                Err(buffer)
            }
        };
        let free = self.retired.take(reclaim);
        free.unwrap_or_else(|| counted(BytesMut::with_capacity(BUFFER_BYTES)))
    }

    /// All that was read into `buffer`, which is left empty with room for [`BUFFER_BYTES`].
    pub fn take_filled(&mut self, buffer: &mut BytesMut) -> BytesMut {
        if buffer.len() <= COPY_BYTES_MAX {
            let filled = self.copy(buffer);
            buffer.clear();
            return filled;
        }
        let mut filled = std::mem::replace(buffer, self.take_empty());
        // What is behind the contents holds on to the memory until they are gone.
        self.retired.lend(filled.split_off(filled.len()));
        filled
    }

    /// A buffer of [`BUFFER_BYTES`], all readable and writable, for reads that begin anywhere in it.
    pub fn take_full(&mut self) -> BytesMut {
        let free = self.frozen.take(Bytes::try_into_mut);
        free.unwrap_or_else(|| counted(BytesMut::zeroed(BUFFER_BYTES)))
    }

    /// The bytes `start..end` of `buffer`, never to be changed; `buffer` is left as a full buffer
    /// again, with anything in it.
    pub fn carve_frozen(&mut self, buffer: &mut BytesMut, start: usize, end: usize) -> Bytes {
        let end = end.min(buffer.len());
        let start = start.min(end);
        if end - start <= COPY_BYTES_MAX {
            return self.copy(&buffer[start..end]).freeze();
        }
        let whole = std::mem::replace(buffer, self.take_full()).freeze();
        let part = whole.slice(start..end);
        self.frozen.lend(whole);
        part
    }

    /// A copy of `bytes` in a shared area.
    pub fn copy(&mut self, bytes: &[u8]) -> BytesMut {
        self.copy_parts(bytes, &[])
    }

    /// A copy of `head` and `tail`, one after the other, in a shared area.
    pub fn copy_parts(&mut self, head: &[u8], tail: &[u8]) -> BytesMut {
        let len = head.len() + tail.len();
        let has_room =
            |area: &mut BytesMut| area.capacity() >= len || area.try_reclaim(BUFFER_BYTES);
        if !self.small.as_mut().is_some_and(has_room) {
            let area = self.take_empty();
            if let Some(full) = self.small.replace(area) {
                self.retired.lend(full);
            }
        }
        let area = self.small.get_or_insert_default();
        area.extend_from_slice(head);
        area.extend_from_slice(tail);
        area.split()
    }
}

/// Buffers of one kind: those in use somewhere, by what is left of them here, and free ones.
#[derive(Debug)]
struct Shelf<T> {
    lent: VecDeque<T>,
    free: Vec<BytesMut>,
}

impl<T> Shelf<T> {
    fn lend(&mut self, rest: T) {
        self.lent.push_back(rest);
        if self.lent.len() + self.free.len() > RETIRED_MAX && self.free.pop().is_none() {
            self.lent.pop_front();
        }
    }

    /// The buffer that came back last: the processor's caches still hold it, where one that waited its
    /// turn behind a hundred others would have to be fetched.
    fn take(&mut self, reclaim: impl Fn(T) -> Result<BytesMut, T>) -> Option<BytesMut> {
        // The oldest are the likeliest to be back. Two looks keep this constant in time, and find
        // buffers faster than they are lent.
        for _ in 0..2 {
            match self.lent.pop_front().map(&reclaim) {
                Some(Ok(buffer)) => self.free.push(buffer),
                Some(Err(in_use)) => self.lent.push_back(in_use),
                None => break,
            }
        }
        self.free.pop()
    }
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self {
            lent: VecDeque::new(),
            free: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A buffer whose contents are gone is used again, empty, as large as ever and with its old bytes
    /// where they were; one whose contents live is left alone.
    #[test]
    fn reuses_only_what_is_free() {
        let mut pool = BufferPool::default();
        let mut buffer = pool.take_empty();
        let first = buffer.as_ptr();
        for len in [BUFFER_BYTES, 5000, BUFFER_BYTES - 1] {
            buffer.resize(len, 7);
            let filled = pool.take_filled(&mut buffer);
            assert_eq!((filled.as_ptr(), filled.len()), (first, len));
            assert_ne!(buffer.as_ptr(), first);
            let other = pool.take_empty();
            assert_ne!(other.as_ptr(), first);
            assert!(filled.iter().all(|b| *b == 7));
            drop(filled);
            buffer = pool.take_empty();
            assert_eq!((buffer.as_ptr(), buffer.len()), (first, 0));
            assert!(buffer.capacity() >= BUFFER_BYTES);
        }
    }

    /// Contents that were cut into pieces come back once the last piece is gone.
    #[test]
    fn waits_for_the_last_piece() {
        let mut pool = BufferPool::default();
        let mut buffer = pool.take_empty();
        let first = buffer.as_ptr();
        buffer.resize(5000, 7);
        let mut filled = pool.take_filled(&mut buffer);
        let piece = filled.split_to(1000).freeze();
        drop(filled);
        assert_ne!(pool.take_empty().as_ptr(), first);
        drop(piece);
        assert_eq!(pool.take_empty().as_ptr(), first);
    }

    /// Bytes handed out read-only stay as they are while their buffer is not used again, and a buffer
    /// that is used again is as long as a new one.
    #[test]
    fn reuses_frozen_buffers_only_when_free() {
        let mut pool = BufferPool::default();
        let mut buffer = pool.take_full();
        let first = buffer.as_ptr();
        buffer[..5000].fill(7);
        let part = pool.carve_frozen(&mut buffer, 10, 5000);
        assert_eq!((part.len(), part.as_ptr()), (4990, first.wrapping_add(10)));
        assert_eq!(buffer.len(), BUFFER_BYTES);
        buffer[..5000].fill(1);
        let other = pool.carve_frozen(&mut buffer, 0, 5000);
        assert!(part.iter().all(|b| *b == 7) && other.iter().all(|b| *b == 1));
        drop(part);
        // Its turn comes again behind the one that was in use when it was looked at.
        let mut seen = Vec::new();
        for _ in 0..3 {
            drop(pool.carve_frozen(&mut buffer, 0, 5000));
            assert_eq!(buffer.len(), BUFFER_BYTES);
            seen.push(buffer.as_ptr());
        }
        assert!(seen.contains(&first));
        assert!(!seen.contains(&other.as_ptr()));
    }

    /// However many buffers are in use, only so many are remembered.
    #[test]
    fn remembers_a_bounded_number() {
        let mut pool = BufferPool::default();
        let mut buffer = pool.take_full();
        let held: Vec<Bytes> = (0..3 * RETIRED_MAX)
            .map(|_| pool.carve_frozen(&mut buffer, 0, 5000))
            .collect();
        assert_eq!(pool.frozen.lent.len(), RETIRED_MAX);
        drop(held);
    }

    /// Areas that small packets were copied into are used again once the last copy is gone, however
    /// many are waiting meanwhile.
    #[test]
    fn areas_of_copies_come_back() {
        let mut pool = BufferPool::default();
        let copies = |pool: &mut BufferPool| -> Vec<BytesMut> {
            (0..1000_u32)
                .map(|n| pool.copy_parts(&n.to_ne_bytes(), &[7; 1000]))
                .collect()
        };
        let first = copies(&mut pool);
        for (n, copy) in (0..1000_u32).zip(&first) {
            assert_eq!(copy[..4], n.to_ne_bytes());
            assert_eq!(copy[4..], [7; 1000]);
        }
        let places: BTreeSet<_> = first.iter().map(|copy| copy.as_ptr()).collect();
        drop(first);
        let again = copies(&mut pool);
        let known = again.iter().filter(|copy| places.contains(&copy.as_ptr()));
        assert!(known.count() > 900);
    }

    /// After a burst that needed many buffers, a few are used again and again.
    #[test]
    fn few_buffers_are_used_after_a_burst() {
        let mut pool = BufferPool::default();
        let mut buffer = pool.take_full();
        let mut carve = || {
            let part = pool.carve_frozen(&mut buffer, 0, 5000);
            (part.as_ptr(), part)
        };
        let burst: Vec<_> = (0..100).map(|_| carve()).collect();
        drop(burst);
        for _ in 0..100 {
            drop(carve());
        }
        let used: BTreeSet<_> = (0..100).map(|_| carve().0).collect();
        assert!(used.len() <= 3, "{}", used.len());
    }

    /// Small packets are copied and leave the buffer where it is.
    #[test]
    fn copies_small_packets() {
        let mut pool = BufferPool::default();
        let mut buffer = pool.take_empty();
        let at = buffer.as_ptr();
        buffer.resize(100, 9);
        let packet = pool.take_filled(&mut buffer);
        assert_eq!((buffer.as_ptr(), buffer.len()), (at, 0));
        buffer.resize(100, 1);
        assert_eq!(&packet[..], &[9; 100]);
    }
}
