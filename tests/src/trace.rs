//! What strace wrote in, calls and forbidden requests out. Runs nothing.
//!
//! Expects the options of [`tracer`]: one file for each thread, so that a call is one line, and the
//! bytes of everything sent. Netlink is read from those bytes, because strace decodes it only in its
//! own network namespace. What is not known to be allowed is forbidden.

use std::path::Path;

/// Calls that are looked at.
const TRACED: &str = "trace=socket,ioctl,sendto,sendmsg,sendmmsg,write,writev,pwritev2,sendfile,\
    splice,io_uring_setup,io_setup,bpf,setsockopt,mount,fsmount,move_mount,unshare,setns,\
    init_module,finit_module,execve,execveat,openat,openat2";
/// Calls that send what is in memory; to a netlink socket, that is a request.
const SENDS: [&str; 6] = [
    "sendto", "sendmsg", "sendmmsg", "write", "writev", "pwritev2",
];

/// Configuration of a device: up, MTU, name (RFC 3549 section 2.2.3, linux/rtnetlink.h).
pub const RTM_NEWLINK: u16 = 16;
/// Adds an address.
pub const RTM_NEWADDR: u16 = 20;
/// Adds a route.
pub const RTM_NEWROUTE: u16 = 24;
/// Takes a route away.
pub const RTM_DELROUTE: u16 = 25;
/// Takes a device away, as a TUN device that nobody needs.
const RTM_DELLINK: u16 = 17;
const RTM_SETLINK: u16 = 19;
/// All requests the product may make.
const REQUESTS: [u16; 11] = [
    RTM_NEWLINK,
    RTM_DELLINK,
    18, // RTM_GETLINK
    RTM_SETLINK,
    RTM_NEWADDR,
    21, // RTM_DELADDR
    22, // RTM_GETADDR
    RTM_NEWROUTE,
    RTM_DELROUTE,
    26, // RTM_GETROUTE
    34, // RTM_GETRULE: whether an earlier configuration has left any
];

/// Flag of a request that makes what is not there (linux/netlink.h).
const NLM_F_CREATE: u16 = 0x400;
/// Attributes of a link (linux/if_link.h): member of a bridge, kind of device, XDP program.
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
/// Bytes of a netlink header and of `struct ifinfomsg`.
const HEADER_BYTES: usize = 16;
const IFINFO_BYTES: usize = 16;

const IOCTLS: [&str; 16] = [
    "TUNSETIFF",
    "TUNGETIFF",
    "TUNGETFEATURES",
    "TUNSETQUEUE",
    "TUNSETVNETHDRSZ",
    "TUNSETOFFLOAD",
    "TUNSETPERSIST",
    "TUNSETOWNER",
    "TUNSETGROUP",
    "FIONBIO",
    "FIOCLEX",
    "FIONREAD",
    "TCGETS",
    "NS_GET_NSTYPE",
    // The name and the index of the TUN device.
    "SIOCSIFNAME",
    "SIOCGIFINDEX",
];

/// The command that traces what follows it, into files that begin with `files`.
///
/// With `detached`, the traced program is the process that was started, and the tracer another.
#[must_use]
pub fn tracer(files: &Path, detached: bool) -> Vec<String> {
    let mut words: Vec<String> = ["strace", "-ff", "-A", "-v", "-yy", "-s", "256"]
        .map(str::to_owned)
        .into();
    words.extend(["-e", TRACED, "-e", "write=all"].map(str::to_owned));
    if detached {
        words.push("-D".to_owned());
    }
    words.extend(["-o".to_owned(), files.display().to_string()]);
    words
}

/// A traced call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Name of the system call.
    pub name: String,
    /// Arguments and result, as strace prints them.
    pub text: String,
    /// Bytes it sent.
    pub sent: Vec<u8>,
}

/// A netlink request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Type, such as [`RTM_NEWLINK`].
    pub kind: u16,
    flags: u16,
    body: Vec<u8>,
}

