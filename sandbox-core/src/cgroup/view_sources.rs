//! Opens the files of a container's cgroup from which boot makes the container's views.
//!
//! They are opened for reading, and boot gets no directory: a file of a cgroup leads nowhere.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::OFlags;

use super::{Cgroup, Dir, file};
use crate::error::{Context, Result};
use crate::types::ViewSource::{self, *};

/// The number of ancestors whose limits count. Of more, the nearest are taken.
const LEVELS: usize = 16;

/// What a container's views are made from.
#[derive(Debug)]
pub struct OpenedSources {
    /// Files of the container's own cgroup.
    pub own: Vec<(ViewSource, OwnedFd)>,
    /// The limits of its ancestors, the nearest first, and the nearest cpuset if its own cgroup
    /// has none.
    pub above: Vec<(ViewSource, OwnedFd)>,
}

/// A file: its controller, its name, and whether it limits the cgroups below, too.
type Known = (ViewSource, &'static str, &'static str, bool);

/// The files of version 1. `memory.stat` says the tightest limits of all levels and the use of
/// swap by itself.
const V1: &[Known] = &[
    (MemoryUsage, "memory", "memory.usage_in_bytes", false),
    (MemoryStat, "memory", "memory.stat", false),
    (CpuQuota, "cpu", "cpu.cfs_quota_us", true),
    (CpuPeriod, "cpu", "cpu.cfs_period_us", true),
    (CpuStat, "cpuacct", "cpuacct.stat", false),
    (Cpus, "cpuset", "cpuset.effective_cpus", false),
    (IoBytes, "blkio", "blkio.throttle.io_service_bytes_recursive", false),
    (IoOperations, "blkio", "blkio.throttle.io_serviced_recursive", false),
    (PidsLimit, "pids", "pids.max", true),
    (PidsUsage, "pids", "pids.current", false),
    (Threads, "pids", "tasks", false),
];

/// The files of version 2.
const V2: &[Known] = &[
    (MemoryLimit, "memory", "memory.max", true),
    (MemoryUsage, "memory", "memory.current", false),
    (SwapLimit, "memory", "memory.swap.max", true),
    (SwapUsage, "memory", "memory.swap.current", false),
    (MemoryStat, "memory", "memory.stat", false),
    (CpuQuota, "cpu", "cpu.max", true),
    (CpuStat, "cpu", "cpu.stat", false),
    (Cpus, "cpuset", "cpuset.cpus.effective", false),
    (IoBytes, "io", "io.stat", false),
    (CpuPressure, "cpu", "cpu.pressure", false),
    (IoPressure, "io", "io.pressure", false),
    (MemoryPressure, "memory", "memory.pressure", false),
    (PidsLimit, "pids", "pids.max", true),
    (PidsUsage, "pids", "pids.current", false),
    (Threads, "", "cgroup.threads", false),
];

impl Cgroup {
    /// Opens what the container's views are made from. A file that the kernel does not have, or
    /// whose controller is not enabled, is missing.
    pub fn view_sources(&self) -> Result<OpenedSources> {
        let mut opened = OpenedSources { own: Vec::new(), above: Vec::new() };
        for (source, controller, name, limits) in if self.is_v2() { V2 } else { V1 } {
            let Some(dir) = self.entry(controller) else {
                continue;
            };
            let own = open(&dir.path.join(name))?;
            let lacks_cpus = *source == Cpus && own.is_none();
            opened.own.extend(own.map(|fd| (*source, fd)));
            for level in ancestors(dir).take(if *limits || lacks_cpus { LEVELS } else { 0 }) {
                let above = open(&level.join(name))?;
                let found = above.is_some();
                opened.above.extend(above.map(|fd| (*source, fd)));
                if lacks_cpus && found {
                    break;
                }
            }
        }
        Ok(opened)
    }
}

/// Returns the levels above a cgroup up to the mount, the nearest first.
fn ancestors(dir: &Dir) -> impl Iterator<Item = &Path> {
    dir.levels().skip(1)
}

