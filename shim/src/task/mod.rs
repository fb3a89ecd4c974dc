//! containerd's task service.
//!
//! [`service`] lists the requests; each has a file of its own. What all of them
//! share: [`table`] (what is known), [`lifecycle`] (what may happen when),
//! [`sandbox`] (the talk with boot) and [`exits`] (how an end is told).

mod close_io;
mod connect;
mod create;
mod delete;
mod exec;
mod exits;
mod hooks;
mod kill;
mod lifecycle;
mod metrics;
mod oom;
mod pause;
mod pids;
mod relay;
mod resize;
mod resume;
mod sandbox;
mod service;
mod shutdown;
mod start;
mod state;
mod stats;
mod table;
mod update;
mod wait;

pub(crate) use create::{Around, Order, make_sandbox};
pub(crate) use metrics::encode as encode_stats;
pub(crate) use sandbox::Boot;
pub(crate) use service::{services, to_the_end};
pub(crate) use table::{Exit, KILLED, Sandbox, Shim, Table, raised};
