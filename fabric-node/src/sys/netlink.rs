//! Links, addresses and routes of one network namespace, blocking.
//!
//! Comes in: what an interface should have. Goes out: requests to rtnetlink, and what the kernel
//! has, in our own types. Never done here: deciding what should be; entering namespaces (a
//! [`Netlink`] belongs to the namespace of the thread that connected it).
//!
//! A `Netlink` drives its own small runtime, so its methods, and its end, belong on a thread that
//! is not inside an async task: in async code wrap them in `spawn_blocking` or
//! [`super::netns::Netns::run`].

mod message;
pub mod policy;

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage},
    route::RouteMessage,
};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth};
use rustix::io::Errno;
use thiserror::Error;
use tokio::runtime::{self, Runtime};

use super::{netns::Netns, sysctl::Sysctl, tun::TunOwner};

/// Why a request failed. `request` says what was asked, as in "add address 10.0.0.1/32 to link 3".
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}; check the limit on open files (LimitNOFILE=)")]
    Connect(io::Error),
    /// What should be made is there already (`EEXIST`).
    #[error("cannot {request}: it exists already")]
    Exists {
        /// What was asked.
        request: String,
    },
    /// What should be changed or removed is not there.
    #[error("cannot {request}: {source}; somebody may have removed it meanwhile")]
    NotFound {
        /// What was asked.
        request: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not permitted.
    #[error("cannot {request}: {source}; CAP_NET_ADMIN in this network namespace is needed")]
    Denied {
        /// What was asked.
        request: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Any other refusal.
    #[error("cannot {request}: {source}")]
    Refused {
        /// What was asked.
        request: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel's answer makes no sense to this program.
    #[error("cannot {request}: unexpected answer: {answer}")]
    Answer {
        /// What was asked.
        request: String,
        /// What came.
        answer: String,
    },
}

/// One interface as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique within the namespace.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// MTU (bytes).
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Something is at the other end: for a TUN device, a process.
    pub carrier: bool,
    /// Kind as in `ip link add ... type KIND`; none for hardware and the loopback.
    pub kind: Option<String>,
}

/// A TUN or TAP device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunLink {
    /// The interface.
    pub link: Link,
    /// User and group that it is for, where it has both.
    pub owner: Option<TunOwner>,
}

/// What to change of an interface; what is not named stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkSettings {
    /// MTU (bytes).
    pub mtu: Option<u32>,
    /// Length of the transmit queue (packets).
    pub tx_queue_len: Option<u32>,
    /// The kernel makes no link-local address of its own. Without IPv6 in the kernel nothing is to
    /// be done and none of this is an error.
    pub ipv6_addr_gen_none: bool,
    /// Administrative state.
    pub up: Option<bool>,
}

/// One unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// Where to.
    pub destination: IpNet,
    /// Index of the interface that it leaves by.
    pub index: u32,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Next hop; none: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Path MTU to assume (bytes).
    pub mtu: Option<u32>,
}

/// The index of an interface that exists in the calling thread's network namespace. Waits for nobody who
/// is changing the network configuration, as [`Netlink::link`] does; for a name that nobody has, the kernel
/// may look for a driver.
///
/// # Errors
///
/// What the kernel said: `ENODEV` where there is no such interface.
pub fn index_of(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(rustix::net::netdevice::name_to_index(&socket, name)?)
}

