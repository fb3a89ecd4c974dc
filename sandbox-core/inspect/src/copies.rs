//! Copies of files that containers can write: a program that is cut short while a library has it
//! mapped would end this command (SIGBUS), and one that changes could mislead it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use object::read::{Object, ObjectSegment, ReadCache};
use rustix::fs::{MemfdFlags, Mode, OFlags, ResolveFlags, memfd_create, openat2};

/// The largest file that is copied.
const LARGEST: u64 = 512 << 20;

/// The most bytes of all copies.
const MOST: u64 = 1 << 30;

/// Where debug information is installed (`gdb` and distributions agree).
const DEBUG: &str = "usr/lib/debug/.build-id";

/// How many bytes may still be copied.
#[derive(Debug)]
pub(crate) struct Budget(u64);

impl Default for Budget {
    fn default() -> Self {
        Self(MOST)
    }
}

/// A program or library that nobody else can change.
#[derive(Debug)]
pub(crate) struct Copy {
    file: File,
    /// Offsets in the file, and the address of the first of them.
    segments: Vec<(std::ops::Range<u64>, u64)>,
    build_id: Option<Vec<u8>>,
}

impl Copy {
    /// Copies a file. `None` if it is too large, or no program.
    pub(crate) fn of(file: &File, budget: &mut Budget) -> Option<Self> {
        let size = file.metadata().ok().filter(std::fs::Metadata::is_file)?.size();
        if size > LARGEST.min(budget.0) {
            return None;
        }
        let copy = File::from(memfd_create("palisade-symbols", MemfdFlags::CLOEXEC).ok()?);
        copy.set_len(size).ok()?;
        let mut chunk = vec![0; 1 << 20];
        let mut at = 0;
        while at < size {
            let some = file.read_at(&mut chunk, at).ok()?;
            if some == 0 {
                break;
            }
            let some_left = usize::try_from(size - at).unwrap_or(usize::MAX).min(some);
            let bytes = &chunk[..some_left];
            // A file may have holes that are larger than memory.
            if bytes.iter().any(|byte| *byte != 0) {
                copy.write_all_at(bytes, at).ok()?;
                budget.0 = budget.0.saturating_sub(bytes.len() as u64);
            }
            at += bytes.len() as u64;
        }
        let cache = ReadCache::new(copy.try_clone().ok()?);
        let program = object::File::parse(&cache).ok()?;
        let segment = |segment: object::Segment<'_, '_, _>| {
            let (at, size) = segment.file_range();
            (at..at.saturating_add(size), segment.address())
        };
        let segments = program.segments().map(segment).collect();
        let build_id = program.build_id().ok().flatten().map(<[u8]>::to_vec);
        Some(Self { file: copy, segments, build_id })
    }

    /// Returns a path by which this process reads it.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Returns the address that an offset in the file is linked to.
    pub(crate) fn address(&self, offset: u64) -> Option<u64> {
        let (range, address) = self.segments.iter().find(|(range, _)| range.contains(&offset))?;
        address.checked_add(offset - range.start)
    }

    /// Copies the debug information that is installed for it: in the root of the process that has it
    /// mapped, or on the host.
    pub(crate) fn debug_information(&self, pid: i32, budget: &mut Budget) -> Option<Self> {
        let id = self.build_id.as_deref().filter(|id| (8..=64).contains(&id.len()))?;
        let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = format!("{DEBUG}/{}/{}.debug", &hex[..2], &hex[2..]);
        let roots = [format!("/proc/{pid}/root"), "/".to_owned()];
        let found = roots.iter().filter_map(|root| plain_file(Path::new(root), &path));
        let mut copies = found.filter_map(|file| Self::of(&file, budget));
        copies.find(|copy| copy.build_id.as_deref() == Some(id))
    }
}

/// Opens a plain file below a root that is another's: no link leads out of it, and nothing there is
/// waited for.
pub(crate) fn plain_file(root: &Path, path: &str) -> Option<File> {
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, folder, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // A name is looked at before the file is opened: opening a device can have effects.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let named = OFlags::PATH | OFlags::CLOEXEC;
    let named = File::from(openat2(root.as_fd(), path, named, Mode::empty(), resolve).ok()?);
    let plain = |file: &File| file.metadata().is_ok_and(|metadata| metadata.is_file());
    if !plain(&named) {
        return None;
    }
    let again = format!("/proc/self/fd/{}", named.as_raw_fd());
    rustix::fs::open(again, flags, Mode::empty()).ok().map(File::from)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_copy_stays_when_the_file_is_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        let copy = Copy::of(&File::open(&path).unwrap(), &mut Budget::default()).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(fs::read(copy.path()).unwrap()[..4], *b"\x7fELF");
        let (range, address) = copy.segments[0].clone();
        assert_eq!(copy.address(range.start + 1), Some(address + 1));
    }

    #[test]
    fn what_is_too_large_or_no_program_is_not_copied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        let sparse = File::create_new(&path).unwrap();
        sparse.set_len(LARGEST + 1).unwrap();
        let read = |path: &Path| Copy::of(&File::open(path).unwrap(), &mut Budget::default());
        assert!(read(&path).is_none());
        sparse.set_len(1 << 20).unwrap();
        assert!(read(&path).is_none(), "zeros are no program");
        assert!(read(Path::new("/dev/zero")).is_none());
        let own = File::open(std::env::current_exe().unwrap()).unwrap();
        assert!(Copy::of(&own, &mut Budget(4096)).is_none());
    }

    #[test]
    fn only_plain_files_below_the_root_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::write(root.join("plain"), "x").unwrap();
        symlink("/plain", root.join("link")).unwrap();
        symlink("/etc/passwd", root.join("out")).unwrap();
        let fifo = nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU);
        fifo.unwrap();
        assert!(plain_file(root, "plain").is_some() && plain_file(root, "link").is_some());
        assert!(plain_file(root, "out").is_none() && plain_file(root, "fifo").is_none());
        assert!(plain_file(root, "../../etc/passwd").is_none());
    }
}
