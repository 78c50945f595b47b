//! Who a node is: the cluster's certificate authority and the identity a daemon shows its peers.
//!
//! * [`authority`] makes a CA and signs node certificates, in memory: [`init`], [`issue`].
//! * [`files`] keeps them on disk: keys 0600, each file whole or absent, nothing overwritten unasked.
//! * [`spiffe`] is the name inside a certificate: `spiffe://<trust domain>/node/<node>`.
//! * [`identity`] loads a node's files and makes the TLS configurations of the tunnel.
//! * [`live`] holds the identity in use while newer ones take its place; [`follow`] takes them from files,
//!   [`kubernetes`] from a cluster's signer.
//! * [`key`] names public keys.
//! * [`verify`] decides whether a peer's chain is accepted.
//!
//! Never done here: sockets, and deciding which node ought to be a peer.

pub mod authority;
pub mod files;
pub mod follow;
pub mod identity;
pub mod key;
pub mod kubernetes;
pub mod live;
pub mod spiffe;
pub mod validity;
pub mod verify;

#[cfg(test)]
mod handshake_tests;

pub use authority::{Authority, AuthorityError, NodeCredentials, init, issue};
pub use identity::{IdentityError, NodeIdentity};
pub use live::LiveIdentity;
