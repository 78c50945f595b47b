//! TUN devices with virtio headers and offloads.
//!
//! Comes in: an interface name. Goes out: a [`Tun`] whose reads and writes carry 64 KiB
//! super-packets. Never done here: looking into packets, addresses, routes, link state.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
};

use fabric_core::offload::VnetHeader;
use rustix::{
    fs::OFlags,
    io::Errno,
    ioctl::{IntegerSetter, Opcode, Setter, ioctl, opcode},
    net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with},
};
use thiserror::Error;
use tun::AbstractDevice;

/// Largest packet one read can return (bytes): an IPv6 header and the largest payload its length
/// field can name (RFC 8200 section 3). A shorter buffer would cut super-packets.
pub const READ_BYTES_MAX: usize = 40 + 65_535;

/// Longest interface name (bytes): `IFNAMSIZ` less its NUL.
pub const IFNAME_BYTES_MAX: usize = 15;

/// Which offloads the device accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunOffloads {
    /// Packets may carry partial checksums.
    pub checksum: bool,
    /// TCP over IPv4 super-packets.
    pub tso4: bool,
    /// TCP over IPv6 super-packets.
    pub tso6: bool,
    /// UDP over IPv4 super-packets. Kernels grant both UDP flags or neither (Linux 6.2).
    pub uso4: bool,
    /// UDP over IPv6 super-packets.
    pub uso6: bool,
}

impl TunOffloads {
    /// Everything this data path can make use of.
    pub const ALL: Self = Self {
        checksum: true,
        tso4: true,
        tso6: true,
        uso4: true,
        uso6: true,
    };

    /// Every packet complete and at most one MTU long.
    pub const NONE: Self = Self {
        checksum: false,
        tso4: false,
        tso6: false,
        uso4: false,
        uso6: false,
    };

    /// What to try, the most wanted first. The kernel refuses a set as a whole, so each step leaves
    /// out the youngest feature of the one before.
    fn ladder(self) -> [Self; 4] {
        let without_uso = Self {
            uso4: false,
            uso6: false,
            ..self
        };
        let checksum_only = Self {
            checksum: self.checksum,
            ..Self::NONE
        };
        [self, without_uso, checksum_only, Self::NONE]
    }

    /// `TUN_F_*` (linux/if_tun.h).
    fn flags(self) -> u32 {
        let mut flags = 0;
        for (wanted, flag) in [
            (self.checksum, libc::TUN_F_CSUM),
            (self.tso4, libc::TUN_F_TSO4),
            (self.tso6, libc::TUN_F_TSO6),
            (self.tso4 || self.tso6, libc::TUN_F_TSO_ECN),
            (self.uso4, libc::TUN_F_USO4),
            (self.uso6, libc::TUN_F_USO6),
        ] {
            if wanted {
                flags |= flag;
            }
        }
        flags
    }
}

/// Who may attach to a device without `CAP_NET_ADMIN`, as the kernel keeps it with the device: a user
/// and a group. With neither, anybody may who can open `/dev/net/tun` (`tun_not_capable` in
/// drivers/net/tun.c); the capability that always suffices is the one over the user namespace that owns
/// the network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunOwner {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
}

