//! The options of one mount, as fstab(5), mount(8) and runc write them.

use rustix::mount::MountAttrFlags as Attr;

use super::check::{refuse, without_nul};
use crate::error::Result;
use crate::spec::plan::{FsOption, MountAttributes, Propagation};
use crate::sys::mount::PropagationKind as Kind;

/// Options, sorted by what they act on.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) attributes: MountAttributes,
    pub(super) propagation: Option<Propagation>,
    /// `bind` or `rbind`.
    pub(super) bind: bool,
    /// `rbind`
    pub(super) recursive_bind: bool,
    pub(super) idmap: Option<Idmap>,
    pub(super) copy_up: bool,
    /// What is left: options of the file system itself.
    pub(super) data: Vec<FsOption>,
    /// Options of a file system's super block that mount(8) knows for all.
    pub(super) super_block: Vec<FsOption>,
}

/// `idmap`, `ridmap`, `noidmap`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Idmap {
    Top,
    Recursive,
    Off,
}

/// Sorts the options of one mount. Later ones win over earlier ones.
pub(super) fn parse(field: &str, options: &[String]) -> Result<Options> {
    let mut parsed = Options::default();
    for (i, option) in options.iter().enumerate() {
        let field = || format!("{field}.options[{i}]");
        without_nul(field, option)?;
        if attribute(&mut parsed.attributes, option) {
            continue;
        }
        if let Some(propagation) = propagation(option) {
            parsed.propagation = Some(propagation);
            continue;
        }
        match option.as_str() {
            "bind" => parsed.bind = true,
            "rbind" => (parsed.bind, parsed.recursive_bind) = (true, true),
            "idmap" => parsed.idmap = Some(Idmap::Top),
            "ridmap" => parsed.idmap = Some(Idmap::Recursive),
            "noidmap" => parsed.idmap = Some(Idmap::Off),
            "tmpcopyup" => parsed.copy_up = true,
            // Without a meaning: the default, or what mount(8) prints.
            "" | "defaults" | "silent" | "loud" => {}
            "remount" => {
                return refuse(
                    field(),
                    "\"remount\": every mount of a container is new; put the options on the mount itself",
                );
            }
            "sync" | "async" | "dirsync" | "lazytime" | "nolazytime" | "mand" | "nomand"
            | "iversion" | "noiversion" => parsed.super_block.push((option.clone(), None)),
            _ => parsed.data.push(fs_option(option)),
        }
    }
    Ok(parsed)
}

fn fs_option(option: &str) -> FsOption {
    match option.split_once('=') {
        Some((key, value)) => (key.into(), Some(value.into())),
        None => (option.into(), None),
    }
}

/// Takes an option that mount_setattr(2) carries out; false if it is none. A
/// leading `r` makes it recursive (runc, `docs/spec-conformance.md`), but for
/// those that begin with an `r` by themselves.
fn attribute(attributes: &mut MountAttributes, option: &str) -> bool {
    if let Some((set, clear)) = change(option) {
        apply(&mut attributes.set, &mut attributes.clear, set, clear);
        return true;
    }
    if let Some((set, clear)) = option.strip_prefix('r').and_then(change) {
        apply(&mut attributes.recursive_set, &mut attributes.recursive_clear, set, clear);
        return true;
    }
    false
}

/// The access time modes are one field of several bits, and the kernel demands
/// that all of it is cleared before one is set.
fn apply(all_set: &mut u64, all_clear: &mut u64, set: Attr, clear: Attr) {
    let (set, clear) = (u64::from(set.bits()), u64::from(clear.bits()));
    let atime = u64::from(Attr::MOUNT_ATTR__ATIME.bits());
    *all_set = *all_set & !clear | set;
    *all_clear = *all_clear & !(set & !atime) | clear;
}

/// `attr_set` and `attr_clr` of one option.
fn change(option: &str) -> Option<(Attr, Attr)> {
    let none = Attr::empty();
    let atime = Attr::MOUNT_ATTR__ATIME;
    Some(match option {
        "ro" => (Attr::MOUNT_ATTR_RDONLY, none),
        "rw" => (none, Attr::MOUNT_ATTR_RDONLY),
        "nosuid" => (Attr::MOUNT_ATTR_NOSUID, none),
        "suid" => (none, Attr::MOUNT_ATTR_NOSUID),
        "nodev" => (Attr::MOUNT_ATTR_NODEV, none),
        "dev" => (none, Attr::MOUNT_ATTR_NODEV),
        "noexec" => (Attr::MOUNT_ATTR_NOEXEC, none),
        "exec" => (none, Attr::MOUNT_ATTR_NOEXEC),
        "nodiratime" => (Attr::MOUNT_ATTR_NODIRATIME, none),
        "diratime" => (none, Attr::MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => (Attr::MOUNT_ATTR_NOSYMFOLLOW, none),
        "symfollow" => (none, Attr::MOUNT_ATTR_NOSYMFOLLOW),
        "noatime" => (Attr::MOUNT_ATTR_NOATIME, atime),
        "strictatime" => (Attr::MOUNT_ATTR_STRICTATIME, atime),
        // MOUNT_ATTR_RELATIME is the zero of the field, and the default.
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (Attr::MOUNT_ATTR_RELATIME, atime),
        _ => return None,
    })
}

/// mount_namespaces(7): `private`, `rprivate` and so on.
pub(super) fn propagation(option: &str) -> Option<Propagation> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(rest) => (rest, true),
        None => (option, false),
    };
    let kind = match name {
        "shared" => Kind::Shared,
        "slave" => Kind::Slave,
        "private" => Kind::Private,
        "unbindable" => Kind::Unbindable,
        _ => return None,
    };
    Some(Propagation { kind, recursive })
}
