//! The ready-made way: the async QUIC crate on a runtime of several threads, as its documentation
//! shows it, with super-packets on one stream and small packets of other protocols in datagrams.
//!
//! Comes in: packets of one TUN device, one QUIC connection. Goes out: the same. Never done here:
//! verifying who the other side is. The client takes any certificate: only a yardstick may.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::{Bytes, BytesMut};
use fabric_core::offload::VnetHeader;
use fabric_node::{
    pki::identity::crypto_provider,
    sys::tun::Tun,
    tunnel::{
        buffers::{BUFFER_BYTES, BufferPool},
        transport::SEND_WINDOW_BYTES,
    },
};
use ipnet::IpNet;
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
    congestion::CubicConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::device;

/// Length in front of a packet with its virtio header (bytes).
const LENGTH_BYTES: usize = 4;
/// What stands in front of a packet on the stream (bytes).
const HEADROOM: usize = LENGTH_BYTES + VnetHeader::LEN;
/// Bytes of one stream that may be on their way.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Congestion window at the start (bytes): as the fabric has it.
const INITIAL_WINDOW_BYTES: u64 = 1024 * 1024;
/// A connection without a packet for this long is over.
const IDLE: Duration = Duration::from_secs(30);
/// A packet at least this often.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Protocol number of TCP (RFC 9293).
const TCP: u8 = 6;
/// Name in the certificate, which nobody looks at.
const NAME: &str = "yardstick";

/// Which side begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Connects.
    Client,
    /// Waits to be connected to.
    Server,
}

/// What to relay, and to whom.
#[derive(Clone, Debug)]
pub struct WrappedOptions {
    /// Name of the device that is made.
    pub tun: String,
    /// Its address and network.
    pub address: IpNet,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the other side listens.
    pub peer: SocketAddr,
    /// Largest IP packet of the path (bytes).
    pub mtu: u16,
    /// Who begins.
    pub role: Role,
}

/// Relays until the process is ended by a signal.
///
/// # Errors
///
/// Device or socket cannot be made, no connection comes about, or it ends.
pub fn run(options: &WrappedOptions) -> anyhow::Result<()> {
    // Netlink blocks, so the device is made outside of the runtime.
    let tun = device::open(&options.tun, options.address)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(relay(tun, options))
}

/// For the runtime, which asks for descriptors by number.
struct Device(Tun);

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

async fn relay(tun: Tun, options: &WrappedOptions) -> anyhow::Result<()> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe code, and a device that owns its descriptor needs none"
    )]
    let tun = AsyncFd::with_interest(Device(tun), Interest::READABLE)?;
    let connection = connect(options).await?;
    let stream = connection.open_uni().await?;
    device::say_ready()?;
    tokio::try_join!(
        from_device(&tun, &connection, stream),
        from_streams(&tun, &connection),
        from_datagrams(&tun, &connection),
    )?;
    Ok(())
}

async fn connect(options: &WrappedOptions) -> anyhow::Result<Connection> {
    let transport = Arc::new(transport(options)?);
    let provider = Arc::new(crypto_provider());
    let server = match options.role {
        Role::Server => Some(server_config(provider.clone(), transport.clone())?),
        Role::Client => None,
    };
    let endpoint = Endpoint::new(
        EndpointConfig::default(),
        server,
        device::bind(options.listen)?,
        Arc::new(TokioRuntime),
    )?;
    match options.role {
        Role::Server => {
            let incoming = endpoint.accept().await.context("the endpoint is closed")?;
            Ok(incoming.await?)
        }
        Role::Client => {
            let config = client_config(provider, transport)?;
            Ok(endpoint.connect_with(config, options.peer, NAME)?.await?)
        }
    }
}

/// Packets of the device: TCP, and what does not fit, on the stream, all others in datagrams.
async fn from_device(
    tun: &AsyncFd<Device>,
    connection: &Connection,
    mut stream: SendStream,
) -> anyhow::Result<()> {
    let mut pool = BufferPool::default();
    let mut buffer = pool.take_full();
    loop {
        let len = tun
            .async_io(Interest::READABLE, |tun| read(&tun.0, &mut buffer))
            .await?;
        let end = HEADROOM + len;
        let room = connection.max_datagram_size().unwrap_or(0);
        if is_tcp(&buffer[HEADROOM..end]) || VnetHeader::LEN + len > room {
            let length = (VnetHeader::LEN + len) as u32;
            buffer[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
            stream
                .write_chunk(pool.carve_frozen(&mut buffer, 0, end))
                .await?;
        } else {
            connection.send_datagram(pool.carve_frozen(&mut buffer, LENGTH_BYTES, end))?;
        }
    }
}

fn read(tun: &Tun, buffer: &mut BytesMut) -> io::Result<usize> {
    let mut vnet = [0; VnetHeader::LEN];
    let len = tun.read(&mut vnet, &mut buffer[HEADROOM..BUFFER_BYTES])?;
    buffer[LENGTH_BYTES..HEADROOM].copy_from_slice(&vnet);
    Ok(len)
}

fn is_tcp(packet: &[u8]) -> bool {
    let protocol = match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(9),
        Some(6) => packet.get(6),
        _ => None,
    };
    protocol == Some(&TCP)
}

async fn from_streams(tun: &AsyncFd<Device>, connection: &Connection) -> anyhow::Result<()> {
    let stream = connection.accept_uni().await?;
    from_stream(tun, stream).await
}

async fn from_stream(tun: &AsyncFd<Device>, mut stream: RecvStream) -> anyhow::Result<()> {
    let mut bytes = BytesMut::with_capacity(4 * BUFFER_BYTES);
    let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
    while let Some(count) = stream.read_chunks(&mut chunks).await? {
        chunks[..count]
            .iter()
            .for_each(|chunk| bytes.extend_from_slice(chunk));
        while let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() {
            let length = u32::from_le_bytes(*length) as usize;
            ensure!(length <= BUFFER_BYTES, "a packet of {length} bytes");
            let Some(packet) = rest.get(..length) else {
                break;
            };
            // What the kernel does not take is lost.
            let _ = tun.get_ref().0.write(&[IoSlice::new(packet)]);
            drop(bytes.split_to(LENGTH_BYTES + length));
        }
    }
    bail!("the other side has ended its stream")
}

async fn from_datagrams(tun: &AsyncFd<Device>, connection: &Connection) -> anyhow::Result<()> {
    loop {
        let packet = connection.read_datagram().await?;
        let _ = tun.get_ref().0.write(&[IoSlice::new(&packet)]);
    }
}

fn transport(options: &WrappedOptions) -> anyhow::Result<TransportConfig> {
    let headers = if options.listen.is_ipv6() { 48 } else { 28 };
    let payload = options.mtu.saturating_sub(headers);
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(payload);
    let mut cubic = CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW_BYTES);
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(cubic))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IDLE.try_into()?));
    Ok(config)
}

fn server_config(
    provider: Arc<CryptoProvider>,
    transport: Arc<TransportConfig>,
) -> anyhow::Result<ServerConfig> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())?;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport);
    Ok(config)
}

fn client_config(
    provider: Arc<CryptoProvider>,
    transport: Arc<TransportConfig>,
) -> anyhow::Result<ClientConfig> {
    let tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport);
    Ok(config)
}

/// Takes any certificate: see the top of this file.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
