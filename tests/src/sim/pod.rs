//! A pod of the simulation: a userspace TCP/IP stack behind a device of MTU 1500.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp,
    time::Instant,
    wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, Ipv4Address, Ipv6Address},
};

/// What a device has in either direction.
#[derive(Default)]
struct Queues {
    arrived: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

/// One pod.
pub struct Pod {
    addresses: [IpAddr; 2],
    queues: Queues,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// Raw packets put in by a test, to be sent as they are.
    injected: Vec<Vec<u8>>,
    seen: Vec<Seen>,
}

/// What a test sees of a packet that reached a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The packet as delivered.
    pub packet: Vec<u8>,
}

impl Pod {
    pub(super) fn new(addresses: [IpAddr; 2]) -> Self {
        let mut queues = Queues::default();
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut queues, Instant::ZERO);
        interface.update_ip_addrs(|list| {
            for address in addresses {
                let bits = if address.is_ipv4() { 32 } else { 128 };
                list.push(IpCidr::new(IpAddress::from(address), bits))
                    .expect("room for two");
            }
        });
        let routes = interface.routes_mut();
        routes
            .add_default_ipv4_route(Ipv4Address::new(10, 244, 0, 1))
            .expect("room for a route");
        routes
            .add_default_ipv6_route(Ipv6Address::new(0xfd44, 0, 0, 0, 0, 0, 0, 1))
            .expect("room for a route");
        Self {
            addresses,
            queues,
            interface,
            sockets: SocketSet::new(Vec::new()),
            injected: Vec::new(),
            seen: Vec::new(),
        }
    }

    /// IPv4 and IPv6.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.addresses
    }

    /// A TCP socket with large buffers, so that it sends many segments at once.
    fn add_tcp(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 * 1024]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        self.sockets.add(socket)
    }

    /// Waits for a connection.
    pub fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.add_tcp();
        self.tcp(handle)
            .listen(port)
            .expect("a fresh socket listens");
        handle
    }

    /// Opens a connection.
    pub fn connect(&mut self, to: IpAddr, port: u16, from_port: u16) -> SocketHandle {
        let handle = self.add_tcp();
        let context = self.interface.context();
        let remote = IpEndpoint::new(IpAddress::from(to), port);
        self.sockets
            .get_mut::<tcp::Socket<'_>>(handle)
            .connect(context, remote, from_port)
            .expect("a fresh socket connects");
        handle
    }

    /// A socket of this pod.
    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Sends a packet as it is.
    pub fn inject(&mut self, packet: Vec<u8>) {
        self.injected.push(packet);
    }

    /// Everything that was delivered since the last call.
    pub fn take_seen(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.seen)
    }

    pub(super) fn receive(&mut self, packet: Vec<u8>) {
        self.seen.push(Seen {
            packet: packet.clone(),
        });
        self.queues.arrived.push_back(packet);
    }

    /// Lets the stack work; returns what it sends.
    pub(super) fn poll(&mut self, now: Duration) -> Vec<Vec<u8>> {
        let now = Instant::from_micros(i64::try_from(now.as_micros()).expect("a short run"));
        self.interface
            .poll(now, &mut self.queues, &mut self.sockets);
        let mut sent = std::mem::take(&mut self.injected);
        sent.append(&mut self.queues.sent);
        sent
    }
}

impl Device for Queues {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Arrived, Sending<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrived(packet), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

struct Arrived(Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; len];
        let result = write(&mut packet);
        self.0.push(packet);
        result
    }
}
