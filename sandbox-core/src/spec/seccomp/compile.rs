//! Compiles a profile to a program, with libseccomp.

use std::fs::File;
use std::io::{Read, Seek};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSyscall,
};
use rustix::fs::{MemfdFlags, memfd_create};

use super::table::{self, Meaning};
use super::{Compiled, INSTRUCTION, check, flags, unknown};
use crate::error::{Context, Error, Result};
use crate::spec::baseline::{self, Confined};

/// `BPF_MAXINSNS`: the kernel loads no longer program.
const MAX_INSTRUCTIONS: usize = 4096;

/// The errno of a rule for which the profile names none (runc, `seccomp_linux.go`).
const EPERM: u32 = 1;

/// Compiles a profile. Takes some milliseconds and about 1 MiB of memory.
pub fn compile(profile: &LinuxSeccomp) -> Result<Compiled> {
    check(profile)?;
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut filter = ScmpFilterContext::new(default).map_err(|e| failed("seccomp_init", e))?;
    // The check has refused those that libseccomp cannot take.
    let architectures = profile.architectures().iter().flatten();
    for arch in architectures.filter_map(|arch| table::architecture(*arch)) {
        filter.add_arch(arch).map_err(|e| failed(&format!("seccomp_arch_add({arch:?})"), e))?;
    }
    // A binary tree over the numbers instead of one comparison after another.
    // Not fatal: only libseccomp before 2.5 has none.
    if let Err(error) = filter.set_ctl_optimize(2) {
        log::debug!("seccomp: no binary tree: {error}");
    }
    for rule in profile.syscalls().iter().flatten() {
        let act = action(rule.action(), rule.errno_ret());
        // libseccomp calls a rule that changes nothing an error.
        if act != default {
            add(&mut filter, rule, act)?;
        }
    }
    let mut program = unknown::answer(profile);
    program.extend(export(&filter)?);
    check_length(&program, "")?;
    Ok(Compiled { program, flags: flags(profile) })
}

/// Joins the baseline's program to a compiled profile's.
pub fn join(compiled: Compiled, baseline: &Confined) -> Result<Compiled> {
    let Some(program) = baseline::joined(baseline, &compiled.program) else {
        return Ok(compiled);
    };
    check_length(&program, " with those of the baseline (option baseline)")?;
    Ok(Compiled { program, ..compiled })
}

fn check_length(program: &[u8], which: &str) -> Result<()> {
    let instructions = program.len() / INSTRUCTION;
    if instructions > MAX_INSTRUCTIONS {
        return Err(Error::invalid(format!(
            "linux.seccomp: makes {instructions} instructions{which}; the kernel takes at most \
             {MAX_INSTRUCTIONS}"
        )));
    }
    Ok(())
}

fn add(filter: &mut ScmpFilterContext, rule: &LinuxSyscall, action: ScmpAction) -> Result<()> {
    let args: Vec<_> = rule.args().iter().flatten().map(compare).collect();
    for name in rule.names() {
        let Ok(number) = ScmpSyscall::from_name(name) else {
            log::debug!("seccomp: skipping the unknown system call {name}");
            continue;
        };
        let failed = |e| failed(&format!("seccomp_rule_add({name})"), e);
        if args.is_empty() {
            filter.add_rule(action, number).map_err(failed)?;
        } else if same_index_twice(rule) {
            // Conditions of one rule must all hold, and libseccomp takes one
            // for each argument. Profiles from before it was so mean "or".
            for arg in &args {
                filter.add_rule_conditional(action, number, &[*arg]).map_err(failed)?;
            }
        } else {
            filter.add_rule_conditional(action, number, &args).map_err(failed)?;
        }
    }
    Ok(())
}

fn same_index_twice(rule: &LinuxSyscall) -> bool {
    let mut seen = [false; 6];
    let mut args = rule.args().iter().flatten();
    args.any(|arg| seen.get_mut(arg.index()).is_some_and(|seen| std::mem::replace(seen, true)))
}

fn compare(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let (operator, datum) =
        table::comparison(arg.op(), arg.value(), arg.value_two().unwrap_or_default());
    // The index was checked to be at most 5.
    ScmpArgCompare::new(arg.index() as u32, operator, datum)
}

fn action(action: Action, errno: Option<u32>) -> ScmpAction {
    match table::action(action) {
        Meaning::Plain(action) => action,
        // Was checked to be in range.
        Meaning::Errno { make, .. } => make(errno.unwrap_or(EPERM)),
    }
}

/// Returns the program's bytes. seccomp_export_bpf(3) writes to a descriptor:
/// an anonymous file.
fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>> {
    let file = memfd_create("seccomp", MemfdFlags::CLOEXEC).context(|| "memfd_create seccomp")?;
    let mut file = File::from(file);
    filter.export_bpf(&file).map_err(|e| failed("seccomp_export_bpf", e))?;
    let mut program = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut program))
        .context(|| "read the exported seccomp program")?;
    Ok(program)
}

fn failed(what: &str, error: SeccompError) -> Error {
    Error::internal(format!("linux.seccomp: {what}: {error}"))
}
