//! `fabric lab status`: what a program needs to use a lab (JSON, YAML), and what a person does.

use std::{net::IpAddr, path::Path};

use fabric_proto::admin::{API_VERSION, Document};
use ipnet::IpNet;
use serde::Serialize;

use super::{
    daemon,
    state::{CNI_NETWORK, LabState},
};
use crate::terminal::output::{Show, list, table};

/// Content of the document `kind: Lab`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LabStatus<'a> {
    name: &'a str,
    workers: Vec<WorkerStatus<'a>>,
    pods: Vec<PodStatus<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkerStatus<'a> {
    name: &'a str,
    netns: &'a Path,
    /// None when the daemon does not run.
    pid: Option<u32>,
    underlay_addresses: &'a [IpAddr],
    #[serde(rename = "podCIDRs")]
    pod_cidrs: &'a [IpNet],
    admin_socket: std::path::PathBuf,
    /// Folder of the plugin, as CNI_PATH.
    cni_path: &'a Path,
    /// Folder of the network configuration, as NETCONFPATH of cnitool.
    cni_conf_dir: std::path::PathBuf,
    cni_network: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus<'a> {
    name: &'a str,
    worker: &'a str,
    netns: &'a Path,
    addresses: &'a [IpAddr],
}

impl<'a> LabStatus<'a> {
    /// The status of a lab, with the pids of the daemons that run.
    #[must_use]
    pub fn of(state: &'a LabState) -> Document<Self> {
        let workers = state.workers.iter().map(|worker| WorkerStatus {
            name: &worker.name,
            netns: &worker.netns,
            pid: worker
                .pid
                .filter(|_| daemon::running(state, worker).is_some()),
            underlay_addresses: &worker.underlay_addresses,
            pod_cidrs: &worker.pod_cidrs,
            admin_socket: worker.admin_socket(),
            cni_path: &state.bin_dir,
            cni_conf_dir: worker.cni_conf_dir(),
            cni_network: CNI_NETWORK,
        });
        let pods = state.pods.iter().map(|pod| PodStatus {
            name: &pod.name,
            worker: &pod.worker,
            netns: &pod.netns,
            addresses: &pod.addresses,
        });
        Document {
            api_version: API_VERSION.to_owned(),
            kind: "Lab".to_owned(),
            content: Self {
                name: &state.name,
                workers: workers.collect(),
                pods: pods.collect(),
            },
        }
    }
}

impl Show for LabStatus<'_> {
    fn show(&self, wide: bool) -> String {
        let workers = self.workers.iter().map(|worker| {
            let mut row = vec![
                worker.name.to_owned(),
                worker
                    .pid
                    .map_or_else(|| "not running".to_owned(), |pid| format!("pid {pid}")),
                list(&strings(worker.underlay_addresses)),
                list(&strings(worker.pod_cidrs)),
            ];
            if wide {
                row.push(worker.netns.display().to_string());
                row.push(worker.admin_socket.display().to_string());
            }
            row
        });
        let pods = self.pods.iter().map(|pod| {
            let mut row = vec![
                pod.name.to_owned(),
                pod.worker.to_owned(),
                list(&strings(pod.addresses)),
            ];
            if wide {
                row.push(pod.netns.display().to_string());
            }
            row
        });
        let worker_header = [
            "WORKER",
            "DAEMON",
            "UNDERLAY",
            "POD-CIDRS",
            "NETNS",
            "ADMIN-SOCKET",
        ];
        let pod_header = ["POD", "WORKER", "ADDRESSES", "NETNS"];
        let (worker_columns, pod_columns) = if wide { (6, 4) } else { (4, 3) };
        format!(
            "{}\n{}",
            table(
                worker_header.get(..worker_columns).unwrap_or_default(),
                workers
            ),
            table(pod_header.get(..pod_columns).unwrap_or_default(), pods)
        )
    }
}

fn strings<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::lab::{
        place::Place,
        plan::{LabOptions, lay_out},
    };

    /// The JSON document has exactly the documented fields; a daemon that does not run has no pid.
    #[test]
    fn the_json_has_the_documented_fields() {
        let options = LabOptions::new("lab".parse().unwrap(), 1, 1, "/opt/bin".into());
        let mut state = lay_out(&options, &Place::root()).unwrap();
        // This process runs, but is not the daemon.
        state.workers[0].pid = Some(std::process::id());
        state.pods[0].addresses = vec!["10.244.1.2".parse().unwrap()];
        let expected = json!({
            "apiVersion": "fabric/v1",
            "kind": "Lab",
            "name": "lab",
            "workers": [{
                "name": "worker-a",
                "netns": "/run/netns/fabric-lab-worker-a",
                "pid": null,
                "underlayAddresses": ["10.90.0.1", "fd90::1"],
                "podCIDRs": ["10.244.1.0/24", "fd44:0:0:1::/64"],
                "adminSocket": "/run/fabric-lab/lab/worker-a/run/admin.sock",
                "cniPath": "/opt/bin",
                "cniConfDir": "/run/fabric-lab/lab/worker-a/cni",
                "cniNetwork": "fabric",
            }],
            "pods": [{
                "name": "pod-a-1",
                "worker": "worker-a",
                "netns": "/run/netns/fabric-lab-pod-a-1",
                "addresses": ["10.244.1.2"],
            }],
        });
        assert_eq!(
            serde_json::to_value(LabStatus::of(&state)).unwrap(),
            expected
        );
    }

    /// The tables name every worker and pod, and say which daemon does not run.
    #[test]
    fn the_tables_name_everything() {
        let options = LabOptions::new("lab".parse().unwrap(), 2, 1, "/opt/bin".into());
        let state = lay_out(&options, &Place::root()).unwrap();
        let text = LabStatus::of(&state).content.show(true);
        for word in [
            "worker-a",
            "worker-b",
            "pod-a-1",
            "pod-b-1",
            "not running",
            "10.90.0.2,fd90::2",
        ] {
            assert!(text.contains(word), "{text}");
        }
    }
}
