#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

use std::sync::{Barrier, Condvar, Mutex};

use fabric_proto::cni::{Attached, AttachmentKey, PodIdentity, ValidAttachment};
use tempfile::TempDir;

use super::*;
use crate::cni::attach::tests::{
    fake::{Hand, POD, World},
    key,
};

/// A server on a socket of its own.
struct Rig {
    folder: TempDir,
    world: Hand,
    attacher: Arc<Attacher<Hand>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Rig {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::begin();
        let attacher = Arc::new(world.attacher(folder.path()));
        let server = CniServer::bind(&folder.path().join("run/cni.sock")).unwrap();
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        let serving = tokio::spawn(server.serve(Arc::clone(&attacher)));
        Self {
            folder,
            world,
            attacher,
            serving,
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("run/cni.sock")
    }

    async fn send(&self, bytes: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    async fn ask(&self, request: &Request) -> Response {
        let mut stream = self.send(&encode_frame(request).unwrap()).await;
        receive(&mut stream).await
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn receive(stream: &mut UnixStream) -> Response {
    let mut header = [0; FRAME_HEADER_LEN];
    stream.read_exact(&mut header).await.unwrap();
    let mut json = vec![0; frame_length(header).unwrap()];
    stream.read_exact(&mut json).await.unwrap();
    decode_frame(&json).unwrap()
}

fn add(key: AttachmentKey, netns: &str) -> Request {
    Request::Add {
        key,
        netns: netns.into(),
        pod: PodIdentity::default(),
        addresses: Vec::new(),
    }
}

fn code_of(response: &Response) -> u32 {
    match response {
        Response::Failed(failure) => failure.code,
        other => panic!("{other:?}"),
    }
}

/// A door that ADDs wait behind.
#[derive(Default)]
struct Door {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Door {
    fn wait(&self) {
        let open = self.open.lock().unwrap();
        drop(self.changed.wait_while(open, |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// All verbs over the socket, one connection each; after its answer an ADD is an error the second
/// time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_over_the_socket() {
    let rig = Rig::start();
    assert_eq!(rig.ask(&Request::Status).await, Response::Done);
    let Response::Attached(Attached { mtu, addresses }) = rig.ask(&add(key("c1"), POD)).await
    else {
        panic!("ADD failed");
    };
    assert_eq!((mtu, addresses.len()), (1500, 2));
    let check = Request::Check {
        key: key("c1"),
        netns: POD.into(),
        addresses,
    };
    assert_eq!(rig.ask(&check).await, Response::Done);
    // The connection is closed only after the answer is on record.
    let mut stream = rig.send(&encode_frame(&add(key("c1"), POD)).unwrap()).await;
    let again = receive(&mut stream).await;
    assert!(matches!(again, Response::Attached(_)) || code_of(&again) == code::INTERFACE_EXISTS);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(
        code_of(&rig.ask(&add(key("c1"), POD)).await),
        code::INTERFACE_EXISTS
    );
    let gc = Request::Gc {
        network: "fabric".into(),
        valid: Vec::new(),
    };
    assert_eq!(rig.ask(&gc).await, Response::Done);
    assert_eq!(rig.world.attached(), 1, "its namespace lives");
    let del = Request::Del {
        key: key("c1"),
        netns: None,
    };
    assert_eq!(rig.ask(&del).await, Response::Done);
    assert_eq!(rig.ask(&del).await, Response::Done);
    assert_eq!(rig.world.attached(), 0);
}

/// A GC of 16,384 attachments is answered; long frames that are
/// announced and do not come hold up only other long ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_gcs() {
    let rig = Rig::start();
    let valid = (0..16_384).map(|index| ValidAttachment {
        container_id: format!("{index:064}"),
        ifname: "eth0".into(),
    });
    let gc = Request::Gc {
        network: "fabric".into(),
        valid: valid.collect(),
    };
    let frame = encode_frame(&gc).unwrap();
    assert!(frame.len() > FRAME_BYTES_USUAL);
    let mut announced = Vec::new();
    for _ in 0..LONG_FRAMES_MAX {
        announced.push(rig.send(&frame[..FRAME_HEADER_LEN]).await);
    }
    let del = Request::Del {
        key: key("c1"),
        netns: None,
    };
    assert_eq!(rig.ask(&del).await, Response::Done);
    let asking = rig.ask(&gc);
    tokio::pin!(asking);
    let early = timeout(Duration::from_millis(200), &mut asking).await;
    assert!(early.is_err(), "{early:?}");
    drop(announced);
    assert_eq!(asking.await, Response::Done);
}

/// Frames that are too long, empty, no JSON, or another protocol's get an error and cost nothing;
/// half a frame gets nothing; the next plugin is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames() {
    let rig = Rig::start();
    let frame = |json: &[u8]| {
        let length = u32::try_from(json.len()).unwrap();
        [&length.to_be_bytes(), json].concat()
    };
    for bytes in [
        vec![0xff; 4],
        vec![0; 4],
        frame(b"x"),
        frame(b"{}"),
        frame(br#"{"verb":"reboot"}"#),
        frame(br#"{"verb":"del","key":{"network":"n","containerId":"c"}}"#),
        frame(br#"{"verb":"del","key":{"network":"n","containerId":"c","ifname":"e"},"x":1}"#),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let mut stream = rig.send(&bytes).await;
        let answer = receive(&mut stream).await;
        assert_eq!(code_of(&answer), code::DECODE, "{bytes:?}");
    }
    for bytes in [&[][..], &[0, 0], &[0, 0, 0, 9, b'{']] {
        let mut stream = rig.send(bytes).await;
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }
    assert_eq!(rig.ask(&Request::Status).await, Response::Done);
}

/// A plugin that is killed during ADD leaves nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hang_up_during_add() {
    let rig = Rig::start();
    let (door, inside) = (Arc::new(Door::default()), Arc::new(Barrier::new(2)));
    let hook = {
        let (door, inside) = (Arc::clone(&door), Arc::clone(&inside));
        move || {
            inside.wait();
            door.wait();
        }
    };
    *rig.world.0.on_create.lock().unwrap() = Some(Arc::new(hook));
    let stream = rig.send(&encode_frame(&add(key("c1"), POD)).unwrap()).await;
    tokio::task::block_in_place(|| inside.wait());
    drop(stream);
    *rig.world.0.on_create.lock().unwrap() = None;
    door.open();
    while !rig.attacher.is_idle() {
        tokio::task::yield_now().await;
    }
    assert_eq!((rig.world.attached(), rig.world.interfaces()), (0, 0));
    assert!(matches!(
        rig.ask(&add(key("c1"), POD)).await,
        Response::Attached(_)
    ));
}

/// With every place for ADDs taken by one that is stuck, STATUS answers in time and a DEL of another
/// container goes through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stuck_adds_hold_up_nobody_else() {
    let rig = Rig::start();
    assert!(matches!(
        rig.ask(&add(key("old"), POD)).await,
        Response::Attached(_)
    ));
    let door = Arc::new(Door::default());
    let hook = Arc::clone(&door);
    *rig.world.0.on_create.lock().unwrap() = Some(Arc::new(move || hook.wait()));
    let mut stuck = Vec::new();
    for index in 0..REQUESTS_MAX + 4 {
        let netns = format!("/n/{index}");
        let id = crate::sys::netns::NetnsId {
            dev: 4,
            ino: 100 + u64::try_from(index).unwrap(),
        };
        rig.world.add_namespace(&netns, id);
        let frame = encode_frame(&add(key(&format!("c{index}")), &netns)).unwrap();
        stuck.push(rig.send(&frame).await);
    }
    let started = Instant::now();
    assert_eq!(rig.ask(&Request::Status).await, Response::Done);
    assert!(started.elapsed() < Duration::from_secs(2));
    let del = Request::Del {
        key: key("old"),
        netns: None,
    };
    assert_eq!(rig.ask(&del).await, Response::Done);
    door.open();
    for mut stream in stuck {
        assert!(matches!(receive(&mut stream).await, Response::Attached(_)));
    }
}

/// The socket is 0600 in a folder of 0700, a stale one is replaced, a live one is not, and the file
/// goes away with the server.
#[tokio::test]
async fn the_socket_file() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("run/cni.sock");
    let server = CniServer::bind(&socket).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(socket.parent().unwrap()), 0o700);
    let second = CniServer::bind(&socket);
    assert!(matches!(second, Err(ServerError::InUse { .. })));
    drop(server);
    assert!(!socket.exists());
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "stale");
    CniServer::bind(&socket).unwrap();
}

/// A folder that others may write in, and a socket's path that holds something else, are refused and
/// left as they are.
#[tokio::test]
async fn places_that_will_not_do() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let error = CniServer::bind(&folder.path().join("cni.sock")).unwrap_err();
    assert!(error.to_string().contains("mode 777"), "{error}");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"precious").unwrap();
    CniServer::bind(&file).unwrap_err();
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}
