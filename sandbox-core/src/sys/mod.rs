//! System calls: the only place with `unsafe`. Each wrapper takes borrowed
//! descriptors, returns owned ones, and adds nothing to the system call.
#![allow(unsafe_code)]

pub mod alarm;
pub mod cgroup;
pub mod clone;
pub mod descriptor;
pub mod mount;
pub mod network;
pub mod pidfd;
pub mod process;
#[cfg(test)]
pub(crate) mod spec;
