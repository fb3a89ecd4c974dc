//! From config.json to a plan.

pub mod plan;
pub mod seccomp;
