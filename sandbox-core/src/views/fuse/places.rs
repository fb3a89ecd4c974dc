//! What each container's directory has: the same for all, numbered once.

use rustix::fs::FileType;

use super::reply::{Attributes, Moment, Validity};
use crate::views::File;

/// A file or directory that each container has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The container's own directory.
    Container,
    /// `pressure/`
    Pressure,
    /// `cpu/`: the host's /sys/devices/system/cpu, less what the container does not have.
    Cpu,
    /// `node/`: likewise /sys/devices/system/node.
    Node,
    /// A file whose text boot makes.
    File(File),
}

/// The size of each file, whatever is in it: as sysfs says, so programs know how to take it. proc says zero. But from Linux 6.5 on, sendfile(2) and
/// splice(2) return at once at the end that the size says, so with zero busybox's `cat` would
/// print nothing.
const SIZE: u64 = 4096;

/// The size of blocks: that of sysfs. Kernels before 6.17 say the same whatever they are told.
const BLOCK: u32 = 4096;

/// How long the kernel keeps the attributes of a file whose text may be longer than [`SIZE`]. It
/// has to ask for a program that seeks to the end, which then gets zero: `tail` would otherwise
/// take what is at [`SIZE`] for the end.
pub(super) const LONG_VALID: Validity = Validity::Seconds(0);

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) place: Place,
    parent: Place,
    pub(super) name: &'static str,
    permissions: u16,
}

/// All places but [`Place::Container`]. A place's number is its row here, and 1. The permissions
/// are those of the kernel's files.
const TABLE: [Row; 17] = [
    row(Place::Container, "cpu", Place::Cpu, 0o755),
    row(Place::Container, "node", Place::Node, 0o755),
    row(Place::Container, "pressure", Place::Pressure, 0o555),
    row(Place::Container, "cpuinfo", Place::File(File::Cpuinfo), 0o444),
    row(Place::Container, "diskstats", Place::File(File::Diskstats), 0o444),
    row(Place::Container, "loadavg", Place::File(File::Loadavg), 0o444),
    row(Place::Container, "meminfo", Place::File(File::Meminfo), 0o444),
    row(Place::Container, "stat", Place::File(File::Stat), 0o444),
    row(Place::Container, "swaps", Place::File(File::Swaps), 0o444),
    row(Place::Container, "uptime", Place::File(File::Uptime), 0o444),
    row(Place::Container, "threads-max", Place::File(File::ThreadsMax), 0o644),
    row(Place::Pressure, "cpu", Place::File(File::PressureCpu), 0o666),
    row(Place::Pressure, "io", Place::File(File::PressureIo), 0o666),
    row(Place::Pressure, "memory", Place::File(File::PressureMemory), 0o666),
    row(Place::Cpu, "online", Place::File(File::CpuOnline), 0o444),
    row(Place::Cpu, "possible", Place::File(File::CpuPossible), 0o444),
    row(Place::Cpu, "present", Place::File(File::CpuPresent), 0o444),
];

const fn row(parent: Place, name: &'static str, place: Place, permissions: u16) -> Row {
    Row { place, parent, name, permissions }
}

impl Place {
    /// Returns its number: at least 1, and below 256.
    pub(super) fn number(self) -> u64 {
        let row = TABLE.iter().position(|row| row.place == self);
        row.map_or(1, |row| row as u64 + 2)
    }

    /// Returns the place with a number.
    pub(super) fn numbered(number: u64) -> Option<Self> {
        if number == 1 {
            return Some(Self::Container);
        }
        let row = usize::try_from(number).ok()?.checked_sub(2)?;
        TABLE.get(row).map(|row| row.place)
    }

    /// Returns what is in it, by the table.
    pub(super) fn children(self) -> impl Iterator<Item = &'static Row> {
        TABLE.iter().filter(move |row| row.parent == self)
    }

    /// Returns the place of a name in it, by the table.
    pub(super) fn child(self, name: &[u8]) -> Option<Self> {
        self.children().find(|row| row.name.as_bytes() == name).map(|row| row.place)
    }

    pub(super) fn kind(self) -> FileType {
        match self {
            Self::File(_) => FileType::RegularFile,
            _ => FileType::Directory,
        }
    }

    /// Whether it stands for a file of proc, rather than of sysfs.
    pub(super) fn is_of_proc(self) -> bool {
        TABLE.iter().any(|row| row.place == self && row.parent != Self::Cpu)
    }

    /// Whether its text may be longer than [`SIZE`].
    fn may_be_long(self) -> bool {
        matches!(self, Self::File(File::Cpuinfo | File::Stat | File::Diskstats))
    }

    /// Returns what stat(2) says of it, as it would of the kernel's file but for the size of a
    /// file of proc: see [`SIZE`].
    pub(super) fn attributes(self, serial: u32, owner: (u32, u32), made: Moment) -> Attributes {
        let row = TABLE.iter().find(|row| row.place == self);
        let directories = self.children().filter(|row| row.place.kind() == FileType::Directory);
        Attributes {
            inode: self.inode(serial),
            size: if self.kind() == FileType::RegularFile { SIZE } else { 0 },
            mode: self.kind().as_raw_mode() | row.map_or(0o555, |row| u32::from(row.permissions)),
            links: match self {
                Self::File(_) => 1,
                _ => 2 + u32::try_from(directories.count()).unwrap_or(0),
            },
            block_size: BLOCK,
            owner,
            accessed: made,
            modified: made,
            changed: made,
            valid: if self.may_be_long() { LONG_VALID } else { Validity::Forever },
        }
    }

    /// Returns its inode's number: of 32 bits, which all programs can hold, and where proc has
    /// its own, above what sysfs counts up to.
    pub(super) fn inode(self, serial: u32) -> u64 {
        0xe000_0000 | u64::from(serial & 0x1f_ffff) << 8 | self.number()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_a_number_of_its_own() {
        let mut seen = 0;
        for number in 0..256 {
            if let Some(place) = Place::numbered(number) {
                assert_eq!(place.number(), number);
                seen += 1;
            }
        }
        assert_eq!(seen, TABLE.len() + 1);
        assert_eq!(Place::numbered(0), None);
    }
}
