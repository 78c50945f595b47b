//! Promises judged by made-up samples.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    plan::{JUMBO_MTU_BYTES, UNDERLAY_MTU_BYTES},
    report::{Part, example},
};

const ACROSS: Quantity = Quantity::Median(
    UNDERLAY_MTU_BYTES,
    Measure::TcpAcross,
    Figure::GbitPerSecond,
);

fn report(values: &[(System, f64)]) -> Report {
    let mut samples = Samples::default();
    for &(system, value) in values {
        example::put(
            &mut samples,
            Measure::TcpAcross,
            system,
            Figure::GbitPerSecond,
            value,
        );
    }
    example::report(samples)
}

fn target(must: Claim, aim: &[Claim]) -> Target {
    Target {
        id: "T",
        quantity: ACROSS,
        must: vec![must],
        aim: aim.to_vec(),
    }
}

fn claim(than: Than, bound: Bound) -> Claim {
    Claim { than, bound }
}

fn verdict(target: &Target, values: &[(System, f64)]) -> Verdict {
    target.judge(&report(values)).verdict
}

const PEER: Than = Than::TimesOf(System::WireguardGo);

/// From exactly the bound on a promise is kept; what must be kept comes before what is hoped for.
#[test]
fn bounds_are_kept_from_their_value_on() {
    let target = target(
        claim(PEER, Bound::AtLeast(2.0)),
        &[claim(PEER, Bound::AtLeast(3.0))],
    );
    let of = |own| {
        verdict(
            &target,
            &[(System::Fabric, own), (System::WireguardGo, 1.0)],
        )
    };
    assert_eq!(of(3.0), Verdict::Aim);
    assert_eq!(of(2.99), Verdict::Must);
    assert_eq!(of(2.0), Verdict::Must);
    assert_eq!(of(1.99), Verdict::Missed);
}

/// An upper bound is broken above its value; differences and plain figures are bounded as well.
#[test]
fn upper_bounds_differences_and_plain_figures() {
    let both = [(System::Fabric, 3.0), (System::Veth, 1.0)];
    let of = |than, bound| verdict(&target(claim(than, bound), &[]), &both);
    assert_eq!(
        of(Than::TimesOf(System::Veth), Bound::AtMost(3.0)),
        Verdict::Must
    );
    assert_eq!(
        of(Than::TimesOf(System::Veth), Bound::AtMost(2.9)),
        Verdict::Missed
    );
    assert_eq!(
        of(Than::Above(System::Veth), Bound::AtMost(2.0)),
        Verdict::Must
    );
    assert_eq!(
        of(Than::Above(System::Veth), Bound::AtMost(1.9)),
        Verdict::Missed
    );
    assert_eq!(of(Than::Nothing, Bound::AtMost(3.0)), Verdict::Must);
    assert_eq!(of(Than::Nothing, Bound::AtLeast(3.1)), Verdict::Missed);
}

/// Without a sample of one side there is no verdict, and the missing side is named; an aim that
/// cannot be judged leaves what must be kept judged.
#[test]
fn what_is_missing_is_not_judged() {
    let own = [(System::Fabric, 3.0)];
    let alone = target(claim(PEER, Bound::AtLeast(1.0)), &[]).judge(&report(&own));
    assert_eq!(alone.verdict, Verdict::Unknown);
    assert_eq!(alone.measured, "wireguard-go not measured");
    let with_aim = target(
        claim(Than::Nothing, Bound::AtLeast(1.0)),
        &[claim(Than::TimesOf(System::Relay), Bound::AtLeast(1.0))],
    );
    assert_eq!(verdict(&with_aim, &own), Verdict::MustAimUnknown);
    let nothing = with_aim.judge(&report(&[]));
    assert_eq!(nothing.verdict, Verdict::Unknown);
    assert_eq!(nothing.measured, "fabric not measured");
}

/// The best peer is the best of all that were measured; a promise that holds beside some of them
/// only is not judged, one that is broken beside one of them is.
#[test]
fn the_best_of_some_peers_decides_only_against() {
    let reading = Reading {
        value: 2.0,
        other: Some(System::WireguardGo),
        unmeasured: vec![System::Veth],
    };
    assert!(Bound::AtLeast(2.0).held(Some(&reading)) == Held::Unknown);
    assert!(Bound::AtLeast(2.1).held(Some(&reading)) == Held::No);
    let words = reading.words(Than::TimesOfBest, Figure::DeliveredKpps);
    assert_eq!(words, "2.00x wireguard-go (veth not measured)");

    let encrypted = System::ALL
        .into_iter()
        .filter(|system| system.encrypted() && *system != System::Fabric);
    let mut values: Vec<(System, f64)> = encrypted.zip([2.0, 4.0].into_iter().cycle()).collect();
    let best = values.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    values.push((System::Fabric, best * 2.0));
    // Not encrypted, so no peer however fast it is.
    values.push((System::Veth, 1000.0));
    let target = target(claim(Than::TimesOfBest, Bound::AtLeast(2.0)), &[]);
    assert_eq!(verdict(&target, &values), Verdict::Must);
}

/// Every promise is judged over its own underlay, and the words of both columns name the bound.
#[test]
fn every_promise_has_its_underlay() {
    let mut report = report(&[(System::Fabric, 3.0), (System::WireguardGo, 1.0)]);
    let mut jumbo = Samples::default();
    for (system, value) in [(System::Fabric, 2.0), (System::WireguardGo, 1.0)] {
        example::put(
            &mut jumbo,
            Measure::TcpAcross,
            system,
            Figure::GbitPerSecond,
            value,
        );
    }
    report.parts.push(Part {
        samples: jumbo,
        ..Part::new(JUMBO_MTU_BYTES)
    });
    let judged = judge(&report);
    let row = |what: &str| judged.iter().find(|row| row.what == what).unwrap();
    let small = row("TCP across, 1 stream");
    assert_eq!((small.id, small.verdict), ("P1", Verdict::MustAimUnknown));
    assert_eq!(small.measured, "3.00x wireguard-go, relay not measured");
    assert_eq!(small.must, ">= 1.7x wireguard-go");
    assert_eq!(small.aim, ">= 2.5x wireguard-go, >= 0.85x relay");
    let large = row("TCP across, 1 stream, MTU 9000");
    assert_eq!((large.id, large.verdict), ("P2b", Verdict::Missed));
}

/// All nine subjects of the promises are judged.
#[test]
fn every_subject_is_there() {
    let mut ids: Vec<&str> = list::targets().iter().map(|target| target.id).collect();
    ids.dedup();
    let expected = ["P1", "P2", "P2b", "P3", "P4", "P5", "P6", "P7", "P8", "P9"];
    assert_eq!(ids, expected);
}
