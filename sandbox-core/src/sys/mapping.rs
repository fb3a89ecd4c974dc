//! What lies at an address of another process: proc_pid_maps(5), `PROCMAP_QUERY` (Linux 6.11).

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// A mapping of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The address after its last one.
    pub end: u64,
    /// Whether the process may write there.
    pub writable: bool,
    /// Whether it is of a file, memory that processes share included.
    pub of_a_file: bool,
}

/// `struct procmap_query` of `linux/fs.h`
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    access: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    device: [u32; 2],
    sizes: [u32; 2],
    names: [u64; 2],
}

/// `PROCMAP_QUERY`
const QUERY: u64 = 0xc068_6611;
/// `PROCMAP_QUERY_VMA_WRITABLE`
const WRITABLE: u64 = 2;

/// Returns the mapping at an address, by the open `maps` of the process.
///
/// # Errors
/// `ENOENT` if there is none; `ENOTTY` if the kernel does not know the question.
pub fn mapping_at(maps: BorrowedFd<'_>, address: u64) -> io::Result<Mapping> {
    let size = mem::size_of::<Query>() as u64;
    let mut query = Query { size, address, ..Query::default() };
    // SAFETY: the kernel reads and writes one such structure, which outlives the call.
    check(unsafe { libc::ioctl(maps.as_raw_fd(), QUERY as _, &raw mut query) })?;
    Ok(Mapping {
        end: query.end,
        writable: query.access & WRITABLE != 0,
        of_a_file: query.inode != 0 || query.device != [0; 2],
    })
}

/// Returns the same by the text of `maps`.
///
/// # Errors
/// `NotFound` if there is none.
pub fn mapping_in(maps: &[u8], address: u64) -> io::Result<Mapping> {
    let maps = String::from_utf8_lossy(maps);
    let of_line = |line: &str| {
        let mut fields = line.split(' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (number(start)?, number(end)?);
        let writable = fields.next()?.as_bytes().get(1) == Some(&b'w');
        // After the offset.
        let of_a_file = fields.nth(1)? != "00:00" || fields.next()? != "0";
        (start..end).contains(&address).then_some(Mapping { end, writable, of_a_file })
    };
    maps.lines().find_map(of_line).ok_or_else(|| io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn mappings_are_told_apart() {
        static CONSTANT: [u8; 64] = [7; 64];
        let maps = File::open("/proc/self/maps").unwrap();
        let at = |address: *const u8| mapping_at(maps.as_fd(), address as u64);
        let heap = Box::new([1u8; 64]);
        match at(heap.as_ptr()) {
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => return,
            mapping => {
                let mapping = mapping.unwrap();
                assert!(mapping.writable && !mapping.of_a_file, "{mapping:?}");
                assert!(mapping.end > heap.as_ptr() as u64);
            }
        }
        let constant = at(CONSTANT.as_ptr()).unwrap();
        assert!(!constant.writable && constant.of_a_file, "{constant:?}");
        assert_eq!(at(16 as *const u8).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        let text = std::fs::read("/proc/self/maps").unwrap();
        let in_text = |address: *const u8| mapping_in(&text, address as u64);
        assert_eq!(in_text(CONSTANT.as_ptr()).unwrap(), constant);
        assert!(in_text(heap.as_ptr()).is_ok_and(|its| its.writable && !its.of_a_file));
        assert!(in_text(16 as *const u8).is_err() && mapping_in(b"7-g rw\n\xff", 8).is_err());
    }
}
