//! What a person may want to type at a lab that is up.

use super::{command, state::LabState};

/// Commands to try on a lab that is up.
#[must_use]
pub fn next_steps(state: &LabState) -> String {
    let name = match state.name.as_str() {
        "lab" => String::new(),
        name => format!(" --name {name}"),
    };
    let mut lines = vec!["Try:".to_owned()];
    if let (Some(from), Some(to)) = (state.pods.first(), state.pods.last())
        && let Some(address) = to.addresses.first()
        && command::find("ping").is_some()
    {
        lines.push(format!(
            "  fabric lab exec{name} {} -- ping -c 3 {address}",
            from.name
        ));
    }
    if let Some(worker) = state.workers.first() {
        lines.push(format!(
            "  fabric lab exec{name} {} -- ip route",
            worker.name
        ));
        lines.push(format!(
            "  fabric peers --socket {}",
            worker.admin_socket().display()
        ));
    }
    lines.push(format!("  fabric lab down{name}"));
    lines.join("\n")
}
