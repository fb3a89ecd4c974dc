//! System calls that only tests of `spec/` make: loading a compiled program
//! into the calling thread and asking it.

use std::io;

/// Loads a seccomp program (an array of `struct sock_filter`) for the calling
/// thread, after giving up new privileges. seccomp(2), prctl(2).
pub(crate) fn load_seccomp(program: &[u8], flags: u32) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let mut filter: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|one| libc::sock_filter {
            code: u16::from_ne_bytes([one[0], one[1]]),
            jt: one[2],
            jf: one[3],
            k: u32::from_ne_bytes([one[4], one[5], one[6], one[7]]),
        })
        .collect();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points to `len` filters in `filter`; both live until
    // after the call, which copies them and keeps no pointer.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a system call with all arguments zero. syscall(2).
pub(crate) fn system_call(number: i64) -> io::Result<i64> {
    // SAFETY: the tests only pass numbers of calls that read no memory of this
    // process when their arguments are null pointers, or that do not exist.
    let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
