//! The one table of rules that is ours, as netlink messages; no I/O.
//!
//! In: what it should do. Out: one batch, which the kernel carries out whole or not at all.
//!
//! ```text
//! table inet fabric {
//!     chain forged {
//!         type filter hook prerouting priority raw; policy accept;
//!         iifname != "fabric0" iifname != "lo" ip saddr 10.244.1.0/24 counter drop
//!     }
//!     chain masquerade {
//!         type nat hook postrouting priority srcnat + 10; policy accept;
//!         oifname != "fabric0" ip saddr 10.244.1.0/24 masquerade
//!     }
//! }
//! ```

use ipnet::IpNet;

use super::wire::Writer;

/// Name of the table, in the family `inet`.
pub const TABLE: &str = "fabric";
/// Chain that drops what comes in from elsewhere with a source of this node's pods.
pub const FORGED: &str = "forged";
/// Chain that gives what leaves the node for the outside the node's address.
pub const MASQUERADE: &str = "masquerade";

/// What the table is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table<'a> {
    /// Ranges of this node's pods.
    pub ranges: &'a [IpNet],
    /// The host's device of the fabric.
    pub device: &'a str,
    /// Whether what leaves by another device gets that device's address.
    pub masquerade: bool,
}

/// After whoever translates at the usual place (`srcnat`, 100): the first to translate wins.
const MASQUERADE_PRIORITY: i32 = 110;
/// `raw` (-300): before connection tracking knows the packet.
const FORGED_PRIORITY: i32 = -300;

/// `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NFT_MSG_*` (linux/netfilter/nf_tables.h).
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = SUBSYSTEM << 8 | 2;
const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const HOOK_PREROUTING: u32 = 0;
const HOOK_POSTROUTING: u32 = 4;
const VERDICT_DROP: u32 = 0;
const VERDICT_ACCEPT: u32 = 1;
/// Bytes of an interface's name with its closing zero (`IFNAMSIZ`).
const NAME_BYTES: usize = 16;

/// The batch that puts `table` in the place of the one that is there, and how many acknowledgements it
/// asks for: one, of its last message.
#[must_use]
pub fn replace(table: &Table<'_>) -> (Vec<u8>, usize) {
    batch(|writer| {
        clear(writer, 0);
        named(writer, NEWTABLE, CREATE, |_| {});
        chain(writer, FORGED, ("filter", HOOK_PREROUTING, FORGED_PRIORITY));
        for range in table.ranges {
            rule(writer, FORGED, |writer| {
                interface_is_not(writer, META_IIFNAME, table.device);
                interface_is_not(writer, META_IIFNAME, "lo");
                source_is(writer, range);
                expression(writer, "counter", |_| {});
                drop(writer);
            });
        }
        if table.masquerade {
            let hook = ("nat", HOOK_POSTROUTING, MASQUERADE_PRIORITY);
            chain(writer, MASQUERADE, hook);
            for range in table.ranges {
                rule(writer, MASQUERADE, |writer| {
                    interface_is_not(writer, META_OIFNAME, table.device);
                    source_is(writer, range);
                    expression(writer, "masq", |_| {});
                });
            }
        }
        // It is there already: the message asks for the acknowledgement.
        named(writer, NEWTABLE, CREATE | ACK, |_| {});
    })
}

/// The batch after which there is no table, whether there was one or not.
#[must_use]
pub fn remove() -> (Vec<u8>, usize) {
    batch(|writer| clear(writer, ACK))
}

fn batch(body: impl FnOnce(&mut Writer)) -> (Vec<u8>, usize) {
    let mut writer = Writer::default();
    writer.message(BATCH_BEGIN, REQUEST, (0, SUBSYSTEM), |_| {});
    body(&mut writer);
    writer.message(BATCH_END, REQUEST, (0, SUBSYSTEM), |_| {});
    (writer.finish(), 1)
}

/// A table that is not there cannot be deleted: it is made first, which changes nothing if it is there.
fn clear(writer: &mut Writer, flags: u16) {
    named(writer, NEWTABLE, CREATE, |_| {});
    named(writer, DELTABLE, flags, |_| {});
}

