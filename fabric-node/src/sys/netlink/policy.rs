//! A routing table of our own, and the rule that has it asked for what comes in by one interface.

use futures_util::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteHeader, RouteMessage},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use rtnetlink::IpVersion;

use super::{Netlink, NetlinkError, RouteSpec, message, refusal};

/// Packets that come in by an interface are routed by a table before the main one is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    /// Whether the rule is for IPv6.
    pub ipv6: bool,
    /// Place among the rules; the main table's is 32766.
    pub priority: u32,
    /// Name of the interface that packets come in by.
    pub input: String,
    /// The table, beyond 255.
    pub table: u32,
}

impl Netlink {
    /// Adds a rule; one that is there already is no error.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn add_rule(&self, rule: &RuleSpec) -> Result<(), NetlinkError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule_message(rule);
        let added = self.runtime.block_on(request.execute());
        match added.map_err(|error| refusal(format!("add {}", describe(rule)), error)) {
            Err(NetlinkError::Exists { .. }) => Ok(()),
            done => done,
        }
    }

    /// Removes a rule.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::NotFound`] if there is no such rule, and the others.
    pub fn delete_rule(&self, rule: &RuleSpec) -> Result<(), NetlinkError> {
        let request = self.handle.rule().del(rule_message(rule));
        self.runtime
            .block_on(request.execute())
            .map_err(|error| refusal(format!("delete {}", describe(rule)), error))
    }

    /// The rules of one family that ask `table`.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn rules(&self, ipv6: bool, table: u32) -> Result<Vec<RuleSpec>, NetlinkError> {
        let version = if ipv6 { IpVersion::V6 } else { IpVersion::V4 };
        let query = self.handle.rule().get(version).execute();
        let found: Vec<_> = self
            .runtime
            .block_on(query.try_collect())
            .map_err(|error| refusal("list rules".into(), error))?;
        let rules = found.iter().filter_map(|message| rule_of(message, ipv6));
        Ok(rules.filter(|rule| rule.table == table).collect())
    }

    /// As [`Self::replace_route`], in another table than the main one.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn replace_route_in(&self, table: u32, route: &RouteSpec) -> Result<(), NetlinkError> {
        let message = message::in_table(message::route(route), table);
        let request = self.handle.route().add(message).replace();
        self.runtime.block_on(request.execute()).map_err(|error| {
            let request = format!("set {} in table {table}", message::describe(route));
            refusal(request, error)
        })
    }

    /// As [`Self::delete_route`], in another table than the main one.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::NotFound`] if there is no such route, and the others.
    pub fn delete_route_in(&self, table: u32, route: &RouteSpec) -> Result<(), NetlinkError> {
        let message = message::in_table(message::route_to_delete(route), table);
        let request = self.handle.route().del(message);
        self.runtime.block_on(request.execute()).map_err(|error| {
            let request = format!("delete {} in table {table}", message::describe(route));
            refusal(request, error)
        })
    }

    /// The routes of `table`, by whichever interface they leave.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn routes_in(&self, table: u32) -> Result<Vec<RouteSpec>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut all = RouteMessage::default();
            all.header.address_family = family;
            let query = self.handle.route().get(all).execute();
            let found: Vec<_> = self
                .runtime
                .block_on(query.try_collect())
                .map_err(|error| refusal(format!("list routes of table {table}"), error))?;
            let found = found.iter();
            routes.extend(found.filter_map(|route| message::route_in(route, table)));
        }
        Ok(routes)
    }
}

fn rule_message(rule: &RuleSpec) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.ipv6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Iifname(rule.input.clone()),
        RuleAttribute::Table(rule.table),
    ];
    message
}

/// `None` for a rule of another form.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "a foreign enum without end, of which a few attributes matter"
)]
fn rule_of(message: &RuleMessage, ipv6: bool) -> Option<RuleSpec> {
    let (mut priority, mut input, mut table) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = Some(*number),
            RuleAttribute::Iifname(name) => input = Some(name.clone()),
            RuleAttribute::Table(number) => table = Some(*number),
            _ => {}
        }
    }
    Some(RuleSpec {
        ipv6,
        priority: priority?,
        input: input?,
        table: table?,
    })
}

fn describe(rule: &RuleSpec) -> String {
    let RuleSpec {
        ipv6,
        priority,
        input,
        table,
    } = rule;
    let family = if *ipv6 { "IPv6" } else { "IPv4" };
    format!("{family} rule {priority} (iif {input} lookup {table})")
}
