//! Every contender comes up between two workers of a lab, carries packets both ways, and goes without
//! a trace. Builds what is not built yet; run by `make bench-peers-check`, not with the unit tests.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_benches::{
    bed::{Bed, BedOptions},
    iperf::{self, Direction, Ends, TcpLoad},
    plan::Measure,
    system::System,
    usage,
};
use fabric_node::{
    lab::{Interrupt, Progress, command, process::Process},
    sys::{capture::Capture, netlink::Netlink},
};

/// Length of one transfer (seconds).
const SECONDS: u32 = 2;
/// What the pings carry that are looked for on the underlay.
const PATTERN: [u8; 16] = *b"in the clear? no";
/// How long the pings may take.
const PING_MAX: Duration = Duration::from_secs(10);
/// How long nothing may be heard before the capture is over.
const SILENCE: Duration = Duration::from_millis(300);
/// Room for a frame (bytes), merged by the kernel or not.
const FRAME_BYTES_MAX: usize = 128 * 1024;

/// How long idle contenders are watched.
const IDLE: Duration = Duration::from_secs(5);
/// Most that both ends of an idle contender may use (share of one core).
const IDLE_SHARE_MAX: f64 = 0.02;

/// Two labs at once would have contenders on the same ports and measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// wireguard-go carries packets.
#[test]
fn wireguard_go_carries_packets() -> anyhow::Result<()> {
    carries_packets(System::WireguardGo)
}

/// boringtun-cli carries packets.
#[test]
fn boringtun_carries_packets() -> anyhow::Result<()> {
    carries_packets(System::BoringtunCli)
}

/// nebula carries packets.
#[test]
fn nebula_carries_packets() -> anyhow::Result<()> {
    carries_packets(System::Nebula)
}

/// vpncloud carries packets.
#[test]
fn vpncloud_carries_packets() -> anyhow::Result<()> {
    carries_packets(System::Vpncloud)
}

/// openvpn carries packets.
#[test]
fn openvpn_carries_packets() -> anyhow::Result<()> {
    carries_packets(System::Openvpn)
}

/// tinc carries packets.
#[test]
fn tinc_carries_packets() -> anyhow::Result<()> {
    carries_packets(System::Tinc)
}

/// The kernel's VXLAN carries packets.
#[test]
fn vxlan_carries_packets() -> anyhow::Result<()> {
    carries_packets(System::Vxlan)
}

/// The yardstick without recovery of losses carries packets.
#[test]
fn the_relay_carries_packets() -> anyhow::Result<()> {
    carries_packets(System::Relay)
}

/// The yardstick around the asynchronous QUIC library carries packets.
#[test]
fn quinn_carries_packets() -> anyhow::Result<()> {
    carries_packets(System::Quinn)
}

/// A contender whose program is not there is missing with a reason; the others are there.
#[test]
fn a_missing_program_stops_nobody() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut options = options(&[System::Vxlan, System::Nebula, System::Veth])?;
    options.peers = PathBuf::from("/nonexistent");
    let bed = up(&options)?;
    let [missing] = bed.missing() else {
        anyhow::bail!("one is missing, not {:?}", bed.missing());
    };
    ensure!(missing.system == System::Nebula, "{missing:?}");
    ensure!(missing.reason.contains("/nonexistent"), "{missing:?}");
    ensure!(bed.ends(System::Nebula, Measure::TcpAcross).is_none());
    ensure!(bed.ends(System::Vxlan, Measure::TcpAcross).is_some());
    ensure!(bed.ends(System::Veth, Measure::TcpSameNode).is_some());
    Ok(())
}

/// All of them together in the same two namespaces cost next to nothing while nobody sends, so that
/// none spoils what another is measured at. (That each comes up is for the other tests.)
#[test]
fn all_are_idle_together() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let bed = up(&options(&System::ALL)?)?;
    let present: Vec<System> = System::ALL
        .into_iter()
        .filter(|&system| system != System::Fabric && !bed.pids(system).is_empty())
        .collect();
    ensure!(present.len() >= 2, "only {present:?} came up");
    let used = |system: &System| usage::cpu_seconds(&bed.pids(*system));
    let before: Vec<f64> = present.iter().map(used).collect::<anyhow::Result<_>>()?;
    thread::sleep(IDLE);
    for (system, before) in present.iter().zip(before) {
        let share = (used(system)? - before) / IDLE.as_secs_f64();
        say(&format!("{} idle: {:.1} %", system.title(), share * 100.0));
        ensure!(share <= IDLE_SHARE_MAX, "{system:?} uses {share} of a core");
    }
    Ok(())
}

