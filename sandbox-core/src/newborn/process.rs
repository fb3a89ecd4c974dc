//! Applies a process's plan to this process, in an order in which each step still has the
//! privilege that it needs.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::personality::{self, Persona};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{chdir, ioctl_tiocsctty, setsid, umask};
use rustix::thread::{set_keep_capabilities, set_no_new_privs};

use super::{Channel, lookup};
use crate::container::filter::Filter;
use crate::container::paths::PROC;
use crate::error::{Context, Error, FailureKind, Result};
use crate::spec::plan::{CapabilitySets, ProcessPlan};
use crate::sys::process::{self as sys, Rlimit};
use crate::sys::seccomp_listener::SECCOMP_WAIT_KILLABLE;

/// The file mode creation mask of a process whose spec has none, as under runc.
const DEFAULT_UMASK: u32 = 0o022;

/// This process's files in /proc, written or opened while the sandbox's own proc is
/// visible. The container's proc cannot be trusted.
#[derive(Debug)]
pub(super) struct OwnProcFiles {
    label: Option<(File, String)>,
}

impl OwnProcFiles {
    /// Opens them, and closes this process's files to all others: it has a copy of boot's
    /// memory and descriptors, and containers may see it (CVE-2016-9962).
    pub(super) fn open(process: &ProcessPlan) -> Result<Self> {
        // The files of a process that is not dumpable belong to the host's root. Until this
        // process enters the containers' user namespace, none of them may trace it anyway:
        // that takes CAP_SYS_PTRACE in boot's (ptrace(2)).
        sys::set_dumpable(true).context(|| "prctl PR_SET_DUMPABLE")?;
        let opened = Self::open_all(process);
        sys::set_dumpable(false).context(|| "prctl PR_SET_DUMPABLE")?;
        opened
    }

    /// Returns those that are still open.
    pub(super) fn descriptors(&self) -> Option<BorrowedFd<'_>> {
        self.label.as_ref().map(|(file, _)| file.as_fd())
    }

    fn open_all(process: &ProcessPlan) -> Result<Self> {
        if let Some(score) = process.oom_score_adj {
            let path = format!("{PROC}/self/oom_score_adj");
            std::fs::write(&path, score.to_string()).context(|| {
                format!("process.oomScoreAdj: set {score} (below the sandbox's own takes CAP_SYS_RESOURCE)")
            })?;
        }
        let wanted = match (&process.apparmor_profile, &process.selinux_label) {
            (Some(profile), _) => Some(("apparmor/exec", format!("exec {profile}"))),
            (None, Some(label)) => Some(("exec", label.clone())),
            (None, None) => None,
        };
        let label = wanted.map(|(file, text)| {
            let path = format!("{PROC}/self/attr/{file}");
            let opened = OpenOptions::new().write(true).open(&path);
            opened.context(|| format!("open {path}")).map(|file| (file, text))
        });
        Ok(Self { label: label.transpose()? })
    }
}

/// A process to which the plan is applied, except for the last steps.
#[derive(Debug)]
pub(super) struct Prepared<'a> {
    program: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    /// The seccomp program that is still to be loaded.
    late: Option<Loading<'a>>,
    own_files: OwnProcFiles,
    channel: Channel<'a>,
}

impl<'a> Prepared<'a> {
    /// Applies the plan. The process is in the container's root already.
    pub(super) fn new(
        process: &ProcessPlan,
        limits: &[Rlimit],
        filter: &'a Filter,
        has_terminal: bool,
        own_files: OwnProcFiles,
        channel: Channel<'a>,
    ) -> Result<Self> {
        begin_session(has_terminal)?;
        set_scheduling(process)?;
        set_limits(process, limits)?;
        // As runc does. The file is the container's, and may be slow to read.
        let has_home = process.env.iter().any(|variable| variable.starts_with("HOME="));
        let home = (!has_home).then(|| lookup::home_directory(process));
        // Without no_new_privileges, loading a filter takes CAP_SYS_ADMIN, which the next
        // steps drop. With it, that of a profile is loaded last. The baseline's alone refuses
        // nothing that comes before.
        let filter = Loading { filter, capabilities: can_have(process) };
        let (early, late) = match process.no_new_privileges && filter.filter.of_profile {
            true => (None, Some(filter)),
            false => (Some(filter), None),
        };
        early.map_or(Ok(()), |filter| filter.load(channel))?;
        let entered = enter_working_directory(process)?;
        become_user(process)?;
        if entered.is_none() {
            enter_working_directory(process)?.ok_or_else(|| cwd_refused(process, Errno::ACCESS))?;
        }
        check_working_directory()?;
        if process.no_new_privileges {
            set_no_new_privs(true).context(|| "process.noNewPrivileges")?;
        }
        let env = environment(process, home)?;
        let program = lookup::program(process)?;
        let args =
            c_strings("process.args", process.args.iter().map(|arg| arg.clone().into_bytes()))?;
        Ok(Self { program, args, env, late, own_files, channel })
    }

