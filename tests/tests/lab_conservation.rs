//! Every packet has one outcome, also at the moment of the highest load, and what one worker hands to
//! another is what the other one receives.
#![allow(clippy::print_stdout)]

use std::{
    net::IpAddr,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::lab::{Lab, Pod, Worker, command, ready, underlay::inside};
use fabric_proto::admin::{PacketAccount, Status, Tally};
use fabric_tests::{
    account::check_conserved,
    eventually::eventually,
    impair::{Impairment, process::Impairer},
    load::{
        corruption::{drops, quic_ended, quic_lost},
        datagrams::{Flood, Flooded, Plan},
        kernel::udp_overruns,
        streams::{Streams, criss_cross},
    },
    stage::Stage,
    threads,
    traffic::address,
};

/// How long the load lasts.
const LOAD: Duration = Duration::from_secs(6);
/// Time between two looks at both accounts.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// How long packets may be under way after the load: QUIC takes a lost one for lost within that.
const REST_MAX: Duration = Duration::from_secs(10);
/// TCP streams.
const STREAMS: u64 = 8;
/// Their congestion control: one that fills queues and slows down by losses, whatever the machine's
/// default makes of an overload.
const CONGESTION: &str = "cubic";
/// Data-plane threads of each daemon where it has several.
const THREADS: u32 = 2;
/// Payload of the floods (bytes): a small one and one that fills a packet. Neither is cut on its way,
/// so that each counts once on either side.
const FLOOD_BYTES: [usize; 2] = [200, 1_200];
/// Datagrams that one QUIC packet can carry: the smallest here is a ping, 84 bytes of IPv4, and the
/// largest QUIC packet on this underlay is 1472 bytes of UDP payload.
const DATAGRAMS_PER_PACKET_MAX: u64 = 1_472 / 84;
/// Bytes of the smallest packet here, as above.
const PACKET_BYTES_MIN: u64 = 84;
/// Bytes that the engine may have taken and not sent when a connection ends: its buffer for datagrams
/// (`DATAGRAM_SEND_BUFFER_BYTES`) and a batch for streams, which is what it is given ahead.
const READY_BYTES_MAX: u64 = (128 + 64) * 1024;

/// Under TCP, UDP and ICMP in both directions, beyond what can be carried, every account that a daemon
/// tells adds up; afterwards both are exact, and what each handed to the other is what the other
/// received, unless QUIC has lost packets or a connection has ended with packets under way.
#[test]
fn accounts_are_exact_under_overload() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("conserve", 2, 2)?;
    overload(&lab)?;
    lab.down()
}

/// The same where two data-plane threads on either side share the work and the account.
#[test]
fn accounts_are_exact_with_two_threads() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("conserve", 2, 2)?;
    threads::start_with(&mut lab, THREADS)?;
    overload(&lab)?;
    for worker in lab.workers() {
        let worked = threads::check_all_worked(worker, THREADS as usize)?;
        println!("{}: its threads worked {worked:?}", worker.name);
    }
    lab.down()
}

/// As with one thread, behind a cable that loses, doubles and delays datagrams: nothing is counted twice, and no
/// more is missing than QUIC says is lost.
///
/// A connection ends under that only if a daemon or the cable gets no processor for as long as the idle
/// timeout. What was under way then is told by the daemon, and allowed for.
#[test]
fn accounts_are_exact_behind_a_bad_cable() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("conserve", 2, 2)?;
    let impair = Path::new(env!("CARGO_BIN_EXE_impair"));
    let impairer = Impairer::start(impair, &lab, Impairment::one_in_a_thousand(3))?;
    overload(&lab)?;
    let cable = impairer.stop()?.total();
    println!("{cable:?}");
    ensure!(
        cable.lost > 0 && cable.doubled > 0,
        "the cable was a good one"
    );
    lab.down()
}

