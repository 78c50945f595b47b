//! The form of netlink messages: headers in host byte order, attributes that may hold attributes.

/// A message begun in a buffer; its length is filled in when it ends.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

/// Bytes of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// Bytes of `struct nlattr`.
const ATTRIBUTE_HEADER_LEN: usize = 4;
/// `NLA_F_NESTED` (linux/netlink.h).
const NESTED: u16 = 1 << 15;
/// `NLA_F_NESTED | NLA_F_NET_BYTEORDER`: bits that are no part of an attribute's kind.
const KIND_MASK: u16 = !(0b11 << 14);

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

impl Writer {
    /// Appends a message of `kind` with `struct nfgenmsg` of the given family and resource, and what `body`
    /// writes.
    pub fn message(
        &mut self,
        kind: u16,
        flags: u16,
        (family, resource): (u8, u16),
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        // Sequence number and sender: nothing else is under way on the socket.
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        body(self);
        let len = u32::try_from(self.bytes.len().saturating_sub(start)).unwrap_or(u32::MAX);
        if let Some(place) = self
            .bytes
            .get_mut(start..)
            .and_then(<[u8]>::first_chunk_mut)
        {
            *place = len.to_ne_bytes();
        }
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.open(kind, |writer| writer.bytes.extend_from_slice(value));
    }

    /// Appends an attribute that is a string, with its closing zero.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.open(kind, |writer| {
            writer.bytes.extend_from_slice(value.as_bytes());
            writer.bytes.push(0);
        });
    }

    /// Appends an attribute that is a number in network byte order.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Appends an attribute that holds what `body` writes.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.open(kind | NESTED, body);
    }

    fn open(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        body(self);
        let len = u16::try_from(self.bytes.len().saturating_sub(start)).unwrap_or(u16::MAX);
        if let Some(place) = self
            .bytes
            .get_mut(start..)
            .and_then(<[u8]>::first_chunk_mut)
        {
            *place = len.to_ne_bytes();
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The messages.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// One message of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Kind, and everything after `struct nlmsghdr`.
    Data(u16, &'a [u8]),
    /// A request was carried out.
    Acknowledged,
    /// A request was refused with an error number.
    Refused(i32),
    /// A dump is complete.
    Done,
}

/// The messages in `bytes`, up to the first that is not whole.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*bytes.first_chunk()?);
        let len = usize::try_from(len).ok().filter(|len| *len >= HEADER_LEN)?;
        let message = bytes.get(..len)?;
        let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
        let payload = message.get(HEADER_LEN..)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(match kind {
            NLMSG_DONE => match error_number(payload) {
                Some(0) | None => Message::Done,
                Some(errno) => Message::Refused(errno),
            },
            NLMSG_ERROR => match error_number(payload)? {
                0 => Message::Acknowledged,
                errno => Message::Refused(errno),
            },
            kind => Message::Data(kind, payload),
        })
    })
}

/// The kernel tells errors as negative numbers.
fn error_number(payload: &[u8]) -> Option<i32> {
    let number = i32::from_ne_bytes(*payload.first_chunk()?);
    Some(number.saturating_neg())
}

/// The attributes in `bytes`, kind and value, up to the first that is not whole.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(ATTRIBUTE_HEADER_LEN..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & KIND_MASK, value))
    })
}

/// The first attribute of `kind`.
#[must_use]
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is written is read again, nested attributes too.
        #[test]
        fn what_is_written_is_read(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6),
        ) {
            let mut writer = Writer::default();
            for number in 0..2 {
                writer.message(77 + number, 1, (2, 10), |writer| {
                    for value in &values {
                        writer.nest(5, |writer| writer.attribute(9, value));
                    }
                    writer.number(1, 0x0102_0304);
                });
            }
            let bytes = writer.finish();
            let read: Vec<_> = messages(&bytes).collect();
            prop_assert_eq!(read.len(), 2);
            for (number, message) in (77..).zip(read) {
                let Message::Data(kind, payload) = message else {
                    return Err(TestCaseError::fail("no data"));
                };
                prop_assert_eq!(kind, number);
                prop_assert_eq!(&payload[..4], &[2, 0, 0, 10]);
                let inner: Vec<_> = attributes(&payload[4..])
                    .filter(|(kind, _)| *kind == 5)
                    .map(|(_, value)| attribute(value, 9).map(<[u8]>::to_vec))
                    .collect();
                prop_assert_eq!(inner, values.iter().cloned().map(Some).collect::<Vec<_>>());
                prop_assert_eq!(attribute(&payload[4..], 1), Some(&[1, 2, 3, 4][..]));
            }
        }

        /// No bytes make the readers panic or go on for ever.
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).count() <= bytes.len());
            prop_assert!(attributes(&bytes).take(1000).count() <= 50);
        }
    }
}
