//! Header fields that do join, and by which rule: identifications and partial checksums.

use super::*;

/// Datagrams with DF and one constant identification join; what comes back differs in the
/// identification only, which carries no meaning there. Without DF they stay apart.
#[test]
fn constant_identification_joins_with_df_only() {
    let df: Vec<_> = (0..4_u8).map(|n| udp(&Ip::v4(), 7, 9, &[n; 100])).collect();
    let out = coalesce_all(&df);
    assert_eq!(out.len(), 1);
    for (again, before) in cut_all(&out).iter().zip(&df) {
        assert_eq!(again[..4], before[..4]);
        assert_eq!(again[6..10], before[6..10]);
        assert_eq!(again[12..], before[12..]);
    }
    let ip = Ip {
        flags_and_offset: 0,
        ..Ip::v4()
    };
    let plain: Vec<_> = (0..4_u8).map(|n| udp(&ip, 7, 9, &[n; 100])).collect();
    assert_eq!(coalesce_all(&plain).len(), 4);
}

/// A run keeps to one way of numbering: after counting, a repeated identification does not join, and
/// the other way round.
#[test]
fn identification_keeps_to_one_pattern() {
    for pattern in [[5, 6, 5], [5, 5, 7]] {
        let packets = pattern.map(|identification| {
            let ip = Ip {
                identification,
                ..Ip::v4()
            };
            udp(&ip, 7, 9, &[1; 100])
        });
        assert_eq!(coalesce_all(&packets).len(), 2, "{pattern:?}");
    }
}

/// Partial checksums join by their seed, also with whole ones; a wrong seed and a super-packet pass.
#[test]
fn joins_partial_checksums() {
    let partial = Offload {
        needs_checksum: true,
        gso: None,
    };
    for ip in [Ip::v4(), Ip::v6()] {
        let (a, b) = (
            udp_partial(&ip, 7, 9, &[1; 100]),
            udp_partial(&ip, 7, 9, &[2; 100]),
        );
        let whole = [udp(&ip, 7, 9, &[1; 100]), udp(&ip, 7, 9, &[2; 100])];
        let same = coalesce_offloads(&[(a.clone(), partial), (b.clone(), partial)]);
        let mixed = coalesce_offloads(&[(a.clone(), partial), (whole[1].clone(), Offload::NONE)]);
        assert_eq!(same.len(), 1);
        assert_eq!(same, mixed);
        let payloads: Vec<_> = cut_all(&same)
            .iter()
            .map(|packet| packet[packet.len() - 108..].to_vec())
            .collect();
        assert_eq!(payloads, whole.map(|p| p[p.len() - 108..].to_vec()));

        let single = vec![(a.clone(), partial)];
        assert_eq!(coalesce_offloads(&single), single);
        let mut wrong = b.clone();
        let at = wrong.len() - 102;
        wrong[at] ^= 1;
        let strange = vec![(a.clone(), partial), (wrong, partial)];
        assert_eq!(coalesce_offloads(&strange), strange);
        let super_packet = vec![(a.clone(), partial), same[0].clone()];
        assert_eq!(coalesce_offloads(&super_packet), super_packet);
    }
}
