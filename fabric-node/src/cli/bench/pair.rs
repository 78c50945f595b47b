//! Measures one pair: round trips while nothing else is sent, TCP with round trips beside it, UDP in
//! each size; with what the daemons dropped meanwhile. A part that fails is told in the report; the
//! others are measured nevertheless.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail, ensure};

use super::{
    args::{BenchArgs, Meter},
    kernel::Counters,
    nodes::{Nodes, Way},
    pods::PodAt,
    progress::Progress,
    report::{Datagrams, Member, Path, Report, RoundTrips},
};
use crate::{
    measure::{
        LOOK, Load, Measurement, Protocol, Watch,
        iperf::{self, Serve},
        meter::{Greeting, PORT_OFFSET, client, server::Server},
        rtt::{self, Method, Samples},
    },
    sys::netns::Netns,
};

/// How long round trips are measured while nothing else is sent.
const IDLE: Duration = Duration::from_secs(1);
/// How long a load runs before round trips are measured beside it: until it is one.
const SETTLE: Duration = Duration::from_millis(300);
/// What a load takes beside its time: programs that start and results that are exchanged.
const AROUND: Duration = Duration::from_millis(300);

/// Who measures to whom.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) from: PodAt,
    pub(super) to: Target,
    /// The address of the second that is used.
    pub(super) address: IpAddr,
}

/// The second of a pair.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// A pod whose namespace can be entered from here.
    Pod(Box<PodAt>),
    /// A server that runs already, such as on another machine.
    Server(SocketAddr),
}

