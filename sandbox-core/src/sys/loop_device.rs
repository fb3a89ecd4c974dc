//! Loop devices: block devices over files. loop(4).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::check;

const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names: [u8; 128],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const EMPTY: LoopInfo = LoopInfo {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    names: [0; 128],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// What a loop device is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Device and inode of the file.
    pub file: (u64, u64),
    /// Whether it is the whole file.
    pub whole: bool,
    /// Whether the device is read-only.
    pub read_only: bool,
}

/// Returns the number of a loop device that is over nothing. `control` is `/dev/loop-control`.
/// Someone else may take the device before it is configured.
pub fn free_number(control: impl AsFd) -> io::Result<u32> {
    // SAFETY: the call takes no argument beyond the descriptor, which is borrowed.
    let number = check(unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE) })?;
    u32::try_from(number).map_err(io::Error::other)
}

/// Puts a loop device over a file, until the last user of the device closes it. Fails with
/// EBUSY if it is over one already.
pub fn configure(
    device: impl AsFd,
    file: impl AsFd,
    read_only: bool,
    direct_io: bool,
) -> io::Result<()> {
    let mut flags = LO_FLAGS_AUTOCLEAR;
    if read_only {
        flags |= LO_FLAGS_READ_ONLY;
    }
    if direct_io {
        flags |= LO_FLAGS_DIRECT_IO;
    }
    let fd = u32::try_from(file.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    let config =
        LoopConfig { fd, block_size: 0, info: LoopInfo { flags, ..EMPTY }, reserved: [0; 8] };
    // SAFETY: the kernel reads a loop_config, whose layout this is, that outlives the call;
    // both descriptors are borrowed for it.
    check(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE, &raw const config) })
        .map(drop)
}

/// Returns what a loop device is over. Fails with ENXIO if that is nothing.
pub fn backing(device: impl AsFd) -> io::Result<Backing> {
    let mut info = EMPTY;
    // SAFETY: the kernel writes a loop_info64, whose layout this is and for which any bits are
    // valid, that outlives the call.
    check(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) })?;
    Ok(Backing {
        file: (info.device, info.inode),
        whole: info.offset == 0 && info.size_limit == 0,
        read_only: info.flags & LO_FLAGS_READ_ONLY != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts_are_the_kernels() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
        assert_eq!(std::mem::offset_of!(LoopInfo, flags), 52);
    }
}
