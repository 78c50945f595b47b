//! Who is not who they should be is refused and named, on both sides of a handshake; nobody else
//! notices.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{Lab, Pod},
    node_id::NodeId,
    pki::{
        authority::{self, Authority},
        files::{CA_CERTIFICATE, Overwrite, load_authority, save_node},
    },
};
use fabric_tests::{
    eventually::eventually,
    operator::{LogMark, peer},
    probe::Probe,
    sources,
    stage::Stage,
    traffic::{address, ping, tcp_echo},
};

/// A refusal is visible within this.
const NOTICED_MAX: Duration = Duration::from_secs(6);
/// Longest pause of a steady echo that counts as undisturbed.
const UNDISTURBED_MAX: Duration = Duration::from_millis(500);
const DAYS: u32 = 30;

/// A worker that answers with a certificate of another CA is refused and named; the others are not
/// disturbed, and with its own certificate it is let in again.
#[test]
fn another_ca_on_the_accepting_side() -> anyhow::Result<()> {
    refused(
        "worker-c",
        "worker-c",
        Ca::Foreign,
        &["worker-a", "worker-b"],
        "certificate",
    )
}

/// A worker that dials with a certificate of another CA likewise.
#[test]
fn another_ca_on_the_dialling_side() -> anyhow::Result<()> {
    refused(
        "worker-a",
        "worker-a",
        Ca::Foreign,
        &["worker-b", "worker-c"],
        "certificate",
    )
}

/// A worker that answers at a node's address with the valid certificate of a node that is not in the
/// desired state is refused, and so is everything that is named otherwise than who was dialled.
#[test]
fn another_name_on_the_accepting_side() -> anyhow::Result<()> {
    refused(
        "worker-c",
        "worker-x",
        Ca::Own,
        &["worker-a", "worker-b"],
        "worker-x",
    )
}

/// A worker that dials from a node's address with the valid certificate of a node that is not in the
/// desired state is refused by that name.
#[test]
fn another_name_on_the_dialling_side() -> anyhow::Result<()> {
    refused(
        "worker-a",
        "alien",
        Ca::Own,
        &["worker-b", "worker-c"],
        "alien",
    )
}

/// A handshake from an address of no node is not even answered, whatever certificate is behind it.
#[test]
fn an_address_of_no_node() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("stranger", 3, 1)?;
    let others = steady(&lab, "pod-b-1", "pod-c-1")?;
    let log = LogMark::at_end(lab.state().worker("worker-b")?);
    let begin = Instant::now();
    // worker-a keeps a directory of its own in which it is still a node, and dials.
    disguise(&mut lab, "worker-a", "worker-a", Ca::Own)?;
    sources::remove(lab.state(), "worker-a")?;
    eventually("the stranger is named", NOTICED_MAX, || {
        log.line(
            lab.state().worker("worker-b")?,
            &["ignored a handshake", "10.90.0.1:"],
        )
    })?;
    let gap = others.longest_gap(begin);
    ensure!(gap < UNDISTURBED_MAX, "the others had a pause of {gap:?}");
    no_traffic(&lab, "pod-b-1", "pod-a-1")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ca {
    Own,
    Foreign,
}

