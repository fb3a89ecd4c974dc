//! Resource limits above those that boot inherited from the shim. Only a process with
//! CAP_SYS_RESOURCE in the first user namespace may raise a hard limit, so the shim raises
//! boot's, and each process of the pod lowers its own from there.

use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::Sandbox;
use crate::error::{Context, Error, Result};
use crate::spec::plan::ProcessPlan;
use crate::sys::open_files;
use crate::sys::process::{Rlimit, Scheduler, rlimit_of, set_rlimit_of};
use crate::types::HostPid;

impl Sandbox {
    /// Raises boot's hard limits to those of a process that boot is about to make. boot
    /// gains no more than its container is granted, and its soft limits stay.
    ///
    /// # Errors
    /// `Invalid`, with the field, if the kernel does not let this process raise them.
    pub fn raise_limits(&self, process: &ProcessPlan) -> Result<()> {
        for limit in &process.rlimits {
            self.raise(*limit, &format!("process.rlimits: {}", limit.name()))?;
        }
        let scheduler = process.scheduler.filter(|_| self.has_user_namespace());
        for limit in scheduler.iter().filter_map(Scheduler::limit) {
            self.raise(limit, &format!("process.scheduler needs {}", limit.name()))?;
        }
        Ok(())
    }

    fn raise(&self, wanted: Rlimit, what: &str) -> Result<()> {
        // boot is a child of this process: until it is collected, its PID is its own.
        if self.reaped.load(Ordering::Relaxed) {
            return Err(Error::internal("the sandbox process has ended"));
        }
        // boot was born with this process's limits, and only this process raises them. Who lowers
        // this process's own limit of open files afterwards means that one alone.
        let own = match wanted.resource {
            libc::RLIMIT_NOFILE => open_files::inherited(),
            resource => rlimit_of(0, resource),
        };
        let own = own.context(|| "prlimit")?;
        if wanted.hard <= own.hard {
            return Ok(());
        }
        let HostPid(boot) = self.boot;
        let raised = rlimit_of(boot, wanted.resource).and_then(|has| match has.hard {
            hard if wanted.hard <= hard => Ok(()),
            _ => set_rlimit_of(boot, Rlimit { hard: wanted.hard, ..has }),
        });
        match raised {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::PERM) => {
                Err(Error::invalid(format!(
                    "{what}: hard limit {}; expected at most {}, containerd's own: going above \
                     takes CAP_SYS_RESOURCE (and for RLIMIT_NOFILE a higher fs.nr_open)",
                    wanted.hard, own.hard
                )))
            }
            other => other.context(|| format!("{what}: set hard limit {}", wanted.hard)),
        }
    }
}