/// Why a device could not be opened.
#[derive(Debug, Error)]
pub enum TunError {
    /// Not a name that an interface can have.
    #[error(
        "{name:?} is not an interface name: use 1 to {IFNAME_BYTES_MAX} bytes without '/', ':', '%' and white space, and not \"all\" or \"default\""
    )]
    Name {
        /// Interface name asked for.
        name: String,
    },
    /// There is no TUN driver.
    #[error(
        "cannot open TUN device {name}: {source}; /dev/net/tun is missing or without a driver: run `modprobe tun`, or in a container mount the host's /dev/net/tun"
    )]
    Missing {
        /// Interface name asked for.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The node's permissions forbid it.
    #[error(
        "cannot open TUN device {name}: {source}; /dev/net/tun must be readable and writable: run as root or `chmod 0666 /dev/net/tun`"
    )]
    Denied {
        /// Interface name asked for.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A capability is missing.
    #[error(
        "cannot open TUN device {name}: {source}; CAP_NET_ADMIN in this network namespace is needed (systemd: AmbientCapabilities=CAP_NET_ADMIN; Kubernetes: securityContext.capabilities.add NET_ADMIN), and where device access is restricted the rule `c 10:200 rwm`"
    )]
    NotCapable {
        /// Interface name asked for.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The name belongs to another interface.
    #[error(
        "interface {name} exists in this network namespace and is not ours to use: remove it (`ip link delete {name}`) or choose another name"
    )]
    Exists {
        /// Interface name asked for.
        name: String,
    },
    /// Another descriptor holds the device.
    #[error(
        "TUN device {name} is in use: another process holds it (is a second fabric-node running?)"
    )]
    Busy {
        /// Interface name asked for.
        name: String,
    },
    /// Any other refusal.
    #[error(
        "cannot open TUN device {name}: {source}; check that /dev/net/tun exists and is accessible and that CAP_NET_ADMIN is held"
    )]
    Open {
        /// Interface name asked for.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device is there, but cannot do what the data path needs.
    #[error("TUN device {name}: {request} failed: {source}; Linux 4.14 or newer is needed")]
    SetUp {
        /// Interface name.
        name: String,
        /// Which request the kernel refused.
        request: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One TUN device, one queue, non-blocking, opened with `IFF_NO_PI | IFF_VNET_HDR`.
///
/// The device goes away with the last descriptor unless [`Tun::set_persistent`] said otherwise.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
    offloads: TunOffloads,
    refused: Option<Errno>,
}

impl Tun {
    /// Opens the device `name` in the calling thread's network namespace, re-attaching to a
    /// persistent one or creating it, and turns on the offloads that `wanted` names and the kernel
    /// has.
    ///
    /// # Errors
    ///
    /// [`TunError::Exists`] if `name` is no TUN device, [`TunError::Busy`] if another descriptor
    /// holds it, and the others where the machine lacks something.
    pub fn open(name: &str, wanted: TunOffloads) -> Result<Self, TunError> {
        check_name(name)?;
        let device = attach(name).map_err(|source| refusal(name, source))?;
        Self::set_up(device, name, wanted)
    }

    /// Creates the device `name`, which no interface in the calling thread's network namespace may
    /// have yet, with offloads as in [`Tun::open`].
    ///
    /// # Errors
    ///
    /// [`TunError::Exists`] if any interface, a TUN device included, has the name.
    pub fn create(name: &str, wanted: TunOffloads) -> Result<Self, TunError> {
        check_name(name)?;
        // A name of the kernel's choice is new for certain, and the kernel refuses to rename it to
        // one that is taken: between a check and a creation there would be a gap.
        let mut device = attach(NEW_DEVICE_PATTERN).map_err(|source| refusal(name, source))?;
        device.set_tun_name(name).map_err(|error| {
            let source = io::Error::from(error);
            match Errno::from_io_error(&source) {
                Some(Errno::EXIST) => TunError::Exists { name: name.into() },
                _ => refusal(name, source),
            }
        })?;
        Self::set_up(device, name, wanted)
    }

    /// Takes over `fd`, whose reads and writes carry one packet each behind a virtio header: a TUN
    /// device that another process has set up, or a socket pair of type SOCK_SEQPACKET in the place of
    /// one. `offloads` says what its other side takes. It is made non-blocking.
    ///
    /// # Errors
    ///
    /// [`TunError::Name`], or [`TunError::SetUp`] where the descriptor cannot be made non-blocking.
    pub fn adopt(fd: OwnedFd, name: &str, offloads: TunOffloads) -> Result<Self, TunError> {
        check_name(name)?;
        rustix::fs::fcntl_setfl(&fd, OFlags::RDWR | OFlags::NONBLOCK).map_err(|errno| {
            TunError::SetUp {
                name: name.to_owned(),
                request: "O_NONBLOCK",
                source: errno.into(),
            }
        })?;
        Ok(Self {
            fd,
            name: name.to_owned(),
            offloads,
            refused: None,
        })
    }

    fn set_up(device: tun::Device, name: &str, wanted: TunOffloads) -> Result<Self, TunError> {
        // SAFETY: `into_raw_fd` gives up the only ownership of an open descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
        let failed = |request: &'static str| {
            move |errno: Errno| TunError::SetUp {
                name: name.to_owned(),
                request,
                source: errno.into(),
            }
        };
        set_header_length(fd.as_fd()).map_err(failed("TUNSETVNETHDRSZ"))?;
        let (offloads, refused) = negotiate(fd.as_fd(), wanted).map_err(failed("TUNSETOFFLOAD"))?;
        Ok(Self {
            refused,
            ..Self::adopt(fd, name, offloads)?
        })
    }

    /// Whether the device outlives its last descriptor; without one it has no carrier.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes an integer, 0 or 1, in place of a pointer (tun(4)).
        let request = unsafe { IntegerSetter::<TUNSETPERSIST>::new_usize(persistent.into()) };
        // SAFETY: the descriptor is a TUN device and the request passes no memory.
        Ok(unsafe { ioctl(&self.fd, request) }?)
    }

    /// Says who may attach to the device while this process does not hold it.
    ///
    /// # Errors
    ///
    /// `InvalidInput` where an id does not exist in the calling process's user namespace, and what
    /// else the kernel says.
    pub fn set_owner(&self, owner: TunOwner) -> io::Result<()> {
        // SAFETY: TUNSETOWNER takes a user id in place of a pointer (tun(4)).
        let user = unsafe { IntegerSetter::<TUNSETOWNER>::new_usize(owner.user as usize) };
        // SAFETY: TUNSETGROUP takes a group id in place of a pointer (tun(4)).
        let group = unsafe { IntegerSetter::<TUNSETGROUP>::new_usize(owner.group as usize) };
        // SAFETY: the descriptor is a TUN device and the request passes no memory.
        unsafe { ioctl(&self.fd, user) }?;
        // SAFETY: as above.
        unsafe { ioctl(&self.fd, group) }?;
        Ok(())
    }

    /// Interface name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Offloads in use.
    #[must_use]
    pub fn offloads(&self) -> TunOffloads {
        self.offloads
    }

    /// What the kernel said to offloads that were wanted and are not in use; `None` if all are.
    #[must_use]
    pub fn refused_offloads(&self) -> Option<Errno> {
        self.refused
    }

    /// Reads one packet: its virtio header into `vnet`, the packet into `packet`; returns the
    /// packet's length in bytes. The kernel cuts off silently what `packet` cannot hold, so give it
    /// [`READ_BYTES_MAX`] bytes.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none; others mean that the device is gone.
    pub fn read(&self, vnet: &mut [u8; VnetHeader::LEN], packet: &mut [u8]) -> io::Result<usize> {
        let mut parts = [IoSliceMut::new(vnet), IoSliceMut::new(packet)];
        let len = rustix::io::readv(&self.fd, &mut parts)?;
        len.checked_sub(VnetHeader::LEN)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Writes one packet, gathered from `parts`; the first part is the encoded virtio header.
    ///
    /// # Errors
    ///
    /// What the kernel said; the packet is not delivered then.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        // A TUN device takes a packet whole or refuses it.
        rustix::io::writev(&self.fd, parts)?;
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a device could be opened: looks at the driver and makes none.
///
/// # Errors
///
/// [`TunError`] as [`Tun::open`] would give it.
pub fn probe() -> Result<(), TunError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(DRIVER, flags, rustix::fs::Mode::empty()) {
        Ok(_) => Ok(()),
        Err(errno) => Err(refusal(DRIVER, errno.into())),
    }
}

