//! A container's mounts, put together in boot's mount namespace. The newborn
//! container is cloned with a copy of them and adds what needs namespaces that
//! do not exist before it does: proc of its own PID namespace, its view of the
//! cgroups, and what lies below those.
//!
//! Then it enters its own user namespace with one more copy, in which all this
//! is locked: a user namespace below boot's can neither remount nor uncover it.
//! Last come the message queues of its own IPC namespace, which it owns.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, open, symlinkat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::attach::{Ready, attach};
use super::delivered::DeliveredMounts;
use super::destination::{self, Kind};
use super::identity::AsContainerRoot;
use super::masks;
use super::paths::{CONTAINERS, DEVICES};
use super::terminal::Terminal;
use crate::error::{Context, Error, Result};
use crate::spec::plan::{ContainerPlan, MountPlan, MountSource};
use crate::sys::mount::{AttrChange, Depth, attach_at, attach_to, clone_mount, mount_setattr};

/// A tree under construction; taken apart on drop, which leaves the copies that
/// containers have alone.
#[derive(Debug)]
pub(crate) struct Tree {
    path: String,
    root: OwnedFd,
    own_devices: Option<String>,
    terminals: Option<OwnedFd>,
    deferred: Vec<(usize, Option<(OwnedFd, bool)>)>,
}

/// The default device nodes: OCI runtime-spec, config-linux, "Default Devices".
const DEFAULT_DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Symbolic links that programs expect: config-linux, "Default Devices" and
/// "/dev symbolic links" of the runtime spec.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

impl Tree {
    /// Attaches everything that can be before the container exists.
    pub(crate) fn build(
        number: u64,
        plan: &ContainerPlan,
        mounts: DeliveredMounts,
    ) -> Result<Self> {
        let _as_root = AsContainerRoot::begin();
        let mut tree = Self::plant(number, mounts.rootfs)?;
        tree.attach_mounts(plan, mounts.mounts)?;
        if provides_devices(plan) {
            tree.place_devices(plan, mounts.devices)?;
        }
        if let Some(process) = &plan.process {
            // As runc does: the working directory exists, if it can be made.
            let _ = destination::ensure(tree.root.as_fd(), &process.cwd, Kind::Directory);
        }
        cover(tree.root.as_fd(), plan, Turn::Boot)?;
        if plan.readonly_root {
            let change = AttrChange { set: libc::MOUNT_ATTR_RDONLY, ..AttrChange::default() };
            mount_setattr(&tree.root, Depth::Top, change)
                .context(|| "root.readonly: make the root file system read-only")?;
        }
        Ok(tree)
    }

    fn plant(number: u64, rootfs: Option<OwnedFd>) -> Result<Self> {
        let path = format!("{CONTAINERS}/{number}");
        let rootfs = rootfs.ok_or_else(|| Error::internal("the gofer delivered no root"))?;
        mkdirat(CWD, &path, Mode::from_raw_mode(0o755)).context(|| format!("mkdir {path}"))?;
        let mut tree =
            Self { path, root: rootfs, own_devices: None, terminals: None, deferred: Vec::new() };
        attach_at(&tree.root, &tree.path).context(|| "attach the root file system")?;
        tree.root = open_root(&tree.path)?;
        Ok(tree)
    }

    fn attach_mounts(
        &mut self,
        plan: &ContainerPlan,
        mut donated: std::collections::BTreeMap<usize, (OwnedFd, bool)>,
    ) -> Result<()> {
        for (index, mount) in plan.mounts.iter().enumerate() {
            let donated = donated.remove(&index);
            if turn(plan, &mount.destination) > Turn::Boot {
                self.deferred.push((index, donated));
                continue;
            }
            let devpts = attach(self.root.as_fd(), Ready { plan: mount, donated })?;
            self.terminals = devpts.or(self.terminals.take());
        }
        Ok(())
    }

    /// Binds the device nodes into the container's `/dev` and links what
    /// programs expect there.
    fn place_devices(&mut self, plan: &ContainerPlan, own: Option<OwnedFd>) -> Result<()> {
        for name in DEFAULT_DEVICES {
            let node = clone_mount(CWD, format!("{DEVICES}/{name}"), Depth::Top)
                .context(|| format!("open the sandbox's device {name}"))?;
            // All containers of the pod have the same node: none may change its
            // mode or owner. Writing to a device takes no writable mount.
            let read_only = AttrChange { set: libc::MOUNT_ATTR_RDONLY, ..AttrChange::default() };
            mount_setattr(&node, Depth::Top, read_only)
                .context(|| format!("make the node of the device {name} read-only"))?;
            self.place_device(&Path::new("/dev").join(name), &node)?;
        }
        if let Some(own) = own {
            let path = format!("{}.devices", self.path);
            mkdirat(CWD, &path, Mode::from_raw_mode(0o755)).context(|| format!("mkdir {path}"))?;
            attach_at(&own, &path).context(|| "attach the container's devices")?;
            self.own_devices = Some(path.clone());
            for (number, place) in plan.devices.iter().enumerate() {
                let node = clone_mount(CWD, format!("{path}/{number}"), Depth::Top)
                    .context(|| format!("linux.devices: open {}", place.display()))?;
                self.place_device(place, &node)?;
            }
        }
        let directory = destination::ensure(self.root.as_fd(), Path::new("/dev"), Kind::Directory)?;
        for (name, target) in DEVICE_LINKS {
            match symlinkat(target, &directory, name) {
                Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
                Err(e) => return Err(e).context(|| format!("link /dev/{name} to {target}")),
            }
        }
        Ok(())
    }

