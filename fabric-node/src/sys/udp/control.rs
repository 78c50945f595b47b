//! Control messages: what goes with payloads, and what came with them (cmsg(3)).
//!
//! Comes in: values to send, or the bytes that the kernel wrote. Goes out: bytes for the kernel, or
//! level, type and data of each message. Never done here: knowing what a message means.

use std::{ffi::c_void, ptr};

/// Bytes of control messages that are sent: a mark (24), a segment length (24) and the larger packet
/// info (40), each with its header and padding, on 64-bit machines.
const SENT_BYTES: usize = 88;
/// Bytes of control messages that are received: the same three, the smaller packet info (32) beside
/// the larger, the count of overruns (24), and room for one of eight bytes that somebody else asked for.
const RECEIVED_BYTES: usize = 168;

/// Control messages to send, aligned as their headers want it.
pub(super) struct Control {
    space: [u64; SENT_BYTES / 8],
    len: usize,
}

impl Control {
    pub(super) fn new() -> Self {
        Self {
            space: [0; SENT_BYTES / 8],
            len: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of all messages.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Where they begin.
    pub(super) fn start(&mut self) -> *mut c_void {
        self.space.as_mut_ptr().cast()
    }

    /// Adds one message.
    ///
    /// # Panics
    ///
    /// There is no room for it, which the size of [`SENT_BYTES`] rules out for what
    /// [`send`](super::send()) adds.
    pub(super) fn push(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        const { assert!(align_of::<libc::cmsghdr>() <= align_of::<u64>()) };
        let data_len = data.len() as libc::c_uint;
        // SAFETY: these two compute lengths from lengths.
        let (taken, len) = unsafe { (libc::CMSG_SPACE(data_len), libc::CMSG_LEN(data_len)) };
        assert!(self.len + taken as usize <= SENT_BYTES);
        // SAFETY: `len` is a multiple of the header's alignment and within `space`, as all earlier
        // messages were padded and fitted; header, data and padding of this one fit, as asserted.
        unsafe {
            let header = self
                .space
                .as_mut_ptr()
                .byte_add(self.len)
                .cast::<libc::cmsghdr>();
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = len as _;
            let place = header.byte_add(libc::CMSG_LEN(0) as usize).cast::<u8>();
            ptr::copy_nonoverlapping(data.as_ptr(), place, data.len());
        }
        self.len += taken as usize;
    }
}

/// Room for the control messages of one message, aligned as their headers want it. Zeroed, because
/// the kernel leaves out the padding between them.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct ControlRoom(pub(super) [u8; RECEIVED_BYTES]);

impl ControlRoom {
    pub(super) const EMPTY: Self = Self([0; RECEIVED_BYTES]);
}

/// One control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ControlMessage<'a> {
    /// The protocol that it is of, as in setsockopt(2).
    pub(super) level: libc::c_int,
    /// What it is, by level.
    pub(super) kind: libc::c_int,
    pub(super) data: &'a [u8],
}

/// The control messages at the beginning of `bytes`, up to the first that is not whole.
pub(super) fn control_messages(mut bytes: &[u8]) -> impl Iterator<Item = ControlMessage<'_>> {
    // SAFETY: these two compute lengths from lengths.
    let (data_at, alignment) = unsafe {
        let data_at = libc::CMSG_LEN(0) as usize;
        (data_at, libc::CMSG_SPACE(1) as usize - data_at)
    };
    std::iter::from_fn(move || {
        let header = bytes.get(..size_of::<libc::cmsghdr>())?;
        // SAFETY: so many bytes are there, and a header is integers, which may be any bytes.
        let header: libc::cmsghdr = unsafe { ptr::read_unaligned(header.as_ptr().cast()) };
        #[allow(
            clippy::unnecessary_cast,
            reason = "other C libraries have another type"
        )]
        let len = header.cmsg_len as usize;
        let message = ControlMessage {
            level: header.cmsg_level,
            kind: header.cmsg_type,
            data: bytes.get(data_at..len)?,
        };
        // The last one may come without its padding.
        let next = len.next_multiple_of(alignment).min(bytes.len());
        bytes = bytes.get(next..)?;
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The bytes of two messages, with data of one and of twelve bytes.
    fn two_messages() -> Vec<u8> {
        let mut control = Control::new();
        control.push(1, 2, &[3]);
        control.push(4, 5, &[6; 12]);
        let words = &control.space[..control.len() / 8];
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// What was put in comes out, whether or not the padding of the last message is there.
    #[test]
    fn messages_are_read_as_written() {
        let bytes = two_messages();
        for padding in [0, 4] {
            let read: Vec<_> = control_messages(&bytes[..bytes.len() - padding])
                .map(|message| (message.level, message.kind, message.data.to_vec()))
                .collect();
            assert_eq!(read, [(1, 2, vec![3]), (4, 5, vec![6; 12])]);
        }
    }

    /// Cut at any place, whole messages are read and nothing else; no length in a header makes
    /// anything beyond the end be read, or the reading go on for ever.
    #[test]
    fn what_is_not_whole_is_not_read() {
        let bytes = two_messages();
        let whole = |len| control_messages(&bytes[..len]).count();
        assert_eq!((whole(0), whole(15), whole(16)), (0, 0, 0));
        assert_eq!((whole(17), whole(24), whole(51), whole(52)), (1, 1, 1, 2));
        for lie in (0..64).chain([usize::MAX - 8, usize::MAX - 7, usize::MAX]) {
            let mut bytes = two_messages();
            bytes[..size_of::<usize>()].copy_from_slice(&lie.to_ne_bytes());
            let read: Vec<_> = control_messages(&bytes).collect();
            assert!(read.len() <= 3, "{lie}: {read:?}");
            let first = read.first().map(|message| message.data.len());
            let fits = (data_start()..=bytes.len()).contains(&lie);
            assert_eq!(first, fits.then(|| lie - data_start()), "{lie}");
        }
    }

    fn data_start() -> usize {
        size_of::<libc::cmsghdr>()
    }
}
