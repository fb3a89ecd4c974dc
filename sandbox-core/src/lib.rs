//! Spawns, isolates and manages Palisade's sandbox process.
//!
//! The shim calls [`sandbox`]; the executable `palisade-sandbox` (this crate's
//! `main.rs`) runs [`gofer`] and [`boot`]. `ARCHITECTURE.md` follows one Create
//! through these modules.
//!
//! # Who runs where
//! Code of two processes with different privilege is never in one module. U1 is the
//! sandbox's user namespace, U2 a container's below it. A sandbox without a user
//! namespace has neither: root there is the host's, and boot is root and keeps all
//! capabilities. Where an ordinary user runs containerd, root of the host below means root of
//! containerd's user namespace.
//!
//! | room | runs in | as | with | may touch |
//! |---|---|---|---|---|
//! | `spec::load`, `spec::resolve` | the shim | root of the host | | reads config.json and facts of the host (namespaces, kinds of files, security modules); changes nothing |
//! | `spec::mount_options`, `spec::baseline`, `spec::refused`, `spec::seccomp` but `compile` | the shim and the gofer | the caller | | nothing: tables, and names made from them |
//! | [`cgroup`] | the shim | root of the host | a connection to systemd for one call | the sandbox's cgroups, their units, what the statistics are read from |
//! | `cgroup::systemd`'s holder | a clone of the shim | root of the host | nothing: it closes all | nothing: it is the first process of a new scope, until one of the container has joined |
//! | [`network`] | the shim | root of the host | | enters the pod's network namespace while boot is cloned, and its sysctls; moves network devices of the host into it; opens raw sockets there |
//! | [`sandbox`] | the shim, and its `delete` command (`clean_up`) | root of the host | `palisade-sandbox` on a mount of its own, boot's pidfd, its ends of boot's channels | the sandbox's state below `/run/palisade`, its ID range, boot and the gofers |
//! | `sandbox::child::boot` | a clone of the shim, until it executes boot | root of the host, then ID 0 of U1; in boot's namespaces | all that the shim holds; hands on boot's ends of the channels and the birth certificate | joins the root container's cgroup on version 1 |
//! | `sys::spawn`'s child | a clone of the shim, in its memory, until it executes the gofer | root of the host | all that the shim holds; hands on its request's socket | nothing |
//! | `sys::let_go`'s child | a clone of the shim, in its memory | root of the host | the descriptors that are to be closed | nothing: it closes them |
//! | [`dump`] | the shim | root of the host | what `/proc` shows of a container's processes | nothing |
//! | `dump::criu`'s guard | a clone of the shim | root of the host | nothing but what the shim held | clones criu, and kills all of it when it or the shim ends |
//! | `dump::criu`'s child, and criu | a clone of the guard, until it executes criu | root of the host, inside the container's network, UTS and, if the pod's, IPC namespaces | the container's processes, which criu stops; the folder of the image | writes the image |
//! | `dump::visit`'s child | a clone of the shim, in a container's mounts | root of the host; to save a tmpfs, root of U2, where nothing of the pod can name it | a tmpfs, and its archive in the image | nothing: it reads |
//! | [`gofer`], `spec::seccomp::compile` | `palisade-sandbox gofer` | root of the host; once no hook is left to run with 15 capabilities, no_new_privs, a filter, and no way to the processes beside it (Landlock) | its request's socket, the mounts channel, U1, the pod's network and PID namespaces | opens what the plan names and makes mounts of it; keeps seccomp programs below `/run/palisade` |
//! | `gofer::child` | clones of the gofer, in a new mount or user namespace, or in boot's PID namespace | as the gofer | as the gofer | makes one mount or namespace and ends |
//! | [`boot`] | `palisade-sandbox boot`, PID 1 of the pod | its own ID in U1, with ten capabilities there; an empty root | control, mounts channel, start-sync, logs, its own PID namespace | the pod's processes, mounts and names; nothing of the host |
//! | `container` | boot and newborns | as boot; for a moment as root of U1, or with files as the container's root | a container's mounts, donated descriptors and terminal | a newborn puts the container's tree together in its copy of boot's mounts |
//! | `container::steps` | boot and newborns | the caller; files are made as the container's root | a root, held open | mounts and files below that root; names of the caller's namespaces |
//! | `newborn` | a clone of boot, until it executes the user's program | as boot, then root of U2, then the user and capabilities of the plan | all that boot holds, close-on-exec; its channel to boot | the container's namespaces and root, which it enters; itself |
//! | `newborn::restorer` | a clone of boot, until it executes criu, and criu | as boot, then root of U2 with all capabilities there | criu's socket, the container's streams, the images and criu's own files | the container's processes, which it makes of the images; the container's files |
//! | `views` | boot | as boot | descriptors of cgroup files, boot's own proc, the device of its own file system, two directories of the host's sysfs | nothing: it makes texts of what it reads, and replies to the kernel |
//! | [`checkpoint`] | the shim and its clones, boot and newborns | the caller | an image's folder, a tmpfs, a socket to criu | reads and writes files of that folder and in that tmpfs; takes both, and what criu says, for hostile |
//! | `hook_process` | the gofer and newborns | the caller | | executes a hook and waits for its end |
//! | `places` | boot, newborns, and the gofer for hooks | the caller | a root, held open | finds and makes mount points below that root |
//! | [`control`] | both ends of each channel | the caller | the socket that it is given | encodes, sends and receives; takes what comes from boot for hostile |
//! | [`directories`] | the shim and the gofer | the caller | | makes the directories that processes share |
//! | `spec::plan`, [`types`], [`cpu_set`], [`error`] | all | | plain data | only `Mappings` writes: the ID maps of a process |
//! | `sys::heap` | the shim and boot, as their allocator | the caller | while a heap profile is taken, the table that it fills | its own stack, of which it copies words into the table |
//! | [`sys`] | the caller | | what it is given | one system call each, by safe types; decides nothing |
//!
//! `ci/layers` holds what these rooms import: the host's (`spec`, `cgroup`, `network`,
//! `sandbox`, `gofer`) and the pod's (`boot`, `container`, `newborn`) meet only in
//! [`control`] and `spec::plan`.

#![deny(unsafe_code)]

pub mod boot;
pub mod cgroup;
pub mod checkpoint;
mod container;
pub mod control;
pub mod cpu_set;
pub mod directories;
pub mod dump;
pub mod error;
pub mod gofer;
mod hook_process;
pub mod network;
mod newborn;
mod places;
pub mod sandbox;
pub mod spec;
pub mod sys;
pub mod types;
pub mod views;

pub use error::{Context, Error, Result};
