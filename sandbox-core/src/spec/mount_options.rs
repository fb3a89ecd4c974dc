//! The one table of mount options: those of fstab(5) and mount(8), and those that the
//! runtime specification and runc add.
//!
//! Three places use it: the parser of a spec's mounts (`resolve/mount_options.rs`), the
//! gofer's parser of a root file system's mounts (`gofer/options.rs`), and the shim's
//! `-info`, for the options that it claims ([`names`]).

use rustix::mount::MountAttrFlags as Attr;

use super::plan::{FsOption, Propagation};
use crate::sys::mount::PropagationKind as Kind;

/// The meaning of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A change that mount_setattr(2) makes.
    Attributes(AttributeChange),
    /// A propagation: mount_namespaces(7).
    Propagation(Propagation),
    /// A bind instead of a file system.
    Bind {
        /// Whether all mounts below it are bound as well.
        recursive: bool,
    },
    /// The mapping of a bind's owners.
    Idmap(Idmap),
    /// A copy into a new tmpfs of the files of the directory below it.
    CopyUp,
    /// An option of the super block that mount(8) has for all file systems.
    SuperBlock,
    /// None: it is a default, or only changes the output of mount(8).
    Nothing,
    /// Not supported, with a sentence of advice.
    Refused(&'static str),
}

/// `attr_set` and `attr_clr` of one option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttributeChange {
    pub(crate) set: Attr,
    pub(crate) clear: Attr,
    /// Whether it also applies to all mounts below.
    pub(crate) recursive: bool,
}

impl AttributeChange {
    /// Adds this change to those of earlier options. The access time modes are one field
    /// of several bits, and the kernel demands that all of it is cleared before one is
    /// set.
    pub(crate) fn apply(self, set: &mut Attr, clear: &mut Attr) {
        *set = set.difference(self.clear).union(self.set);
        *clear = clear.difference(self.set.difference(ATIME)).union(self.clear);
    }
}

/// `idmap`, `ridmap`, `noidmap`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idmap {
    Top,
    Recursive,
    Off,
}

const NONE: Attr = Attr::empty();
const ATIME: Attr = Attr::MOUNT_ATTR__ATIME;

const fn attributes(set: Attr, clear: Attr) -> Meaning {
    Meaning::Attributes(AttributeChange { set, clear, recursive: false })
}

const fn propagation(kind: Kind) -> Meaning {
    Meaning::Propagation(Propagation { kind, recursive: false })
}

/// The options. Attributes and propagations also have a recursive form, with an `r` in
/// front (runc, `docs/spec-conformance.md`).
const OPTIONS: [(&str, Meaning); 43] = [
    ("ro", attributes(Attr::MOUNT_ATTR_RDONLY, NONE)),
    ("rw", attributes(NONE, Attr::MOUNT_ATTR_RDONLY)),
    ("nosuid", attributes(Attr::MOUNT_ATTR_NOSUID, NONE)),
    ("suid", attributes(NONE, Attr::MOUNT_ATTR_NOSUID)),
    ("nodev", attributes(Attr::MOUNT_ATTR_NODEV, NONE)),
    ("dev", attributes(NONE, Attr::MOUNT_ATTR_NODEV)),
    ("noexec", attributes(Attr::MOUNT_ATTR_NOEXEC, NONE)),
    ("exec", attributes(NONE, Attr::MOUNT_ATTR_NOEXEC)),
    ("nodiratime", attributes(Attr::MOUNT_ATTR_NODIRATIME, NONE)),
    ("diratime", attributes(NONE, Attr::MOUNT_ATTR_NODIRATIME)),
    ("nosymfollow", attributes(Attr::MOUNT_ATTR_NOSYMFOLLOW, NONE)),
    ("symfollow", attributes(NONE, Attr::MOUNT_ATTR_NOSYMFOLLOW)),
    ("noatime", attributes(Attr::MOUNT_ATTR_NOATIME, ATIME)),
    ("strictatime", attributes(Attr::MOUNT_ATTR_STRICTATIME, ATIME)),
    // MOUNT_ATTR_RELATIME is the zero of the field, and the default.
    ("relatime", attributes(Attr::MOUNT_ATTR_RELATIME, ATIME)),
    ("atime", attributes(Attr::MOUNT_ATTR_RELATIME, ATIME)),
    ("norelatime", attributes(Attr::MOUNT_ATTR_RELATIME, ATIME)),
    ("nostrictatime", attributes(Attr::MOUNT_ATTR_RELATIME, ATIME)),
    ("shared", propagation(Kind::Shared)),
    ("slave", propagation(Kind::Slave)),
    ("private", propagation(Kind::Private)),
    ("unbindable", propagation(Kind::Unbindable)),
    ("bind", Meaning::Bind { recursive: false }),
    ("rbind", Meaning::Bind { recursive: true }),
    ("idmap", Meaning::Idmap(Idmap::Top)),
    ("ridmap", Meaning::Idmap(Idmap::Recursive)),
    ("noidmap", Meaning::Idmap(Idmap::Off)),
    ("tmpcopyup", Meaning::CopyUp),
    ("sync", Meaning::SuperBlock),
    ("async", Meaning::SuperBlock),
    ("dirsync", Meaning::SuperBlock),
    ("lazytime", Meaning::SuperBlock),
    ("nolazytime", Meaning::SuperBlock),
    ("mand", Meaning::SuperBlock),
    ("nomand", Meaning::SuperBlock),
    ("iversion", Meaning::SuperBlock),
    ("noiversion", Meaning::SuperBlock),
    ("", Meaning::Nothing),
    ("defaults", Meaning::Nothing),
    ("silent", Meaning::Nothing),
    ("loud", Meaning::Nothing),
    ("remount", Meaning::Refused(REMOUNT)),
    ("loop", Meaning::Refused(LOOP)),
];

const REMOUNT: &str = "every mount of a container is new; put the options on the mount itself";
const LOOP: &str = "name a block device as the source";

/// Returns an option's meaning; `None` for an option of one file system.
pub(crate) fn meaning(option: &str) -> Option<Meaning> {
    let find = |wanted: &str| OPTIONS.iter().find(|(name, _)| *name == wanted).map(|(_, m)| *m);
    find(option).or_else(|| recursive(find(option.strip_prefix('r')?)?))
}

/// Returns the recursive form of a meaning that has one.
fn recursive(meaning: Meaning) -> Option<Meaning> {
    match meaning {
        Meaning::Attributes(change) => {
            Some(Meaning::Attributes(AttributeChange { recursive: true, ..change }))
        }
        Meaning::Propagation(change) => {
            Some(Meaning::Propagation(Propagation { recursive: true, ..change }))
        }
        _ => None,
    }
}

/// Splits `key` or `key=value`.
pub(crate) fn fs_option(option: &str) -> FsOption {
    match option.split_once('=') {
        Some((key, value)) => (key.into(), Some(value.into())),
        None => (option.into(), None),
    }
}

/// Returns the names of all options that a mount can have, sorted.
pub fn names() -> Vec<String> {
    let mut names = Vec::new();
    for (name, meaning) in OPTIONS.iter().filter(|(name, _)| !name.is_empty()) {
        if !matches!(meaning, Meaning::Refused(_)) {
            names.push((*name).to_owned());
        }
        if recursive(*meaning).is_some() {
            names.push(format!("r{name}"));
        }
    }
    names.sort_unstable();
    names
}