    /// Takes the last steps, and calls execve. Returns only if it fails.
    pub(super) fn execute(self) -> Error {
        if let Some((mut file, text)) = self.own_files.label
            && let Err(e) = file.write_all(text.as_bytes())
        {
            return Error::internal(format!("set the security label {text:?}: {e}"));
        }
        let late = self.late.map(|filter| filter.load(self.channel));
        if let Some(Err(error)) = late {
            return error;
        }
        match sys::execute(&self.program, &self.args, &self.env) {
            Err(e) => lookup::refused(&self.program.to_string_lossy(), &e),
            Ok(never) => match never {},
        }
    }
}

/// Starts a new session, with the terminal as its controlling one, and resets signals to
/// what a new program expects.
fn begin_session(has_terminal: bool) -> Result<()> {
    sys::reset_signals().context(|| "reset signals")?;
    setsid().context(|| "setsid")?;
    if has_terminal {
        ioctl_tiocsctty(rustix::stdio::stdin()).context(|| "take the controlling terminal")?;
    }
    Ok(())
}

fn set_scheduling(process: &ProcessPlan) -> Result<()> {
    if let Some(scheduler) = &process.scheduler {
        if let Some(limit) = scheduler.limit() {
            use_whole_limit(limit.resource)?;
        }
        sys::set_scheduler(scheduler).context(|| "process.scheduler: sched_setattr")?;
    }
    if let Some(priority) = process.io_priority {
        sys::set_io_priority(priority).context(|| "process.ioPriority: ioprio_set")?;
    }
    if let Some(cpus) = &process.cpu_affinity.last {
        sys::set_cpu_affinity(cpus.iter().copied())
            .context(|| "process.execCPUAffinity.final: sched_setaffinity")?;
    }
    if let Some(policy) = &process.memory_policy {
        sys::set_memory_policy(policy).context(|| "linux.memoryPolicy: set_mempolicy")?;
    }
    if let Some(persona) = process.personality {
        personality::set(Persona::from_bits_retain(persona as i32))
            .context(|| "linux.personality")?;
    }
    umask(Mode::from_raw_mode(process.umask.unwrap_or(DEFAULT_UMASK) & 0o777));
    Ok(())
}

/// Sets the CPUs of a process that has not joined its container's cgroup yet. The kernel
/// refuses those that are not of the sandbox's cpuset. It would take them away as well when
/// the process joined its own.
pub(super) fn set_initial_affinity(process: &ProcessPlan) -> Result<()> {
    let Some(cpus) = &process.cpu_affinity.initial else { return Ok(()) };
    match sys::set_cpu_affinity(cpus.iter().copied()) {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        set => set.context(|| "process.execCPUAffinity.initial: sched_setaffinity"),
    }
}

/// Raises the soft limit to the hard one, which the shim has raised as far as the spec asks.
fn use_whole_limit(resource: u32) -> Result<()> {
    let own = sys::rlimit_of(0, resource).context(|| "prlimit")?;
    sys::set_rlimit(Rlimit { soft: own.hard, ..own }).context(|| format!("raise {}", own.name()))
}

/// Sets the limits of the spec, and each other one to what boot started with: the shim may
/// have raised boot's since, for a process whose spec has a higher one.
pub(super) fn set_limits(process: &ProcessPlan, of_boot: &[Rlimit]) -> Result<()> {
    for inherited in of_boot {
        let given = process.rlimits.iter().find(|limit| limit.resource == inherited.resource);
        let limit = given.unwrap_or(inherited);
        sys::set_rlimit(*limit).context(|| {
            let (name, soft, hard) = (limit.name(), limit.soft, limit.hard);
            format!("process.rlimits: {name}: set {soft}, at most {hard}")
        })?;
    }
    Ok(())
}

/// Returns the capabilities that a process, or what it executes, can have.
fn can_have(process: &ProcessPlan) -> u64 {
    let sets = &process.capabilities;
    sets.permitted | if process.no_new_privileges { 0 } else { sets.bounding }
}

/// A seccomp program for a process that can have these capabilities.
#[derive(Clone, Copy, Debug)]
struct Loading<'a> {
    filter: &'a Filter,
    capabilities: u64,
}

impl Loading<'_> {
    fn load(self, channel: Channel<'_>) -> Result<()> {
        let Filter { program, flags, of_profile, .. } = self.filter;
        if let Some(watched) = self.filter.watched_with(self.capabilities) {
            let flags =
                flags & !sys::SECCOMP_TSYNC | sys::SECCOMP_NEW_LISTENER | SECCOMP_WAIT_KILLABLE;
            match sys::load_seccomp(&watched.program, flags) {
                Ok(listener) => return listener.map_or(Ok(()), |own| channel.give_listener(own)),
                // A listener of who started containerd, or Linux before 5.19.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EINVAL)) => {
                    log::warn!("boot is not asked about a process's system calls: {e}");
                }
                Err(e) => return Err(e).context(|| "load a seccomp filter with a listener"),
            }
        }
        if program.is_empty() {
            return Ok(());
        }
        let what = if *of_profile {
            "linux.seccomp: load the filter"
        } else {
            "load the baseline's filter"
        };
        let listener = sys::load_seccomp(program, *flags).context(|| what)?;
        listener.map_or(Ok(()), |listener| channel.hand_listener_over(listener.as_fd()))
    }
}

