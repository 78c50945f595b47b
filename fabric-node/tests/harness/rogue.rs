//! A peer that the test plays itself: QUIC as it should be, and in it whatever the test wants.

use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use fabric_node::pki::identity::SERVER_NAME;
use fabric_proto::hello::{Hello, PROTOCOL_VERSION};
use prost::Message;
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, Endpoint,
    EndpointConfig, Event, ServerConfig, StreamEvent, StreamId, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};

use super::{Fabric, PATIENCE, underlay};

/// Payloads sent as one batch, which the receiver gets as one buffer.
const SEGMENTS: usize = 8;

pub struct Rogue {
    socket: UdpSocket,
    state: quinn_udp::UdpSocketState,
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    connected: bool,
    closed: Option<ConnectionError>,
    opened: VecDeque<StreamId>,
    /// Connections that came to an end, connections that were accepted by this side.
    pub ends: u64,
    pub accepted: u64,
    buffer: Vec<u8>,
}

impl Rogue {
    /// A rogue with the underlay address of node or stranger `index`, which answers with `server`.
    pub fn bind(fabric: &Fabric, index: usize, server: Option<Arc<rustls::ServerConfig>>) -> Self {
        let address = underlay(index);
        Self::bind_to(fabric, address, server)
    }

    pub fn bind_to(
        fabric: &Fabric,
        address: SocketAddr,
        server: Option<Arc<rustls::ServerConfig>>,
    ) -> Self {
        let socket = fabric.nodes[0]
            .host
            .run(|| UdpSocket::bind(address).unwrap())
            .unwrap();
        socket.set_nonblocking(true).unwrap();
        let server = server.map(|tls| {
            let crypto = QuicServerConfig::try_from(tls).unwrap();
            let mut config = ServerConfig::with_crypto(Arc::new(crypto));
            config.transport_config(transport());
            Arc::new(config)
        });
        let endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), server, true, None);
        let state = quinn_udp::UdpSocketState::new((&socket).into()).unwrap();
        Self {
            socket,
            state,
            endpoint,
            connection: None,
            connected: false,
            closed: None,
            opened: VecDeque::new(),
            ends: 0,
            accepted: 0,
            buffer: Vec::new(),
        }
    }

    /// Begins a connection; what there was of another is forgotten without a word.
    pub fn dial(&mut self, tls: Arc<rustls::ClientConfig>, target: SocketAddr) {
        let crypto = QuicClientConfig::try_from(tls).unwrap();
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport());
        let connection = self
            .endpoint
            .connect(Instant::now(), config, target, SERVER_NAME)
            .unwrap();
        self.connection = Some(connection);
        self.connected = false;
        self.closed = None;
        self.opened.clear();
        self.pump();
    }

    /// Sends the first flight of a connection, which is forgotten at once.
    pub fn begin_only(&mut self, tls: Arc<rustls::ClientConfig>, target: SocketAddr) {
        self.dial(tls, target);
        // What came back is of no interest.
        let mut ignored = [0; 2048];
        while self.socket.recv(&mut ignored).is_ok() {}
    }

    /// Whether the connection carries data at present.
    pub fn is_connected(&self) -> bool {
        self.connected && self.closed.is_none()
    }

    pub fn closed(&self) -> Option<&ConnectionError> {
        self.closed.as_ref()
    }

    /// Pumps until `holds`; false if that takes longer than [`PATIENCE`].
    pub fn pump_until(&mut self, mut holds: impl FnMut(&mut Self) -> bool) -> bool {
        self.pump_for(PATIENCE, &mut holds)
    }

    /// Pumps until `holds`; false if that takes longer than `patience`.
    pub fn pump_for(
        &mut self,
        patience: Duration,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            self.pump();
            if holds(self) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub fn wait_connected(&mut self) {
        let done = self.pump_until(|rogue| rogue.connected || rogue.closed.is_some());
        assert!(done && self.is_connected(), "{:?}", self.closed);
    }

    /// Waits for the other side to end the connection; returns its words.
    pub fn wait_closed(&mut self) -> String {
        assert!(
            self.pump_until(|rogue| rogue.closed.is_some()),
            "not closed"
        );
        self.closed.as_ref().unwrap().to_string()
    }

    /// Sends a datagram; false if there is no room at present.
    pub fn datagram(&mut self, bytes: &[u8]) -> bool {
        let Some((_, connection)) = &mut self.connection else {
            return false;
        };
        let bytes = Bytes::copy_from_slice(bytes);
        connection.datagrams().send(bytes, false).is_ok()
    }

    pub fn datagram_room(&mut self) -> usize {
        let Some((_, connection)) = &mut self.connection else {
            return 0;
        };
        connection.datagrams().max_size().unwrap_or(0)
    }

    pub fn open(&mut self, dir: Dir) -> Option<StreamId> {
        let (_, connection) = self.connection.as_mut()?;
        connection.streams().open(dir)
    }

    /// Writes what fits; returns how much that was.
    pub fn write(&mut self, id: StreamId, bytes: &[u8]) -> usize {
        let Some((_, connection)) = &mut self.connection else {
            return 0;
        };
        connection.send_stream(id).write(bytes).unwrap_or(0)
    }

    /// Writes everything, pumping, unless the connection ends before.
    pub fn write_all(&mut self, id: StreamId, mut bytes: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        while !bytes.is_empty() && self.closed.is_none() && Instant::now() < deadline {
            let written = self.write(id, bytes);
            bytes = &bytes[written..];
            self.pump();
        }
    }

    pub fn reset(&mut self, id: StreamId) {
        if let Some((_, connection)) = &mut self.connection {
            let _ = connection.send_stream(id).reset(VarInt::from_u32(9));
        }
    }

    pub fn finish(&mut self, id: StreamId) {
        if let Some((_, connection)) = &mut self.connection {
            let _ = connection.send_stream(id).finish();
        }
    }

    /// The next stream of this kind that the other side opened.
    pub fn opened_by_peer(&mut self, dir: Dir) -> Option<StreamId> {
        let at = self.opened.iter().position(|id| id.dir() == dir)?;
        self.opened.remove(at)
    }

    /// Stops the next stream that the other side opened; false if there is none.
    pub fn stop_one(&mut self) -> bool {
        let (Some(id), Some((_, connection))) = (self.opened.pop_front(), &mut self.connection)
        else {
            return false;
        };
        let _ = connection.recv_stream(id).stop(VarInt::from_u32(9));
        true
    }

    /// Receives, answers, sends: everything that is due at present.
    pub fn pump(&mut self) {
        self.receive();
        let now = Instant::now();
        let Some((handle, connection)) = &mut self.connection else {
            return;
        };
        if connection.poll_timeout().is_some_and(|due| due <= now) {
            connection.handle_timeout(now);
        }
        while let Some(event) = connection.poll() {
            match event {
                Event::Connected => self.connected = true,
                Event::ConnectionLost { reason } => {
                    self.closed = Some(reason);
                    self.ends += 1;
                }
                Event::Stream(StreamEvent::Opened { dir }) => {
                    while let Some(id) = connection.streams().accept(dir) {
                        self.opened.push_back(id);
                    }
                }
                _ => {}
            }
        }
        while connection.datagrams().recv().is_some() {}
        loop {
            self.buffer.clear();
            let Some(transmit) = connection.poll_transmit(now, SEGMENTS, &mut self.buffer) else {
                break;
            };
            let batch = quinn_udp::Transmit {
                destination: transmit.destination,
                ecn: None,
                contents: &self.buffer[..transmit.size],
                segment_size: transmit.segment_size,
                src_ip: None,
            };
            let socket = quinn_udp::UdpSockRef::from(&self.socket);
            if self.state.try_send(socket, &batch).is_err() {
                break;
            }
        }
        while let Some(event) = connection.poll_endpoint_events() {
            let drained = event.is_drained();
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
            if drained {
                self.connection = None;
                return;
            }
        }
    }

    fn receive(&mut self) {
        let mut batch = vec![0; 65_536];
        let mut metas = [quinn_udp::RecvMeta::default()];
        loop {
            let received = self.state.recv(
                (&self.socket).into(),
                &mut [io::IoSliceMut::new(&mut batch)],
                &mut metas,
            );
            match received {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An earlier datagram came back as unreachable.
                Err(_) => continue,
            }
            let [meta] = metas;
            for datagram in batch[..meta.len].chunks(meta.stride.max(1)) {
                self.on_datagram(datagram, meta.addr);
            }
        }
    }

    fn on_datagram(&mut self, datagram: &[u8], from: SocketAddr) {
        self.buffer.clear();
        let event = self.endpoint.handle(
            Instant::now(),
            from,
            None,
            None,
            BytesMut::from(datagram),
            &mut self.buffer,
        );
        {
            match event {
                Some(DatagramEvent::ConnectionEvent(to, event)) => {
                    if let Some((handle, connection)) = &mut self.connection
                        && *handle == to
                    {
                        connection.handle_event(event);
                    }
                }
                Some(DatagramEvent::NewConnection(incoming)) => {
                    self.buffer.clear();
                    let now = Instant::now();
                    if let Ok(connection) =
                        self.endpoint.accept(incoming, now, &mut self.buffer, None)
                    {
                        self.connection = Some(connection);
                        self.connected = false;
                        self.closed = None;
                        self.opened.clear();
                        self.accepted += 1;
                    }
                }
                Some(DatagramEvent::Response(transmit)) => {
                    let contents = &self.buffer[..transmit.size];
                    let _ = self.socket.send_to(contents, transmit.destination);
                }
                None => {}
            }
        }
    }
}

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .datagram_send_buffer_size(512 * 1024)
        .max_concurrent_uni_streams(VarInt::from_u32(64))
        .max_idle_timeout(None)
        .initial_rtt(Duration::from_millis(20));
    Arc::new(config)
}

/// A hello as it goes on the control stream.
pub fn hello(workers: u32, boot_id: u64, connection: u32) -> Vec<u8> {
    framed(&Hello {
        protocol_version: PROTOCOL_VERSION,
        workers,
        boot_id,
        connection,
        software: "rogue".to_owned(),
    })
}

pub fn framed(hello: &Hello) -> Vec<u8> {
    let body = hello.encode_to_vec();
    let mut message = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    message.extend_from_slice(&body);
    message
}
