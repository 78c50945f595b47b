#![allow(clippy::unwrap_used)]

use std::slice;

use super::*;
use crate::sys::tun::{Tun, TunOffloads};

/// Runs `f` in a namespace of its own.
fn in_new_netns<T: Send>(f: impl FnOnce(Netlink) -> T + Send) -> T {
    Netns::create()
        .expect("this test makes network namespaces: run it as root")
        .run(|| f(Netlink::connect().unwrap()))
        .unwrap()
}

/// A TUN device that is up, and its index.
fn device(netlink: &Netlink) -> (Tun, u32) {
    let tun = Tun::create("eth0", TunOffloads::NONE).expect("run it as root, with /dev/net/tun");
    let index = netlink.link("eth0").unwrap().unwrap().index;
    enable_ipv6("eth0").unwrap();
    let settings = LinkSettings {
        mtu: Some(1500),
        tx_queue_len: Some(1000),
        ipv6_addr_gen_none: true,
        up: Some(true),
    };
    netlink.configure_link(index, settings).unwrap();
    (tun, index)
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Settings of a link read back as they were set, and a missing link is none.
#[test]
fn links_read_back() {
    in_new_netns(|netlink| {
        assert_eq!(netlink.link("eth0").unwrap(), None);
        let (_tun, index) = device(&netlink);
        let settings = LinkSettings {
            mtu: Some(1400),
            ..LinkSettings::default()
        };
        netlink.configure_link(index, settings).unwrap();
        let wanted = Link {
            index,
            name: "eth0".into(),
            mtu: 1400,
            up: true,
            carrier: true,
            kind: Some("tun".into()),
        };
        assert_eq!(netlink.link("eth0").unwrap().unwrap(), wanted);
        let all = netlink.links().unwrap();
        assert!(all.contains(&wanted) && all.iter().any(|link| link.name == "lo"));
        netlink.delete_link(index).unwrap();
        assert_eq!(netlink.link("eth0").unwrap(), None);
        let error = netlink.delete_link(index).unwrap_err();
        assert!(matches!(error, NetlinkError::NotFound { .. }), "{error}");
    });
}

/// Addresses of both families read back exactly, with no link-local one beside them; adding twice
/// and removing twice are told apart from other failures.
#[test]
fn addresses_read_back() {
    in_new_netns(|netlink| {
        let (_tun, index) = device(&netlink);
        let wanted = [net("10.244.1.5/32"), net("fd00:1::5/128")];
        for address in wanted {
            netlink.add_address(index, address).unwrap();
            let error = netlink.add_address(index, address).unwrap_err();
            assert!(matches!(error, NetlinkError::Exists { .. }), "{error}");
        }
        assert_eq!(netlink.addresses(index).unwrap(), wanted);
        for address in wanted {
            netlink.delete_address(index, address).unwrap();
            let error = netlink.delete_address(index, address).unwrap_err();
            assert!(matches!(error, NetlinkError::NotFound { .. }), "{error}");
        }
        assert_eq!(netlink.addresses(index).unwrap(), []);
    });
}

/// Routes of both families, default routes included, read back exactly; setting one again replaces
/// it; removing it twice is told apart.
#[test]
fn routes_read_back() {
    in_new_netns(|netlink| {
        let (_tun, index) = device(&netlink);
        for address in ["10.244.1.5/32", "fd00:1::5/128"] {
            netlink.add_address(index, net(address)).unwrap();
        }
        let spec = |destination, source, gateway, mtu| RouteSpec {
            destination: net(destination),
            index,
            source,
            gateway,
            mtu,
        };
        let wanted = [
            spec("0.0.0.0/0", None, None, None),
            spec("10.244.0.0/16", Some(ip("10.244.1.5")), None, Some(1400)),
            spec("10.99.0.0/16", None, Some(ip("10.244.9.9")), None),
            spec("::/0", None, None, None),
            spec("fd00:2::/64", Some(ip("fd00:1::5")), None, Some(1400)),
        ];
        for route in &wanted {
            netlink.replace_route(route).unwrap();
            netlink.replace_route(route).unwrap();
        }
        let found = netlink.routes(index).unwrap();
        assert_eq!(found.len(), wanted.len(), "{found:?}");
        for route in &wanted {
            assert!(found.contains(route), "{route:?} is not in {found:?}");
        }
        for route in wanted.iter().rev() {
            netlink.delete_route(route).unwrap();
            let error = netlink.delete_route(route).unwrap_err();
            assert!(matches!(error, NetlinkError::NotFound { .. }), "{error}");
        }
        assert_eq!(netlink.routes(index).unwrap(), []);
    });
}

/// A refused route names destination, link and gateway.
#[test]
fn a_refused_route_is_described() {
    in_new_netns(|netlink| {
        let route = RouteSpec {
            destination: net("10.1.0.0/16"),
            index: 77,
            source: None,
            gateway: Some(ip("10.9.9.9")),
            mtu: None,
        };
        let error = netlink.replace_route(&route).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot set route to 10.1.0.0/16 by link 77 via 10.9.9.9: "),
            "{error}"
        );
    });
}

