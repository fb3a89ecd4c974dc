//! A newborn: a process that boot has cloned and that has not executed its program yet.
//! It is a copy of boot, with boot's memory, descriptors and privileges, and loses them
//! step by step. `init.rs` is the table of contents for a container's
//! init, `exec.rs` for an exec'd process.

pub(crate) mod builder;
mod channel;
mod donated;
pub(crate) mod exec;
mod hooks;
pub(crate) mod init;
mod keyring;
mod lookup;
mod mounts;
mod names;
mod process;
pub(crate) mod restorer;
mod terminal;
mod time;
pub(crate) mod work;

pub(crate) use channel::Channel;
pub(crate) use donated::Birth;
