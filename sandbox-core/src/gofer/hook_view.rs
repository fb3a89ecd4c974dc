//! The container's mounts as `createContainer` hooks see them, below `root.path`.
//!
//! Owners are those on disk, so that files which the host's root makes belong to the
//! container's root. The view is gone before the root file system is made for the container: an
//! overlay must not be mounted twice.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::control::gofer::{GoferRequest, HookJob, HookMount};
use crate::error::{Context, Error, Result};
use crate::gofer::cloned_tree::{Change, ClonedTree, HOOK_REMEDY, MOUNT_REMEDY};
use crate::gofer::means::Gofer;
use crate::gofer::mountinfo::MountTable;
use crate::gofer::users::{Users, namespace_with};
use crate::gofer::{filesystem, idmap, rootfs};
use crate::places::{self, Kind};
use crate::spec::plan::{DeliveredSource, FsOption, IdMapping, Mappings, MountAttributes};
use crate::sys::mount::{
    AttrChange, Depth, PropagationKind, attach_to, clone_mount, mount_of, mount_setattr,
};

/// What hooks see, while they run.
pub(super) struct View {
    /// The root's path, without symlinks.
    path: PathBuf,
    root: OwnedFd,
    /// The file systems that are made here for the container, by index in its mounts, with
    /// their types.
    made: Vec<(usize, String, OwnedFd)>,
    /// The IDs of the mounts that were there before the hooks.
    known: BTreeSet<u64>,
}

/// The mounts that come from the view, detached.
#[derive(Default)]
pub(super) struct Carried {
    /// Mounts of the plan, by index.
    pub(super) made: BTreeMap<usize, OwnedFd>,
    /// Mounts that hooks made: the path in the container, and whether it is not a directory.
    pub(super) of_hooks: Vec<(PathBuf, OwnedFd, bool)>,
}

impl View {
    /// Attaches the container's mounts at the root's path, in this mount namespace.
    pub(super) fn make(job: &HookJob, request: &GoferRequest, gofer: &mut Gofer) -> Result<Self> {
        let root = root(request, gofer)?;
        let path = job.root.canonicalize().context(|| format!("open {}", job.root.display()))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = rustix::fs::open(&path, flags, Mode::empty())
            .context(|| format!("open {}", path.display()))?;
        attach_to(&root, &place).context(|| "attach the root file system for hooks")?;
        let mut view = Self { path, root, made: Vec::new(), known: BTreeSet::new() };
        for mount in &job.mounts {
            view.attach(mount, request, gofer).map_err(|e| {
                Error::new(e.kind, format!("mounts[{}]: for hooks: {e}", mount.index))
            })?;
        }
        for device in &job.devices {
            let directory = device.parent().unwrap_or(device);
            places::ensure(view.root.as_fd(), directory, Kind::Directory)?;
        }
        view.known = MountTable::read()?.below(&view.path).map(|mount| mount.id).collect();
        Ok(view)
    }

    fn attach(&mut self, mount: &HookMount, request: &GoferRequest, gofer: &Gofer) -> Result<()> {
        let requested = request.mounts.iter().find(|m| m.index == mount.index);
        let mut hidden = None;
        let made = match requested.map(|requested| &requested.source) {
            None => clone_mount(CWD, "/proc", Depth::Top).context(|| "clone /proc")?,
            Some(DeliveredSource::Bind { source, recursive, .. }) => {
                let depth = Depth::from(*recursive);
                let clone = ClonedTree::open(source, depth, MOUNT_REMEDY)?;
                let bound = clone.keep_owners(Some(PropagationKind::Private))?;
                restrict(&bound, &mount.attributes)?;
                bound
            }
            Some(DeliveredSource::Sysfs) => {
                filesystem::sysfs(gofer.network.as_ref(), gofer.rootless)?
            }
            Some(DeliveredSource::FileSystem { fs_type, source, options }) => {
                if fs_type == "tmpfs" {
                    hidden = places::find(self.root.as_fd(), &mount.destination)?;
                }
                let options = with_mode(options, hidden.as_ref())?;
                let made = filesystem::fresh(fs_type, source, &options, None)?;
                let kept = made.try_clone().context(|| "dup")?;
                self.made.push((mount.index, fs_type.clone(), kept));
                made
            }
        };
        let kind = if is_file(&made)? { Kind::File } else { Kind::Directory };
        let root = self.root.as_fd();
        let place = match hidden {
            Some(hidden) => hidden,
            // As boot does, which makes the container's own.
            None => {
                let shows = places::shows_the_kernel(&made)?;
                places::ensure_for(root, &mount.destination, kind, shows)?
            }
        };
        attach_to(&made, &place).context(|| "move_mount")?;
        if mount.destination == Path::new("/") {
            self.root = places::open_root(&self.path.to_string_lossy())?;
        }
        Ok(())
    }

