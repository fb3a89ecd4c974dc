//! Finds the processes of a PID namespace, where no cgroup lists those of a container.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use super::Process;
use crate::error::{Context, Result};
use crate::sys::namespace;
use crate::types::HostPid;

/// Returns the processes of the PID namespace of a container's init, and of those below it:
/// none if the init has ended, since the kernel ends them with it. Goes through all processes
/// of the host.
pub fn processes_beside(init: &Process) -> Result<Vec<HostPid>> {
    let Some(wanted) = namespace_of(init.pid.0).and_then(identity) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context(|| "read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that has ended, or that is no business of this one, cannot be asked.
        let mut at = namespace_of(pid);
        while let Some(namespace) = at {
            let above = namespace::parent(&namespace).ok();
            if identity(namespace) == Some(wanted) {
                found.push(HostPid(pid));
                break;
            }
            at = above;
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn namespace_of(pid: i32) -> Option<OwnedFd> {
    File::open(format!("/proc/{pid}/ns/pid")).ok().map(OwnedFd::from)
}

fn identity(namespace: OwnedFd) -> Option<(u64, u64)> {
    let metadata = File::from(namespace).metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    use super::*;

    #[test]
    fn this_process_is_among_those_of_its_namespace() {
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let own = HostPid(getpid().as_raw_nonzero().get());
        let found = processes_beside(&Process { pid: own, pidfd }).unwrap();
        assert!(found.contains(&own), "{found:?}");
    }
}
