//! A container's mounts, put together in boot's mount namespace. The newborn is cloned with
//! a copy of them and adds those of `newborn/mounts.rs`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, mkdirat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::delivered::DeliveredMounts;
use super::paths::{CONTAINERS, DEVICES};
use super::steps::attach::{Ready, attach};
use super::steps::container_root::AsContainerRoot;
use super::steps::destination::{self, Kind, open_root};
use super::steps::masks::cover;
use super::steps::phase::{MountPhase, phase_of};
use super::terminal::Terminal;
use crate::error::{Context, Error, Result};
use crate::spec::plan::{ContainerPlan, MountPlan, MountSource};
use crate::sys::mount::{AttrChange, Depth, attach_at, attach_to, clone_mount, mount_setattr};

/// A tree that is being put together. It is unmounted on drop; the containers' copies stay.
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
    /// Attaches all mounts that can be attached before the container exists.
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
            // As in runc, make the working directory if possible.
            let _ = destination::ensure(tree.root.as_fd(), &process.cwd, Kind::Directory);
        }
        cover(tree.root.as_fd(), plan, MountPhase::Boot)?;
        if plan.readonly_root {
            mount_setattr(&tree.root, Depth::Top, AttrChange::READ_ONLY)
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
        mut delivered: std::collections::BTreeMap<usize, (OwnedFd, bool)>,
    ) -> Result<()> {
        for (index, mount) in plan.mounts.iter().enumerate() {
            let delivered = delivered.remove(&index);
            if phase_of(plan, &mount.destination) > MountPhase::Boot {
                self.deferred.push((index, delivered));
                continue;
            }
            let devpts = attach(self.root.as_fd(), Ready { plan: mount, delivered })?;
            self.terminals = devpts.or(self.terminals.take());
        }
        Ok(())
    }

    /// Binds the device nodes into the container's `/dev`, and makes the links that programs
    /// expect there.
    fn place_devices(&mut self, plan: &ContainerPlan, own: Option<OwnedFd>) -> Result<()> {
        for name in DEFAULT_DEVICES {
            let node = clone_mount(CWD, format!("{DEVICES}/{name}"), Depth::Top)
                .context(|| format!("open the sandbox's device {name}"))?;
            // All containers of the pod have the same node, so none may change its mode or
            // owner. Writing to a device does not need a writable mount.
            mount_setattr(&node, Depth::Top, AttrChange::READ_ONLY)
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

    /// Binds the init's terminal at `/dev/console`.
    pub(crate) fn place_console(&self, terminal: &Terminal) -> Result<()> {
        let _as_root = AsContainerRoot::begin();
        let Some(devpts) = &self.terminals else {
            return Ok(());
        };
        let peer = clone_mount(devpts, terminal.number.to_string(), Depth::Top)
            .context(|| "open the terminal in its devpts")?;
        self.place_device(Path::new("/dev/console"), &peer)
    }

    /// Returns the devpts in which terminals are made.
    pub(crate) fn terminals(&self) -> Option<BorrowedFd<'_>> {
        self.terminals.as_ref().map(AsFd::as_fd)
    }

    /// Returns its place in boot's root.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Returns the mounts that the newborn attaches, by their index in the plan.
    pub(crate) fn deferred(&self) -> &[(usize, Option<(OwnedFd, bool)>)] {
        &self.deferred
    }

    /// Takes the devpts, which outlives the tree.
    pub(crate) fn take_terminals(&mut self) -> Option<OwnedFd> {
        self.terminals.take()
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

/// Whether boot adds device nodes. A container whose `/dev` is a directory of the host has
/// that directory's.
fn provides_devices(plan: &ContainerPlan) -> bool {
    let is_dev = |mount: &&MountPlan| mount.destination == Path::new("/dev");
    let bound = |mount: &MountPlan| matches!(mount.source, MountSource::Delivered);
    !plan.mounts.iter().rfind(is_dev).is_some_and(bound)
}
