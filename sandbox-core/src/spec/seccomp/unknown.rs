//! System calls that are newer than a profile.
//!
//! A C library tries a new system call and falls back to an old one on ENOSYS.
//! A profile that forbids by default what it does not list answers EPERM (or
//! kills), and the fallback never happens: programs that were built on a newer system
//! than the profile break. So a system call with a higher number than all in the
//! profile, which the profile's author cannot have known, returns ENOSYS before the
//! profile is evaluated. runc does the same (`libcontainer/seccomp/patchbpf`).

use libseccomp::ScmpSyscall;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction as Action};

use super::INSTRUCTION;
use super::table::architecture;

const ENOSYS: u32 = 38;

/// The bit in a system call's number that distinguishes x32 from x86-64
/// (`__X32_SYSCALL_BIT`). The two have the same audit number.
const X32_BIT: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// Operations of classic BPF (`linux/bpf_common.h`).
const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const RETURN: u16 = 0x06;

/// `SECCOMP_RET_ERRNO`
const RETURN_ERRNO: u32 = 0x0005_0000;

/// The numbers above `after` up to `last`, which the profile does not have.
struct Range {
    after: u32,
    last: u32,
}

/// Returns the instructions that return ENOSYS for these; for all other system calls
/// they run to their end. They are only loads, comparisons and returns, which the kernel
/// evaluates beforehand for calls that are always allowed (`seccomp_cache_prepare`).
pub(super) fn answer(profile: &LinuxSeccomp) -> Vec<u8> {
    let lenient = matches!(
        profile.default_action(),
        // A tracer that allows unknown system calls must see them.
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace
    );
    let mut program = Vec::new();
    if lenient || profile.default_errno_ret() == Some(ENOSYS) {
        return program;
    }
    let listed = profile.architectures().as_deref().unwrap_or_default();
    for (audit, ranges) in ranges(profile, listed) {
        // One instruction loads the number; three follow for each range.
        let skip = 1 + 3 * ranges.len() as u8;
        emit(&mut program, LOAD, 0, 0, ARCHITECTURE);
        emit(&mut program, IF_EQUAL, 0, skip, audit);
        emit(&mut program, LOAD, 0, 0, NUMBER);
        for range in ranges {
            emit(&mut program, IF_GREATER, 2, 0, range.last);
            emit(&mut program, IF_GREATER, 0, 1, range.after);
            emit(&mut program, RETURN, 0, 0, RETURN_ERRNO | ENOSYS);
        }
    }
    program
}

/// Returns the ranges by the audit number of the architecture (`linux/audit.h`), which is
/// libseccomp's number for all but x32. The machine's own is always part of a filter.
fn ranges(profile: &LinuxSeccomp, listed: &[Arch]) -> Vec<(u32, Vec<Range>)> {
    let mut all = vec![NATIVE];
    for &arch in listed {
        if arch != Arch::ScmpArchNative && !all.contains(&arch) {
            all.push(arch);
        }
    }
    let mut ranges: Vec<(u32, Vec<Range>)> = Vec::new();
    for arch in all {
        let Some(after) = highest(profile, arch) else {
            continue;
        };
        let x86_64 = Arch::ScmpArchX86_64 as u32;
        let (audit, last) = match arch {
            Arch::ScmpArchX32 => (x86_64, u32::MAX),
            Arch::ScmpArchX86_64 => (x86_64, X32_BIT - 1),
            other => (other as u32, u32::MAX),
        };
        let range = Range { after, last };
        match ranges.iter_mut().find(|(known, _)| *known == audit) {
            Some((_, ranges)) => ranges.push(range),
            None => ranges.push((audit, vec![range])),
        }
    }
    ranges
}

/// Returns the highest number of a system call that the profile names.
fn highest(profile: &LinuxSeccomp, arch: Arch) -> Option<u32> {
    let known = architecture(arch)?;
    let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
    names
        .filter_map(|name| ScmpSyscall::from_name_by_arch(name, known).ok())
        // libseccomp gives negative numbers to calls that an architecture does not have.
        .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok())
        .max()
}

fn emit(program: &mut Vec<u8>, operation: u16, if_true: u8, if_false: u8, operand: u32) {
    let mut instruction = [0; INSTRUCTION];
    instruction[0..2].copy_from_slice(&operation.to_ne_bytes());
    instruction[2] = if_true;
    instruction[3] = if_false;
    instruction[4..8].copy_from_slice(&operand.to_ne_bytes());
    program.extend(instruction);
}

#[cfg(target_arch = "x86_64")]
const NATIVE: Arch = Arch::ScmpArchX86_64;
#[cfg(target_arch = "aarch64")]
const NATIVE: Arch = Arch::ScmpArchAarch64;
#[cfg(target_arch = "riscv64")]
const NATIVE: Arch = Arch::ScmpArchRiscv64;
#[cfg(target_arch = "s390x")]
const NATIVE: Arch = Arch::ScmpArchS390x;
#[cfg(all(target_arch = "powerpc64", target_endian = "little"))]
const NATIVE: Arch = Arch::ScmpArchPpc64le;
