//! The ceiling: super-packets of a TUN device, sealed, in one UDP send with segmentation offload.
//!
//! Comes in: packets of one TUN device, records of one other relay. Goes out: the same. Never done
//! here: acknowledging, sending again, exchanging keys, keeping nonces apart over a restart. What it
//! moves in a second is what an encrypted tunnel in userspace could move if all that cost nothing;
//! it protects nothing and carries no one's traffic.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd as _,
};

use anyhow::ensure;
use fabric_node::sys::tun::Tun;
use ipnet::IpNet;
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{PollFd, PollFlags, poll};

use super::{
    device,
    records::{Opener, Sealer},
};

/// Key of both ends where none is given. Everybody can read it here: see the top of this file.
pub const DEFAULT_KEY: [u8; 16] = *b"not-a-secret-key";

/// Records of one send: 44 of 1472 bytes are the largest UDP payload that is a multiple of them.
const RECORDS_MAX: usize = 44;
/// Bytes of one send: the largest UDP payload less headers (RFC 768, RFC 791).
const SEND_BYTES_MAX: usize = 65_507;
/// Packets read from the device before the socket has its turn.
const READS_MAX: usize = 64;
/// Full sends before the socket has its turn.
const SENDS_MAX: usize = 16;
/// Calls that read the socket before the device has its turn.
const RECEIVES_MAX: usize = 4;
/// Messages of one such call, each with up to 64 records.
const MESSAGES_MAX: usize = 8;
/// Room for one message (bytes).
const MESSAGE_BYTES: usize = 64 * 1024;
/// IPv4 or IPv6 header and UDP header (bytes).
const HEADER_BYTES: [usize; 2] = [20 + 8, 40 + 8];

/// What to relay, and to whom.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    /// Name of the device that is made.
    pub tun: String,
    /// Its address and network.
    pub address: IpNet,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the other relay listens.
    pub peer: SocketAddr,
    /// Largest IP packet of the path (bytes).
    pub mtu: u16,
    /// Key of both.
    pub key: [u8; 16],
}

/// Relays until the process is ended by a signal.
///
/// # Errors
///
/// Device or socket cannot be made or fail.
pub fn run(options: &RelayOptions) -> anyhow::Result<()> {
    let mut relay = Relay::start(options)?;
    device::say_ready()?;
    relay.turn_for_ever()
}

struct Relay {
    tun: Tun,
    socket: UdpSocket,
    state: UdpSocketState,
    peer: SocketAddr,
    record_bytes: usize,
    sealer: Sealer,
    opener: Opener,
    messages: Vec<Vec<u8>>,
}

impl Relay {
    fn start(options: &RelayOptions) -> anyhow::Result<Self> {
        ensure!(
            options.listen != options.peer,
            "a relay is not its own peer"
        );
        let headers = HEADER_BYTES[usize::from(options.listen.is_ipv6())];
        let record_bytes = usize::from(options.mtu).saturating_sub(headers);
        let socket = device::bind(options.listen)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let records_max = (SEND_BYTES_MAX / record_bytes.max(1))
            .min(RECORDS_MAX)
            .min(state.max_gso_segments());
        let directions = [options.listen, options.peer].map(|end| {
            let lower = options.listen.min(options.peer);
            u8::from(end != lower)
        });
        Ok(Self {
            tun: device::open(&options.tun, options.address)?,
            socket,
            state,
            peer: options.peer,
            record_bytes,
            sealer: Sealer::new(&options.key, directions[0], record_bytes, records_max)?,
            opener: Opener::new(&options.key, directions[1])?,
            messages: vec![vec![0; MESSAGE_BYTES]; MESSAGES_MAX],
        })
    }

    fn turn_for_ever(&mut self) -> anyhow::Result<()> {
        loop {
            let mut ready = [
                PollFd::new(&self.tun, PollFlags::IN),
                PollFd::new(&self.socket, PollFlags::IN),
            ];
            match poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [device, socket] = ready.map(|one| !one.revents().is_empty());
            if socket {
                self.receive()?;
            }
            if device {
                self.read_device()?;
            }
        }
    }

    fn receive(&mut self) -> anyhow::Result<()> {
        let mut metas = [RecvMeta::default(); MESSAGES_MAX];
        for _ in 0..RECEIVES_MAX {
            let received = {
                let mut slices: Vec<IoSliceMut<'_>> = self
                    .messages
                    .iter_mut()
                    .map(|message| IoSliceMut::new(message))
                    .collect();
                let socket = UdpSockRef::from(&self.socket);
                match self.state.recv(socket, &mut slices, &mut metas) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            };
            for (meta, message) in metas.iter().zip(&self.messages).take(received) {
                if meta.addr != self.peer {
                    continue;
                }
                for record in message[..meta.len].chunks(meta.stride.max(1)) {
                    let tun = &self.tun;
                    // What does not open, or what the kernel does not take, is lost: TCP will know.
                    let _ = self.opener.open(record, |packet| {
                        let _ = tun.write(&[IoSlice::new(packet)]);
                    });
                }
            }
            if received < MESSAGES_MAX {
                return Ok(());
            }
        }
        Ok(())
    }

    fn read_device(&mut self) -> anyhow::Result<()> {
        let mut sends = 0;
        for _ in 0..READS_MAX {
            match self.sealer.add(|vnet, packet| self.tun.read(vnet, packet)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
            while self.sealer.is_full() {
                self.send()?;
                sends += 1;
            }
            if sends >= SENDS_MAX {
                break;
            }
        }
        while !self.sealer.is_empty() {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> anyhow::Result<()> {
        let contents = self.sealer.seal()?;
        let transmit = Transmit {
            destination: self.peer,
            ecn: None,
            contents,
            segment_size: (contents.len() > self.record_bytes).then_some(self.record_bytes),
            src_ip: None,
        };
        loop {
            match self
                .state
                .try_send(UdpSockRef::from(&self.socket), &transmit)
            {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(
                        &mut [PollFd::from_borrowed_fd(
                            self.socket.as_fd(),
                            PollFlags::OUT,
                        )],
                        None,
                    )?;
                }
                // The other relay is not there yet, or not any more.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(()),
                other => return Ok(other?),
            }
        }
    }
}