    fn place_device(&self, place: &Path, node: &OwnedFd) -> Result<()> {
        let target = destination::ensure(self.root.as_fd(), place, Kind::File)?;
        attach_to(node, &target).context(|| format!("bind the device {}", place.display()))
    }

    /// Puts the first process's terminal at `/dev/console`.
    pub(crate) fn place_console(&self, terminal: &Terminal) -> Result<()> {
        let _as_root = AsContainerRoot::begin();
        let Some(devpts) = &self.terminals else {
            return Ok(());
        };
        let peer = clone_mount(devpts, terminal.number.to_string(), Depth::Top)
            .context(|| "open the terminal in its devpts")?;
        self.place_device(Path::new("/dev/console"), &peer)
    }

    /// The devpts that terminals are made in.
    pub(crate) fn terminals(&self) -> Option<BorrowedFd<'_>> {
        self.terminals.as_ref().map(AsFd::as_fd)
    }

    /// What outlives the tree.
    pub(crate) fn take_terminals(&mut self) -> Option<OwnedFd> {
        self.terminals.take()
    }

    /// Newborn, still in boot's user namespace: adds what needs its other
    /// namespaces. Returns the root to pivot into.
    pub(super) fn complete(&self, plan: &ContainerPlan) -> Result<OwnedFd> {
        let _as_root = AsContainerRoot::begin();
        let root = open_root(&self.path)?;
        self.attach_deferred(root.as_fd(), plan, Turn::Newborn)?;
        Ok(root)
    }

    /// Newborn, in its own user namespace and root: adds the rest.
    pub(super) fn finish(&self, plan: &ContainerPlan) -> Result<()> {
        self.attach_deferred(open_root("/")?.as_fd(), plan, Turn::Own)
    }

    fn attach_deferred(&self, root: BorrowedFd<'_>, plan: &ContainerPlan, now: Turn) -> Result<()> {
        for (index, donated) in &self.deferred {
            let mount = &plan.mounts[*index];
            if turn(plan, &mount.destination) != now {
                continue;
            }
            let dup = |(fd, is_file): &(OwnedFd, bool)| -> Result<_> {
                Ok((fd.try_clone().context(|| "dup of a mount")?, *is_file))
            };
            let donated = donated.as_ref().map(dup).transpose()?;
            attach(root, Ready { plan: mount, donated })?;
        }
        cover(root, plan, now)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for path in self.own_devices.iter().chain([&self.path]) {
            let _ = unmount(path.as_str(), UnmountFlags::DETACH);
            let _ = rustix::fs::rmdir(path.as_str());
        }
    }
}

fn open_root(path: &str) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).context(|| format!("open {path}"))
}

/// Masks and protects the paths whose turn it is.
fn cover(root: BorrowedFd<'_>, plan: &ContainerPlan, now: Turn) -> Result<()> {
    let ours = |paths: &[PathBuf]| -> Vec<PathBuf> {
        paths.iter().filter(|path| turn(plan, path) == now).cloned().collect()
    };
    ours(&plan.readonly_paths).iter().try_for_each(|p| masks::make_read_only(root, p))?;
    ours(&plan.masked_paths).iter().try_for_each(|p| masks::mask(root, p))
}

/// Who can make a mount, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// boot, for it needs nothing of the container's.
    Boot,
    /// The newborn container in boot's user namespace.
    Newborn,
    /// The newborn in its own user namespace.
    Own,
}

/// When a path is there to be mounted on or covered: after all that is mounted
/// at it or above it.
fn turn(plan: &ContainerPlan, path: &Path) -> Turn {
    let above = plan.mounts.iter().filter(|mount| path.starts_with(&mount.destination));
    above.map(|mount| earliest(plan, mount)).max().unwrap_or(Turn::Boot)
}

/// When a mount can be made, were it alone.
fn earliest(plan: &ContainerPlan, mount: &MountPlan) -> Turn {
    match mount.source {
        MountSource::Proc if plan.pids_below() => Turn::Newborn,
        MountSource::Cgroup => Turn::Newborn,
        MountSource::Mqueue if plan.namespaces.ipc => Turn::Own,
        _ => Turn::Boot,
    }
}

/// A container whose `/dev` is a directory of the host gets what is there.
fn provides_devices(plan: &ContainerPlan) -> bool {
    let is_dev = |mount: &&MountPlan| mount.destination == Path::new("/dev");
    let bound = |mount: &MountPlan| matches!(mount.source, MountSource::Delivered { .. });
    !plan.mounts.iter().rfind(is_dev).is_some_and(bound)
}
