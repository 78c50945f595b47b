//! The first message of a peer: a length and protocol buffers.

use fabric_proto::hello::{HELLO_BYTES_MAX, Hello};
use prost::Message as _;

use crate::fuzz::{Outcome, Target};

/// A hello of an authenticated, but broken or hostile peer.
pub(super) struct Hellos;

impl Target for Hellos {
    fn name(&self) -> &'static str {
        "hello"
    }

    fn run(&self, input: &[u8]) -> Result<Outcome, String> {
        if input.len() > HELLO_BYTES_MAX {
            return Ok("too long".into());
        }
        let Ok(hello) = Hello::decode(input) else {
            return Ok("refused".into());
        };
        match Hello::decode(hello.encode_to_vec().as_slice()) {
            Ok(again) if again == hello => Ok("read".into()),
            _ => Err("a hello does not come back as it was".into()),
        }
    }

    fn expected(&self) -> &'static [&'static str] {
        &["read", "refused"]
    }
}
