//! `mounts`: what is mounted where, and which process makes it.
//!
//! boot makes the mounts that belong to the container's own namespaces. The
//! gofer delivers those that need privilege on the host or access to the host's
//! files.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::mount::MountAttrFlags;

use super::check::{inside, refuse, text, without_nul};
use super::ids;
use super::mount_options::{self, Options};
use crate::error::Result;
use crate::spec::mount_options::Idmap;
use crate::spec::plan::{DeliveredSource, FsOption, IdmapChoice, Mappings, MountPlan, MountSource};

/// Files of proc that a mount may cover: all of them are files that LXCFS
/// provides. With a mount in any other place in proc, a container could keep
/// the runtime from writing a process's labels (CVE-2019-16884,
/// CVE-2019-19921). runc has the same list.
const PROC_FILES: [&str; 11] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

/// Options of the host's cgroup2 hierarchy that containerd copies into a spec.
/// Inside a cgroup namespace they change nothing (cgroups(7)).
const CGROUP_OPTIONS: [&str; 4] =
    ["nsdelegate", "memory_recursiveprot", "memory_localevents", "favordynmods"];

/// The mounts of both halves of the plan.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) container: Vec<MountPlan>,
    pub(super) delivered: Vec<(usize, DeliveredSource)>,
}

impl Mounts {
    /// Has the gofer make the tmpfs as well, so that hooks can write there. One into which files
    /// are copied up stays with boot.
    pub(super) fn deliver_tmpfs(&mut self) {
        for (index, mount) in self.container.iter().enumerate() {
            let MountSource::Tmpfs { options, copy_up: false } = &mount.source else { continue };
            let (fs_type, source) = ("tmpfs".to_owned(), "tmpfs".to_owned());
            let options = options.clone();
            self.delivered.push((index, DeliveredSource::FileSystem { fs_type, source, options }));
        }
        self.delivered.sort_by_key(|(index, _)| *index);
    }
}

/// The input of a mount's plan besides the mount itself.
pub(super) struct MountContext<'a> {
    pub(super) bundle: &'a Path,
    pub(super) user_namespace: bool,
    /// SELinux label of the file systems that are made for the container.
    pub(super) label: Option<&'a str>,
}

/// Resolves all mounts, in order.
pub(super) fn plan(spec: &Spec, context: &MountContext<'_>) -> Result<Mounts> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mut all = Mounts::default();
    for (index, mount) in mounts.iter().enumerate() {
        let one = One { field: format!("mounts[{index}]"), mount, context };
        let (planned, delivered) = one.plan()?;
        all.container.push(planned);
        all.delivered.extend(delivered.map(|source| (index, source)));
    }
    Ok(all)
}

/// One mount of the spec, while it is resolved.
struct One<'a> {
    field: String,
    mount: &'a Mount,
    context: &'a MountContext<'a>,
}

