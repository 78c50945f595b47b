//! The daemon before it is a node: there is no state yet that it could put in force.
//!
//! Both sockets answer: the plugin with why no pod can be attached, the operator with what is waited
//! for. Nothing else is touched.

use std::{sync::Arc, time::Instant};

use fabric_proto::admin::{
    AttachTimes, Device, DropList, PacketAccount, PeerList, PodList, RouteList, Status,
    UnderlayLosses,
};

use crate::{
    admin::{
        View,
        server::{self, AdminListener},
    },
    cni::server::CniServer,
    config::NodeConfig,
    control::host::HOST_DEVICE,
};

/// `state` of a [`Status`] before the daemon is a node.
const STATE_STARTING: &str = "Starting";

/// Why the daemon waits, as it is at the moment.
pub(super) type Reason = Arc<dyn Fn() -> String + Send + Sync>;

/// Answers on both sockets until it is dropped.
///
/// # Errors
///
/// A socket cannot be opened, or is no longer served.
pub(super) async fn answer(config: &NodeConfig, reason: Reason) -> anyhow::Result<()> {
    let view = Arc::new(WaitingView {
        node: config.node.to_string(),
        started: Instant::now(),
        reason: reason.clone(),
    });
    let listener = AdminListener::bind(&config.admin.socket)?;
    let cni = CniServer::bind(&config.cni.socket)?;
    tokio::select! {
        ended = server::serve(listener, view, std::future::pending()) => ended?,
        () = cni.refuse(reason) => {}
    }
    anyhow::bail!("a socket is no longer served")
}

struct WaitingView {
    node: String,
    started: Instant,
    reason: Reason,
}

impl View for WaitingView {
    fn status(&self) -> Status {
        Status {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            state: STATE_STARTING.to_owned(),
            reasons: vec![(self.reason)()],
            generation: 0,
            workers: 0,
            peers_connected: 0,
            peers_total: 0,
            pods: 0,
            host_device: Device {
                name: HOST_DEVICE.to_owned(),
                addresses: Vec::new(),
                offloads: Vec::new(),
            },
            underlay_offloads: Vec::new(),
            offloads_off: Vec::new(),
            packets: PacketAccount {
                conserved: true,
                ..PacketAccount::default()
            },
            underlay_losses: UnderlayLosses::default(),
            attach: AttachTimes::default(),
        }
    }

    fn peers(&self) -> PeerList {
        PeerList::default()
    }

    fn pods(&self) -> PodList {
        PodList::default()
    }

    fn routes(&self) -> RouteList {
        RouteList::default()
    }

    fn drops(&self) -> DropList {
        DropList::default()
    }
}