/// A message about the table, or about what is in it: attribute 1 is the table's name for all of them.
fn named(writer: &mut Writer, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) {
    writer.message(kind, REQUEST | flags, (NFPROTO_INET, 0), |writer| {
        writer.text(1, TABLE);
        body(writer);
    });
}

/// `NFTA_CHAIN_NAME`, `_HOOK` (`NFTA_HOOK_HOOKNUM`, `_PRIORITY`), `_POLICY`, `_TYPE`.
fn chain(writer: &mut Writer, name: &str, (kind, hook, priority): (&str, u32, i32)) {
    named(writer, NEWCHAIN, CREATE, |writer| {
        writer.text(3, name);
        writer.nest(4, |writer| {
            writer.number(1, hook);
            writer.attribute(2, &priority.to_be_bytes());
        });
        writer.number(5, VERDICT_ACCEPT);
        writer.text(7, kind);
    });
}

/// `NFTA_RULE_CHAIN`, `NFTA_RULE_EXPRESSIONS`.
fn rule(writer: &mut Writer, chain: &str, expressions: impl FnOnce(&mut Writer)) {
    named(writer, NEWRULE, CREATE | APPEND, |writer| {
        writer.text(2, chain);
        writer.nest(4, expressions);
    });
}

/// `NFTA_LIST_ELEM` with `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
fn expression(writer: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    writer.nest(1, |writer| {
        writer.text(1, name);
        writer.nest(2, data);
    });
}

/// `NFT_REG_1`: what one expression reads and the next one looks at.
const REGISTER: u32 = 1;
/// `NFT_META_IIFNAME`, `NFT_META_OIFNAME`, `NFT_META_NFPROTO`.
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;

fn interface_is_not(writer: &mut Writer, which: u32, name: &str) {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(NAME_BYTES, 0);
    meta(writer, which);
    compare(writer, CMP_NEQ, &padded);
}

fn source_is(writer: &mut Writer, range: &IpNet) {
    let (family, offset, mask, network) = match range.trunc() {
        IpNet::V4(net) => (
            NFPROTO_IPV4,
            12,
            net.netmask().octets().to_vec(),
            net.network().octets().to_vec(),
        ),
        IpNet::V6(net) => (
            NFPROTO_IPV6,
            8,
            net.netmask().octets().to_vec(),
            net.network().octets().to_vec(),
        ),
    };
    let len = u32::try_from(network.len()).unwrap_or(0);
    meta(writer, META_NFPROTO);
    compare(writer, CMP_EQ, &[family]);
    // `NFTA_PAYLOAD_DREG`, `_BASE` (the network header), `_OFFSET`, `_LEN`.
    expression(writer, "payload", |writer| {
        writer.number(1, REGISTER);
        writer.number(2, 1);
        writer.number(3, offset);
        writer.number(4, len);
    });
    // `NFTA_BITWISE_SREG`, `_DREG`, `_LEN`, `_MASK`, `_XOR`.
    expression(writer, "bitwise", |writer| {
        writer.number(1, REGISTER);
        writer.number(2, REGISTER);
        writer.number(3, len);
        writer.nest(4, |writer| writer.attribute(1, &mask));
        writer.nest(5, |writer| writer.attribute(1, &vec![0; mask.len()]));
    });
    compare(writer, CMP_EQ, &network);
}

/// `NFTA_META_DREG`, `NFTA_META_KEY`.
fn meta(writer: &mut Writer, key: u32) {
    expression(writer, "meta", |writer| {
        writer.number(1, REGISTER);
        writer.number(2, key);
    });
}

/// `NFTA_CMP_SREG`, `_OP`, `_DATA` with `NFTA_DATA_VALUE`.
fn compare(writer: &mut Writer, operation: u32, value: &[u8]) {
    expression(writer, "cmp", |writer| {
        writer.number(1, REGISTER);
        writer.number(2, operation);
        writer.nest(3, |writer| writer.attribute(1, value));
    });
}

/// `NFTA_IMMEDIATE_DREG` (the verdict), `_DATA` with `NFTA_DATA_VERDICT` and `NFTA_VERDICT_CODE`.
fn drop(writer: &mut Writer) {
    expression(writer, "immediate", |writer| {
        writer.number(1, 0);
        writer.nest(2, |writer| {
            writer.nest(2, |writer| writer.number(1, VERDICT_DROP));
        });
    });
}
