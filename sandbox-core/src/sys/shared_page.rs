//! A page of numbers that processes share by a file: mmap(2) with `MAP_SHARED`.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// The numbers of a page.
pub const WORDS: usize = 512;

/// The bytes of a page.
pub const SIZE: usize = WORDS * size_of::<AtomicU64>();

/// The first page of a file, mapped into this process. What one process adds, all others see.
#[derive(Debug)]
pub struct SharedPage(NonNull<[AtomicU64; WORDS]>);

/// Whether a process may change what it maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It only reads.
    Read,
    /// It adds. The file must be open for both.
    Add,
}

// SAFETY: atomic numbers may be used by all threads, and the mapping belongs to no thread.
unsafe impl Send for SharedPage {}
// SAFETY: shared references give access to atomic numbers only.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// Maps the first page of a file. Whoever may write the file must not shorten it while it is
    /// mapped.
    ///
    /// # Errors
    /// `InvalidData` if the file is shorter than a page; that of mmap(2).
    pub fn map(file: impl AsFd, access: Access) -> io::Result<Self> {
        let file = file.as_fd();
        let length = rustix::fs::fstat(file)?.st_size;
        if usize::try_from(length).unwrap_or_default() < SIZE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("has {length} bytes and not {SIZE}"),
            ));
        }
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::Add => libc::PROT_READ | libc::PROT_WRITE,
        };
        let (fd, flags) = (file.as_raw_fd(), libc::MAP_SHARED);
        // SAFETY: the kernel chooses a free address, so that no other memory changes.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, protection, flags, fd, 0) };
        match NonNull::new(address.cast()) {
            Some(page) if address != libc::MAP_FAILED => Ok(Self(page)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Returns the numbers. With [`Access::Read`], only loads are allowed.
    pub(crate) fn words(&self) -> &[AtomicU64; WORDS] {
        // SAFETY: the mapping is as long as the array, page-aligned, lives as long as `self`, and
        // all zeroes are numbers. Other processes change it by atomic operations only.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and `words` lends it out no
        // longer than `self` lives.
        unsafe { libc::munmap(self.0.as_ptr().cast(), SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn what_one_adds_the_other_reads() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(
            SharedPage::map(&file, Access::Add).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        file.write_all(&[0; SIZE]).unwrap();
        let writer = SharedPage::map(&file, Access::Add).unwrap();
        let reader = SharedPage::map(&file, Access::Read).unwrap();
        drop(file);
        writer.words()[WORDS - 1].fetch_add(3, Relaxed);
        assert_eq!(reader.words()[WORDS - 1].load(Relaxed), 3);
        let nothing = File::open("/dev/null").unwrap();
        assert!(SharedPage::map(nothing, Access::Read).is_err());
    }
}
