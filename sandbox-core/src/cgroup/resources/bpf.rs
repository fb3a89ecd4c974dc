//! The device controller of version 2: a program of type
//! `BPF_PROG_TYPE_CGROUP_DEVICE` (bpf(2); cgroup-v2.rst, "Device controller").
//!
//! Attached with `BPF_F_ALLOW_MULTI`, so that the programs of a parent and
//! those of systemd must all allow an access.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::OFlags;

use super::device_policy::{Exception, Policy};
use crate::cgroup::file;
use crate::error::{Context, Result};
use crate::sys::bpf as sys;

/// Attaches the policy's program, then detaches those of an earlier policy. In
/// this order no device is accessible in between.
pub(super) fn attach(dir: &Path, policy: &Policy) -> Result<()> {
    let what = |step: &str| format!("linux.resources.devices: {step} for {}", dir.display());
    let cgroup = file::open(dir, OFlags::RDONLY | OFlags::DIRECTORY).context(|| what("open"))?;
    let before = sys::device_programs(cgroup.as_fd()).context(|| what("bpf BPF_PROG_QUERY"))?;
    if policy.allow && policy.exceptions.is_empty() && before.is_empty() {
        return Ok(());
    }
    let program =
        sys::load_device_program(&compile(policy)).context(|| what("bpf BPF_PROG_LOAD"))?;
    sys::attach_device_program(cgroup.as_fd(), program.as_fd())
        .context(|| what("bpf BPF_PROG_ATTACH"))?;
    for id in before {
        sys::detach_device_program(cgroup.as_fd(), id).context(|| what("bpf BPF_PROG_DETACH"))?;
    }
    Ok(())
}

/// One instruction of `struct bpf_insn`.
fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    let [lo, hi] = offset.to_le_bytes();
    let [a, b, c, d] = immediate.to_le_bytes();
    u64::from_le_bytes([code, dst | src << 4, lo, hi, a, b, c, d])
}

// Opcodes of bpf_common.h and bpf.h, named as in instruction-set.rst.
const LDX_W: u8 = 0x61;
const MOV_X: u8 = 0xbf;
const MOV_K: u8 = 0xb7;
const AND_K: u8 = 0x57;
const RSH_K: u8 = 0x77;
const JNE_K: u8 = 0x55;
const JEQ_K: u8 = 0x15;
const JNE_X: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// Compiles a policy. `struct bpf_cgroup_dev_ctx` holds access and type in one
/// word, then the numbers: r2 is the type, r3 the access, r4 and r5 the
/// numbers. Each exception is a block that jumps over its verdict if it does
/// not match.
fn compile(policy: &Policy) -> Vec<u64> {
    let verdict = |allow: bool| [insn(MOV_K, 0, 0, 0, allow.into()), insn(EXIT, 0, 0, 0, 0)];
    let mut program = vec![
        insn(LDX_W, 2, 1, 0, 0),
        insn(MOV_X, 3, 2, 0, 0),
        insn(AND_K, 2, 0, 0, 0xffff),
        insn(RSH_K, 3, 0, 0, 16),
        insn(LDX_W, 4, 1, 4, 0),
        insn(LDX_W, 5, 1, 8, 0),
    ];
    for exception in &policy.exceptions {
        block(&mut program, exception, policy.allow, &verdict(!policy.allow));
    }
    program.extend(verdict(policy.allow));
    program
}

fn block(program: &mut Vec<u64>, exception: &Exception, allow: bool, verdict: &[u64; 2]) {
    // The tests as (code, dst, src, immediate), each a jump over the verdict.
    // The two that compute the common access bits do not jump.
    let kind = if exception.block { 1 } else { 2 };
    let mut tests = vec![
        (JNE_K, 2, 0, kind),
        (MOV_X, 1, 3, 0),
        (AND_K, 1, 0, exception.access.into()),
        // To be allowed, all access that is requested must be allowed. One
        // denied bit is enough to deny it.
        if allow { (JEQ_K, 1, 0, 0) } else { (JNE_X, 1, 3, 0) },
    ];
    for (register, number) in [(4, exception.major), (5, exception.minor)] {
        if let Some(number) = number {
            tests.push((JNE_K, register, 0, number.cast_signed()));
        }
    }
    let end = tests.len() + verdict.len();
    for (at, (code, dst, src, immediate)) in tests.into_iter().enumerate() {
        let jump = matches!(code, JNE_K | JEQ_K | JNE_X);
        // At most eight instructions: the difference always fits.
        let offset = if jump { (end - at - 1) as i16 } else { 0 };
        program.push(insn(code, dst, src, offset, immediate));
    }
    program.extend(verdict);
}
