//! The gofer: a short-lived privileged helper that opens what a container may
//! see.
//!
//! It runs as root in the host's namespaces. Only the shim sends it a request.
//! It delivers the result to boot as detached mounts. boot gets no path from
//! it, no directory that leads out of a mount, and nothing that the plan does
//! not name.
//!
//! The path of one request: `serve` → `means` → proc and default devices, once → `hooks` →
//! `rootfs` (`overlay`, `bind`, `filesystem`) → `devices` → each mount →
//! `seccomp`. `delivery` sends the mounts, a packet as soon as it is full.

mod assemble;
mod bind;
mod checkpoint;
mod child;
mod cloned_tree;
mod confine;
mod delivery;
mod devices;
mod filesystem;
mod hook_view;
mod hooks;
mod idmap;
mod layers;
mod loop_device;
mod mapping;
mod means;
mod mountinfo;
mod options;
mod overlay;
mod overlay_again;
mod overlay_attached;
mod rootfs;
mod seccomp;
mod serve;
mod unmappable;
mod users;

pub use serve::run;
