//! Frames of the CNI socket, both directions, and the DELs that are kept on disk.

use fabric_core::testing::packets::Generator;
use fabric_proto::cni::{
    FRAME_BYTES_MAX, FRAME_HEADER_LEN, PendingDelete, Request, Response, decode_frame,
    encode_frame, frame_length,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::fuzz::{
    Outcome, Target,
    json::{self, Words},
    mutate,
};

/// A frame with its length; the length is made right in most inputs.
pub(super) struct Frames;

impl Target for Frames {
    fn name(&self) -> &'static str {
        "frames"
    }

    fn make(&self, corpus: &[Vec<u8>], random: &mut Generator) -> Vec<u8> {
        let frame = &corpus[random.below(corpus.len())];
        let mut body = frame.get(FRAME_HEADER_LEN..).unwrap_or_default().to_vec();
        for _ in 0..random.below(4) {
            json::once(random, &mut body, WORDS);
        }
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let mut frame = length.to_be_bytes().to_vec();
        frame.append(&mut body);
        if random.one_in(6) {
            mutate::once(random, &mut frame);
        }
        frame
    }

    fn run(&self, input: &[u8]) -> Result<Outcome, String> {
        let Some((header, body)) = input.split_first_chunk::<FRAME_HEADER_LEN>() else {
            return Ok("no header".into());
        };
        let said = u32::from_be_bytes(*header) as usize;
        let Ok(length) = frame_length(*header) else {
            return if said == 0 || said > FRAME_BYTES_MAX {
                Ok("length refused".into())
            } else {
                Err(format!("length {said} was refused"))
            };
        };
        if length != said || length > FRAME_BYTES_MAX {
            return Err(format!("length {said} was read as {length}"));
        }
        let Some(body) = body.get(..length) else {
            return Ok("half a frame".into());
        };
        Ok(if again::<Request>(body)? {
            "request"
        } else if again::<Response>(body)? {
            "response"
        } else if again::<PendingDelete>(body)? {
            "kept DEL"
        } else {
            "no message"
        }
        .into())
    }

    fn expected(&self) -> &'static [&'static str] {
        &[
            "request",
            "response",
            "kept DEL",
            "no message",
            "length refused",
            "half a frame",
        ]
    }
}

/// What is read is written as a frame that says the same.
fn again<T: DeserializeOwned + Serialize + PartialEq>(body: &[u8]) -> Result<bool, String> {
    let Ok(message) = decode_frame::<T>(body) else {
        return Ok(false);
    };
    // Escapes may make a message larger than it came.
    let Ok(frame) = encode_frame(&message) else {
        return Ok(true);
    };
    match decode_frame::<T>(&frame[FRAME_HEADER_LEN..]) {
        Ok(second) if second == message => Ok(true),
        _ => Err("a message does not come back as it was".into()),
    }
}

const WORDS: Words = Words {
    keys: &[
        "verb",
        "key",
        "network",
        "containerId",
        "ifname",
        "netns",
        "pod",
        "namespace",
        "name",
        "uid",
        "addresses",
        "valid",
        "outcome",
        "mtu",
        "code",
        "msg",
        "details",
        "version",
    ],
    values: &[
        "\"add\"",
        "\"del\"",
        "\"check\"",
        "\"gc\"",
        "\"status\"",
        "\"done\"",
        "\"attached\"",
        "\"failed\"",
        "1",
        "2",
        "[\"10.244.1.5\",\"fd00::5\"]",
        "{\"network\":\"fabric\",\"containerId\":\"c1\",\"ifname\":\"eth0\"}",
        "\"/run/netns/p\"",
    ],
};