/// Lets `worker` run as `name` with a certificate of `ca`, and expects `witnesses` to refuse it with
/// `word` in the log and in `fabric peers`.
fn refused(
    worker: &str,
    name: &str,
    ca: Ca,
    witnesses: &[&str; 2],
    word: &str,
) -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("ident", 3, 1)?;
    let pod_of = |worker: &str| format!("{}-1", worker.replace("worker", "pod"));
    let [first, second] = witnesses.map(pod_of);
    let others = steady(&lab, &first, &second)?;
    let marks: Vec<LogMark> = witnesses
        .iter()
        .map(|name| Ok(LogMark::at_end(lab.state().worker(name)?)))
        .collect::<anyhow::Result<_>>()?;
    let begin = Instant::now();
    let own_config = disguise(&mut lab, worker, name, ca)?;
    for (witness, mark) in witnesses.iter().zip(&marks) {
        let witness = lab.state().worker(witness)?;
        let (line, _) = eventually("the refusal is in the log", NOTICED_MAX, || {
            mark.line(witness, &["connection refused", worker, word])
        })?;
        let (shown, _) = eventually("the refusal is shown", NOTICED_MAX, || {
            let shown = peer(&stage, witness, worker)?.context("no such peer")?;
            ensure!(shown.last_error.contains(word), "{shown:?}");
            ensure!(
                shown.connections == 0 && shown.state != "Connected",
                "{shown:?}"
            );
            Ok(shown)
        })?;
        println!("{line}\n  {}: {}", shown.state, shown.last_error);
    }
    no_traffic(&lab, &first, &pod_of(worker))?;
    let gap = others.longest_gap(begin);
    ensure!(gap < UNDISTURBED_MAX, "the others had a pause of {gap:?}");

    lab.kill_daemon(worker)?;
    fs::write(lab.state().worker(worker)?.config_file(), own_config)?;
    lab.start_daemon(worker)?;
    let (from, to) = (lab.state().pod(&first)?, lab.state().pod(&pod_of(worker))?);
    eventually("the right certificate is let in", NOTICED_MAX, || {
        tcp_echo(from, to, false, &[1000])
    })?;
    Ok(())
}

/// Restarts the daemon of `worker` as node `name` with another certificate and a directory of nodes
/// of its own; the text of its former configuration.
fn disguise(lab: &mut Lab, worker: &str, name: &str, ca: Ca) -> anyhow::Result<String> {
    lab.kill_daemon(worker)?;
    let place = lab.state().worker(worker)?.clone();
    let authority: Authority = match ca {
        Ca::Own => load_authority(&lab.state().folder.join("pki"))?,
        Ca::Foreign => authority::init("fabric.lab", DAYS)?,
    };
    let node = NodeId::new(name).map_err(anyhow::Error::msg)?;
    let credentials = authority::issue(&authority, &node, DAYS)?;
    let files = save_node(&credentials, &place.folder.join("disguise"), Overwrite::Yes)?;
    if ca == Ca::Foreign {
        // It lets everybody in, so that it is for the others to refuse.
        let mut trusted = fs::read_to_string(&files.ca)?;
        trusted += &fs::read_to_string(lab.state().folder.join("pki").join(CA_CERTIFICATE))?;
        fs::write(&files.ca, trusted)?;
    }

    let nodes = place.folder.join("disguise.d");
    fs::create_dir(&nodes)?;
    for other in lab.workers() {
        let text = fs::read_to_string(sources::file_of(lab.state(), &other.name))?;
        let text = if other.name == worker {
            text.replace(&format!("{worker:?}"), &format!("{name:?}"))
        } else {
            text
        };
        fs::write(nodes.join(format!("{}.toml", other.name)), text)?;
    }
    let own = fs::read_to_string(place.config_file())?;
    let config = format!(
        "node = {name:?}\nstate_dir = {:?}\nrun_dir = {:?}\n\n[source]\nkind = \"file\"\npath = \
         {nodes:?}\n\n[identity]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
        place.state_dir(),
        place.run_dir(),
        files.ca,
        files.certificate,
        files.key
    );
    fs::write(place.config_file(), config)?;
    lab.start_daemon(worker)?;
    Ok(own)
}

fn no_traffic(lab: &Lab, from: &str, to: &str) -> anyhow::Result<()> {
    let (from, to): (&Pod, &Pod) = (lab.state().pod(from)?, lab.state().pod(to)?);
    ensure!(
        ping(&from.netns, address(to, false)?, Duration::from_millis(500)).is_err(),
        "{} answers",
        to.name
    );
    Ok(())
}

fn steady(lab: &Lab, from: &str, to: &str) -> anyhow::Result<Probe> {
    let probe = Probe::start(lab.state().pod(from)?, lab.state().pod(to)?, false)?;
    probe.answered_after(Instant::now(), NOTICED_MAX)?;
    Ok(probe)
}
