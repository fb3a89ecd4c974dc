//! What `palisade`, the command of operators, asks a shim for (`operator_api`): one file for each
//! request. None of it costs a pod anything before it is asked for.

mod events;
mod exec_detached;
mod heap_profile;
mod inspect;
mod service;
mod set_log_level;
mod spans;

pub(crate) use service::services;
