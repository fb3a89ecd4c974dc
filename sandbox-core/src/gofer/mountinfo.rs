//! The mount table (proc_pid_mountinfo(5)), read only if owners cannot be mapped: to name the
//! mount in the error, or to find the layers of an overlay.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};

/// All mounts of this mount namespace, in the kernel's order.
#[derive(Default)]
pub(super) struct MountTable(Vec<Mount>);

/// One line of the table.
#[derive(Debug, PartialEq)]
pub(super) struct Mount {
    /// Its ID, which no other mount has at the same time.
    pub(super) id: u64,
    /// The ID of the mount that it lies on.
    parent: u64,
    /// The device of its file system, as `major:minor`.
    pub(super) device: String,
    /// Its mount point.
    pub(super) point: PathBuf,
    /// Its file system type.
    pub(super) fs_type: String,
    /// The directory of the file system that is mounted.
    pub(super) root: PathBuf,
    options: String,
    super_options: Vec<u8>,
}

impl Mount {
    /// Whether it is idmapped (shown since Linux 5.15).
    pub(super) fn idmapped(&self) -> bool {
        self.options.split(',').any(|option| option == "idmapped")
    }

    /// Returns the options of the mount, such as `ro` and `nodev`.
    pub(super) fn options(&self) -> impl Iterator<Item = String> {
        self.options.split(',').map(str::to_owned)
    }

    /// Returns the options of the file system, as it was mounted. `None` if one is not UTF-8.
    pub(super) fn fs_options(&self) -> Option<Vec<String>> {
        let text = |option| unescape(option).into_os_string().into_string().ok();
        self.super_options.split(|byte| *byte == b',').map(text).collect()
    }

    /// Parses a line. Paths are bytes, in any encoding.
    fn parse(line: &[u8]) -> Option<Self> {
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        let mut fields = line.split(|byte| *byte == b' ');
        let id = text(fields.next()?).parse().ok()?;
        let parent = text(fields.next()?).parse().ok()?;
        let device = text(fields.next()?);
        let root = unescape(fields.next()?);
        let point = unescape(fields.next()?);
        let options = text(fields.next()?);
        // A dash ends the optional fields.
        fields.find(|field| *field == b"-")?;
        let fs_type = text(fields.next()?);
        let super_options = fields.nth(1)?.to_owned();
        Some(Self { id, parent, device, point, fs_type, root, options, super_options })
    }
}

impl MountTable {
    /// Reads the present table.
    pub(super) fn read() -> Result<Self> {
        let path = "/proc/self/mountinfo";
        Ok(Self::parse(&std::fs::read(path).context(|| format!("read {path}"))?))
    }

    fn parse(bytes: &[u8]) -> Self {
        Self(bytes.split(|byte| *byte == b'\n').filter_map(Mount::parse).collect())
    }

    /// Returns the mount with this ID.
    pub(super) fn of_id(&self, id: u64) -> Option<&Mount> {
        self.0.iter().find(|mount| mount.id == id)
    }

    /// Returns the mounts that a process finds below a directory of a mount, in the order of
    /// their paths. Those that another mount hides are not among them.
    pub(super) fn visible_below<'a>(&'a self, on: u64, directory: &'a Path) -> Vec<&'a Mount> {
        let mut found = Vec::new();
        let mut places = vec![(on, directory)];
        while let Some((on, directory)) = places.pop() {
            let is_here = |mount: &&Mount| {
                mount.parent == on && mount.point != directory && mount.point.starts_with(directory)
            };
            let here: Vec<&Mount> = self.0.iter().filter(is_here).collect();
            let hides = |other: &Mount, mount: &Mount| {
                mount.point != other.point && mount.point.starts_with(&other.point)
            };
            for mount in here.iter().filter(|mount| !here.iter().any(|other| hides(other, mount))) {
                let top = self.top(mount);
                found.push(top);
                places.push((top.id, &top.point));
            }
        }
        found.sort_by(|a, b| a.point.cmp(&b.point));
        found
    }

    /// Returns the mount that covers all others at the root of a mount.
    fn top<'a>(&'a self, mut mount: &'a Mount) -> &'a Mount {
        let on = |below: &Mount| {
            let covers = |m: &&Mount| m.parent == below.id && m.point == below.point;
            self.0.iter().find(covers).filter(|m| m.id != below.id)
        };
        while let Some(above) = on(mount) {
            mount = above;
        }
        mount
    }

    /// Returns the mounts below a canonical path.
    pub(super) fn below(&self, path: &Path) -> impl Iterator<Item = &Mount> {
        self.0.iter().filter(move |mount| mount.point != path && mount.point.starts_with(path))
    }
}

/// Decodes `\040` and similar escapes.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_parsed_whatever_its_bytes_are() {
        let table = MountTable::parse(
            b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
             2 1 0:2 / /a\\040b rw,idmapped shared:1 master:2 - tmpfs none rw\n\
             4 1 0:4 /sub /a rw,nodev - overlay o rw,lowerdir=/b\\134:c:/d\\040e\n\
             5 1 0:5 / /\xff\xfe rw - ext2 x rw\n",
        );
        let below: Vec<_> = table.below(Path::new("/")).map(Mount::idmapped).collect();
        assert_eq!(below, [true, false, false]);
        let overlay = table.of_id(4).unwrap();
        assert_eq!(overlay.root, Path::new("/sub"));
        assert_eq!(overlay.options().collect::<Vec<_>>(), ["rw", "nodev"]);
        assert_eq!(overlay.fs_options().unwrap(), ["rw", r"lowerdir=/b\:c:/d e"]);
    }

    #[test]
    fn what_another_mount_hides_is_not_found() {
        let table = MountTable::parse(
            b"1 0 8:1 / / rw - ext4 a rw\n\
             2 1 0:2 / /v rw - tmpfs a rw\n\
             3 2 0:3 / /v/a/b rw - tmpfs hidden-by-4 rw\n\
             5 3 0:3 / /v/a/b/c rw - tmpfs on-a-hidden-one rw\n\
             4 2 0:4 / /v/a rw - tmpfs a rw\n\
             6 4 0:4 / /v/a/b rw - tmpfs on-4 rw\n\
             7 2 0:5 / /v/z rw - tmpfs covered-by-8 rw\n\
             8 7 0:6 / /v/z rw - tmpfs a rw\n\
             9 1 0:7 / /vz rw - tmpfs elsewhere rw\n",
        );
        let ids = |on, at| {
            let found = table.visible_below(on, Path::new(at));
            found.iter().map(|mount| mount.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(2, "/v"), [4, 6, 8]);
        assert_eq!(ids(1, "/"), [2, 4, 6, 8, 9]);
        assert_eq!(ids(4, "/v/a"), [6]);
    }
}
