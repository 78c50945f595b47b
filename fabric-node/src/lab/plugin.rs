//! Attaching pods as a container runtime does: exec of `fabric-cni` with the environment and the
//! standard input of the CNI specification.

use std::{net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    command,
    daemon::wrapped,
    state::{CNI_NETWORK, LabState, Pod, Worker},
    underlay::inside,
};

/// Name of the plugin's program, and `type` in the configuration.
pub const PLUGIN: &str = "fabric-cni";
/// Name of a pod's interface.
pub const POD_IFNAME: &str = "eth0";

/// CNI version spoken by the lab itself.
const CNI_VERSION: &str = "1.1.0";
/// How long one call of the plugin may take.
const PLUGIN_MAX: Duration = Duration::from_secs(30);

/// Attaches a pod; its addresses, IPv4 first.
///
/// # Errors
///
/// The plugin failed; with the code and message it answered.
pub fn add(state: &LabState, worker: &Worker, pod: &Pod) -> anyhow::Result<Vec<IpAddr>> {
    let output = call(state, worker, pod, "ADD")?;
    let mut addresses = parse_addresses(&output)
        .with_context(|| format!("{PLUGIN} answered ADD with {output:?}"))?;
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(addresses)
}

/// Detaches a pod.
///
/// # Errors
///
/// As [`add`].
pub fn delete(state: &LabState, worker: &Worker, pod: &Pod) -> anyhow::Result<()> {
    call(state, worker, pod, "DEL").map(drop)
}

/// The list of plugins of a worker, as `10-fabric.conflist` holds it: also for runtimes that read only
/// `cniVersion` and do not know 1.1.0.
#[must_use]
pub fn network_list(worker: &Worker) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": CNI_NETWORK,
        "loadOnlyInlinedPlugins": true,
        "plugins": [{
            "type": PLUGIN,
            "socket": worker.cni_socket(),
            "stateDir": worker.state_dir(),
        }],
    })
}

fn call(state: &LabState, worker: &Worker, pod: &Pod, verb: &str) -> anyhow::Result<String> {
    let mut config = json!({
        "cniVersion": CNI_VERSION,
        "name": CNI_NETWORK,
        "type": PLUGIN,
        "socket": worker.cni_socket(),
        "stateDir": worker.state_dir(),
    });
    if verb == "DEL" {
        // A runtime hands back what ADD answered.
        config["prevResult"] = previous_result(pod);
    }
    let mut program = wrapped(&state.wrappers.plugin, &state.bin_dir.join(PLUGIN));
    program
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &pod.container_id)
        .env("CNI_NETNS", &pod.netns)
        .env("CNI_IFNAME", POD_IFNAME)
        .env("CNI_PATH", &state.bin_dir)
        .env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=lab-{};K8S_POD_NAME={}",
                state.name, pod.name
            ),
        );
    // On a worker the runtime, and so the plugin, lives in the host's namespace.
    let answer = inside(&worker.netns, move || {
        command::run(program, config.to_string().as_bytes(), PLUGIN_MAX)
    })?;
    if !answer.status.success() {
        bail!(
            "{verb} of {} on {} failed: {}",
            pod.name,
            worker.name,
            failure(&answer)
        );
    }
    Ok(answer.stdout)
}

fn previous_result(pod: &Pod) -> Value {
    let ips: Vec<Value> = pod
        .addresses
        .iter()
        .map(|address| json!({ "address": IpNet::from(*address).to_string(), "interface": 0 }))
        .collect();
    json!({
        "cniVersion": CNI_VERSION,
        "interfaces": [{ "name": POD_IFNAME, "sandbox": pod.netns }],
        "ips": ips,
    })
}

/// The plugin's error, or what it said where that is no CNI error.
fn failure(answer: &command::Answer) -> String {
    #[derive(Deserialize)]
    struct CniError {
        code: u32,
        msg: String,
        #[serde(default)]
        details: String,
    }
    match serde_json::from_str::<CniError>(&answer.stdout) {
        Ok(error) if error.details.is_empty() => format!("{} (code {})", error.msg, error.code),
        Ok(error) => format!("{} (code {}; {})", error.msg, error.code, error.details),
        Err(_) => format!("{}, {}", answer.status, answer.last_line()),
    }
}

fn parse_addresses(output: &str) -> anyhow::Result<Vec<IpAddr>> {
    #[derive(Deserialize)]
    struct CniResult {
        ips: Vec<Ip>,
    }
    #[derive(Deserialize)]
    struct Ip {
        address: IpNet,
    }
    let result: CniResult = serde_json::from_str(output).context("that is no CNI result")?;
    if result.ips.is_empty() {
        bail!("there is no address in it");
    }
    Ok(result.ips.iter().map(|ip| ip.address.addr()).collect())
}

/// Writes a worker's network list into its configuration folder.
///
/// # Errors
///
/// The file cannot be written.
pub fn write_network_list(worker: &Worker) -> anyhow::Result<()> {
    let file: &Path = &worker.cni_conf_dir().join("10-fabric.conflist");
    std::fs::write(file, serde_json::to_vec_pretty(&network_list(worker))?)
        .with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    /// Addresses are taken from a result of CNI 1.1.0, without their prefix length.
    #[test]
    fn addresses_are_read_from_a_result() {
        let output = r#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mtu":1500,"sandbox":"/x"}],
            "ips":[{"address":"10.244.1.2/32","interface":0},{"address":"fd44:0:0:1::2/128"}],"dns":{}}"#;
        let expected: [IpAddr; 2] = [
            "10.244.1.2".parse().unwrap(),
            "fd44:0:0:1::2".parse().unwrap(),
        ];
        assert_eq!(parse_addresses(output).unwrap(), expected);
        assert!(parse_addresses(r#"{"ips":[]}"#).is_err());
        assert!(parse_addresses("").is_err());
    }

    /// A CNI error is shown with its message and code, anything else as it was said.
    #[test]
    fn failures_are_told_in_the_plugins_words() {
        let answer = |stdout: &str, stderr: &str| command::Answer {
            status: std::process::ExitStatus::from_raw(0x100),
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
        };
        let told = failure(&answer(
            r#"{"cniVersion":"1.1.0","code":11,"msg":"no daemon","details":"start it"}"#,
            "",
        ));
        assert_eq!(told, "no daemon (code 11; start it)");
        assert!(failure(&answer("", "thread panicked\n")).ends_with("thread panicked"));
    }
}
