//! Palisade's own processes as the host sees them: the shim of a pod, and boot.

use crate::host::{self, HostProcess};

/// The first argument of boot's command line.
const BOOT: &str = "palisade-sandbox";

/// Returns the shim above a process of a container.
pub fn shim_of(pid: i32) -> i32 {
    shim_above(pid).unwrap_or_else(|| panic!("no shim above process {pid}")).pid
}

/// Returns the shim above a process, while there is one.
pub fn shim_above(pid: i32) -> Option<HostProcess> {
    let mut process = host::process(pid)?;
    while !process.args.first().is_some_and(|name| name.contains("containerd-shim")) {
        process = host::process(process.parent).filter(|parent| parent.pid > 1)?;
    }
    Some(process)
}

/// Returns the boot that a shim started.
pub fn boot_of(shim: i32) -> HostProcess {
    let first = sandboxes_of(shim).into_iter().next();
    first.unwrap_or_else(|| panic!("no {BOOT} among the children of {shim}"))
}

/// Returns the processes that a shim has for its pod: boot, and the gofer while there is one.
pub fn sandboxes_of(shim: i32) -> Vec<HostProcess> {
    let is_ours = |child: &HostProcess| child.args.first().is_some_and(|name| name == BOOT);
    host::children(shim).into_iter().filter(is_ours).collect()
}

/// Returns the value of a flag `--name=value` of boot's command line.
pub fn flag(boot: &HostProcess, name: &str) -> String {
    let prefix = format!("--{name}=");
    let value = boot.args.iter().find_map(|arg| arg.strip_prefix(&prefix));
    value.unwrap_or_else(|| panic!("no --{name} in {:?}", boot.args)).to_owned()
}

/// Returns all processes below a process.
pub fn descendants(pid: i32) -> Vec<HostProcess> {
    let all = host::processes();
    let mut found: Vec<HostProcess> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let children = all.iter().filter(|process| process.parent == parent);
        for child in children {
            parents.push(child.pid);
            found.push(child.clone());
        }
    }
    found
}
