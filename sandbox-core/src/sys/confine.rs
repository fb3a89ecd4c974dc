//! Ways in which a process gives up what it does not need.

use std::collections::BTreeSet;
use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::check;
use super::classic_bpf::{ARCHITECTURE, ARCHITECTURE_AT, IF_EQUAL, NUMBER_AT, Step, search};
use super::process::load_seccomp;

/// The most system calls of a list: each takes two comparisons at most, which then reach all of
/// it (255 instructions).
const MOST: usize = 127;

/// Has the kernel kill this process, and what it clones or executes, at a system call that is
/// not on the list: seccomp(2). It can never be taken back.
///
/// # Errors
/// `EACCES` without no_new_privileges or CAP_SYS_ADMIN.
pub fn allow_only(calls: &[c_long]) -> io::Result<()> {
    load_seccomp(&filter(calls)?, 0).map(drop)
}

/// Returns a filter that allows these calls of this architecture.
fn filter(calls: &[c_long]) -> io::Result<Vec<u8>> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let numbers: Result<BTreeSet<u32>, _> = calls.iter().map(|&call| call.try_into()).collect();
    let numbers = numbers.map_err(|_| invalid())?;
    if numbers.is_empty() || numbers.len() > MOST {
        return Err(invalid());
    }
    let kill = Step::returns(libc::SECCOMP_RET_KILL_PROCESS);
    let mut program = vec![
        Step::load(ARCHITECTURE_AT),
        Step { code: IF_EQUAL, if_true: 1, if_false: 0, operand: ARCHITECTURE },
        kill,
        Step::load(NUMBER_AT),
    ];
    let mut ends = vec![(0, false)];
    for number in numbers {
        // One that follows upon another goes on with it.
        ends.pop_if(|(start, _)| *start == number);
        if ends.last().is_none_or(|(_, allowed)| !allowed) {
            ends.push((number, true));
        }
        ends.push((number.checked_add(1).ok_or_else(invalid)?, false));
    }
    let allow = Step::returns(libc::SECCOMP_RET_ALLOW);
    program.extend(search(&ends, |allowed| vec![if allowed { allow } else { kill }]));
    Ok(program.iter().flat_map(Step::bytes).collect())
}

/// Keeps this process, and what it clones, away from all others: it cannot signal them, nor
/// trace them or reach their memory and files by /proc (ptrace(2)), nor send to an abstract
/// UNIX socket of theirs: landlock(7), since Linux 6.12. Files and mounts are as before, since no
/// access to files is handled: the kernel refuses every mount to whom handles one. Returns whether
/// the kernel knows it.
///
/// # Errors
/// `EPERM` without no_new_privileges or CAP_SYS_ADMIN.
pub fn leave_others_alone() -> io::Result<bool> {
    // struct landlock_ruleset_attr: accesses to files and to the network, and scopes.
    let wanted = [0, 0, LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | LANDLOCK_SCOPE_SIGNAL];
    let size = size_of_val(&wanted);
    // SAFETY: `wanted` has `size` bytes, which the kernel reads.
    let made =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, wanted.as_ptr(), size, 0) };
    let ruleset = match check(made) {
        Ok(ruleset) => ruleset,
        // It knows no scopes, or no Landlock, or has that switched off.
        Err(e) => match e.raw_os_error() {
            Some(libc::E2BIG | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => return Ok(false),
            _ => return Err(e),
        },
    };
    // A descriptor is an int.
    // SAFETY: the kernel has just made this descriptor, which nothing else owns.
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset as libc::c_int) };
    // SAFETY: integer arguments.
    let bound = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    check(bound)?;
    Ok(true)
}

/// Scopes of `linux/landlock.h`.
const LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1 << 0;
const LANDLOCK_SCOPE_SIGNAL: u64 = 1 << 1;

/// Has the kernel refuse this process memory that can be executed and was writable before, so
/// that no code can be brought in: `PR_SET_MDWE` (Linux 6.3). Neither children nor programs that
/// it executes are bound by it (Linux 6.6). Does nothing on an older kernel.
pub fn refuse_new_code() {
    let flags = libc::PR_MDWE_REFUSE_EXEC_GAIN | libc::PR_MDWE_NO_INHERIT;
    // SAFETY: integer arguments; nothing of this program changes what it executes.
    let _ = check(unsafe { libc::prctl(libc::PR_SET_MDWE, flags as libc::c_ulong, 0, 0, 0) });
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::classic_bpf::evaluate;
    use super::super::seccomp_listener::Data;
    use super::*;

    fn maps_code() -> bool {
        let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, which nothing uses.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, flags, -1, 0) };
        mapped != libc::MAP_FAILED
    }

    #[test]
    fn a_process_brings_in_no_code_but_its_children_may() {
        assert!(maps_code());
        refuse_new_code();
        // SAFETY: integer arguments.
        let in_force = unsafe { libc::prctl(libc::PR_GET_MDWE, 0, 0, 0, 0) };
        // The kernel does not know it.
        if in_force <= 0 {
            return;
        }
        assert!(!maps_code());
        let script = "exit(syscall(157, 66, 0, 0, 0, 0))";
        let child = Command::new("perl").args(["-e", script]).status().expect("run perl");
        assert!(child.success(), "an executed program is bound: {child:?}");
    }

    /// Runs a filter as the kernel does. Returns whether it allows the call.
    fn allows(program: &[u8], arch: u32, number: u32) -> bool {
        let data = Data { number, architecture: arch, ..Data::default() };
        evaluate(program, &data) == Some(libc::SECCOMP_RET_ALLOW)
    }

    #[test]
    fn a_filter_allows_its_list_and_nothing_else() {
        let whole: Vec<c_long> = (0..MOST as c_long).map(|n| n * 3 + 1).collect();
        let run: Vec<c_long> = (90..90 + MOST as c_long).collect();
        for list in [&[7][..], &[7, 8], &[0, 500, 3], &[0, 1, 2], &[4, 4, 4, 9], &whole, &run] {
            let program = filter(list).unwrap();
            for number in (0..1000).chain([0x4000_0007, u32::MAX]) {
                let listed = list.contains(&c_long::from(number));
                assert_eq!(allows(&program, ARCHITECTURE, number), listed, "{number} of {list:?}");
                assert!(!allows(&program, 0x4000_0003, number), "another architecture");
            }
        }
    }

    #[test]
    fn a_list_that_is_too_long_or_empty_is_refused() {
        let list: Vec<c_long> = (0..=MOST as c_long).collect();
        assert!(filter(&list).is_err());
        assert!(filter(&list[1..]).is_ok());
        assert!(filter(&[]).is_err());
        assert!(filter(&[-1]).is_err());
        assert!(filter(&[u32::MAX.into()]).is_err());
    }
}
