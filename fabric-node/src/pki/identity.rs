//! stand-in
use crate::control::desired::NodeId;
use rustls_pki_types::CertificateDer;
use std::sync::Arc;
#[derive(Debug)]
pub struct NodeIdentity;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct IdentityError;
impl NodeIdentity {
    pub fn client_config(&self, _n: NodeId) -> Arc<rustls::ClientConfig> {
        unimplemented!()
    }
    pub fn server_config(&self) -> Arc<rustls::ServerConfig> {
        unimplemented!()
    }
    pub fn peer_node_id(&self, _c: &[CertificateDer<'_>]) -> Result<NodeId, IdentityError> {
        Err(IdentityError)
    }
}