impl Pair {
    /// Chooses the address.
    pub(super) fn new(from: &PodAt, to: Target, args: &BenchArgs) -> anyhow::Result<Self> {
        let candidates: Vec<IpAddr> = match &to {
            Target::Pod(to) => to.addresses().collect(),
            Target::Server(server) => vec![server.ip()],
        };
        let has_family = |it: &IpAddr| from.addresses().any(|own| own.is_ipv4() == it.is_ipv4());
        let found = candidates
            .iter()
            .copied()
            .find(|it| args.allows(*it) && has_family(it));
        let address = found.with_context(|| {
            format!(
                "no family that {} and the other end both have and that may be used: {} against {}",
                from.label(),
                from.pod.addresses.join(" and "),
                candidates
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" and ")
            )
        })?;
        Ok(Self {
            from: from.clone(),
            to,
            address,
        })
    }

    /// `web -> db`.
    pub(super) fn label(&self) -> String {
        let to = match &self.to {
            Target::Pod(to) => to.label(),
            Target::Server(server) => server.to_string(),
        };
        format!("{} -> {to}", self.from.label())
    }

    /// About how long it takes.
    pub(super) fn length(args: &BenchArgs, seconds: u32) -> Duration {
        let load = Duration::from_secs(seconds.into()) + AROUND;
        IDLE + load * u32::try_from(args.udp.0.len() + 1).unwrap_or(1)
    }

    /// Measures. A report that says what failed, where a part did.
    ///
    /// # Errors
    ///
    /// It did not come to a measurement: a namespace is gone, a port is taken, no server answers. Or
    /// the user interrupted.
    pub(super) fn measure(
        &self,
        args: &BenchArgs,
        seconds: u32,
        nodes: &Nodes,
        progress: &Progress,
    ) -> anyhow::Result<Report> {
        let mut report = self.unmeasured();
        let done = self.fill(&mut report, args, seconds, nodes, progress);
        // What breaks because of an interruption failed for no reason of its own.
        progress.check()?;
        done.map(|()| report)
    }

    /// The report of a pair for which it did not come to a measurement.
    pub(super) fn failed(&self, error: &anyhow::Error) -> Report {
        Report {
            tcp: Measurement::failed(error),
            path: match &self.to {
                Target::Pod(to) if to.node == self.from.node => Path::SameNode,
                Target::Pod(_) => Path::Across,
                Target::Server(_) => Path::Unknown,
            },
            ..self.unmeasured()
        }
    }

    fn unmeasured(&self) -> Report {
        Report {
            from: Member::of(&self.from, Some(self.source())),
            to: match &self.to {
                Target::Pod(to) => Member::of(to, Some(self.address)),
                Target::Server(_) => Member::server(self.address),
            },
            ..Report::default()
        }
    }

    fn fill(
        &self,
        report: &mut Report,
        args: &BenchArgs,
        seconds: u32,
        nodes: &Nodes,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        report.path = self.path(nodes, &mut report.to)?;
        let stage = Stage::set(self, args, progress)?;
        report.meter = stage.meter();
        let load = |protocol| Load {
            protocol,
            direction: args.direction(),
            streams: args.streams,
            seconds,
        };
        progress.phase("round trips, idle", IDLE);
        let (end, idle) = (Instant::now() + IDLE, &AtomicBool::new(false));
        report.rtt.idle = RoundTrips::new(stage.round_trips(idle, Duration::ZERO, end, progress));
        let phase = Duration::from_secs(seconds.into()) + AROUND;
        let mut mark = (nodes.mark(), stage.counters(self));
        let mut account = |report: &mut Report, during: &str| {
            let later = (nodes.mark(), stage.counters(self));
            let (drops, unknown) = mark.0.until(&later.0, during);
            report.drops.extend(drops);
            for node in unknown {
                if !report.drops_unknown.contains(&node) {
                    report.drops_unknown.push(node);
                }
            }
            for ((pod, before), (_, after)) in mark.1.iter().zip(&later.1) {
                report.kernel_drops.extend(before.until(after, pod, during));
            }
            mark = later;
        };
        progress.phase("TCP", phase);
        let (tcp, beside) = stage.loaded(&load(Protocol::Tcp), progress);
        report.tcp = tcp.unwrap_or_else(|error| Measurement::failed(&error));
        report.rtt.loaded = RoundTrips::new(beside);
        account(report, "tcp");
        for &size in &args.udp.0 {
            progress.check()?;
            progress.phase(&format!("UDP, {size} bytes"), phase);
            let protocol = Protocol::Udp {
                size,
                bitrate: args.bitrate,
            };
            let measured = stage.load(&load(protocol), progress);
            report.udp.push(Datagrams::new(size, measured));
            account(report, &format!("udp-{size}"));
        }
        Ok(())
    }

    fn source(&self) -> IpAddr {
        let own = self
            .from
            .addresses()
            .find(|own| own.is_ipv4() == self.address.is_ipv4());
        own.unwrap_or(self.address)
    }

    /// Whether a tunnel is in between; for a server elsewhere, also whose it is.
    fn path(&self, nodes: &Nodes, to: &mut Member) -> anyhow::Result<Path> {
        let server = match &self.to {
            Target::Pod(pod) if pod.node == self.from.node => return Ok(Path::SameNode),
            Target::Pod(_) => return Ok(Path::Across),
            Target::Server(server) => server,
        };
        let way = nodes
            .way(&self.from.node, server.ip())
            .map_err(|failure| anyhow!("{failure}"))?;
        match way {
            Way::Here => {
                to.node.clone_from(&self.from.node);
                Ok(Path::SameNode)
            }
            Way::Node(name) => {
                to.node = name;
                Ok(Path::Across)
            }
            Way::Nowhere => bail!(
                "the daemon of {} has no route to {}: `fabric routes` lists those it has",
                self.from.node,
                server.ip()
            ),
        }
    }
}

/// What is needed for the measurements of one pair; ends what it started.
struct Stage {
    from: Netns,
    /// The second's namespace, where servers are ours to start.
    to: Option<Netns>,
    /// iperf3, where it measures.
    iperf: Option<PathBuf>,
    iperf_target: SocketAddr,
    meter_target: SocketAddr,
    method: Method,
    _server: Option<Server>,
}

