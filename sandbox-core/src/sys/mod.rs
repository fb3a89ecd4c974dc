//! System calls: the only place with `unsafe`. Each wrapper takes borrowed
//! descriptors, returns owned ones, and adds nothing to the system call.
#![allow(unsafe_code)]

pub mod alarm;
pub mod bpf;
pub mod child;
pub mod clone;
pub mod descriptor;
pub mod mount;
pub mod network;
pub mod pidfd;
pub mod process;
