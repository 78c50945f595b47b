//! Who is not let in: wrong certificates, wrong protocols, garbage, floods of beginnings; and who is,
//! meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::unwrap_in_result,
    clippy::print_stdout,
    reason = "a test says what it counted"
)]

mod harness;

use std::{
    io::Write,
    net::UdpSocket,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use fabric_core::{ids::PeerId, testing::packets::Generator};
use fabric_node::{
    node_id::NodeId,
    pki::{
        self, Authority,
        identity::{ALPN, crypto_provider},
    },
    tunnel::membership::PeerTarget,
    tunnel::{
        endpoint::Endpoint,
        membership::{Peer, PeerShared},
        report::PeerState,
    },
};
use harness::{Fabric, Plan, Wire, rogue::Rogue, traffic::tcp_echoes_during, underlay};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::{
    client::ResolvesClientCert,
    pki_types::PrivateKeyDer,
    sign::{CertifiedKey, SingleCertAndKey},
};
use x509_parser::time::ASN1Time;

/// Numbers of the strangers: one that may not come in, one that may, and an address of nobody.
const ROGUE: usize = 2;
const GUEST: usize = 3;
const NOBODY: usize = 4;

const INITIALS: usize = 5_000;
const GARBAGE: usize = 20_000;
const HALF_OPEN: usize = 300;

fn fabric() -> Fabric {
    log();
    Fabric::start(Plan {
        wire: Wire::Loopback,
        strangers: vec!["rogue", "guest"],
        ..Plan::default()
    })
}

/// Whatever is wrong with a certificate or its presentation, the node does not serve it, says why, and
/// the control characters in it stay out of the log.
#[test]
fn wrong_certificates_are_refused_and_named() {
    let fabric = fabric();
    let other = pki::init("test", 1).unwrap();
    let (own, rogue_uri) = (Some(&fabric.authority), "spiffe://test/node/rogue");
    let valid = (unix_now() - 60, unix_now() + 86_400);
    let past = (951_827_000, 951_827_696);
    let cases = [
        ("expired", Some(shown(own, rogue_uri, past)), ALPN),
        (
            "this cluster's CA",
            Some(shown(Some(&other), rogue_uri, valid)),
            ALPN,
        ),
        (
            "spiffe://test/node/rogue",
            Some(shown(None, rogue_uri, valid)),
            ALPN,
        ),
        (
            "is not a node of this fabric",
            Some(shown(own, "spiffe://test/node/nobody", valid)),
            ALPN,
        ),
        (
            "spiffe://other/node/rogue",
            Some(shown(own, "spiffe://other/node/rogue", valid)),
            ALPN,
        ),
        (
            "\\n",
            Some(shown(own, "spiffe://test/node/x\nFATAL \u{1b}[31m", valid)),
            ALPN,
        ),
        ("certificate", None, ALPN),
        (
            "peer doesn't support any known protocol",
            Some(shown(own, rogue_uri, valid)),
            b"h3",
        ),
    ];
    let mut rogue = Rogue::bind(&fabric, ROGUE, None);
    let guest = fabric.identity(&fabric.name(GUEST));
    let (count, echoes) = tcp_echoes_during(&fabric, 0, 1, || {
        for (words, certificate, alpn) in &cases {
            let mut tls = (*guest.client_config(fabric.name(0))).clone();
            tls.alpn_protocols = vec![alpn.to_vec()];
            tls.client_auth_cert_resolver = match certificate {
                Some(certified) => Arc::new(SingleCertAndKey::from(certified.clone())),
                None => Arc::new(ShowNothing),
            };
            rogue.dial(Arc::new(tls), underlay(0));
            let told = rogue.wait_closed();
            let peer = fabric.peer(0, ROGUE).unwrap();
            println!("told {told:?}, noted {:?}", peer.last_error);
            fabric.wait_for("the refusal is noted", || {
                fabric.peer(0, ROGUE).unwrap().last_error.contains(words)
            });
            let noted = fabric.peer(0, ROGUE).unwrap().last_error;
            assert!(!noted.contains(char::is_control), "{noted:?}");
            assert!(peer.state != PeerState::Connected && peer.links.is_empty());
        }
        cases.len()
    });
    assert!(count == cases.len() && echoes > 0);
    let log = log();
    assert!(
        log.contains("connection refused address_of=\"rogue\""),
        "{log}"
    );
    assert!(!log.contains("\nFATAL"), "{log}");
    fabric.assert_conserved();
}

/// A node that answers with another node's certificate is not served, and the log says whose it is.
#[test]
fn the_wrong_node_answers() {
    log();
    let fabric = Fabric::start(Plan {
        wire: Wire::Loopback,
        strangers: vec!["z-rogue"],
        ..Plan::default()
    });
    let impostor = NodeId::new("impostor").unwrap();
    let server = fabric.identity(&impostor).server_config();
    let mut rogue = Rogue::bind(&fabric, ROGUE, Some(server));
    let noted = rogue.pump_until(|_| {
        let peer = fabric.peer(0, ROGUE).unwrap();
        assert!(peer.state != PeerState::Connected);
        peer.last_error.contains("impostor")
    });
    assert!(noted, "{:?}", fabric.peer(0, ROGUE));
}

/// A node that calls from the address of another is not served, valid as its certificate may be.
#[test]
fn a_node_at_an_address_of_another_is_refused() {
    let fabric = fabric();
    let guest = fabric.identity(&fabric.name(GUEST));
    let mut rogue = Rogue::bind(&fabric, ROGUE, None);
    rogue.dial(guest.client_config(fabric.name(0)), underlay(0));
    let told = rogue.wait_closed();
    assert!(told.contains("not a node of this fabric"), "{told}");
    fabric.wait_for("the refusal is noted", || {
        let noted = fabric.peer(0, ROGUE).unwrap().last_error;
        noted == "guest calls from an address that is not its own"
    });
    assert!(fabric.peer(0, GUEST).unwrap().links.is_empty());
}

/// A peer whose worker would have a UDP port beyond the last is left alone: its next attempt is in the
/// future and not always due.
#[test]
fn a_worker_without_a_port_does_not_keep_the_loop_busy() {
    let authority = pki::init("test", 1).unwrap();
    let (node, other) = (harness::node_name(0), harness::node_name(1));
    let identity = harness::identity_of(&authority, &node);
    let context = harness::context(node, identity, 1, 1, Duration::from_secs(5));
    let mut endpoint = Endpoint::bind(context, &["127.0.0.1:0".parse().unwrap()]).unwrap();
    let shared = Arc::new(PeerShared::default());
    shared.learn_workers(2);
    let target = PeerTarget {
        id: PeerId(1),
        node: other,
        underlay: vec!["127.0.0.1:65535".parse().unwrap()],
        keys: Vec::new(),
    };
    let now = Instant::now();
    endpoint.set_peers(&[Peer { target, shared }], now);
    assert!(endpoint.next_timeout().unwrap() > now);
    let noted = &endpoint.reports()[0].last_error;
    assert!(noted.contains("UDP port"), "{noted}");
}

/// Thousands of beginnings from an address of the fabric and from elsewhere, garbage of all sizes and
/// hundreds of handshakes that are never finished: none is served, a peer that means it gets in
/// meanwhile, and nothing lasts.
#[test]
fn floods_of_beginnings_let_a_good_peer_in() {
    let fabric = fabric();
    // Of the right CA, but no node: those that go on to the end are not served either.
    let nobody = NodeId::new("nobody").unwrap();
    let tls = fabric.identity(&nobody).client_config(fabric.name(0));
    let begin = Instant::now();
    let (entry, echoes) = tcp_echoes_during(&fabric, 0, 1, || {
        std::thread::scope(|scope| {
            let flood = |index: usize| {
                let (fabric, tls) = (&fabric, &tls);
                move || {
                    let mut rogue = Rogue::bind(fabric, index, None);
                    for _ in 0..INITIALS {
                        rogue.begin_only(tls.clone(), underlay(0));
                    }
                }
            };
            let floods = [scope.spawn(flood(ROGUE)), scope.spawn(flood(NOBODY))];
            scope.spawn(|| garbage(&fabric));
            scope.spawn(|| half_open(&fabric, tls.clone()));
            let guest = fabric.identity(&fabric.name(GUEST));
            let mut rogue = Rogue::bind(&fabric, GUEST, None);
            std::thread::sleep(Duration::from_millis(200));
            let begin = Instant::now();
            // A node that was not heard tries again; so does this one.
            for _ in 0..10 {
                rogue.dial(guest.client_config(fabric.name(0)), underlay(0));
                let done = rogue.pump_for(Duration::from_secs(2), |rogue| rogue.is_connected());
                if done {
                    break;
                }
            }
            assert!(rogue.is_connected(), "{:?}", rogue.closed());
            let under_way = floods.iter().any(|flood| !flood.is_finished());
            (begin.elapsed(), under_way)
        })
    });
    println!(
        "{INITIALS} Initials from a node and as many from nobody, {GARBAGE} pieces of garbage, {HALF_OPEN} half-open handshakes in {:?}; the guest was in after {entry:?} (flood under way); {echoes} honest echoes",
        begin.elapsed()
    );
    assert!(entry.1, "the flood was over before the guest came");
    let rogue = fabric.peer(0, ROGUE).unwrap();
    assert!(rogue.links.is_empty() && echoes > 0);
    let log = log();
    assert!(
        log.contains("ignored a handshake from an address of no node"),
        "{log}"
    );
    fabric.assert_conserved();
    let lines = log.lines().count();
    assert!(lines < 500, "{lines} lines of log");
}

fn garbage(fabric: &Fabric) {
    let mut random = Generator::new(9);
    for index in [ROGUE, NOBODY] {
        let mut address = underlay(index);
        address.set_port(9_999);
        let socket = fabric.nodes[0]
            .host
            .run(|| UdpSocket::bind(address).unwrap())
            .unwrap();
        for _ in 0..GARBAGE / 2 {
            let len = random.below(1400);
            let mut bytes = random.bytes(len);
            if let Some(first) = bytes.first_mut()
                && random.one_in(2)
            {
                // A long header of version 1.
                *first |= 0xc0;
                if let Some(version) = bytes.get_mut(1..5) {
                    version.copy_from_slice(&[0, 0, 0, 1]);
                }
            }
            let _ = socket.send_to(&bytes, underlay(0));
        }
    }
}

/// Handshakes that prove their address and go on until the other side has answered, and no further.
fn half_open(fabric: &Fabric, tls: Arc<rustls::ClientConfig>) {
    let mut address = underlay(ROGUE);
    address.set_port(9_998);
    let mut rogue = Rogue::bind_to(fabric, address, None);
    for _ in 0..HALF_OPEN {
        rogue.dial(tls.clone(), underlay(0));
        rogue.pump();
        std::thread::sleep(Duration::from_millis(2));
        rogue.pump();
    }
}

/// A certificate and its key as a stranger might show them, signed by `signer` or by itself.
fn shown(signer: Option<&Authority>, uri: &str, valid: (i64, i64)) -> CertifiedKey {
    let mut params = CertificateParams::default();
    params.not_before = ASN1Time::from_timestamp(valid.0).unwrap().to_datetime();
    params.not_after = ASN1Time::from_timestamp(valid.1).unwrap().to_datetime();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().unwrap();
    let certificate = match signer {
        Some(authority) => {
            let signer = KeyPair::from_pem(authority.key_pem()).unwrap();
            let issuer = Issuer::from_ca_cert_pem(authority.certificate_pem(), signer).unwrap();
            params.signed_by(&key, &issuer).unwrap()
        }
        None => params.self_signed(&key).unwrap(),
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let chain = vec![certificate.der().clone()];
    CertifiedKey::from_der(chain, key, &crypto_provider()).unwrap()
}

#[derive(Debug)]
struct ShowNothing;

impl ResolvesClientCert for ShowNothing {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

fn unix_now() -> i64 {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// What the nodes of this process have logged so far; the first call begins to collect.
fn log() -> String {
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    let log = LOG.get_or_init(|| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let writer = Collector(log.clone());
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        log
    });
    String::from_utf8_lossy(&log.lock().unwrap()).into_owned()
}

#[derive(Clone)]
struct Collector(Arc<Mutex<Vec<u8>>>);

impl Write for Collector {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
