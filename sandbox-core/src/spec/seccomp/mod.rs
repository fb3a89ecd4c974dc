//! `linux.seccomp`: checked by the shim, compiled by the gofer, loaded by the newborn.
//!
//! Compiling takes milliseconds, so a program is kept in a file named by the
//! [`key`] of its profile and made only once. Only [`compile()`] makes libseccomp
//! compile; others ask it for the numbers of system calls.

mod compile;
mod table;
mod unknown;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag,
};
use sha2::{Digest, Sha256};

pub use self::compile::{compile, join};
use self::table::Meaning;
pub use self::table::{Supported, supported};
use super::baseline::Confined;
use crate::error::{Error, Result};
use crate::sys::process::SECCOMP_NEW_LISTENER;

/// A part of the [`key`], to be raised when the same profile or baseline shall give another
/// program than before: a node keeps compiled programs until it is started again.
const REVISION: &str = concat!("palisade seccomp 6 ", env!("CARGO_PKG_VERSION"), "\n");

/// `sizeof(struct sock_filter)`
const INSTRUCTION: usize = 8;

/// A program as seccomp(2) takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// An array of `struct sock_filter`, in the machine's byte order.
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_` bits, as of [`flags`].
    pub flags: u32,
}

/// Returns a name for the profile's program, joined with the baseline's if there is one: the
/// same profile and baseline have the same key, on any machine and at any time.
pub fn key(profile: &LinuxSeccomp, baseline: Option<&Confined>) -> Result<String> {
    let mut hash = Sha256::new_with_prefix(REVISION);
    let json = serde_json::to_vec(&(profile, baseline)).map_err(|error| {
        Error::internal(format!("linux.seccomp: cannot be written as JSON: {error}"))
    })?;
    hash.update(json);
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns the `SECCOMP_FILTER_FLAG_` bits to load the program with.
///
/// Without `flags` in the profile this is `SPEC_ALLOW`, as in runc
/// (`libcontainer/specconv`): the mitigation of speculative store bypass,
/// which old kernels tie to seccomp, costs more than it gives.
pub fn flags(profile: &LinuxSeccomp) -> u32 {
    let default = [Flag::SeccompFilterFlagSpecAllow];
    let flags = profile.flags().as_deref().unwrap_or(&default);
    let listener = notifies(profile);
    let bits = flags.iter().filter_map(|flag| table::flag(*flag, listener));
    bits.fold(if listener { SECCOMP_NEW_LISTENER } else { 0 }, |all, flag| all | flag)
}

/// Whether an agent decides about some system calls (`SCMP_ACT_NOTIFY`).
pub fn notifies(profile: &LinuxSeccomp) -> bool {
    let mut rules = profile.syscalls().iter().flatten();
    rules.any(|rule| rule.action() == Action::ScmpActNotify)
}

/// Refuses a profile that cannot be compiled and names the field, without libseccomp.
/// Does not check the names of system calls: the compiler skips unknown ones.
pub fn check(profile: &LinuxSeccomp) -> Result<()> {
    if profile.default_action() == Action::ScmpActNotify {
        return refuse(
            "defaultAction",
            "is SCMP_ACT_NOTIFY; expected rules that name the calls, since the listener is handed \
             over by some of the others",
        );
    }
    if notifies(profile) && profile.listener_path().is_none() {
        return refuse(
            "listenerPath",
            "is missing; expected an agent's socket for SCMP_ACT_NOTIFY",
        );
    }
    errno("defaultErrnoRet", profile.default_action(), profile.default_errno_ret())?;
    for (i, arch) in profile.architectures().iter().flatten().enumerate() {
        if table::architecture(*arch).is_none() {
            return refuse(
                &format!("architectures[{i}]"),
                &format!("{arch} cannot be filtered together with this machine's own"),
            );
        }
    }
    for (i, rule) in profile.syscalls().iter().flatten().enumerate() {
        let field = |name: &str| format!("syscalls[{i}].{name}");
        errno(&field("errnoRet"), rule.action(), rule.errno_ret())?;
        if rule.names().is_empty() {
            return refuse(&field("names"), "expected at least one system call");
        }
        // As under runc. Its listener is handed over by this call as well.
        let asks_agent = rule.action() == Action::ScmpActNotify;
        if asks_agent && rule.names().iter().any(|name| name == "write") {
            return refuse(&field("names"), "SCMP_ACT_NOTIFY is not possible for write");
        }
        for (k, arg) in rule.args().iter().flatten().enumerate() {
            if arg.index() > 5 {
                return refuse(
                    &field(&format!("args[{k}].index")),
                    "system calls have the arguments 0 to 5",
                );
            }
        }
    }
    Ok(())
}

fn errno(field: &str, action: Action, errno: Option<u32>) -> Result<()> {
    let most = match table::action(action) {
        Meaning::Errno { most, .. } => most,
        Meaning::Plain(_) if errno.is_some() => {
            return refuse(
                field,
                &format!("belongs to SCMP_ACT_ERRNO and SCMP_ACT_TRACE, not to {action}"),
            );
        }
        Meaning::Plain(_) => return Ok(()),
    };
    match errno {
        Some(errno) if errno > most => {
            refuse(field, &format!("is {errno}; expected at most {most}"))
        }
        _ => Ok(()),
    }
}

fn refuse<T>(field: &str, message: &str) -> Result<T> {
    Err(Error::invalid(format!("linux.seccomp.{field}: {message}")))
}
