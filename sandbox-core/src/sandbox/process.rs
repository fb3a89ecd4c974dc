//! Descriptors that came up from boot, checked before they are used.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::{HostPid, Sandbox};
use crate::sys::gofer::pid_namespace_of;
use crate::sys::namespace::parent_namespace;
use crate::control::message::FailureKind;
use crate::error::{Context, Error, Result};

/// A container's process, known by a pidfd that came from boot and was checked
/// to belong to a PID namespace below the shim's.
#[derive(Debug)]
pub struct Process {
    /// Its host PID.
    pub pid: HostPid,
    /// Readable once it has exited.
    pub pidfd: OwnedFd,
}

impl Process {
    /// Checks a descriptor that boot sent: a pidfd of a process in boot's PID
    /// namespace or one below. A boot that was taken over could otherwise have
    /// the shim signal the shim itself, whose pidfd it can get off the control
    /// socket, or a process of another pod, whose pidfd it can get off any
    /// socket that both can reach (unix(7), `SO_PEERPIDFD`).
    ///
    /// A process that has exited and was collected meanwhile has no number any
    /// more and no namespace: its `pid` is 0, and no signal reaches it.
    pub fn from_boot(sandbox: &Sandbox, pidfd: OwnedFd) -> Result<Process> {
        let foreign = || {
            Error::internal(
                "the sandbox process sent a descriptor that is not one of its processes",
            )
        };
        let pid = number(&pidfd)?.ok_or_else(foreign)?;
        if pid.0 > 0 && !is_below(sandbox.pid_namespace, pid, &pidfd)? {
            return Err(foreign());
        }
        Ok(Self { pid, pidfd })
    }

    /// Sends a signal: pidfd_send_signal(2).
    ///
    /// # Errors
    /// `NotFound` when it has exited; `Invalid` for a number that is no signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let named = Signal::from_named_raw(signal)
            .or_else(|| crate::sys::process::realtime_signal(signal))
            .ok_or_else(|| Error::invalid(format!("{signal} is no signal; use 1 to 64")))?;
        match pidfd_send_signal(&self.pidfd, named) {
            Err(Errno::SRCH) => Err(Error::new(FailureKind::NotFound, "process already finished")),
            other => other.context(|| format!("send signal {signal} to process {}", self.pid.0)),
        }
    }
}

/// A namespace as the kernel tells them apart: device and inode of its file
/// (namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamespaceId(u64, u64);

impl NamespaceId {
    pub(super) fn of(namespace: &OwnedFd) -> Result<Self> {
        let stat = fstat(namespace).context(|| "fstat of a namespace")?;
        Ok(Self(stat.st_dev, stat.st_ino))
    }
}

/// The number of a pidfd's process, as proc_pid_fdinfo(5) tells it: 0 when it
/// was collected, `None` when this is no pidfd.
fn number(pidfd: &OwnedFd) -> Result<Option<HostPid>> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(&path).context(|| format!("read {path}"))?;
    let field = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    let pid = field.and_then(|text| text.trim().parse::<i32>().ok());
    // Zero is a process of a PID namespace that this one does not see.
    Ok(pid.filter(|pid| *pid != 0).map(|pid| HostPid(pid.max(0))))
}

/// Whether a process is in this PID namespace or in one below it. One that was
/// collected meanwhile is as good as below: no signal reaches it.
fn is_below(ancestor: NamespaceId, pid: HostPid, pidfd: &OwnedFd) -> Result<bool> {
    let Some(mut namespace) = namespace_of(pid, pidfd)? else {
        return Ok(true);
    };
    loop {
        if NamespaceId::of(&namespace)? == ancestor {
            return Ok(true);
        }
        match parent_namespace(&namespace) {
            Ok(parent) => namespace = parent,
            // The namespace of the shim has none that the shim may see.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => return Ok(false),
            Err(e) => return Err(e).context(|| "parent of a PID namespace"),
        }
    }
}

/// The PID namespace of a process; `None` when it was collected.
fn namespace_of(pid: HostPid, pidfd: &OwnedFd) -> Result<Option<OwnedFd>> {
    if let Ok(namespace) = pid_namespace_of(pidfd) {
        return Ok(Some(namespace));
    }
    // Before Linux 6.11, by a number that may be another process's by now.
    let opened = File::open(format!("/proc/{}/ns/pid", pid.0));
    if number(pidfd)? != Some(pid) {
        return Ok(None);
    }
    opened.map(|file| Some(file.into())).context(|| format!("open /proc/{}/ns/pid", pid.0))
}

/// Checks that a descriptor from boot is the master side of a pseudo terminal,
/// so that reading it can do no more than read a terminal.
pub fn checked_terminal(fd: OwnedFd) -> Result<OwnedFd> {
    let stat = rustix::fs::fstat(&fd).context(|| "fstat of the terminal")?;
    let is_character_device = stat.st_mode & libc::S_IFMT == libc::S_IFCHR;
    // Only the master side of a pty answers TIOCGPTN.
    if !is_character_device || crate::sys::process::terminal_number(&fd).is_err() {
        return Err(Error::internal("the sandbox process sent a descriptor that is no terminal"));
    }
    Ok(fd)
}