fn open(path: &Path) -> Result<Option<OwnedFd>> {
    match file::open(path, OFlags::RDONLY) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if file::gone(&e.into()) => Ok(None),
        Err(e) => Err(e).context(|| format!("open {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;

    use super::*;
    use crate::cgroup::SavedCgroup;

    /// Makes a cgroup five levels below a mount, each with all files of the version.
    fn tree(root: &Path, v2: bool, below: &str) -> Cgroup {
        let path = root.join(below);
        fs::create_dir_all(&path).unwrap();
        for level in path.ancestors().take_while(|p| p.starts_with(root)) {
            for (_, _, name, _) in if v2 { V2 } else { V1 } {
                fs::write(level.join(name), "0\n").unwrap();
            }
        }
        let controllers = if v2 {
            Vec::new()
        } else {
            V1.iter().map(|(_, controller, ..)| (*controller).to_owned()).collect()
        };
        let dirs = vec![Dir { controllers, mount: root.to_owned(), path }];
        Cgroup::open(SavedCgroup { v2, dirs, unit: None, resctrl: None }).unwrap()
    }

    fn count(files: &[(ViewSource, OwnedFd)], source: ViewSource) -> usize {
        files.iter().filter(|(s, _)| *s == source).count()
    }

    #[test]
    fn own_files_are_opened_once_and_limits_at_each_level() {
        let root = tempfile::tempdir().unwrap();
        for v2 in [false, true] {
            let opened = tree(&root.path().join(v2.to_string()), v2, "a/b/c").view_sources();
            let opened = opened.unwrap();
            let own: HashSet<_> = opened.own.iter().map(|(source, _)| *source).collect();
            assert_eq!(own.len(), if v2 { V2.len() } else { V1.len() });
            assert_eq!(opened.own.len(), own.len());
            for (source, _, _, limits) in if v2 { V2 } else { V1 } {
                // a/b, a, and the root.
                let expected = if *limits { 3 } else { 0 };
                assert_eq!(count(&opened.above, *source), expected, "{source:?}");
            }
        }
    }

    #[test]
    fn of_many_levels_the_nearest_count() {
        let root = tempfile::tempdir().unwrap();
        let deep: String = (0..40).map(|n| format!("{n}/")).collect();
        let cgroup = tree(root.path(), true, &deep);
        let near: String = (0..30).map(|n| format!("{n}/")).collect();
        fs::write(root.path().join(near).join("pids.max"), "77\n").unwrap();
        let opened = cgroup.view_sources().unwrap();
        assert_eq!(count(&opened.above, MemoryLimit), LEVELS);
        let limits: Vec<String> = opened
            .above
            .iter()
            .filter(|(source, _)| *source == PidsLimit)
            .map(|(_, fd)| {
                let mut text = [0; 8];
                let read = rustix::io::pread(fd, &mut text, 0).unwrap();
                String::from_utf8_lossy(&text[..read]).trim().to_owned()
            })
            .collect();
        assert_eq!(limits.iter().position(|l| l == "77"), Some(9));
    }

    #[test]
    fn what_is_missing_is_left_out_and_a_cpuset_comes_from_the_nearest_that_has_one() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = tree(root.path(), true, "a/b");
        for gone in ["a/b/cpuset.cpus.effective", "a/b/io.stat", "memory.max"] {
            fs::remove_file(root.path().join(gone)).unwrap();
        }
        let opened = cgroup.view_sources().unwrap();
        assert_eq!((count(&opened.own, Cpus), count(&opened.above, Cpus)), (0, 1));
        assert_eq!((count(&opened.own, IoBytes), count(&opened.above, IoBytes)), (0, 0));
        assert_eq!(count(&opened.above, MemoryLimit), 1);
    }

    #[test]
    fn nothing_is_open_for_writing_or_over_an_execve() {
        let root = tempfile::tempdir().unwrap();
        let opened = tree(root.path(), true, "a").view_sources().unwrap();
        for (_, fd) in opened.own.iter().chain(&opened.above) {
            let flags = rustix::fs::fcntl_getfl(fd).unwrap();
            assert_eq!(flags & OFlags::ACCMODE, OFlags::RDONLY);
            let flags = rustix::io::fcntl_getfd(fd).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
    }
}
