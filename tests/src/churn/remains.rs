//! What a daemon and its pods leave behind, asked of the kernel and of the files, never of the daemon
//! alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::{
    lab::{Worker, plugin::POD_IFNAME, ready, underlay::inside},
    sys::netlink::Netlink,
};
use fabric_proto::{
    admin::PodList,
    cni::{PENDING_DELETES_DIR, PendingDelete},
};
use serde_json::Value;

use super::model::REST;

/// Folder of the daemon's records beneath its state directory.
const RECORDS_DIR: &str = "attachments";
/// How long the record of a rested address may stay: until a sweep sees it, with room.
const FORGET_MAX: Duration = Duration::from_secs(15);

/// Older than any file that a living plugin writes.
const UNFINISHED_AGE: Duration = Duration::from_secs(3600);

/// Attachments on record by container id, without those whose addresses rest.
///
/// # Errors
///
/// The folder holds anything but whole records: something unfinished, something unreadable, or a record
/// whose addresses have rested for long.
pub fn records(worker: &Worker) -> anyhow::Result<BTreeSet<String>> {
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime: f64 = uptime.split(' ').next().unwrap_or_default().parse()?;
    let mut attached = BTreeSet::new();
    for (name, text) in files(&worker.state_dir().join(RECORDS_DIR))? {
        if name == ".lock" {
            continue;
        }
        ensure!(name.ends_with(".record"), "{name} is no record");
        let json = text.split_once('\n').map_or("", |(_, json)| json);
        let record: Value =
            serde_json::from_str(json).with_context(|| format!("{name} holds {text:?}"))?;
        let word = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
        let id = word("/key/containerId").with_context(|| format!("{name}: no id"))?;
        if word("/state/is") != Some("released") {
            attached.insert(id.to_owned());
            continue;
        }
        let since = record.pointer("/state/at/uptimeS").and_then(Value::as_f64);
        let rested = uptime - since.with_context(|| format!("{name}: no time"))?;
        ensure!(
            rested < (REST + FORGET_MAX).as_secs_f64(),
            "the address of {name} has rested for {rested} s"
        );
    }
    Ok(attached)
}

/// DELs that the plugin left on disk, by container id.
///
/// # Errors
///
/// One is not whole. Files that are still in the making are none of them.
pub fn kept_deletes(worker: &Worker) -> anyhow::Result<BTreeSet<String>> {
    let mut kept = BTreeSet::new();
    for (name, text) in files(&worker.state_dir().join(PENDING_DELETES_DIR))? {
        if name.ends_with(PendingDelete::SUFFIX) {
            let pending: PendingDelete = serde_json::from_str(&text)
                .with_context(|| format!("the kept DEL {name} holds {text:?}"))?;
            ensure!(
                name == PendingDelete::file_name(&pending.key),
                "{name} belongs to {:?}",
                pending.key
            );
            kept.insert(pending.key.container_id);
        }
    }
    Ok(kept)
}

/// Names of all files in the folder of kept DELs.
///
/// # Errors
///
/// The folder cannot be read.
pub fn pending_files(worker: &Worker) -> anyhow::Result<Vec<String>> {
    let files = files(&worker.state_dir().join(PENDING_DELETES_DIR))?;
    Ok(files.into_keys().collect())
}

/// Makes DELs whose plugin was killed while it wrote them older than the daemon waits for before it
/// removes them; how many there are. No plugin may be at work.
///
/// # Errors
///
/// The folder cannot be read, or a file not be changed.
pub fn age_unfinished(worker: &Worker) -> anyhow::Result<usize> {
    let unfinished = pending_files(worker)?;
    let unfinished = unfinished.iter().filter(|name| name.ends_with(".tmp"));
    let mut aged = 0;
    for name in unfinished {
        let path = worker.state_dir().join(PENDING_DELETES_DIR).join(name);
        match fs::OpenOptions::new().write(true).open(&path) {
            Ok(file) => file.set_modified(SystemTime::now() - UNFINISHED_AGE)?,
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("{}", path.display())),
        }
        aged += 1;
    }
    Ok(aged)
}

fn files(folder: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match fs::read(&path) {
            Ok(bytes) => drop(files.insert(
                name.into_owned(),
                String::from_utf8_lossy(&bytes).into_owned(),
            )),
            // Carried out meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("{}", path.display())),
        }
    }
    Ok(files)
}

/// Pods that the daemon carries traffic for: container id and addresses.
///
/// # Errors
///
/// It does not answer.
pub fn carried(worker: &Worker) -> anyhow::Result<BTreeMap<String, Vec<IpAddr>>> {
    let pods: PodList = ready::document(&worker.admin_socket(), "/v1/pods")?;
    let of = |pod: fabric_proto::admin::Pod| -> anyhow::Result<_> {
        let addresses = pod.addresses.iter().map(|text| Ok(text.parse()?));
        Ok((pod.container_id, addresses.collect::<anyhow::Result<_>>()?))
    };
    pods.items.into_iter().map(of).collect()
}

/// Names of all interfaces in a namespace but for the loopback.
///
/// # Errors
///
/// The namespace cannot be entered.
pub fn devices(netns: &Path) -> anyhow::Result<Vec<String>> {
    inside(netns, || {
        let links = Netlink::connect()?.links()?;
        let names = links.into_iter().map(|link| link.name);
        Ok(names.filter(|name| name != "lo").collect())
    })
}

/// Addresses of the pod's interface in a namespace; none where there is no such interface.
///
/// # Errors
///
/// The namespace cannot be entered.
pub fn pod_addresses(netns: &Path) -> anyhow::Result<BTreeSet<IpAddr>> {
    inside(netns, || {
        let netlink = Netlink::connect()?;
        let Some(link) = netlink.link(POD_IFNAME)? else {
            return Ok(BTreeSet::new());
        };
        let addresses = netlink.addresses(link.index)?;
        Ok(addresses.iter().map(ipnet::IpNet::addr).collect())
    })
}

/// What a process has open, counted by kind: `socket`, `anon_inode:[eventpoll]`, paths as they are.
///
/// # Errors
///
/// There is no such process.
pub fn descriptors(pid: u32) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that is closed meanwhile is not open.
        let Ok(target) = fs::read_link(entry?.path()) else {
            continue;
        };
        let target = target.to_string_lossy();
        let kind = match target.split_once(":[") {
            Some((kind, _)) if !kind.starts_with("anon_inode") => kind,
            _ => &target,
        };
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    Ok(kinds)
}

/// Kind of a TUN device among [`descriptors`].
const TUN_KIND: &str = "/dev/net/tun";

/// Checks that a daemon has open what it had at `base` with `pods_then` pods, and one TUN device more or
/// less for each pod more or less; and that each of its threads is in its own network namespace.
///
/// # Errors
///
/// Something is open too much or too little.
pub fn check_descriptors(
    pid: u32,
    base: &BTreeMap<String, usize>,
    pods_then: usize,
    pods: usize,
) -> anyhow::Result<()> {
    let mut expected = base.clone();
    let devices = expected.entry(TUN_KIND.to_owned()).or_default();
    *devices = (*devices + pods)
        .checked_sub(pods_then)
        .context("fewer devices than pods")?;
    let found = descriptors(pid)?;
    ensure!(
        found == expected,
        "open with {pods} pods: {found:?}, expected {expected:?}"
    );
    let own = fs::read_link(format!("/proc/{pid}/ns/net"))?;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        match fs::read_link(task.join("ns/net")) {
            Ok(netns) if netns != own => bail!("{} is in {}", task.display(), netns.display()),
            _ => {}
        }
    }
    Ok(())
}