fn overload(lab: &Lab) -> anyhow::Result<()> {
    let [a, b] = lab.workers() else {
        bail!("two workers")
    };
    let ways = [(a, b), (b, a)];
    let before = ways.map(|(from, to)| Way::look(from, to));
    let load = Load::start(lab)?;
    let begin = Instant::now();
    let mut looks = 0;
    let mut last = [PacketAccount::default(), PacketAccount::default()];
    while begin.elapsed() < LOAD {
        for (worker, last) in [a, b].into_iter().zip(&mut last) {
            let account = account(worker)?;
            check(worker, &account)?;
            check_grows(worker, last, &account)?;
            *last = account;
        }
        looks += 1;
        thread::sleep(LOOK_INTERVAL);
    }
    let carried = load.stop()?;
    println!(
        "{looks} looks at both accounts in {:?}; {carried}",
        begin.elapsed()
    );
    for worker in [a, b] {
        check_conserved(worker)?;
        println!("{}: {:?}", worker.name, account(worker)?);
        println!(
            "{}: dropped {:?}; the kernel had no room for {} packets of the underlay",
            worker.name,
            drops(worker)?,
            udp_overruns(&worker.netns)?
        );
    }
    let account = account(a)?;
    ensure!(
        account.dropped > 0 && account.answered > 0,
        "an overload that drops and answers nothing is none: {account:?}"
    );
    for ((from, to), before) in ways.into_iter().zip(before) {
        let before = before?;
        let (missing, took) = eventually("what was handed arrives", REST_MAX, || {
            Way::look(from, to)?.check(&before)
        })?;
        println!(
            "{} -> {}: {missing} missing after {took:?}: {:?}",
            from.name,
            to.name,
            Way::look(from, to)?
        );
    }
    Ok(())
}

fn account(worker: &Worker) -> anyhow::Result<PacketAccount> {
    let status: Status = ready::document(&worker.admin_socket(), "/v1/status")?;
    Ok(status.packets)
}

/// One account by itself, whenever it is taken.
fn check(worker: &Worker, account: &PacketAccount) -> anyhow::Result<()> {
    let sum = |tallies: [Tally; 3]| tallies.iter().map(|tally| tally.packets).sum::<u64>();
    let received = sum([
        account.received_pods,
        account.received_host,
        account.received_peers,
    ]);
    let delivered = sum([
        account.delivered_pods,
        account.delivered_host,
        account.delivered_peers,
    ]);
    ensure!(
        received == delivered + account.answered + account.dropped + account.queued
            && account.conserved,
        "under load {} does not add up: {account:?}",
        worker.name
    );
    Ok(())
}

/// Nothing that was counted is taken back.
fn check_grows(worker: &Worker, old: &PacketAccount, new: &PacketAccount) -> anyhow::Result<()> {
    let counts = |it: &PacketAccount| {
        let tallies = [
            it.received_pods,
            it.received_host,
            it.received_peers,
            it.delivered_pods,
            it.delivered_host,
            it.delivered_peers,
        ];
        let sums = tallies.map(|tally| [tally.packets, tally.bytes]);
        [sums.as_flattened(), &[it.answered, it.dropped]].concat()
    };
    let pairs = counts(old).into_iter().zip(counts(new));
    ensure!(
        pairs.into_iter().all(|(old, new)| old <= new),
        "{} counted backwards, from {old:?} to {new:?}",
        worker.name
    );
    Ok(())
}

/// What one worker hands to the other, its only peer, and what arrives there.
#[derive(Clone, Copy, Debug)]
struct Way {
    handed: Tally,
    received: Tally,
    /// QUIC packets.
    lost: u64,
    /// Connections that have ended.
    ended: u64,
    /// Bytes of QUIC packets that were in flight then.
    in_flight: u64,
    waiting: u64,
}

impl Way {
    fn look(from: &Worker, to: &Worker) -> anyhow::Result<Self> {
        let sender = account(from)?;
        let (ended, in_flight) = quic_ended(from)?;
        Ok(Self {
            handed: sender.delivered_peers,
            received: account(to)?.received_peers,
            lost: quic_lost(from)?,
            ended,
            in_flight,
            waiting: sender.queued,
        })
    }

