//! A daemon of a few lines, which does as it is told with the next connection.

use std::{
    fmt,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use fabric_core::testing::packets::Generator;
use fabric_proto::cni::{FRAME_BYTES_MAX, Response};

use crate::fuzz::call::Call;

/// Its socket, in the folder of its worker.
pub(super) const SOCKET: &str = "cni.sock";

/// How long it waits for a request.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two bytes of a slow answer.
const SLOW_BYTE: Duration = Duration::from_micros(500);
/// Bytes that come slowly; the rest comes at once.
const SLOW_BYTES: usize = 100;
/// How long it keeps a silent connection: longer than STATUS may wait.
const SILENCE: Duration = Duration::from_millis(2_000);
/// One STATUS in so many meets silence, which takes as long as STATUS waits.
const SILENT_ONE_IN: usize = 40;

/// What becomes of the next connection.
#[derive(Clone, Debug)]
pub(super) enum Behaviour {
    /// There is none: the configuration names a socket that does not exist.
    Absent,
    /// It gets the call's answer in a frame, once the request has been read.
    Answers(Vec<u8>),
    /// As before, byte by byte.
    Slow(Vec<u8>),
    /// It gets these bytes at once, whatever it says.
    Garbage(Vec<u8>),
    /// It gets the beginning of a frame.
    HalfFrame(Vec<u8>),
    /// It gets a length beyond all limits, and some bytes.
    HugeLength(u32),
    /// It is closed at once.
    HangsUp,
    /// It is held, and nothing is said.
    Silent,
}

impl Behaviour {
    pub(super) fn choose(call: &Call, random: &mut Generator) -> Self {
        let is_status = call.variable("CNI_COMMAND") == Some(b"STATUS");
        if is_status && random.one_in(SILENT_ONE_IN) {
            return Self::Silent;
        }
        match random.below(12) {
            0 | 1 => Self::Absent,
            2 => {
                let count = random.below(64);
                // A first byte that is not zero makes a length beyond all limits, or nearly.
                Self::Garbage([vec![1 | random.bits() as u8], random.bytes(count)].concat())
            }
            3 => {
                let mut frame = framed(&call.answer);
                frame.truncate(random.below(frame.len()));
                Self::HalfFrame(frame)
            }
            4 => {
                let lengths = [FRAME_BYTES_MAX as u32 + 1, u32::MAX, 1 << 31];
                Self::HugeLength(lengths[random.below(lengths.len())])
            }
            5 => Self::HangsUp,
            6 => Self::Slow(framed(&call.answer)),
            _ => Self::Answers(framed(&call.answer)),
        }
    }

    /// The socket that the configuration names, in the folder of the worker.
    pub(super) fn socket(&self) -> &'static str {
        match self {
            Self::Absent => "no.sock",
            Self::Answers(_)
            | Self::Slow(_)
            | Self::Garbage(_)
            | Self::HalfFrame(_)
            | Self::HugeLength(_)
            | Self::HangsUp
            | Self::Silent => SOCKET,
        }
    }

    /// What the plugin is told, where that can be read.
    pub(super) fn response(&self, call: &Call) -> Option<Response> {
        match self {
            Self::Answers(_) | Self::Slow(_) => call.response(),
            Self::Absent
            | Self::Garbage(_)
            | Self::HalfFrame(_)
            | Self::HugeLength(_)
            | Self::HangsUp
            | Self::Silent => None,
        }
    }
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "absent",
            Self::Answers(_) => "answers",
            Self::Slow(_) => "slow",
            Self::Garbage(_) => "garbage",
            Self::HalfFrame(_) => "half a frame",
            Self::HugeLength(_) => "huge length",
            Self::HangsUp => "hangs up",
            Self::Silent => "silent",
        })
    }
}

fn framed(json: &[u8]) -> Vec<u8> {
    let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), json].concat()
}

/// The thread that listens; it ends with the process.
pub(super) struct Daemon {
    next: Arc<Mutex<Behaviour>>,
}

impl Daemon {
    pub(super) fn start(socket: &Path) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(socket)
            .with_context(|| format!("cannot listen on {}", socket.display()))?;
        let next = Arc::new(Mutex::new(Behaviour::HangsUp));
        let told = Arc::clone(&next);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let behaviour = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // Of a plugin that has gone meanwhile nothing more is to be heard.
                let _ = attend(stream, &behaviour);
            }
        });
        Ok(Self { next })
    }

    pub(super) fn behave(&self, behaviour: Behaviour) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }
}

fn attend(mut stream: UnixStream, behaviour: &Behaviour) -> std::io::Result<()> {
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    match behaviour {
        Behaviour::Absent | Behaviour::HangsUp => return Ok(()),
        Behaviour::Garbage(bytes) => return stream.write_all(bytes),
        Behaviour::Answers(_)
        | Behaviour::Slow(_)
        | Behaviour::HalfFrame(_)
        | Behaviour::HugeLength(_)
        | Behaviour::Silent => read_request(&mut stream)?,
    }
    match behaviour {
        Behaviour::Slow(frame) => {
            let (slow, fast) = frame.split_at(frame.len().min(SLOW_BYTES));
            for byte in slow {
                stream.write_all(&[*byte])?;
                thread::sleep(SLOW_BYTE);
            }
            stream.write_all(fast)
        }
        Behaviour::HugeLength(length) => {
            stream.write_all(&length.to_be_bytes())?;
            stream.write_all(b"{\"outcome\":\"done\"}")
        }
        Behaviour::Silent => {
            stream.set_read_timeout(Some(SILENCE))?;
            // Returns when the plugin has had enough.
            stream.read(&mut [0]).map(drop)
        }
        Behaviour::Answers(bytes) | Behaviour::HalfFrame(bytes) => stream.write_all(bytes),
        Behaviour::Absent | Behaviour::HangsUp | Behaviour::Garbage(_) => Ok(()),
    }
}

fn read_request(stream: &mut UnixStream) -> std::io::Result<()> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    let mut body = vec![0; length.min(FRAME_BYTES_MAX)];
    stream.read_exact(&mut body)
}
