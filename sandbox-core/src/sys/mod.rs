//! System calls: the only place with `unsafe`.
#![allow(unsafe_code)]

pub mod cgroup;
