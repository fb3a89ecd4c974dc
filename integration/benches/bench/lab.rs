//! The common ground of all measurements, made once: a directory with one root
//! file system that is the lower layer of every container, the events service,
//! a network namespace for pods, and the benchmark's cgroup, with only the
//! benchmark, its shims and its containers below.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::events::Events;

/// The commands that the benchmark's containers run.
const APPLETS: [&str; 8] = ["cat", "dd", "echo", "ls", "sh", "sleep", "true", "vi"];

/// The ground of a benchmark, which is removed on drop.
#[derive(Debug)]
pub struct Lab {
    name: String,
    directory: PathBuf,
    events: Events,
    next_id: AtomicU32,
}

impl Lab {
    /// Makes it all.
    pub fn new() -> Result<Lab> {
        let name = format!("palisade-bench-{}", std::process::id());
        let directory = PathBuf::from("/run").join(&name);
        for folder in ["bundles", "snapshots", "fifo"] {
            let folder = directory.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        }
        lay_out_root(&directory.join("root"))?;
        let events = Events::serve(&directory.join("events.sock"))?;
        let lab = Lab { name, directory, events, next_id: AtomicU32::new(0) };
        lab.enter_cgroup()?;
        lab.make_network()?;
        Ok(lab)
    }

    /// Returns its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the events service of the shims.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Returns the read-only layer below every container.
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Returns the network namespace of pods. All share one: making one for
    /// each is the work of the network plugin, not of the shim.
    pub fn network(&self) -> PathBuf {
        self.directory.join("netns")
    }

    /// Returns the cgroup of a container, as its spec names it.
    pub fn cgroup_of(&self, id: &str) -> String {
        format!("/{}/{id}", self.name)
    }

    /// Returns an unused ID.
    pub fn fresh_id(&self, what: &str) -> String {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        format!("{what}-{}-{number}", std::process::id())
    }

    /// Returns the directory of the benchmark's cgroup, which accounts for CPU
    /// time.
    pub fn accounting(&self) -> PathBuf {
        let v1 = Path::new("/sys/fs/cgroup/cpuacct");
        if v1.is_dir() { v1.join(&self.name) } else { Path::new("/sys/fs/cgroup").join(&self.name) }
    }

    /// Enters the benchmark's cgroup. Shims inherit it, so they are all
    /// counted.
    fn enter_cgroup(&self) -> Result<()> {
        let own = self.accounting().join("bench");
        fs::create_dir_all(&own).with_context(|| format!("make {}", own.display()))?;
        let procs = own.join("cgroup.procs");
        fs::write(&procs, "0").with_context(|| format!("write 0 to {}", procs.display()))
    }

    fn make_network(&self) -> Result<()> {
        let path = self.network();
        fs::write(&path, "").with_context(|| format!("make {}", path.display()))?;
        // In a thread of its own, which keeps the changed network namespace.
        let made = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let own = Some("/proc/thread-self/ns/net");
            mount(own, &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        let made = made.join().map_err(|_| anyhow!("the thread of the network panicked"))?;
        made.context("make a network namespace for pods")
    }

    /// Returns the processes below the benchmark's cgroup, except itself.
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        let mut left = vec![self.accounting()];
        while let Some(cgroup) = left.pop() {
            let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            found.extend(procs.lines().filter_map(|pid| pid.parse::<i32>().ok()));
            left.extend(folders_in(&cgroup));
        }
        found.retain(|pid| !u32::try_from(*pid).is_ok_and(|pid| pid == std::process::id()));
        found
    }

    fn clear_away(&self) {
        for _ in 0..50 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = format!("{}/", self.directory.display());
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| point.starts_with(&below)) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
        let _ = fs::write(self.accounting().join("../cgroup.procs"), "0");
        for hierarchy in folders_in(Path::new("/sys/fs/cgroup")) {
            remove_cgroup(&hierarchy.join(&self.name));
        }
        remove_cgroup(&Path::new("/sys/fs/cgroup").join(&self.name));
        let _ = fs::remove_dir_all(&self.directory);
        let runc = Path::new("/run/containerd/runc").join(crate::wire::NAMESPACE);
        let _ = fs::remove_dir_all(runc);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.clear_away();
    }
}

/// Lays out a static busybox, `/pause`, and this program itself, which does the
/// work inside containers.
fn lay_out_root(root: &Path) -> Result<()> {
    for folder in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "usr"] {
        fs::create_dir_all(root.join(folder)).context("lay out the root file system")?;
    }
    // If a container sees the host's /usr, its compiler finds its libraries.
    symlink("usr/lib", root.join("lib"))?;
    symlink("usr/lib64", root.join("lib64"))?;
    let programs = [
        (busybox()?, "bin/busybox"),
        (beside("pause", env!("CARGO_BIN_EXE_pause"))?, "pause"),
        (std::env::current_exe()?, "bench"),
    ];
    for (from, to) in programs {
        fs::copy(&from, root.join(to)).with_context(|| format!("copy {}", from.display()))?;
    }
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    Ok(())
}

/// Returns the path of a static busybox.
pub fn busybox() -> Result<PathBuf> {
    beside("busybox", "/bin/busybox")
}

/// Whether this program is in a bundle of `ci/bench`, on a machine that need not
/// have anything else.
pub fn in_bundle() -> bool {
    std::env::current_exe().is_ok_and(|program| program.with_file_name("pause").is_file())
}

/// Returns the path of a program: of the bundle's, or of this machine's.
fn beside(name: &str, here: &str) -> Result<PathBuf> {
    Ok(if in_bundle() { std::env::current_exe()?.with_file_name(name) } else { here.into() })
}

fn folders_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn remove_cgroup(cgroup: &Path) {
    for below in folders_in(cgroup) {
        remove_cgroup(&below);
    }
    let _ = fs::remove_dir(cgroup);
}
