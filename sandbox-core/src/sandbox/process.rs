//! Descriptors that boot sent, checked before they are used. No check may
//! block: the kernel answers each by itself, whichever program serves the file
//! system behind the descriptor.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use rustix::io::Errno;

use super::HeldMounts;
use super::ending::is_ending;
use crate::control::message::{Done, Upward};
use crate::control::packet;
use crate::error::{Context, Error, FailureKind, Result};
use crate::sys::namespace::kind as namespace_kind;
use crate::sys::pidfd::{LAST_SIGNAL, send_signal};
use crate::types::HostPid;

/// The PID in /proc of a process that is gone.
const COLLECTED: i32 = -1;

/// The pseudo terminal multiplexer: devices.txt of the kernel.
const PTMX: (u32, u32) = (5, 2);

/// The descriptors that came with a message from boot: a process that was made,
/// and its terminal or its seccomp listener.
#[derive(Debug, Default)]
pub struct ReceivedFds {
    /// The process.
    pub process: Option<Process>,
    /// The master side of its terminal.
    pub terminal: Option<OwnedFd>,
    /// The listener of its seccomp program.
    pub listener: Option<OwnedFd>,
    /// The mount namespace that it has left, if there is one.
    pub mounts: HeldMounts,
}

/// A message of boot, whose descriptors are not checked yet.
#[derive(Debug)]
pub struct Unchecked {
    pub(super) message: Upward,
    pub(super) fds: packet::Unchecked,
    /// The process that boot named.
    pub(super) process: Option<HostPid>,
    /// Whether there was room for all descriptors.
    pub(super) is_whole: bool,
}

/// The result of [`Unchecked::check`].
#[derive(Debug)]
pub enum Checked {
    /// All is as the message announces.
    Message(Upward, ReceivedFds),
    /// This process has no room for the descriptors, or for their check, which may be tried again
    /// once there is.
    NoRoom(Unchecked),
}

impl Unchecked {
    /// Takes a message with all its descriptors. `process` is the one that boot named.
    pub fn new(message: Upward, fds: packet::Unchecked, process: Option<HostPid>) -> Self {
        Self { message, fds, process, is_whole: true }
    }

    /// Checks that the descriptors are those that the message announces.
    ///
    /// # Errors
    /// boot has been taken over. The descriptors stay open: see [`packet::Unchecked`].
    pub fn check(self) -> Result<Checked> {
        let announced = Announced::by(&self.message);
        let sent = self.fds.as_slice().len();
        if self.is_whole && sent != announced.count() {
            return Err(Error::internal(format!(
                "it sent {sent} descriptors with a message that takes {}",
                announced.count()
            )));
        }
        if !self.is_whole {
            return Ok(Checked::NoRoom(self));
        }
        match announced.check(self.fds.as_slice(), self.process) {
            Err(error) if error.kind == FailureKind::NoDescriptors => Ok(Checked::NoRoom(self)),
            Err(error) => Err(error),
            Ok(pid) => Ok(Checked::Message(self.message, announced.take(pid, self.fds))),
        }
    }

    /// Gives the descriptors up, and returns the message. Those that cannot be checked for want
    /// of room stay open.
    ///
    /// # Errors
    /// As [`Unchecked::check`].
    pub fn give_up(self) -> Result<Upward> {
        let announced = Announced::by(&self.message);
        match announced.check(self.fds.as_slice(), self.process) {
            Ok(pid) => drop(announced.take(pid, self.fds)),
            Err(error) if error.kind == FailureKind::NoDescriptors => {}
            Err(error) => return Err(error),
        }
        Ok(self.message)
    }
}

/// The descriptors that a message announces, in the order in which they travel.
#[derive(Clone, Copy)]
struct Announced {
    process: bool,
    terminal: bool,
    mounts: bool,
    listener: bool,
}

impl Announced {
    fn by(message: &Upward) -> Self {
        let (process, terminal, mounts, listener) = match message {
            Upward::Reply { outcome: Ok(Done::Process { terminal, mounts }), .. } => {
                (true, *terminal, *mounts, false)
            }
            Upward::Listener { .. } => (true, false, false, true),
            _ => (false, false, false, false),
        };
        Self { process, terminal, mounts, listener }
    }

    fn count(self) -> usize {
        [self.process, self.terminal, self.mounts, self.listener].map(usize::from).iter().sum()
    }

    /// Checks them, or the first of them. Returns the PID of the process.
    fn check(self, sent: &[OwnedFd], speaks_for: Option<HostPid>) -> Result<Option<HostPid>> {
        let mut sent = sent.iter();
        let mut next_if = |is_there: bool| if is_there { sent.next() } else { None };
        let pid = next_if(self.process).map(|pidfd| check_pidfd(pidfd, speaks_for)).transpose()?;
        next_if(self.terminal).map_or(Ok(()), check_terminal)?;
        next_if(self.mounts).map_or(Ok(()), check_mounts)?;
        next_if(self.listener).map_or(Ok(()), check_listener)?;
        match sent.next() {
            None => Ok(pid),
            Some(_) => Err(Error::internal("it sent more descriptors than the message takes")),
        }
    }

