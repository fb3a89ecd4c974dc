//! Descriptors that came up from boot, checked before they are used.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::HostPid;
use crate::control::message::FailureKind;
use crate::error::{Context, Error, Result};

/// What the kernel tells as the PID of a process that is gone.
const COLLECTED: i32 = -1;

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
    /// Checks what boot sent: a pidfd of the process that its message speaks
    /// for, or one of a process that has ended and was collected. That process
    /// is one of the pod's, as the kernel vouches. A boot that was taken over
    /// could otherwise have the shim signal the shim itself, whose pidfd it can
    /// get off the control socket. proc_pid_fdinfo(5).
    pub fn from_boot(pidfd: OwnedFd, speaks_for: Option<HostPid>) -> Result<Process> {
        let pid = pid_of(&pidfd)?;
        match (speaks_for, pid) {
            (Some(HostPid(vouched)), Some(pid)) if pid == vouched || pid == COLLECTED => {
                Ok(Self { pid: HostPid(vouched), pidfd })
            }
            _ => Err(Error::internal(
                "the sandbox process sent a descriptor that is not one of its processes",
            )),
        }
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

/// What /proc says of a pidfd: a PID, or -1 once its process was collected;
/// `None` when it is no pidfd. proc_pid_fdinfo(5).
fn pid_of(pidfd: &OwnedFd) -> Result<Option<i32>> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let file = File::open(&path).context(|| format!("open {path}"))?;
    // It is shorter than this, and /proc tells it all at once.
    let mut text = [0; 1024];
    let length = rustix::io::read(&file, &mut text).context(|| format!("read {path}"))?;
    let text = String::from_utf8_lossy(&text[..length]);
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    Ok(pid.and_then(|pid| pid.trim().parse().ok()))
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
