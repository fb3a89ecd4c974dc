//! Turns config.json into a plan.
//!
//! [`load()`] reads and parses config.json once. [`plan()`] checks everything
//! and resolves it into a [`plan::Plan`]. [`seccomp`] compiles a profile into
//! the program that the kernel loads, and [`baseline`] writes the one below it. [`refused`] explains
//! what these refuse. Nothing here changes anything on the machine. Besides the spec, this code looks only at the identity of
//! namespaces, the kind of bind sources, and which security modules the kernel
//! has.

pub mod baseline;
pub mod load;
pub mod mount_options;
pub mod plan;
pub mod refused;
pub mod resolve;
pub mod seccomp;

#[cfg(test)]
mod tests;

pub use load::{load, load_process};
pub use resolve::capabilities::{capability_names, names_of};
pub use resolve::facts::{NamespaceId, SandboxFacts};
pub use resolve::namespaces::namespace_names;
pub use resolve::pod::{annotations, with_share_of_boot};
pub use resolve::process::{ProcessDefaults, plan_process};
pub use resolve::{Context, plan};
