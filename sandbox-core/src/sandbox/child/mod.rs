//! The clone of the shim, between clone and execve, that becomes boot. It is a copy of the
//! shim, with the shim's memory and descriptors, and runs only what is here.

pub(super) mod boot;
mod clocks;
mod inherited;
mod pod_namespaces;