/// The calls of one file.
#[must_use]
pub fn parse(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for line in trace.lines() {
        if let Some(dump) = line.strip_prefix(" | ") {
            if let Some(call) = calls.last_mut() {
                call.sent.extend(dumped(dump));
            }
        } else if let Some((name, text)) = line.split_once('(')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        {
            calls.push(Call {
                name: name.to_owned(),
                text: text.to_owned(),
                sent: Vec::new(),
            });
        }
    }
    calls
}

/// Bytes of one line of a dump: offset, 16 times two digits with a gap in the middle, text.
fn dumped(line: &str) -> Vec<u8> {
    const DIGITS: usize = 48;
    let Some((_, rest)) = line.split_once("  ") else {
        return Vec::new();
    };
    rest.get(..DIGITS)
        .unwrap_or(rest)
        .split_whitespace()
        .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect()
}

impl Call {
    /// Argument number `index`, counted from 0, up to the next comma.
    #[must_use]
    pub fn argument(&self, index: usize) -> &str {
        let argument = self.text.split(", ").nth(index).unwrap_or_default();
        argument.split(')').next().unwrap_or_default()
    }

    /// The netlink requests it sent, or `None` where it sent to something else.
    #[must_use]
    pub fn requests(&self) -> Option<Vec<Request>> {
        let sends = SENDS.contains(&self.name.as_str());
        (sends && self.argument(0).contains("<NETLINK:")).then(|| requests(&self.sent))
    }

    /// What of this call the product must not ask for.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let allowed = match self.name.as_str() {
            "socket" => self.is_allowed_socket(),
            "ioctl" => IOCTLS.contains(&self.argument(1)),
            "setsockopt" => self.is_allowed_option(),
            "setns" => self.argument(1) == "CLONE_NEWNET",
            "openat" | "openat2" => self.is_allowed_open(),
            "execve" => ["fabric-node", "fabric-cni"]
                .iter()
                .any(|program| self.argument(0).ends_with(&format!("/{program}\""))),
            // What these send is in files and pipes, where it is not seen.
            "sendfile" | "splice" => !self.text.contains("<NETLINK:"),
            name if SENDS.contains(&name) => {
                return match self.requests() {
                    Some(requests) if requests.is_empty() => {
                        vec![format!("netlink that cannot be read: {}", self.text)]
                    }
                    Some(requests) => requests.iter().filter_map(Request::violation).collect(),
                    None => Vec::new(),
                };
            }
            _ => false,
        };
        if allowed {
            Vec::new()
        } else {
            vec![format!("{}({}", self.name, self.text)]
        }
    }

    fn is_allowed_socket(&self) -> bool {
        match self.argument(0) {
            "AF_UNIX" => true,
            "AF_INET" | "AF_INET6" => !self.argument(1).contains("SOCK_RAW"),
            "AF_NETLINK" => self.argument(2) == "NETLINK_ROUTE",
            _ => false,
        }
    }

    /// Options by level and name; those of packet filters share levels, and numbers, with others.
    fn is_allowed_option(&self) -> bool {
        let name = self.argument(2);
        match self.argument(1) {
            "SOL_SOCKET" => name.starts_with("SO_") && !name.starts_with("SO_ATTACH"),
            "SOL_IP" => name.starts_with("IP_"),
            "SOL_IPV6" => name.starts_with("IPV6_"),
            "SOL_UDP" => name.starts_with("UDP_"),
            "SOL_NETLINK" => name.starts_with("NETLINK_"),
            _ => false,
        }
    }

    /// Of the kernel's settings, only those of single interfaces for IPv6 are written.
    fn is_allowed_open(&self) -> bool {
        let path = self.argument(1).trim_matches('"');
        let writes = ["O_WRONLY", "O_RDWR"]
            .iter()
            .any(|mode| self.argument(2).contains(mode));
        let is_setting = path.starts_with("/proc/sys/") || path.starts_with("/sys/");
        !writes || !is_setting || path.starts_with("/proc/sys/net/ipv6/conf/")
    }
}

impl Request {
    /// Whether its attributes hold these bytes, such as an address.
    #[must_use]
    pub fn holds(&self, bytes: &[u8]) -> bool {
        self.body.windows(bytes.len()).any(|part| part == bytes)
    }

