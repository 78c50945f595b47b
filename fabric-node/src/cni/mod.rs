//! Attaching pods: the CNI socket, the steps of ADD and DEL, addresses and their record on disk.

pub mod attach;
pub mod ipam;
pub mod server;
pub mod store;
