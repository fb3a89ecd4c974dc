//! System calls: the only place with `unsafe`. Each wrapper takes borrowed
//! descriptors, returns owned ones, and adds nothing to the system call.
#![allow(unsafe_code, reason = "system calls that neither rustix nor nix wraps")]

pub mod alarm;
pub mod bpf;
pub mod child;
pub mod classic_bpf;
pub mod clone;
pub mod confine;
pub mod descriptor;
pub mod heap;
pub mod kernel;
pub mod let_go;
pub mod loop_device;
pub mod mapping;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod network;
pub mod open_files;
pub mod pidfd;
pub mod process;
pub mod seccomp_listener;
pub mod shared_page;
pub mod spawn;

use std::io;

/// Returns the result of a system call, or its error where it is -1.
fn check(result: impl Into<libc::c_long>) -> io::Result<libc::c_long> {
    let result = result.into();
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
