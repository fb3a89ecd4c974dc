//! A container's mounts, put together by the newborn in its first mount namespace, which is a
//! copy of boot's. boot itself attaches nothing of a container: taking it away again would
//! make boot, and all its requests, wait for a grace period of the kernel.
//! `newborn/mounts.rs` adds the mounts that need the newborn's other namespaces.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, statat, symlinkat};
use rustix::io::Errno;

use super::delivered::DeliveredMounts;
use super::own_id::ContainerRoot;
use super::paths::{CONTAINER, DEVICES, OWN_DEVICES, PROC};
use super::steps::attach::{Attached, Ready, attach, attach_of_hook, seal};
use super::steps::container_root::AsContainerRoot;
use super::steps::masks::{KernelMount, Lookup, cover};
use super::steps::phase::{MountPhase, Phases};
use super::steps::views::Views;
use super::terminal::Terminal;
use crate::error::{Context, Error, Result};
use crate::places::{self, Kind, open_root};
use crate::spec::plan::{ContainerPlan, MountPlan, MountSource};
use crate::sys::mount::{AttrChange, Depth, attach_at, attach_to, clone_mount, mount_setattr};

/// A tree that is being put together, at [`CONTAINER`].
#[derive(Debug)]
pub(crate) struct Tree {
    /// The root file system's mount, on which another one may lie.
    bottom: OwnedFd,
    root: OwnedFd,
    container_root: ContainerRoot,
    terminals: Option<OwnedFd>,
    /// The mounts that become read-only at the end.
    to_seal: Vec<OwnedFd>,
    /// The proc and sysfs mounts that no later mount hides.
    kernel: Vec<KernelMount>,
    /// What the container gets to see in the place of some of their files.
    views: Option<Views>,
    deferred: Vec<Deferred>,
    deferred_of_hooks: Vec<OfHook>,
}

/// A hook's mount that the newborn attaches: its path, the phase, the mount, and whether it is
/// not a directory.
type OfHook = (PathBuf, MountPhase, OwnedFd, bool);

