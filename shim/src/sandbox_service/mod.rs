//! containerd's Sandbox service, for a runtime with `sandboxer = "shim"`: the
//! client requests the sandbox itself, without a pause container.
//!
//! [`service`] lists the requests. A sandbox is made from the pod's configuration
//! as CRI has it ([`spec`]) or from a spec in the bundle. Its states are in
//! `task/pod.rs`, and its end is in `task/teardown.rs`.

mod cri {
    //! Generated from `cri.proto`.
    #![allow(
        missing_docs,
        clippy::all,
        clippy::undocumented_unsafe_blocks,
        reason = "generated code"
    )]
    include!(concat!(env!("OUT_DIR"), "/protos/mod.rs"));
}
mod create;
mod dns;
mod metrics;
mod platform;
mod service;
mod shutdown;
mod spec;
mod start;
mod status;
mod stop;
mod wait;

pub(crate) use service::services;
