//! Records on a stream of a peer, cut into chunks anywhere.

use bytes::Bytes;
use fabric_core::record::{RecordError, STREAM_HEADER_LEN, decode_datagram};
use fabric_node::tunnel::framing::RecordAssembler;

use crate::fuzz::{Outcome, Target};

/// The first byte says how large the chunks are; the rest is the stream.
pub(super) struct Tunnel;

/// Where reading a stream ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Waiting,
    Broken,
}

impl Target for Tunnel {
    fn name(&self) -> &'static str {
        "tunnel"
    }

    fn run(&self, input: &[u8]) -> Result<Outcome, String> {
        let Some((&size, stream)) = input.split_first() else {
            return Ok("nothing".into());
        };
        check_datagram(stream)?;
        let expected = naive(stream);
        let found = assembled(stream, usize::from(size).max(1))?;
        if found != expected {
            return Err(format!("{} records, then {:?}", found.0.len(), found.1));
        }
        Ok(match (found.0.len(), found.1) {
            (0, End::Waiting) => "less than a record",
            (0, End::Broken) => "broken at once",
            (_, End::Waiting) => "records",
            (_, End::Broken) => "records, then broken",
        }
        .into())
    }

    fn expected(&self) -> &'static [&'static str] {
        &[
            "records",
            "records, then broken",
            "broken at once",
            "less than a record",
        ]
    }
}

/// The packets of a stream, by the definition of a record alone.
fn naive(mut stream: &[u8]) -> (Vec<Vec<u8>>, End) {
    let mut packets = Vec::new();
    while let Some((header, rest)) = stream.split_first_chunk::<STREAM_HEADER_LEN>() {
        let [l0, l1, l2, l3, flags, reserved, s0, s1] = *header;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let is_cut = flags & 0b110 != 0;
        let has_size = s0 != 0 || s1 != 0;
        // An IPv6 header and the most that its length field can say.
        if !(1..=40 + 65_535).contains(&length)
            || flags > 0b111
            || reserved != 0
            || is_cut != has_size
        {
            return (packets, End::Broken);
        }
        let Some(packet) = rest.get(..length) else {
            break;
        };
        packets.push(packet.to_vec());
        stream = &rest[length..];
    }
    (packets, End::Waiting)
}

fn assembled(stream: &[u8], size: usize) -> Result<(Vec<Vec<u8>>, End), String> {
    let mut assembler = RecordAssembler::default();
    let mut packets = Vec::new();
    for chunk in stream.chunks(size) {
        assembler.push(Bytes::copy_from_slice(chunk));
        loop {
            match assembler.next_record() {
                Ok(Some(header)) => {
                    let mut packet = Vec::new();
                    assembler.append_to(header.packet_len as usize, &mut packet);
                    assembler.consume();
                    packets.push(packet);
                }
                Ok(None) => break,
                Err(_) => return Ok((packets, End::Broken)),
            }
        }
        if assembler.buffered() > stream.len() {
            return Err("it holds more than it was given".into());
        }
    }
    Ok((packets, End::Waiting))
}

fn check_datagram(datagram: &[u8]) -> Result<(), String> {
    let is_good = matches!(datagram, [0 | 1, _, ..]);
    let ok = match decode_datagram(datagram) {
        Ok((offload, packet)) => {
            is_good && offload.gso.is_none() && Some(packet) == datagram.get(1..)
        }
        Err(RecordError::Empty | RecordError::Flags(_)) => !is_good,
        Err(RecordError::Length(_) | RecordError::SegmentSize(_)) => false,
    };
    if ok {
        Ok(())
    } else {
        Err("a datagram was misread".into())
    }
}
