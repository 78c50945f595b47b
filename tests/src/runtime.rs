//! Container runtimes started by a test, each private to one worker of a lab, and what they may leave behind.
//!
//! A [`place`] is a folder and a control group on a worker; [`containerd`] runs there, with [`image`]s made on
//! the spot, and is asked through [`cri`] as the kubelet asks it; a [`pod`] is made of such calls. [`podman`]
//! runs there too. [`leaks`] compares what there is before and after. All of it works only in the sandbox
//! that `scripts/sandbox` makes.

pub mod containerd;
pub mod cri;
pub mod image;
pub mod leaks;
pub mod place;
pub mod pod;
pub mod podman;