/// The driver's file (tun(4)).
const DRIVER: &str = "/dev/net/tun";

/// The kernel replaces `%d` with the first free number.
const NEW_DEVICE_PATTERN: &str = "fabricnew%d";

const TUNSETPERSIST: Opcode = opcode::write::<libc::c_int>(b'T', 203);
const TUNSETOWNER: Opcode = opcode::write::<libc::c_int>(b'T', 204);
const TUNSETGROUP: Opcode = opcode::write::<libc::c_int>(b'T', 206);
const TUNSETOFFLOAD: Opcode = opcode::write::<libc::c_uint>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<libc::c_int>(b'T', 216);

/// Folders below `/proc/sys/net/*/conf`, and what a path cannot name.
const RESERVED_NAMES: [&str; 4] = [".", "..", "all", "default"];

/// What the kernel's `dev_valid_name` accepts, less '%', which would make the name a pattern.
fn check_name(name: &str) -> Result<(), TunError> {
    let ok = (1..=IFNAME_BYTES_MAX).contains(&name.len())
        && !RESERVED_NAMES.contains(&name)
        && !name
            .bytes()
            .any(|b| matches!(b, b'/' | b':' | b'%' | 0) || b.is_ascii_whitespace() || b == 0x0b);
    if ok {
        Ok(())
    } else {
        Err(TunError::Name { name: name.into() })
    }
}