/// A netlink socket of one network namespace.
#[derive(Debug)]
pub struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace; it stays there.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Connect`].
    pub fn connect() -> Result<Self, NetlinkError> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(NetlinkError::Connect)?;
        let handle = {
            let _inside = runtime.enter();
            let (connection, handle, _) =
                rtnetlink::new_connection().map_err(NetlinkError::Connect)?;
            runtime.spawn(connection);
            handle
        };
        Ok(Self { runtime, handle })
    }

    /// The interface called `name`, if there is one.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let query = self.handle.link().get().match_name(name).execute();
        let found = self
            .runtime
            .block_on(async move { std::pin::pin!(query).try_next().await });
        match found.map_err(|error| refusal(format!("read link {name}"), error)) {
            Ok(found) => Ok(found.as_ref().map(message::link)),
            Err(NetlinkError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All TUN and TAP devices.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn tuns(&self) -> Result<Vec<TunLink>, NetlinkError> {
        let query = self.handle.link().get().execute();
        let found: Vec<_> = self
            .runtime
            .block_on(query.try_collect())
            .map_err(|error| refusal("list TUN devices".into(), error))?;
        Ok(found.iter().filter_map(message::tun).collect())
    }

    /// All interfaces.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let query = self.handle.link().get().execute();
        let found: Vec<_> = self
            .runtime
            .block_on(query.try_collect())
            .map_err(|error| refusal("list links".into(), error))?;
        Ok(found.iter().map(message::link).collect())
    }

    /// Changes an interface; the state up or down comes last.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::NotFound`] if there is no such interface, and the others.
    pub fn configure_link(&self, index: u32, settings: LinkSettings) -> Result<(), NetlinkError> {
        if settings.ipv6_addr_gen_none {
            self.stop_address_generation(index)?;
        }
        let mut link = LinkUnspec::new_with_index(index);
        if let Some(mtu) = settings.mtu {
            link = link.mtu(mtu);
        }
        if let Some(len) = settings.tx_queue_len {
            link = link.txqueuelen(len);
        }
        match settings.up {
            Some(true) => link = link.up(),
            Some(false) => link = link.down(),
            None => {}
        }
        self.change_link(link.build(), || {
            format!("configure link {index} ({settings:?})")
        })
    }

    fn stop_address_generation(&self, index: u32) -> Result<(), NetlinkError> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                vec![mode],
            )]))
            .build();
        let request = || format!("stop IPv6 address generation on link {index}");
        match self.change_link(message, request) {
            Err(NetlinkError::Refused { source, .. })
                if matches!(
                    Errno::from_io_error(&source),
                    Some(Errno::AFNOSUPPORT | Errno::OPNOTSUPP)
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn change_link(
        &self,
        message: LinkMessage,
        request: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        self.runtime
            .block_on(self.handle.link().change(message).execute())
            .map_err(|error| refusal(request(), error))
    }

    /// Removes an interface.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::NotFound`] if there is no such interface, and the others.
    pub fn delete_link(&self, index: u32) -> Result<(), NetlinkError> {
        self.runtime
            .block_on(self.handle.link().del(index).execute())
            .map_err(|error| refusal(format!("delete link {index}"), error))
    }

    /// Adds an address; an IPv6 one is usable at once (no duplicate address detection: nobody else
    /// is on the link).
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Exists`] if the interface has it, and the others.
    pub fn add_address(&self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let mut request = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len());
        message::skip_detection(request.message_mut());
        self.runtime
            .block_on(request.execute())
            .map_err(|error| refusal(format!("add address {address} to link {index}"), error))
    }

    /// Removes an address.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::NotFound`] if the interface does not have it, and the others.
    pub fn delete_address(&self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        self.runtime
            .block_on(
                self.handle
                    .address()
                    .del(message::address(index, address))
                    .execute(),
            )
            .map_err(|error| refusal(format!("delete address {address} of link {index}"), error))
    }

    /// All addresses of an interface, link-local ones included.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn addresses(&self, index: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let query = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute();
        let found: Vec<_> = self
            .runtime
            .block_on(query.try_collect())
            .map_err(|error| refusal(format!("list addresses of link {index}"), error))?;
        Ok(found.iter().filter_map(message::address_of).collect())
    }

    /// Adds a route, or puts it in the place of the one to the same destination.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn replace_route(&self, route: &RouteSpec) -> Result<(), NetlinkError> {
        let message = message::route(route);
        self.runtime
            .block_on(self.handle.route().add(message).replace().execute())
            .map_err(|error| refusal(format!("set {}", message::describe(route)), error))
    }

    /// Adds a route, and leaves one of another interface to the same destination in force: the new one
    /// then gets `metric` and serves when the other has gone. A route that is there already is no error.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn add_route_behind(&self, route: &RouteSpec, metric: u32) -> Result<(), NetlinkError> {
        match self.add_route(message::route(route), route) {
            Err(NetlinkError::Exists { .. }) => {}
            done => return done,
        }
        if self.routes(route.index)?.contains(route) {
            return Ok(());
        }
        match self.add_route(message::route_with_metric(route, metric), route) {
            Err(NetlinkError::Exists { .. }) => Ok(()),
            done => done,
        }
    }

    fn add_route(&self, message: RouteMessage, route: &RouteSpec) -> Result<(), NetlinkError> {
        self.runtime
            .block_on(self.handle.route().add(message).execute())
            .map_err(|error| refusal(format!("add {}", message::describe(route)), error))
    }

    /// Removes a route; its MTU is not compared.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::NotFound`] if there is no such route, and the others.
    pub fn delete_route(&self, route: &RouteSpec) -> Result<(), NetlinkError> {
        let message = message::route_to_delete(route);
        self.runtime
            .block_on(self.handle.route().del(message).execute())
            .map_err(|error| refusal(format!("delete {}", message::describe(route)), error))
    }

    /// The routes of the main table that leave by an interface, less those that the kernel made for
    /// its addresses.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn routes(&self, index: u32) -> Result<Vec<RouteSpec>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut all = RouteMessage::default();
            all.header.address_family = family;
            let query = self.handle.route().get(all).execute();
            let found: Vec<_> = self
                .runtime
                .block_on(query.try_collect())
                .map_err(|error| refusal(format!("list routes by link {index}"), error))?;
            routes.extend(
                found
                    .iter()
                    .filter_map(message::route_of)
                    .filter(|route| route.index == index),
            );
        }
        Ok(routes)
    }

    /// Brings the loopback up: for namespaces made for tests and the lab.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn set_loopback_up(&self) -> Result<(), NetlinkError> {
        const LOOPBACK_INDEX: u32 = 1;
        let up = LinkUnspec::new_with_index(LOOPBACK_INDEX).up().build();
        self.change_link(up, || "set the loopback up".into())
    }

    /// Makes a pair of virtual Ethernet interfaces: for the lab's underlay.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Exists`] if a name is taken, and the others.
    pub fn add_veth(&self, one: &str, other: &str) -> Result<(), NetlinkError> {
        let pair = LinkVeth::new(one, other).build();
        self.runtime
            .block_on(self.handle.link().add(pair).execute())
            .map_err(|error| refusal(format!("add veth pair {one}, {other}"), error))
    }

    /// Makes a bridge: for the lab's underlay.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Exists`] if the name is taken, and the others.
    pub fn add_bridge(&self, name: &str) -> Result<(), NetlinkError> {
        self.runtime
            .block_on(
                self.handle
                    .link()
                    .add(LinkBridge::new(name).build())
                    .execute(),
            )
            .map_err(|error| refusal(format!("add bridge {name}"), error))
    }

    /// Makes an interface a port of a bridge: for the lab's underlay.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn set_master(&self, index: u32, master: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).controller(master).build();
        self.change_link(message, || format!("make link {index} a port of {master}"))
    }

    /// Moves an interface to another namespace, where it may get another index.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Exists`] if its name is taken there, and the others.
    pub fn move_to_netns(&self, index: u32, netns: &Netns) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index)
            .setns_by_fd(netns.as_fd().as_raw_fd())
            .build();
        self.change_link(message, || {
            format!("move link {index} to {}", netns.identity())
        })
    }
}

/// As [`Sysctl::enable_ipv6`], for the calling thread's namespace and the kernel's own `/proc/sys`.
///
/// # Errors
///
/// What the kernel said, with the setting's path.
pub fn enable_ipv6(ifname: &str) -> io::Result<()> {
    Sysctl::default().enable_ipv6(ifname)
}

fn refusal(request: String, error: rtnetlink::Error) -> NetlinkError {
    let rtnetlink::Error::NetlinkError(message) = &error else {
        return NetlinkError::Answer {
            request,
            answer: error.to_string(),
        };
    };
    let source = message.to_io();
    match Errno::from_io_error(&source) {
        Some(Errno::EXIST) => NetlinkError::Exists { request },
        Some(Errno::NODEV | Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL) => {
            NetlinkError::NotFound { request, source }
        }
        Some(Errno::PERM | Errno::ACCESS) => NetlinkError::Denied { request, source },
        _ => NetlinkError::Refused { request, source },
    }
}

#[cfg(test)]
mod tests;