impl Stage {
    fn set(pair: &Pair, args: &BenchArgs, watch: &dyn Watch) -> anyhow::Result<Self> {
        let port = match &pair.to {
            Target::Pod(_) => args.port,
            Target::Server(server) => server.port(),
        };
        let meter_port = port.checked_add(PORT_OFFSET).with_context(|| {
            format!("port {port} leaves none for the built-in meter, which takes the next one")
        })?;
        let meter_target = SocketAddr::new(pair.address, meter_port);
        let from = Netns::open(&pair.from.pod.netns).context("the first pod")?;
        let mut stage = Self {
            from,
            to: None,
            iperf: program(args.meter)?,
            iperf_target: SocketAddr::new(pair.address, port),
            meter_target,
            method: Method::UdpEcho,
            _server: None,
        };
        if let Target::Pod(to) = &pair.to {
            let netns = Netns::open(&to.pod.netns).context("the second pod")?;
            ensure!(
                netns.identity() != stage.from.identity(),
                "both are in the same network namespace"
            );
            let server = Server::start(&netns, meter_target, Greeting::new(false))
                .map_err(with_port_hint)?;
            stage._server = Some(server);
            stage.to = Some(netns);
            return Ok(stage);
        }
        match stage.from.run(|| client::greet(meter_target, watch))? {
            Ok(greeting) if greeting.iperf3 => {}
            Ok(_) if args.meter == Meter::Iperf3 => {
                return Err(anyhow!(
                    "there is no iperf3 where `fabric bench --serve` runs"
                ));
            }
            Ok(_) => stage.iperf = None,
            Err(error) if stage.iperf.is_none() || args.meter == Meter::Builtin => {
                return Err(error.context(
                    "run `fabric bench --serve POD` at the other end; without iperf3 on this machine, \
                     `iperf3 -s` is not enough",
                ));
            }
            // `iperf3 -s` alone.
            Err(_) => stage.method = Method::TcpConnect,
        }
        Ok(stage)
    }

    fn meter(&self) -> &'static str {
        if self.iperf.is_some() {
            "iperf3"
        } else {
            "builtin"
        }
    }

    /// The kernel's counters in the pods that can be entered.
    fn counters(&self, pair: &Pair) -> Vec<(String, Counters)> {
        let of = |netns, pod: &PodAt| (pod.label(), Counters::read(netns, &pod.pod.ifname));
        let mut counters = vec![of(&self.from, &pair.from)];
        if let (Some(netns), Target::Pod(to)) = (&self.to, &pair.to) {
            counters.push(of(netns, to));
        }
        counters
    }

    /// Runs a load.
    fn load(&self, load: &Load, watch: &dyn Watch) -> anyhow::Result<Measurement> {
        let Some(program) = &self.iperf else {
            return self
                .from
                .run(|| client::measure(self.meter_target, load, watch))?;
        };
        let target = self.iperf_target;
        let start =
            |to| iperf::Server::start(program, to, Some(target.ip()), target.port(), Serve::Once);
        // Ends with this function, however the measurement did.
        let server = self.to.as_ref().map(start).transpose();
        let _server = server.map_err(with_port_hint)?;
        iperf::measure(program, &self.from, target, load, watch)
    }

    /// Runs a load, and measures round trips beside it.
    fn loaded(
        &self,
        load: &Load,
        watch: &dyn Watch,
    ) -> (anyhow::Result<Measurement>, anyhow::Result<Samples>) {
        let is_over = AtomicBool::new(false);
        let end = Instant::now() + Duration::from_secs(load.seconds.into());
        thread::scope(|scope| {
            let beside = scope.spawn(|| self.round_trips(&is_over, SETTLE, end, watch));
            let measured = self.load(load, watch);
            is_over.store(true, Ordering::Relaxed);
            let samples = beside
                .join()
                .unwrap_or_else(|_| Err(anyhow!("the thread that measured round trips panicked")));
            let samples = match &measured {
                Ok(_) => samples,
                Err(_) => Err(anyhow!("there was no load")),
            };
            (measured, samples)
        })
    }

    fn round_trips(
        &self,
        is_over: &AtomicBool,
        delay: Duration,
        end: Instant,
        watch: &dyn Watch,
    ) -> anyhow::Result<Samples> {
        let begin = Instant::now() + delay;
        let is_over = || is_over.load(Ordering::Relaxed);
        while !is_over() && Instant::now() < begin {
            watch.check()?;
            thread::sleep(LOOK.min(begin.saturating_duration_since(Instant::now())));
        }
        let is_done = || is_over() || Instant::now() >= end;
        self.from
            .run(|| rtt::measure(self.meter_target, self.method, &is_done, watch))?
    }
}

/// Tells what to do where a port is taken.
pub(super) fn with_port_hint(error: anyhow::Error) -> anyhow::Error {
    anyhow!("{error:#}; another --port helps where somebody else uses this one or the next")
}

/// iperf3, where it shall measure.
pub(super) fn program(meter: Meter) -> anyhow::Result<Option<PathBuf>> {
    match meter {
        Meter::Builtin => Ok(None),
        Meter::Auto => Ok(iperf::find()),
        Meter::Iperf3 => iperf::find().map(Some).context(
            "there is no iperf3 on this machine: install it (`apt-get install iperf3`), or leave \
             --meter out and the built-in meter measures",
        ),
    }
}