/// Opens `/dev/net/tun` and attaches it to `name`; touches neither addresses nor link state.
fn attach(name: &str) -> io::Result<tun::Device> {
    let mut config = tun::configure();
    config.tun_name(name).platform_config(|platform| {
        platform
            .vnet_hdr(true)
            .napi(false)
            .ensure_root_privileges(false);
    });
    tun::create(&config).map_err(io::Error::from)
}

fn refusal(name: &str, source: io::Error) -> TunError {
    let name = name.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => TunError::Missing { name, source },
        Some(Errno::ACCESS) => TunError::Denied { name, source },
        Some(Errno::PERM) => TunError::NotCapable { name, source },
        Some(Errno::BUSY) => TunError::Busy { name },
        Some(Errno::INVAL | Errno::EXIST) if interface_exists(&name) => TunError::Exists { name },
        _ => TunError::Open { name, source },
    }
}

fn interface_exists(name: &str) -> bool {
    socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .and_then(|socket| name_to_index(&socket, name))
    .is_ok()
}

/// A persistent device keeps what its last user chose, so the length is set and not assumed.
fn set_header_length(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    const LEN: libc::c_int = 10;
    const _: () = assert!(LEN as usize == VnetHeader::LEN);
    // SAFETY: TUNSETVNETHDRSZ reads one `int` behind the pointer.
    let request = unsafe { Setter::<TUNSETVNETHDRSZ, libc::c_int>::new(LEN) };
    // SAFETY: the descriptor is a TUN device; the `int` lives in `request`.
    unsafe { ioctl(fd, request) }
}

/// Turns on the largest set on the ladder that the kernel takes; that set, and what the kernel said to
/// the one before.
fn negotiate(
    fd: BorrowedFd<'_>,
    wanted: TunOffloads,
) -> Result<(TunOffloads, Option<Errno>), Errno> {
    // Segmentation builds on checksum offload: the kernel refuses it alone.
    let wanted = if wanted.checksum {
        wanted
    } else {
        TunOffloads::NONE
    };
    let mut refused = None;
    for offloads in wanted.ladder() {
        // SAFETY: TUNSETOFFLOAD takes the flags in place of a pointer (tun(4)).
        let request =
            unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(offloads.flags() as usize) };
        // SAFETY: the descriptor is a TUN device and the request passes no memory.
        match unsafe { ioctl(fd, request) } {
            Ok(()) => return Ok((offloads, refused)),
            Err(errno) => refused = Some(errno),
        }
    }
    Err(refused.unwrap_or(Errno::INVAL))
}

#[cfg(test)]
mod tests;