    fn violation(&self) -> Option<String> {
        if !REQUESTS.contains(&self.kind) {
            return Some(format!("netlink request of type {}", self.kind));
        }
        if self.kind != RTM_NEWLINK && self.kind != RTM_SETLINK {
            return None;
        }
        let attributes = attributes(self.body.get(IFINFO_BYTES..).unwrap_or_default());
        for (kind, value) in attributes {
            match kind {
                IFLA_LINKINFO => return Some(format!("a link of kind {}", link_kind(value))),
                IFLA_MASTER => return Some("a link made member of another".to_owned()),
                IFLA_XDP => return Some("an XDP program on a link".to_owned()),
                _ => {}
            }
        }
        (self.flags & NLM_F_CREATE != 0).then(|| "a new link of unnamed kind".to_owned())
    }
}

fn requests(mut bytes: &[u8]) -> Vec<Request> {
    let mut found = Vec::new();
    while let [l0, l1, l2, l3, k0, k1, f0, f1, ..] = *bytes {
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let Some(body) = bytes.get(HEADER_BYTES..len) else {
            break;
        };
        found.push(Request {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            body: body.to_vec(),
        });
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Type and value of each attribute; the two upper bits of a type are flags (linux/netlink.h).
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let [l0, l1, k0, k1, ..] = *bytes {
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(value) = bytes.get(4..len) else {
            break;
        };
        found.push((u16::from_ne_bytes([k0, k1]) & 0x3fff, value));
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn link_kind(info: &[u8]) -> String {
    attributes(info)
        .into_iter()
        .find(|(kind, _)| *kind == IFLA_INFO_KIND)
        .map_or_else(
            || "unknown".to_owned(),
            |(_, name)| {
                String::from_utf8_lossy(name)
                    .trim_end_matches('\0')
                    .to_owned()
            },
        )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn violations(line: &str) -> Vec<String> {
        let calls = parse(line);
        assert_eq!(calls.len(), 1, "{line}");
        calls[0].violations()
    }

    /// Each forbidden request is found in the line that strace writes for it.
    #[test]
    fn forbidden_calls_are_found() {
        for line in [
            "bpf(BPF_PROG_LOAD, {prog_type=BPF_PROG_TYPE_SCHED_CLS, insn_cnt=2}, 128) = 3",
            "socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_NETFILTER) = 3<NETLINK:[NETFILTER:9]>",
            "socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC) = 3",
            "socket(AF_INET, SOCK_RAW, IPPROTO_RAW) = 4<RAW:[1]>",
            "socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_ALL)) = 3",
            r#"setsockopt(4<RAW:[1]>, SOL_IP, IPT_SO_SET_REPLACE, "filter", 96) = 0"#,
            r#"setsockopt(4<UDP:[1]>, SOL_IP, 0x40 /* IP_??? */, "filter", 96) = 0"#,
            "setsockopt(4<UDP:[1]>, SOL_SOCKET, SO_ATTACH_BPF, [5], 4) = 0",
            "ioctl(3<UNIX-STREAM:[1]>, SIOCBRADDBR, 0x7ffd) = 0",
            "ioctl(3</dev/net/tun<char 10:200>>, TUNSETSTEERINGEBPF, 0x7ffd) = 0",
            r#"finit_module(3, "", 0) = 0"#,
            r#"mount("proc", "/proc", "proc", 0, NULL) = 0"#,
            "unshare(CLONE_NEWNET) = 0",
            r#"setns(3</proc/1/ns/mnt>, CLONE_NEWNS) = 0"#,
            r#"execve("/usr/sbin/nft", ["nft", "list"], ["A=b"]) = 0"#,
            r#"openat(AT_FDCWD</>, "/proc/sys/net/ipv4/ip_forward", O_WRONLY|O_TRUNC) = 3"#,
            r#"openat(AT_FDCWD</>, "/sys/class/net/br0/bridge/stp_state", O_RDWR) = 3"#,
            r#"sendto(3<NETLINK:[7]>, "", 0, 0, NULL, 0) = 0"#,
            r#"write(3<NETLINK:[7]>, "", 0) = 0"#,
            "writev(3<NETLINK:[7]>, [], 0) = 0",
            "sendfile(3<NETLINK:[7]>, 4</etc/hosts>, NULL, 10) = 10",
            "splice(4<pipe:[8]>, NULL, 3<NETLINK:[7]>, NULL, 10, 0) = 10",
            "io_uring_setup(8, {flags=0, sq_entries=8}) = 4<anon_inode:[io_uring]>",
            "io_setup(8, [0x7f54b3574830]) = 0",
        ] {
            assert_eq!(violations(line).len(), 1, "{line}");
        }
    }

    /// What the product does ask for passes.
    #[test]
    fn expected_calls_pass() {
        for line in [
            "socket(AF_NETLINK, SOCK_DGRAM|SOCK_CLOEXEC, NETLINK_ROUTE) = 28<NETLINK:[188384]>",
            "socket(AF_INET6, SOCK_DGRAM|SOCK_CLOEXEC, IPPROTO_IP) = 9<UDPv6:[1]>",
            "socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0) = 3<UNIX-STREAM:[188377]>",
            "ioctl(23</dev/net/tun<char 10:200>>, TUNSETIFF, 0x7f54b3574830) = 0",
            "setsockopt(9<UDP:[1]>, SOL_IP, IP_MTU_DISCOVER, [3], 4) = 0",
            r#"setns(22</run/netns/pod>, CLONE_NEWNET) = 0"#,
            r#"openat(AT_FDCWD</>, "/proc/sys/net/ipv6/conf/eth0/accept_ra", O_WRONLY|O_CREAT, 0666) = 29"#,
            r#"openat(AT_FDCWD</>, "/proc/sys/kernel/random/boot_id", O_RDONLY|O_CLOEXEC) = 29"#,
            r#"execve("/opt/fabric/fabric-node", ["fabric-node", "run"], ["A=b"]) = 0"#,
            r#"sendto(5<UDP:[1]>, "abc", 3, 0, NULL, 0) = 3"#,
            r#"write(2</var/log/fabric>, "abc", 3) = 3"#,
            r#"writev(23</dev/net/tun<char 10:200>>, [{iov_base="abc", iov_len=3}], 1) = 3"#,
        ] {
            assert_eq!(violations(line), Vec::<String>::new(), "{line}");
        }
    }

    /// A request is put together from the lines of its dump; lines of other calls stay apart.
    #[test]
    fn requests_are_read_from_the_dump() {
        let trace = "\
sendto(28<NETLINK:[188384]>, [{nlmsg_len=40}], 40, 0, NULL, 0) = 40
 | 00000  28 00 00 00 14 00 05 06  04 00 00 00 00 00 00 00  (............... |
 | 00010  02 20 00 00 02 00 00 00  08 00 01 00 0a f4 01 02  . .............. |
 | 00020  08 00 02 00 0a f4 01 02                           ........         |
sendto(5<UDP:[1]>, \"de ad\", 5, 0, NULL, 0) = 5
 | 00000  64 65 20 61 64                                    de ad            |
+++ exited with 0 +++
";
        let calls = parse(trace);
        assert_eq!(calls.len(), 2);
        let requests = calls[0].requests().unwrap();
        assert_eq!((requests.len(), requests[0].kind), (1, RTM_NEWADDR));
        assert!(calls[0].violations().is_empty());
        assert_eq!((calls[1].requests(), calls[1].sent.len()), (None, 5));
        assert!(requests[0].holds(&[10, 244, 1, 2]) && !requests[0].holds(&[10, 244, 1, 3]));
    }

    /// Requests that are written, in pieces, are the same as those that are sent.
    #[test]
    fn written_requests_are_read_too() {
        let trace = "\
writev(3<NETLINK:[7]>, [{iov_len=16}, {iov_len=24}], 2) = 40
 * 16 bytes in buffer 0
 | 00000  28 00 00 00 14 00 05 06  04 00 00 00 00 00 00 00  (............... |
 * 24 bytes in buffer 1
 | 00000  02 20 00 00 02 00 00 00  08 00 01 00 0a f4 01 02  . .............. |
 | 00010  08 00 02 00 0a f4 01 02                           ........         |
";
        let calls = parse(trace);
        let requests = calls[0].requests().unwrap();
        assert_eq!((requests.len(), requests[0].kind), (1, RTM_NEWADDR));
    }
}
