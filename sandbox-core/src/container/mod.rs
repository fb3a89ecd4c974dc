//! What boot does to put one container together, and what it keeps of it. The newborn,
//! a copy of boot, goes on from there: see `newborn/`.

pub(crate) mod channel;
pub(crate) mod delivered;
pub(crate) mod donated;
pub(crate) mod join_info;
pub(crate) mod namespaces;
pub(crate) mod own_id;
pub(crate) mod paths;
pub(crate) mod shared_names;
pub(crate) mod steps;
pub(crate) mod terminal;
pub(crate) mod tree;
