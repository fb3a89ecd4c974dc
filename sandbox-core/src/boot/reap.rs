//! Collecting the dead, as every PID 1 must.

use super::Boot;
use crate::control::message::Upward;
use crate::sys::process::{collect_child, ended_child};
use crate::types::PodPid;

impl Boot {
    /// Collects every child that has exited, orphans of the pod among them, and
    /// tells the shim of those that are a container's. The init of a container
    /// with its own PID namespace comes after its exec'd processes by itself:
    /// the kernel keeps it until all others there are collected.
    pub(super) fn reap(&mut self) {
        while let Some(pid) = ended_child() {
            self.ended(PodPid(pid));
        }
    }

    fn ended(&mut self, pid: PodPid) {
        // It may have said why, or that it came up, before it died. The shim is
        // told of it while its number still means it.
        let token = self.containers.pending.iter().find(|(_, p)| p.pid == pid).map(|(t, _)| *t);
        if let Some(token) = token {
            self.receive(token);
        }
        let Some(status) = collect_child(pid.0) else { return };
        let Some(process) = self.containers.disown(pid) else { return };
        let mounts = match process.is_init() {
            true => self.containers.init_ended(&process.container),
            false => None,
        };
        self.say(&Upward::Exited { process, status });
        drop(mounts);
    }
}
