//! A real Kubernetes cluster on one machine: etcd, API server, controllers, scheduler; nodes with containerd, kubelet
//! and kube-proxy; CoreDNS. Every program is the one that clusters run; only the machines are namespaces.
//!
//! A [`Cluster`] is made of a [`control_plane`] and [`node`]s, which an [`underlay`] joins. [`pki`] signs their
//! certificates, [`registry`] hands out the [`images`], [`kubectl`] asks. What connects the pods is the choice of who
//! makes the cluster ([`Network`]): the product by its manifest, or the [`mod@reference`] plugins, which prove that the rest
//! works. All of it lives in the sandbox that `scripts/sandbox` makes and ends with it, however that ends.

pub mod cgroups;
pub mod containerd;
pub mod control_plane;
pub mod daemon;
pub mod dns;
pub mod images;
pub mod kubectl;
pub mod kubelet;
pub mod node;
pub mod pki;
pub mod plan;
pub mod programs;
pub mod proxy;
pub mod realm;
pub mod reference;
pub mod registry;
pub mod relay;
pub mod site;
pub mod standing;
pub mod steps;
pub mod survey;
pub mod underlay;
mod whole;

pub use whole::{Cluster, Network, Options};