    /// Takes those that were checked.
    fn take(self, pid: Option<HostPid>, checked: packet::Unchecked) -> ReceivedFds {
        let mut checked = checked.take().into_iter();
        let mut next_if = |is_there: bool| if is_there { checked.next() } else { None };
        let process = pid.zip(next_if(self.process)).map(|(pid, pidfd)| Process { pid, pidfd });
        let (terminal, mounts) = (next_if(self.terminal), next_if(self.mounts));
        let listener = next_if(self.listener);
        let mounts = mounts.map(HeldMounts::left).unwrap_or_default();
        ReceivedFds { process, terminal, listener, mounts }
    }
}

/// A container's process, known by a pidfd that boot sent. The shim has checked
/// that it belongs to a PID namespace below the shim's own.
#[derive(Debug)]
pub struct Process {
    /// The host PID.
    pub pid: HostPid,
    /// The pidfd, readable once the process has exited.
    pub pidfd: OwnedFd,
}

/// Checks that this is a pidfd of the process that the message's sender named,
/// or of a process that has ended and was collected. The kernel vouches that
/// the named process is one of the pod's. Without this check, a boot that was
/// taken over could make the shim signal the shim itself, whose pidfd it can
/// get from the control socket.
fn check_pidfd(pidfd: &OwnedFd, speaks_for: Option<HostPid>) -> Result<HostPid> {
    match (speaks_for, pid_of(pidfd)?) {
        (Some(HostPid(vouched)), Some(pid)) if pid == vouched || pid == COLLECTED => {
            Ok(HostPid(vouched))
        }
        _ => Err(Error::internal("it sent a descriptor that is not one of its processes")),
    }
}

/// Checks that this is the master side of a pseudo terminal, so that reading
/// from it can only read a terminal.
fn check_terminal(fd: &OwnedFd) -> Result<()> {
    // Asks the kernel alone, not the program that may serve the file system.
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

/// Checks that this is the listener of a seccomp program, which an agent may then trust.
fn check_listener(fd: &OwnedFd) -> Result<()> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let names = rustix::fs::readlink(&link, Vec::new()).context(|| format!("read {link}"))?;
    match names.as_bytes() {
        b"anon_inode:seccomp notify" => Ok(()),
        _ => Err(Error::internal("it sent a descriptor that is no seccomp listener")),
    }
}

/// Checks that this is a mount namespace: that is closed by a child of the shim's
/// (`sys/let_go.rs`), which anything else could hold up for ever.
fn check_mounts(fd: &OwnedFd) -> Result<()> {
    let other = || Error::internal("it sent a descriptor that is no mount namespace");
    // All namespaces are files of one file system, so that no program serves this one if it
    // is where the shim's own is.
    let own = file_system_of(&File::open("/proc/self/ns/mnt").context(|| "open a namespace")?)?;
    if file_system_of(fd)? != own {
        return Err(other());
    }
    match namespace_kind(fd) {
        Ok(kind) if kind == CloneFlags::CLONE_NEWNS => Ok(()),
        _ => Err(other()),
    }
}

/// Returns the device number of a file's file system. Asks the kernel alone.
fn file_system_of(file: impl AsFd) -> Result<(u32, u32)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(file, "", flags, StatxFlags::TYPE).context(|| "statx of a namespace")?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor))
}

/// Whether this is the master side of a pty: only that side answers TIOCGPTN.
fn is_master(fd: &OwnedFd) -> bool {
    rustix::pty::ptsname(fd, Vec::new()).is_ok()
}

impl Process {
    /// Whether it is ending or has ended.
    pub fn is_ending(&self) -> bool {
        is_ending(self.pid, self.pidfd.as_fd())
    }

    /// Sends a signal of any number that the kernel knows. With 0, only checks that the
    /// process lives.
    ///
    /// # Errors
    /// `NotFound` when it has exited; `Invalid` for a number that is no signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        if !(0..=LAST_SIGNAL).contains(&signal) {
            return Err(Error::invalid(format!(
                "{signal} is no signal; expected 0 to {LAST_SIGNAL}"
            )));
        }
        match send_signal(&self.pidfd, signal) {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::SRCH) => {
                Err(Error::new(FailureKind::NotFound, "process already finished"))
            }
            other => other.context(|| format!("send signal {signal} to process {}", self.pid.0)),
        }
    }
}

/// Returns the PID that /proc shows for a pidfd: -1 once its process was
/// collected, `None` if this is no pidfd. proc_pid_fdinfo(5).
fn pid_of(pidfd: &OwnedFd) -> Result<Option<i32>> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let file = File::open(&path).context(|| format!("open {path}"))?;
    // The text is shorter than this, and one read returns all of it.
    let mut text = [0; 1024];
    let length = rustix::io::read(&file, &mut text).context(|| format!("read {path}"))?;
    let text = String::from_utf8_lossy(&text[..length]);
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    Ok(pid.and_then(|pid| pid.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mount_namespace_is_taken_for_one() {
        let check = |path: &str| check_mounts(&File::open(path).unwrap().into());
        assert!(check("/proc/self/ns/mnt").is_ok());
        for other in ["/proc/self/ns/net", "/proc/self/ns/pid", "/proc/self/ns", "/dev/null", "/"] {
            assert!(check(other).is_err(), "{other}");
        }
    }
}
