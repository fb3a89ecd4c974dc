//! Finds out whether a process is ending: from its last system call on, and not only once it has
//! exited. The kernel takes its descriptors and namespaces away in between, and requests that it
//! should serve fail with errors that say nothing of the cause.

use std::fs;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::FailureKind;
use crate::types::HostPid;

/// The kernel's `PF_EXITING` (`linux/sched.h`).
const EXITING: u32 = 0x4;

/// Whether a process is ending or has ended. `pidfd` is its own.
pub(super) fn is_ending(pid: HostPid, pidfd: BorrowedFd<'_>) -> bool {
    // Asked for last, since the PID is no other process's as long as this one has not ended.
    let exiting = match fs::read_to_string(format!("/proc/{}/stat", pid.0)) {
        Ok(stat) => flags_in(&stat).is_none_or(|flags| flags & EXITING != 0),
        // That is the caller's own trouble.
        Err(error) => FailureKind::of(&error) != FailureKind::NoDescriptors,
    };
    let ended =
        poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], Some(&Timespec::default()));
    exiting || ended.is_ok_and(|ended| ended > 0)
}

/// Returns the flags of a process in its `/proc/PID/stat`: proc_pid_stat(5).
fn flags_in(stat: &str) -> Option<u32> {
    // Its name may have any characters in it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[test]
    fn a_process_that_lives_is_not_ending() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let pid = HostPid(child.id().cast_signed());
        assert!(!is_ending(pid, pidfd.as_fd()));
        child.kill().unwrap();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        assert!(is_ending(pid, pidfd.as_fd()), "not collected yet");
        child.wait().unwrap();
        assert!(is_ending(pid, pidfd.as_fd()));
    }

    #[test]
    fn the_flags_stand_behind_a_name_of_any_kind() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194308 0 0";
        assert_eq!(flags_in(stat), Some(4_194_308));
        assert_eq!(flags_in("7"), None);
    }
}
