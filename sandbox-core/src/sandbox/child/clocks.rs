//! The pod's own time since its start.
//!
//! A container is told that the machine started when its pod did: /proc/uptime, the `btime` of
//! /proc/stat, sysinfo(2) and the start times of processes, all by the kernel and so in keeping
//! with each other. time_namespaces(7).

use nix::sched::unshare;

use crate::spec::plan::HostPlan;
use crate::sys::namespace::NEW_TIME;

/// Whether a pod has clocks of its own: none that joins those of another, and none that sees the
/// host's processes, which are older than it is.
pub(super) fn are_the_pods(host: &HostPlan) -> bool {
    host.time_namespace.is_none() && !host.host_namespaces.pid
}

/// Lets the time since the start begin for the children of this process, and for itself once it
/// executes a program: at one second, since this process is older than this call. If the kernel
/// has no time namespaces, or the shim not the capability, it stays the host's.
pub(super) fn begin_at(now: i64) {
    if unshare(NEW_TIME).is_ok() {
        let _ = std::fs::write("/proc/self/timens_offsets", format!("boottime -{} 0\n", now - 1));
    }
}
