//! Binds a container's views over the files of its proc and its sysfs.
//!
//! They go onto a proc or a sysfs as soon as that is in its place: what the spec mounts there
//! later lies on top, and so do masks. A proc of which the spec covers nothing may be mounted
//! anew by a user namespace below the container's (`mount_too_revealing` in the kernel), as under
//! runc. The views must not change that: a second mount of it, which nothing covers, is left
//! where no path leads.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RawDir, StatVfsMountFlags, fstatvfs, openat};

use crate::container::paths::{UNCOVERED, VIEWS};
use crate::error::{Context, Result};
use crate::places::find;
use crate::spec::plan::{ContainerPlan, MountPlan, MountSource};
use crate::sys::mount::{Depth, attach_at, attach_to, clone_mount};

/// The views over files of proc, and the places of those with another name.
const OF_PROC: [(&str, &str); 9] = [
    ("cpuinfo", "cpuinfo"),
    ("diskstats", "diskstats"),
    ("loadavg", "loadavg"),
    ("meminfo", "meminfo"),
    ("stat", "stat"),
    ("swaps", "swaps"),
    ("uptime", "uptime"),
    ("pressure", "pressure"),
    ("threads-max", "sys/kernel/threads-max"),
];

/// The same for sysfs: whole directories.
const OF_SYSFS: [(&str, &str); 2] =
    [("cpu", "devices/system/cpu"), ("node", "devices/system/node")];

/// Which views a newborn binds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Which {
    /// The number of its container.
    pub(crate) serial: u32,
    /// Whether `/proc/pressure` is among them: version 1 of cgroups measures none.
    pub(crate) pressure: bool,
}

/// The views of one container.
#[derive(Debug)]
pub(crate) struct Views {
    directory: OwnedFd,
    pressure: bool,
    /// Whether hooks have made mounts, which may lie anywhere.
    hooks_mount: bool,
}

impl Views {
    /// Opens the directory of a container in the file system that boot serves, and lets the
    /// kernel learn by one request to boot all that is in it.
    pub(crate) fn open(which: Which, hooks_mount: bool) -> Result<Self> {
        let path = format!("{VIEWS}/{}", which.serial);
        let what = || format!("open {path}");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, &path, flags, Mode::empty()).context(what)?;
        // One call brings all there is. To open it again, as `Dir` does, and to read to its end
        // would each be one more request, for which boot has to wake up.
        let mut buffer = Vec::with_capacity(4096);
        if let Some(first) = RawDir::new(&directory, buffer.spare_capacity_mut()).next() {
            first.context(|| format!("read {path}"))?;
        }
        Ok(Self { directory, pressure: which.pressure, hooks_mount })
    }

    /// Binds the views over the files of a proc or a sysfs of the container's own that was
    /// attached at its usual place. A bind of the host's is left as it is: who asks for that wants
    /// to see the host, and it may be shared with the host's mounts.
    pub(crate) fn bind(
        &self,
        plan: &ContainerPlan,
        planned: &MountPlan,
        mount: &OwnedFd,
    ) -> Result<()> {
        let destination = &planned.destination;
        let (places, left_at): (&[_], _) = match (&planned.source, destination.to_str()) {
            (MountSource::Proc, Some("/proc")) => (&OF_PROC, UNCOVERED),
            // One who may write there manages the machine's CPUs.
            (MountSource::Sysfs, Some("/sys")) if is_read_only(mount)? => (&OF_SYSFS, VIEWS),
            _ => return Ok(()),
        };
        let what = |name: &str| format!("bind the view {name} below {}", destination.display());
        if !self.hooks_mount && is_uncovered(plan, destination) {
            let copy = clone_mount(mount, "", Depth::Top).context(|| what("itself"))?;
            // On boot's own mounts, which the container's root will cover.
            attach_at(&copy, left_at).context(|| what("itself"))?;
        }
        // boot's clocks are not those of a container that has its own.
        let own_clocks = plan.namespaces.time || plan.times_of.is_some();
        let is_left_out = |name: &str| match name {
            "pressure" => !self.pressure,
            "stat" | "uptime" => own_clocks,
            _ => false,
        };
        for (name, path) in places.iter().filter(|(name, _)| !is_left_out(name)) {
            // The kernel may be built without it.
            let Some(place) = find(mount.as_fd(), Path::new(path))? else { continue };
            let view = clone_mount(&self.directory, *name, Depth::Top).context(|| what(name))?;
            attach_to(&view, &place).context(|| what(name))?;
        }
        Ok(())
    }
}

fn is_read_only(mount: &OwnedFd) -> Result<bool> {
    let flags = fstatvfs(mount).context(|| "fstatvfs of a sysfs")?.f_flag;
    Ok(flags.contains(StatVfsMountFlags::RDONLY))
}

/// Whether the spec masks, protects and mounts nothing below a place.
fn is_uncovered(plan: &ContainerPlan, destination: &Path) -> bool {
    let below = |path: &PathBuf| path.starts_with(destination);
    let mounts = plan.mounts.iter().map(|mount| &mount.destination);
    !plan.masked_paths.iter().chain(&plan.readonly_paths).any(below)
        && !mounts.filter(|path| *path != destination).any(below)
}
