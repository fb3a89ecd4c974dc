//! The mounts of a container, as its mount table says (proc_pid_mountinfo(5)).

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags, openat};

use super::visit::{Visit, host_proc};
use crate::error::{Context, Error, Result};
use crate::types::HostPid;

/// The most bytes of a mount table that are read: the kernel allows 100000 mounts.
const MAX_TABLE: u64 = 64 << 20;

/// The mounts of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountTable(Vec<Mount>);

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    what: What,
}

/// A mount, but for its number, which is another in each namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct What {
    device: String,
    root: PathBuf,
    point: PathBuf,
    fs_type: String,
}

impl MountTable {
    /// Reads the table of a process.
    pub fn of(pid: HostPid) -> Result<Self> {
        let path = format!("/proc/{}/mountinfo", pid.0);
        read(File::open(&path).context(|| format!("open {path}"))?).context(|| path)
    }

    /// Reads the table of a mount namespace, in a clone that enters it: see [`MountTable::parse`].
    pub fn of_namespace(namespace: BorrowedFd<'_>) -> Result<Visit> {
        let proc = host_proc()?;
        Visit::begin(&[namespace, proc.as_fd()], || {
            setns(namespace, CloneFlags::CLONE_NEWNS).context(|| "enter a mount namespace")?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let table = openat(&proc, "self/mountinfo", flags, Mode::empty())
                .context(|| "open the mount table")?;
            let mut bytes = Vec::new();
            let read = File::from(table).take(MAX_TABLE).read_to_end(&mut bytes);
            read.context(|| "read the mount table")?;
            Ok(bytes)
        })
    }

    /// Parses the text of a table. Paths are bytes, in any encoding.
    pub fn parse(bytes: &[u8]) -> Self {
        Self(bytes.split(|byte| *byte == b'\n').filter_map(Mount::parse).collect())
    }

    /// Whether a mount of this number is in it.
    pub fn has(&self, id: u64) -> bool {
        self.0.iter().any(|mount| mount.id == id)
    }

    /// Checks that a container has the mounts that it was made with: those of `made`, which are
    /// the mounts before it got its user namespace, and message queues.
    ///
    /// # Errors
    /// `Invalid` names a mount that it has made or taken off.
    pub fn check_unchanged(&self, made: &Self) -> Result<()> {
        let mut counts: HashMap<&What, i64> = HashMap::new();
        let of_kernel = |mount: &&Mount| mount.what.fs_type != "mqueue";
        self.0.iter().filter(of_kernel).for_each(|m| *counts.entry(&m.what).or_default() += 1);
        made.0.iter().filter(of_kernel).for_each(|m| *counts.entry(&m.what).or_default() -= 1);
        let mut changed: Vec<_> = counts.into_iter().filter(|(_, count)| *count != 0).collect();
        changed.sort_by(|(a, _), (b, _)| a.point.cmp(&b.point));
        match changed.first() {
            None => Ok(()),
            Some((mount, count)) => {
                let did = if *count > 0 { "has made the mount" } else { "has taken off the mount" };
                Err(Error::invalid(format!(
                    "the container {did} {:?} ({}) itself, which a checkpoint does not carry",
                    mount.point, mount.fs_type
                )))
            }
        }
    }

    /// Returns what is outside of the images, in the form of criu's `--external`: all mounts but
    /// the root, proc and message queues, which criu would look at as root of the host.
    ///
    /// # Errors
    /// `Invalid` names a mount point that this form has no room for.
    pub fn external(&self) -> Result<Vec<String>> {
        let outside = self.0.iter().filter(|mount| {
            mount.what.point != Path::new("/")
                && !["proc", "mqueue"].contains(&mount.what.fs_type.as_str())
        });
        let mut names: Vec<String> = outside
            .map(|mount| {
                let point = mount.what.point.to_str().filter(|point| {
                    let splits = |c: char| c.is_control() || [']', ':', '['].contains(&c);
                    !point.contains(splits)
                });
                match point {
                    Some(point) => Ok(format!("mnt[{point}]:{point}")),
                    None => Err(Error::invalid(format!(
                        "the mount point {:?} has a bracket, a colon or no plain text in its name, \
                         for which criu has no form",
                        mount.what.point
                    ))),
                }
            })
            .collect::<Result<_>>()?;
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

fn read(table: File) -> std::io::Result<MountTable> {
    let mut bytes = Vec::new();
    table.take(MAX_TABLE).read_to_end(&mut bytes)?;
    Ok(MountTable::parse(&bytes))
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        let mut fields = line.split(|byte| *byte == b' ');
        let id = text(fields.next()?).parse().ok()?;
        fields.next()?;
        let device = text(fields.next()?);
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        // A dash ends the optional fields.
        fields.find(|field| *field == b"-")?;
        let fs_type = text(fields.next()?);
        Some(Self { id, what: What { device, root, point, fs_type } })
    }
}

/// Resolves the kernel's escapes: a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                rest = &after[3..];
            }
            None => {
                path.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
        100 1 0:50 / / rw,relatime - overlay overlay rw\n\
        101 100 0:51 / /proc rw - proc proc rw\n\
        102 101 0:51 /bus /proc/bus ro - proc proc rw\n\
        103 101 0:52 / /proc/acpi ro shared:7 master:2 - tmpfs tmpfs ro\n\
        104 100 0:53 / /dev rw - tmpfs tmpfs rw\n\
        105 104 0:54 / /dev/mqueue rw - mqueue mqueue rw\n\
        106 100 8:1 /data /a\\040b rw - ext4 /dev/sda1 rw\n";

    fn table(text: &str) -> MountTable {
        MountTable::parse(text.as_bytes())
    }

    #[test]
    fn all_but_root_proc_and_queues_is_outside() {
        let expected = ["mnt[/a b]:/a b", "mnt[/dev]:/dev", "mnt[/proc/acpi]:/proc/acpi"];
        assert_eq!(table(TABLE).external().unwrap(), expected);
        for name in ["/a]b", "/a:b", "/a\\012b", "/a[b"] {
            let more = format!("{TABLE}107 100 8:1 / {name} rw - ext4 /dev/sda1 rw\n");
            assert!(table(&more).external().unwrap_err().to_string().contains("mount point"));
        }
        assert!(table(TABLE).has(103) && !table(TABLE).has(107));
    }

    #[test]
    fn mounts_of_the_container_s_own_are_told() {
        let renumbered = TABLE.replace("\n10", "\n20").replacen("100", "200", 1);
        assert!(table(TABLE).check_unchanged(&table(&renumbered)).is_ok());
        let without_queue: String = TABLE
            .lines()
            .filter(|line| !line.contains("mqueue"))
            .map(|l| format!("{l}\n"))
            .collect();
        assert!(table(TABLE).check_unchanged(&table(&without_queue)).is_ok());
        let more = format!("{TABLE}107 100 0:60 / /mnt rw - tmpfs tmpfs rw\n");
        let error = table(&more).check_unchanged(&table(TABLE)).unwrap_err().to_string();
        assert!(error.contains("has made the mount \"/mnt\""), "{error}");
        let error = table(TABLE).check_unchanged(&table(&more)).unwrap_err().to_string();
        assert!(error.contains("has taken off the mount \"/mnt\""), "{error}");
        // One more of the same is one more.
        let twice = format!("{TABLE}107 104 0:53 / /dev rw - tmpfs tmpfs rw\n");
        assert!(table(&twice).check_unchanged(&table(TABLE)).is_err());
    }
}
