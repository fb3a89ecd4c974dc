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
        let device = text(fields.nth(1)?);
        let root = unescape(fields.next()?);
        let point = unescape(fields.next()?);
        let options = text(fields.next()?);
        // A dash ends the optional fields.
        fields.find(|field| *field == b"-")?;
        let fs_type = text(fields.next()?);
        let super_options = fields.nth(1)?.to_owned();
        Some(Self { id, device, point, fs_type, root, options, super_options })
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

    /// Returns the mount that holds a canonical path: the one with the longest
    /// mount point that the path begins with, and of several there the last,
    /// which covers the others.
    pub(super) fn holding(&self, path: &Path) -> Option<&Mount> {
        let holding = self.0.iter().filter(|mount| path.starts_with(&mount.point));
        holding.max_by_key(|mount| mount.point.components().count())
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
    fn the_deepest_and_latest_mount_holds_a_path() {
        let table = MountTable::parse(
            b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
             2 1 0:2 / /a\\040b rw,idmapped shared:1 master:2 - tmpfs none rw\n\
             3 2 0:3 / /a\\040b rw - nfs4 host:/x rw\n\
             4 1 0:4 /sub /a rw,nodev - overlay o rw,lowerdir=/b\\134:c:/d\\040e\n\
             5 1 0:5 / /\xff\xfe rw - ext2 x rw\n",
        );
        assert_eq!(table.holding(Path::new("/a b/c")).unwrap().fs_type, "nfs4");
        assert_eq!(table.holding(Path::new("/ab")).unwrap().fs_type, "ext4");
        let below: Vec<_> = table.below(Path::new("/")).map(Mount::idmapped).collect();
        assert_eq!(below, [true, false, false, false]);
        let overlay = table.holding(Path::new("/a")).unwrap();
        assert_eq!(overlay.root, Path::new("/sub"));
        assert_eq!(overlay.options().collect::<Vec<_>>(), ["rw", "nodev"]);
        assert_eq!(overlay.fs_options().unwrap(), ["rw", r"lowerdir=/b\:c:/d e"]);
    }
}
