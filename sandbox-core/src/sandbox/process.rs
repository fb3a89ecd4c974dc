//! Descriptors that came up from boot, checked before they are used. No check
//! may wait: what is asked of a descriptor, the kernel answers by itself,
//! whoever serves the file behind it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use rustix::io::Errno;
use rustix::process::{Signal, kill_process_group, pidfd_send_signal};
use rustix::termios::tcgetpgrp;

use crate::control::message::{Done, Upward};
use crate::control::packet::Unchecked;
use crate::error::{Context, Error, FailureKind, Result};
use crate::types::HostPid;

/// What the kernel tells as the PID of a process that is gone.
const COLLECTED: i32 = -1;

/// The pseudo terminal multiplexer: devices.txt of the kernel.
const PTMX: (u32, u32) = (5, 2);

/// What came along with a message from boot: a process that was made, and its
/// terminal.
#[derive(Debug, Default)]
pub struct Along {
    /// The process.
    pub process: Option<Process>,
    /// The master side of its terminal.
    pub terminal: Option<OwnedFd>,
}

impl Along {
    /// Checks that what came is what the message says.
    ///
    /// # Errors
    /// boot has been taken over. What it sent stays open: see [`Unchecked`].
    pub(super) fn check(
        message: &Upward,
        descriptors: Unchecked,
        speaks_for: Option<HostPid>,
    ) -> Result<Along> {
        let announced = match message {
            Upward::Reply { outcome: Ok(Done::Process { terminal }), .. } => {
                1 + usize::from(*terminal)
            }
            _ => 0,
        };
        let sent = descriptors.as_slice();
        if sent.len() != announced {
            return Err(Error::internal(format!(
                "it sent {} descriptors with a message that takes {announced}",
                sent.len()
            )));
        }
        let pid = sent.first().map(|pidfd| check_pidfd(pidfd, speaks_for)).transpose()?;
        sent.get(1).map(check_terminal).transpose()?;
        let mut checked = descriptors.take().into_iter();
        let process = pid.zip(checked.next()).map(|(pid, pidfd)| Process { pid, pidfd });
        Ok(Self { process, terminal: checked.next() })
    }
}

/// A container's process, known by a pidfd that came from boot and was checked
/// to belong to a PID namespace below the shim's.
#[derive(Debug)]
pub struct Process {
    /// Its host PID.
    pub pid: HostPid,
    /// Readable once it has exited.
    pub pidfd: OwnedFd,
}

/// Checks that this is a pidfd of the process that its message speaks for, or
/// one of a process that has ended and was collected. That process is one of the
/// pod's, as the kernel vouches. A boot that was taken over could otherwise have
/// the shim signal the shim itself, whose pidfd it can get off the control
/// socket.
fn check_pidfd(pidfd: &OwnedFd, speaks_for: Option<HostPid>) -> Result<HostPid> {
    match (speaks_for, pid_of(pidfd)?) {
        (Some(HostPid(vouched)), Some(pid)) if pid == vouched || pid == COLLECTED => {
            Ok(HostPid(vouched))
        }
        _ => Err(Error::internal("it sent a descriptor that is not one of its processes")),
    }
}

/// Checks that this is the master side of a pseudo terminal, so that reading it
/// can do no more than read a terminal.
fn check_terminal(fd: &OwnedFd) -> Result<()> {
    // What is known of the file, without asking whoever serves its file system.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(fd, "", flags, StatxFlags::TYPE).context(|| "statx of the terminal")?;
    let kind = FileType::from_raw_mode(stat.stx_mode.into());
    let device = (stat.stx_rdev_major, stat.stx_rdev_minor);
    // A descriptor that is only a path (O_PATH) takes no ioctl.
    match kind == FileType::CharacterDevice && device == PTMX && is_master(fd) {
        true => Ok(()),
        false => Err(Error::internal("it sent a descriptor that is no terminal")),
    }
}

/// Only the master side of a pty answers TIOCGPTN.
fn is_master(fd: &OwnedFd) -> bool {
    crate::sys::process::terminal_number(fd).is_ok()
}

impl Process {
    /// Sends a signal: pidfd_send_signal(2).
    ///
    /// # Errors
    /// `NotFound` when it has exited; `Invalid` for a number that is no signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, named(signal)?) {
            Err(Errno::SRCH) => Err(Error::new(FailureKind::NotFound, "process already finished")),
            other => other.context(|| format!("send signal {signal} to process {}", self.pid.0)),
        }
    }
}

/// Sends a signal to the foreground process group of a terminal that
/// [`Along`] brought, as its ^C does: tcgetpgrp(3), kill(2). The kernel lets
/// only a process of the terminal's session, so of the container, name that
/// group.
///
/// # Errors
/// `NotFound` when nobody is in the foreground; `Invalid` for a number that is
/// no signal.
pub fn signal_foreground(terminal: impl AsFd, signal: i32) -> Result<()> {
    let signal = named(signal)?;
    let nobody = || Error::new(FailureKind::NotFound, "no process is in the foreground");
    let group = match tcgetpgrp(terminal) {
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => return Err(nobody()),
        other => other.context(|| "tcgetpgrp of the terminal")?,
    };
    match kill_process_group(group, signal) {
        Err(Errno::SRCH) => Err(nobody()),
        other => other.context(|| format!("send {signal:?} to the process group {group}")),
    }
}

fn named(signal: i32) -> Result<Signal> {
    Signal::from_named_raw(signal)
        .or_else(|| crate::sys::process::realtime_signal(signal))
        .ok_or_else(|| Error::invalid(format!("{signal} is no signal; use 1 to 64")))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A new terminal: its master, and its name.
    fn terminal() -> (OwnedFd, String) {
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        (master, name.into_string().unwrap())
    }

    #[test]
    fn a_signal_reaches_whoever_is_in_the_foreground() {
        use std::io::Read;
        use std::os::unix::process::ExitStatusExt;
        use std::process::{Command, Stdio};
        let (master, name) = terminal();
        let open = || Stdio::from(File::options().read(true).write(true).open(&name).unwrap());
        assert!(signal_foreground(&master, 15).is_err(), "nobody is there yet");
        // setsid(1) makes its standard input the controlling terminal.
        let script = ["--ctty", "sh", "-c", "echo up; exec sleep 1000"];
        let mut child =
            Command::new("setsid").args(script).stdin(open()).stdout(open()).spawn().unwrap();
        File::from(master.try_clone().unwrap()).read_exact(&mut [0; 2]).unwrap();
        assert!(signal_foreground(&master, 99).is_err(), "no signal");
        signal_foreground(&master, 15).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(15));
    }
}
