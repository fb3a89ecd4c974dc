//! containerd's task service.
//!
//! [`service`] lists the requests; each has a file of its own. They share these
//! files:
//!
//! | file | content |
//! |---|---|
//! | [`allowance`], [`metrics`], [`hooks`], [`pod_files`] | tools that do not use the shim's state |
//! | [`lifecycle`] | a process's states and steps |
//! | [`joining`] | the cgroups that a process joins |
//! | [`boot`] | requests to boot |
//! | [`changed_level`], [`one_heap_profile`] | a level of the log that holds for a while, a profile that is being taken |
//! | [`create_plan`], [`pod`], [`container`] | things to be made, and things that exist |
//! | [`table`], [`shim`] | the shim's state |
//! | [`count`] | what `palisade metrics` shows of the shim |
//! | [`oom`], [`exits`] | the end of a process, and the order of its events |
//! | [`teardown`] | every ending |
//! | [`let_go`], [`rest`] | the last closes of mounts, and memory that is no longer used |
//! | [`listen`], [`relay`], [`log_level`], [`heap_profile`] | boot's messages and log, and what it allocates |
//! | [`powerless`], [`user_log`] | what a spec grants in vain, and what is refused |
//! | [`exec_detached`](mod@exec_detached) | an exec that no client deletes |
//! | [`reservation`], [`rollback`], [`make`] | the parts of Create and StartSandbox |
//!
//! A file uses those above it in this table, and the requests use all of them.

mod agent;
mod allowance;
mod boot;
mod changed_level;
mod checkpoint;
mod checkpoint_files;
mod checkpoint_options;
mod close_io;
mod connect;
mod container;
mod count;
mod create;
mod create_plan;
mod delete;
mod exec;
mod exec_detached;
mod exits;
pub(crate) mod heap_profile;
mod hooks;
mod inspect;
mod joining;
mod kill;
mod let_go;
mod lifecycle;
mod listen;
pub(crate) mod log_level;
mod make;
mod metrics;
mod one_heap_profile;
mod oom;
mod pause;
mod pids;
mod pod;
mod pod_files;
mod powerless;
mod raw_sockets;
mod relay;
mod reservation;
mod resize;
mod rest;
mod restore;
mod resume;
mod rollback;
mod savable;
mod saved_streams;
mod seccomp_agent;
mod service;
mod shim;
mod shutdown;
mod start;
mod state;
mod stats;
mod table;
mod teardown;
mod update;
mod user_log;
mod views;
mod wait;

pub(crate) use boot::BootClient;
pub(crate) use count::Counted;
pub(crate) use create_plan::{CreateContext, CreatePlan, Wanted};
pub(crate) use exec_detached::exec_detached;
pub(crate) use inspect::inspect;
pub(crate) use let_go::close_what_is_let_go;
pub(crate) use make::make_sandbox;
pub(crate) use metrics::encode as encode_stats;
pub(crate) use pod::{Pod, PodStart, PodState};
pub(crate) use pod_files::{PodFiles, Wanted as WantedFiles};
pub(crate) use rest::give_memory_back;
pub(crate) use service::{services, to_the_end};
pub(crate) use shim::{End, Shim, raised};
pub(crate) use teardown::{
    end_by_signal, end_unneeded, shut_down_pod, stop_pod, tear_down_if_unused,
};
