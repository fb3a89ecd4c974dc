//! containerd's task service.
//!
//! [`service`] lists the requests; each has a file of its own. What all of them
//! share, from the ground up:
//!
//! | file | what it has |
//! |---|---|
//! | [`lifecycle`] | a process's states and steps |
//! | [`boot`] | requests to boot |
//! | [`create_plan`], [`pod`], [`container`] | what is to be made, and what is there |
//! | [`table`], [`shim`] | what the shim knows |
//! | [`oom`], [`exits`] | how an end is published, and in which order |
//! | [`teardown`] | every ending |
//! | [`listen`], [`relay`] | what boot sends and logs |
//!
//! A file uses those above it in this table, and the requests use all of them.

mod allowance;
mod boot;
mod close_io;
mod connect;
mod container;
mod create;
mod create_plan;
mod delete;
mod exec;
mod exits;
mod hooks;
mod kill;
mod lifecycle;
mod listen;
mod make;
mod metrics;
mod oom;
mod pause;
mod pids;
mod pod;
mod pod_files;
mod relay;
mod reservation;
mod resize;
mod resume;
mod rollback;
mod service;
mod shim;
mod shutdown;
mod start;
mod state;
mod stats;
mod table;
mod teardown;
mod update;
mod wait;

pub(crate) use boot::BootClient;
pub(crate) use create_plan::{CreateContext, CreatePlan, Wanted};
pub(crate) use make::make_sandbox;
pub(crate) use metrics::encode as encode_stats;
pub(crate) use pod::{Pod, PodStart, PodState};
pub(crate) use pod_files::{PodFiles, Wanted as WantedFiles};
pub(crate) use service::{services, to_the_end};
pub(crate) use shim::{End, Shim, raised};
pub(crate) use teardown::{end_by_signal, shut_down_pod, stop_pod, tear_down_if_unused};
