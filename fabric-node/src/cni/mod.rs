//! Attaching pods: the CNI socket, the steps of ADD and DEL, addresses and their record on disk.
//!
//! An ADD's way: [`server`] reads it from the plugin, [`attach`] carries it out with addresses from
//! [`ipam`], writes it down in [`store`] before it touches anything, has [`links`] make the pod's
//! interface and hands the device to the [`attach::Fabric`]. [`conflist`] tells runtimes that all this can be had.

pub mod attach;
pub mod clock;
pub mod conflist;
pub mod ipam;
pub mod links;
pub mod roots;
pub mod server;
pub mod store;
pub mod survey;
pub mod times;
