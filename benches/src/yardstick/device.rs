//! The TUN device of a relay, with all offloads, up and with its address.

use std::{
    io::{self, Write as _},
    net::{SocketAddr, UdpSocket},
};

use anyhow::Context as _;
use fabric_node::sys::{
    netlink::{LinkSettings, Netlink},
    tun::{Tun, TunOffloads},
};
use ipnet::IpNet;
use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};

/// MTU inside the tunnel (bytes): as pods have it.
const MTU: u32 = 1500;
/// Kernel buffers of the socket (bytes): as the fabric asks for.
const KERNEL_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Makes the device `name` with `address`; its network becomes a route.
///
/// # Errors
///
/// The device cannot be made or configured.
pub fn open(name: &str, address: IpNet) -> anyhow::Result<Tun> {
    let tun = Tun::create(name, TunOffloads::ALL)?;
    let netlink = Netlink::connect()?;
    let index = netlink
        .link(name)?
        .with_context(|| format!("there is no interface {name}"))?
        .index;
    let settings = LinkSettings {
        mtu: Some(MTU),
        up: Some(true),
        ..LinkSettings::default()
    };
    netlink.configure_link(index, settings)?;
    netlink.add_address(index, address)?;
    Ok(tun)
}

/// A UDP socket with large buffers.
///
/// # Errors
///
/// It cannot be bound.
pub fn bind(local: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(local).with_context(|| format!("cannot bind {local}/udp"))?;
    set_socket_recv_buffer_size_force(&socket, KERNEL_BUFFER_BYTES)?;
    set_socket_send_buffer_size_force(&socket, KERNEL_BUFFER_BYTES)?;
    Ok(socket)
}

/// Says on standard output that packets can flow.
///
/// # Errors
///
/// Nobody listens any more.
pub fn say_ready() -> io::Result<()> {
    let mut output = io::stdout();
    output.write_all(b"ready\n")?;
    output.flush()
}
