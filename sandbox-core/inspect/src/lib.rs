//! Looks into running pods from the host: the stacks of their threads, profiles and traces.
//!
//! A crate of its own, and no room of `sandbox-core`: neither the shim nor a sandbox carries what
//! reads symbols and writes profiles. It runs in `palisade`, as root of the host, reads /proc, the
//! pod's cgroups, perf events and tracefs, and changes nothing of a pod.

#![deny(unsafe_code)]

pub mod calls;
mod copies;
pub mod formats;
mod frames;
pub mod heap;
pub mod images;
pub mod memory;
pub mod mounts;
pub mod perf;
pub mod processes;
pub mod profile;
pub mod stacks;
pub mod status;
pub mod symbols;
pub mod trace;
pub mod unwind;
pub mod waits;
mod walk;