/// The contender carries TCP both ways, by the processes that it names; what it carries is on the
/// underlay in the clear only if it is VXLAN, which shows that the capture works; and when it is gone
/// its processes and files are.
fn carries_packets(system: System) -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let bed = up(&options(&[system])?)?;
    ensure!(bed.missing().is_empty(), "{:?}", bed.missing());
    let ends = bed
        .ends(system, Measure::TcpAcross)
        .context("it has no ends")?;
    ensure!(
        bed.ends(system, Measure::TcpSameNode).is_none(),
        "a tunnel has no way within a node"
    );
    let in_the_clear = on_the_underlay(ends)?;
    ensure!(
        in_the_clear == (system == System::Vxlan),
        "in the clear on the underlay: {in_the_clear}"
    );
    let version = bed.version(system).context("it has no version")?;
    let pids = bed.pids(system);
    let before = usage::cpu_seconds(&pids)?;
    let mut line = format!("{} {version}:", system.title());
    for direction in [Direction::Forth, Direction::Back] {
        let load = TcpLoad {
            streams: 1,
            direction,
            seconds: SECONDS,
            congestion: None,
        };
        let transfer = iperf::tcp(ends, load)?;
        line += &format!(" {:.2} Gbit/s", transfer.gbit_per_second);
    }
    let used = usage::cpu_seconds(&pids)? - before;
    ensure!(
        (used > 0.0) == (system != System::Vxlan),
        "{pids:?} have used {used} s: they are not those that carry the packets"
    );
    say(&format!("{line}, {used:.2} cpu-s"));
    drop(bed);
    for pid in pids {
        ensure!(Process::open(pid).is_none(), "{pid} is still there");
    }
    let left = sockets_of_this_process();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// Whether the payload of pings between `ends` is seen on the underlay.
fn on_the_underlay(ends: Ends<'_>) -> anyhow::Result<bool> {
    ends.client.run(|| {
        let links = Netlink::connect()?.links()?;
        let underlay = links
            .iter()
            .find(|link| link.kind.as_deref() == Some("veth"))
            .context("the worker has no underlay")?;
        let capture = Capture::open(&underlay.name)?;
        let pattern: String = PATTERN.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut ping = Command::new(command::find("ping").context("ping is not installed")?);
        ping.args(["-n", "-c", "3", "-i", "0.1", "-s", "1000", "-p", &pattern])
            .arg(ends.address.to_string());
        let answer = command::run(ping, b"", PING_MAX)?;
        ensure!(answer.status.success(), "{}", answer.last_line());
        let mut frame = vec![0; FRAME_BYTES_MAX];
        let (mut heard, mut found) = (0, false);
        while capture.wait(SILENCE)? {
            let len = capture.next(&mut frame)?.unwrap_or_default();
            let bytes = frame.get(..len).unwrap_or_default();
            heard += 1;
            found |= bytes.windows(PATTERN.len()).any(|window| window == PATTERN);
        }
        ensure!(heard >= 6, "{heard} frames for 3 pings and their answers");
        Ok(found)
    })?
}

fn up(options: &BedOptions) -> anyhow::Result<Bed> {
    Bed::up(options, &Progress::silent(), &Interrupt::default())
}

fn options(systems: &[System]) -> anyhow::Result<BedOptions> {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bin_dir = match env::var_os("FABRIC_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => crate_dir.join("../target/release"),
    };
    let bin_dir = bin_dir
        .canonicalize()
        .context("no programs: run `make build`, or name their folder in FABRIC_BIN_DIR")?;
    let target = bin_dir.parent().context("the programs are in the root")?;
    Ok(BedOptions {
        name: format!("contenders-{}", std::process::id())
            .parse()
            .map_err(anyhow::Error::msg)?,
        peers: crate_dir.join("peers"),
        // Where `make bench-peers` has its own: nothing is built twice.
        peers_bin_dir: target.join("bench/bin"),
        bin_dir,
        underlay_mtu: 1500,
        systems: systems.to_vec(),
    })
}

fn sockets_of_this_process() -> Vec<PathBuf> {
    let own = ["a", "b"].map(|end| format!("-{}{end}.sock", std::process::id()));
    let entries = fs::read_dir("/var/run/wireguard").into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| own.iter().any(|end| path.to_string_lossy().ends_with(end)))
        .collect()
}

#[allow(
    clippy::print_stdout,
    reason = "for a person who runs it with --nocapture"
)]
fn say(line: &str) {
    println!("{line}");
}