    /// Takes what the container gets of the view.
    pub(super) fn carry(self, gofer: &mut Gofer) -> Result<Carried> {
        let mut carried = Carried::default();
        let idmap = gofer.users.as_ref().and_then(Users::idmap);
        for (index, fs_type, made) in &self.made {
            let clone = clone_mount(made, "", Depth::Top).context(|| "clone for the container")?;
            filesystem::map_owners(&clone, fs_type, MOUNT_REMEDY, idmap)?;
            carried.made.insert(*index, clone);
        }
        self.carry_of_hooks(gofer, &mut carried)?;
        // The root file system is free again only when nothing holds its mounts.
        gofer.leftovers.clear();
        Ok(carried)
    }

    /// Takes the mounts that hooks made below the root.
    fn carry_of_hooks(&self, gofer: &Gofer, to: &mut Carried) -> Result<()> {
        let table = MountTable::read()?;
        let left: BTreeSet<u64> = table.below(&self.path).map(|mount| mount.id).collect();
        if !self.known.is_subset(&left) {
            return Err(Error::invalid(
                "hooks.createContainer: a hook has unmounted a mount of the container, which has \
                 no effect on it",
            ));
        }
        let id = mount_of(&self.root).context(|| "statx of the root")?.id;
        let Some(root) = table.of_id(id) else { return Ok(()) };
        let idmap = gofer.users.as_ref().and_then(Users::idmap);
        let found = table.visible_below(id, &self.path);
        for mount in found.into_iter().filter(|mount| !self.known.contains(&mount.id)) {
            if root.fs_type == "overlay" && mount.device == root.device {
                return Err(Error::invalid(format!(
                    "hooks.createContainer: a hook has bound a part of the root file system at \
                     {}, which is an overlay and cannot be mounted twice; copy or link the files",
                    mount.point.display()
                )));
            }
            let below = mount.point.strip_prefix(&self.path).unwrap_or(&mount.point);
            let clone = ClonedTree::of_mount(&self.root, below, mount, HOOK_REMEDY)?;
            let is_file = is_file(&clone.mount)?;
            let propagation = Some(PropagationKind::Private);
            let change = Change { idmap, idmap_depth: Depth::Top, propagation };
            let mount = idmap::change(clone, change)?;
            to.of_hooks.push((Path::new("/").join(below), mount, is_file));
        }
        Ok(())
    }
}

/// Gives a tmpfs the mode of the directory that it hides, as boot does.
fn with_mode(options: &[FsOption], hidden: Option<&OwnedFd>) -> Result<Vec<FsOption>> {
    let mut options = options.to_vec();
    if let Some(hidden) = hidden
        && !options.iter().any(|(key, _)| key == "mode")
    {
        let stat = rustix::fs::fstat(hidden).context(|| "fstat of a mount point")?;
        options.push(("mode".to_owned(), Some(format!("{:o}", stat.st_mode & 0o7777))));
    }
    Ok(options)
}

/// Makes the root file system with the owners that it has on disk.
fn root(request: &GoferRequest, gofer: &mut Gofer) -> Result<OwnedFd> {
    if let Some(users) = gofer.users.as_ref().filter(|users| users.idmap().is_some()) {
        gofer.for_hooks = Some(namespace_with(&inverse(users.mappings()))?);
    }
    let root = rootfs::make(&request.rootfs, gofer);
    gofer.for_hooks = None;
    root?.ok_or_else(|| Error::internal("hooks without a root file system"))
}

/// Maps the sandbox's IDs back to the container's, for files that were shifted before.
fn inverse(mappings: &Mappings) -> Mappings {
    let swap = |m: &IdMapping| IdMapping { inside: m.outside, outside: m.inside, size: m.size };
    let all = |map: &[IdMapping]| map.iter().map(swap).collect();
    Mappings { uids: all(&mappings.uids), gids: all(&mappings.gids) }
}

fn is_file(mount: &OwnedFd) -> Result<bool> {
    let stat = rustix::fs::fstat(mount).context(|| "fstat of a mount")?;
    Ok(FileType::from_raw_mode(stat.st_mode) != FileType::Directory)
}

/// Sets the attributes that the spec gives a bind, the recursive ones first.
fn restrict(mount: &OwnedFd, wanted: &MountAttributes) -> Result<()> {
    let changes = [
        (Depth::Tree, wanted.recursive_set, wanted.recursive_clear),
        (Depth::Top, wanted.set, wanted.clear),
    ];
    for (depth, set, clear) in changes {
        if !(set | clear).is_empty() {
            let change = AttrChange { set, clear, ..AttrChange::default() };
            mount_setattr(mount, depth, change).context(|| "mount_setattr of the options")?;
        }
    }
    Ok(())
}
