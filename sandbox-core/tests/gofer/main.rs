//! The real gofer, as root, against the real kernel.
//!
//! Each test has a mount namespace of its own (its thread's) and a sandbox that
//! is nothing but a process in new namespaces. Mounts are looked at through
//! the descriptors that the gofer delivers, as boot would get them.
#![allow(missing_docs, reason = "a test is no library")]

mod devices;
mod harness;
mod hooks;
mod mounts;
mod old_kernel;
mod propagation;
mod races;
mod refusals;
mod repeated;
mod rootfs;