/// The lab's underlay can be built: a bridge with a veth port whose other end is in another
/// namespace.
#[test]
fn an_underlay_can_be_built() {
    let other = Netns::create().expect("this test makes network namespaces: run it as root");
    in_new_netns(|netlink| {
        netlink.set_loopback_up().unwrap();
        assert!(netlink.link("lo").unwrap().unwrap().up);
        netlink.add_bridge("br0").unwrap();
        netlink.add_veth("port0", "eth0").unwrap();
        let error = netlink.add_veth("port0", "eth9").unwrap_err();
        assert!(matches!(error, NetlinkError::Exists { .. }), "{error}");
        let index = |name| netlink.link(name).unwrap().unwrap().index;
        netlink.set_master(index("port0"), index("br0")).unwrap();
        netlink.move_to_netns(index("eth0"), &other).unwrap();
        assert_eq!(netlink.link("eth0").unwrap(), None);
        let there = other
            .run(|| Netlink::connect().unwrap().link("eth0").unwrap())
            .unwrap();
        assert_eq!(there.unwrap().kind.as_deref(), Some("veth"));
    });
}

/// IPv6 that the namespace's defaults disable is enabled for one device.
#[test]
fn ipv6_can_be_enabled() {
    in_new_netns(|netlink| {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let (_tun, index) = device(&netlink);
        netlink.add_address(index, net("fd00::7/128")).unwrap();
        assert_eq!(netlink.addresses(index).unwrap(), [net("fd00::7/128")]);
        enable_ipv6("no-such-device").unwrap();
    });
}

/// A rule and the routes of its table are read back as they were set, are there once however often they
/// are set, and go again; the main table has none of them.
#[test]
fn a_table_of_our_own_reads_back() {
    use super::policy::RuleSpec;
    const TABLE: u32 = 7946;
    in_new_netns(|netlink| {
        let (_tun, index) = device(&netlink);
        let main = netlink.routes(index).unwrap();
        for (ipv6, destination) in [(false, "10.90.0.2/32"), (true, "fd90::2/128")] {
            let rule = RuleSpec {
                ipv6,
                priority: 7946,
                input: "eth0".into(),
                table: TABLE,
            };
            let route = RouteSpec {
                destination: net(destination),
                index,
                source: None,
                gateway: None,
                mtu: None,
            };
            for _ in 0..2 {
                netlink.add_rule(&rule).unwrap();
                netlink.replace_route_in(TABLE, &route).unwrap();
            }
            assert_eq!(netlink.rules(ipv6, TABLE).unwrap(), slice::from_ref(&rule));
            assert_eq!(netlink.rules(ipv6, TABLE + 1).unwrap(), []);
            assert_eq!(netlink.routes_in(TABLE).unwrap(), slice::from_ref(&route));
            assert_eq!(netlink.routes(index).unwrap(), main);
            netlink.delete_rule(&rule).unwrap();
            netlink.delete_route_in(TABLE, &route).unwrap();
            assert_eq!(netlink.rules(ipv6, TABLE).unwrap(), []);
            assert_eq!(netlink.routes_in(TABLE).unwrap(), []);
            assert!(matches!(
                netlink.delete_rule(&rule),
                Err(NetlinkError::NotFound { .. })
            ));
        }
    });
}
