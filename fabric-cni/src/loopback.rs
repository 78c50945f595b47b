//! The plugin `loopback`: what containerd needs beside the network of the pods. It is this program
//! under that file name.
//!
//! Comes in: the call of a runtime. Goes out: `lo` of the container's namespace, up or down, and words
//! for the runtime. Never done here: asking the daemon, or keeping anything; so GC and STATUS have
//! nothing to do and succeed.

mod message;
mod netlink;

use std::{ffi::OsStr, io, net::IpAddr};

use fabric_proto::cni::code;

use crate::{
    Listened, Printed,
    error::CniError,
    invocation::{self, Environment, PrevResult, Verb},
    listen,
    namespace::{Namespace, NamespaceError},
    output,
    version::CniVersion,
};
use netlink::Netlink;

/// File name of the program under which it is this plugin.
const NAME: &str = "loopback";

/// Whether the program was called as `loopback`: by the file name in its first argument.
#[must_use]
pub fn is_called(program: &OsStr) -> bool {
    std::path::Path::new(program).file_name() == Some(OsStr::new(NAME))
}

/// What to do about a call.
#[derive(Debug)]
pub enum Decision {
    /// Nothing needs to be done: print this and end.
    Print(Printed),
    /// The kernel decides: [`act`], then [`conclude`].
    Act(Box<Call>),
}

/// One checked call that concerns a namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    version: CniVersion,
    netns: String,
    own_netns_allowed: bool,
    action: Action,
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Add { prev_result: Option<PrevResult> },
    Del,
    Check,
}

/// What [`act`] has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lo {
    /// Addresses of `lo` with their prefix lengths.
    addresses: Vec<(IpAddr, u8)>,
}

/// Checks a call, with the same rules as [`crate::decide`]. Pure, and never panics.
pub fn decide(
    environment: Result<Environment, CniError>,
    stdin: impl FnOnce() -> io::Result<Vec<u8>>,
) -> Decision {
    let (verb, environment, stdin) = match listen(environment, stdin, NAME, "sets lo up") {
        Listened::Print(printed) => return Decision::Print(printed),
        Listened::Call {
            verb,
            environment,
            stdin,
        } => (verb, environment, stdin),
    };
    match Call::parse(verb, &environment, &stdin) {
        Ok(Some(call)) => Decision::Act(Box::new(call)),
        Ok(None) => Decision::Print(Printed::default()),
        Err(error) => Decision::Print(output::failure(
            invocation::version_for_errors(&stdin),
            &error,
        )),
    }
}

impl Call {
    /// `None` where nothing is to be done.
    fn parse(
        verb: Verb,
        environment: &Environment,
        stdin: &[u8],
    ) -> Result<Option<Self>, CniError> {
        let config = invocation::config_of(verb, environment, stdin)?;
        let action = match verb {
            Verb::Add => Action::Add {
                prev_result: config.prev_result()?,
            },
            Verb::Del => Action::Del,
            Verb::Check => {
                // Nothing in it concerns lo, but it must be one.
                config.prev_result()?;
                Action::Check
            }
            Verb::Gc | Verb::Status | Verb::Version => return Ok(None),
        };
        // The interface is always lo, whatever the runtime calls it; its word must be a name all the same.
        invocation::key(environment, &config)?;
        let Some(netns) = invocation::netns(environment) else {
            // A DEL whose namespace has gone, and lo with it.
            return Ok(None);
        };
        Ok(Some(Self {
            version: config.version,
            netns,
            own_netns_allowed: invocation::own_netns_allowed(environment),
            action,
        }))
    }
}

/// Does what the call asks for. The calling thread stays in the container's namespace: it must be
/// the only one, and do nothing else afterwards.
///
/// # Errors
///
/// ADD and CHECK: the namespace is missing, is none or the plugin's own. CHECK: `lo` is down. All: the
/// kernel refuses.
pub fn act(call: &Call) -> Result<Lo, CniError> {
    match &call.action {
        Action::Add { .. } => {
            let mut kernel = call.enter()?;
            let up = kernel.set_up(true);
            up.and_then(|()| kernel.addresses())
                .map(|addresses| Lo { addresses })
                .map_err(|error| call.refused("set lo up", &error))
        }
        Action::Check => {
            let up = call.enter()?.is_up();
            match up.map_err(|error| call.refused("look at lo", &error))? {
                true => Ok(Lo::default()),
                false => Err(CniError::new(
                    code::CHECK_FAILED,
                    format!("lo is down in network namespace {:?}", call.netns),
                )
                .cure("set it up again: ip link set lo up")),
            }
        }
        Action::Del => call.take_down(),
    }
}

impl Call {
    fn enter(&self) -> Result<Netlink, CniError> {
        let namespace = Namespace::find(&self.netns)?;
        if namespace.is_own() && !self.own_netns_allowed {
            return Err(CniError::own_netns(&self.netns));
        }
        namespace.enter()?;
        Netlink::open().map_err(|error| self.refused("open a netlink socket", &error))
    }

    /// A namespace that has gone took its `lo` along. The plugin's own `lo` is everybody's on the node
    /// and stays as it is, whatever the runtime says.
    fn take_down(&self) -> Result<Lo, CniError> {
        let namespace = match Namespace::find(&self.netns) {
            Ok(namespace) if !namespace.is_own() => namespace,
            Ok(_) | Err(NamespaceError::NotANamespace { .. } | NamespaceError::Open { .. }) => {
                return Ok(Lo::default());
            }
            Err(error @ NamespaceError::Enter { .. }) => return Err(error.into()),
        };
        match namespace.enter() {
            Ok(()) => {}
            Err(NamespaceError::NotANamespace { .. }) => return Ok(Lo::default()),
            Err(error) => return Err(error.into()),
        }
        Netlink::open()
            .and_then(|mut kernel| kernel.set_up(false))
            .map(|()| Lo::default())
            .map_err(|error| self.refused("set lo down", &error))
    }

    fn refused(&self, what: &str, error: &io::Error) -> CniError {
        CniError::new(
            code::IO,
            format!(
                "cannot {what} in network namespace {:?}: {error}",
                self.netns
            ),
        )
        .cure("the runtime must run its plugins as root")
    }
}

/// Words what [`act`] has found. Pure, and never panics.
#[must_use]
pub fn conclude(call: &Call, found: Result<Lo, CniError>) -> Printed {
    match (&call.action, found) {
        (_, Err(error)) => output::failure(Some(call.version), &error),
        (Action::Add { prev_result }, Ok(lo)) => output::loopback_success(
            call.version,
            &call.netns,
            &lo.addresses,
            prev_result.clone(),
        ),
        (Action::Del | Action::Check, Ok(_)) => Printed::default(),
    }
}

impl From<NamespaceError> for CniError {
    fn from(error: NamespaceError) -> Self {
        let (code, cure) = match &error {
            NamespaceError::Open { .. } => {
                (code::INVALID_NETNS, "check that the container still exists")
            }
            NamespaceError::NotANamespace { .. } => (
                code::INVALID_NETNS,
                "give a path such as /run/netns/NAME or /proc/PID/ns/net",
            ),
            NamespaceError::Enter { .. } => (
                code::IO,
                "the runtime must run its plugins with CAP_SYS_ADMIN",
            ),
        };
        Self::new(code, error.to_string()).cure(cure)
    }
}