    /// Checks what has come since `before`, at rest; how many packets are missing.
    fn check(&self, before: &Self) -> anyhow::Result<u64> {
        ensure!(self.waiting == 0, "packets wait: {self:?}");
        let since = |now: Tally, then: Tally| {
            let packets = now.packets.checked_sub(then.packets);
            anyhow::Ok((
                packets.context("counted backwards")?,
                now.bytes - then.bytes,
            ))
        };
        let handed = since(self.handed, before.handed)?;
        let received = since(self.received, before.received)?;
        let counted = |now: u64, then: u64| now.checked_sub(then).context("counted backwards");
        let lost = counted(self.lost, before.lost)?;
        let ended = counted(self.ended, before.ended)?;
        let under_way = counted(self.in_flight, before.in_flight)? + ended * READY_BYTES_MAX;
        let what = format!(
            "{handed:?} packets and bytes were handed over, {received:?} arrived, QUIC lost {lost} packets, \
             {ended} connections ended with at most {under_way} bytes under way"
        );
        let missing = handed.0.checked_sub(received.0);
        let missing = missing.with_context(|| format!("too many: {what}"))?;
        ensure!(
            missing <= lost * DATAGRAMS_PER_PACKET_MAX + under_way / PACKET_BYTES_MIN,
            "too few: {what}"
        );
        ensure!(missing > 0 || handed == received, "others: {what}");
        Ok(missing)
    }
}

/// All of it at once.
struct Load {
    streams: Streams,
    floods: Vec<Flood>,
    unanswered: Flood,
    pings: Vec<Ping>,
}

impl Load {
    fn start(lab: &Lab) -> anyhow::Result<Self> {
        let [a1, a2, b1, b2] = lab.pods() else {
            bail!("four pods")
        };
        // The streams first: a connection is not made in the middle of an overload within seconds.
        let mut plans = criss_cross(lab.pods(), STREAMS, None)?;
        for plan in &mut plans {
            plan.congestion = Some(CONGESTION.to_owned());
        }
        let streams = Streams::start(&plans)?;
        let floods = [
            (a1, b1, false),
            (b1, a1, false),
            (a2, b2, true),
            (b2, a2, true),
        ];
        let floods = (0..).zip(floods).map(|(number, (from, to, ipv6))| {
            Flood::start(&Plan {
                number,
                from: &from.netns,
                to: Some(&to.netns),
                target: address(to, ipv6)?,
                size: FLOOD_BYTES[usize::from(ipv6)],
                rate: None,
            })
        });
        Ok(Self {
            streams,
            floods: floods.collect::<anyhow::Result<_>>()?,
            // On its own node: the answers cross no tunnel, where they would be no pod's packets.
            unanswered: Flood::start(&Plan {
                number: 99,
                from: &a1.netns,
                to: None,
                target: unassigned(lab, a1)?,
                size: FLOOD_BYTES[0],
                rate: Some(5_000),
            })?,
            pings: vec![
                Ping::start(a1, address(b2, false)?)?,
                Ping::start(b2, address(a1, true)?)?,
            ],
        })
    }

    fn stop(self) -> anyhow::Result<String> {
        let unanswered = self.unanswered.stop()?;
        let floods: Vec<Flooded> = self
            .floods
            .into_iter()
            .map(Flood::stop)
            .collect::<Result<_, _>>()?;
        drop(self.pings);
        // Not to their end: nothing is asked about it here, and after an overload TCP takes its time.
        let bytes = self.streams.cut()?;
        ensure!(bytes > 0, "nothing came over TCP");
        Ok(format!(
            "{bytes} bytes over TCP, UDP {floods:?}, to nobody {unanswered:?}"
        ))
    }
}

/// The last address of the IPv4 range of the pod's worker but one: no pod has it.
fn unassigned(lab: &Lab, pod: &Pod) -> anyhow::Result<IpAddr> {
    let worker = lab.state().worker(&pod.worker)?;
    let range = worker.pod_cidrs.iter().find_map(|range| match range {
        ipnet::IpNet::V4(range) => Some(range),
        ipnet::IpNet::V6(_) => None,
    });
    let range = range.context("no IPv4 range")?;
    let last = range.broadcast().to_bits().wrapping_sub(1);
    Ok(IpAddr::V4(last.into()))
}

/// Echo requests as fast as they are answered.
struct Ping(Child);

impl Ping {
    fn start(from: &Pod, target: IpAddr) -> anyhow::Result<Self> {
        let ping = command::find("ping").context("there is no program ping")?;
        let mut program = Command::new(ping);
        program
            .args(["-n", "-q", "-f", &target.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        inside(&from.netns, move || Ok(Self(program.spawn()?)))
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        command::end(&mut self.0);
    }
}
