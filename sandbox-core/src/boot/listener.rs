//! A seccomp listener that boot receives system calls from.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::container::join_info::JoinInfo;
use crate::types::ProcessId;

/// The listener of the program that a process has loaded, for it and its children.
pub(super) struct Listener {
    pub(super) fd: OwnedFd,
    pub(super) process: ProcessId,
    pub(super) container: Rc<JoinInfo>,
}
