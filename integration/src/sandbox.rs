//! Palisade's own processes as the host sees them: the shim of a pod, and boot.

use crate::host::{self, HostProcess};

/// The first argument of boot's command line.
const BOOT: &str = "palisade-sandbox";

/// Returns the shim above a process of a container.
pub fn shim_of(pid: i32) -> i32 {
    let mut ancestor = pid;
    loop {
        let process = host::process(ancestor).expect("an ancestor of a running process");
        if process.args.first().is_some_and(|name| name.contains("containerd-shim")) {
            return ancestor;
        }
        assert!(process.parent > 1, "no shim above process {pid}");
        ancestor = process.parent;
    }
}

/// Returns the boot that a shim started.
pub fn boot_of(shim: i32) -> HostProcess {
    let children = host::children(shim);
    let boot = children.iter().find(|child| child.args.first().is_some_and(|name| name == BOOT));
    boot.cloned().unwrap_or_else(|| panic!("no {BOOT} among the children of {shim}: {children:?}"))
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