/// Sets user, groups and capabilities. Each step keeps what the next one needs: the
/// bounding set takes CAP_SETPCAP, the IDs CAP_SETUID and CAP_SETGID, and ambient needs
/// permitted and inheritable first (capabilities(7)).
fn become_user(process: &ProcessPlan) -> Result<()> {
    let wanted = &process.capabilities;
    drop_bounding(wanted.bounding)?;
    set_keep_capabilities(true).context(|| "prctl PR_SET_KEEPCAPS")?;
    let groups: Vec<Gid> = process.additional_gids.iter().map(|g| Gid::from_raw(*g)).collect();
    setgroups(&groups).context(|| format!("process.user.additionalGids: setgroups {groups:?}"))?;
    let gid = Gid::from_raw(process.gid);
    setresgid(gid, gid, gid).context(|| format!("process.user.gid: setresgid {gid}"))?;
    let uid = Uid::from_raw(process.uid);
    setresuid(uid, uid, uid).context(|| format!("process.user.uid: setresuid {uid}"))?;
    set_keep_capabilities(false).context(|| "prctl PR_SET_KEEPCAPS")?;
    set_capabilities(wanted)
}

fn drop_bounding(keep: u64) -> Result<()> {
    for capability in caps::all().into_iter().filter(|c| keep & c.bitmask() == 0) {
        if let Err(error) = caps::drop(None, CapSet::Bounding, capability)
            // A capability that this kernel does not know is in no set.
            && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false)
        {
            return Err(Error::internal(format!(
                "process.capabilities.bounding: drop {capability}: {error}"
            )));
        }
    }
    Ok(())
}

fn set_capabilities(wanted: &CapabilitySets) -> Result<()> {
    let sets = [
        // Effective may never exceed permitted.
        (CapSet::Effective, wanted.effective & wanted.permitted, "effective"),
        (CapSet::Permitted, wanted.permitted, "permitted"),
        (CapSet::Inheritable, wanted.inheritable, "inheritable"),
    ];
    // After the change of user, effective is empty. Raise it within permitted before
    // anything is removed.
    for (set, mask, name) in sets {
        caps::set(None, set, &members(mask)).map_err(|e| {
            Error::internal(format!("process.capabilities.{name}: set {mask:#x}: {e}"))
        })?;
    }
    for capability in members(wanted.ambient) {
        if let Err(e) = caps::raise(None, CapSet::Ambient, capability) {
            log::debug!("process.capabilities.ambient: {capability} is not raised: {e}");
        }
    }
    Ok(())
}

fn members(mask: u64) -> CapsHashSet {
    caps::all().into_iter().filter(|c: &Capability| mask & c.bitmask() != 0).collect()
}

/// Enters the working directory. `None` if that is not permitted. As in runc, root tries first
/// and then the user: each may be allowed where the other is not.
fn enter_working_directory(process: &ProcessPlan) -> Result<Option<()>> {
    match chdir(&process.cwd) {
        Ok(()) => Ok(Some(())),
        Err(Errno::ACCESS | Errno::PERM) => Ok(None),
        Err(e) => Err(cwd_refused(process, e)),
    }
}

fn cwd_refused(process: &ProcessPlan, error: Errno) -> Error {
    let (cwd, error) = (process.cwd.display(), io::Error::from(error));
    Error::new(FailureKind::Invalid, format!("process.cwd: chdir to {cwd}: {error}"))
}

/// Refuses a directory outside of the root, from which the container would escape
/// (CVE-2024-21626).
fn check_working_directory() -> Result<()> {
    let here = rustix::process::getcwd(Vec::new()).context(|| "process.cwd: getcwd")?;
    match here.as_bytes().starts_with(b"/") {
        true => Ok(()),
        false => Err(Error::invalid("process.cwd lies outside of the container's root")),
    }
}

/// Returns the environment, with HOME if that was looked up.
fn environment(process: &ProcessPlan, home: Option<Vec<u8>>) -> Result<Vec<CString>> {
    let home = home.map(|home| [b"HOME=", home.as_slice()].concat());
    c_strings("process.env", process.env.iter().map(|e| e.clone().into_bytes()).chain(home))
}

fn c_strings(field: &str, strings: impl Iterator<Item = Vec<u8>>) -> Result<Vec<CString>> {
    let convert = |s| {
        CString::new(s)
            .map_err(|_| Error::invalid(format!("{field} holds a string with a NUL byte")))
    };
    strings.map(convert).collect()
}
