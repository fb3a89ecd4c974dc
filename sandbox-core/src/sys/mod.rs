//! System calls: the only place with `unsafe`.
#![allow(unsafe_code)]

#[cfg(test)]
pub(crate) mod spec;