/// A mount that the newborn attaches: its index in the plan, the phase, and what the gofer
/// delivered for it.
pub(crate) type Deferred = (usize, MountPhase, Option<(OwnedFd, bool)>);

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
        plan: &ContainerPlan,
        mounts: DeliveredMounts,
        container_root: ContainerRoot,
        views: Option<Views>,
    ) -> Result<Self> {
        let _as_root = AsContainerRoot::begin(container_root);
        let mut tree = Self { views, ..Self::plant(mounts.rootfs, container_root)? };
        tree.attach_mounts(plan, mounts.mounts)?;
        if provides_devices(plan) {
            tree.place_devices(plan, mounts.devices)?;
        }
        tree.attach_of_hooks(plan, mounts.of_hooks)?;
        if let Some(process) = &plan.process {
            // As in runc, make the working directory if possible.
            let _ = places::ensure(tree.root.as_fd(), &process.cwd, Kind::Directory);
        }
        cover(tree.lookup(tree.root.as_fd()), plan, MountPhase::First)?;
        Ok(tree)
    }

    /// Makes read-only what the spec wants so, now that all mount points are there, those of
    /// the newborn's mounts included.
    pub(crate) fn seal(&mut self, plan: &ContainerPlan) -> Result<()> {
        seal(&std::mem::take(&mut self.to_seal))?;
        if plan.readonly_root {
            mount_setattr(&self.root, Depth::Top, AttrChange::READ_ONLY)
                .context(|| "root.readonly: make the root file system read-only")?;
        }
        Ok(())
    }

    fn plant(rootfs: Option<OwnedFd>, container_root: ContainerRoot) -> Result<Self> {
        let bottom = rootfs.ok_or_else(|| Error::internal("the gofer delivered no root"))?;
        attach_at(&bottom, CONTAINER).context(|| "attach the root file system")?;
        Ok(Self {
            bottom,
            root: open_root(CONTAINER)?,
            container_root,
            terminals: None,
            to_seal: Vec::new(),
            kernel: Vec::new(),
            views: None,
            deferred: Vec::new(),
            deferred_of_hooks: Vec::new(),
        })
    }

    fn attach_mounts(
        &mut self,
        plan: &ContainerPlan,
        mut delivered: std::collections::BTreeMap<usize, (OwnedFd, bool)>,
    ) -> Result<()> {
        let phases = Phases::of(plan);
        for (index, mount) in plan.mounts.iter().enumerate() {
            let delivered = delivered.remove(&index);
            match phases.of_mount(plan, index) {
                // A later mount hides it.
                None => continue,
                Some(MountPhase::First) => {}
                Some(later) => {
                    // The newborn finds the root read-only, if the spec wants it so.
                    if phases.is_on_first(index) {
                        let kind = match delivered {
                            Some((_, true)) => Kind::File,
                            _ => Kind::Directory,
                        };
                        places::ensure(self.root.as_fd(), &mount.destination, kind)?;
                    }
                    self.deferred.push((index, later, delivered));
                    continue;
                }
            }
            let attached = attach(self.root.as_fd(), Ready { plan: mount, delivered })?;
            self.hide_kernel(&mount.destination);
            match attached {
                Attached::Done => {}
                Attached::Kernel(shown) => self.add_kernel(plan, mount, shown)?,
                Attached::Terminals(devpts) => self.terminals = Some(devpts),
                Attached::ToSeal(tmpfs) => self.to_seal.push(tmpfs),
            }
            if mount.destination == Path::new("/") {
                self.root = open_root(CONTAINER)?;
            }
        }
        Ok(())
    }

    fn attach_of_hooks(
        &mut self,
        plan: &ContainerPlan,
        mounts: Vec<(PathBuf, OwnedFd, bool)>,
    ) -> Result<()> {
        let phases = Phases::of(plan);
        for (path, mount, is_file) in mounts {
            match phases.of_path(&path) {
                MountPhase::First => attach_of_hook(self.root.as_fd(), &path, &mount, is_file)?,
                later => self.deferred_of_hooks.push((path, later, mount, is_file)),
            }
        }
        Ok(())
    }

    /// Binds the device nodes into the container's `/dev`, and makes the links that programs
    /// expect there.
    fn place_devices(&self, plan: &ContainerPlan, own: Option<OwnedFd>) -> Result<()> {
        for name in DEFAULT_DEVICES {
            let place = Path::new("/dev").join(name);
            if plan.devices.contains(&place) {
                continue;
            }
            let node = clone_mount(CWD, format!("{DEVICES}/{name}"), Depth::Top)
                .context(|| format!("open the sandbox's device {name}"))?;
            self.place_device(&place, &node)?;
        }
        if let Some(own) = own {
            attach_at(&own, OWN_DEVICES).context(|| "attach the container's devices")?;
            for (number, place) in plan.devices.iter().enumerate() {
                let node = clone_mount(CWD, format!("{OWN_DEVICES}/{number}"), Depth::Top)
                    .context(|| format!("linux.devices: open {}", place.display()))?;
                self.place_device(place, &node)?;
            }
        }
        let directory = places::ensure(self.root.as_fd(), Path::new("/dev"), Kind::Directory)?;
        // As in runc: a kernel may be built without kcore.
        let has_kcore = statat(CWD, format!("{PROC}/kcore"), AtFlags::empty()).is_ok();
        let core = has_kcore.then_some(("core", "/proc/kcore"));
        for (name, target) in DEVICE_LINKS.into_iter().chain(core) {
            match symlinkat(target, &directory, name) {
                Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
                Err(e) => return Err(e).context(|| format!("link /dev/{name} to {target}")),
            }
        }
        Ok(())
    }

    fn place_device(&self, place: &Path, node: &OwnedFd) -> Result<()> {
        let target = places::ensure(self.root.as_fd(), place, Kind::File)?;
        attach_to(node, &target).context(|| format!("bind the device {}", place.display()))
    }

    /// Binds the init's terminal at `/dev/console`.
    pub(crate) fn place_console(&self, terminal: &Terminal) -> Result<()> {
        let _as_root = AsContainerRoot::begin(self.container_root);
        let Some(devpts) = &self.terminals else {
            return Ok(());
        };
        let peer = clone_mount(devpts, terminal.number.to_string(), Depth::Top)
            .context(|| "open the terminal in its devpts")?;
        self.place_device(Path::new("/dev/console"), &peer)
    }

    /// Opens a place in the tree.
    pub(crate) fn open(&self, path: &Path) -> Result<OwnedFd> {
        let missing = || Error::internal(format!("{} is not in the container", path.display()));
        places::find(self.root.as_fd(), path)?.ok_or_else(missing)
    }

    /// Returns the devpts in which terminals are made.
    pub(crate) fn terminals(&self) -> Option<BorrowedFd<'_>> {
        self.terminals.as_ref().map(AsFd::as_fd)
    }

    /// Lays the tree over this process's root, where it becomes the root of the mount
    /// namespace for all who enter it.
    pub(crate) fn lay_over_root(&self) -> Result<()> {
        attach_at(&self.bottom, "/").context(|| "move the container's root over the sandbox's")
    }

    /// Adds a proc or sysfs that is attached.
    pub(crate) fn add_kernel(
        &mut self,
        plan: &ContainerPlan,
        planned: &MountPlan,
        mount: OwnedFd,
    ) -> Result<()> {
        self.views.as_ref().map_or(Ok(()), |views| views.bind(plan, planned, &mount))?;
        self.kernel.push((planned.destination.clone(), mount));
        Ok(())
    }

    /// Forgets those that a new mount hides.
    pub(crate) fn hide_kernel(&mut self, destination: &Path) {
        self.kernel.retain(|(hidden, _)| !hidden.starts_with(destination));
    }

    /// Takes the mounts of a phase that are left to attach.
    pub(crate) fn take_deferred(&mut self, now: MountPhase) -> Vec<Deferred> {
        self.deferred.extract_if(.., |(_, phase, _)| *phase == now).collect()
    }

    /// Returns where paths are covered, in the mount namespace in which the tree was made.
    pub(crate) fn lookup<'a>(&'a self, root: BorrowedFd<'a>) -> Lookup<'a> {
        Lookup { root, kernel: &self.kernel }
    }

    /// Takes the devpts, in which execs get terminals too.
    pub(crate) fn take_terminals(&mut self) -> Option<OwnedFd> {
        self.terminals.take()
    }

    /// Returns the mounts of hooks that the newborn attaches.
    pub(crate) fn deferred_of_hooks(&self) -> &[OfHook] {
        &self.deferred_of_hooks
    }
}

/// Whether the default device nodes are added. A container whose `/dev` is a directory of the host has
/// that directory's.
fn provides_devices(plan: &ContainerPlan) -> bool {
    let is_dev = |mount: &&MountPlan| mount.destination == Path::new("/dev");
    let bound = |mount: &MountPlan| matches!(mount.source, MountSource::Delivered);
    !plan.mounts.iter().rfind(is_dev).is_some_and(bound)
}
