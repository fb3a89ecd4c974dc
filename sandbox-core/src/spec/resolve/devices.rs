//! `linux.devices`.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType as Type};

use super::check::{inside, refuse};
use super::ids::Ids;
use crate::error::Result;
use crate::spec::plan::DeviceNode;

const S_IFMT: u32 = 0o170_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFIFO: u32 = 0o010_000;

/// The largest major number: the kernel's `dev_t` has 12 bits for it.
const MAX_MAJOR: u32 = (1 << 12) - 1;
/// The largest minor number: the kernel's `dev_t` has 20 bits for it.
const MAX_MINOR: u32 = (1 << 20) - 1;

/// Nodes that every container has (runtime-spec, `config-linux.md`, "Default
/// Devices"). boot binds those that the gofer made for the sandbox; `ptmx` comes
/// from the container's devpts.
const DEFAULTS: [(&str, u32, u32); 7] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
    ("/dev/ptmx", 5, 2),
];

/// Returns the nodes that the gofer makes. Of two nodes with one path the last
/// counts: containerd writes two for a privileged container that is also given
/// a device.
pub(super) fn plan(devices: &[LinuxDevice], ids: &Ids) -> Result<Vec<DeviceNode>> {
    let mut nodes: Vec<DeviceNode> = Vec::new();
    for (i, device) in devices.iter().enumerate() {
        let node = one(&format!("linux.devices[{i}]"), device, ids)?;
        nodes.retain(|other| other.path != node.path);
        if !is_default(&node) {
            nodes.push(node);
        }
    }
    Ok(nodes)
}

fn one(field: &str, device: &LinuxDevice, ids: &Ids) -> Result<DeviceNode> {
    let path = inside(|| format!("{field}.path"), device.path())?;
    if path.as_os_str() == "/" || path.starts_with("/proc") {
        return refuse(
            format!("{field}.path"),
            "is the root directory or inside of proc; expected a path for a node",
        );
    }
    let kind = match device.typ() {
        Type::C | Type::U => S_IFCHR,
        Type::B => S_IFBLK,
        Type::P => S_IFIFO,
        Type::A => return refuse(format!("{field}.type"), "is \"a\"; expected c, u, b or p"),
    };
    let (major, minor) = match kind {
        S_IFIFO => (0, 0),
        _ => (
            small(&format!("{field}.major"), device.major(), MAX_MAJOR)?,
            small(&format!("{field}.minor"), device.minor(), MAX_MINOR)?,
        ),
    };
    let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    ids.check_uid(&format!("{field}.uid"), uid)?;
    ids.check_gid(&format!("{field}.gid"), gid)?;
    let mode = kind | permissions(field, device.file_mode().unwrap_or(0o666), kind)?;
    Ok(DeviceNode { path, mode, major, minor, uid, gid })
}

/// Returns the permission bits. Some programs include the type bits of stat(2).
fn permissions(field: &str, mode: u32, kind: u32) -> Result<u32> {
    match mode & S_IFMT {
        0 => {}
        bits if bits == kind => {}
        _ => {
            return refuse(
                format!("{field}.fileMode"),
                format!("{mode:#o} disagrees with the type"),
            );
        }
    }
    Ok(mode & 0o7777)
}

fn small(field: &str, number: i64, most: u32) -> Result<u32> {
    match u32::try_from(number) {
        Ok(number) if number <= most => Ok(number),
        _ => refuse(field, format!("is {number}; expected 0 to {most}")),
    }
}

/// Whether a node is equal to one that every container has.
fn is_default(node: &DeviceNode) -> bool {
    let at = |path: &str| node.path.as_os_str() == path;
    node.mode == S_IFCHR | 0o666
        && DEFAULTS.iter().any(|&(path, major, minor)| {
            at(path) && (node.major, node.minor) == (major, minor)
        })
        // The owner of `ptmx` is that of the devpts, as in runc.
        && ((node.uid, node.gid) == (0, 0) || at("/dev/ptmx"))
        // With a terminal, it is bound over /dev/console. Without one, the
        // container gets none.
        || node.path.as_os_str() == "/dev/console"
}
