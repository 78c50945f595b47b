//! pki
pub mod identity;
