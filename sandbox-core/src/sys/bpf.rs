//! Device programs of cgroup version 2: bpf(2).

use std::ffi::c_long;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// bpf(2) commands, of bpf.h.
const PROG_LOAD: c_long = 5;
const PROG_ATTACH: c_long = 8;
const PROG_DETACH: c_long = 9;
const PROG_GET_FD_BY_ID: c_long = 13;
const PROG_QUERY: c_long = 16;
/// `BPF_PROG_TYPE_CGROUP_DEVICE`
const TYPE_CGROUP_DEVICE: u32 = 15;
/// `BPF_CGROUP_DEVICE`
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`
const ALLOW_MULTI: u32 = 2;

/// The first members of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The members for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// The members for `BPF_PROG_QUERY`, with all that any kernel writes. From Linux 6.17
/// on the kernel writes `revision`, whatever size it is given. Older kernels take a
/// longer structure if the rest is zero.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The last member ends where the kernel's does.
const _: () = assert!(size_of::<QueryAttr>() == 64);

/// The member for `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Calls bpf(2) with one of the structures above.
///
/// # Safety
/// `attr` is laid out as `union bpf_attr` is for `command`, and the addresses
/// in it are valid for the lengths in it during the call.
unsafe fn bpf<T>(command: c_long, attr: &mut T) -> io::Result<c_long> {
    // SAFETY: the kernel reads at most the size given of `attr`, which is
    // exclusively ours. PROG_QUERY alone writes, by the layout of the union and
    // not by that size: `QueryAttr` has all members that it writes. The caller
    // answers for the addresses.
    check(unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>())
    })
}

/// Returns a descriptor's number in the type of bpf.h.
fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn owned(fd: c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: bpf(2) returned a new descriptor, which nothing else owns (it is
    // close-on-exec from the start).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads a program that decides on devices. bpf(2), `BPF_PROG_LOAD`.
pub fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut attr = LoadAttr {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttr::default()
    };
    // SAFETY: `insns` points at `insn_cnt` instructions of eight bytes and
    // `license` at a string that ends in a zero byte; both live during the call.
    owned(unsafe { bpf(PROG_LOAD, &mut attr) }?)
}

/// Attaches a program to a cgroup, beside others. bpf(2), `BPF_PROG_ATTACH`.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = AttachAttr {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: no addresses in it.
    unsafe { bpf(PROG_ATTACH, &mut attr) }.map(drop)
}

/// Returns the IDs of the programs attached to a cgroup itself. bpf(2), `BPF_PROG_QUERY`.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // The kernel allows 64 programs (BPF_CGROUP_MAX_PROGS).
    let mut ids = [0u32; 64];
    let mut attr = QueryAttr {
        target_fd: number(cgroup),
        attach_type: ATTACH_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        ..QueryAttr::default()
    };
    // SAFETY: `prog_ids` has room for `prog_cnt` numbers of four bytes and is
    // not otherwise borrowed during the call; the other addresses are null,
    // which the kernel leaves alone.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    Ok(ids.iter().copied().take(attr.prog_cnt as usize).collect())
}

/// Detaches a program by its ID. Succeeds if it is gone already. bpf(2),
/// `BPF_PROG_DETACH`.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    let mut attr = IdAttr { id, next_id: 0, open_flags: 0 };
    // SAFETY: no addresses in it.
    let program = match unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) } {
        Ok(fd) => owned(fd)?,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut attr = AttachAttr {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program.as_fd()),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: 0,
    };
    // SAFETY: no addresses in it.
    unsafe { bpf(PROG_DETACH, &mut attr) }.map(drop)
}