impl One<'_> {
    fn plan(&self) -> Result<(MountPlan, Option<DeliveredSource>)> {
        let options = self.mount.options().as_deref().unwrap_or_default();
        let mut options = mount_options::parse(&self.field, options)?;
        let kind = self.kind(&options)?.to_owned();
        let destination = self.destination(&kind)?;
        let idmap = self.idmap(&options, kind == "bind")?;
        if options.copy_up && kind != "tmpfs" {
            return self.refuse("tmpcopyup is an option of tmpfs only");
        }
        let (source, delivered) = match kind.as_str() {
            "bind" => self.bind(&options, idmap)?,
            "proc" => (self.plain(&options, MountSource::Proc)?, None),
            "sysfs" => (self.plain(&options, MountSource::Sysfs)?, Some(DeliveredSource::Sysfs)),
            "mqueue" => (self.plain(&options, MountSource::Mqueue)?, None),
            "cgroup" | "cgroup2" => {
                options.data.retain(|(key, _)| !CGROUP_OPTIONS.contains(&key.as_str()));
                (self.plain(&options, MountSource::Cgroup)?, None)
            }
            "devpts" => {
                (MountSource::Devpts(with_share_of_terminals(self.labelled(&options))), None)
            }
            "tmpfs" => {
                let copy_up = options.copy_up;
                (MountSource::Tmpfs { options: self.labelled(&options), copy_up }, None)
            }
            _ => self.file_system(&options, kind.clone())?,
        };
        let (attributes, propagation) = (options.attributes, options.propagation);
        Ok((MountPlan { destination, source, attributes, propagation }, delivered))
    }

    fn refuse<T>(&self, message: impl AsRef<str>) -> Result<T> {
        let shown = self.mount.destination().display();
        refuse(format!("{} ({shown})", self.field), message)
    }

    /// Returns the type. The options `bind` and `rbind` take precedence over
    /// `type`, as in mount(2).
    fn kind(&self, options: &Options) -> Result<&str> {
        if options.bind {
            return Ok("bind");
        }
        match self.mount.typ().as_deref() {
            Some("none") | Some("") | None => {
                self.refuse("has no type; expected a type, or bind or rbind among the options")
            }
            Some(kind) => without_nul(|| format!("{}.type", self.field), kind),
        }
    }

    fn destination(&self, kind: &str) -> Result<PathBuf> {
        let path = inside(|| format!("{}.destination", self.field), self.mount.destination())?;
        if let Ok(below) = path.strip_prefix("/proc") {
            self.check_proc(kind, below)?;
        }
        Ok(path)
    }

    fn check_proc(&self, kind: &str, below: &Path) -> Result<()> {
        let whole = below.as_os_str().is_empty();
        if whole && matches!(kind, "proc" | "bind")
            || PROC_FILES.iter().any(|file| below == Path::new(file))
        {
            return Ok(());
        }
        if whole {
            return self.refuse(format!(
                "{kind} cannot take the place of proc; expected proc or a bind of one"
            ));
        }
        self.refuse(
            "is inside of proc; nothing can be mounted there but files such as /proc/cpuinfo",
        )
    }

    /// Resolves how owners appear. Only bind mounts can have ID mappings.
    fn idmap(&self, options: &Options, bind: bool) -> Result<IdmapChoice> {
        let (uids, gids) =
            (self.mount.uid_mappings().as_deref(), self.mount.gid_mappings().as_deref());
        let mappings = ids::mappings(&self.field, uids, gids)?;
        if !bind && (mappings.is_some() || options.idmap.is_some()) {
            return self.refuse("ID mappings are for bind mounts only");
        }
        let recursive = options.idmap == Some(Idmap::Recursive);
        let none = Mappings { uids: Vec::new(), gids: Vec::new() };
        match (options.idmap, mappings) {
            (Some(Idmap::Off), Some(_)) => self.refuse("brings both ID mappings and the option noidmap"),
            (_, Some(mappings)) => Ok(IdmapChoice::Mappings { mappings, recursive }),
            (Some(Idmap::Off), None) => Ok(IdmapChoice::None),
            (Some(_), None) if self.context.user_namespace => {
                Ok(IdmapChoice::Mappings { mappings: none, recursive })
            }
            (Some(_), None) => self.refuse(
                "the options idmap and ridmap need a user namespace, or uidMappings and gidMappings",
            ),
            (None, None) if self.context.user_namespace => Ok(IdmapChoice::Sandbox),
            (None, None) => Ok(IdmapChoice::None),
        }
    }

    /// Resolves a bind mount. It takes only the options that every mount has;
    /// runc passes others to the kernel, which ignores them. Options of the
    /// super block, which mount(8) accepts on a bind mount, are accepted here
    /// too.
    fn bind(
        &self,
        options: &Options,
        idmap: IdmapChoice,
    ) -> Result<(MountSource, Option<DeliveredSource>)> {
        if let Some(option) = options.data.first() {
            return self.refuse(format!("{:?} is no option of a bind mount", shown(option)));
        }
        if !options.super_block.is_empty() {
            log::debug!(
                "{}: options of the super block have no effect on a bind mount",
                self.field
            );
        }
        let field = || format!("{}.source", self.field);
        let Some(source) =
            self.mount.source().as_deref().filter(|path| !path.as_os_str().is_empty())
        else {
            return refuse(field(), "expected the path of a file or directory");
        };
        text(field, source)?;
        let source = self.context.bundle.join(source);
        if let Err(error) = std::fs::metadata(&source) {
            return refuse(field(), format!("{}: {error}", source.display()));
        }
        let delivered = DeliveredSource::Bind { source, recursive: options.recursive_bind, idmap };
        Ok((MountSource::Delivered, Some(delivered)))
    }

    /// Resolves a file system that takes no options of its own.
    fn plain(&self, options: &Options, source: MountSource) -> Result<MountSource> {
        match options.data.first() {
            Some(option) => {
                self.refuse(format!("option {:?} is not supported here", shown(option)))
            }
            None => Ok(source),
        }
    }

    fn labelled(&self, options: &Options) -> Vec<FsOption> {
        let mut all = [options.super_block.as_slice(), options.data.as_slice()].concat();
        let has_context = all.iter().any(|(key, _)| key == "context");
        if let Some(label) = self.context.label.filter(|_| !has_context) {
            all.push(("context".into(), Some(label.into())));
        }
        all
    }

    fn file_system(
        &self,
        options: &Options,
        fs_type: String,
    ) -> Result<(MountSource, Option<DeliveredSource>)> {
        let source = match self.mount.source() {
            Some(path) => text(|| format!("{}.source", self.field), path)?,
            None => "none",
        };
        let mut all = [options.super_block.as_slice(), options.data.as_slice()].concat();
        // A read-only device can only be opened read-only.
        if options.attributes.set.contains(MountAttrFlags::MOUNT_ATTR_RDONLY) {
            all.push(("ro".into(), None));
        }
        let delivered =
            DeliveredSource::FileSystem { fs_type, source: source.into(), options: all };
        Ok((MountSource::Delivered, Some(delivered)))
    }
}

/// Limits the terminals of a devpts, unless the spec says how many (`max=`): the kernel counts
/// those of all containers of the node together, and keeps some for the host.
fn with_share_of_terminals(mut options: Vec<FsOption>) -> Vec<FsOption> {
    if !options.iter().any(|(key, _)| key == "max") {
        options.extend(share_of_terminals().map(|share| ("max".into(), Some(share.to_string()))));
    }
    options
}

/// Returns an eighth of the terminals that the kernel has for containers, if it tells. That is
/// 384, unless the administrator changes `kernel.pty.max`.
fn share_of_terminals() -> Option<u32> {
    let read = |name: &str| -> Option<u32> {
        let text = fs::read_to_string(format!("/proc/sys/kernel/pty/{name}")).ok()?;
        text.trim().parse().ok()
    };
    let of_containers = read("max")?.saturating_sub(read("reserve")?);
    // The kernel takes no number above 2^20 (devpts_fs.h). With a smaller one than this a
    // container may fail where it took no more than it needs.
    Some((of_containers / 8).clamp(16, 1 << 20))
}

fn shown((key, value): &FsOption) -> String {
    match value {
        Some(value) => format!("{key}={value}"),
        None => key.clone(),
    }
}
