//! `linux.sysctl`: only sysctls of the sandbox's own namespaces.

use std::collections::HashMap;

use super::check::{refuse, without_nul};
use super::namespaces::Resolved;
use crate::error::Result;
use crate::spec::plan::{Network, sysctl_file};

/// The sysctls of an IPC namespace (ipc_namespaces(7)).
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// The input of the check besides a sysctl's name.
pub(super) struct SysctlContext<'a> {
    pub(super) resolved: &'a Resolved,
    /// Whether this is the root container, which alone configures the sandbox's
    /// network.
    pub(super) root: bool,
    pub(super) hostname: bool,
    /// Whether the container has a user namespace.
    pub(super) user_namespace: bool,
}

/// The sysctls by the namespace that they belong to.
#[derive(Default)]
pub(super) struct Sorted {
    /// Those of the container's IPC and UTS namespaces.
    pub(super) container: Sysctls,
    /// Those of its user namespace.
    pub(super) user: Sysctls,
    /// Those of the network namespace.
    pub(super) network: Sysctls,
}

/// Names and values, sorted by name.
pub(super) type Sysctls = Vec<(String, String)>;

/// Takes the value of a sysctl out of a list.
pub(super) fn take(sysctls: &mut Sysctls, name: &str) -> Option<String> {
    let at = sysctls.iter().position(|(other, _)| other == name)?;
    Some(sysctls.remove(at).1)
}

/// Checks the sysctls, and sorts them by their namespaces.
pub(super) fn plan(
    sysctls: Option<&HashMap<String, String>>,
    context: &SysctlContext<'_>,
) -> Result<Sorted> {
    let mut sorted = Sorted::default();
    for (key, value) in sysctls.into_iter().flatten() {
        let name = canonical(key)?;
        without_nul(|| field(key), value)?;
        check(key, &name, context)?;
        let list = match name.split_once('.') {
            Some(("net", _)) => &mut sorted.network,
            Some(("user", _)) => &mut sorted.user,
            _ => &mut sorted.container,
        };
        list.push((name, value.clone()));
    }
    // A HashMap has no order, but the same spec always gives the same plan.
    for list in [&mut sorted.container, &mut sorted.user, &mut sorted.network] {
        list.sort_unstable();
        if let Some(twice) = list.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return refuse("linux.sysctl", format!("{} is given twice", twice[0].0));
        }
    }
    Ok(sorted)
}

/// Returns the dotted form of a name. The first of `.` and `/` in it is the
/// separator.
fn canonical(key: &str) -> Result<String> {
    without_nul(|| field(key), key)?;
    let slashed = key.find(['.', '/']).is_some_and(|at| key[at..].starts_with('/'));
    let name = if slashed { sysctl_file(key) } else { key.into() };
    // No part of the path below /proc/sys may be empty or lead upwards.
    let wrong = |part: &str| matches!(part, "" | "." | "..");
    if sysctl_file(&name).split('/').any(wrong) || !name.contains('.') {
        return refuse(field(key), "is no sysctl; expected a name such as net.core.somaxconn");
    }
    Ok(name)
}

fn check(key: &str, name: &str, context: &SysctlContext<'_>) -> Result<()> {
    let resolved = context.resolved;
    let message = match name {
        "kernel.hostname" if !resolved.uts_listed => {
            "would change the host's name: no uts namespace is listed"
        }
        "kernel.hostname" if context.hostname => "is given beside hostname; expected one of both",
        "kernel.domainname" if !resolved.uts_listed => {
            "would change the host's name: no uts namespace is listed"
        }
        "kernel.hostname" | "kernel.domainname" => return Ok(()),
        _ if name.starts_with("net.") && !context.root => {
            "belongs to the pod's network; expected in the spec of the pod's first container"
        }
        _ if name.starts_with("net.") && resolved.network == Network::Host => {
            "would change the host's network: the pod has no network namespace of its own"
        }
        _ if name.starts_with("net.") => return Ok(()),
        _ if is_ipc(name) && !resolved.ipc_listed => {
            "would change the host's IPC: no ipc namespace is listed"
        }
        _ if is_ipc(name) => return Ok(()),
        _ if name.starts_with("user.") && !context.user_namespace => {
            "would change the whole machine: the pod has no user namespace"
        }
        _ if name.starts_with("user.") => return Ok(()),
        _ => "belongs to no namespace: it would change the whole machine",
    };
    refuse(field(key), message)
}

fn is_ipc(name: &str) -> bool {
    IPC.contains(&name) || name.starts_with("fs.mqueue.")
}

fn field(key: &str) -> String {
    format!("linux.sysctl[{key:?}]")
}
