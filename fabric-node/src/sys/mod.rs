//! The only unsafe code: devices, namespaces, netlink, raw sockets. Owned descriptors in and out.
#![allow(unsafe_code)]

pub mod capture;
pub mod child;
pub mod netfilter;
pub mod netlink;
pub mod netns;
pub mod peer;
pub mod sched;
pub mod sysctl;
pub mod tcp;
pub mod tun;
pub mod udp;
