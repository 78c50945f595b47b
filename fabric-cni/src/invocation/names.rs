//! Pure: names that may become file names, and names of interfaces.

use fabric_proto::cni::code;

use crate::error::CniError;

/// Longest container id and network name (bytes); runtimes use 64.
const NAME_BYTES_MAX: usize = 1024;
/// Longest interface name (bytes): IFNAMSIZ of `linux/if.h` without the closing zero.
const IFNAME_BYTES_MAX: usize = 15;

/// What [`is_name`] asks for, in words.
pub(super) const NAME_RULE: &str =
    "start with a letter or digit and go on with letters, digits, '_', '.' and '-'";

/// `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$` (CNI specification, container ids and network names).
pub(super) fn is_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name
            .as_bytes()
            .first()
            .is_some_and(u8::is_ascii_alphanumeric)
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// Refuses what the kernel would not take as the name of a new interface, or would take as
/// something else.
pub(super) fn check_ifname(ifname: &str) -> Result<(), CniError> {
    match wrong_with_ifname(ifname) {
        None => Ok(()),
        Some(wrong) => Err(CniError::new(
            code::INVALID_ENVIRONMENT,
            format!("CNI_IFNAME {ifname:?} {wrong}"),
        )),
    }
}

/// What is wrong with the name, if anything.
pub(super) fn wrong_with_ifname(ifname: &str) -> Option<&'static str> {
    if ifname.is_empty() {
        Some("is empty")
    } else if ifname.len() > IFNAME_BYTES_MAX {
        Some("is longer than 15 bytes")
    } else if matches!(ifname, "." | "..") {
        Some("is a folder's name")
    } else if matches!(ifname, "all" | "default") {
        // The folders of /proc/sys/net/ipv4/conf that stand for every interface.
        Some("stands for every interface in the kernel's settings")
    } else if ifname
        .chars()
        .any(|c| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control())
    {
        // '%' begins a pattern that the kernel fills in (dev_alloc_name).
        Some("contains '/', ':', '%', white space or a control character")
    } else {
        None
    }
}
