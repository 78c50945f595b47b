//! QUIC settings, each with the reason for its value.

use std::{sync::Arc, time::Duration};

use quinn_proto::{
    EndpointConfig, HashedConnectionIdGenerator, IdleTimeout, MtuDiscoveryConfig, TransportConfig,
    VarInt,
    congestion::{BbrConfig, ControllerFactory, CubicConfig},
};

use super::{congestion::Bounded, queue::STREAM_BUCKETS, secrets::Secrets, socket::WantedOffloads};

/// Bytes of streams in flight or waiting inside the engine, per connection.
///
/// 2 MiB is the bandwidth-delay product of 4 Gbit/s and 4 ms; measured as the best value between 1
/// and 4 MiB on a local underlay. Almost all of it is in flight: what is not yet sent waits in our own
/// queue.
pub const SEND_WINDOW_BYTES: u64 = 2 * 1024 * 1024;
/// Bytes of one stream that a peer may send ahead. A record is at most 64 KiB and is read at once.
const STREAM_RECEIVE_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Bytes of all streams of a connection that a peer may send ahead: bounds memory per connection.
const RECEIVE_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Congestion window at the start: an in-cluster path needs no slow start from 12 kB, and with
/// large MTUs the default stalls.
const INITIAL_WINDOW_BYTES: u64 = 1024 * 1024;
/// Unsent datagram bytes inside the engine, with 32 bytes of its own for each; the rest waits in our
/// own queue. Enough for what the engine is given at once, a send of the smallest datagrams.
pub(super) const DATAGRAM_SEND_BUFFER_BYTES: usize = 128 * 1024;
/// Received datagrams not yet taken. They are taken every turn; beyond it the oldest is lost.
const DATAGRAM_RECEIVE_BUFFER_BYTES: usize = 2 * 1024 * 1024;
/// First guess of the round-trip time: the first retransmission of a handshake comes after three
/// of these.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Handshakes that may wait at once; more are refused by QUIC itself.
pub const INCOMING_MAX: usize = 256;

/// Congestion control of the connections between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// CUBIC (RFC 9438).
    #[default]
    Cubic,
    /// BBR, as quinn has it.
    Bbr,
}

/// The settings an operator may change.
#[derive(Clone, Copy, Debug)]
pub struct TunnelSettings {
    /// Congestion control.
    pub congestion: Congestion,
    /// A connection without a packet for this long is dead.
    pub idle_timeout: Duration,
    /// A packet at least this often.
    pub keep_alive: Duration,
    /// Longest wait between two attempts to connect.
    pub reconnect_max: Duration,
    /// Offloads of the UDP sockets.
    pub offloads: WantedOffloads,
}

/// Settings of one connection over a path that carries UDP payloads of up to `udp_payload_max`.
#[must_use]
pub fn transport_config(settings: &TunnelSettings, udp_payload_max: u16) -> Arc<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(udp_payload_max);
    let congestion: Arc<dyn ControllerFactory + Send + Sync> = match settings.congestion {
        Congestion::Cubic => {
            let mut cubic = CubicConfig::default();
            cubic.initial_window(INITIAL_WINDOW_BYTES);
            Arc::new(Bounded(Arc::new(cubic)))
        }
        Congestion::Bbr => {
            let mut bbr = BbrConfig::default();
            bbr.initial_window(INITIAL_WINDOW_BYTES);
            Arc::new(Bounded(Arc::new(bbr)))
        }
    };
    let mut config = TransportConfig::default();
    config
        .max_concurrent_uni_streams(VarInt::from_u32(2 * STREAM_BUCKETS as u32))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(STREAM_RECEIVE_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER_BYTES))
        .initial_rtt(INITIAL_RTT)
        .mtu_discovery_config(Some(discovery))
        .keep_alive_interval(Some(settings.keep_alive))
        .max_idle_timeout(IdleTimeout::try_from(settings.idle_timeout).ok())
        .congestion_controller_factory(congestion)
        .allow_spin(false);
    Arc::new(config)
}

/// Settings of an endpoint. Connection ids carry a mark that this node recognises after a restart.
#[must_use]
pub fn endpoint_config(secrets: &Secrets, udp_payload_max: u16) -> Arc<EndpointConfig> {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &secrets.reset_key);
    let mut config = EndpointConfig::new(Arc::new(key));
    let cid_key = secrets.cid_key;
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid_key)));
    if let Err(error) = config.max_udp_payload_size(udp_payload_max.max(1472)) {
        tracing::warn!(%error, udp_payload_max, "the receive size stays at its default");
    }
    Arc::new(config)
}
