//! The time namespace of a container.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use nix::sched::setns;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::container::paths::PROC;
use crate::error::{Context, Result};
use crate::spec::plan::{ContainerPlan, TimeOffset};
use crate::sys::namespace::NEW_TIME;
use crate::sys::process::set_dumpable;

/// This process's files in /proc by which it sets the clocks of a new time namespace and
/// enters it. The container's proc cannot be trusted.
#[derive(Debug)]
pub(super) struct OwnTimeFiles {
    offsets: File,
    namespaces: OwnedFd,
}

impl OwnTimeFiles {
    /// Opens them, if the container has a time namespace of its own. Must be called in the
    /// sandbox's root, before this process enters the containers' user namespace: until then
    /// no container may trace it (`process.rs`, `OwnProcFiles`).
    ///
    /// The kernel asks who opened the file for CAP_SYS_TIME in the user namespace that owns
    /// the time namespace. boot does not have it, but boot's ID owns that user namespace.
    pub(super) fn open(plan: &ContainerPlan) -> Result<Option<Self>> {
        if !plan.namespaces.time {
            return Ok(None);
        }
        set_dumpable(true).context(|| "prctl PR_SET_DUMPABLE")?;
        let opened = Self::open_all();
        set_dumpable(false).context(|| "prctl PR_SET_DUMPABLE")?;
        opened.map(Some)
    }

    fn open_all() -> Result<Self> {
        let open = |name: &str, flags: OFlags| {
            let path = format!("{PROC}/self/{name}");
            openat(CWD, &path, flags | OFlags::CLOEXEC, Mode::empty())
                .context(|| format!("open {path}"))
        };
        Ok(Self {
            offsets: open("timens_offsets", OFlags::WRONLY)?.into(),
            namespaces: open("ns", OFlags::PATH | OFlags::DIRECTORY)?,
        })
    }

    /// Enters the time namespace that this process has made for its children. From then on
    /// the kernel lets nobody change its clocks.
    pub(super) fn enter(mut self, offsets: &[TimeOffset]) -> Result<()> {
        let line = |offset: &TimeOffset| {
            format!("{} {} {}\n", offset.clock, offset.seconds, offset.nanoseconds)
        };
        let text: String = offsets.iter().map(line).collect();
        if !text.is_empty() {
            // The kernel takes all in one write.
            self.offsets
                .write_all(text.as_bytes())
                .context(|| format!("linux.timeOffsets: set {:?}", text.trim_end()))?;
        }
        let name = "time_for_children";
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let made = openat(&self.namespaces, name, flags, Mode::empty())
            .context(|| format!("open {name}"))?;
        setns(made, NEW_TIME).context(|| "enter the container's time namespace")
    }
}

/// Enters the time namespace of another container of the pod.
pub(super) fn join(init: &OwnedFd) -> Result<()> {
    setns(init, NEW_TIME).context(|| "enter the time namespace of another container")
}
