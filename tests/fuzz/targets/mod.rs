//! What is fuzzed: one file per target, each with an oracle that knows nothing of the code under test.

mod frames;
mod hello;
mod loopback;
mod node_config;
mod nodes;
mod packets;
mod plugin;
mod store;
mod toml_text;
mod tunnel;

use super::Target;

/// All targets that run within this process.
#[must_use]
pub fn all() -> Vec<Box<dyn Target>> {
    vec![
        Box::new(plugin::Plugin),
        Box::new(loopback::Loopback),
        Box::new(frames::Frames),
        Box::new(packets::Packets),
        Box::new(tunnel::Tunnel),
        Box::new(hello::Hellos),
        Box::new(store::Records),
        Box::new(nodes::Nodes),
        Box::new(node_config::NodeConfig),
    ]
}
