//! Made-up frames, many at a time, against the whole server and a kernel of maps.

use std::collections::BTreeMap;

use fabric_core::testing::packets::Generator;

use super::*;
use crate::cni::attach::tests::fake::OTHER;

/// Says how many frames, where the default is too few.
const FRAMES_VARIABLE: &str = "FABRIC_FUZZ_FRAMES";
const FRAMES: u64 = 4_000;
/// Plugins side by side.
const PLUGINS: u64 = 8;
/// Larger than the time that addresses rest (seconds).
const REST_S: u64 = 1_000;

/// What stands in the place of a text or a number of a request.
const PIECES: [&str; 16] = [
    "null",
    "\"\"",
    "\"../../x\"",
    "\"\\u0000\"",
    "\"c1\"",
    "\"c2\"",
    "\"eth1\"",
    "\"/run/netns/pod\"",
    "\"/run/netns/other\"",
    "\"/proc/self/ns/net\"",
    "[\"10.0.0.1\",\"10.0.0.1\"]",
    "[\"255.255.255.255\",\"::\"]",
    "1e400",
    "{\"a\":1,\"a\":2}",
    "[[[[[[[[[[]]]]]]]]]]",
    "\"add\"",
];

fn requests() -> Vec<Request> {
    let mut requests = vec![Request::Status];
    for (id, netns) in [("c1", POD), ("c2", OTHER), ("c3", "/run/netns/gone")] {
        let addresses = Vec::new();
        let del = Request::Del {
            key: key(id),
            netns: None,
        };
        requests.extend([
            add(key(id), netns),
            // As many, or nearly every ADD would find the one before.
            del.clone(),
            del,
            Request::Check {
                key: key(id),
                netns: netns.into(),
                addresses,
            },
            Request::Gc {
                network: "fabric".into(),
                valid: Vec::new(),
            },
        ]);
    }
    requests.push(Request::Add {
        key: key("c4"),
        netns: POD.into(),
        pod: PodIdentity::default(),
        addresses: vec!["192.0.2.1".parse().unwrap()],
    });
    requests
}

/// A frame, a third of them as a plugin would send it.
fn made(requests: &[Request], random: &mut Generator) -> Vec<u8> {
    let request = &requests[random.below(requests.len())];
    let mut frame = encode_frame(request).unwrap();
    match random.below(6) {
        0 | 1 => {}
        2 | 3 => {
            let json = String::from_utf8(frame.split_off(FRAME_HEADER_LEN)).unwrap();
            let mut parts: Vec<&str> = json.split_inclusive([':', ',']).collect();
            let at = random.below(parts.len());
            let piece = format!("{},", PIECES[random.below(PIECES.len())]);
            parts[at] = &piece;
            let json = parts.concat();
            frame = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
            frame.extend_from_slice(json.as_bytes());
        }
        4 => random.mutate(&mut frame),
        _ => frame.truncate(random.below(frame.len())),
    }
    frame
}

/// Sends a frame; the name of what came of it.
async fn exchange(socket: &Path, frame: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // A server that has read a length beyond all limits hangs up on the rest.
    let _ = stream.write_all(frame).await;
    let said = frame
        .first_chunk()
        .map(|header| u32::from_be_bytes(*header));
    let sent = frame.len().saturating_sub(FRAME_HEADER_LEN);
    if said.is_none_or(|said| said as usize > sent) {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    if stream.read_to_end(&mut answer).await.is_err() || answer.is_empty() {
        return "hung up".into();
    }
    let (header, json) = answer.split_first_chunk().unwrap();
    assert_eq!(frame_length(*header).unwrap(), json.len(), "one frame");
    match decode_frame(json).unwrap() {
        Response::Attached(_) => "attached".into(),
        Response::Done => "done".into(),
        Response::Failed(failure) => {
            assert!(!failure.msg.contains("broke off"), "{frame:?}: {failure:?}");
            format!("code {}", failure.code)
        }
    }
}

async fn plugin(socket: PathBuf, number: u64, frames: u64, world: Hand) -> BTreeMap<String, u64> {
    let requests = requests();
    let mut random = Generator::new(number);
    let mut seen = BTreeMap::new();
    for _ in 0..frames {
        let frame = made(&requests, &mut random);
        *seen.entry(exchange(&socket, &frame).await).or_default() += 1;
        world
            .0
            .uptime_s
            .fetch_add(REST_S, std::sync::atomic::Ordering::SeqCst);
    }
    seen
}

/// Whatever eight plugins say at once, each gets one well-formed answer or is hung up on, no thread
/// panics, and afterwards everything can be detached and the server answers as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_frame_is_borne() {
    let rig = Rig::start();
    let frames = std::env::var(FRAMES_VARIABLE).map_or(FRAMES, |text| text.parse().unwrap());
    let mut plugins = JoinSet::new();
    for number in 0..PLUGINS {
        plugins.spawn(plugin(
            rig.socket(),
            number,
            frames / PLUGINS,
            rig.world.clone(),
        ));
    }
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for outcomes in plugins.join_all().await {
        for (outcome, count) in outcomes {
            *seen.entry(outcome).or_default() += count;
        }
    }
    for outcome in [
        "attached", "done", "hung up", "code 6", "code 7", "code 8", "code 100", "code 101",
    ] {
        assert!(
            seen.contains_key(outcome),
            "{outcome} was never reached: {seen:?}"
        );
    }
    for attachment in rig.attacher.attachments() {
        let del = Request::Del {
            key: attachment.key,
            netns: None,
        };
        assert_eq!(rig.ask(&del).await, Response::Done);
    }
    assert_eq!(
        (rig.world.attached(), rig.world.interfaces()),
        (0, 0),
        "{seen:?}"
    );
    while !rig.attacher.is_idle() {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.ask(&Request::Status).await, Response::Done);
}
